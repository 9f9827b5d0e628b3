/**
 * A change of the cluster's authorities while everything goes on, as a pure machine over the trust list.
 *
 *     (none) ─▶ announce ─────▶ bundle ────────▶ issue ──────────▶ drop ─────────▶ (none)
 *               every host       every member's   every host has a   every member's
 *               has the list     etcd trusts both certificate of     etcd trusts the
 *                                               the new authority  new one alone
 *
 * A list is signed by the authority that is active in the list before it: the one of `issue` by the old authority, for the
 * last time. When a host that held the key was revoked (trust.ts), the machine begins at `issue`, the store never trusts
 * the old authority again, and `drop` comes after 10 minutes also where a host is missing.
 *
 * Must always hold, in a rotation that was asked for:
 * - a listed host that lives is refused by nobody, at any moment, whoever crashed between any two steps;
 * - nothing is dropped before every listed host acknowledged that it needs it no more. Hosts that are away are waited for;
 *   one that the operator leaves behind (`without`) comes back by its key (`judgeKey`);
 * - what an acknowledgement says stays true: it is written after the files are, and by both processes of the host.
 */
import type { Decision } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import { byText } from "./ids.ts";
import type { HostId } from "./ids.ts";
import { setRotation } from "./trust.ts";
import type { Authority, AuthorityState, Rotation, RotationPhase, Trust, TrustedHost } from "./trust.ts";

/** What a host says about itself; of older truth, never of newer. */
export type RotationAck = {
  /** The oldest list that a process of the host still goes by. */
  readonly generation: bigint;
  /** KID that issued the certificate which every process of the host shows. */
  readonly certBy: string;
  /** Null: no store member. */
  readonly member: MemberAck | null;
};

export type MemberAck = {
  /** KID that issued the certificate which its etcd shows. */
  readonly storeBy: string;
  /** KIDs of the authorities with which its etcd was started. */
  readonly bundle: readonly string[];
  /** KIDs of the authorities whose private keys it has. */
  readonly holds: readonly string[];
};

export type RotationInput = {
  readonly trust: Trust;
  readonly acks: ReadonlyMap<HostId, RotationAck>;
  /** Hosts with a member of the store, voters and learners, read after the list: later ones began with it or a newer. */
  readonly members: readonly HostId[];
  readonly nonce: string;
};

/** `list`: to take the newest list; `bundle`: to restart its etcd; `certificate`: to renew. */
export type Awaited = { readonly host: HostId; readonly what: "list" | "bundle" | "certificate" };

export type RotationStep =
  | { readonly kind: "idle" }
  | { readonly kind: "wait"; readonly awaited: readonly Awaited[] }
  /** To be signed by `signer` and swapped in for the list that this was decided from. */
  | { readonly kind: "write"; readonly trust: Trust; readonly signer: string };

/** What a host has to do by the newest list that it accepted, in this order. */
export type Duty = "renew" | "reissue-store" | "restart-store";

/** An authority whose key was stolen stays good for listed keys this long: until hosts renewed. */
export const EMERGENCY_DROP_MS = 10 * 60 * 1000;

/**
 * Two new authorities are announced. Their keys are at every member before this list is written: a member that was never
 * told by a list has a key that nobody trusts.
 */
export function startRotation(
  trust: Trust,
  start: {
    readonly id: string;
    readonly authority: Omit<Authority, "state">;
    readonly storeAuthority: Omit<Authority, "state">;
    readonly members: readonly HostId[];
    readonly nonce: string;
    readonly nowMs: number;
  },
): Decision<Trust> {
  if (trust.rotation !== null) {
    return refused(
      finding("E-CA-02", `A change of the authority is under way: ${rotationLine(trust.rotation)}.`, {
        facts: { phase: trust.rotation.phase },
        safe: "Nothing was changed.",
        do: [{ why: "See what it waits for", command: "weft ca show" }],
      }),
    );
  }
  const { id, authority, storeAuthority, members, nonce, nowMs } = start;
  const kids = [authority.kid, storeAuthority.kid];
  const hosts = new Map(
    Array.from(trust.hosts, ([host, entry]): [HostId, TrustedHost] => [
      host,
      members.includes(host) ? { ...entry, held: [...entry.held, ...kids] } : entry,
    ]),
  );
  return ok(
    setRotation(
      { ...trust, hosts },
      {
        nonce,
        authorities: [...trust.authorities, { ...authority, state: "incoming" }],
        storeAuthorities: [...trust.storeAuthorities, { ...storeAuthority, state: "incoming" }],
        rotation: { id, phase: "announce", why: "asked", sinceMs: nowMs, without: [] },
      },
    ),
  );
}

/** The operator gives these hosts up for this rotation. Store members can't be: they are removed from the store first. */
export function leaveBehind(trust: Trust, hosts: readonly HostId[], nonce: string): Trust {
  const { rotation, authorities, storeAuthorities } = trust;
  if (rotation === null) return trust;
  const without = Array.from(new Set([...rotation.without, ...hosts])).toSorted(byText);
  return setRotation(trust, { nonce, authorities, storeAuthorities, rotation: { ...rotation, without } });
}

/** The next list, or who is waited for. Deciding twice from the same list is deciding once: the swap lets one through. */
export function stepRotation(input: RotationInput, nowMs: number): RotationStep {
  const { trust } = input;
  const { rotation } = trust;
  if (rotation === null) return { kind: "idle" };
  const awaited = awaitedIn(input, rotation);
  const overdue =
    rotation.why === "revoked" && rotation.phase === "issue" && nowMs - rotation.sinceMs >= EMERGENCY_DROP_MS;
  if (awaited.length > 0 && !overdue) return { kind: "wait", awaited };
  const signer = activeOf(trust.authorities).kid;
  return { kind: "write", trust: afterPhase(input, rotation, nowMs), signer };
}

/** What this host has to do by `trust`; `own` is what is true of it now. */
export function dutiesOf(trust: Trust, own: RotationAck): readonly Duty[] {
  const duties: Duty[] = [];
  if (own.certBy !== activeOf(trust.authorities).kid) duties.push("renew");
  if (own.member === null) return duties;
  if (own.member.storeBy !== activeOf(trust.storeAuthorities).kid) duties.push("reissue-store");
  if (!sameSet(own.member.bundle, storeBundle(trust))) duties.push("restart-store");
  return duties;
}

/** KIDs of what a member's etcd is to trust, of both kinds: clients' authorities, and those of members. */
export function storeBundle(trust: Trust): readonly string[] {
  const states = bundledStates(trust.rotation);
  return [...trust.authorities, ...trust.storeAuthorities]
    .filter(({ state }) => states.includes(state))
    .map(({ kid }) => kid);
}

export function rotationLine({ phase, why, without }: Rotation): string {
  const left = without.length === 0 ? "" : `, without ${without.length} hosts`;
  return `${phase}${why === "revoked" ? " after a revocation" : ""}${left}`;
}

/**
 * etcd knows no list of keys, only authorities: one whose key was stolen is out of its bundle at once. New ones come in
 * when every host has them.
 */
function bundledStates(rotation: Rotation | null): readonly AuthorityState[] {
  if (rotation === null || rotation.why === "revoked") return ["active"];
  switch (rotation.phase) {
    case "announce":
      return ["active"];
    case "bundle":
    case "issue":
      return ["active", "incoming", "outgoing"];
    case "drop":
      return ["active"];
  }
}

function awaitedIn({ trust, acks, members }: RotationInput, rotation: Rotation): readonly Awaited[] {
  const hosts = Array.from(trust.hosts.keys()).toSorted(byText);
  const needed = hosts.filter((host) => members.includes(host) || !rotation.without.includes(host));
  const ofMembers = hosts.filter((host) => members.includes(host));
  const missing = (
    among: readonly HostId[],
    what: Awaited["what"],
    has: (ack: RotationAck) => boolean,
  ): readonly Awaited[] =>
    among
      .filter((host) => {
        const ack = acks.get(host);
        return ack === undefined || !has(ack);
      })
      .map((host) => ({ host, what }));
  const bundle = storeBundle(trust);
  const kids = [...trust.authorities, ...trust.storeAuthorities].map(({ kid }) => kid);
  switch (rotation.phase) {
    // The newest list: of this rotation, whatever else changed since it was announced.
    case "announce":
      return missing(needed, "list", (ack) => ack.generation >= trust.generation);
    case "bundle":
      return missing(
        ofMembers,
        "bundle",
        ({ member }) =>
          member !== null &&
          sameSet(member.bundle, bundle) &&
          kids.every((kid) => member.holds.includes(kid)),
      );
    case "issue":
      return [
        ...missing(needed, "list", (ack) => ack.generation >= trust.generation),
        ...missing(needed, "certificate", (ack) => ack.certBy === activeOf(trust.authorities).kid),
        ...missing(
          ofMembers,
          "certificate",
          ({ member }) => member !== null && member.storeBy === activeOf(trust.storeAuthorities).kid,
        ),
      ];
    case "drop":
      return missing(ofMembers, "bundle", ({ member }) => member !== null && sameSet(member.bundle, bundle));
  }
}

function afterPhase({ trust, nonce }: RotationInput, rotation: Rotation, nowMs: number): Trust {
  const at = (phase: RotationPhase): Rotation => ({ ...rotation, phase, sinceMs: nowMs });
  const { authorities, storeAuthorities } = trust;
  switch (rotation.phase) {
    case "announce":
      return setRotation(trust, { nonce, authorities, storeAuthorities, rotation: at("bundle") });
    case "bundle":
      return setRotation(trust, {
        nonce,
        authorities: handedOver(authorities),
        storeAuthorities: handedOver(storeAuthorities),
        rotation: at("issue"),
      });
    case "issue":
      return setRotation(trust, {
        nonce,
        authorities: [activeOf(authorities)],
        storeAuthorities: [activeOf(storeAuthorities)],
        rotation: at("drop"),
      });
    case "drop":
      return setRotation(trust, { nonce, authorities, storeAuthorities, rotation: null });
  }
}

function handedOver(list: readonly Authority[]): readonly Authority[] {
  return list.map((authority): Authority => ({
    ...authority,
    state: authority.state === "incoming" ? "active" : "outgoing",
  }));
}

function activeOf(list: readonly Authority[]): Authority {
  const active = list.find(({ state }) => state === "active");
  if (active === undefined) throw new Error("a trust list has one active authority");
  return active;
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((item) => b.includes(item));
}
