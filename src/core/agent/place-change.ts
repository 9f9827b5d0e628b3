/**
 * Another number of copies, other places for them, another rule of what they must not share: planned, and asked for.
 *
 * Must always hold:
 * - what is shown as a plan and what is done come from one decision (`planChange`);
 * - only what is wanted is written here; the steps are done by the hosts' agents, each when the facts allow it.
 */
import { hostName } from "../model/cluster.ts";
import type { Cluster } from "../model/cluster.ts";
import { type Decision, ok } from "../model/finding.ts";
import type { HostId, PoolId, VolumeId } from "../model/ids.ts";
import { copyingMs, type PlaceChange, type Plan, planChange, type PlanStep } from "../model/plan.ts";
import { policyStep } from "../model/policy.ts";
import { memberOf } from "../model/volume-record.ts";
import type { Place, VolumeRecord, Want } from "../model/volume-record.ts";
import type { PlanAnswer, PlaceChangeRequest } from "../wire/agent-api.ts";
import { decided, WeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import { poolsOf, volumeOf } from "./facts.ts";
import { findHost, findVolume } from "./find.ts";
import { CHANGE_MS, changeWanted, keepingSnapshots, MAKE_MS, stillMade } from "./volumes.ts";

export function planPlaces(context: MemberContext, ref: string, asked: PlaceChangeRequest): PlanAnswer {
  const { view, mirror } = context;
  const { id, want, record, extra, unreadable } = findVolume(mirror, ref, "headless too");
  if (unreadable !== null) throw unreadable;
  if (record === null) throw stillMade(want.name, id);
  const cluster = view.cluster();
  const ownerIsCaretaker = extra?.caretaker ?? false;
  const plan = decided(
    planChange({ want, record, cluster, ownerIsCaretaker }, placeChangeOf(context, asked)),
  );
  decided(keepingSnapshots(context, want, record, ok(plan.want)));
  return planAnswer(want, plan, cluster);
}

/** Answers when what is added belongs to the volume, or what goes is gone where nothing is waited for. */
export async function changePlaces(
  context: MemberContext,
  ref: string,
  asked: PlaceChangeRequest,
): Promise<VolumeId> {
  const { mirror, view } = context;
  await mirror.sync();
  const change = placeChangeOf(context, asked);
  let steps: readonly PlanStep[] = [];
  const decide = (wanted: Want, record: VolumeRecord): Decision<Want> => {
    const cluster = view.cluster();
    const decision = planChange({ want: wanted, record, cluster, ownerIsCaretaker: false }, change);
    if (decision.kind === "refused") return decision;
    steps = decision.value.steps;
    return keepingSnapshots(context, wanted, record, ok(decision.value.want));
  };
  const { volume, want } = await changeWanted(context, ref, decide, "headless too");
  const makes = steps.some(({ kind }) => kind === "add");
  await mirror.until(`The change of the copies of "${want.name}"`, makes ? MAKE_MS : CHANGE_MS, () => {
    const { record } = volumeOf(mirror, volume);
    return record !== null && isBegun(steps, want, record) ? true : null;
  });
  return volume;
}

/** What needs no waiting for copies is done. */
function isBegun(steps: readonly PlanStep[], want: Want, record: VolumeRecord): boolean {
  const waits = steps.findIndex(({ kind }) => kind === "wait");
  const now = waits === -1 ? steps : steps.slice(0, waits);
  return now.every((step) => {
    switch (step.kind) {
      case "add":
        return memberOf(record, step.place.rid) !== null;
      case "remove":
        return (memberOf(record, step.place.rid)?.state ?? "REMOVING") === "REMOVING";
      case "policy":
        return waits !== -1 || policyStep(want, record) === null;
      case "keep":
      case "wait":
        return true;
    }
  });
}

function placeChangeOf(
  { mirror }: MemberContext,
  { copies, minIsr, spread, move }: PlaceChangeRequest,
): PlaceChange {
  if (copies !== undefined) return { kind: "copies", copies, minIsr: minIsr ?? null };
  if (spread !== undefined) return { kind: "spread", spread };
  if (move === undefined) throw new Error("a change of places names what it changes");
  const to = findHost(mirror, move.to).id;
  const pool = move.pool === null ? null : findPoolOn(mirror, to, move.to, move.pool);
  return { kind: "move", from: findHost(mirror, move.from).id, to, pool };
}

/** By its id, or its path there. */
function findPoolOn(mirror: MemberContext["mirror"], host: HostId, name: string, ref: string): PoolId {
  const there = poolsOf(mirror).filter(({ node }) => node === host);
  const found = there.find(({ id, path }) => id === ref || path === ref);
  if (found !== undefined) return found.id;
  const known = there.map(({ path }) => path).join(", ");
  throw new WeftError({
    code: "E-ARG-01",
    message: `${name} has no pool "${ref}". Its pools: ${known === "" ? "none" : known}.`,
    facts: { host, pool: ref },
    safe: "Nothing was changed.",
    do: [{ why: "See all pools", command: "weft pool list" }],
  });
}

function planAnswer(want: Want, plan: Plan, cluster: Cluster): PlanAnswer {
  return {
    volume: want.volume,
    name: want.name,
    steps: plan.steps.map((step) => stepAnswer(step, cluster)),
    bytes: plan.bytes,
    seconds: Math.ceil(copyingMs(plan.bytes) / 1000),
    inSync: plan.inSync,
    risks: [...plan.risks],
  };
}

function stepAnswer(step: PlanStep, cluster: Cluster): PlanAnswer["steps"][number] {
  switch (step.kind) {
    case "policy":
      return { kind: step.kind, ...step.policy };
    case "wait":
      return { kind: step.kind, rids: [...step.rids] };
    case "add":
      return { kind: step.kind, ...placeAnswer(step.place, cluster), bytes: step.bytes };
    case "keep":
    case "remove":
      return { kind: step.kind, ...placeAnswer(step.place, cluster) };
  }
}

function placeAnswer({ rid, host, pool }: Place, cluster: Cluster) {
  const poolPath = cluster.pools.find(({ id }) => id === pool)?.path ?? "";
  return { rid: rid as number, host, hostName: hostName(cluster, host), pool, poolPath };
}
