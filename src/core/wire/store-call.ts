/**
 * One call to the store: etcd's JSON gateway over HTTP(S), 300 ms an endpoint, then the next one at once.
 *
 * Must always hold:
 * - a call that can change something is never sent twice unless it is known that the first was not executed;
 * - while the store is forbidden nothing is sent to it, and the outcome is that of a store that is away;
 * - whatever arrives is parsed before it is trusted.
 */
import type { z } from "zod";

import { reasonOf, WeftError } from "./errors.ts";
import { post, type PostAnswer, PostFailure, type StoreTls } from "./store-http.ts";

/** Deadline of one call at one endpoint: a local quorum answers in 2 to 10 ms, a dead host never does. */
const CALL_DEADLINE_MS = 300;

/** How long rounds over all endpoints go on: an election takes 0.5 to 1.5 s. */
const PATIENCE_MS = 4000;

/** Pause between two rounds when nobody could serve. */
const ROUND_PAUSE_MS = 50;

export type StoreCallOptions = {
  readonly endpoints: readonly string[];
  readonly deadlineMs?: number;
  readonly patienceMs?: number;
  /** What is shown and believed; null (as when it isn't given): the endpoints are `http://` and nobody proves who he is. */
  readonly tls?: StoreTls | null;
  /** Why the store must not be asked now, for the error; null, or left out: it may. */
  readonly forbidden?: () => string | null;
};

/** `settled: false`: the change may have been made, or may still be made later (protocol.md R14). */
export type Attempt<T> =
  | { readonly kind: "answered"; readonly value: T; readonly endpoint: string }
  | { readonly kind: "not-executed"; readonly reason: string }
  | { readonly kind: "unknown"; readonly reason: string };

export type CallSpec<S extends z.ZodType> = {
  readonly path: string;
  readonly body: unknown;
  readonly answer: S;
  readonly deadlineMs?: number;
};

export class StoreCall {
  #endpoints: readonly string[];
  /** The one that answered last stands first. */
  #preferred = 0;
  readonly tls: StoreTls | null;
  readonly #deadlineMs: number;
  readonly #patienceMs: number;
  readonly #forbidden: () => string | null;
  readonly #closed = new AbortController();

  constructor(options: StoreCallOptions) {
    this.#endpoints = [...options.endpoints];
    this.tls = options.tls ?? null;
    this.#deadlineMs = options.deadlineMs ?? CALL_DEADLINE_MS;
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS;
    this.#forbidden = options.forbidden ?? (() => null);
  }

  get endpoints(): readonly string[] {
    return this.#endpoints;
  }

  setEndpoints(endpoints: readonly string[]): void {
    if (endpoints.length === 0 || same(endpoints, this.#endpoints)) return;
    this.#endpoints = [...endpoints];
    this.#preferred = 0;
  }

  /** Ends the calls under way and refuses further ones: nobody waits for a store at the end of a process. */
  close(): void {
    this.#closed.abort(new Error("the client was closed"));
  }

  /** Endpoints in the order in which they are tried now. */
  inOrder(): readonly string[] {
    const at = this.#preferred % Math.max(1, this.#endpoints.length);
    return [...this.#endpoints.slice(at), ...this.#endpoints.slice(0, at)];
  }

  /** The endpoint in use did not serve: the next one stands first from now on. */
  avoid(endpoint: string): void {
    const index = this.#endpoints.indexOf(endpoint);
    if (index >= 0 && index === this.#preferred) this.#preferred = (index + 1) % this.#endpoints.length;
  }

  /** A call that changes nothing (or the same thing however often it is made): any endpoint, until patience ends. */
  async read<S extends z.ZodType>(spec: CallSpec<S>): Promise<z.output<S>> {
    return this.#rounds(spec, true).then((attempt) => {
      if (attempt.kind === "answered") return attempt.value;
      throw unreachable(this.#endpoints, attempt.reason);
    });
  }

  /** A call that changes something: sent again only after an attempt that was certainly not executed. */
  async change<S extends z.ZodType>(spec: CallSpec<S>): Promise<Attempt<z.output<S>>> {
    return this.#rounds(spec, false);
  }

  async #rounds<S extends z.ZodType>(spec: CallSpec<S>, repeatable: boolean): Promise<Attempt<z.output<S>>> {
    const end = performance.now() + this.#patienceMs;
    let last: Attempt<z.output<S>> = { kind: "not-executed", reason: "no endpoint is known" };
    for (;;) {
      const why = this.#forbidden();
      if (why !== null) return last.kind === "unknown" ? last : { kind: "not-executed", reason: why };
      for (const endpoint of this.inOrder()) {
        last = await this.once(endpoint, spec);
        if (last.kind === "answered") {
          this.#preferred = Math.max(0, this.#endpoints.indexOf(endpoint));
          return last;
        }
        if (last.kind === "unknown" && !repeatable) return last;
      }
      if (performance.now() >= end || this.#closed.signal.aborted) return last;
      await pause(ROUND_PAUSE_MS);
    }
  }

  /** One request as it is, for streams: rejects as `post` of store-http.ts does. */
  async post(endpoint: string, path: string, body: unknown, signal: AbortSignal | null): Promise<PostAnswer> {
    const why = this.#forbidden();
    if (why !== null) throw new PostFailure("not-executed", new Error(why));
    return post(endpoint, path, JSON.stringify(body), { signal, tls: this.tls });
  }

  /** One attempt at one endpoint. Throws only what no other endpoint can answer better. */
  async once<S extends z.ZodType>(endpoint: string, spec: CallSpec<S>): Promise<Attempt<z.output<S>>> {
    const deadlineMs = spec.deadlineMs ?? this.#deadlineMs;
    let status: number;
    let text: string;
    try {
      const signal = AbortSignal.any([AbortSignal.timeout(deadlineMs), this.#closed.signal]);
      const answer = await this.post(endpoint, spec.path, spec.body, signal);
      status = answer.status;
      text = await textOf(answer.body);
    } catch (error) {
      const reason = `${endpoint}: ${reasonOf(error)}`;
      // A failure of the body is one after the answer began.
      return { kind: error instanceof PostFailure ? error.kind : "unknown", reason };
    }
    if (status !== 200) return refusal(endpoint, status, text);
    const parsed = spec.answer.safeParse(parseJson(text));
    if (parsed.success) return { kind: "answered", value: parsed.data, endpoint };
    throw notUnderstood(endpoint, spec.path, parsed.error);
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Words of etcd that say: this was not executed, ask another member. */
const NOT_EXECUTED = [
  "rpc not supported for learner",
  "too many requests",
  "not capable",
  "member is a learner",
  "unhealthy cluster",
];

/** Words of etcd that say: something is in doubt, a later look will tell. */
const IN_DOUBT = [
  "timed out",
  "timeout",
  "no leader",
  "leader changed",
  "stopped",
  "unavailable",
  "context canceled",
  "transport is closing",
  "connection",
  "deadline exceeded",
];

function refusal(
  endpoint: string,
  status: number,
  text: string,
): { kind: "not-executed" | "unknown"; reason: string } {
  const said = messageOf(text);
  const reason = `${endpoint}: ${said}`;
  const lower = said.toLowerCase();
  if (NOT_EXECUTED.some((words) => lower.includes(words))) return { kind: "not-executed", reason };
  if (status >= 500 || IN_DOUBT.some((words) => lower.includes(words))) {
    if (!isVerdict(lower)) return { kind: "unknown", reason };
  }
  throw new StoreRefusal(endpoint, said);
}

/** Answers of the cluster as a whole: asking another member gives the same. */
function isVerdict(words: string): boolean {
  return [
    "space exceeded",
    "compacted",
    "required revision",
    "lease not found",
    "not found",
    "already exist",
    "in sync with leader",
    "duplicate",
    "alarm",
  ].some((w) => words.includes(w));
}

/** The store took the call and said no. */
export class StoreRefusal extends Error {
  readonly endpoint: string;
  readonly said: string;

  constructor(endpoint: string, said: string) {
    super(said);
    this.name = "StoreRefusal";
    this.endpoint = endpoint;
    this.said = said;
  }

  toWeftError(): WeftError {
    if (this.said.includes("space exceeded")) {
      return new WeftError({
        code: "E-STORE-08",
        message: "The store's quota is used up (alarm NOSPACE): it takes no more changes.",
        safe: "Attached volumes go on; nothing can be attached, moved or failed over.",
        do: [{ why: "Members and alarms", command: "weft status" }],
        cause: this,
      });
    }
    return new WeftError({
      code: "E-STORE-10",
      message: `The store refused: ${this.said}.`,
      facts: { endpoint: this.endpoint },
      cause: this,
    });
  }
}

async function textOf(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

function messageOf(text: string): string {
  const json = parseJson(text);
  if (typeof json !== "object" || json === null) return text.trim().slice(0, 200);
  if ("message" in json && typeof json.message === "string") return json.message;
  if ("error" in json && typeof json.error === "string") return json.error;
  return text.trim().slice(0, 200);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function same(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((x, i) => x === b[i]);
}

function notUnderstood(endpoint: string, path: string, cause: Error): WeftError {
  return new WeftError({
    code: "E-STORE-10",
    message: `The store's answer to ${path} was not understood.`,
    facts: { endpoint, path },
    cause,
  });
}

function unreachable(endpoints: readonly string[], reason: string): WeftError {
  return new WeftError({
    code: "E-STORE-01",
    message: `No majority of the store answers (last: ${reason}).`,
    facts: { endpoints, last: reason },
    safe: "Attached volumes go on; nothing can be attached, moved or failed over until it is back.",
    do: [{ why: "Which members answer", command: "weft status" }],
  });
}
