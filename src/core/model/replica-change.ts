/**
 * Adding and removing a copy on request: the next `want`, or why not.
 *
 * Must always hold:
 * - a rid is never given out twice: the next one is above every one that the record or a placement ever had;
 * - a removal that would leave fewer in-sync copies than min_isr, or none, is refused here already (weftd refuses too);
 * - moving is adding, waiting, then removing; there is no other order (protocol.md 4.18).
 */
import { hostById, hostName, isAlive } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import type { Decision } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import type { HostId, Rid } from "./ids.ts";
import { placeCopies, roomOf } from "./placement.ts";
import type { Spot } from "./placement.ts";
import { losesSnapshot } from "./snapshot.ts";
import type { Snapshot } from "./snapshot.ts";
import { insync } from "./volume-record.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

/** One copy more, on `host` or where the placement puts it. */
export function addCopy(
  want: Want,
  record: VolumeRecord,
  cluster: Cluster,
  host: HostId | null,
): Decision<Want> {
  const gone = deletedFinding(want, record);
  if (gone !== null) return gone;
  const taken = want.placements.map((place) => place.host);
  if (host !== null && taken.includes(host)) {
    return refused(
      finding(
        "E-REPL-02",
        `${hostName(cluster, host)} has a copy of "${want.name}" already. Nothing was added.`,
        {
          facts: { volume: want.volume, host },
        },
      ),
    );
  }
  const decision = placeCopies(cluster, {
    name: want.name,
    copies: 1,
    taken,
    only: host === null ? null : [host],
    pool: null,
    spread: want.spread,
    beside: want.placements.filter((place) => !place.remove).map((place) => place.host),
    roomBytes: roomOf(want),
  });
  if (decision.kind === "refused") return decision;
  const [spot] = decision.value;
  if (spot === undefined) return ok(want);
  return ok({
    ...withPlace(want, record, spot),
    copies: Math.max(want.copies, taken.length + 1 - leaving(want)),
  });
}

/** The same placements and one more, with a fresh rid. */
export function withPlace(want: Want, record: VolumeRecord | null, spot: Spot): Want {
  const rid = nextRid(want, record);
  return { ...want, placements: [...want.placements, { rid, ...spot, remove: false }] };
}

/** One copy less: marked to go. It goes when the kept ones are in sync. */
export function removeCopy(want: Want, record: VolumeRecord, cluster: Cluster, rid: Rid): Decision<Want> {
  const gone = deletedFinding(want, record);
  if (gone !== null) return gone;
  const place = want.placements.find((candidate) => candidate.rid === rid);
  if (place === undefined) {
    const rids = want.placements.map(
      (candidate) => `${candidate.rid} (${hostName(cluster, candidate.host)})`,
    );
    return refused(
      finding("E-ARG-01", `"${want.name}" has no copy ${rid}. Its copies: ${rids.join(", ")}.`, {
        facts: { volume: want.volume, rid },
      }),
    );
  }
  if (place.remove) return ok(want);
  const others = insync(record).filter(
    (member) =>
      member.rid !== rid &&
      isAlive(cluster, member.host) &&
      want.placements.some((candidate) => candidate.rid === member.rid && !candidate.remove),
  );
  const least = Math.max(1, want.minIsr, record.minIsr);
  if (others.length < least) {
    return refused(
      finding(
        "E-REPL-03",
        `Without copy ${rid} on ${hostName(cluster, place.host)}, "${want.name}" would have ${others.length} in-sync ` +
          `${others.length === 1 ? "copy" : "copies"} on hosts that answer, at least ${least} needed. Not removed.`,
        {
          facts: { volume: want.volume, rid, left: others.length, needed: least },
          safe: "All copies are kept as they are.",
          do: [{ why: "Add one first", command: `weft replica add ${want.name} --wait` }],
        },
      ),
    );
  }
  const kept = want.placements.filter((candidate) => !candidate.remove).length - 1;
  return ok({ ...markRemoved(want, rid), copies: Math.max(least, Math.min(want.copies, kept)) });
}

export function markRemoved(want: Want, rid: Rid): Want {
  return {
    ...want,
    placements: want.placements.map((place) => (place.rid === rid ? { ...place, remove: true } : place)),
  };
}

/** Whether a host can leave: nothing open there, no copy that only it has in sync, and no snapshot that is only there. */
export function checkHostRemoval(
  host: HostId,
  volumes: readonly {
    readonly want: Want;
    readonly record: VolumeRecord | null;
    readonly snapshots: readonly Snapshot[];
  }[],
  cluster: Cluster,
): Decision<null> {
  const name = hostName(cluster, host);
  if (hostById(cluster, host) !== null && cluster.hosts.length === 1) {
    return refused(
      finding("E-HOST-02", `${name} is the last host of the cluster. Not removed.`, { facts: { host } }),
    );
  }
  const open = volumes.filter(({ record }) => record?.owner?.host === host);
  const [firstOpen] = open;
  if (firstOpen !== undefined && isAlive(cluster, host)) {
    return refused(
      finding("E-HOST-02", `${name} has ${open.length} ${plural(open.length)} open. Not removed.`, {
        facts: { host, volumes: open.length },
        safe: "Nothing was changed.",
        do: [{ why: `Detach, on ${name}`, command: `weft detach ${firstOpen.want.name}` }],
      }),
    );
  }
  const needed = volumes.filter(
    ({ want, record }) =>
      want.deletedAtMs === null &&
      want.placements.some((place) => place.host === host) &&
      (record === null || !insync(record).some((m) => m.host !== host && isAlive(cluster, m.host))),
  );
  const [firstNeeded] = needed;
  if (firstNeeded === undefined) return hasLastSnapshot(host, volumes, cluster);
  return refused(
    finding(
      "E-HOST-01",
      `${needed.length} ${plural(needed.length)} have no in-sync copy but the one on ${name}, "${firstNeeded.want.name}" first. Not removed.`,
      {
        facts: { host, volumes: needed.length },
        safe: "All copies are kept as they are.",
        do: [{ why: "Add a copy elsewhere", command: `weft replica add ${firstNeeded.want.name} --wait` }],
      },
    ),
  );
}

function hasLastSnapshot(
  host: HostId,
  volumes: Parameters<typeof checkHostRemoval>[1],
  cluster: Cluster,
): Decision<null> {
  for (const { want, record, snapshots } of volumes) {
    const going = want.placements.map((place) => ({
      ...place,
      remove: place.remove || place.host === host,
    }));
    const change = { before: want, after: { ...want, placements: going } };
    const lost = record === null ? null : losesSnapshot(snapshots, change, record, cluster);
    if (lost !== null) return refused(lost);
  }
  return ok(null);
}

function nextRid(want: Want, record: VolumeRecord | null): Rid {
  return Math.max(record?.nextRid ?? 0, ...want.placements.map((place) => place.rid + 1)) as Rid;
}

function leaving(want: Want): number {
  return want.placements.filter((place) => place.remove).length;
}

function plural(count: number): string {
  return count === 1 ? "volume" : "volumes";
}

/** Null: it isn't deleted. */
export function deletedFinding(
  want: Want,
  record: VolumeRecord,
): { readonly kind: "refused"; readonly finding: ReturnType<typeof finding> } | null {
  if (want.deletedAtMs === null && record.deletedAtMs === null) return null;
  return refused(
    finding("E-VOL-11", `"${want.name}" is in the trash. Its copies stay as they are.`, {
      facts: { volume: want.volume },
      do: [{ why: "Bring it back", command: `weft trash restore ${want.name}` }],
    }),
  );
}
