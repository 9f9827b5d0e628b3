/** What changed between two snapshots, as text. */
import type { ByteRange } from "../core/model/changed-blocks.ts";
import { bytesIn } from "../core/model/changed-blocks.ts";
import { formatSize, formatSizeExact } from "../core/model/size.ts";
import { table } from "./table.ts";

/** As many are shown to people; `--json` and `-q` have all. */
const SHOWN = 20;

export type Changed = {
  readonly snapshot: string;
  readonly since: string;
  readonly volume: string;
  readonly size: bigint;
  readonly grain: number;
  /** False: no copy has both from when they were taken, so all data of either counts. */
  readonly exact: boolean;
  readonly changedBytes: bigint;
  readonly ranges: readonly ByteRange[];
};

export function changedText(newer: string, older: string, changed: Changed): string {
  const { size, exact, ranges, grain } = changed;
  if (ranges.length === 0) return `Nothing changed from ${older} to ${newer}.`;
  const bytes = formatSize(bytesIn(ranges));
  const places = ranges.length === 1 ? "one range" : `${ranges.length} ranges`;
  const grains = `of blocks of ${formatSizeExact(BigInt(grain))}`;
  const first = `From ${older} to ${newer} ${exact ? "" : "at most "}${bytes} of ${formatSize(size)} changed, in ${places} ${grains}.`;
  const why = exact
    ? []
    : ["No copy that took both is in reach, so all that either of them holds is counted."];
  const rows = ranges.slice(0, SHOWN);
  const listed = table(rows, [
    { title: "OFFSET", of: ({ offset }) => String(offset), right: true },
    { title: "LENGTH", of: ({ len }) => String(len), right: true },
  ]);
  const more = ranges.length > SHOWN ? [`… and ${ranges.length - SHOWN} more: --json has all of them.`] : [];
  return [first, ...why, listed, ...more].join("\n");
}
