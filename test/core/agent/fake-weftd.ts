/**
 * A weftd that keeps records in the real store and nothing on disks: what an agent's tests need of its behaviour.
 * Copies are level at once, sessions are entries of a map.
 */
import { randomUUID, X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import type {
  GuestWaits,
  IdentityShown,
  ImageInfo,
  KeptRecord,
  PoolInfo,
  RepairPool,
  RepairSnapshot,
  RevertStatus,
  ScrubStatus,
  SessionFigures,
  SessionStatus,
  VolumeLimits,
} from "../../../src/core/wire/daemon.gen.ts";
import { writeDurably } from "../../../src/core/wire/durable-file.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { type Entry, StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import type { StoreTls } from "../../../src/core/wire/store-http.ts";
import { watchPrefix, type WatchUpdate } from "../../../src/core/wire/store-watch.ts";
import { storeTlsOf } from "./store-tls-of.ts";
import { FakeDaemon, type Handler, refuse } from "../wire/fake-daemon.ts";

type Json = Record<string, unknown>;
type Replica = {
  readonly volume: string;
  readonly rid: number;
  readonly pool: string;
  readonly size: string;
  readonly thick: boolean;
  /** What it began as. */
  readonly from: { readonly volume: string; readonly snap: string } | null;
};
type RecordJson = Json & {
  epoch: string;
  rev: string;
  next_rid: number;
  size: string;
  policy: Json & { copies: number; min_isr: number };
  owner: { node: string; session: string; caretaker?: boolean } | null;
  deleted: string | null;
  head: { deleted: string; data: string } | null;
  snaps: { count: number; newest: null };
  replicas: (Json & { rid: number; node: string })[];
};

export class FakeWeftd {
  readonly daemon: FakeDaemon;
  readonly replicas = new Map<string, Replica>();
  readonly trash = new Map<string, Replica>();
  /** The record that each replica keeps: whatever this daemon last wrote or was given. */
  readonly kept = new Map<string, RecordJson>();
  /** Sessions that wait for a copy: they end by force alone. */
  readonly paused = new Set<string>();
  readonly sessions = new Map<
    string,
    {
      session: string;
      caretaker: boolean;
      epoch: string;
      path: string | null;
      limits: VolumeLimits | null;
      scrub: ScrubStatus | null;
      waitsFor: string | null;
    }
  >();
  /** What was asked of sessions about scrubs, one word and a volume each. */
  readonly scrubs: string[] = [];
  /** Volumes and snapshots with a client at their export. */
  readonly connected = new Set<string>();
  /** Volumes whose client has come and gone. */
  readonly left = new Set<string>();
  /** It knows no `expected` of `session.open`, which came later: it refuses what it does not know. */
  isOfBefore = false;
  /** The next session is opened when this is done: what happens between a decision and its swap. */
  beforeOpen: (() => Promise<unknown>) | null = null;
  /** Hosts whose weftd this one has a connection to. */
  readonly links = new Set<string>();
  readonly pools = new Map<string, string>();
  /** Why copies in the pools at these paths can have no snapshots. */
  readonly noSnapshots = new Map<string, string>();
  /** Pools that can't say what they hold, with the reason. */
  readonly silentPools = new Map<string, string>();
  /** At which incarnation the disks of pools are, and at which they were served; 1 where nothing is said. */
  readonly disks = new Map<string, { readonly inc: string; readonly served: string }>();
  /** A pool that is made starts, and serves when `letPoolsServe` is called. */
  holdPools = false;
  watermark = "1";
  /** The generation by which the agent says that the store is the cluster's; null: it says that nobody knows. */
  confirmed: bigint | null = null;
  /** Bytes that copies take, by `volume.rid`; 0 where nothing is said. */
  readonly used = new Map<string, string>();
  /** As much is free in its pools when something has left the trash for good, in percent. */
  freeWhenEmptied: bigint | null = null;
  /** What its copies keep of snapshots, by `VOLUME.RID`. */
  readonly images = new Map<string, Pick<KeptRecord, "images" | "gone">>();
  /** The next snapshot is refused so. */
  refusesSnapshots: { readonly code: string; readonly facts: Json } | null = null;
  /** What only a deleted head has is gone when this has come. */
  holdsRelease: Promise<void> = Promise.resolve();
  /** Its owners end nothing that was begun with snapshots, until `letSnapshotsEnd` is called. */
  holdsSnapshots = false;
  /** Copies are refused so. */
  refusesCopies: { readonly code: string; readonly message: string } | null = null;
  /** Copies are made when this says so. */
  holdsCopies: Promise<void> = Promise.resolve();
  /** Blocks that changed since a snapshot, by its id; null: no copy that tells is in reach. */
  readonly changes = new Map<
    string,
    { readonly exact: boolean; readonly blocks: readonly number[] } | null
  >();
  /** As much is covered by one answer. */
  changedPage = 16n << 30n;
  /** How far a snapshot is that shall be brought to a copy here; null: that is refused. */
  fetched: { readonly state: "running" | "done"; readonly done: bigint; readonly total: bigint } | null =
    null;
  /** A revert is at its end when this says so. */
  holdsReverts: Promise<void> = Promise.resolve();
  /** The next revert is refused so. */
  refusesReverts: { readonly code: string; readonly facts: Json } | null = null;
  /** What was laid over what, to its end. */
  readonly laid: { readonly from: string; readonly onto: string }[] = [];
  /** A laying is at its end when this says so. */
  holdsLays: Promise<void> = Promise.resolve();
  /** The next layings end with these codes. */
  cutsLays: readonly string[] = [];
  /** What `image.list` says. */
  readonly imageInfos: ImageInfo[] = [];
  /** Another size is refused. */
  refusesSizes = false;
  #freePercent = 100n;
  #host: string | null = null;
  #cluster: string | null = null;
  #store: StoreClient | null = null;
  /** Snapshots that are offered here. */
  readonly #reading = new Map<string, { volume: string; id: string; path: string }>();
  #watching: AbortController | null = null;
  #taking: Promise<void> = Promise.resolve();
  readonly #runDir: string;
  readonly #stateDir: string;
  readonly #tls: StoreTls;

  /** `newest`: what the agent beside it shows and believes, if it runs: the real one would be handed that. */
  constructor(runDir: string, stateDir: string, newest: () => StoreTls | null = () => null) {
    this.#runDir = runDir;
    this.#stateDir = stateDir;
    const pick = (): StoreTls => newest() ?? storeTlsOf(stateDir);
    this.#tls = { current: () => pick().current(), storeCa: () => pick().storeCa() };
    this.daemon = new FakeDaemon(join(runDir, "weftd.sock"), this.#handlers());
  }

  get host(): string {
    return this.#host ?? "";
  }

  #handlers(): Partial<Record<string, Handler>> {
    return {
      hello: () => this.#hello(),
      configure: ({ cluster, host, endpoints }) => {
        this.#cluster = String(cluster);
        this.#host = String(host);
        this.#store = new StoreClient({
          endpoints: endpoints as string[],
          tls: this.#tls,
          forbidden: () => (this.confirmed === null ? "the agent has not said so" : null),
        });
        this.#follow(this.#store);
        return {};
      },
      "identity.reload": () => this.#identity(),
      "identity.show": () => this.#identity(),
      "store.confirm": ({ generation }) => {
        this.confirmed = typeof generation === "string" ? BigInt(generation) : null;
        return {};
      },
      "store.endpoints": ({ endpoints }) => {
        this.#store?.setEndpoints(endpoints as string[]);
        return {};
      },
      "store.show": () => ({
        reachable: true,
        since_ms: "0",
        last_error: null,
        rolled_back: false,
        watermark: { cluster: this.#cluster, incarnation: this.watermark, revision: "1" },
        claims: [],
      }),
      "store.repair_apply": (params) => this.#repair(params),
      "pool.create": ({ path }) => this.#createPool(String(path)),
      "pool.list": () => ({ pools: this.#poolInfos() }),
      "pool.remove": ({ pool }) => {
        this.pools.delete(String(pool));
        return {};
      },
      "replica.list": () => ({
        replicas: [...this.replicas].map(([key, { volume, rid, pool, size, thick }]) => ({
          volume,
          rid,
          pool,
          promised: "1",
          sealed: "0",
          size,
          used: this.used.get(key) ?? "0",
          thick,
          state: "serving",
          unverified_promises: "0",
        })),
      }),
      "replica.create": (params) => this.#createReplica(params),
      "replica.records": () => this.#records(),
      "replica.trash": ({ volume, rid }) => this.#trash(`${String(volume)}.${String(rid)}`),
      "replica.add": (params) => this.#add(params),
      "replica.remove": ({ volume, rid }) =>
        this.#swap(String(volume), (r) => ({
          ...r,
          epoch: up(r.epoch),
          replicas: r.replicas.filter((m) => m.rid !== rid),
        })),
      "trash.list": () => ({ items: [] }),
      "trash.restore": ({ volume }) => this.#untrash(String(volume)),
      "trash.empty": ({ volume }) => {
        for (const key of this.trash.keys()) if (key.startsWith(String(volume))) this.trash.delete(key);
        if (this.freeWhenEmptied !== null) this.leave(this.freeWhenEmptied);
        return { removed: 0, bytes: "0" };
      },
      "volume.policy": ({ volume, copies, min_isr, spread }) =>
        this.#swap(String(volume), (r) => {
          if (r.owner?.node !== this.host) refuse("E-VOL-13", "not open here");
          const inSync = r.replicas.filter((m) => m["state"] === "INSYNC").length;
          if (Number(min_isr) > r.policy.min_isr && inSync < Number(min_isr)) refuse("E-REPL-03", "too few");
          const policy = { ...r.policy, copies: Number(copies), min_isr: Number(min_isr), spread };
          return { ...r, epoch: up(r.epoch), policy };
        }),
      "volume.create": async ({ record }) => {
        const json = record as RecordJson & { vol: string };
        await this.#connected().cas(keys.state(json.vol), 0n, JSON.stringify(json));
        this.kept.set(json.vol, json);
        return {};
      },
      "volume.delete": ({ volume, keep_snapshots: keep }) =>
        this.#swap(String(volume), (r) => {
          if (r.owner !== null) refuse("E-VOL-12", "open");
          const now = String(Math.floor(Date.now() / 1000));
          const epoch = up(r.epoch);
          if (r.snaps.count === 0) return { ...r, epoch, deleted: r.head?.deleted ?? now };
          if (keep !== true) refuse("E-SNAP-10", "it has snapshots");
          const format = (r["layer"] ?? null) === null ? 3 : 4;
          return { ...r, epoch, fmt: format, min_reader: format, head: { deleted: now, data: "kept" } };
        }),
      // The real one says so when it has begun, and later when it is done.
      "volume.release": async ({ volume }) => {
        const to = (data: string) => (r: RecordJson) =>
          r.head === null || r.head === undefined
            ? refuse("E-ARG-02", "no deleted head")
            : { ...r, head: { ...r.head, data } };
        await this.#swap(String(volume), to("releasing"));
        void this.holdsRelease.then(() => this.#swap(String(volume), to("released"))).catch(() => undefined);
        return {};
      },
      "volume.resize": async ({ volume, size, lose }) => {
        await this.#swap(String(volume), (r) => {
          if (this.refusesSizes) refuse("E-VOL-15", "a copy can't follow");
          if (r.owner?.node !== this.host) refuse("E-VOL-13", "not open here");
          if (BigInt(String(size)) < BigInt(r.size)) {
            if (lose !== true) refuse("E-VOL-15", "smaller");
            if (r.owner?.caretaker !== true) refuse("E-VOL-12", "a guest uses it");
          }
          return { ...r, epoch: up(r.epoch), size: String(size) };
        });
        const { epoch = "0" } = this.kept.get(String(volume)) ?? {};
        return { size, epoch };
      },
      "volume.restore": ({ volume }) =>
        this.#swap(String(volume), (r) => {
          if (r.owner !== null) refuse("E-VOL-12", "open");
          if ((r.head ?? null) !== null && r.head?.data !== "kept") refuse("E-VOL-20", "it goes");
          return { ...r, fmt: 1, min_reader: 1, epoch: up(r.epoch), deleted: null, head: null };
        }),
      "volume.layer": ({ volume }) =>
        this.#swap(String(volume), (r) => {
          if ((r["layer"] ?? null) !== null) return r;
          if (r.epoch !== "1" || r.owner !== null) refuse("E-VOL-23", "it was opened before");
          return { ...r, fmt: 4, min_reader: 4, layer: { mark: randomUUID() } };
        }),
      "session.lay": (params) => this.#lay(params),
      "volume.fence": async ({ volume, host }) => {
        let fenced = false;
        await this.#swap(String(volume), (r) => {
          fenced = r.owner?.node === host;
          return fenced ? { ...r, epoch: up(r.epoch), owner: null } : r;
        });
        const entry = await this.#connected().get(keys.state(String(volume)));
        const { epoch } = JSON.parse(entry?.value ?? "{}") as RecordJson;
        return { epoch, fenced };
      },
      "session.open": (params) => this.#open(params),
      "session.close": ({ volume, abandon }) => {
        if (abandon !== true && this.paused.has(String(volume)))
          refuse("E-VOL-10", "it waits for a member; 0 requests wait");
        return this.#close(String(volume));
      },
      "session.limit": ({ volume, limits }) => {
        const found = this.sessions.get(String(volume)) ?? refuse("E-VOL-13", "not open here");
        found.limits = limits as VolumeLimits | null;
        return {};
      },
      "scrub.start": ({ volume, rate }) => {
        const found = this.sessions.get(String(volume)) ?? refuse("E-VOL-13", "not open here");
        this.scrubs.push(`start ${String(rate)}`);
        found.scrub = { ...scrubbing, rate: String(rate), started: String(Date.now()) };
        return {};
      },
      "scrub.stop": ({ volume }) => {
        this.scrubs.push("stop");
        this.endScrub(String(volume), { state: "stopped" });
        return {};
      },
      "snapshot.create": (params) => this.#createSnapshot(params, null),
      "snapshot.create_group": (params) => this.#createGroup(params),
      "snapshot.delete": async ({ volume, id }) => {
        await this.#changeSnapshot(String(volume), String(id), { state: "DELETING" });
        if (!this.holdsSnapshots) await this.#endSnapshots(String(volume));
        return {};
      },
      "snapshot.protect": ({ volume, id, protected: isProtected }) =>
        this.#changeSnapshot(String(volume), String(id), { protected: isProtected }),
      "snapshot.rename": ({ volume, id, name }) => this.#changeSnapshot(String(volume), String(id), { name }),
      "snapshot.changed": (params) => this.#changed(params),
      "snapshot.destroy_data": ({ volume, id }) =>
        this.#changeSnapshot(String(volume), String(id), { fmt: 2, min_reader: 2, data: "destroyed" }),
      "snapshot.fetch": () => {
        if (this.fetched === null) return refuse("E-SNAP-21", "weftd's own words");
        const { state, done, total } = this.fetched;
        return { state, done_bytes: String(done), total_bytes: String(total), shared_bytes: "0" };
      },
      "snapshot.add_copy": (params) => this.#addCopy(params),
      "image.list": () => ({ images: this.imageInfos }),
      "volume.revert": (params) => this.#revert(params),
      "snapshot.open": async ({ volume, id }) => {
        const value = JSON.stringify({ volume, since: String(Date.now()) });
        await this.#connected().put(`${keys.snapshotOpen(String(id))}${this.host}`, value);
        const path = join(this.#runDir, "nbd", `${String(id)}.sock`);
        this.#reading.set(String(id), { volume: String(volume), id: String(id), path });
        return { path };
      },
      "snapshot.close": async ({ id }) => {
        this.#reading.delete(String(id));
        await this.#connected().delete(`${keys.snapshotOpen(String(id))}${this.host}`);
        return {};
      },
      "session.list": () => ({ sessions: [...this.sessions.keys()].map((volume) => this.#session(volume)) }),
      "session.show": ({ volume }) => this.#session(String(volume)),
      "snapshot.open_list": () => ({
        snapshots: [...this.#reading.values()].map((one) => ({
          ...one,
          clients: this.connected.has(one.id) ? 1 : 0,
        })),
      }),
      "link.list": () => ({
        links: [...this.links].map((host) => ({
          address: "",
          code: null,
          host,
          reason: null,
          since_ms: "0",
          state: "connected",
        })),
      }),
      why: ({ volume }) => ({ volume, findings: [] }),
    };
  }

  /** As the real one does: the newest list of the store is on this host's disk. It believes it as it is. */
  #follow(store: StoreClient): void {
    this.#watching?.abort();
    const watching = new AbortController();
    this.#watching = watching;
    const take = async (entry: Entry): Promise<void> => {
      if (entry.key !== keys.trust) return;
      await writeDurably(join(this.#stateDir, "identity", "trust.json"), entry.value);
      this.daemon.emit({ event: "trust.changed", data: { generation: (await this.#identity()).generation } });
    };
    const onUpdate = (update: WatchUpdate): void => {
      if (update.kind === "interrupted") return;
      const entries =
        update.kind === "listing"
          ? update.listing.entries
          : update.events.flatMap((event) => (event.kind === "put" ? [event.entry] : []));
      // One after the other: they have one file. The directory of a host that is destroyed may be gone.
      for (const entry of entries) this.#taking = this.#taking.then(() => take(entry)).catch(() => undefined);
    };
    // A host that left its cluster has no identity any more.
    watchPrefix({ store, prefix: keys.trust, signal: watching.signal, onUpdate }).catch(() => undefined);
  }

  async stop(): Promise<void> {
    this.#watching?.abort();
    this.confirmed = null;
    await this.daemon.stop();
  }

  async #identity(): Promise<IdentityShown> {
    const path = join(this.#stateDir, "identity");
    const opened = openFirstTrust(await readFile(join(path, "trust.json"), "utf8"));
    const [leaf] = (await readFile(join(path, "host.pem"), "utf8")).split(/(?<=-----END CERTIFICATE-----\n)/);
    if (opened.kind === "refused") return refuse("E-TRUST-01", opened.finding.message);
    const { generation, transport } = opened.value.trust;
    return {
      host: this.host,
      key: "",
      generation: String(generation),
      durable: true,
      not_after: String(Date.parse(new X509Certificate(leaf ?? "").validTo) / 1000),
      transport: transport === "clear" ? "tls" : transport,
      findings: [],
      peers: [],
    };
  }

  #connected(): StoreClient {
    if (this.#store === null) return refuse("E-AGENT-03", "not configured");
    return this.#store;
  }

  #hello(): Json {
    const { cluster, host } = { cluster: this.#cluster, host: this.#host };
    return {
      version: "0.1.0",
      wire_min: 1,
      wire_max: 1,
      cluster,
      host,
      incarnation: "1",
      pid: 1,
      driver: "libaio",
    };
  }

  async #createPool(path: string): Promise<PoolInfo> {
    const known = this.#poolInfos().find((pool) => pool.path === path);
    if (known !== undefined) return known;
    const pool = randomUUID();
    const value = { id: pool, node: this.#host, inc: "1", boot_id: "b", intent: null, path, kind: "dir" };
    await this.#connected().put(keys.pool(pool), JSON.stringify(value));
    this.pools.set(pool, path);
    return this.#poolInfo(pool, path);
  }

  /** Its pools have so many percent of their room left, and say so. */
  leave(percent: bigint): void {
    this.#freePercent = percent;
    for (const data of this.#poolInfos()) this.daemon.emit({ event: "pool.changed", data });
  }

  /** The session says that its scrub has come to this. */
  endScrub(volume: string, rest: Partial<ScrubStatus>): void {
    const found = this.sessions.get(volume);
    if (found === undefined || found.scrub === null) return;
    found.scrub = { ...found.scrub, state: "done", ended: String(Date.now()), ...rest };
    this.daemon.emit({ event: "session.changed", data: this.#session(volume) as SessionStatus });
  }

  /** The session waits for this, or goes on, and says so. */
  pause(volume: string, waitsFor: string | null): void {
    const found = this.sessions.get(volume);
    if (found === undefined) return;
    found.waitsFor = waitsFor;
    this.daemon.emit({ event: "session.changed", data: this.#session(volume) as SessionStatus });
  }

  /** First it serves, a moment later it knows its room: as the real one. */
  letPoolsServe(): void {
    this.holdPools = false;
    for (const data of this.#poolInfos()) {
      this.daemon.emit({ event: "pool.changed", data: { ...data, free: "0", total: "0" } });
      this.daemon.emit({ event: "pool.changed", data });
    }
  }

  #poolInfo(pool: string, path: string): PoolInfo {
    const percent = this.holdPools ? 0n : 1n << 30n;
    const free = this.#freePercent;
    return {
      pool,
      path,
      state: this.holdPools ? "starting" : "serving",
      reason: null,
      inc: "1",
      free: String(free * percent),
      total: String(100n * percent),
      room: free <= 2n ? "full" : free <= 5n ? "low" : "plenty",
      replicas: 0,
      bit_rot: "0",
      bit_rot_left: "0",
      no_snapshots: this.noSnapshots.get(path) ?? null,
    };
  }

  #poolInfos(): PoolInfo[] {
    return [...this.pools].map(([pool, path]) => this.#poolInfo(pool, path));
  }

  async #swap(volume: string, change: (record: RecordJson) => RecordJson): Promise<Json> {
    const store = this.#connected();
    for (;;) {
      const entry = await store.get(keys.state(volume));
      if (entry === null) return refuse("E-ARG-01", "no such volume");
      const { entries } = await store.list(keys.snapshots(volume));
      const snaps = { count: entries.length, newest: null };
      const before = { ...(JSON.parse(entry.value) as RecordJson), snaps };
      const after = { ...change(before), rev: up(before.rev), nonce: randomUUID() };
      const outcome = await store.cas(entry.key, entry.modRevision, JSON.stringify(after));
      if (outcome.kind !== "won") continue;
      this.kept.set(volume, after);
      return {};
    }
  }

  async #createReplica(params: Json): Promise<Json> {
    await this.holdsCopies;
    if (this.refusesCopies !== null) refuse(this.refusesCopies.code, this.refusesCopies.message);
    const from = (params["from"] ?? null) as Replica["from"];
    if (from !== null) await this.#checkImage(String(params["pool"]), from, params);
    const thick = params["thick"] === true;
    const replica = { ...params, thick, from } as Replica;
    this.replicas.set(`${replica.volume}.${replica.rid}`, replica);
    return {};
  }

  async #checkImage(pool: string, from: NonNullable<Replica["from"]>, params: Json): Promise<void> {
    const entry = await this.#connected().get(keys.snapshot(from.volume, from.snap));
    const image = JSON.parse(entry?.value ?? "{}") as Json & { members?: Json[] };
    const hasIt = image.members?.some((member) => member["pool"] === pool) === true;
    if (!hasIt || image["state"] !== "READY") refuse("E-SNAP-12", "no copy here has it");
    if (image["size"] !== params["size"] || image["region_shift"] !== params["region_shift"])
      refuse("E-SNAP-12", "it has another size");
  }

  async #createGroup({ group, name, created_by, volumes }: Json): Promise<Json> {
    const all = volumes as readonly { readonly volume: string; readonly id: string }[];
    for (const { volume } of all)
      if (!this.sessions.has(volume)) refuse("E-VOL-13", "not open here", { volume });
    const value = { id: group, volumes: all.map(({ volume }) => volume) };
    const snapshots: Json[] = [];
    for (const { volume, id } of all)
      snapshots.push({ volume, ...(await this.#createSnapshot({ volume, id, name, created_by }, value)) });
    return { group, created: String(Date.now()), held_ms: "11", snapshots };
  }

  async #createSnapshot({ volume: of, id, name, created_by }: Json, group: Json | null): Promise<Json> {
    const volume = String(of);
    if (!this.sessions.has(volume)) refuse("E-VOL-13", "not open here");
    const refused = this.refusesSnapshots;
    this.refusesSnapshots = null;
    if (refused !== null) refuse(refused.code, "weftd's own words", refused.facts);
    const key = keys.snapshot(volume, String(id));
    const store = this.#connected();
    const created = String(Date.now());
    if ((await store.get(key)) === null) {
      const { size, epoch, region_shift, replicas } = this.kept.get(volume) as RecordJson;
      const members = replicas
        .filter((member) => member["state"] === "INSYNC")
        .map(({ rid, node, pool }) => ({ rid, node, pool }));
      const value = {
        fmt: 1,
        id,
        vol: volume,
        name,
        gen: "7",
        attempt: "1",
        epoch,
        incarnation: "1",
        size,
        region_shift,
        state: "READY",
        logged: true,
        members,
        created,
        created_by,
        group,
        protected: false,
        pins: [],
        nonce: randomUUID(),
      };
      await store.put(key, JSON.stringify(value));
      await this.#swap(volume, (r) => r);
    }
    return { id, generation: "7", members: [0], created, held_ms: "11" };
  }

  async #changeSnapshot(volume: string, id: string, change: Json): Promise<Json> {
    if (!this.sessions.has(volume)) refuse("E-VOL-13", "not open here");
    const key = keys.snapshot(volume, id);
    const entry = (await this.#connected().get(key)) ?? refuse("E-SNAP-09", "no such snapshot");
    await this.#connected().put(key, JSON.stringify({ ...(JSON.parse(entry.value) as Json), ...change }));
    await this.#swap(volume, (r) => r);
    return {};
  }

  #changed({ volume, id, since, offset, len }: Json): Json {
    const told = this.changes.get(String(since)) ?? null;
    if (told === null) return refuse("E-SNAP-16", "weftd's own words", { volume, snapshot: id, since });
    const grain = 65_536;
    const begin = BigInt(String(offset));
    const asked = BigInt(String(len));
    const covered = asked < this.changedPage ? asked : this.changedPage;
    const first = Number(begin / BigInt(grain));
    const bitmap = new Uint8Array(Number((covered / BigInt(grain) + 7n) / 8n));
    for (const block of told.blocks) {
      const bit = block - first;
      if (bit >= 0 && bit < bitmap.length * 8)
        bitmap[bit >> 3] = (bitmap[bit >> 3] ?? 0) | (0x80 >> (bit & 7));
    }
    const { exact } = told;
    return { grain, exact, offset, len: String(covered), bitmap: Buffer.from(bitmap).toString("base64") };
  }

  async #addCopy({ volume, id, rid }: Json): Promise<Json> {
    const key = keys.snapshot(String(volume), String(id));
    const entry = (await this.#connected().get(key)) ?? refuse("E-SNAP-09", "no such snapshot");
    const { members } = JSON.parse(entry.value) as { readonly members: readonly Json[] };
    const { replicas } = this.kept.get(String(volume)) ?? { replicas: [] };
    const added = replicas.find((member) => member.rid === rid) ?? refuse("E-SNAP-22", "no such copy");
    if (members.some((member) => member["rid"] === rid)) return {};
    const { node, pool } = added;
    return this.#changeSnapshot(String(volume), String(id), { members: [...members, { rid, node, pool }] });
  }

  async #revert({ volume: of, snapshot }: Json): Promise<Json> {
    const volume = String(of);
    const found = this.sessions.get(volume) ?? refuse("E-VOL-13", "not open here");
    if (!found.caretaker) refuse("E-VOL-12", "a guest uses it");
    const refused = this.refusesReverts;
    this.refusesReverts = null;
    if (refused !== null) refuse(refused.code, "weftd's own words", refused.facts);
    const reverting = { snap: snapshot, gen: "7", attempt: "1", since: String(Date.now()) };
    await this.#swap(volume, (r) => ({ ...r, fmt: 2, min_reader: 2, epoch: up(r.epoch), reverting }));
    await this.holdsReverts;
    await this.#endRevert(volume);
    return { snapshot, epoch: found.epoch, bytes: "1048576" };
  }

  /** As the real one: both are this host's, without a guest, from the begin to the end. */
  async #lay({ from: layer, onto: below }: Json): Promise<Json> {
    const [from, onto] = [String(layer), String(below)];
    const opened = (): readonly string[] =>
      [from, onto].map((volume) => {
        const found = this.sessions.get(volume) ?? refuse("E-VOL-13", "not open here");
        if (!found.caretaker) refuse("E-VOL-12", "a guest uses it");
        if (this.kept.get(volume)?.owner?.session !== found.session) refuse("E-VOL-22", "taken over");
        return found.session;
      });
    const before = opened();
    if ((this.kept.get(from)?.["layer"] ?? null) === null) refuse("E-VOL-23", "no layer");
    const sizes = [from, onto].map((volume) => BigInt(this.kept.get(volume)?.size ?? "0"));
    if ((sizes[0] ?? 0n) > (sizes[1] ?? 0n)) refuse("E-ARG-02", "smaller");
    await this.holdsLays;
    const [cut, ...later] = this.cutsLays;
    this.cutsLays = later;
    if (cut !== undefined) refuse(cut, "a session ended");
    if (opened().join() !== before.join()) refuse("E-VOL-22", "a session ended");
    this.laid.push({ from, onto });
    return { data_bytes: "4096", zero_bytes: "0" };
  }

  async #endRevert(volume: string): Promise<void> {
    await this.#swap(volume, (r) => ({ ...r, fmt: 1, min_reader: 1, epoch: up(r.epoch), reverting: null }));
  }

  /** The session says that it is so far with a revert. */
  tellRevert(volume: string, reverting: RevertStatus): void {
    const data = { ...(this.#session(volume) as SessionStatus), reverting };
    this.daemon.emit({ event: "session.changed", data });
  }

  async letSnapshotsEnd(): Promise<void> {
    this.holdsSnapshots = false;
    for (const volume of this.sessions.keys()) await this.#endSnapshots(volume);
  }

  /** What an owner does as soon as it knows: those that are not logged are, those that go are gone. */
  async #endSnapshots(volume: string): Promise<void> {
    const store = this.#connected();
    for (const { key, value } of (await store.list(keys.snapshots(volume))).entries) {
      const json = JSON.parse(value) as Json;
      if (json["state"] === "DELETING") {
        await store.delete(key);
        await this.#swap(volume, (r) => r);
      } else if (json["logged"] === false) await store.put(key, JSON.stringify({ ...json, logged: true }));
    }
  }

  async #add({ volume, rid, node, pool }: Json): Promise<Json> {
    const number = Number(rid);
    return this.#swap(String(volume), (r) => {
      const others = r.replicas.filter((m) => m.rid !== number);
      const base = { pool_inc: "1", state: "INSYNC", base: "0", reason: "", since: String(Date.now()) };
      const replicas = [...others, { rid: number, node: String(node), pool, ...base }];
      return { ...r, epoch: up(r.epoch), next_rid: Math.max(r.next_rid, number + 1), replicas };
    });
  }

  async #open(params: Json): Promise<Json> {
    const { volume, mode, expected = null, export: offered, caretaker, limits } = params;
    if (this.isOfBefore && "expected" in params)
      refuse("E-ARG-02", "parameters of session.open: unknown field", {
        method: "session.open",
        wrong: "unknown field `expected`, expected one of `volume`, `mode`",
      });
    const id = String(volume);
    const session = randomUUID();
    const before = this.beforeOpen;
    this.beforeOpen = null;
    await before?.();
    await this.#swap(id, (r) => {
      const isLost = r.owner?.node === this.host && !this.sessions.has(id);
      const isMeant = mode === "steal" && (expected === null || expected === r.owner?.session);
      if (r.owner !== null && r.owner.caretaker !== true && !isLost && !isMeant)
        refuse("E-VOL-12", "open elsewhere");
      const owner = { node: this.host, session, ...(caretaker === true ? { caretaker: true } : {}) };
      return { ...r, epoch: up(r.epoch), owner, clean: false };
    });
    const path = offered === null ? null : join(this.#runDir, "nbd", `${id}.sock`);
    const epoch = this.kept.get(id)?.epoch ?? "0";
    this.sessions.set(id, {
      session,
      caretaker: caretaker === true,
      epoch,
      path,
      limits: limits as VolumeLimits | null,
      scrub: null,
      waitsFor: null,
    });
    if (!this.holdsSnapshots) await this.#endSnapshots(id);
    const head = this.kept.get(id)?.head ?? null;
    if (head !== null && caretaker !== true) refuse("E-VOL-19", "its head is deleted");
    // As the real one: whoever opens it ends what was begun.
    if ((this.kept.get(id)?.["reverting"] ?? null) !== null)
      void this.holdsReverts.then(() => this.#endRevert(id)).catch(() => undefined);
    return { session, epoch, path };
  }

  async #close(volume: string): Promise<Json> {
    const closed = this.sessions.get(volume) ?? refuse("E-VOL-13", "not open here");
    this.sessions.delete(volume);
    // One that was taken over has nothing to give back.
    await this.#swap(volume, (r) =>
      r.owner === null || r.owner.session === closed.session
        ? { ...r, epoch: up(r.epoch), owner: null, clean: true }
        : r,
    );
    return { lost_writes: 0 };
  }

  #session(volume: string): Json {
    const found = this.sessions.get(volume);
    if (found === undefined) return refuse("E-VOL-13", "not open here");
    const { waitsFor, ...rest } = found;
    return {
      volume,
      ...rest,
      phase: waitsFor === null ? "serving" : "paused",
      rev: "1",
      paused_reason: waitsFor,
      clients: this.connected.has(volume) ? 1 : 0,
      clients_seen: this.connected.has(volume) || this.left.has(volume) ? 1 : 0,
      members: [],
      resync: null,
      reverting: null,
      held: 0,
      figures,
    };
  }

  #trash(key: string): Json {
    const found = this.replicas.get(key);
    if (found !== undefined) this.trash.set(key, found);
    this.replicas.delete(key);
    return { trashed: true, reason: null };
  }

  #untrash(volume: string): Json {
    const rids: number[] = [];
    for (const [key, replica] of this.trash) {
      if (!key.startsWith(volume)) continue;
      this.replicas.set(key, replica);
      this.trash.delete(key);
      rids.push(replica.rid);
    }
    return { rids };
  }

  #records(): Json {
    const records = [...this.replicas.values()].map(({ volume, rid, pool }) => ({
      volume,
      rid,
      pool,
      promised: this.kept.get(volume)?.epoch ?? "0",
      record: this.kept.get(volume) ?? null,
      ...(this.images.get(`${volume}.${rid}`) ?? { images: [], gone: [] }),
    }));
    const pools = [...this.pools].map(([pool, path]) => {
      const reason = this.silentPools.get(pool) ?? null;
      const { inc, served } = this.disks.get(pool) ?? { inc: "1", served: "1" };
      return { pool, path, inc: reason === null ? inc : null, served, tells: reason === null, reason };
    });
    return { records, pools };
  }

  async #repair({ incarnation, records, pools, snaps }: Json): Promise<Json> {
    const store = this.#connected();
    for (const { volume, image, members } of snaps as RepairSnapshot[]) {
      const { snap, generation: gen, state, note, ...rest } = image;
      const key = keys.snapshot(volume, snap);
      const before = JSON.parse((await store.get(key))?.value ?? "{}") as Json;
      const groupId = note?.group ?? null;
      const group = groupId === null ? null : { id: groupId, volumes: [volume] };
      const made = { fmt: 1, id: snap, vol: volume, gen, ...rest, ...note, group, members, logged: true };
      const value = { ...made, ...before, state: state === "ready" ? "READY" : "DELETING" };
      await store.put(key, JSON.stringify(value));
    }
    for (const { pool, node, path, inc } of pools as RepairPool[]) {
      const value = { id: pool, node, inc, boot_id: "b", intent: null, path, kind: "dir" };
      await store.put(keys.pool(pool), JSON.stringify(value));
    }
    for (const json of records as (RecordJson & { vol: string })[]) {
      const raised = { ...json, epoch: String(BigInt(json.epoch) + (1n << 20n)), owner: null };
      await store.put(keys.state(json.vol), JSON.stringify(raised));
      this.kept.set(json.vol, raised);
    }
    await store.put(keys.store, JSON.stringify({ cluster: this.#cluster, incarnation }));
    this.watermark = String(incarnation);
    return { written: (records as unknown[]).length, kept: 0 };
  }
}

const scrubbing: ScrubStatus = {
  state: "running",
  rate: null,
  started: "0",
  ended: null,
  done_bytes: "0",
  total_bytes: String(1n << 30n),
  compared_bytes: "0",
  rotten: "0",
  repaired: "0",
  divergent: "0",
  lost: "0",
  members: [],
};
const none = { le_us: [], counts: [], count: "0", sum_us: "0" };
const waits: GuestWaits = {
  reads: none,
  writes: { le_us: [320, 2560], counts: ["6", "1"], count: "7", sum_us: "4000" },
  stalls: none,
  limited: none,
  gap_ms_max: "3",
};
const figures: SessionFigures = {
  reads: "0",
  writes: "7",
  trims: "0",
  read_bytes: "0",
  written_bytes: "28672",
  stall_ms_max: "0",
  resynced_bytes: "0",
  hashed_bytes: "0",
  changed_bytes: "0",
  reconciled_bytes: "0",
  fenced_writes: "0",
  scrubbed_bytes: "0",
  rotten_blocks: "0",
  repaired_blocks: "0",
  divergent_blocks: "0",
  lost_blocks: "0",
  waits,
};

function up(number: string): string {
  return String(BigInt(number) + 1n);
}
