/** A cluster's authorities, its trust list and identities of hosts, in directories of the test's own. */
import { createPublicKey, randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { AuditRequest } from "../../../src/core/agent/audit.ts";
import { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import { IdentityKeeper } from "../../../src/core/agent/identity.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import type { Decision } from "../../../src/core/model/finding.ts";
import { parseHostId } from "../../../src/core/model/ids.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { type Trust, withHeld, withKey, withMember } from "../../../src/core/model/trust.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import { makeKey } from "../../../src/core/wire/x509-make.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

export type TestCluster = {
  readonly cluster: string;
  readonly files: IdentityFiles;
  readonly authority: AuthorityKeeper;
  /** Of the first host. */
  readonly identity: IdentityKeeper;
  readonly host: HostId;
  readonly address: string;
  /** The first list, signed. */
  readonly text: string;
};

export const silent = openLog("silent");

/** An audit that remembers: `refused POST /v1/enrol E-TOKEN-02`. */
export class HeardAudit {
  readonly lines: string[] = [];

  async begin({ what, who }: AuditRequest): Promise<void> {
    this.lines.push(`begin ${what} ${who.kind}`);
  }

  async end({ what }: AuditRequest, outcome: string): Promise<void> {
    this.lines.push(`end ${what} ${outcome}`);
  }

  async refused({ what }: AuditRequest, _source: string, outcome: string): Promise<void> {
    this.lines.push(`refused ${what} ${outcome}`);
  }
}

export function newHostId(): HostId {
  const id = parseHostId(randomUUID());
  if (id === null) throw new Error("a random UUID is a host's identifier");
  return id;
}

export async function emptyFiles(t: Scope): Promise<IdentityFiles> {
  const directory = await mkdtemp(join(tmpdir(), "weft-identity-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return new IdentityFiles(directory);
}

/** Two authorities and one host, as `weft init` leaves them, without a store. */
export async function makeCluster(t: Scope, certificateLifeMs?: number): Promise<TestCluster> {
  const files = await emptyFiles(t);
  const life = certificateLifeMs === undefined ? {} : { certificateLifeMs };
  const authority = await AuthorityKeeper.open({ files, ...life });
  const [cluster, host] = [randomUUID(), newHostId()];
  const made = await authority.init(cluster);
  const keyPem = makeKey();
  const publicKey = createPublicKey(keyPem.reveal());
  const sinceMs = Date.now();
  const address = "10.0.0.1";
  const kids = [made.host.kid, made.store.kid];
  const trust: Trust = {
    cluster,
    generation: 1n,
    nonce: randomUUID(),
    transport: "tls",
    authorities: [{ kid: made.host.kid, pem: made.host.pem, state: "active", sinceMs }],
    storeAuthorities: [{ kid: made.store.kid, pem: made.store.pem, state: "active", sinceMs }],
    hosts: new Map([
      [
        host,
        {
          name: "h1",
          address,
          member: true,
          keys: [{ kid: kidOf(publicKey), sinceMs }],
          certs: [],
          held: kids,
        },
      ],
    ]),
    revoked: new Map(),
    rotation: null,
  };
  const text = authority.sign(trust, "trust", renderTrust(trust, null));
  const { pem, chainPem } = await authority.issueHost(trust, { host, publicKey });
  await files.writeHostKey(keyPem);
  await files.writeHost({ certPem: pem, chainPem, keyPem });
  await files.writeTrustFirst(text);
  const identity = await IdentityKeeper.open({ files, cluster, host, log: silent });
  t.teardown(() => identity.stop());
  return { cluster, files, authority, identity, host, address, text };
}

/** The list as `change` makes it, signed and taken. */
export function relist(
  { identity, authority }: Pick<TestCluster, "identity" | "authority">,
  change: (trust: Trust) => Trust,
): void {
  const { trust, body } = identity.known;
  const after = { ...change(trust), generation: trust.generation + 1n, nonce: randomUUID() };
  const taken = identity.offer(authority.sign(trust, "trust", renderTrust(after, body)));
  if (taken.kind === "refused") throw new Error(taken.finding.message);
}

/** Hosts that the list names as members of the store, with the authorities' keys, at these addresses: h2 and so on. */
export function listMembers(made: TestCluster, addresses: readonly string[]): readonly HostId[] {
  return addresses.map((address, i) => {
    const host = newHostId();
    const kid = kidOf(createPublicKey(makeKey().reveal()));
    const about = { host, name: `h${i + 2}`, address, kid, nowMs: Date.now(), nonce: "" };
    relist(made, (trust) => {
      const named = must(withMember(must(withKey(trust, about)), { host, member: true, nonce: "" }));
      return must(withHeld(named, { host, kids: made.authority.kids(), nonce: "" }));
    });
    return host;
  });
}

function must<T>(decision: Decision<T>): T {
  if (decision.kind === "refused") throw new Error(decision.finding.message);
  return decision.value;
}
