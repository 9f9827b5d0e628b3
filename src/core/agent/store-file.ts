/**
 * Backup of the store to a file, and a new store from one.
 *
 * Must always hold:
 * - a backup is complete and checked (etcd's own SHA-256) before it has its name;
 * - a store that works is never replaced;
 * - a restored store is marked before anybody can reach it: incarnation 0 is below every watermark, so that no weftd
 *   opens anything until `repair` has rebuilt the records and raised the incarnation (protocol.md R11).
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";

import type { BackupAnswer } from "../wire/agent-api.ts";
import { syncDirectory } from "../wire/durable-file.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { bracketed, clientUrl, peerUrl } from "./etcd-process.ts";

const run = promisify(execFile);

/** Nobody knows this port: there the restored store is marked before it is served. */
const MARKING_PORT = 7404;
const HASH_BYTES = 32;

export async function backupStore(context: MemberContext, path: string): Promise<BackupAnswer> {
  const { storeKeeper, mirror, store } = context;
  await mirror.sync();
  const revision = mirror.revision;
  const [endpoint = ""] = store.call.inOrder();
  const beside = `${path}.new`;
  const hash = createHash("sha256");
  let bytes = 0;
  // etcd's digest is the last 32 bytes: they are held back from the hash.
  let tail = Buffer.alloc(0);
  try {
    const file = await open(beside, "w", 0o600);
    try {
      for await (const chunk of storeKeeper.members.snapshot(endpoint)) {
        await file.writeFile(chunk);
        bytes += chunk.length;
        const joined = Buffer.concat([tail, chunk]);
        const keep = Math.max(0, joined.length - HASH_BYTES);
        hash.update(joined.subarray(0, keep));
        tail = Buffer.from(joined.subarray(keep));
      }
      await file.sync();
    } finally {
      await file.close();
    }
    const sha256 = hash.digest("hex");
    if (sha256 !== tail.toString("hex"))
      throw new Error("the snapshot arrived damaged: its SHA-256 does not fit");
    await rename(beside, path);
    await syncDirectory(dirname(path));
    return { path, bytes: BigInt(bytes), revision, sha256 };
  } catch (error) {
    // Where nothing could be made nothing can be removed either: the first error says why.
    await rm(beside, { force: true }).catch(() => undefined);
    if (isWeftError(error)) throw error;
    throw badFile(path, `can't be written: ${reasonOf(error)}`, error);
  }
}

export async function restoreStore(context: MemberContext, path: string): Promise<void> {
  const { store, etcd, self, options, storeKeeper, log, identity } = context;
  await refuseWorking(store);
  await checkFile(path);
  await storeKeeper.stop();
  await etcd.stop();
  await etcd.setAside();
  const peer = peerUrl(self.address);
  try {
    await run(
      options.etcdctl,
      [
        ["snapshot", "restore", path],
        ["--name", self.host],
        ["--data-dir", etcd.dataDir],
        ["--initial-cluster", `${self.host}=${peer}`],
        ["--initial-advertise-peer-urls", peer],
        ["--initial-cluster-token", self.cluster],
      ].flat(),
      { env: { PATH: process.env["PATH"] ?? "", ETCDCTL_API: "3" } },
    );
  } catch (error) {
    throw badFile(path, `is not a backup of a store: ${reasonOf(error)}`, error);
  }
  const plan = { host: self.host, address: self.address, cluster: self.cluster };
  const start = { identity: plan, initialCluster: `${self.host}=${peer}`, initialState: "new" } as const;
  const marking = `https://${bracketed(self.address)}:${MARKING_PORT}`;
  await etcd.configure(start, marking);
  await etcd.ensureRunning();
  const hidden = new StoreClient({ endpoints: [marking], patienceMs: 20_000, tls: identity.tls });
  await hidden.put(keys.store, JSON.stringify({ cluster: self.cluster, incarnation: "0" }));
  await etcd.stop();
  await etcd.configure(start);
  await etcd.ensureRunning();
  store.setEndpoints([clientUrl(self.address)]);
  log.warn({ path }, "the store was restored from a backup; nothing opens until `weft store repair`");
}

async function refuseWorking(store: StoreClient): Promise<void> {
  const probe = new StoreClient({ endpoints: store.call.endpoints, patienceMs: 2000, tls: store.call.tls });
  try {
    await probe.get(keys.cluster);
  } catch (error) {
    if (isWeftError(error, "E-STORE-01")) return;
    throw error;
  }
  throw new WeftError({
    code: "E-STORE-12",
    message: "The store works; a backup is not restored over it.",
    safe: "Nothing was changed.",
    do: [{ why: "See its members", command: "weft status" }],
  });
}

async function checkFile(path: string): Promise<void> {
  try {
    const found = await stat(path);
    // Pages of 512 bytes at least, and the digest.
    if (!found.isFile() || found.size % 512 !== HASH_BYTES)
      throw new Error("its size is not that of a snapshot");
  } catch (error) {
    throw badFile(path, `can't be used: ${reasonOf(error)}`, error);
  }
}

function badFile(path: string, what: string, cause: unknown): WeftError {
  return new WeftError({
    code: "E-STORE-04",
    message: `${path} ${what}.`,
    facts: { path },
    safe: "The store that was there is kept beside the new one, in the state directory.",
    cause,
  });
}
