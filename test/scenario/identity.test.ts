/**
 * Plot: who is trusted changes while guests write. Certificates of seconds are renewed again and again, another authority
 * takes the place of the old one, a host is revoked that has a volume open. What must hold: no request of a guest fails
 * that has nothing to do with it, none waits, and a revoked host neither writes nor comes back.
 */
import { X509Certificate } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";

import { type Host, weftServices } from "../../scripts/cluster/host.ts";
import { Load } from "../../scripts/faults/load.ts";
import { until } from "../../scripts/lib/until.ts";
import type { CaAnswer } from "../../src/core/wire/agent-api.ts";
import { attachAnswer, hostRevokeAnswer } from "../../src/core/wire/agent-api.ts";
import { DaemonClient } from "../../src/core/wire/daemon-client.ts";
import { IdentityFiles } from "../../src/core/wire/identity-files.ts";
import type { Stage } from "./stage.ts";
import { onStage } from "./stage.ts";

/**
 * The promises: a change of who is trusted makes no guest wait longer than this, and a revoked host is listened to no longer
 * than that. A machine that is busy with something else makes guests wait without any change, so both are held against what
 * the same guest waited, and the same store took, in a calm of the same run: nobody's figures but its own excuse a run.
 */
const STALL_MS = 200;
const STALL_CALMS = 3;
const CUT_MS = 5000;
const CUT_WRITES = 5;
/** Some five seconds of a guest. */
const CALM_WRITES = 2500;
/** Where changes come by themselves, a calm is looked for so many times, for a shorter while each. */
const CALM_LOOKS = 10;
const LIFE_S = 20;

type Asserts = Pick<typeof t, "ok" | "comment">;

/** What a guest waits for while nothing is changed, in ms. */
async function calmOf(load: Load, writes = CALM_WRITES): Promise<number> {
  load.mark("calm");
  await load.acknowledges(writes);
  return load.stallSinceMark("change");
}

function assertStall(t: Asserts, stallMs: number, calmMs: number): void {
  const bound = Math.max(STALL_MS, STALL_CALMS * calmMs);
  const figures = `${Math.round(stallMs)} ms, ${Math.round(calmMs)} ms in the calm`;
  t.comment(`longest wait of the guest ${figures}`);
  t.ok(stallMs <= bound, `the guest waited ${figures}: at most ${Math.round(bound)} ms`);
}

/** The longest of some changes that need the store, in ms. */
async function slowestWriteOf(host: Host): Promise<number> {
  let slowest = 0;
  for (let n = 0; n < 10; n += 1) {
    const begun = performance.now();
    const { id } = await host.agent().createToken({ forMs: 60_000, name: `calm${n}` });
    slowest = Math.max(slowest, performance.now() - begun);
    await host.agent().revokeToken(id);
  }
  return slowest;
}

type Shown = {
  readonly host: X509Certificate;
  /** By the store's authority. */
  readonly etcd: X509Certificate | null;
  /** What weftd shows: until when, in seconds since 1970. */
  readonly daemonUntil: bigint;
};

async function shownBy(host: Host): Promise<Shown> {
  const files = new IdentityFiles(host.stateDir);
  const identity = await files.readHost();
  if (identity === null) throw new Error(`${host.name} has an identity`);
  const daemon = new DaemonClient({ socketPath: host.daemonSocket });
  try {
    const { not_after: daemonUntil } = await daemon.call("identity.show", {});
    return {
      host: new X509Certificate(identity.certPem),
      etcd: await files.readEtcdCertificate(),
      daemonUntil: BigInt(daemonUntil),
    };
  } finally {
    daemon.close();
  }
}

/** Returns when host, store and daemon all show certificates that they did not show before. */
function renewed(host: Host, before: Shown): Promise<Shown> {
  return until(
    async () => {
      const now = await shownBy(host);
      const isNew =
        now.host.serialNumber !== before.host.serialNumber &&
        now.etcd?.serialNumber !== before.etcd?.serialNumber &&
        now.daemonUntil > before.daemonUntil;
      return isNew ? now : null;
    },
    { what: `another certificate of ${host.name}`, deadlineMs: 4000 * LIFE_S, everyMs: 250 },
  );
}

function allRenewed(hosts: readonly Host[], before: readonly Shown[]): Promise<readonly Shown[]> {
  return Promise.all(hosts.map((host, i) => renewed(host, before[i] ?? missing())));
}

/** The most that a guest waited for between renewals: a look that one fell into counts for nothing. Null: each was such a one. */
async function calmBetween(
  hosts: readonly Host[],
  load: Load,
): Promise<{ readonly ms: number | null; readonly shown: readonly Shown[] }> {
  let ms: number | null = null;
  let before = await Promise.all(hosts.map(shownBy));
  for (let look = 0; look < CALM_LOOKS; look += 1) {
    const waited = await calmOf(load, CALM_WRITES / CALM_LOOKS);
    const after = await Promise.all(hosts.map(shownBy));
    const isSame = after.every(
      ({ host, etcd, daemonUntil }, i) =>
        host.serialNumber === before[i]?.host.serialNumber &&
        etcd?.serialNumber === before[i].etcd?.serialNumber &&
        daemonUntil === before[i].daemonUntil,
    );
    if (isSame) ms = Math.max(ms ?? 0, waited);
    before = after;
  }
  return { ms, shown: before };
}

/** The numbers of all processes that hold a connection or a key. */
async function pidsOf(hosts: readonly Host[]): Promise<readonly (number | null | undefined)[]> {
  return Promise.all(
    hosts.flatMap((host) => [
      host.running("weftd"),
      host.running("etcd"),
      host.pids().then((pids) => pids.find(isAgent)),
    ]),
  );
}

/** Node names its process after one of its threads. */
function isAgent(pid: number): boolean {
  return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("src/resident/main.ts");
}

/** A guest writes and reads on a socket; at its end what it saw is judged. */
async function underLoad(
  dir: string,
  socket: string,
  seed: number,
  play: (load: Load) => Promise<void>,
): Promise<Awaited<ReturnType<Load["finish"]>>> {
  const scratch = mkdtempSync(join(tmpdir(), "weft-identity-"));
  const load = await Load.start({ dir, scratch, socket, seed });
  try {
    await load.acknowledges(500);
    await play(load);
    await load.acknowledges(500);
    return await load.finish();
  } finally {
    load.end();
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Asks hosts for what needs the store and the other hosts, one after the other, until it is stopped. */
class Programs {
  readonly #hosts: readonly Host[];
  #stopped = false;
  #asked = 0;
  #end: Promise<void> = Promise.resolve();

  constructor(hosts: readonly Host[]) {
    this.#hosts = hosts;
  }

  start(): void {
    this.#end = this.#run();
    // Whoever stops it hears of it.
    this.#end.catch(() => {});
  }

  /** How many were answered; rejects with the first one that was not. */
  async stop(): Promise<number> {
    this.#stopped = true;
    await this.#end;
    return this.#asked;
  }

  async #run(): Promise<void> {
    for (let n = 0; !this.#stopped; n += 1) {
      for (const host of this.#hosts) {
        const agent = host.agent();
        const { id } = await agent.createToken({ forMs: 60_000, name: `x${n}` });
        await agent.volumes();
        await agent.revokeToken(id);
        this.#asked += 3;
      }
    }
  }
}

const settled = ({ rotation }: CaAnswer): boolean => rotation === null;

await t.test("identity: certificates of seconds are renewed under load, and nobody notices", async (t) => {
  const play = async ({ cluster, socket }: Stage): Promise<void> => {
    const { hosts } = cluster;
    const programs = new Programs(hosts);
    const before = await pidsOf(hosts);
    let [calmMs, stallMs] = [0, 0];
    const judgement = await underLoad(cluster.dir, socket, 1, async (load) => {
      programs.start();
      const first = await Promise.all(hosts.map(shownBy));
      const calm = await calmBetween(hosts, load);
      calmMs = calm.ms ?? 0;
      t.ok(calmMs > 0, "there was a calm");
      const second = await allRenewed(hosts, calm.shown);
      const third = await allRenewed(hosts, second);
      stallMs = await load.stallSinceMark("end");
      for (const [i, { host }] of third.entries()) {
        const key = first[i]?.host.publicKey ?? missing();
        t.ok(host.publicKey.equals(key), "a renewal keeps the key");
        t.ok(Date.parse(host.validTo) > Date.now());
      }
    });
    const asked = await programs.stop();
    t.comment(`${asked} requests of programs`);
    t.match(judgement, { failures: 0, lostAcks: 0, nonlinear: 0 });
    assertStall(t, stallMs, calmMs);
    t.ok(asked > 10);
    t.same(await pidsOf(hosts), before, "nothing was restarted for it");
  };
  await onStage(play, { services: weftServices(["--certificate-life", String(LIFE_S)]) });
});

await t.test("identity: another authority takes the old one's place under load", async (t) => {
  await onStage(async ({ cluster, h1, socket }) => {
    const { hosts } = cluster;
    const programs = new Programs(hosts);
    const { authorities: old } = await h1.agent().authorities();
    let [calmMs, stallMs] = [0, 0];
    const judgement = await underLoad(cluster.dir, socket, 2, async (load) => {
      programs.start();
      calmMs = await calmOf(load);
      await h1.output(["weft", "ca", "rotate", "--yes"]);
      const after = await until(
        async () => {
          const answer = await h1.agent().authorities();
          const isOver =
            settled(answer) && answer.authorities.every(({ kid }) => !old.some((o) => o.kid === kid));
          return isOver ? answer : null;
        },
        { what: "the end of the rotation", deadlineMs: 90_000, everyMs: 200 },
      );
      stallMs = await load.stallSinceMark("end");
      t.equal(after.authorities.length, 2);
      t.ok(after.authorities.every(({ state, signed }) => state === "active" && signed === hosts.length));
      for (const host of hosts) {
        const { authorities } = await host.agent().authorities();
        const authority = authorities.find(({ kind }) => kind === "host")?.kid;
        t.equal(await issuerOf(host), authority, `${host.name} has a certificate of the new authority`);
      }
    });
    const asked = await programs.stop();
    t.comment(`${asked} requests of programs`);
    t.match(judgement, { failures: 0, lostAcks: 0, nonlinear: 0 });
    assertStall(t, stallMs, calmMs);
  });
});

await t.test("identity: a revoked host is cut off within seconds, and is no writer any more", async (t) => {
  await onStage(async ({ cluster, h1, h2, h3, socket, session }) => {
    const own = await Promise.all([h1, h2].map((host) => host.running("weftd")));
    await h1.output(["weft", "volume", "create", "w", "64MiB", "--copies", "2"]);
    const mine = attachAnswer.parse(await h1.json(["weft", "attach", "w", "--json"]));
    let [calmMs, stallMs] = [0, 0];
    const untouched = await underLoad(cluster.dir, mine.path, 3, async (other) => {
      const fought = await underLoad(cluster.dir, socket, 4, async (load) => {
        calmMs = await calmOf(other);
        const slowest = await slowestWriteOf(h1);
        const cutMs = Math.max(CUT_MS, CUT_WRITES * slowest);
        t.comment(`slowest of ten writes to the store ${Math.round(slowest)} ms`);
        other.mark("revocation");
        const before = await Promise.all([h1, h2].map((host) => connectionsTo(host, h3)));
        t.ok(before.every((all) => all.some((one) => one.includes(":7401"))));
        const begun = performance.now();
        const text = await h1.json(["weft", "host", "revoke", "h3", "--yes", "--json"]);
        const answer = hostRevokeAnswer.parse(text);
        t.comment(`revoked after ${Math.round(performance.now() - begun)} ms: ${JSON.stringify(text)}`);
        t.ok(answer.complete, "every host said so");
        t.equal(answer.hosts.length, 2);
        for (const { name, refusedMs, storeMs } of answer.hosts) {
          t.ok(refusedMs !== null && refusedMs < cutMs, `${name} refuses it after ${refusedMs} ms`);
          t.ok(storeMs !== null && storeMs < cutMs, `${name}'s store has cut it after ${storeMs} ms`);
        }
        t.match(answer.fenced, [{ name: "v" }]);
        for (const [i, host] of [h1, h2].entries()) {
          const now = await connectionsTo(host, h3);
          t.same(
            before[i]?.filter((one) => now.includes(one)),
            [],
            `${host.name} has cut all that it had with it`,
          );
        }

        // The volume goes on elsewhere, whatever h3 still believes.
        await load.takeOver(async () => {
          const { path } = attachAnswer.parse(await h1.json(["weft", "attach", "v", "--json"]));
          return path;
        });
        const { figures } = await session();
        await load.acknowledges(500);
        t.equal((await session()).figures.writes, figures.writes, "h3 completes no write");
        await refused(h3, ["weft", "attach", "w"]);
        await t.rejects(h3.etcdctl(["--command-timeout", "3s", "get", "/weft/v1/cluster"]));
        await h3.kill();
        await load.oldGuestIsRefused();
      });
      stallMs = await other.stallSinceMark("end");
      t.match(fought, { lostAcks: 0, nonlinear: 0 }, "no two writers");

      // Nor does it come back by starting again.
      await h3.start();
      await refused(h3, ["weft", "attach", "w"]);
      await refused(h3, ["weft", "volume", "create", "x", "64MiB"]);
      t.notOk((await h1.agent().hosts()).some(({ name }) => name === "h3"));
    });
    t.match(untouched, { failures: 0, lostAcks: 0, nonlinear: 0 });
    assertStall(t, stallMs, calmMs);
    t.same(await Promise.all([h1, h2].map((host) => host.running("weftd"))), own);
    t.match(await h1.agent().status(), { kind: "cluster", store: { writable: true } });
  });
});

/** Those of the cluster's ports that stand between two hosts: both ends of each. New ones may be tries that fail. */
async function connectionsTo(host: Host, other: Host): Promise<readonly string[]> {
  const text = await host.output(["ss", "-Htn", "state", "established", "dst", other.layout.address]);
  return text
    .split("\n")
    .map((line) => line.trim().split(/\s+/).slice(2).join(" "))
    .filter((ends) => /:740[0-3]\b/.test(ends));
}

/** Ends with an error that has a code. */
async function refused(host: Host, command: readonly string[]): Promise<void> {
  const { result } = await host.exec(command);
  const { exitCode, stderr } = await result;
  if (exitCode === 0 || !/E-[A-Z]+-\d\d/.test(stderr))
    throw new Error(`${host.name}: ${command.join(" ")}: status ${exitCode ?? "none"}: ${stderr}`);
}

/** KID of the authority that stands beside its certificate. */
async function issuerOf(host: Host): Promise<string | null> {
  const identity = await new IdentityFiles(host.stateDir).readHost();
  return identity?.facts.issuerKid ?? null;
}

function missing(): never {
  throw new Error("as many as there are hosts");
}
