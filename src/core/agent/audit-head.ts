/**
 * The end of this host's audit, kept in the store: who changes the files on one host is found out by the others' copy.
 *
 * Must always hold: a head that the files don't have any more is not written over before the audit says so itself.
 */
import { z } from "zod";

import { reasonOf } from "../wire/errors.ts";
import { u64 } from "../wire/json-types.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { Audit } from "./audit.ts";
import type { Log } from "./log.ts";

const EVERY_MS = 60_000;

export const auditHead = z.object({ seq: u64, hash: z.string(), at: z.iso.datetime() });
export type KeptHead = z.output<typeof auditHead>;

export class AuditHeads {
  readonly #audit: Pick<Audit, "head" | "verify" | "noteBroken">;
  readonly #store: Pick<StoreClient, "get" | "put">;
  readonly #host: string;
  readonly #log: Log;
  #timer: NodeJS.Timeout | null = null;
  #keptSeq: bigint | null = null;

  constructor(
    audit: Pick<Audit, "head" | "verify" | "noteBroken">,
    store: Pick<StoreClient, "get" | "put">,
    host: string,
    log: Log,
  ) {
    this.#audit = audit;
    this.#store = store;
    this.#host = host;
    this.#log = log;
  }

  start(): void {
    this.#timer = setInterval(() => {
      this.keep().catch((error: unknown) => {
        // The store is away: the next minute comes.
        this.#log.debug({ reason: reasonOf(error) }, "the end of the audit is not kept in the store yet");
      });
    }, EVERY_MS).unref();
  }

  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  /** The first time it looks whether the files still have what was kept. */
  async keep(): Promise<void> {
    if (this.#keptSeq === null) await this.#compare();
    const head = this.#audit.head;
    if (head === null || head.seq === this.#keptSeq) return;
    const value = auditHead.encode({ ...head, at: new Date().toISOString() });
    await this.#store.put(keys.auditHead(this.#host), JSON.stringify(value));
    this.#keptSeq = head.seq;
  }

  async #compare(): Promise<void> {
    const kept = await readHead(this.#store, this.#host);
    if (kept !== null) {
      const { first, hashOfAsked } = await this.#audit.verify(kept.seq);
      const isGone = first === null || kept.seq >= first;
      if (isGone && hashOfAsked !== kept.hash) {
        this.#log.error({ code: "E-AUDIT-02", seq: String(kept.seq) }, "the audit has not what it had");
        await this.#audit.noteBroken();
      }
    }
    this.#keptSeq = 0n;
  }
}

/** Null: none was kept, or nobody can read it. */
export async function readHead(store: Pick<StoreClient, "get">, host: string): Promise<KeptHead | null> {
  const entry = await store.get(keys.auditHead(host));
  if (entry === null) return null;
  try {
    return auditHead.parse(JSON.parse(entry.value));
  } catch {
    return null;
  }
}
