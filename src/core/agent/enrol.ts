/**
 * A host is let in: the member's side of `weft join`.
 *
 *     asked ── a member? ── too many wrong tries? ── token right? ──▶ one transaction ──▶ certificate and trust list
 *
 * Must always hold:
 * - the token's use, the host's keys and its place in the trust list are one transaction: a host is in the cluster with
 *   all of them or not at all, and a token is used once, whoever asks at whichever member at the same time;
 * - what is listed is the key that the connection has proven, never one that a body names;
 * - the same host with the same key may ask again, after a crash of either end, and is let in as the same one.
 */
import type { X509Certificate } from "node:crypto";

import type { Decision } from "../model/finding.ts";
import { type HostId, parseHostId } from "../model/ids.ts";
import { WRONG_TOKENS } from "../model/limits.ts";
import { Tries } from "../model/tries.ts";
import { mayIssue, type Trust, withCert, withKey } from "../model/trust.ts";
import { isP256, kidOf } from "../wire/certificate.ts";
import type { EnrolAnswer, EnrolRequest } from "../wire/door-api.ts";
import { decided, WeftError } from "../wire/errors.ts";
import { parseHost } from "../wire/record.ts";
import type { Compare, Entry, Op, StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import type { AuthorityKeeper } from "./authority.ts";
import type { DoorCall } from "./door.ts";
import { registration, takenBy } from "./entering.ts";
import type { IdentityKeeper } from "./identity.ts";
import { judgeToken, readToken, refusedToken, type StoredToken } from "./join-tokens.ts";
import { changeTrust } from "./trust-change.ts";

export type EnrolContext = {
  readonly store: StoreClient;
  readonly authority: AuthorityKeeper;
  readonly identity: IdentityKeeper;
  /** What a host that was let in learns of the cluster; `host` is who answers. */
  readonly cluster: () => EnrolAnswer["cluster"];
  /** Addresses of the store's members, for a host that asked another one. */
  readonly members: () => readonly string[];
};

type Newcomer = EnrolRequest["host"] & { readonly host: HostId; readonly kid: string };
/** The host's own keys in the transaction. `isAgain`: they are there, and say the same. */
type Places = {
  readonly isAgain: boolean;
  readonly compares: readonly Compare[];
  readonly ops: readonly Op[];
};

export class Enrolment {
  readonly #context: EnrolContext;
  readonly #tries = new Tries(WRONG_TOKENS);

  constructor(context: EnrolContext) {
    this.#context = context;
  }

  async enrol({ caller, body, begin }: DoorCall<"POST /v1/enrol">): Promise<EnrolAnswer> {
    const { authority, identity } = this.#context;
    const publicKey = provenKey(caller.certificate, body.host.id);
    if (!authority.holds(identity.trust())) throw notMember(this.#context.members());
    const newcomer: Newcomer = { ...body.host, host: hostOf(body.host.id), kid: kidOf(publicKey) };
    const token = await this.#believed(caller.address, body.token, newcomer);
    const { name } = token.record;
    if (name !== null && name !== newcomer.name) {
      throw new WeftError({
        code: "E-TOKEN-02",
        message: `This token is for a host named "${name}", and this one is named "${newcomer.name}".`,
        facts: { wanted: name, name: newcomer.name },
        safe: "Nothing was changed.",
        do: [{ why: "Join by that name", command: `weft join HOST --name ${name}` }],
      });
    }
    await begin({
      token: token.record.id,
      host: newcomer.host,
      name: newcomer.name,
      address: body.host.address,
    });
    const made = await this.#letIn(newcomer, token, publicKey);
    return { ...made, cluster: { ...this.#context.cluster(), host: newcomer.host } };
  }

  /** The token, when it is right. A wrong one counts from before it is looked up: many at once are not more than some. */
  async #believed(
    address: string,
    proof: EnrolRequest["token"],
    { host, kid, name, address: own }: Newcomer,
  ): Promise<StoredToken> {
    const { store, identity } = this.#context;
    const begun = performance.now();
    if (!this.#tries.begin(address, begun)) throw tooMany();
    const { trust } = identity.known;
    const stored = await readToken(store, trust, proof.id).catch((error: unknown) => {
      // The store did not answer: nothing was tried.
      this.#tries.right(address, begun);
      throw error;
    });
    const { cluster } = trust;
    const claim = { cluster, kid, host, name, address: own };
    const believed = decided(judgeToken(stored, proof, claim, Date.now()));
    this.#tries.right(address, begun);
    return believed;
  }

  async #letIn(
    newcomer: Newcomer,
    token: StoredToken,
    publicKey: X509Certificate["publicKey"],
  ): Promise<Pick<EnrolAnswer, "cert" | "trust">> {
    const { store, authority, identity } = this.#context;
    const { host, name, address, kid } = newcomer;
    for (;;) {
      const before = await this.#places(newcomer);
      const issued = await authority.issueHost(identity.trust(), { host, publicKey });
      const cert = { serial: issued.serial, by: issued.by, notAfterMs: issued.notAfterMs };
      const nowMs = Date.now();
      const listed = (trust: Trust): Decision<Trust> => {
        const taken = takenIn(trust, newcomer, before.isAgain);
        if (taken !== null) throw takenBy(name, address, taken === "name");
        // A token lets its own host in again only while that is in: one that was taken out has used it up.
        if (token.used !== null && !isListed(trust, newcomer)) return refusedToken();
        const allowed = mayIssue(trust, { host, pending: 0, nowMs });
        if (allowed.kind === "refused") return allowed;
        const keyed = withKey(trust, { host, name, address, kid, nowMs, nonce: "" });
        return keyed.kind === "ok" ? withCert(keyed.value, { host, cert, nowMs, nonce: "" }) : keyed;
      };
      const use = useOf(token, newcomer, nowMs);
      const change = await changeTrust({ store, authority, identity }, listed, {
        compares: [...before.compares, ...use.compares],
        ops: [...before.ops, ...use.ops],
      });
      if (change.kind === "changed") return { cert: issued.pem, trust: change.text };
      // Somebody was faster, or we were, in a transaction whose outcome was in doubt: what is there now tells.
      const now = await readToken(store, identity.trust(), token.record.id);
      const isOurs = now !== null && now.used?.host === host && now.used.kid === kid;
      if (now === null || (now.used !== null && !isOurs)) throw WeftError.fromFinding(refusedToken().finding);
      token = now;
    }
  }

  /** What the transaction needs of the host's own keys; E-HOST-03 when they are another host's. */
  async #places({ host, name, address }: Newcomer): Promise<Places> {
    const { store } = this.#context;
    const own = [keys.host(host), keys.hostName(name), keys.hostAddress(address)] as const;
    const [itself, named, addressed] = await Promise.all(own.map((key) => store.get(key)));
    const isOwn = (entry: Entry | null | undefined): boolean => entry?.value === JSON.stringify({ host });
    if (named && !isOwn(named)) throw takenBy(name, address, true);
    if (addressed && !isOwn(addressed)) throw takenBy(name, address, false);
    // It was let in before, as this very host, and did not hear of it.
    if (itself) {
      const known = parseHost(itself.key, itself.value);
      if (!named || !addressed || known.name !== name || known.address !== address)
        throw takenBy(name, address, known.name !== name);
      return { isAgain: true, compares: [{ key: itself.key, modRevision: itself.modRevision }], ops: [] };
    }
    return { isAgain: false, ...registration({ host, name, address, joinedAt: new Date().toISOString() }) };
  }
}

/**
 * Who has a token may become a host, and none that is there already: a host in the list is this one only if its key is
 * this one's. Names and addresses count too, whatever somebody took out of the store. Null: all of it is free, or its own.
 */
function takenIn(trust: Trust, newcomer: Newcomer, isAgain: boolean): "name" | "address" | null {
  const { host, name, address } = newcomer;
  const known = trust.hosts.get(host);
  if (known !== undefined || isAgain) {
    const isSame = known !== undefined && isAgain && isListed(trust, newcomer);
    if (!isSame || known.name !== name) return "name";
    return known.address === address ? null : "address";
  }
  const others = Array.from(trust.hosts.values());
  if (others.some((other) => other.name === name)) return "name";
  return others.some((other) => other.address === address) ? "address" : null;
}

function isListed(trust: Trust, { host, kid }: Newcomer): boolean {
  return trust.hosts.get(host)?.keys.some((key) => key.kid === kid) ?? false;
}

function useOf(
  { record, revision, used }: StoredToken,
  { host, kid }: Newcomer,
  nowMs: number,
): { readonly compares: readonly Compare[]; readonly ops: readonly Op[] } {
  if (used !== null) return { compares: [], ops: [] };
  const key = keys.joinTokenUsed(record.id);
  return {
    // Neither revoked nor used meanwhile.
    compares: [
      { key: keys.joinToken(record.id), modRevision: revision },
      { key, modRevision: 0n },
    ],
    ops: [{ kind: "put", key, value: JSON.stringify({ host, kid, at: new Date(nowMs).toISOString() }) }],
  };
}

/** The key of the certificate that the connection has shown: the handshake is the proof, its name is only a wish. */
function provenKey(certificate: X509Certificate | null, host: string): X509Certificate["publicKey"] {
  const isFit =
    certificate !== null &&
    isP256(certificate.publicKey) &&
    certificate.subjectAltName === `URI:weft://join/${host}`;
  if (isFit) return certificate.publicKey;
  throw new WeftError({
    code: "E-AUTH-01",
    message: "A host that joins shows a certificate of its own key, made for this.",
    safe: "Nothing was changed, and no try was counted.",
  });
}

function hostOf(text: string): HostId {
  const host = parseHostId(text);
  if (host === null) throw new Error(`the schema let a host ${text} pass`);
  return host;
}

function tooMany(): WeftError {
  const { tries, windowMs } = WRONG_TOKENS;
  return new WeftError({
    code: "E-TOKEN-03",
    message: `${tries} wrong tokens came from this address within ${windowMs / 1000} s: no other is looked at for now.`,
    safe: "Nothing was changed.",
    do: [{ why: "In a minute, with the right one", command: "weft join HOST" }],
  });
}

function notMember(members: readonly string[]): WeftError {
  return new WeftError({
    code: "E-TOKEN-05",
    message: `This host is no member of the store, and can't let others in. Members: ${members.join(", ")}.`,
    facts: { members },
    safe: "Nothing was changed, and no try was counted.",
    do: members.slice(0, 3).map((address) => ({ why: "Ask a member", command: `weft join ${address}` })),
  });
}
