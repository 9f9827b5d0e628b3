/**
 * A watch on a prefix of the store that survives the death of the member it hangs on.
 *
 *     listing ──► watching(next revision) ──member gone──► watching at the next member
 *        ▲                │
 *        └── compacted ───┘
 *            or the store went back
 *
 * Must always hold:
 * - events are given in order of revision, each once, none left out; where the store has forgotten some
 *   (compaction), a fresh listing is given instead; also where it went back, since a restored one counts anew;
 * - a member that hangs or lost its majority is left within 3 s;
 * - a stream does not outlive the certificate that it was opened with: it is made anew a second after a renewal.
 */
import { z } from "zod";

import { reasonOf } from "./errors.ts";
import { pause } from "./store-call.ts";
import { markOf, type PostAnswer, type StoreMark } from "./store-http.ts";
import { type Entry, keyValue, type Listing, type StoreClient, toBase64 } from "./store-client.ts";
import { prefixEnd } from "./store-keys.ts";

export type WatchEvent =
  | { readonly kind: "put"; readonly entry: Entry }
  | { readonly kind: "deleted"; readonly key: string; readonly modRevision: bigint };

export type WatchUpdate =
  /** Everything there is: replaces whatever the watcher knew. */
  | { readonly kind: "listing"; readonly listing: Listing; readonly wentBack: boolean }
  | { readonly kind: "events"; readonly revision: bigint; readonly events: readonly WatchEvent[] }
  /** No member serves now; the watch goes on trying. */
  | { readonly kind: "interrupted"; readonly reason: string };

/** The member is asked this often whether it lives and has a leader; twice without answer: the next member. */
const PULSE_MS = 1000;

const eventJson = z.object({ type: z.enum(["PUT", "DELETE"]).default("PUT"), kv: keyValue });
const revision = z
  .string()
  .regex(/^[0-9]{1,20}$/)
  .transform(BigInt);
const lineJson = z.object({
  result: z.object({
    header: z.object({ revision: revision.optional() }).optional(),
    created: z.boolean().default(false),
    canceled: z.boolean().default(false),
    compact_revision: revision.default(0n),
    cancel_reason: z.string().default(""),
    events: z.array(eventJson).default([]),
  }),
});
const statusJson = z.object({ leader: z.string().default("0") });

type Line = z.output<typeof lineJson>["result"];
type Ended =
  | { readonly kind: "compacted" }
  /** The member knows less than was seen: it lags, or the store is a restored one. */
  | { readonly kind: "behind" }
  /** Our certificate or the authorities are others now. */
  | { readonly kind: "renewed" }
  | { readonly kind: "broken"; readonly reason: string };

export type WatchOptions = {
  readonly store: StoreClient;
  readonly prefix: string;
  /** Events from this revision on; null: a listing first, then what follows it. */
  readonly from?: bigint | null;
  readonly signal: AbortSignal;
  readonly onUpdate: (update: WatchUpdate) => void;
};

/** Runs until the signal is aborted. */
export async function watchPrefix(options: WatchOptions): Promise<void> {
  let next: bigint | null = options.from ?? null;
  let doubtful = false;
  while (!options.signal.aborted) {
    try {
      if (next === null || doubtful) {
        const listing = await options.store.list(options.prefix);
        // A linearizable listing shows at least what was seen before it was asked for.
        const wentBack = next !== null && listing.revision + 1n < next;
        if (next === null || wentBack) {
          options.onUpdate({ kind: "listing", listing, wentBack });
          next = listing.revision + 1n;
        }
        doubtful = false;
      }
    } catch (error) {
      if (options.signal.aborted) return;
      options.onUpdate({ kind: "interrupted", reason: reasonOf(error) });
      await pause(100);
      continue;
    }
    const stream = new WatchStream(options, next);
    const ended = await stream.run();
    next = ended.kind === "compacted" ? null : stream.next;
    doubtful = ended.kind === "behind";
    if (doubtful) await pause(100);
    if (ended.kind === "broken" && !options.signal.aborted) {
      options.onUpdate({ kind: "interrupted", reason: ended.reason });
      if (!stream.created) await pause(100);
    }
  }
}

/** One stream at one member. */
class WatchStream {
  next: bigint;
  created = false;
  readonly #options: WatchOptions;
  readonly #endpoint: string;
  readonly #mark: StoreMark;
  readonly #stop = new AbortController();

  constructor(options: WatchOptions, next: bigint) {
    this.#options = options;
    this.next = next;
    this.#endpoint = options.store.call.inOrder()[0] ?? "";
    this.#mark = markOf(options.store.call.tls);
  }

  async run(): Promise<Ended> {
    const { signal } = this.#options;
    const onAbort = (): void => this.#stop.abort(new Error("the watch was ended"));
    signal.addEventListener("abort", onAbort, { once: true });
    const pulse = setInterval(() => void this.#pulse(), PULSE_MS);
    try {
      return await this.#read();
    } catch (error) {
      if (this.#isRenewed && !signal.aborted) return { kind: "renewed" };
      this.#options.store.call.avoid(this.#endpoint);
      return { kind: "broken", reason: `${this.#endpoint}: ${reasonOf(error)}` };
    } finally {
      clearInterval(pulse);
      signal.removeEventListener("abort", onAbort);
      this.#stop.abort();
    }
  }

  async #read(): Promise<Ended> {
    const { prefix } = this.#options;
    const body = {
      create_request: {
        key: toBase64(prefix),
        range_end: toBase64(prefixEnd(prefix)),
        start_revision: String(this.next),
      },
    };
    const connect = setTimeout(() => this.#stop.abort(new Error("no answer to the watch")), PULSE_MS);
    let answer: PostAnswer;
    try {
      answer = await this.#options.store.call.post(this.#endpoint, "/v3/watch", body, this.#stop.signal);
    } finally {
      clearTimeout(connect);
    }
    if (answer.status !== 200) throw new Error(`status ${answer.status}`);
    for await (const line of lines(answer.body)) {
      const ended = this.#take(lineJson.parse(JSON.parse(line)).result);
      if (ended !== null) return ended;
    }
    throw new Error("the member closed the watch");
  }

  #take(line: Line): Ended | null {
    if (line.created) {
      this.created = true;
      const at = line.header?.revision ?? null;
      if (at !== null && at + 1n < this.next) {
        this.#options.store.call.avoid(this.#endpoint);
        return { kind: "behind" };
      }
    }
    if (line.compact_revision > 0n) return { kind: "compacted" };
    if (line.canceled)
      throw new Error(line.cancel_reason === "" ? "the member ended the watch" : line.cancel_reason);
    const events = line.events.map(toEvent);
    const last = events.at(-1);
    if (last === undefined) return null;
    const at = last.kind === "put" ? last.entry.modRevision : last.modRevision;
    this.next = at + 1n;
    this.#options.onUpdate({ kind: "events", revision: at, events });
    return null;
  }

  #missed = 0;
  #isRenewed = false;

  async #pulse(): Promise<void> {
    const spec = { path: "/v3/maintenance/status", body: {}, answer: statusJson };
    let reason: string;
    try {
      if (markOf(this.#options.store.call.tls) !== this.#mark) {
        this.#isRenewed = true;
        this.#stop.abort(new Error("our certificate was renewed"));
        return;
      }
      const attempt = await this.#options.store.call.once(this.#endpoint, spec);
      if (attempt.kind === "answered" && attempt.value.leader !== "0") {
        this.#missed = 0;
        return;
      }
      reason = attempt.kind === "answered" ? "it has no leader" : attempt.reason;
    } catch (error) {
      reason = reasonOf(error);
    }
    this.#missed += 1;
    if (this.#missed >= 2) this.#stop.abort(new Error(`no sign of life: ${reason}`));
  }
}

function toEvent(event: z.output<typeof eventJson>): WatchEvent {
  if (event.type === "PUT") return { kind: "put", entry: event.kv };
  return { kind: "deleted", key: event.kv.key, modRevision: event.kv.modRevision };
}

/** Splits a stream of bytes at line ends. */
export async function* lines(stream: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    const parts = rest.split("\n");
    rest = parts.pop() ?? "";
    for (const part of parts) if (part !== "") yield part;
  }
  if (rest !== "") yield rest;
}
