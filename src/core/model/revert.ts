/**
 * Taking a volume back to one of its snapshots, in place (docs/model.md R30): what stands against it before weftd is asked.
 *
 * Must always hold:
 * - nobody uses the volume: what a guest wrote or read must not change under it;
 * - one that is begun is ended, by whoever opens the volume next; it may be begun anew with another snapshot;
 * - whatever passes here can still be refused by weftd, whose swap decides.
 */
import { hostName } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import { finding, ok, refused } from "./finding.ts";
import type { Decision, Finding } from "./finding.ts";
import { headDeleted } from "./headless.ts";
import { formatSize, formatSizeExact } from "./size.ts";
import { dataIsGone, holders } from "./snapshot.ts";
import type { Snapshot } from "./snapshot.ts";
import { insync } from "./volume-record.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

export type RevertInput = {
  readonly want: Want;
  readonly record: VolumeRecord;
  readonly cluster: Cluster;
  /** The owner is a session without a guest. */
  readonly ownerIsCaretaker: boolean;
  readonly snapshot: Snapshot;
};

/**
 * `begin`: weftd is asked; `wait`: it is being taken back to that snapshot already. E-VOL-11, E-VOL-19, E-SNAP-09, E-SNAP-18,
 * E-VOL-12 where a guest uses it, E-SNAP-15 where the sizes differ, E-SNAP-19 where too few copies have the snapshot,
 * E-VOL-14 while a caretaker is at other work.
 */
export function checkRevert(input: RevertInput): Decision<"begin" | "wait"> {
  const { want, record, cluster, ownerIsCaretaker, snapshot } = input;
  const { owner, reverting } = record;
  const ref = `${want.name}@${snapshot.name}`;
  if (want.deletedAtMs !== null || record.deletedAtMs !== null)
    return refused(
      finding("E-VOL-11", `"${want.name}" is in the trash.`, {
        facts: { volume: want.volume },
        do: [{ why: "Bring it back", command: `weft trash restore ${want.name}` }],
      }),
    );
  if (want.headDeletedAtMs !== null || record.head !== null) return refused(headDeleted(want));
  if (snapshot.state === "DELETING")
    return refused(
      finding("E-SNAP-09", `${ref} is being deleted.`, {
        facts: { snapshot: snapshot.id },
        safe: "Nothing was changed.",
      }),
    );
  const gone = dataIsGone(want.name, snapshot);
  if (gone !== null) return refused(gone);
  if (owner !== null && !ownerIsCaretaker) return refused(isUsed(want, cluster, owner.host));
  if (reverting?.snapshot === snapshot.id) return ok("wait");
  if (snapshot.sizeBytes !== record.sizeBytes) return refused(otherSize(want, record, snapshot));
  const having = holders(snapshot, record).filter(({ state }) => state === "INSYNC").length;
  if (having < Math.max(1, record.minIsr)) return refused(tooFew(want, record, snapshot, having));
  if (owner !== null && reverting === null) return refused(isAtWork(want, cluster, owner.host));
  return ok("begin");
}

function isUsed({ name, volume }: Want, cluster: Cluster, host: VolumeHost): Finding {
  const where = hostName(cluster, host);
  return finding(
    "E-VOL-12",
    `"${name}" is attached on ${where}: it is taken back only while nobody uses it.`,
    {
      facts: { volume, host },
      safe: "Nothing was changed; its guest goes on.",
      do: [{ why: `Detach it, on ${where}`, command: `weft detach ${name}` }],
    },
  );
}

function otherSize({ name, volume }: Want, { sizeBytes: has }: VolumeRecord, snapshot: Snapshot): Finding {
  const { sizeBytes: had, id } = snapshot;
  const ref = `${name}@${snapshot.name}`;
  const resize = `weft volume resize ${name} ${formatSizeExact(had)}`;
  return finding(
    "E-SNAP-15",
    `"${name}" has ${formatSize(has)}, and had ${formatSize(had)} when ${ref} was taken: it is taken back only in its size of then.`,
    {
      facts: { volume, snapshot: id, size: `${has}`, snapshot_size: `${had}` },
      safe: "Nothing was changed.",
      do: [
        had > has
          ? { why: "Give it that size first", command: resize }
          : {
              why: "Give it that size first; what lies beyond is lost",
              command: `${resize} --lose-data ${name}`,
            },
        { why: "Or make another volume of the snapshot", command: `weft snapshot clone ${ref} NAME` },
      ],
    },
  );
}

function tooFew({ name, volume }: Want, record: VolumeRecord, snapshot: Snapshot, have: number): Finding {
  const { minIsr } = record;
  const ref = `${name}@${snapshot.name}`;
  const having =
    have === 0 ? "No copy in sync has" : have === 1 ? "One copy in sync has" : `${have} copies in sync have`;
  return finding("E-SNAP-19", `${having} ${ref}, and writes of "${name}" need ${Math.max(1, minIsr)}.`, {
    facts: { volume, snapshot: snapshot.id, have, min_isr: minIsr },
    safe: "Nothing was changed.",
    do: [
      { why: "See which copies have it; others get it by and by", command: `weft snapshot show ${ref}` },
      ...(have > 0 && insync(record).length >= minIsr
        ? [
            {
              why: "Or ask for less, for the time being",
              command: `weft volume copies ${name} ${record.copies} --min-isr ${have}`,
            },
          ]
        : []),
    ],
  });
}

function isAtWork({ name, volume }: Want, cluster: Cluster, host: VolumeHost): Finding {
  return finding(
    "E-VOL-14",
    `"${name}" is at work: ${hostName(cluster, host)} makes its copies level. It can be taken back when that is done.`,
    {
      facts: { volume, host },
      safe: "Nothing was changed.",
      do: [{ why: "See how far it is", command: `weft volume show ${name} --watch` }],
    },
  );
}

type VolumeHost = NonNullable<VolumeRecord["owner"]>["host"];
