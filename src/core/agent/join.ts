/**
 * How a host enters a cluster.
 *
 *     nothing ──intent written──▶ store started / asked ──host registered──▶ host.json written ──▶ member
 *
 * Must always hold:
 * - every step may be repeated: after a crash the same request continues with the same identifiers;
 * - host.json is written last: until then this host is in no cluster.
 */
import { randomUUID } from "node:crypto";
import type { z } from "zod";

import { type ClusterAnswer, clusterAnswer, type joinRequest } from "../wire/agent-api.ts";
import { reasonOf, WeftError } from "../wire/errors.ts";
import { parseCluster } from "../wire/record.ts";
import { type Op, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { checkLocal, type JoinContext, ownName, refuseMember, takenBy } from "./entering.ts";
import { AGENT_PORT } from "./etcd-process.ts";
import type { HostFile, JoinIntent } from "./host-file.ts";

const ASK_MS = 5000;

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
