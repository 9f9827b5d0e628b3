/**
 * Changed blocks between two snapshots of a volume, as this host's weftd reads them from copies that took both.
 *
 * Must always hold: both are of the volume that the path names, whose reader was judged by it; of others nothing is said.
 */
import { CHANGED_GRAIN } from "../model/changed-blocks.ts";
import type { Snapshot } from "../model/snapshot.ts";
import type * as api from "../wire/agent-api.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import { findSibling, findSnapshot } from "./find.ts";
import { refuseDeleting } from "./snapshots.ts";

/** Copies are read for it: a few seconds of work an answer. */
const ANSWER_MS = 45_000;

/** As much of it as one answer covers: whoever asks goes on behind that. */
export async function changedBlocks(
  { mirror, daemon }: MemberContext,
  ref: string,
  { since, offset, len }: api.ChangedQuery,
): Promise<api.ChangedAnswer> {
  const { volume, snapshot } = findSnapshot(mirror, ref);
  refuseDeleting(volume, snapshot);
  const older = findSibling(mirror, volume, since);
  refuseDeleting(volume, older);
  const { sizeBytes: size } = snapshot;
  if (offset % BigInt(CHANGED_GRAIN) !== 0n || offset >= size) throw badOffset(offset, size);
  const rest = size - offset;
  const wanted = len === null || len > rest ? rest : len;
  const { name } = volume.want;
  const refs = [`${name}@${older.name}`, `${name}@${snapshot.name}`] as const;
  const found = await daemon.client
    .call(
      "snapshot.changed",
      {
        volume: volume.id,
        id: snapshot.id,
        since: older.id,
        offset: String(offset),
        len: String(wanted),
      },
      ANSWER_MS,
    )
    .catch((error: unknown) => {
      throw explained(error, refs, [older, snapshot]);
    });
  return {
    snapshot: snapshot.id,
    since: older.id,
    volume: volume.id,
    size,
    grain: found.grain,
    exact: found.exact,
    offset: BigInt(found.offset),
    len: BigInt(found.len),
    bitmap: found.bitmap,
  };
}

function badOffset(offset: bigint, size: bigint): WeftError {
  return new WeftError({
    code: "E-ARG-02",
    message: `"offset": ${offset} is no block's beginning in ${size} bytes: a multiple of ${CHANGED_GRAIN} below that is.`,
    facts: { offset: String(offset), size: String(size) },
  });
}

/** weftd's refusal with the names that people know snapshots by. */
function explained(
  error: unknown,
  [older, newer]: readonly [string, string],
  both: readonly Snapshot[],
): unknown {
  if (!isWeftError(error)) return error;
  switch (error.code) {
    case "E-SNAP-16":
      return new WeftError({
        ...error.toBody(),
        message: `What changed between ${older} and ${newer} can't be said now: no copy that has them is in reach.`,
        do: [
          { why: "See which copies have it", command: `weft snapshot show ${newer}` },
          { why: "And the older one", command: `weft snapshot show ${older}` },
        ],
        cause: error,
      });
    case "E-SNAP-09": {
      const gone = both.findIndex(({ id }) => id === error.facts["snapshot"]) === 0 ? older : newer;
      return new WeftError({
        ...error.toBody(),
        message: `${gone} is gone, or being deleted.`,
        do: [{ why: "See which there are", command: `weft snapshot list ${newer.split("@")[0]}` }],
        cause: error,
      });
    }
    default:
      return error;
  }
}
