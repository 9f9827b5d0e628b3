/**
 * A host was off while a member of the store was revoked. Whoever has that member's disk serves the store of before at its old
 * address, with what it likes in it, and the host that is back hears nobody else at first.
 *
 * Played on a cluster of its own: two of its hosts are gone for the others at the end.
 *
 * Must always hold: what counts as let in is an effect: a list in force, a sign of life in the thief's store, a read that was
 * answered, a watermark that moved. The control is that the same host comes back by itself when it hears the others.
 */
import { createPrivateKey, randomUUID } from "node:crypto";
import { cpSync, existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

import { membersOf, revokeHost, type Trust } from "../../src/core/model/trust.ts";
import { DaemonClient } from "../../src/core/wire/daemon-client.ts";
import { IdentityFiles } from "../../src/core/wire/identity-files.ts";
import { sign } from "../../src/core/wire/signed.ts";
import { openFirstTrust } from "../../src/core/wire/signed-trust.ts";
import { keys } from "../../src/core/wire/store-keys.ts";
import { renderTrust } from "../../src/core/wire/trust.ts";
import { type AuthorityKeys, makeAuthority } from "../../src/core/wire/x509-make.ts";
import { Cluster } from "../cluster/cluster.ts";
import { type Host, type Services, weftServices } from "../cluster/host.ts";
import { pause, until } from "../lib/until.ts";
import type { Played } from "./report.ts";

export const RETURNING = { name: "returning-host", door: "7402" } as const;

/** Generation of the first list of the thief's; no two of its lists have the same. */
const FORGED = 100_000n;
/** Unmended code has followed by then: its first read of the store takes a second. */
const LOOK_MS = 8000;

type Thief = {
  readonly cluster: string;
  readonly trust: Trust;
  readonly body: string;
  readonly authority: AuthorityKeys;
};

/** What the thief's store shows; null: as it was when it was stolen. */
type Show = {
  readonly label: string;
  readonly make: (thief: Thief, generation: bigint) => Promise<readonly (readonly [string, string])[]>;
};

const shows: readonly Show[] = [
  { label: "the store of before", make: async () => [] },
  {
    label: "a newer list",
    make: async (thief, generation) => [[keys.trust, signed(thief, { ...thief.trust, generation })]],
  },
  {
    label: "a list that revokes the others",
    make: async (thief, generation) => [
      [keys.trust, signed(thief, { ...(await withoutOthers(thief)), generation })],
    ],
  },
  {
    label: "a store that was repaired often",
    make: async ({ cluster }) => [[keys.store, JSON.stringify({ cluster, incarnation: "1000" })]],
  },
];

export async function playReturning(options: {
  readonly dir: string;
  readonly say: (line: string) => void;
  /** Where the hosts don't run what this repository has. */
  readonly services?: Services;
}): Promise<Played> {
  const { dir, say } = options;
  const weft = options.services ?? weftServices();
  const stolen = new Map<string, readonly string[]>();
  const services: Services = {
    commands: (host) => {
      const thief = stolen.get(host.name);
      return thief === undefined ? weft.commands(host) : { thief };
    },
    ready: async (host) => (stolen.has(host.name) ? isServing(host) : weft.ready(host)),
  };
  await Cluster.down(dir);
  const cluster = await Cluster.up({ dir, hosts: 4, pools: ["h4"], services, say });
  try {
    const [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map((name) => cluster.host(name)) as [
      Host,
      Host,
      Host,
      Host,
    ];
    await until(async () => ((await h4.agent().cluster()).endpoints.length === 3 ? true : null), {
      what: "three voters",
      deadlineMs: 60_000,
    });
    await h4.kill();
    const thiefs = await thiefsEtcd(h3);
    await h3.kill();
    const thief = await thiefOf(h3);
    await h1.output(["weft", "host", "revoke", "h3", "--yes"]);
    stolen.set("h3", thiefs);
    for (const honest of [h1, h2]) await cluster.cut("h4", honest.name);
    const kept = join(h4.layout.dir, "state-of-before");
    cpSync(h4.stateDir, kept, { recursive: true });
    const accepted: string[] = [];
    let tries = 0;
    const comeBack = async (show: Show | undefined, generation: bigint): Promise<void> => {
      await h3.start();
      for (const [key, value] of (await show?.make(thief, generation)) ?? [])
        await h3.etcdctl(["put", "--", key, value]);
      rmSync(h4.stateDir, { recursive: true });
      cpSync(kept, h4.stateDir, { recursive: true });
      await h4.start();
    };
    for (const [i, show] of shows.entries()) {
      const generation = FORGED + BigInt(i);
      await comeBack(show, generation);
      const seen = await effectsOf(h3, h4, generation, watermarkOf(kept));
      for (const [label, isIn] of seen) {
        tries += 1;
        if (isIn) accepted.push(`${show.label}: ${label}`);
      }
      say(
        `returning-host, ${show.label}: ${seen.filter(([, isIn]) => isIn).length} of ${seen.length} effects`,
      );
      await h4.kill();
      await h3.kill();
    }
    // The thief is there, too, when it hears the others.
    await comeBack(shows[1], FORGED + BigInt(shows.length));
    for (const honest of [h1, h2]) await cluster.heal("h4", honest.name);
    const faults = await comesBack(h1, h4).then(
      () => [],
      (error: unknown) => [`the control failed: ${error instanceof Error ? error.message : String(error)}`],
    );
    return { attack: RETURNING.name, door: RETURNING.door, tries, accepted, guestStallMs: 0, faults };
  } finally {
    await Cluster.down(dir);
  }
}

/** How a host's etcd was started, to be started again so, and for nobody but itself: its data, served by it alone. */
async function thiefsEtcd(host: Host): Promise<readonly string[]> {
  const pid = await host.running("etcd");
  if (pid === null) throw new Error(`no etcd runs on ${host.name}`);
  const command = readFileSync(`/proc/${pid}/cmdline`, "utf8")
    .split("\0")
    .filter((word) => word !== "");
  return [...command, "--force-new-cluster"];
}

async function isServing(host: Host): Promise<boolean> {
  return (await host.etcdctl(["get", keys.cluster]).catch(() => "")).includes("createdAt");
}

async function thiefOf(host: Host): Promise<Thief> {
  const files = new IdentityFiles(host.stateDir);
  const opened = openFirstTrust((await files.readTrust()) ?? "");
  const [authority] = (await files.readAuthorities()).host;
  if (opened.kind === "refused" || authority === undefined) throw new Error("nothing was stolen");
  const { trust, body } = opened.value;
  return { cluster: trust.cluster, trust, body, authority };
}

function signed({ body, authority }: Thief, trust: Trust): string {
  const text = renderTrust({ ...trust, nonce: randomUUID() }, body);
  return sign("trust", text, createPrivateKey(authority.keyPem.reveal()));
}

/** All members but the one at the end, with an authority of the thief's own. */
async function withoutOthers({ cluster, trust }: Thief): Promise<Trust> {
  const nowMs = Date.now();
  const made = async (kind: "host" | "store") => {
    const { kid, pem } = await makeAuthority({ kind, cluster, nowMs });
    return { kid, pem, state: "active", sinceMs: nowMs } as const;
  };
  const replacement = {
    id: randomUUID(),
    authority: await made("host"),
    storeAuthority: await made("store"),
  };
  const [first] = membersOf(trust).filter((host) => trust.hosts.get(host)?.name === "h1");
  if (first === undefined) throw new Error("h1 is a member");
  const gone = revokeHost(trust, { host: first, by: "root", nowMs, replacement, nonce: "" });
  if (gone.kind === "refused") throw new Error(gone.finding.message);
  return gone.value;
}

/** What the host that is back has taken of it, looked for until the end of the time or all of it was seen. */
async function effectsOf(
  thief: Host,
  back: Host,
  generation: bigint,
  watermark: string,
): Promise<readonly (readonly [string, boolean])[]> {
  const daemon = new DaemonClient({ socketPath: back.daemonSocket });
  const seen = {
    agentList: false,
    agentWrites: false,
    daemonList: false,
    daemonReads: false,
    watermark: false,
  };
  try {
    const status = await back.agent().status();
    const host = status.kind === "cluster" ? status.self.host : "";
    await thief.etcdctl(["del", "--", keys.alive(host)]);
    const end = performance.now() + LOOK_MS;
    while (performance.now() < end && Object.values(seen).some((is) => !is)) {
      // Its answers need a store.
      seen.agentList ||= back.logs()["agent"]?.includes(`"generation":"${generation}"`) ?? false;
      seen.agentWrites ||= (await thief.etcdctl(["get", "--", keys.alive(host)])) !== "";
      seen.daemonList ||= BigInt((await daemon.call("identity.show", {})).generation) === generation;
      seen.daemonReads ||= (await daemon.call("store.show", {})).reachable;
      seen.watermark ||= watermarkOf(back.stateDir) !== watermark;
      await pause(250);
    }
  } finally {
    daemon.close();
  }
  return [
    ["the agent goes by its list", seen.agentList],
    ["the agent says that it is alive there", seen.agentWrites],
    ["weftd goes by its list", seen.daemonList],
    ["weftd reads it", seen.daemonReads],
    ["weftd's watermark follows it", seen.watermark],
  ];
}

function watermarkOf(stateDir: string): string {
  const path = join(stateDir, "watermark.json");
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}

/** It goes by the others' list, and they see that it is alive: agent and weftd. */
async function comesBack(honest: Host, back: Host): Promise<void> {
  await until(
    async () => {
      const [here, there] = [await back.agent().authorities(), await honest.agent().authorities()];
      const isSame = JSON.stringify(here.authorities) === JSON.stringify(there.authorities);
      return isSame && here.generation < FORGED ? true : null;
    },
    { what: "h4 to go by the list of the others", deadlineMs: 60_000, everyMs: 250 },
  );
  await until(
    async () => {
      const hosts = await honest.agent().hosts();
      return hosts.some(({ name, alive }) => name === "h4" && alive) ? true : null;
    },
    { what: "h4 to be alive for the others", deadlineMs: 60_000, everyMs: 250 },
  );
  const daemon = new DaemonClient({ socketPath: back.daemonSocket });
  try {
    await until(async () => ((await daemon.call("store.show", {})).reachable ? true : null), {
      what: "h4's weftd to have the store",
      deadlineMs: 60_000,
      everyMs: 250,
    });
  } finally {
    daemon.close();
  }
}
