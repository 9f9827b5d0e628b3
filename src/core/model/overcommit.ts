/**
 * Thin volumes may promise more than a pool has: how much more is a problem that somebody should hear of.
 *
 * Must always hold: it is never a refusal. What is full is said, and waits, where it is written.
 */
import { type Cluster, hostName, type Pool } from "./cluster.ts";
import { type Decision, finding, type Finding, ok, refused } from "./finding.ts";
import { OVERCOMMIT_MAX } from "./limits.ts";
import { formatSize } from "./size.ts";

/** E-ARG-02 out of range. */
export function checkOvercommit(times: number): Decision<number> {
  if (Number.isInteger(times) && times >= 1 && times <= OVERCOMMIT_MAX) return ok(times);
  return refused(
    finding("E-ARG-02", `${times} times a pool's size is no bound: 1 to ${OVERCOMMIT_MAX} are.`, {
      facts: { overcommit: times },
      safe: "Nothing was changed.",
    }),
  );
}

/** E-POOL-11 of each pool of which more was promised than so many times its size. */
export function overcommitted(cluster: Cluster, times: number): readonly Finding[] {
  return cluster.pools
    .filter(
      ({ committedBytes, totalBytes }) => totalBytes > 0n && committedBytes > BigInt(times) * totalBytes,
    )
    .map((pool) => promisedFinding(cluster, pool, times));
}

function promisedFinding(
  cluster: Cluster,
  { id, host, path, committedBytes, totalBytes }: Pool,
  times: number,
): Finding {
  const bound = times === 1 ? "its size" : `${times} times its size`;
  return finding(
    "E-POOL-11",
    `The volumes with a copy in the pool ${path} on ${hostName(cluster, host)} may grow to ${formatSize(committedBytes)} together, and it has ${formatSize(totalBytes)}: more than ${bound} (pools.overcommit). When they do, they wait for room.`,
    {
      facts: { pool: id, host },
      do: [
        { why: "See what they take now", command: "weft volume list" },
        { why: "Add a pool", command: "weft pool add PATH" },
        { why: "If it may be so", command: `weft settings set pools.overcommit NUMBER` },
      ],
    },
  );
}
