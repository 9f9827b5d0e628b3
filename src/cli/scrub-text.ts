/** A scrub as text: `50 GiB compared on h1 h2, 3 blocks rotten on h2 (pool 1a2b3c4d), all repaired. 0 differ.` */
import { formatSize } from "../core/model/size.ts";
import type { ScrubResultAnswer, VolumeAnswer } from "../core/wire/agent-api.ts";

/** Nothing is amiss any more. */
export function isSound({ whole, rotten, repaired, divergent, lost }: ScrubResultAnswer): boolean {
  return whole && rotten <= repaired && divergent === 0n && lost === 0n;
}

export function scrubText({ name, scrub: { last } }: VolumeAnswer): string {
  return last === null ? `"${name}": stopped before anything was found.` : `"${name}": ${resultText(last)}`;
}

export function resultText(result: ScrubResultAnswer): string {
  const { comparedBytes, members, rotten, repaired, divergent, lost, whole } = result;
  const hosts = members
    .map(({ hostName }) => hostName)
    .toSorted()
    .join(" ");
  const stopped = whole ? "" : " (stopped before its end)";
  return [
    `${formatSize(comparedBytes)} compared on ${hosts}${stopped}`,
    ...(rotten === 0n ? ["none rotten"] : [rottenText(result), repairedText(rotten, repaired)]),
    ...(lost === 0n ? [] : [`${lost} in no copy`]),
  ]
    .join(", ")
    .concat(`. ${divergent} ${divergent === 1n ? "differs" : "differ"}.`);
}

function rottenText({ members }: ScrubResultAnswer): string {
  return members
    .filter(({ rotten }) => rotten > 0n)
    .map(
      ({ hostName, pool, rotten }) =>
        `${rotten} ${rotten === 1n ? "block" : "blocks"} rotten on ${hostName} (pool ${pool.slice(0, 8)})`,
    )
    .join(", ");
}

function repairedText(rotten: bigint, repaired: bigint): string {
  return repaired >= rotten ? "all repaired" : `${repaired} of them repaired`;
}

/** `comparing "db" on h1: 12 % of 50 GiB` */
export function scrubProgressText({ name, scrub: { progress } }: VolumeAnswer): string {
  if (progress === null) return `"${name}": waits for its owner to begin`;
  const { doneBytes, totalBytes, hostName } = progress;
  const percent = totalBytes === 0n ? 100n : (doneBytes * 100n) / totalBytes;
  return `comparing "${name}" on ${hostName}: ${percent} % of ${formatSize(totalBytes)}`;
}

/** For `volume show`; null: never, and nobody asks for it. */
export function scrubLine(volume: VolumeAnswer): string | null {
  const { asked, last } = volume.scrub;
  if (asked !== null) return `${scrubProgressText(volume)}, asked for by ${asked.by}`;
  return last === null ? null : `${last.endedAt.slice(0, 10)}: ${resultText(last)}`;
}
