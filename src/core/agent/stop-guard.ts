/**
 * Whether this host may stop now, asked by what stops it (a unit, an operator, a rolling update).
 *
 * Must always hold: it never stops anything and never keeps it from stopping: who asks decides, and has been told.
 */
import { heldBack, heldText, isHeld } from "../model/stop-guard.ts";
import type { StopAnswer } from "../wire/agent-api.ts";
import { isWeftError } from "../wire/errors.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { volumesOf } from "./facts.ts";
import { volumeAnswer } from "./status.ts";
import { storeStatus } from "./store-status.ts";

/** What waits in the store is shown for so long after it was said last. */
const SHOWN_SECONDS = 90;
/** Beside each change of the store: members are asked, and tell nobody. */
const LOOK_MS = 1000;

/** Answers as soon as it may, or after `waitMs`. */
export async function mayStop(context: MemberContext, waitMs: number): Promise<StopAnswer> {
  const begun = performance.now();
  let isShown = false;
  for (;;) {
    const held = await look(context);
    const left = waitMs - (performance.now() - begun);
    if (!isHeld(held) || left <= 0) {
      if (isShown && !isHeld(held)) await hide(context);
      return { held: isHeld(held), because: heldText(held), ...held, volumes: [...held.volumes] };
    }
    if (!isShown) isShown = await show(context, heldText(held));
    await context.mirror
      .until("The other copies", Math.min(left, LOOK_MS), () => null)
      .catch((error: unknown) => {
        if (!isWeftError(error, "E-AGENT-04")) throw error;
      });
  }
}

async function look(context: MemberContext): Promise<ReturnType<typeof heldBack>> {
  const { mirror, self } = context;
  const { members } = await storeStatus(context);
  const volumes = volumesOf(mirror)
    .flatMap((volume) => volumeAnswer(context, volume) ?? [])
    .filter(({ health }) => health !== "deleted" && health !== "creating");
  return heldBack({
    self: self.host,
    volumes: volumes.map(({ id, name, copies, minIsr, owner, replicas }) => ({
      id,
      name,
      copies,
      minIsr,
      openElsewhere: owner !== null && !owner.caretaker && owner.host !== self.host,
      inSync: replicas.flatMap(({ state, host, alive }) => (state === "INSYNC" ? [{ host, alive }] : [])),
    })),
    voters: members
      .filter(({ learner }) => !learner)
      .map(({ address, answers }) => ({ host: address === self.address ? self.host : address, answers })),
  });
}

/** Best effort: a store that is away keeps nobody from stopping later than asked. */
async function show({ store, host, self }: MemberContext, why: string): Promise<boolean> {
  try {
    const lease = await store.grantLease(SHOWN_SECONDS);
    await store.put(keys.stopWait(host), JSON.stringify({ host, name: self.name, why }), lease);
    return true;
  } catch (error) {
    if (isWeftError(error)) return false;
    throw error;
  }
}

async function hide({ store, host }: MemberContext): Promise<void> {
  await store.delete(keys.stopWait(host)).catch((error: unknown) => {
    if (!isWeftError(error)) throw error;
  });
}
