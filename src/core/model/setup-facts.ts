/**
 * What the planner of a setup is told: the hosts of a hypervisors' pool as they are, and what somebody wishes of them.
 *
 * Must always hold:
 * - a host is its id; its name is for sentences, and two may have the same;
 * - what a person wrote (`disks=h1:/dev/sdb`) is understood as one thing, or refused.
 */
import type { JudgedDisk } from "./disk.ts";
import { type Decision, finding, type Finding, ok, refused } from "./finding.ts";
import { byText, parseUuid } from "./ids.ts";
import { COPIES_MAX } from "./limits.ts";
import { suggest } from "./suggest.ts";

/** A network that hypervisors share, and this host's address on it. */
export type SetupNetwork = {
  /** The hypervisors' id of the network, the same on all hosts. */
  readonly id: string;
  readonly name: string;
  /** Null: this host has no address there. */
  readonly address: string | null;
  /** Null: the hypervisor doesn't know. */
  readonly linkMbps: number | null;
  /** The one that the hypervisors manage each other over. */
  readonly isManagement: boolean;
};

export type SetupWeft =
  /** Not installed there, or it doesn't answer: in words. */
  | { readonly kind: "absent"; readonly reason: string }
  /** Installed, in no cluster. */
  | {
      readonly kind: "none";
      /** The cluster that it was a host of, by what lies sealed on its pools' disks; null: nothing does. */
      readonly sealedFor: string | null;
    }
  | {
      readonly kind: "member";
      readonly cluster: string;
      /** Its name and address in that cluster. */
      readonly name: string;
      readonly address: string;
      /** Whether it has a vote in the store. */
      readonly votes: boolean;
      /** Sizes of its pools. */
      readonly pools: readonly bigint[];
    };

export type SetupHost = {
  /** The hypervisors' id of the host. */
  readonly id: string;
  readonly name: string;
  /** False: the hypervisors say that it is off. Nothing else of it is known then. */
  readonly isUp: boolean;
  readonly weft: SetupWeft;
  readonly disks: readonly JudgedDisk[];
  readonly networks: readonly SetupNetwork[];
  /** Free memory of the system that weft runs in; null: not known. */
  readonly freeBytes: bigint | null;
  /** How far its clock is from the asking host's; null: not known. */
  readonly clockOffMs: number | null;
};

export type DisksWish =
  /** Every blank disk of a host. */
  | { readonly kind: "auto" }
  | { readonly kind: "none" }
  | { readonly kind: "named"; readonly disks: readonly { readonly host: string; readonly path: string }[] };

/** As people write them: in a device-config, or on a command line. Null: not said. */
export type SetupWords = {
  readonly disks: string | null;
  readonly copies: string | null;
  readonly network: string | null;
};

export type SetupWishes = {
  /** Null: not said. */
  readonly disks: DisksWish | null;
  readonly copies: number | null;
  /** A network's id. */
  readonly network: string | null;
  /** What can't be understood: one is enough to do nothing. What was understood beside it is looked at all the same. */
  readonly unread: readonly { readonly about: keyof SetupWords; readonly finding: Finding }[];
};

const PATH = /^\/dev\/[A-Za-z0-9][A-Za-z0-9_.:/+-]*$/;
const NOTHING_DONE = { safe: "Nothing was changed on any host." };

/** Words that can't be understood are told together: E-ARG-01, E-ARG-02, E-VOL-08. */
export function readWishes({ disks, copies, network }: SetupWords, hosts: readonly SetupHost[]): SetupWishes {
  const unread: SetupWishes["unread"][number][] = [];
  const value = <T>(about: keyof SetupWords, decision: Decision<T> | null): T | null => {
    if (decision?.kind === "refused") unread.push({ about, finding: decision.finding });
    return decision?.kind === "ok" ? decision.value : null;
  };
  const wished = disks === null ? null : parseDisksWish(disks, hosts);
  for (const finding of wished?.findings ?? []) unread.push({ about: "disks", finding });
  return {
    disks: wished?.wish ?? null,
    copies: value("copies", copies === null ? null : parseCopiesWish(copies)),
    network: value("network", network === null ? null : parseNetworkWish(network)),
    unread,
  };
}

/**
 * `auto`, `none`, or `HOST:/dev/DISK[,…]` with a host's id or name. Findings E-ARG-01, E-ARG-02: one for each part that is
 * neither; the wish is what the others say.
 */
export function parseDisksWish(
  text: string,
  hosts: readonly SetupHost[],
): { readonly wish: DisksWish; readonly findings: readonly Finding[] } {
  const word = text.trim();
  if (word === "auto" || word === "none") return { wish: { kind: word }, findings: [] };
  const disks: { readonly host: string; readonly path: string }[] = [];
  const findings: Finding[] = [];
  for (const part of word.split(",")) {
    const colon = part.indexOf(":/");
    const [ref, path] = [part.slice(0, Math.max(0, colon)).trim(), part.slice(colon + 1).trim()];
    if (ref === "" || !PATH.test(path) || path.includes("/..")) {
      findings.push(badDisks(part));
      continue;
    }
    const host = hostMeant(ref, hosts);
    if (host.kind === "refused") {
      findings.push(host.finding);
      continue;
    }
    const same = disks.some((disk) => disk.host === host.value.id && disk.path === path);
    if (!same) disks.push({ host: host.value.id, path });
  }
  return { wish: { kind: "named", disks }, findings };
}

/** A whole number from 1 to 8: E-VOL-08. */
export function parseCopiesWish(text: string): Decision<number> {
  const copies = /^[0-9]{1,3}$/.test(text.trim()) ? Number(text) : 0;
  if (copies >= 1 && copies <= COPIES_MAX) return ok(copies);
  return refused(
    finding(
      "E-VOL-08",
      `"${text.slice(0, 100)}" is no number of copies: 1 to ${COPIES_MAX} are.`,
      NOTHING_DONE,
    ),
  );
}

/** An identifier: E-ARG-02. Whether there is such a network, the plan tells. */
export function parseNetworkWish(text: string): Decision<string> {
  const id = parseUuid(text.trim());
  if (id !== null) return ok(id);
  return refused(
    finding("E-ARG-02", `"${text.slice(0, 100)}" is no network's UUID.`, {
      ...NOTHING_DONE,
      do: [{ why: "See all", command: "xe network-list params=uuid,name-label" }],
    }),
  );
}

function hostMeant(ref: string, hosts: readonly SetupHost[]): Decision<SetupHost> {
  const id = parseUuid(ref);
  const found = hosts.filter((host) => (id === null ? host.name === ref : host.id === id));
  const [host] = found;
  if (host !== undefined && found.length === 1) return ok(host);
  const known = hosts.map(({ name }) => name).toSorted(byText);
  const near = suggest(ref, known);
  const what =
    found.length > 1
      ? `${found.length} hosts are named "${ref}": say which by its UUID`
      : `No host "${ref.slice(0, 100)}". ${near === null ? `Hosts: ${known.join(", ")}` : `Did you mean "${near}"?`}`;
  return refused(finding("E-ARG-01", `${what}${what.endsWith("?") ? "" : "."}`, NOTHING_DONE));
}

function badDisks(part: string): Finding {
  return finding(
    "E-ARG-02",
    `"${part.slice(0, 100)}" is no disk of a host. Examples: auto, none, h1:/dev/sdb,h2:/dev/nvme0n1.`,
    NOTHING_DONE,
  );
}
