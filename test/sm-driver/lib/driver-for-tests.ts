/** A host's agent without a cluster, the driver in it, and the stub that finds them: for what needs no volume. */
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { nativeBin } from "../../../scripts/lib/repository.ts";
import { Agent } from "../../../src/core/agent/agent.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import { parseOptions } from "../../../src/core/agent/options.ts";
import { smDoors } from "../../../src/resident/sm-door.ts";

type Scope = { teardown: (end: () => unknown) => void };

const STUB = join(import.meta.dirname, "../../../packaging/sm/WeftSR");

/** The stub as it is installed, but for where the agent's socket is, and for limits of its own (`SHARED_S`) where a test says them. */
export async function stubFor(
  runDir: string,
  directory: string,
  limits: Readonly<Record<string, number>> = {},
): Promise<string> {
  const path = join(directory, "WeftSR");
  const text = await readFile(STUB, "utf8");
  const inPlace = text.replace('RUN = "/run/weft"', `RUN = ${JSON.stringify(runDir)}`);
  const limited = Object.entries(limits).reduce(
    (all, [name, seconds]) => all.replace(new RegExp(`^${name} = .*$`, "m"), `${name} = ${seconds}`),
    inPlace,
  );
  await writeFile(path, limited);
  await chmod(path, 0o755);
  return path;
}

export type BareDriver = {
  readonly directory: string;
  readonly runDir: string;
  readonly executable: string;
  readonly xapiSocket: string;
};

export async function startBareDriver(t: Scope): Promise<BareDriver> {
  const directory = await mkdtemp(join(tmpdir(), "weft-smd-"));
  const runDir = join(directory, "run");
  await mkdir(runDir);
  const xapiSocket = join(directory, "xapi");
  const options = parseOptions([
    "--allow-core-dumps",
    `--state-dir=${join(directory, "state")}`,
    `--run-dir=${runDir}`,
    `--xapi-socket=${xapiSocket}`,
    `--addon=${join(nativeBin(), "libweft_node.so")}`,
    "--syslog-socket=",
  ]);
  const log = openLog(process.env["WEFT_TEST_LOG"] ?? "silent");
  const agent = new Agent(options, log, smDoors(options, log));
  await agent.start();
  t.teardown(async () => {
    await agent.stop();
    await rm(directory, { recursive: true, force: true });
  });
  return { directory, runDir, executable: await stubFor(runDir, directory), xapiSocket };
}
