/**
 * The files of the audit: `audit.log`, and `audit-FIRSTSEQ.log` for those that are full.
 *
 * Must always hold:
 * - lines are only ever added; a line that was promised stays as it is, through any crash;
 * - the end of a file that a crash left within a line is cut there, and the next line says so; a file that is broken
 *   anywhere else is set aside untouched, and the next line says so;
 * - one call at a time: the caller's queue sees to it.
 */
import { createReadStream } from "node:fs";
import { chmod, type FileHandle, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";

import {
  type AuditEntry,
  type AuditLine,
  hashOfLine,
  NO_HASH,
  parseAuditLine,
  renderAuditLine,
} from "../wire/audit-line.ts";
import { syncDirectory } from "../wire/durable-file.ts";

const CURRENT = "audit.log";
const FULL = /^audit-[0-9]{20}(?:-[0-9]+)?\.log$/;

export type AuditFileOptions = {
  readonly directory: string;
  /** A file that is longer after a write is the last one's; the next line begins another. */
  readonly fileBytesMax: number;
  /** Full ones that are kept; the oldest go. */
  readonly filesKept: number;
};

/** The last line that was written: its number and the hash that the next one has to have. */
export type AuditHead = { readonly seq: bigint; readonly hash: string };

/** What was found when the files were opened, as entries that are due. */
export type Damage = { readonly kind: "torn"; readonly bytes: number } | { readonly kind: "broken" };

export type Break = { readonly file: string; readonly line: number; readonly what: string };
export type Verdict = {
  readonly lines: number;
  readonly first: bigint | null;
  readonly head: AuditHead | null;
  readonly broken: Break | null;
  /** The hash of the line that was asked for: null when it isn't there (any more). */
  readonly hashOfAsked: string | null;
};

type Open = { readonly file: FileHandle; size: number; firstSeq: bigint | null };

export class AuditFile {
  readonly #options: AuditFileOptions;
  #open: Open | null = null;
  #head: AuditHead = { seq: 0n, hash: NO_HASH };

  constructor(options: AuditFileOptions) {
    this.#options = options;
  }

  /** Null: nothing was written ever, or the files were not opened yet. */
  get head(): AuditHead | null {
    return this.#head.seq === 0n ? null : this.#head;
  }

  /** Idempotent; after a failed write it finds out how much of it is there. */
  async ready(): Promise<Damage | null> {
    if (this.#open !== null) return null;
    const { directory } = this.#options;
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await chmod(directory, 0o700);
    const { damage, head } = await this.#recover();
    const file = await open(this.#path(CURRENT), "a", 0o600);
    try {
      await file.chmod(0o600);
      await syncDirectory(directory);
      const { size } = await file.stat();
      this.#head = head;
      this.#open = { file, size, firstSeq: size === 0 ? null : await firstSeqOf(this.#path(CURRENT)) };
    } catch (error) {
      await file.close();
      throw error;
    }
    return damage;
  }

  /** All of them or, when it throws, possibly some. `durable`: on stable media when the promise is kept. */
  async append(entries: readonly AuditEntry[], durable: boolean): Promise<readonly AuditLine[]> {
    await this.ready();
    if (this.#open !== null && this.#open.size >= this.#options.fileBytesMax) await this.#rotate(this.#open);
    await this.ready();
    const into = this.#open;
    if (into === null) throw new Error("the audit is not open");
    let { seq, hash } = this.#head;
    const lines: AuditLine[] = [];
    let text = "";
    for (const entry of entries) {
      seq += 1n;
      const line: AuditLine = { ...entry, seq, prev: hash };
      const rendered = renderAuditLine(line);
      hash = hashOfLine(rendered);
      text += `${rendered}\n`;
      lines.push(line);
    }
    try {
      await into.file.writeFile(text);
      if (durable) await into.file.datasync();
    } catch (error) {
      await this.close();
      throw error;
    }
    into.size += Buffer.byteLength(text);
    into.firstSeq ??= lines[0]?.seq ?? null;
    this.#head = { seq, hash };
    return lines;
  }

  async sync(): Promise<void> {
    try {
      await this.#open?.file.datasync();
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  /** What is there now, to be read while more is written. */
  async snapshot(): Promise<AuditSnapshot> {
    const opened: { readonly name: string; readonly file: FileHandle }[] = [];
    try {
      for (const name of await this.#names()) opened.push({ name, file: await open(this.#path(name), "r") });
      const sizes = await Promise.all(opened.map(async ({ file }) => (await file.stat()).size));
      return new AuditSnapshot(opened.map((one, i) => ({ ...one, size: sizes[i] ?? 0 })));
    } catch (error) {
      await Promise.all(opened.map(({ file }) => file.close()));
      throw error;
    }
  }

  async close(): Promise<void> {
    const was = this.#open;
    this.#open = null;
    await was?.file.close().catch(() => null);
  }

  #path(name: string): string {
    return join(this.#options.directory, name);
  }

  /** Oldest first; the names sort by the first line's number. */
  async #names(): Promise<readonly string[]> {
    const all: readonly string[] = await readdir(this.#options.directory).catch(
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") return [];
        throw error;
      },
    );
    const full = all.filter((name) => FULL.test(name)).toSorted();
    return all.includes(CURRENT) ? [...full, CURRENT] : full;
  }

  async #rotate({ file, firstSeq }: Open): Promise<void> {
    await this.sync();
    await file.close();
    this.#open = null;
    await this.#setAside(firstSeq ?? this.#head.seq);
    const full = (await this.#names()).filter((name) => FULL.test(name));
    for (const name of full.slice(0, Math.max(0, full.length - this.#options.filesKept)))
      await rm(this.#path(name));
    await syncDirectory(this.#options.directory);
  }

  async #setAside(firstSeq: bigint): Promise<void> {
    const stem = `audit-${String(firstSeq).padStart(20, "0")}`;
    const taken = await this.#names();
    let name = `${stem}.log`;
    for (let n = 1; taken.includes(name); n += 1) name = `${stem}-${n}.log`;
    await rename(this.#path(CURRENT), this.#path(name));
    await syncDirectory(this.#options.directory);
  }

  /** Finds the last line, cuts what a crash left behind it, sets a broken file aside. */
  async #recover(): Promise<{ readonly damage: Damage | null; readonly head: AuditHead }> {
    const names = await this.#names();
    let head: AuditHead = { seq: 0n, hash: NO_HASH };
    const before = names.filter((name) => name !== CURRENT).at(-1);
    if (before !== undefined) {
      for await (const { text, line } of linesOf(fileOf(this.#path(before))))
        if (line !== null) head = { seq: line.seq, hash: hashOfLine(text) };
    }
    if (!names.includes(CURRENT)) return { damage: null, head };

    let whole = 0;
    let last: AuditHead | null = before === undefined ? null : head;
    let firstBad: number | null = null;
    let goodAfterBad = false;
    let firstSeq: bigint | null = null;
    let length = 0;
    let newest = head;
    for await (const { text, line, ended } of linesOf(fileOf(this.#path(CURRENT)))) {
      length += Buffer.byteLength(text) + (ended ? 1 : 0);
      const good = line !== null && ended;
      if (good) {
        firstSeq ??= line.seq;
        newest = { seq: line.seq, hash: hashOfLine(text) };
        if (firstBad !== null) goodAfterBad = true;
      }
      if (firstBad === null && good && breakBefore(last, line) === null) {
        last = newest;
        whole = length;
      } else {
        firstBad ??= length;
        // A line that is whole and does not follow was not left by a crash.
        if (good) goodAfterBad = true;
      }
    }
    if (goodAfterBad) {
      await this.#setAside(firstSeq ?? newest.seq);
      return { damage: { kind: "broken" }, head: newest };
    }
    const file = await open(this.#path(CURRENT), "r+");
    try {
      const bytes = (await file.stat()).size - whole;
      if (bytes > 0) {
        await file.truncate(whole);
        await file.sync();
      }
      return { damage: bytes > 0 ? { kind: "torn", bytes } : null, head: last ?? head };
    } finally {
      await file.close();
    }
  }
}

/** The lines of a moment, whatever is written or set aside afterwards. To be closed. */
export class AuditSnapshot implements AsyncDisposable {
  /** Oldest first. */
  readonly #files: readonly { readonly name: string; readonly file: FileHandle; readonly size: number }[];

  constructor(files: readonly { readonly name: string; readonly file: FileHandle; readonly size: number }[]) {
    this.#files = files;
  }

  /** The last `limit` lines that match, in order. Stops at the file that begins before `sinceMs`. */
  async last(
    limit: number,
    sinceMs: number | null,
    matches: (line: AuditLine) => boolean,
  ): Promise<readonly AuditLine[]> {
    let found: AuditLine[] = [];
    for (const { file, size } of this.#files.toReversed()) {
      const here: AuditLine[] = [];
      let firstAt: string | null = null;
      for await (const { line } of linesOf(streamOf(file, size))) {
        if (line === null) continue;
        firstAt ??= line.at;
        if (!matches(line)) continue;
        here.push(line);
        if (here.length >= 2 * limit) here.splice(0, limit);
      }
      found = [...here, ...found].slice(-limit);
      if (found.length === limit) break;
      if (sinceMs !== null && firstAt !== null && Date.parse(firstAt) < sinceMs) break;
    }
    return found;
  }

  /** From the oldest file that is kept to the last line. */
  async verify(askedSeq: bigint | null): Promise<Verdict> {
    let lines = 0;
    let first: bigint | null = null;
    let head: AuditHead | null = null;
    let hashOfAsked: string | null = null;
    for (const { name, file, size } of this.#files) {
      let number = 0;
      for await (const { text, line } of linesOf(streamOf(file, size))) {
        number += 1;
        const what = line === null ? "it is no line of the audit" : breakBefore(head, line);
        if (line === null || what !== null) {
          const broken = { file: name, line: number, what: what ?? "" };
          return { lines, first, head, broken, hashOfAsked };
        }
        lines += 1;
        first ??= line.seq;
        head = { seq: line.seq, hash: hashOfLine(text) };
        if (line.seq === askedSeq) hashOfAsked = head.hash;
      }
    }
    return { lines, first, head, broken: null, hashOfAsked };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#files.map(({ file }) => file.close()));
  }
}

function breakBefore(head: AuditHead | null, { seq, prev }: AuditLine): string | null {
  if (head === null) return null;
  if (seq !== head.seq + 1n) return `it has the number ${seq}, the line before it ${head.seq}`;
  return prev === head.hash ? null : "the line before it is not the one that was there when it was written";
}

type Found = { readonly text: string; readonly line: AuditLine | null; readonly ended: boolean };

/** Every line; `ended` is false for what stands behind the last line's end. */
async function* linesOf(chunks: AsyncIterable<string>): AsyncGenerator<Found> {
  let rest = "";
  for await (const chunk of chunks) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop() ?? "";
    for (const text of parts) yield { text, line: parseAuditLine(text), ended: true };
  }
  if (rest !== "") yield { text: rest, line: parseAuditLine(rest), ended: false };
}

async function* streamOf(file: FileHandle, size: number): AsyncGenerator<string> {
  if (size === 0) return;
  yield* file.createReadStream({
    start: 0,
    end: size - 1,
    encoding: "utf8",
    autoClose: false,
  }) as AsyncIterable<string>;
}

async function firstSeqOf(path: string): Promise<bigint | null> {
  for await (const { line } of linesOf(fileOf(path))) return line?.seq ?? null;
  return null;
}

function fileOf(path: string): AsyncIterable<string> {
  return createReadStream(path, { encoding: "utf8" }) as AsyncIterable<string>;
}
