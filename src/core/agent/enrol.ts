/**
 * A host is let in: the member's side of `weft join`.
 *
 *     asked ── a member? ── too many wrong tries? ── token right? ──▶ one transaction ──▶ certificate and trust list
 *
 * Must always hold:
 * - a token is used once, whoever asks at whichever member at the same time (let-in.ts);
 * - what is listed is the key that the connection has proven, never one that a body names.
 */
import type { X509Certificate } from "node:crypto";

import { type HostId, parseHostId } from "../model/ids.ts";
import { WRONG_TOKENS } from "../model/limits.ts";
import { Tries } from "../model/tries.ts";
import { isP256, kidOf } from "../wire/certificate.ts";
import type { EnrolAnswer, EnrolRequest } from "../wire/door-api.ts";
import { decided, WeftError } from "../wire/errors.ts";
import type { DoorCall } from "./door.ts";
import { judgeToken, readToken, type StoredToken } from "./join-tokens.ts";
import { letIn, type LetInContext, type Newcomer } from "./let-in.ts";

export type EnrolContext = LetInContext & {
  /** What a host that was let in learns of the cluster; `host` is who answers. */
  readonly cluster: () => EnrolAnswer["cluster"];
  /** Addresses of the store's members, for a host that asked another one. */
  readonly members: () => readonly string[];
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
    const made = await letIn(this.#context, newcomer, publicKey, token);
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
}

/** The key of the certificate that the connection has shown: the handshake is the proof, its name is only a wish. */
function provenKey(certificate: X509Certificate | null, host: string): X509Certificate["publicKey"] {
  if (certificate !== null && isJoinCert(certificate, host)) return certificate.publicKey;
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

/** Of a key that can be a host's, made for this host to join. Whose key it is, its signature has to show. */
export function isJoinCert(certificate: X509Certificate, host: string): boolean {
  return isP256(certificate.publicKey) && certificate.subjectAltName === `URI:weft://join/${host}`;
}

export function notMember(members: readonly string[]): WeftError {
  return new WeftError({
    code: "E-TOKEN-05",
    message: `This host is no member of the store, and can't let others in. Members: ${members.join(", ")}.`,
    facts: { members },
    safe: "Nothing was changed, and no try was counted.",
    do: members.slice(0, 3).map((address) => ({ why: "Ask a member", command: `weft join ${address}` })),
  });
}
