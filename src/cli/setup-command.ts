/**
 * `weft init` on a host of XAPI's pool: the plan for all of its hosts, a question, and the doing.
 *
 * Must always hold: what is done is the plan that was shown; where something stands in its way all of that is told, and nothing
 * is done.
 */
import { existsSync } from "node:fs";
import type { Command } from "commander";

import { WeftError } from "../core/wire/errors.ts";
import type { Context } from "./context.ts";

/** Every host of XAPI has it, and no other. */
const INVENTORY = "/etc/xensource-inventory";
/** Toolstacks of all hosts, file systems, an SR that is plugged everywhere. */
const RUN_MS = 3_600_000;
const REFUSED = 2;

export type SetupOptions = {
  readonly plan?: true;
  readonly disks?: string;
  readonly copies?: string;
  readonly network?: string;
  readonly sr?: string;
};

export function addSetupOptions(init: Command): void {
  init
    .option("--plan", "in an XAPI pool: show what would be done, and do nothing")
    .option("--disks <disks>", "in an XAPI pool: auto (every blank disk), none, or HOST:/dev/DISK,…")
    .option("--copies <number>", "in an XAPI pool: copies of every volume (default: 2, or 1 on one host)")
    .option("--network <uuid>", "in an XAPI pool: the network between the hosts (default: the fastest)")
    .option("--sr <name>", "in an XAPI pool: name of the storage repository (default: replicated)");
}

/** On a host of XAPI, where nothing was said that is about this one host. */
export function isForPool(options: SetupOptions & Readonly<Record<string, unknown>>): boolean {
  const words = ["plan", "disks", "copies", "network", "sr"];
  if (words.some((word) => options[word] !== undefined)) return true;
  const own = ["name", "address", "clusterName", "transport", "pool"];
  return existsSync(INVENTORY) && own.every((word) => options[word] === undefined);
}

export async function setUpPool(context: Context, options: SetupOptions): Promise<void> {
  const { disks = null, copies = null, network = null, sr = "replicated" } = options;
  const client = context.patientClient(RUN_MS);
  const request = { disks, copies, network, sr };
  const begun = performance.now();
  const planned = await client.planSetup(request);
  if (planned.kind === "no-xapi") {
    throw new WeftError({
      code: "E-SETUP-13",
      message: "This host is not one of an XAPI pool, as far as its agent sees: XAPI's socket is not there.",
      safe: "Nothing was changed.",
      do: [{ why: "Make a cluster of this one host", command: "weft init --address ADDRESS" }],
    });
  }
  if (planned.kind === "refused") {
    context.exitCode = REFUSED;
    context.show(
      planned,
      ({ codes }) => codes.join("\n"),
      ({ text }) => text,
    );
    return;
  }
  if (options.plan === true) {
    context.show(
      planned,
      ({ steps }) => steps.map(({ kind, host }) => `${kind} ${host}`).join("\n"),
      ({ text }) => text,
    );
    return;
  }
  context.note(planned.text);
  await context.confirm("Proceed?");
  const done = await client.runSetup({ ...request, shown: planned.text });
  const seconds = Math.round((performance.now() - begun) / 100) / 10;
  context.show(
    done,
    ({ sr: uuid }) => uuid,
    ({ sr: uuid, hosts, restarted }) =>
      [
        `Ready in ${seconds} s: ${hosts} ${hosts === 1 ? "host" : "hosts"}${restarted === 0 ? "" : `, ${restarted} toolstacks restarted`}, SR "${sr}" ${uuid}.`,
        `Next:  weft status  |  xe vdi-create sr-uuid=${uuid} virtual-size=10GiB name-label=test type=user`,
      ].join("\n"),
  );
}
