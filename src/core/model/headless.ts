/**
 * A volume whose head is deleted while its snapshots live on (docs/model.md R31, adr/0024): what becomes of it next.
 *
 *     live ──its head is deleted──▶ headless, its head kept ──24 h, or trash emptied──▶ releasing ──▶ released
 *      ▲                              │       │                                                        │
 *      └───────────restored───────────┘       └──────────the last snapshot is gone: deleted────────────┘
 *
 * Must always hold:
 * - its copies and snapshots are looked after as ever;
 * - what only the head has goes when it has rested as long as a deleted volume does, and not before;
 * - it is given up when the record counts no snapshot any more; it is then a volume that was deleted when its head was, so
 *   that it rests in the trash for what is left of the 24 h, and can be restored if nothing of it was given back.
 */
import { finding } from "./finding.ts";
import type { Finding } from "./finding.ts";
import type { HostId } from "./ids.ts";
import { TRASH_MS } from "./limits.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

export type HeadEffect =
  | { readonly kind: "delete-head"; readonly host: HostId }
  | { readonly kind: "restore-head"; readonly host: HostId }
  /** In the caretaker's session on this host. */
  | { readonly kind: "release-head"; readonly host: HostId }
  /** Its last snapshot is gone: it is to be deleted. */
  | { readonly kind: "end-headless"; readonly host: HostId };

type Pair = { readonly want: Want; readonly record: VolumeRecord };

/** What is to be done while nobody has the volume open; `none`: what the record says is what is wanted. */
export function headEffects({
  want,
  record,
}: Pair): "none" | "delete-head" | "restore-head" | "end-headless" {
  if (want.headDeletedAtMs === null) return record.head === null ? "none" : "restore-head";
  if (record.head === null) return "delete-head";
  return record.snapshots === 0 ? "end-headless" : "none";
}

/** Something of it was given back: it can't be restored. */
export function isHeadGone({ head }: VolumeRecord): boolean {
  return head !== null && head.data !== "kept";
}

/** A caretaker is needed that gives back what only the head has. */
export function isHeadReleaseDue({ head }: VolumeRecord, emptyNow: boolean, now: number): boolean {
  if (head === null || head.data === "released") return false;
  return head.data === "releasing" || emptyNow || now >= head.deletedAtMs + TRASH_MS;
}

/** When that is due without any event; null: it isn't, or already. */
export function releaseAt({ head }: VolumeRecord, now: number): number | null {
  if (head === null || head.data !== "kept") return null;
  const at = head.deletedAtMs + TRASH_MS;
  return at > now ? at : null;
}

/** What stands before the `@` of its snapshots, and in commands: its name, or its id when the name is not its own any more. */
export function refOf({ name, volume, headDeletedAtMs }: Want): string {
  return headDeletedAtMs === null ? name : volume;
}

/** E-VOL-19: what needs the head. */
export function headDeleted({ name, volume }: Want): Finding {
  return finding("E-VOL-19", `The head of "${name}" is deleted: it lives on in its snapshots alone.`, {
    facts: { volume },
    safe: "Nothing was changed.",
    do: [
      { why: "See its snapshots, by its id", command: `weft snapshot list ${volume}` },
      { why: "A volume of one of them", command: "weft snapshot clone SNAPSHOT-ID NAME" },
      { why: "Or bring the head back, within 24 h", command: `weft trash restore ${volume}` },
    ],
  });
}

/** E-VOL-20: it is too late. */
export function headGone({ name, volume }: Want): Finding {
  return finding(
    "E-VOL-20",
    `The head of "${name}" can't be brought back: what only it had was given back.`,
    {
      facts: { volume },
      safe: "Its snapshots are all there.",
      do: [{ why: "See them, by its id", command: `weft snapshot list ${volume}` }],
    },
  );
}
