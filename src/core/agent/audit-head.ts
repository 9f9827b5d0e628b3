/**
 * The end of this host's audit, kept in the store: who changes the files on one host is found out by the others' copy.
 *
 * Must always hold:
 * - a head that the files don't have any more is not written over before the audit says so itself;
 * - a head is signed by the host that it is of: what another host wrote there says nothing about the chain.
 */
import { z } from "zod";

import { reasonOf } from "../wire/errors.ts";
import { u64 } from "../wire/json-types.ts";
import { openOfHost } from "../wire/signed-trust.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { Audit } from "./audit.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { Log } from "./log.ts";

const EVERY_MS = 60_000;

const auditHead = z.object({ host: z.string(), seq: u64, hash: z.string(), at: z.iso.datetime() });
export type KeptHead = { readonly seq: bigint; readonly hash: string };
/** foreign: something is there that this host has not signed. */
export type FoundHead =
  | { readonly kind: "none" }
  | { readonly kind: "foreign" }
  | ({ readonly kind: "own" } & KeptHead);

export type HeadSigner = Pick<IdentityKeeper, "host" | "sign" | "trust">;

export class AuditHeads {
  readonly #audit: Pick<Audit, "head" | "verify" | "noteBroken">;
  readonly #store: Pick<StoreClient, "get" | "put">;
  readonly #signer: HeadSigner;
  readonly #log: Log;
  #timer: NodeJS.Timeout | null = null;
  #isCompared = false;

  constructor(
    audit: Pick<Audit, "head" | "verify" | "noteBroken">,
    store: Pick<StoreClient, "get" | "put">,
    signer: HeadSigner,
    log: Log,
  ) {
    this.#audit = audit;
    this.#store = store;
    this.#signer = signer;
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
    const kept = await readHead(this.#store, this.#signer);
    if (kept.kind === "foreign")
      this.#log.warn({}, "the store's note of this audit's end is none of this host: it is written anew");
    if (!this.#isCompared) await this.#compare(kept);
    const head = this.#audit.head;
    // Also where nothing was done since: another host may have written over it.
    if (head === null || (kept.kind === "own" && kept.seq === head.seq && kept.hash === head.hash)) return;
    const { host } = this.#signer;
    const body = JSON.stringify(auditHead.encode({ host, ...head, at: new Date().toISOString() }));
    await this.#store.put(keys.auditHead(host), this.#signer.sign("audit-head", body));
  }

  async #compare(kept: FoundHead): Promise<void> {
    if (kept.kind === "own") {
      const { first, hashOfAsked } = await this.#audit.verify(kept.seq);
      const isGone = first === null || kept.seq >= first;
      if (isGone && hashOfAsked !== kept.hash) {
        this.#log.error({ code: "E-AUDIT-02", seq: String(kept.seq) }, "the audit has not what it had");
        await this.#audit.noteBroken();
      }
    }
    this.#isCompared = true;
  }
}

export async function readHead(
  store: Pick<StoreClient, "get">,
  signer: Pick<HeadSigner, "host" | "trust">,
): Promise<FoundHead> {
  const { host } = signer;
  const entry = await store.get(keys.auditHead(host));
  if (entry === null) return { kind: "none" };
  const body = openOfHost(signer.trust(), host, "audit-head", entry.value);
  const head = body === null ? null : parsedHead(body);
  // One host's words about another one's audit are not even looked at.
  if (head === null || head.host !== host) return { kind: "foreign" };
  return { kind: "own", seq: head.seq, hash: head.hash };
}

function parsedHead(body: string): z.output<typeof auditHead> | null {
  try {
    return auditHead.parse(JSON.parse(body));
  } catch {
    return null;
  }
}
