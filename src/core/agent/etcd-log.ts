/**
 * What etcd writes of connections that it refused, as lines of the audit; and a bound for its log, which it has not itself.
 *
 *     etcd ──etcd.log──▶ look (each second) ──rejected connection──▶ audit
 *                          └─ longer than its bound: kept once beside it, and emptied (etcd appends)
 *
 * Must always hold:
 * - a line is told of once, by this agent or the one before it;
 * - who floods etcd makes the agent read a bounded amount a second, and fills no disk.
 */
import { chmod, copyFile, type FileHandle, open, truncate } from "node:fs/promises";
import { isIP } from "node:net";
import { z } from "zod";

import { networkOf } from "../model/gate.ts";
import { whoOf } from "../wire/audit-line.ts";
import { reasonOf } from "../wire/errors.ts";
import type { Audit } from "./audit.ts";
import type { Log } from "./log.ts";

const EVERY_MS = 1000;
/** Some 15,000 lines: ten times what etcd refuses in a second. */
const READ_BYTES = 4 << 20;
const LOG_BYTES_MAX = 16 << 20;

/** Of its time zone where that isn't UTC: `+0100`, which is no offset of RFC 3339. */
const OFFSET = /([+-]\d\d)(\d\d)$/;

/** As etcd 3.4 writes it (embed/config_logging.go). */
const rejected = z.object({
  ts: z
    .string()
    .overwrite((ts) => ts.replace(OFFSET, "$1:$2"))
    .pipe(z.iso.datetime({ offset: true })),
  msg: z.literal("rejected connection"),
  "remote-addr": z.string(),
  error: z.string(),
});

export type EtcdLogOptions = {
  readonly path: string;
  readonly audit: Pick<Audit, "refused" | "last">;
  readonly log: Log;
  readonly bytesMax?: number;
};

export class EtcdLog {
  readonly #options: EtcdLogOptions;
  /** Null: not looked yet. */
  #offset: number | null = null;
  #sinceMs = 0;
  #timer: NodeJS.Timeout | null = null;
  #turn: Promise<void> = Promise.resolve();

  constructor(options: EtcdLogOptions) {
    this.#options = options;
  }

  start(): void {
    this.#timer = setInterval(() => {
      this.look().catch((error: unknown) =>
        this.#options.log.warn({ reason: reasonOf(error) }, "etcd's log can't be read for the audit"),
      );
    }, EVERY_MS).unref();
  }

  async stop(): Promise<void> {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
    await this.#turn.catch(() => null);
  }

  /** What has come since the last look; the first one begins where the audit ends. */
  look(): Promise<void> {
    const mine = this.#turn.then(
      () => this.#look(),
      () => this.#look(),
    );
    this.#turn = mine;
    return mine;
  }

  async #look(): Promise<void> {
    const { path, bytesMax = LOG_BYTES_MAX } = this.#options;
    const opened = await openIfThere(path);
    // No member of the store.
    if (opened === null) return;
    await using file = opened;
    const { size } = await file.stat();
    this.#offset ??= await this.#begin(size);
    // Somebody emptied it.
    if (size < this.#offset) this.#offset = 0;
    const text = await readFrom(file, this.#offset, Math.min(READ_BYTES, size - this.#offset));
    const whole = text.lastIndexOf(0x0a) + 1;
    this.#offset += whole > 0 ? whole : text.length === READ_BYTES ? text.length : 0;
    for (const line of text.toString("utf8", 0, whole).split("\n")) this.#tell(line);
    if (size <= bytesMax) return;
    await copyFile(path, `${path}.1`);
    await chmod(`${path}.1`, 0o600);
    await truncate(path, 0);
    this.#offset = 0;
  }

  async #begin(size: number): Promise<number> {
    const [last] = await this.#options.audit.last(1, null, () => true);
    this.#sinceMs = last === undefined ? Date.now() : Date.parse(last.at);
    return Math.max(0, size - READ_BYTES);
  }

  #tell(line: string): void {
    const refusal = line.includes('"rejected connection"') ? refusalOf(line) : null;
    if (refusal === null || refusal.atMs <= this.#sinceMs) return;
    const { address, from, reason, code } = refusal;
    const who = whoOf({ kind: "nobody", address });
    const request = { id: null, who, from, what: "the store", target: { reason } };
    void this.#options.audit.refused(request, `store ${networkOf(address)}`, code);
  }
}

type StoreRefusal = {
  readonly atMs: number;
  readonly address: string;
  readonly from: string;
  readonly reason: string;
  readonly code: string;
};

/** Null: etcd refused nobody by this line. */
function refusalOf(line: string): StoreRefusal | null {
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch {
    return null;
  }
  const parsed = rejected.safeParse(json);
  if (!parsed.success) return null;
  const { ts, error: reason, "remote-addr": from } = parsed.data;
  // Who ended a connection before saying anything was not refused: etcd's own gateway does so too.
  if (reason === "EOF" || /connection reset by peer$|use of closed network connection$/.test(reason))
    return null;
  const bare = from.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
  const address = isIP(bare.split("%")[0] ?? "") === 0 ? "unknown" : bare;
  return { atMs: Date.parse(ts), address, from, reason, code: codeOf(reason) };
}

function codeOf(reason: string): string {
  if (/revoked/.test(reason)) return "E-NET-03";
  return /expired or is not yet valid/.test(reason) ? "E-NET-04" : "E-NET-01";
}

async function openIfThere(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, "r");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw error;
  }
}

async function readFrom(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  const { bytesRead } = await file.read(buffer, 0, length, position);
  return buffer.subarray(0, bytesRead);
}
