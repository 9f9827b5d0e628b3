/**
 * Keys of the store: linearizable reads, transactions, leases.
 *
 * Must always hold:
 * - every read here is linearizable;
 * - a transaction whose outcome isn't known says so (`unknown`), it is never reported as failed (protocol.md R14).
 */
import { z } from "zod";

import { WeftError } from "./errors.ts";
import type { CallSpec } from "./store-call.ts";
import { StoreCall, StoreRefusal, type StoreCallOptions } from "./store-call.ts";
import { prefixEnd, ROOT } from "./store-keys.ts";

/** A key with its value; `modRevision` is what a compare-and-swap compares. */
export type Entry = {
  readonly key: string;
  readonly value: string;
  readonly createRevision: bigint;
  readonly modRevision: bigint;
  readonly lease: bigint;
};

export type Listing = { readonly revision: bigint; readonly entries: readonly Entry[] };

export type Compare =
  /** The key's last change is this one; 0: the key doesn't exist. */
  { readonly key: string; readonly modRevision: bigint };

export type Op =
  | { readonly kind: "put"; readonly key: string; readonly value: string; readonly lease?: bigint }
  | { readonly kind: "delete"; readonly key: string }
  | { readonly kind: "delete-prefix"; readonly prefix: string };

export type TxnOutcome =
  | { readonly kind: "succeeded"; readonly revision: bigint }
  | { readonly kind: "compare-failed"; readonly revision: bigint }
  | { readonly kind: "unknown"; readonly reason: string };

export type CasOutcome =
  | { readonly kind: "won"; readonly revision: bigint }
  | { readonly kind: "lost"; readonly current: Entry | null };

const int64 = z.codec(z.string().regex(/^-?[0-9]{1,20}$/), z.bigint(), {
  decode: (s) => BigInt(s),
  encode: String,
});
const zero = int64.default(0n);
const base64 = z.codec(z.base64(), z.string(), { decode: fromBase64, encode: toBase64 });
const header = z.object({ revision: zero });
export const keyValue = z
  .object({ key: base64, value: base64.default(""), create_revision: zero, mod_revision: zero, lease: zero })
  .transform((kv): Entry => ({
    key: kv.key,
    value: kv.value,
    createRevision: kv.create_revision,
    modRevision: kv.mod_revision,
    lease: kv.lease,
  }));
const rangeAnswer = z.object({
  header,
  kvs: z.array(keyValue).default([]),
  more: z.boolean().default(false),
});
const txnAnswer = z.object({ header, succeeded: z.boolean().default(false) });
const leaseAnswer = z.object({ ID: int64, TTL: int64 });
const keepAliveAnswer = z.object({ result: z.object({ ID: int64, TTL: zero }) });

export class StoreClient {
  readonly call: StoreCall;

  constructor(options: StoreCallOptions) {
    this.call = new StoreCall(options);
  }

  setEndpoints(endpoints: readonly string[]): void {
    this.call.setEndpoints(endpoints);
  }

  async get(key: string): Promise<Entry | null> {
    const { entries } = await this.#range({ key: toBase64(key) });
    return entries[0] ?? null;
  }

  /** Up to where it has come: linearizable, and without reading what is in it. */
  async revision(): Promise<bigint> {
    // A key of an empty name after the root: nobody has it.
    return (await this.#range({ key: toBase64(ROOT) })).revision;
  }

  /** All keys under a prefix, of one revision. */
  async list(prefix: string): Promise<Listing> {
    return this.#range({ key: toBase64(prefix), range_end: toBase64(prefixEnd(prefix)) });
  }

  /** All compares hold: all operations are done in one revision; else nothing is. */
  async txn(compares: readonly Compare[], ops: readonly Op[]): Promise<TxnOutcome> {
    const body = { compare: compares.map(compareJson), success: ops.map(opJson) };
    const attempt = await refusals(this.call.change({ path: "/v3/kv/txn", body, answer: txnAnswer }));
    if (attempt.kind !== "answered") return attempt.kind === "unknown" ? attempt : this.#away(attempt.reason);
    const { succeeded, header: at } = attempt.value;
    return { kind: succeeded ? "succeeded" : "compare-failed", revision: at.revision };
  }

  /**
   * Compare-and-swap of one key, settled: an unknown outcome is looked up until it is known.
   *
   * Repeating the same swap is safe: it compares the same revision, so at most one of them is applied; and if
   * one "fails" because an earlier one of ours was applied, the value tells. Values therefore carry something
   * of their own (a nonce, a fresh id) wherever two writers could write the same bytes.
   */
  async cas(key: string, modRevision: bigint, value: string, more: readonly Op[] = []): Promise<CasOutcome> {
    for (;;) {
      const outcome = await this.txn([{ key, modRevision }], [{ kind: "put", key, value }, ...more]);
      if (outcome.kind === "succeeded") return { kind: "won", revision: outcome.revision };
      const current = await this.get(key);
      if (current !== null && current.modRevision > modRevision && current.value === value) {
        return { kind: "won", revision: current.modRevision };
      }
      if (outcome.kind === "compare-failed") return { kind: "lost", current };
      if ((current?.modRevision ?? 0n) !== modRevision) return { kind: "lost", current };
    }
  }

  /** An unconditional write: of a value that only this host writes. Repeated until it is known to be done. */
  async put(key: string, value: string, lease?: bigint): Promise<void> {
    const op: Op = lease === undefined ? { kind: "put", key, value } : { kind: "put", key, value, lease };
    await this.#settle([op]);
  }

  async delete(key: string): Promise<void> {
    await this.#settle([{ kind: "delete", key }]);
  }

  async #settle(ops: readonly Op[]): Promise<void> {
    const body = { success: ops.map(opJson) };
    await refusals(this.call.read({ path: "/v3/kv/txn", body, answer: txnAnswer }));
  }

  /** A lease whose keys go away `ttlSeconds` after the last keep-alive. */
  async grantLease(ttlSeconds: number): Promise<bigint> {
    const spec = { path: "/v3/lease/grant", body: { TTL: String(ttlSeconds) }, answer: leaseAnswer };
    return (await refusals(this.call.read(spec))).ID;
  }

  /** False: the lease is gone, its keys too. */
  async keepLease(lease: bigint): Promise<boolean> {
    const spec = { path: "/v3/lease/keepalive", body: { ID: String(lease) }, answer: keepAliveAnswer };
    return (await refusals(this.call.read(spec))).result.TTL > 0n;
  }

  async revokeLease(lease: bigint): Promise<void> {
    try {
      await this.call.read({ path: "/v3/lease/revoke", body: { ID: String(lease) }, answer: z.object({}) });
    } catch (error) {
      if (error instanceof StoreRefusal && error.said.includes("lease not found")) return;
      throw error;
    }
  }

  async #range(body: Record<string, unknown>): Promise<Listing> {
    const spec: CallSpec<typeof rangeAnswer> = { path: "/v3/kv/range", body, answer: rangeAnswer };
    const answer = await refusals(this.call.read(spec));
    return { revision: answer.header.revision, entries: answer.kvs };
  }

  #away(reason: string): never {
    throw new WeftError({
      code: "E-STORE-01",
      message: `No majority of the store answers (last: ${reason}).`,
      facts: { endpoints: this.call.endpoints, last: reason },
      safe: "Nothing was changed.",
      do: [{ why: "Which members answer", command: "weft status" }],
    });
  }
}

/** A refusal of etcd leaves this room as a coded error. */
export async function refusals<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof StoreRefusal) throw error.toWeftError();
    throw error;
  }
}

export function toBase64(text: string): string {
  return Buffer.from(text).toString("base64");
}

function fromBase64(text: string): string {
  return Buffer.from(text, "base64").toString();
}

function compareJson(compare: Compare): unknown {
  return {
    key: toBase64(compare.key),
    target: "MOD",
    result: "EQUAL",
    mod_revision: String(compare.modRevision),
  };
}

function opJson(op: Op): unknown {
  switch (op.kind) {
    case "put": {
      const lease = op.lease === undefined ? {} : { lease: String(op.lease) };
      return { request_put: { key: toBase64(op.key), value: toBase64(op.value), ...lease } };
    }
    case "delete":
      return { request_delete_range: { key: toBase64(op.key) } };
    case "delete-prefix":
      return {
        request_delete_range: { key: toBase64(op.prefix), range_end: toBase64(prefixEnd(op.prefix)) },
      };
  }
}
