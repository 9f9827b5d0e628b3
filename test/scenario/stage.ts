/** What the scenarios share: a cluster of three hosts, a volume in two copies on h1 and h2, attached on h3. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { ClusterOptions } from "../../scripts/cluster/cluster.ts";
import type { CommandResult, Host } from "../../scripts/cluster/host.ts";
import { fioCommand } from "../../scripts/demo/fio.ts";
import type { Load } from "../../scripts/demo/fio.ts";
import { until } from "../../scripts/lib/until.ts";
import { attachAnswer } from "../../src/core/wire/agent-api.ts";
import { DaemonClient } from "../../src/core/wire/daemon-client.ts";
import type { SessionStatus } from "../../src/core/wire/daemon.gen.ts";

export const MIB = 2 ** 20;

export type Stage = {
  readonly cluster: Cluster;
  readonly h1: Host;
  readonly h2: Host;
  readonly h3: Host;
  /** The volume's NBD socket on h3. */
  readonly socket: string;
  /** The session on h3, as its daemon sees it. */
  readonly session: () => Promise<SessionStatus>;
};

/** Plays on a stage of its own. When the play fails, what the hosts wrote is shown. */
export async function onStage(
  play: (stage: Stage) => Promise<void>,
  options: Omit<ClusterOptions, "dir"> = {},
): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "weft-scenario-"));
  try {
    const cluster = await Cluster.up({ ...options, dir });
    try {
      await playOn(cluster, play);
    } catch (error) {
      for (const host of cluster.hosts) {
        for (const [name, text] of Object.entries(host.logs())) {
          console.error(`==> ${host.name} ${name} <==\n${text.split("\n").slice(-40).join("\n")}`);
        }
      }
      throw error;
    }
  } finally {
    await Cluster.down(dir);
    rmSync(dir, { recursive: true, force: true });
  }
}

async function playOn(cluster: Cluster, play: (stage: Stage) => Promise<void>): Promise<void> {
  const [h1, h2, h3] = [cluster.host("h1"), cluster.host("h2"), cluster.host("h3")];
  await h3.output(["weft", "volume", "create", "v", "64MiB", "--copies", "2"]);
  const { volume, path } = attachAnswer.parse(await h3.json(["weft", "attach", "v", "--json"]));
  const daemon = new DaemonClient({ socketPath: h3.daemonSocket });
  try {
    const session = (): Promise<SessionStatus> => daemon.call("session.show", { volume });
    await play({ cluster, h1, h2, h3, socket: path, session });
  } finally {
    daemon.close();
  }
}

/** Starts a load; what it says at its end comes later. */
export async function startLoad(host: Host, load: Load): Promise<{ readonly end: Promise<CommandResult> }> {
  const { result } = await host.exec(fioCommand(load));
  return { end: result };
}

/** Returns when the guest on h3 has written this many more times. */
export async function writesUnderWay({ session }: Stage, more: number): Promise<void> {
  const before = Number((await session()).figures.writes);
  await until(async () => (Number((await session()).figures.writes) >= before + more ? true : null), {
    what: `${more} writes on h3`,
    deadlineMs: 20_000,
  });
}
