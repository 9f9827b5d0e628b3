/** A member of the store that stands badly: the care of it goes on, and brings it back. */
import { EventEmitter, once } from "node:events";
import t from "tap";

import { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import { handedOver } from "../../../src/core/agent/members.ts";
import { clientUrl, peerUrl } from "../../../src/core/agent/etcd-process.ts";
import { StoreKeeper, type StoreKeeperOptions } from "../../../src/core/agent/store-keeper.ts";
import { holdsAuthority } from "../../../src/core/model/trust.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import type { Member } from "../../../src/core/wire/store-members.ts";
import {
  emptyFiles,
  listMembers,
  makeCluster,
  relist,
  silent,
  type TestCluster,
} from "./identity-for-tests.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

/** What its etcd does, and what the store says: every call is an event with its name. */
class Surroundings {
  readonly events = new EventEmitter();
  readonly lines: string[] = [];
  /** Null: no majority answers. */
  members: readonly Member[] | null = [];

  did(what: string, argument?: unknown): void {
    this.lines.push(what);
    this.events.emit(what, argument);
  }

  readonly store = {
    call: {
      read: async (): Promise<unknown> => {
        if (this.members === null) throw new WeftError({ code: "E-STORE-01", message: "no majority" });
        return Promise.resolve({ members: this.members });
      },
      once: () => Promise.resolve({ kind: "answered", value: { leader: "1", header: { member_id: "2" } } }),
    },
    get: () => Promise.reject(new WeftError({ code: "E-STORE-01", message: "no majority" })),
  };
}

function keeperOf(
  t: Scope,
  { identity, host, address, cluster, files }: TestCluster,
  around: Surroundings,
  more: Partial<Record<keyof StoreKeeperOptions, unknown>>,
): StoreKeeper {
  const keeper = new StoreKeeper({
    self: { host, address, cluster, name: "h1" },
    store: around.store,
    mirror: { get: () => null, entries: () => [], sync: () => Promise.resolve() },
    log: silent,
    liveness: () => ({ hosts: new Map() }),
    isPlacer: () => false,
    identity,
    identityFiles: files,
    storeIdentity: {
      follow: () => Promise.resolve(),
      restartDue: () => Promise.resolve(null),
      prove: () => Promise.resolve(),
    },
    onEndpoints: (endpoints: readonly string[]) => Promise.resolve(around.did("endpoints", endpoints)),
    onRestarted: () => undefined,
    ...more,
  } as unknown as StoreKeeperOptions);
  t.teardown(() => keeper.stop());
  return keeper;
}

/** The list, and swaps of it that all succeed. */
function listStore(text: string) {
  let value = text;
  return {
    get: () => Promise.resolve({ key: keys.trust, value, createRevision: 1n, modRevision: 1n, lease: 0n }),
    put: () => Promise.resolve(),
    txn: (_: unknown, [op]: readonly { readonly value: string }[]) => {
      value = op?.value ?? "";
      return Promise.resolve({ kind: "succeeded", revision: 2n });
    },
  };
}

function memberAt(address: string, more: Partial<Member> = {}): Member {
  const urls = { peerUrls: [peerUrl(address)], clientUrls: [clientUrl(address)] };
  return { id: "1", name: "h1", learner: false, ...urls, ...more };
}

void t.test(
  "store: a member without the keys fetches them, though its etcd and the store are dead",
  async (t) => {
    const made = await makeCluster(t);
    const around = new Surroundings();
    const authority = await AuthorityKeeper.open({ files: await emptyFiles(t) });
    const ensureRunning = async (): Promise<number> => {
      // As the preparation of its start does.
      authority.give(made.identity.trust());
      around.did("started");
      return Promise.resolve(1);
    };
    let isGiven = false;
    const credentials = () => {
      around.did("asked");
      if (!isGiven) return Promise.reject(new WeftError({ code: "E-HOST-09", message: "nobody answers" }));
      return Promise.resolve(handedOver(made.authority.give(made.identity.trust()), made.text));
    };
    const etcd = {
      isConfigured: () => Promise.resolve(true),
      hasData: () => Promise.resolve(true),
      ensureRunning,
    };
    around.members = [memberAt(made.address)];
    const keeper = keeperOf(t, made, around, { etcd, authority, credentials });
    const told = once(around.events, "endpoints");
    keeper.start();
    t.same(await told, [[clientUrl(made.address)]], "without an etcd of its own it follows the store");
    // Later nobody is the store: what it lacks is what this member has to bring.
    around.members = null;
    isGiven = true;
    const started = once(around.events, "started");
    keeper.nudge();
    await started;
    t.ok(authority.holds(made.identity.trust()));
    t.equal(around.lines.filter((line) => line === "started").length, 1);
  },
);

void t.test("store: a host that has the keys from a backup says so in the list", async (t) => {
  const made = await makeCluster(t);
  const { identity, host, address, authority } = made;
  relist(made, (trust) => ({
    ...trust,
    hosts: new Map(Array.from(trust.hosts, ([id, entry]) => [id, { ...entry, member: false, held: [] }])),
  }));
  listMembers(made, ["10.0.0.2"]);
  const around = new Surroundings();
  around.members = [memberAt("10.0.0.2", { id: "2", name: "h2" })];
  const store = { ...around.store, ...listStore(identity.text) };
  const etcd = { isConfigured: () => Promise.resolve(false), hasData: () => Promise.resolve(false) };
  const keeper = keeperOf(t, made, around, { etcd, authority, store });
  t.notOk(holdsAuthority(identity.trust(), host));
  const listed = Promise.withResolvers<null>();
  identity.onChange(() => listed.resolve(null));
  keeper.start();
  await listed.promise;
  t.ok(holdsAuthority(identity.trust(), host), "its revocation makes another authority");
  t.same(identity.trust().hosts.get(host)?.held, authority.kids());
  t.equal(identity.trust().hosts.get(host)?.address, address);
});

void t.test("store: who comes first and does nothing is not waited for without end", async (t) => {
  const made = await makeCluster(t);
  // It is gone, and somebody says that it lives.
  let gone = made.host;
  for (let i = 2; gone >= made.host; i += 1) [gone = made.host] = listMembers(made, [`10.0.0.${i}`]);
  const alive = { key: keys.alive(gone), value: JSON.stringify({ since: new Date().toISOString() }) };
  const around = new Surroundings();
  const stranger = memberAt("10.0.1.1", { id: "9", name: "stranger" });
  const own = memberAt(made.address, { id: "1" });
  around.members = [own, memberAt("10.0.1.2", { id: "2", name: "h2", learner: true }), stranger];
  const store = {
    ...listStore(made.identity.text),
    call: {
      ...around.store.call,
      change: ({ path, body }: { readonly path: string; readonly body: { readonly ID: string } }) => {
        around.members = (around.members ?? []).filter(({ id }) => id !== body.ID);
        around.did(path, body.ID);
        return Promise.resolve({ kind: "answered", value: { members: around.members } });
      },
    },
  };
  const mirror = {
    get: () => null,
    entries: (prefix: string) => (prefix === keys.alive("") ? [alive] : []),
    sync: () => Promise.resolve(),
  };
  const etcd = {
    isConfigured: () => Promise.resolve(true),
    hasData: () => Promise.resolve(true),
    ensureRunning: () => Promise.resolve(1),
  };
  const more = { etcd, authority: made.authority, store, mirror };
  const patient = keeperOf(t, made, around, { ...more, takeOverMs: 3600_000 });
  const told = once(around.events, "endpoints");
  patient.start();
  await told;
  await patient.stop();
  t.notOk(around.lines.includes("/v3/cluster/member/remove"), "it is not its turn");
  const keeper = keeperOf(t, made, around, { ...more, takeOverMs: 400 });
  const removed = once(around.events, "/v3/cluster/member/remove");
  keeper.start();
  await removed;
  t.ok(around.lines.includes("/v3/cluster/member/remove"));
});

for (const isRestarted of [false, true])
  void t.test(
    `store: a member that was taken out and added again starts anew${isRestarted ? ", also after the agent" : ""}`,
    async (t) => {
      const made = await makeCluster(t);
      const around = new Surroundings();
      let pid = 100;
      // It ends a second after each start, since its member was removed.
      let isOld = true;
      const etcd = {
        isConfigured: () => Promise.resolve(true),
        hasData: () => Promise.resolve(true),
        ensureRunning: () => {
          if (isOld) pid += 1;
          around.did("started");
          return Promise.resolve(pid);
        },
        runningPid: () => Promise.resolve(pid),
        stop: () => Promise.resolve(around.did("stopped")),
        setAside: () => {
          isOld = false;
          return Promise.resolve(around.did("set aside"));
        },
        configure: () => Promise.resolve(around.did("configured")),
      };
      const keeper = keeperOf(t, made, around, { etcd, authority: made.authority });
      const looks = async (): Promise<void> => {
        const looked = once(around.events, "endpoints");
        keeper.nudge();
        await looked;
      };
      const other = memberAt("10.0.0.2", { id: "2", name: "h2" });
      around.members = [
        memberAt(made.address, { id: isRestarted ? "2" : "1", name: isRestarted ? "" : "h1" }),
        other,
      ];
      keeper.start();
      await once(around.events, "endpoints");
      around.members = [memberAt(made.address, { id: "3", name: "" }), other];
      const configured = once(around.events, "configured");
      for (let i = 0; i < 4; i += 1) await looks();
      await configured;
      const done = around.lines.filter((line) => !["endpoints", "started"].includes(line));
      t.same(done, ["stopped", "set aside", "configured"]);
      // Until it shows in the list it is the one that was started for it.
      for (let i = 0; i < 4; i += 1) await looks();
      t.equal(around.lines.filter((line) => line === "set aside").length, 1);
    },
  );
