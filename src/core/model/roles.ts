/**
 * Who may do what: a principal is who asks, a right is what a request wants, a subject is what it is about.
 *
 * Must always hold:
 * - admin may whatever operator may, operator whatever viewer may;
 * - only `open` is for somebody unknown, only `host` and `open` for another host of the cluster;
 * - a token that is bound to volumes reaches nothing else, and gains nothing by being bound.
 */
import type { HostId, VolumeId } from "./ids.ts";

/**
 * `open`: anybody who reaches the door; `host`: another host of this cluster; `local-root`: root on this very host;
 * the others are roles, each holding the ones before it.
 */
export type Right = "open" | "host" | "viewer" | "operator" | "admin" | "local-root";

export const roles = ["viewer", "operator", "admin"] as const;
export type Role = (typeof roles)[number];

export type Principal =
  /** By the unix socket: root, or the user as whom the agent itself runs. */
  | { readonly kind: "root"; readonly uid: number; readonly pid: number }
  /** By the unix socket: of the group that was named for viewers. */
  | { readonly kind: "group"; readonly uid: number; readonly pid: number }
  /** By a certificate of this cluster. */
  | { readonly kind: "host"; readonly host: HostId; readonly name: string }
  | TokenPrincipal
  | { readonly kind: "nobody"; readonly address: string };

export type TokenPrincipal = {
  readonly kind: "token";
  readonly id: string;
  readonly name: string;
  readonly role: Role;
  /** Null: every volume, and the cluster. */
  readonly volumes: readonly string[] | null;
};

/** What a request is about. */
export type Subject =
  | { readonly kind: "cluster" }
  /** All volumes: the answer shows those that the principal may see. */
  | { readonly kind: "volumes" }
  /** Null: it names none that exists. */
  | { readonly kind: "volume"; readonly volume: VolumeId | null };

export function mayDo(principal: Principal, right: Right, subject: Subject): boolean {
  switch (right) {
    case "open":
      return true;
    case "host":
      return principal.kind === "host";
    case "local-root":
      return principal.kind === "root";
    case "viewer":
    case "operator":
    case "admin":
      return rank(roleOf(principal)) >= rank(right) && reaches(principal, subject);
  }
}

/** Whether a list may show this volume to the principal. */
export function maySee(principal: Principal, volume: string): boolean {
  return principal.kind !== "token" || principal.volumes === null || principal.volumes.includes(volume);
}

/** What the principal is among people, null for hosts and strangers. */
export function roleOf(principal: Principal): Role | null {
  switch (principal.kind) {
    case "root":
      return "admin";
    case "group":
      return "viewer";
    case "token":
      return principal.role;
    case "host":
    case "nobody":
      return null;
  }
}

/** As people read it, in the audit and in a refusal: `root`, `ci (operator)`, `host h2`. */
export function shownPrincipal(principal: Principal): string {
  switch (principal.kind) {
    case "root":
      return principal.uid === 0 ? "root" : `uid ${principal.uid} (admin)`;
    case "group":
      return `uid ${principal.uid} (viewer)`;
    case "host":
      return `host ${principal.name}`;
    case "token":
      return `${principal.name} (${principal.role})`;
    case "nobody":
      return "nobody";
  }
}

/** Tells principals apart where each has an allowance of its own; never a secret. */
export function principalKey(principal: Principal): string {
  switch (principal.kind) {
    case "root":
    case "group":
      return `uid ${principal.uid}`;
    case "host":
      return `host ${principal.host}`;
    case "token":
      return `token ${principal.id}`;
    case "nobody":
      return `address ${principal.address}`;
  }
}

function reaches(principal: Principal, subject: Subject): boolean {
  if (principal.kind !== "token" || principal.volumes === null) return true;
  switch (subject.kind) {
    case "cluster":
      return false;
    case "volumes":
      return true;
    case "volume":
      return subject.volume !== null && principal.volumes.includes(subject.volume);
  }
}

function rank(role: Role | null): number {
  return role === null ? -1 : roles.indexOf(role);
}
