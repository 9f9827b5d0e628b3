/**
 * How a cluster is made: its authorities, this host's identity, the first trust list, a store of one member.
 *
 *     nothing ──intent──▶ authorities, key, certificates ──▶ first list in trust.json ──▶ etcd serves ──▶
 *             cluster, host and list in the store, in one transaction ──▶ host.json ──▶ member
 *
 * Must always hold:
 * - every step may be repeated: after a crash the same request continues with the same identifiers, authorities and list;
 * - the list in the store is made only, never overwritten;
 * - host.json is written last: until then this host is in no cluster.
 */
import { createPublicKey, randomUUID } from "node:crypto";
import type { z } from "zod";

import { parseHostId } from "../model/ids.ts";
import type { HostId } from "../model/ids.ts";
import type { Trust } from "../model/trust.ts";
import type { initRequest } from "../wire/agent-api.ts";
import { kidOf } from "../wire/certificate.ts";
import { isWeftError, WeftError } from "../wire/errors.ts";
import { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { renderTrust } from "../wire/trust.ts";
import { makeKey } from "../wire/x509-make.ts";
import { AuthorityKeeper } from "./authority.ts";
import { checkLocal, type JoinContext, ownName, refuseMember, registration } from "./entering.ts";
import { clientUrl, type EtcdProcess, peerUrl } from "./etcd-process.ts";
import type { HostFile, InitIntent } from "./host-file.ts";
import { IdentityKeeper } from "./identity.ts";
import { storeBundles, StoreIdentity } from "./store-identity.ts";

/** A member that is started alone elects itself within a second; a slow disk may take longer. */
const START_PATIENCE_MS = 20_000;

export async function initCluster(
  context: JoinContext,
  request: z.output<typeof initRequest>,
): Promise<HostFile> {
  const { files, identityFiles, etcd, log } = context;
  await refuseMember(files);
  await checkLocal(request.address, etcd);
  const intent = await begun(context, request);
  const host = hostOf(intent);
  const { cluster, clusterName, createdAt, address, name } = intent;
  const life = context.certificateLifeMs;
  const authority = await AuthorityKeeper.open({
    files: identityFiles,
    ...(life === null ? {} : { certificateLifeMs: life }),
  });
  if ((await identityFiles.readTrust()) === null)
    await makeIdentity(context, authority, { ...intent, transport: request.transport }, host);
  const identity = await IdentityKeeper.open({ files: identityFiles, cluster, host, log });
  const shown = new StoreIdentity({ files: identityFiles, authority, identity, address, log });
  etcd.prepareBy(() => shown.prepare());
  const plan = { host, address, cluster };
  await etcd.configure({
    identity: plan,
    initialCluster: `${host}=${peerUrl(address)}`,
    initialState: "new",
  });
  await etcd.ensureRunning();

  const endpoints = [clientUrl(address)];
  const store = new StoreClient({ endpoints, patienceMs: START_PATIENCE_MS, tls: identity.tls });
  try {
    await started(store, etcd);
    const text = await identityFiles.readTrust();
    if (text === null) throw new Error("trust.json was written and is gone");
    const { ops } = registration({ host, name, address, joinedAt: createdAt });
    await createOnce(store, [
      { key: keys.cluster, value: JSON.stringify({ id: cluster, name: clusterName, createdAt }) },
      { key: keys.store, value: JSON.stringify({ cluster, incarnation: "1" }) },
      { key: keys.trust, value: text },
      ...ops.flatMap((op) => (op.kind === "put" ? [{ key: op.key, value: op.value }] : [])),
    ]);
  } finally {
    store.call.close();
  }
  const { bootIdFile } = context;
  const boot = bootIdFile === null ? {} : { bootIdFile };
  const file: HostFile = { cluster, host, name, address, etcd: endpoints, clusterName, ...boot };
  await files.writeHost(file);
  await files.removeIntent();
  return file;
}

/** The intent of a request that is continued, or a new one; what another attempt left is gone then. */
async function begun(
  { files, identityFiles, etcd }: JoinContext,
  request: z.output<typeof initRequest>,
): Promise<InitIntent> {
  const before = await files.readIntent();
  const again = before?.kind === "init" && before.address === request.address ? before : null;
  const intent: InitIntent = {
    kind: "init",
    cluster: again?.cluster ?? randomUUID(),
    clusterName: request.clusterName ?? again?.clusterName ?? "weft",
    createdAt: again?.createdAt ?? new Date().toISOString(),
    host: again?.host ?? randomUUID(),
    name: request.name ?? again?.name ?? ownName(),
    address: request.address,
  };
  if (again === null || again.name !== intent.name) {
    await etcd.retire();
    await identityFiles.dropHost();
    await identityFiles.dropAuthorities();
  }
  await files.writeIntent(intent);
  return intent;
}

/** trust.json last: where it is, all the others are. */
async function makeIdentity(
  { identityFiles }: JoinContext,
  authority: AuthorityKeeper,
  { cluster, address, name, transport }: InitIntent & Pick<Trust, "transport">,
  host: HostId,
): Promise<void> {
  const keyPem = (await identityFiles.readHostKey()) ?? makeKey();
  await identityFiles.writeHostKey(keyPem);
  const publicKey = createPublicKey(keyPem.reveal());
  const made = await authority.init(cluster);
  const sinceMs = Date.now();
  const first: Trust = {
    cluster,
    generation: 1n,
    nonce: randomUUID(),
    transport,
    authorities: [{ kid: made.host.kid, pem: made.host.pem, state: "active", sinceMs }],
    storeAuthorities: [{ kid: made.store.kid, pem: made.store.pem, state: "active", sinceMs }],
    hosts: new Map(),
    revoked: new Map(),
    rotation: null,
  };
  const shown = await authority.issueHost(first, { host, publicKey });
  const store = await authority.issueStore(first, { host, address, publicKey });
  const trust: Trust = {
    ...first,
    hosts: new Map([
      [
        host,
        {
          name,
          address,
          member: true,
          keys: [{ kid: kidOf(publicKey), sinceMs }],
          certs: [shown, store].map(({ serial, by, notAfterMs }) => ({ serial, by, notAfterMs })),
          held: [made.host.kid, made.store.kid],
        },
      ],
    ]),
  };
  const { crl } = await authority.crl(trust);
  await identityFiles.writeEtcd({ certPem: store.pem, keyPem, ...storeBundles(trust), crl });
  await identityFiles.writeHost({ certPem: shown.pem, chainPem: shown.chainPem, keyPem });
  await identityFiles.writeTrustFirst(authority.sign(first, "trust", renderTrust(trust, null)));
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

/** All of them in one transaction; when an earlier attempt did it, nothing is changed. */
async function createOnce(
  store: StoreClient,
  values: readonly { readonly key: string; readonly value: string }[],
): Promise<void> {
  for (;;) {
    const outcome = await store.txn(
      values.map(({ key }) => ({ key, modRevision: 0n })),
      values.map(({ key, value }) => ({ kind: "put", key, value })),
    );
    if (outcome.kind === "succeeded" || (await store.get(keys.cluster)) !== null) return;
    if (outcome.kind === "compare-failed")
      throw new Error("a store that was just made has keys of another one");
  }
}

function hostOf(intent: InitIntent): HostId {
  const host = parseHostId(intent.host);
  if (host === null) throw new Error(`joining.json names no host: ${intent.host}`);
  return host;
}
