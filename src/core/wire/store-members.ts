/**
 * Members, health and upkeep of the store: what the agent that cares for an etcd needs.
 *
 * Must always hold: a member is added or removed by comparing with the list first, so that doing it twice is harmless.
 */
import { z } from "zod";

import { WeftError } from "./errors.ts";
import { lines } from "./store-watch.ts";
import { refusals, type StoreClient } from "./store-client.ts";
import { StoreRefusal } from "./store-call.ts";

export type Member = {
  readonly id: string;
  /** Empty until its etcd has started once. */
  readonly name: string;
  readonly peerUrls: readonly string[];
  readonly clientUrls: readonly string[];
  readonly learner: boolean;
};

export type MemberStatus = {
  readonly version: string;
  readonly dbBytes: bigint;
  readonly dbBytesInUse: bigint;
  readonly leader: string;
  readonly memberId: string;
  readonly revision: bigint;
};

export type PromoteOutcome = "promoted" | "not-ready";

const urls = z.array(z.string()).default([]);
const memberJson = z
  .object({
    ID: z.string(),
    name: z.string().default(""),
    peerURLs: urls,
    clientURLs: urls,
    isLearner: z.boolean().default(false),
  })
  .transform((m): Member => ({
    id: m.ID,
    name: m.name,
    peerUrls: m.peerURLs,
    clientUrls: m.clientURLs,
    learner: m.isLearner,
  }));
const membersAnswer = z.object({ members: z.array(memberJson).default([]) });
const count = z
  .string()
  .regex(/^[0-9]{1,20}$/)
  .default("0")
  .transform(BigInt);
const statusAnswer = z.object({
  header: z.object({ member_id: z.string().default("0"), revision: count }),
  version: z.string().default(""),
  dbSize: count,
  dbSizeInUse: count,
  leader: z.string().default("0"),
});
const alarmAnswer = z.object({
  alarms: z
    .array(z.object({ memberID: z.string().default("0"), alarm: z.string().default("NONE") }))
    .default([]),
});
const snapshotLine = z.object({ result: z.object({ blob: z.base64().default("") }) });

/** Member changes wait for a quorum of the new configuration. */
const MEMBER_DEADLINE_MS = 3000;
/** Defragmenting stops a member's answers while it copies its file (up to the quota's size). */
const DEFRAG_DEADLINE_MS = 60_000;

export class StoreMembers {
  readonly #store: StoreClient;

  constructor(store: StoreClient) {
    this.#store = store;
  }

  /** Linearizable in etcd 3.5 and later; in 3.4 as the asked member knows it. */
  async list(): Promise<readonly Member[]> {
    const spec = { path: "/v3/cluster/member/list", body: {}, answer: membersAnswer };
    return (await refusals(this.#store.call.read(spec))).members;
  }

  /** Adds a learner with this peer address; one that is there already is left as it is. */
  async addLearner(peerUrl: string): Promise<readonly Member[]> {
    return this.#change("add", { peerURLs: [peerUrl], isLearner: true }, (members) =>
      members.some((m) => m.peerUrls.includes(peerUrl)),
    );
  }

  /** Adds a member that counts at once. */
  async addVoter(peerUrl: string): Promise<readonly Member[]> {
    return this.#change("add", { peerURLs: [peerUrl] }, (members) =>
      members.some((m) => m.peerUrls.includes(peerUrl)),
    );
  }

  async remove(id: string): Promise<readonly Member[]> {
    return this.#change("remove", { ID: id }, (members) => !members.some((m) => m.id === id));
  }

  /** `not-ready`: the learner hasn't caught up with the leader's log yet. */
  async promote(id: string): Promise<PromoteOutcome> {
    try {
      await this.#change("promote", { ID: id }, (members) => members.some((m) => m.id === id && !m.learner));
      return "promoted";
    } catch (error) {
      if (error instanceof WeftError && /in sync with leader/.test(error.message)) return "not-ready";
      throw error;
    }
  }

  /** Made, looked up when in doubt, and made again until the list shows it. */
  async #change(
    verb: string,
    body: unknown,
    isDone: (members: readonly Member[]) => boolean,
  ): Promise<readonly Member[]> {
    let reason = "";
    for (let attempt = 0; attempt < 20; attempt += 1) {
      const before = await this.list();
      if (isDone(before)) return before;
      const path = `/v3/cluster/member/${verb}`;
      const spec = { path, body, answer: membersAnswer, deadlineMs: MEMBER_DEADLINE_MS };
      const outcome = await refusals(this.#store.call.change(spec));
      if (outcome.kind === "answered") return outcome.value.members;
      reason = outcome.reason;
    }
    throw new WeftError({
      code: "E-STORE-06",
      message: `Whether the store did "member ${verb}" is not known (last: ${reason}).`,
    });
  }

  /** Of one member, as it sees itself; null: it doesn't answer. */
  async statusOf(endpoint: string): Promise<MemberStatus | null> {
    try {
      const attempt = await this.#store.call.once(endpoint, {
        path: "/v3/maintenance/status",
        body: {},
        answer: statusAnswer,
      });
      if (attempt.kind !== "answered") return null;
      const s = attempt.value;
      return {
        version: s.version,
        dbBytes: s.dbSize,
        dbBytesInUse: s.dbSizeInUse,
        leader: s.leader,
        memberId: s.header.member_id,
        revision: s.header.revision,
      };
    } catch (error) {
      if (error instanceof StoreRefusal) return null;
      throw error;
    }
  }

  /** Alarms in force, in etcd's words. */
  async alarms(): Promise<readonly { readonly member: string; readonly alarm: string }[]> {
    const spec = { path: "/v3/maintenance/alarm", body: { action: "GET" }, answer: alarmAnswer };
    const { alarms } = await refusals(this.#store.call.read(spec));
    return alarms.map((a) => ({ member: a.memberID, alarm: a.alarm }));
  }

  async disarm(member: string, alarm: string): Promise<void> {
    const body = { action: "DEACTIVATE", memberID: member, alarm };
    await refusals(this.#store.call.read({ path: "/v3/maintenance/alarm", body, answer: alarmAnswer }));
  }

  /** Forgets the history below `revision`; one that is forgotten already is fine. */
  async compact(revision: bigint): Promise<void> {
    try {
      await this.#store.call.read({
        path: "/v3/kv/compaction",
        body: { revision: String(revision), physical: true },
        answer: z.object({}),
        deadlineMs: MEMBER_DEADLINE_MS,
      });
    } catch (error) {
      if (error instanceof StoreRefusal && error.said.includes("has been compacted")) return;
      if (error instanceof StoreRefusal) throw error.toWeftError();
      throw error;
    }
  }

  /** Gives one member's free pages back to its file system. */
  async defragment(endpoint: string): Promise<void> {
    const spec = {
      path: "/v3/maintenance/defragment",
      body: {},
      answer: z.object({}),
      deadlineMs: DEFRAG_DEADLINE_MS,
    };
    await refusals(this.#store.call.once(endpoint, spec));
  }

  /** The bytes of a snapshot of one member's data, with etcd's SHA-256 at the end. */
  async *snapshot(endpoint: string): AsyncGenerator<Buffer> {
    const stop = new AbortController();
    try {
      const answer = await this.#store.call.post(endpoint, "/v3/maintenance/snapshot", {}, stop.signal);
      if (answer.status !== 200) {
        throw new WeftError({
          code: "E-STORE-01",
          message: `${endpoint} gave no snapshot: status ${answer.status}.`,
          facts: { endpoint },
        });
      }
      for await (const line of lines(answer.body)) {
        yield Buffer.from(snapshotLine.parse(JSON.parse(line)).result.blob, "base64");
      }
    } finally {
      // An answer that nobody reads to its end would hold its connection.
      stop.abort();
    }
  }
}
