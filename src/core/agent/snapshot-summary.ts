/**
 * A volume's snapshots in few words, and what is to be said of them under the headline of `weft status`.
 *
 * Must always hold: what is not logged is shown to nobody (R27).
 */
import { type Cluster, hostName } from "../model/cluster.ts";
import type { VolumeId } from "../model/ids.ts";
import { formatSize } from "../model/size.ts";
import { refOf } from "../model/headless.ts";
import {
  cannotHave,
  coverage,
  holders,
  inOrder,
  isShown,
  ready,
  type Snapshot,
  type Unable,
  unablePool,
  withFewer,
} from "../model/snapshot.ts";
import type { Member, VolumeRecord, Want } from "../model/volume-record.ts";
import type * as api from "../wire/agent-api.ts";
import type { MemberContext } from "./context.ts";
import { snapshotsOf, type VolumeFacts, volumeOf } from "./facts.ts";
import type { Mirror } from "./mirror.ts";
import { imagesOf } from "./snapshot-images.ts";
import { copiesUnderWay } from "./snapshot-keeper.ts";

/** As many are named in a volume's own answer; its list has all of them. */
const FEWER_SHOWN = 10;

/** For the volume's own answer. */
export function snapshotSummary(
  { mirror, view }: Pick<MemberContext, "mirror" | "view">,
  { id, want, record }: VolumeFacts,
): api.VolumeAnswer["snapshots"] {
  const known = snapshotsOf(mirror, id).known.filter(isShown);
  const cluster = view.cluster();
  const fewer = want === null || record === null ? [] : inOrder(withFewer(known, want, record));
  const unable = record === null ? null : unablePool(record, cluster);
  const damaged = record === null ? [] : damagedOf(mirror, inOrder(ready(known)), record);
  const named = (members: readonly Member[]): string[] => members.map(({ host }) => hostName(cluster, host));
  return {
    count: known.filter(({ state }) => state === "READY").length,
    deleting: known.filter(({ state }) => state === "DELETING").length,
    fewerCount: fewer.length,
    fewer: fewer.slice(0, FEWER_SHOWN).map((snapshot) => {
      const { copies, missedBy } = record === null ? { copies: 0, missedBy: [] } : coverage(snapshot, record);
      return { name: snapshot.name, copies, missedBy: missedBy.map((host) => hostName(cluster, host)) };
    }),
    damagedCount: damaged.length,
    damaged: damaged.slice(0, FEWER_SHOWN).map(({ snapshot: { name }, lost, whole }) => ({
      name,
      hosts: named(lost),
      wholeOn: named(whole),
    })),
    unable:
      unable === null
        ? null
        : { hostName: hostName(cluster, unable.host), path: unable.path, why: unable.why },
  };
}

type Damaged = {
  readonly snapshot: Snapshot;
  /** Copies that have lost something of it, and those that have not, as far as their hosts have said. */
  readonly lost: readonly Member[];
  readonly whole: readonly Member[];
};

function damagedOf(mirror: Mirror, snapshots: readonly Snapshot[], record: VolumeRecord): readonly Damaged[] {
  if (snapshots.length === 0) return [];
  const images = imagesOf(mirror, record.volume);
  return snapshots.flatMap((snapshot) => {
    const damaged = images.get(snapshot.id)?.filter(({ damagedRegions }) => damagedRegions > 0n) ?? [];
    if (damaged.length === 0) return [];
    const having = holders(snapshot, record);
    const isLost = ({ rid }: Member): boolean => damaged.some((image) => image.rid === rid);
    const lost = having.filter(isLost);
    return lost.length === 0 ? [] : [{ snapshot, lost, whole: having.filter((member) => !isLost(member)) }];
  });
}

/** What stands in the way of snapshots, or is less than it should be: E-SNAP-11, E-SNAP-23, E-SNAP-01; and what can't be read. */
export function snapshotProblems(
  context: MemberContext,
  volumes: readonly VolumeFacts[],
): readonly api.Problem[] {
  const { mirror, view } = context;
  const cluster = view.cluster();
  return volumes.flatMap((facts): readonly api.Problem[] => {
    const { id, want: wish, record } = facts;
    const unreadable = snapshotsOf(mirror, id).unreadable.map((error) => ({
      code: error.code,
      message: error.message,
      do: [...error.do],
    }));
    if (wish === null || record === null || wish.deletedAtMs !== null) return unreadable;
    const want = { ...wish, name: refOf(wish) };
    const summary = snapshotSummary(context, facts);
    const fewer = summary.fewerCount === 0 ? [] : [fewerProblem(want, summary, comingOf(context, id))];
    const damaged = summary.damagedCount === 0 ? [] : [damagedProblem(want, summary)];
    // Where all of its pools are of such a kind nobody expects snapshots.
    const expects = summary.count > 0 && record.head === null;
    const unable = expects ? unablePool(record, cluster) : null;
    const none = unable === null ? [] : [unableProblem(want, cluster, unable)];
    return [...unreadable, ...damaged, ...fewer, ...none];
  });
}

function fewerProblem(
  { name, copies: wanted, headDeletedAtMs }: Want,
  { count, fewerCount, fewer: [first] }: api.VolumeAnswer["snapshots"],
  coming: string,
): api.Problem {
  const which =
    count === 1 ? `The snapshot of "${name}" has` : `${fewerCount} of ${count} snapshots of "${name}" have`;
  const example =
    first === undefined
      ? ""
      : `: ${name}@${first.name} is in ${first.copies} of ${wanted}${first.missedBy.length === 0 ? "" : `, ${first.missedBy.join(" ")} missed it`}`;
  return {
    code: "E-SNAP-11",
    message: `${which} fewer copies than the volume${example}.${coming}`,
    do: [
      { why: "See which", command: `weft snapshot list ${name}` },
      ...(headDeletedAtMs === null
        ? [{ why: "A new one is on all copies that are in sync", command: `weft snapshot create ${name}` }]
        : []),
    ],
  };
}

/** ` h3 gets db@nightly now, 12 % of 10 GiB.` */
function comingOf({ mirror, view }: MemberContext, volume: VolumeId): string {
  const cluster = view.cluster();
  const { want } = volumeOf(mirror, volume);
  const { known } = snapshotsOf(mirror, volume);
  const lines = copiesUnderWay(mirror).flatMap(({ host, snapshot, doneBytes, totalBytes }) => {
    const found = known.find(({ id }) => id === snapshot);
    if (found === undefined || want === null) return [];
    const percent = totalBytes === 0n ? 0n : (doneBytes * 100n) / totalBytes;
    return [
      ` ${hostName(cluster, host)} gets ${refOf(want)}@${found.name} now, ${percent} % of ${formatSize(totalBytes)}.`,
    ];
  });
  return lines.join("");
}

function damagedProblem(
  { name }: Want,
  { damagedCount, damaged: [first] }: api.VolumeAnswer["snapshots"],
): api.Problem {
  const ref = `${name}@${first?.name ?? ""}`;
  const [lost, whole] = [first?.hosts.join(" ") ?? "", first?.wholeOn.join(" ") ?? ""];
  const more = damagedCount > 1 ? ` So have ${damagedCount - 1} more of its snapshots.` : "";
  const rest =
    whole === ""
      ? "No other copy has it: what is lost there is lost."
      : `It is read from ${whole} instead, and the volume itself is not touched by it.`;
  return {
    code: "E-SNAP-23",
    message: `${ref} has lost a part of what it held in the copy on ${lost}. ${rest}${more}`,
    do: [
      { why: "See how much, and where", command: `weft snapshot show ${ref}` },
      { why: "When it is not needed any more", command: `weft snapshot delete ${ref}` },
    ],
  };
}

function unableProblem(want: Want, cluster: Cluster, unable: Unable): api.Problem {
  const { code, message, do: remedies } = cannotHave(want, cluster, unable);
  return { code, message, do: [...remedies] };
}
