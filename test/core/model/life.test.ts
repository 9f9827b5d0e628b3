/**
 * Plot: a volume lives in a world where hosts come and go and an operator adds, removes and moves copies, asks for more or
 * fewer, and changes what they must not share, at will. The world does what the effects say, in the dumbest way that
 * weftd's rules allow. Whatever happens, an in-sync copy remains, and no removal leaves fewer than are wanted; and when all
 * hosts are back and nobody asks for more, everything wanted becomes fact and nothing is left over.
 */
import * as fc from "fast-check";
import t from "tap";

import type { Cluster } from "../../../src/core/model/cluster.ts";
import type { HostId, SessionId } from "../../../src/core/model/ids.ts";
import { placeCopies } from "../../../src/core/model/placement.ts";
import { planChange } from "../../../src/core/model/plan.ts";
import type { PlaceChange } from "../../../src/core/model/plan.ts";
import { decideRebuild } from "../../../src/core/model/redundancy.ts";
import { addCopy, markRemoved, removeCopy, withPlace } from "../../../src/core/model/replica-change.ts";
import { spreads } from "../../../src/core/model/spread.ts";
import { initialVolume, phaseOf, stepVolume, volumeLine } from "../../../src/core/model/volume.ts";
import type { VolumeEffect, VolumeState } from "../../../src/core/model/volume.ts";
import type { Made, Member, VolumeRecord, Want } from "../../../src/core/model/volume-record.ts";
import { alive, away, GIB, host, hostId, pool, poolId, record, rid, want } from "./world.ts";

const TICK_MS = 20_000;
const HOSTS = [1, 2, 3, 4];
/** Of each host in turn: h1 and h2 stand in one rack. */
const RACKS = ["a", "a", "b", "c"];
/** A host's other pool. */
const second = (number: number): ReturnType<typeof poolId> =>
  poolId(number).replace("9000", "9001") as ReturnType<typeof poolId>;
const session = "50000000-0000-4000-b000-000000000000" as SessionId;

class World {
  now = 0;
  state: VolumeState = initialVolume();
  want: Want;
  made: readonly Made[] = [];
  record: VolumeRecord | null = null;
  readonly #awaySince = new Map<HostId, number>();

  constructor(copies: number) {
    const how = { only: null, pool: null, spread: "host", beside: [], roomBytes: 0n } as const;
    const decision = placeCopies(this.cluster, { name: "db", copies, taken: [], ...how });
    const spots = decision.kind === "ok" ? decision.value : [];
    this.want = spots.reduce((wanted, spot) => withPlace(wanted, null, spot), want([], { copies }));
  }

  get cluster(): Cluster {
    return {
      hosts: HOSTS.map((number) => {
        const since = this.#awaySince.get(hostId(number));
        const labels = { rack: RACKS[number - 1] ?? null, site: null };
        return host(number, since === undefined ? alive : away(since), labels);
      }),
      pools: HOSTS.flatMap((number) => [pool(number), pool(number, { id: second(number) })]),
    };
  }

  isUp(id: HostId): boolean {
    return !this.#awaySince.has(id);
  }

  toggle(id: HostId): void {
    if (!this.#awaySince.delete(id)) this.#awaySince.set(id, this.now);
  }

  reviveAll(): void {
    this.#awaySince.clear();
  }

  tick(): void {
    this.now += TICK_MS;
    this.#sessionWorks();
    this.#placerWorks();
    const events = [
      { kind: "want", want: this.want },
      { kind: "made", made: this.made },
      { kind: "record", record: this.record },
      { kind: "caretaker", session: this.record?.owner?.session ?? null },
    ] as const;
    let effects: readonly VolumeEffect[] = [];
    for (const event of events)
      [this.state, effects] = stepVolume({ ...this.state, asked: new Map() }, event, this.now, this.cluster);
    for (const effect of effects) if (!("host" in effect) || this.isUp(effect.host)) this.#perform(effect);
  }

  change(
    next: (
      fact: VolumeRecord,
    ) => { readonly kind: "ok"; readonly value: Want } | { readonly kind: "refused" },
  ): void {
    if (this.record === null) return;
    const decision = next(this.record);
    if (decision.kind === "ok") this.want = decision.value;
  }

  plan(change: PlaceChange): void {
    this.change((record) => {
      const { cluster } = this;
      const decision = planChange({ want: this.want, record, cluster, ownerIsCaretaker: true }, change);
      return decision.kind === "ok" ? { kind: "ok", value: decision.value.want } : decision;
    });
  }

  /** What an owner does: drops who is away while enough remain, and makes level who is back. */
  #sessionWorks(): void {
    const owner = this.record?.owner ?? null;
    if (owner === null || !this.isUp(owner.host)) return;
    for (const member of this.record?.replicas ?? []) {
      const least = Math.max(1, this.record?.minIsr ?? 1);
      if (member.state === "INSYNC" && !this.isUp(member.host) && this.#othersInSync(member) >= least) {
        this.#swap((members) =>
          members.map((one) =>
            one.rid === member.rid ? { ...one, state: "STALE", sinceMs: this.now } : one,
          ),
        );
      }
      if (member.state !== "INSYNC" && this.isUp(member.host) && this.#othersInSync(member) >= 1) {
        this.#swap((members) =>
          members.map((one) => (one.rid === member.rid ? { ...one, state: "INSYNC" } : one)),
        );
      }
    }
  }

  #placerWorks(): void {
    if (this.record === null) return;
    const store = { kind: "up", sinceMs: 0 } as const;
    const rebuild = decideRebuild(
      { want: this.want, record: this.record, cluster: this.cluster, store },
      this.now,
    );
    if (rebuild.kind === "place") this.want = withPlace(this.want, this.record, rebuild);
    if (rebuild.kind === "drop") this.want = markRemoved(this.want, rebuild.rid);
  }

  #perform(effect: VolumeEffect): void {
    switch (effect.kind) {
      case "make-replica":
        this.made = [...this.made, { rid: effect.rid, host: effect.host, pool: effect.pool }];
        return;
      case "create-record":
        this.record ??= record(
          this.made.map((one) => ({ ...one, state: "INSYNC", reason: null, sinceMs: this.now })),
        );
        return;
      case "open-caretaker":
        if (this.record?.owner === null || effect.steal) this.#own({ host: effect.host, session });
        return;
      case "close-caretaker":
        this.#own(null);
        return;
      case "add-member":
        if (effect.place.rid < (this.record?.nextRid ?? 0)) throw new Error("a number is never reused");
        this.#swap((members) => [
          ...members,
          { ...effect.place, state: "JOINING", reason: null, sinceMs: this.now },
        ]);
        return;
      case "remove-member": {
        const member = this.record?.replicas.find((one) => one.rid === effect.rid);
        if (member === undefined || this.#othersInSync(member) < Math.max(1, this.record?.minIsr ?? 1))
          throw new Error(`weftd refuses to remove ${effect.rid}`);
        if (member.state === "INSYNC" && this.#othersInSync(member) < this.want.copies)
          throw new Error(
            `${this.#othersInSync(member)} of ${this.want.copies} are left without ${effect.rid}`,
          );
        this.#swap((members) => members.filter((one) => one.rid !== effect.rid));
        return;
      }
      case "grow":
        if (this.record?.owner?.host !== effect.host) throw new Error("it grows without its owner");
        if (effect.sizeBytes <= this.record.sizeBytes) throw new Error("it shrinks");
        this.record = { ...this.record, sizeBytes: effect.sizeBytes, epoch: this.record.epoch + 1n };
        return;
      case "set-policy":
        if (this.record === null) return;
        if (effect.policy.minIsr > this.record.minIsr && this.#inSync() < effect.policy.minIsr)
          throw new Error("guests would wait");
        this.record = { ...this.record, ...effect.policy, epoch: this.record.epoch + 1n };
        return;
      case "trash-replica":
        if (this.record?.replicas.some((one) => one.rid === effect.rid) === true)
          throw new Error("a member was trashed");
        this.made = this.made.filter((one) => one.rid !== effect.rid);
        return;
      case "drop-place":
        this.want = {
          ...this.want,
          placements: this.want.placements.filter((one) => one.rid !== effect.rid),
        };
        return;
      case "create-tombstone":
      case "delete-record":
      case "restore-record":
      case "delete-head":
      case "restore-head":
      case "release-head":
      case "end-headless":
      case "untrash-replica":
      case "empty-trash":
      case "forget":
        throw new Error(`nobody deleted anything: ${effect.kind}`);
    }
  }

  #inSync(): number {
    return (this.record?.replicas ?? []).filter((one) => one.state === "INSYNC").length;
  }

  #othersInSync(member: Member): number {
    return (this.record?.replicas ?? []).filter(
      (one) => one.rid !== member.rid && one.state === "INSYNC" && this.isUp(one.host),
    ).length;
  }

  #swap(change: (members: readonly Member[]) => readonly Member[]): void {
    if (this.record === null) return;
    const replicas = change(this.record.replicas);
    const nextRid = Math.max(this.record.nextRid, ...replicas.map((one) => one.rid + 1));
    this.record = {
      ...this.record,
      replicas,
      nextRid,
      epoch: this.record.epoch + 1n,
      rev: this.record.rev + 1n,
    };
  }

  #own(owner: VolumeRecord["owner"]): void {
    if (this.record !== null) this.record = { ...this.record, owner, epoch: this.record.epoch + 1n };
  }
}

const step = fc.oneof(
  { weight: 4, arbitrary: fc.constant({ kind: "tick" } as const) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("toggle" as const), host: fc.constantFrom(...HOSTS) }),
  },
  { weight: 1, arbitrary: fc.constant({ kind: "add" } as const) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("size" as const), gib: fc.nat({ max: 9 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("remove" as const), rid: fc.nat({ max: 6 }) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("plan" as const),
      change: fc.oneof(
        fc.record({
          kind: fc.constant("copies" as const),
          copies: fc.integer({ min: 1, max: 4 }),
          minIsr: fc.constantFrom(null, 1, 2),
        }),
        fc.record({ kind: fc.constant("spread" as const), spread: fc.constantFrom(...spreads) }),
        fc
          .record({
            from: fc.constantFrom(...HOSTS),
            to: fc.constantFrom(...HOSTS),
            pool: fc.nat({ max: 2 }),
          })
          .map(({ from, to, pool: nth }) => ({
            kind: "move" as const,
            from: hostId(from),
            to: hostId(to),
            pool: [null, poolId(to), second(to)][nth] ?? null,
          })),
      ),
    }),
  },
);

void t.test(
  "volume: in a world of coming and going hosts an in-sync copy always remains, and desire becomes fact",
  async (t) => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 3 }), fc.array(step, { maxLength: 60 }), (copies, story) => {
        const world = new World(copies);
        for (const event of story) {
          if (event.kind === "tick") world.tick();
          else if (event.kind === "toggle") world.toggle(hostId(event.host));
          else if (event.kind === "add")
            world.change((fact) => addCopy(world.want, fact, world.cluster, null));
          else if (event.kind === "size") world.want = { ...world.want, sizeBytes: BigInt(event.gib) * GIB };
          else if (event.kind === "plan") world.plan(event.change);
          else world.change((fact) => removeCopy(world.want, fact, world.cluster, rid(event.rid)));
          const members = world.record?.replicas ?? [];
          if (world.record !== null && !members.some((one) => one.state === "INSYNC"))
            throw new Error("no copy in sync");
          const staying = world.want.placements.filter((place) => !place.remove);
          if (new Set(staying.map((one) => one.host)).size !== staying.length)
            throw new Error("two copies on one host");
          if (new Set(members.map((one) => one.pool)).size !== members.length)
            throw new Error("two copies in one pool");
        }
        world.reviveAll();
        for (let settle = 0; settle < 40; settle += 1) world.tick();

        const line = volumeLine(world.state, world.now);
        const told = `${line}: ${JSON.stringify(world.want.placements.map((one) => one.rid))}`;
        if (phaseOf(world.state, world.now) !== "live") throw new Error(`not live: ${told}`);
        const members = world.record?.replicas ?? [];
        if (world.record?.owner !== null) throw new Error(`the caretaker stays: ${told}`);
        if (members.some((one) => one.state !== "INSYNC")) throw new Error(`not level: ${told}`);
        if (members.length !== world.want.copies)
          throw new Error(`${members.length} of ${world.want.copies} copies: ${told}`);
        if (world.record.sizeBytes < world.want.sizeBytes) throw new Error(`not grown: ${told}`);
        const { copies: wanted, minIsr, spread } = world.want;
        const policy = [world.record.copies, world.record.minIsr, world.record.spread];
        if (policy.join() !== [wanted, minIsr, spread].join())
          throw new Error(`policy ${policy.join()}: ${told}`);
        const racks = members.map((one) => RACKS[HOSTS.findIndex((number) => hostId(number) === one.host)]);
        if (spread === "rack" && new Set(racks).size !== racks.length)
          throw new Error(`in one rack: ${racks.join()}: ${told}`);
        if (world.made.length !== members.length) throw new Error(`left over: ${told}`);
        if (world.want.placements.length !== members.length) throw new Error(`places left over: ${told}`);
      }),
      { numRuns: 400 },
    );
    t.pass("400 lives");
  },
);
