/** `weft-agent`: the program that a host starts. The agent, with the doors that live in its process. */
import { Agent } from "../core/agent/agent.ts";
import { openLog } from "../core/agent/log.ts";
import { parseOptions } from "../core/agent/options.ts";
import { loadAddon } from "../core/wire/addon.ts";
import { isWeftError, reasonOf } from "../core/wire/errors.ts";
import { Turns } from "../sm-driver/datapath/turns.ts";
import { alertSink } from "./alert-sink.ts";
import { deviceSizes } from "./device-sizes.ts";
import { finishHolderRestart, holderDoor } from "./holder-door.ts";
import { smDoors } from "./sm-door.ts";
import { guestDevices, holderRestart, tapdisks } from "./tapdisks.ts";
import { xapiDoors } from "./xapi-doors.ts";

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  const log = openLog(options.logLevel);
  if (!options.allowCoreDumps) loadAddon(options.addon).protect();
  const turns = new Turns();
  const [datapath, restart] = [tapdisks(options, log, turns), holderRestart(options, log, turns)];
  const doors = [
    ...smDoors(options, log, datapath),
    ...xapiDoors(options, log, datapath),
    holderDoor(restart),
  ];
  const [alerts, guests, sizes] = [alertSink(options, log), guestDevices(options), deviceSizes(datapath)];
  const agent = new Agent(options, log, doors, alerts, guests, sizes);
  const end = (signal: string): void => {
    log.info({ signal }, "the agent ends; etcd and weftd go on");
    agent.stop().then(
      () => process.exit(0),
      (error: unknown) => {
        log.error({ error: reasonOf(error) }, "the agent did not end in order");
        process.exit(1);
      },
    );
  };
  process.once("SIGTERM", () => end("SIGTERM"));
  process.once("SIGINT", () => end("SIGINT"));
  finishHolderRestart(restart, log);
  await agent.start();
}

try {
  await main();
} catch (error) {
  process.stderr.write(`${isWeftError(error) ? `${error.code} ` : ""}${reasonOf(error)}\n`);
  process.exit(1);
}
