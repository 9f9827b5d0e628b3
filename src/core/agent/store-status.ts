/**
 * The store as `weft status` shows it: its members, its leader, its alarms.
 *
 * Must always hold: a store that doesn't answer is a status too, never an error.
 */
import type * as api from "../wire/agent-api.ts";
import { isWeftError } from "../wire/errors.ts";
import { parseStore } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import type { Member } from "../wire/store-members.ts";
import type { MemberContext } from "./context.ts";
import { peerUrl, QUOTA_BYTES } from "./etcd-process.ts";
import { hostsOf, readable } from "./facts.ts";
import { clientUrlOf } from "./store-keeper.ts";

export async function storeStatus(context: MemberContext): Promise<api.StoreStatus> {
  const { mirror, storeKeeper, view } = context;
  const stored = mirror.get(keys.store);
  let reason: string | null = view.storeUp ? null : "its majority does not answer";
  let members: api.StoreMember[] = [];
  let alarms: string[] = [];
  if (view.storeUp) {
    try {
      await mirror.sync();
      members = await Promise.all((await storeKeeper.members.list()).map((m) => memberAnswer(context, m)));
      alarms = (await storeKeeper.members.alarms()).map(({ alarm }) => alarm);
    } catch (error) {
      if (!isWeftError(error)) throw error;
      reason = error.message;
    }
  }
  return {
    writable: reason === null && !alarms.includes("NOSPACE"),
    reason: reason ?? (alarms.includes("NOSPACE") ? "its space quota is used up" : null),
    incarnation: stored === null ? null : incarnationOf(stored),
    revision: mirror.revision,
    quotaBytes: QUOTA_BYTES,
    members,
    alarms,
  };
}

/** None where what stands there is none that repairs lead to: weftd believes it as little. */
export function incarnationOf(stored: { readonly key: string; readonly value: string }): bigint | null {
  return readable(() => parseStore(stored.key, stored.value).incarnation);
}

async function memberAnswer(
  { mirror, storeKeeper }: MemberContext,
  member: Member,
): Promise<api.StoreMember> {
  const status = member.name === "" ? null : await storeKeeper.members.statusOf(clientUrlOf(member));
  const host = hostsOf(mirror).find(({ address }) => member.peerUrls.includes(peerUrl(address)));
  return {
    id: member.id,
    name: host?.name ?? member.name,
    address: host?.address ?? new URL(clientUrlOf(member)).hostname,
    learner: member.learner,
    leader: status !== null && status.leader === member.id,
    answers: status !== null,
    version: status?.version ?? null,
    dbBytes: status?.dbBytes ?? null,
  };
}

export async function membersOrNone(
  { storeKeeper }: MemberContext,
  ask: boolean,
): Promise<readonly Member[]> {
  try {
    return ask ? await storeKeeper.members.list() : [];
  } catch (error) {
    if (isWeftError(error)) return [];
    throw error;
  }
}
