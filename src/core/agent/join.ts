/**
 * How a host becomes part of a cluster: `init` makes one, `join` enters one.
 *
 *     nothing ──intent written──▶ store started / asked ──host registered──▶ host.json written ──▶ member
 *
 * Must always hold:
 * - every step may be repeated: after a crash the same request continues with the same identifiers;
 * - host.json is written last: until then this host is in no cluster.
 */
import { randomUUID } from "node:crypto";
import { createServer } from "node:net";
import { hostname } from "node:os";
import type { z } from "zod";

import { parseName } from "../model/name.ts";
import { type ClusterAnswer, clusterAnswer, type initRequest, type joinRequest } from "../wire/agent-api.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { parseCluster } from "../wire/record.ts";
import { type Op, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { AGENT_PORT, CLIENT_PORT, clientUrl, type EtcdProcess, peerUrl } from "./etcd-process.ts";
import type { HostFile, HostFiles, JoinIntent } from "./host-file.ts";

/** A member that is started alone elects itself within a second; a slow disk may take longer. */
const START_PATIENCE_MS = 20_000;
const ASK_MS = 5000;

export type JoinContext = {
  readonly files: HostFiles;
  readonly etcd: EtcdProcess;
  readonly bootIdFile: string | null;
};

export async function initCluster(
  context: JoinContext,
  request: z.output<typeof initRequest>,
): Promise<HostFile> {
  const { files, etcd } = context;
  await refuseMember(files);
  await checkLocal(request.address, etcd);
  const before = await files.readIntent();
  const again = before?.kind === "init" && before.address === request.address ? before : null;
  const intent: JoinIntent = {
    kind: "init",
    cluster: again?.cluster ?? randomUUID(),
    clusterName: request.clusterName ?? again?.clusterName ?? "weft",
    createdAt: again?.createdAt ?? new Date().toISOString(),
    host: again?.host ?? randomUUID(),
    name: request.name ?? again?.name ?? ownName(),
    address: request.address,
  };
  if (again === null) await etcd.retire();
  await files.writeIntent(intent);
  const identity = { host: intent.host, address: intent.address, cluster: intent.cluster };
  const initialCluster = `${intent.host}=${peerUrl(intent.address)}`;
  await etcd.configure({ identity, initialCluster, initialState: "new" });
  await etcd.ensureRunning();
  const store = new StoreClient({ endpoints: [clientUrl(intent.address)], patienceMs: START_PATIENCE_MS });
  await started(store, etcd);
  const { cluster, clusterName, createdAt } = intent;
  await createOnly(store, keys.cluster, JSON.stringify({ id: cluster, name: clusterName, createdAt }));
  await createOnly(store, keys.store, JSON.stringify({ cluster, incarnation: "1" }));
  return register(context, store, intent, [clientUrl(intent.address)]);
}

export async function joinCluster(
  context: JoinContext,
  request: z.output<typeof joinRequest>,
): Promise<HostFile> {
  const { files, etcd } = context;
  await refuseMember(files);
  await checkLocal(request.address, etcd);
  const found = await askCluster(request.from);
  const before = await files.readIntent();
  const again =
    before?.kind === "join" && before.cluster === found.id && before.address === request.address
      ? before
      : null;
  const intent: JoinIntent = {
    kind: "join",
    cluster: found.id,
    clusterName: found.name,
    createdAt: found.createdAt,
    host: again?.host ?? randomUUID(),
    name: request.name ?? again?.name ?? ownName(),
    address: request.address,
  };
  if (again === null) await etcd.retire();
  await files.writeIntent(intent);
  const store = new StoreClient({ endpoints: found.endpoints });
  const cluster = await store.get(keys.cluster);
  if (cluster === null || parseCluster(cluster.key, cluster.value).id !== found.id) {
    throw notACluster(request.from, "its store is another cluster's");
  }
  return register(context, store, intent, found.endpoints);
}

/** The host's keys in one transaction, then host.json. */
async function register(
  { files, bootIdFile }: JoinContext,
  store: StoreClient,
  intent: JoinIntent,
  endpoints: readonly string[],
): Promise<HostFile> {
  const { host, name, address } = intent;
  const value = JSON.stringify({ id: host, name, address, joinedAt: new Date().toISOString() });
  const own = [keys.host(host), keys.hostName(name), keys.hostAddress(address)] as const;
  const ops: readonly Op[] = own.map((key, i) => ({
    kind: "put",
    key,
    value: i === 0 ? value : JSON.stringify({ host }),
  }));
  for (;;) {
    const outcome = await store.txn(
      own.map((key) => ({ key, modRevision: 0n })),
      ops,
    );
    if (outcome.kind === "succeeded") break;
    const there = await Promise.all(own.map((key) => store.get(key)));
    if (there[0] !== null && there.slice(1).every((entry) => entry?.value === JSON.stringify({ host })))
      break;
    if (outcome.kind === "compare-failed") throw takenBy(name, address, there[1] !== null);
  }
  const file: HostFile = {
    cluster: intent.cluster,
    host,
    name,
    address,
    etcd: [...endpoints],
    clusterName: intent.clusterName,
    ...(bootIdFile === null ? {} : { bootIdFile }),
  };
  await files.writeHost(file);
  await files.removeIntent();
  return file;
}

/** `HOST`, `HOST:7400`, `[v6]`, `[v6]:7400`, or a bare v6 address. */
export function joinUrl(from: string): string {
  const bare = from.replace(/^https?:\/\//, "").replace(/\/+$/, "");
  const isBareV6 = bare.split(":").length > 2 && !bare.startsWith("[");
  const host = isBareV6 ? `[${bare}]` : bare;
  return /:[0-9]+$/.test(host.replace(/^\[.*\]/, "x")) ? `http://${host}` : `http://${host}:${AGENT_PORT}`;
}

async function askCluster(from: string): Promise<ClusterAnswer> {
  let text: string;
  try {
    const response = await fetch(`${joinUrl(from)}/v1/cluster`, { signal: AbortSignal.timeout(ASK_MS) });
    text = await response.text();
  } catch (error) {
    throw notACluster(from, reasonOf(error), error);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw notACluster(from, "it answered something else than JSON", error);
  }
  const parsed = clusterAnswer.safeParse(json);
  if (!parsed.success) throw notACluster(from, "it is in no cluster");
  return parsed.data;
}

async function refuseMember(files: HostFiles): Promise<void> {
  const member = await files.readHost();
  if (member === null) return;
  throw new WeftError({
    code: "E-HOST-04",
    message: `This host is "${member.name}" of cluster ${member.cluster} already.`,
    facts: { cluster: member.cluster, host: member.host, name: member.name },
    safe: "Nothing was changed.",
    do: [{ why: "Look at it", command: "weft status" }],
  });
}

/** The address is one of this host's, and nobody else has the store's port there. */
async function checkLocal(address: string, etcd: EtcdProcess): Promise<void> {
  if ((await etcd.runningPid()) !== null) return;
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: address, port: CLIENT_PORT, exclusive: true }, resolve);
    });
  } catch (cause) {
    const busy = cause instanceof Error && "code" in cause && cause.code === "EADDRINUSE";
    throw new WeftError({
      code: busy ? "E-HOST-08" : "E-ARG-02",
      message: busy
        ? `Port ${CLIENT_PORT} on ${address} is used by another program.`
        : `${address} is not an address of this host.`,
      facts: { address, port: CLIENT_PORT },
      safe: "Nothing was changed.",
      do: busy ? [{ why: "Debian's own etcd service?", command: "systemctl disable --now etcd" }] : [],
      cause,
    });
  } finally {
    server.close();
  }
}

async function started(store: StoreClient, etcd: EtcdProcess): Promise<void> {
  try {
    await store.get(keys.cluster);
  } catch (error) {
    if (!isWeftError(error, "E-STORE-01")) throw error;
    const pid = await etcd.runningPid();
    throw new WeftError({
      code: "E-STORE-09",
      message: `The store's member on this host ${pid === null ? "ended at once" : "does not answer"}: see ${etcd.logPath}.`,
      facts: { log: etcd.logPath, pid },
      cause: error,
    });
  }
}

async function createOnly(store: StoreClient, key: string, value: string): Promise<void> {
  const outcome = await store.cas(key, 0n, value);
  if (outcome.kind === "won" || outcome.current !== null) return;
  throw new Error(`the store lost ${key} while a cluster was made`);
}

function ownName(): string {
  const name = (hostname().split(".")[0] ?? "").toLowerCase();
  const decision = parseName("host", name);
  if (decision.kind === "ok") return decision.value;
  throw WeftError.fromFinding(decision.finding);
}

function takenBy(name: string, address: string, isName: boolean): WeftError {
  return new WeftError({
    code: "E-HOST-03",
    message: isName
      ? `A host named "${name}" is a member already.`
      : `A host with the address ${address} is a member already.`,
    facts: { name, address },
    safe: "Nothing was changed in the cluster.",
    do: [{ why: "With another name", command: "weft join HOST --name NAME" }],
  });
}

function notACluster(from: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-HOST-09",
    message: `${from} can't be joined: ${reason}.`,
    facts: { from },
    safe: "Nothing was changed.",
    do: [{ why: "Is it a member, and does its agent run?", command: "weft status" }],
    ...(cause === undefined ? {} : { cause }),
  });
}
