/**
 * Files of the state directory that say who this host is.
 *
 * Must always hold:
 * - a file is replaced as a whole, durably: after a crash the old or the new one is there;
 * - `host.json` exists exactly when the host belongs to a cluster; `joining.json` is the intent before that, so that
 *   a crash in the middle of init or join is continued with the same identifiers.
 */
import { readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

import { writeDurably } from "../wire/durable-file.ts";
import { WeftError } from "../wire/errors.ts";
import { uuid } from "../wire/json-types.ts";

const hostFile = z.looseObject({
  cluster: uuid,
  host: uuid,
  name: z.string().min(1),
  address: z.string().min(1),
  etcd: z.array(z.string()).min(1),
  bootIdFile: z.string().optional(),
  /** For display while the store is away. */
  clusterName: z.string().optional(),
});

const intentFile = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("init"),
    cluster: uuid,
    clusterName: z.string(),
    createdAt: z.string(),
    host: uuid,
    name: z.string(),
    address: z.string(),
  }),
  z.object({
    kind: z.literal("join"),
    /** First 16 bytes of the hash of the authority's key, hex: which cluster it is. The token itself is never written. */
    authority: z.string().regex(/^[0-9a-f]{32}$/),
    host: uuid,
    name: z.string(),
    address: z.string(),
  }),
]);

/** Null: it says of no host who it is. */
export function parseHostFile(text: string): HostFile | null {
  try {
    const parsed = hostFile.safeParse(JSON.parse(text));
    return parsed.success ? parsed.data : null;
  } catch {
    return null;
  }
}

const seenFile = z.object({ at: z.iso.datetime() });

export type HostFile = z.output<typeof hostFile>;
type Intent = z.output<typeof intentFile>;
export type InitIntent = Intent & { readonly kind: "init" };
export type JoinIntent = Intent & { readonly kind: "join" };

export class HostFiles {
  readonly stateDir: string;

  constructor(stateDir: string) {
    this.stateDir = stateDir;
  }

  readHost(): Promise<HostFile | null> {
    return this.#read("host.json", hostFile);
  }

  async writeHost(host: HostFile): Promise<void> {
    await writeDurably(join(this.stateDir, "host.json"), `${JSON.stringify(host, null, 2)}\n`);
  }

  /** When this host had its store last, in ms since 1970; null: that is not known. */
  async readSeen(): Promise<number | null> {
    // What can't be read says nothing: nobody's start depends on it.
    const seen = await this.#read("seen.json", seenFile).catch(() => null);
    return seen === null ? null : Date.parse(seen.at);
  }

  async writeSeen(nowMs: number): Promise<void> {
    const text = JSON.stringify({ at: new Date(nowMs).toISOString() });
    await writeDurably(join(this.stateDir, "seen.json"), `${text}\n`);
  }

  /** The host was removed from its cluster; the file is kept aside for a person who wonders. */
  async retireHost(): Promise<void> {
    await rename(join(this.stateDir, "host.json"), join(this.stateDir, "host.json.removed"));
  }

  readIntent(): Promise<Intent | null> {
    return this.#read("joining.json", intentFile);
  }

  async writeIntent(intent: Intent): Promise<void> {
    await writeDurably(join(this.stateDir, "joining.json"), `${JSON.stringify(intent, null, 2)}\n`);
  }

  async removeIntent(): Promise<void> {
    await rm(join(this.stateDir, "joining.json"), { force: true });
  }

  async #read<T>(name: string, schema: z.ZodType<T>): Promise<T | null> {
    const path = join(this.stateDir, name);
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
      throw fileError(path, error);
    }
    try {
      return schema.parse(JSON.parse(text));
    } catch (error) {
      throw fileError(path, error);
    }
  }
}

function fileError(path: string, cause: unknown): WeftError {
  return new WeftError({
    code: "E-HOST-06",
    message: `${path} can't be read or understood.`,
    facts: { path },
    safe: "Nothing was changed.",
    cause,
  });
}
