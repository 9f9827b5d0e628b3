/** Pools of this host: asked of its weftd, shown to the cluster by keys. */
import type { PoolAnswer } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { findPool } from "./find.ts";
import { poolAnswers } from "./status.ts";
import { hostName } from "../model/cluster.ts";

const SHOWN_MS = 15_000;

/** Returns when the pool's room stands in the store: from then on any host can place copies there. */
export async function createPool(context: MemberContext, path: string): Promise<PoolAnswer> {
  const { daemon, mirror } = context;
  const made = await daemon.client.call("pool.create", { path });
  await daemon.publishPools();
  return mirror.until(`The pool ${path}`, SHOWN_MS, () => {
    const found = poolAnswers(context).find(({ id }) => id === made.pool);
    return found !== undefined && isSettled(found) ? found : null;
  });
}

/** It serves and its room is known, or it can't serve and says why. */
function isSettled({ state, total }: PoolAnswer): boolean {
  if (state === "serving") return total !== null && total > 0n;
  return state === "quarantined" || state === "failed";
}

export async function removePool(context: MemberContext, ref: string): Promise<void> {
  const { daemon, mirror, store, host, view } = context;
  await mirror.sync();
  const pool = findPool(mirror, ref);
  if (pool.node !== host) {
    const where = hostName(view.cluster(), pool.node);
    throw new WeftError({
      code: "E-POOL-04",
      message: `The pool ${pool.id} is on ${where}; only its own host can remove it.`,
      facts: { pool: pool.id, host: where },
      safe: "Nothing was changed.",
      do: [{ why: `On ${where}`, command: `weft pool remove ${pool.id}` }],
    });
  }
  await daemon.client.call("pool.remove", { pool: pool.id });
  await store.delete(keys.poolUsage(pool.id));
}
