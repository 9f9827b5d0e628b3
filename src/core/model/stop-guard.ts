/**
 * Whether a host may stop now: a rolling update reboots hosts one after the other, the next as soon as the last one is up, and
 * that is before its copies have what they missed.
 *
 * Must always hold:
 * - a host waits only for what waiting can bring: a volume that never wants another copy, or a store with one vote, holds up
 *   nobody;
 * - what is not known counts as away: better a minute too long than a volume that stops;
 * - where no guest on another host has a volume open, nobody is hurt by a volume that rests for a reboot: then the wait is short,
 *   or the last host of a pool that is switched off would wait for those that are off already.
 */
import { majority } from "./membership.ts";

export type GuardVolume = {
  readonly id: string;
  readonly name: string;
  /** Copies that are wanted, and so many in sync that writes need. */
  readonly copies: number;
  readonly minIsr: number;
  /** A guest on another host has it open. */
  readonly openElsewhere: boolean;
  /** Hosts with a copy in sync, and whether they answer. */
  readonly inSync: readonly { readonly host: string; readonly alive: boolean }[];
};

export type GuardVoter = { readonly host: string; readonly answers: boolean };

export type GuardInput = {
  readonly self: string;
  readonly volumes: readonly GuardVolume[];
  readonly voters: readonly GuardVoter[];
};

export type GuardHeld = {
  /** Volumes that would stop with this host, and will not once another copy is in sync. */
  readonly volumes: readonly { readonly id: string; readonly name: string }[];
  /** The store would lose its majority. */
  readonly store: boolean;
  /** Guests on other hosts would feel it: worth the whole wait. */
  readonly urgent: boolean;
};

export function heldBack({ self, volumes, voters }: GuardInput): GuardHeld {
  const held = volumes.filter(({ copies, minIsr, inSync }) => {
    if (!inSync.some(({ host }) => host === self)) return false;
    const others = inSync.filter(({ host, alive }) => host !== self && alive).length;
    return others < Math.min(Math.max(1, minIsr), copies - 1);
  });
  const others = voters.filter(({ host, answers }) => host !== self && answers).length;
  const isVoter = voters.some(({ host }) => host === self);
  // With one or two votes no wait makes the store go on without this one.
  const needed = majority(voters.length);
  // What is lost already this host's stop does not lose.
  const store = isVoter && voters.length >= 3 && others < needed && others + 1 >= needed;
  const urgent = (store ? volumes : held).some(({ openElsewhere }) => openElsewhere);
  return { volumes: held.map(({ id, name }) => ({ id, name })), store, urgent };
}

export function isHeld({ volumes, store }: GuardHeld): boolean {
  return store || volumes.length > 0;
}

/** What is waited for, as a sentence without its dot. */
export function heldText({ volumes, store }: GuardHeld): string {
  const names = volumes.slice(0, 5).map(({ name }) => name);
  const more = volumes.length > names.length ? ` and ${volumes.length - names.length} more` : "";
  const parts = [
    ...(volumes.length === 0
      ? []
      : [
          `it has the only copy in sync of ${volumes.length} ${volumes.length === 1 ? "volume" : "volumes"} (${names.join(", ")}${more})`,
        ]),
    ...(store ? ["the store would lose its majority"] : []),
  ];
  return parts.length === 0 ? "nothing depends on this host alone" : parts.join(", and ");
}
