/**
 * How the hosts of a hypervisors' pool become a cluster with room for volumes, thought through before anything is done.
 *
 *     hosts as they are, wishes ──▶ findings: refused, nothing is done
 *                               └─▶ plan: make a cluster on one host ──▶ the others join ──▶ disks become pools
 *
 * Must always hold:
 * - one finding is enough to do nothing; all that are found are told, not only the first;
 * - no disk is in a plan that is not blank, and none of a host that is not named where disks are named;
 * - a plan that was cut short is continued by the next one: what is done already is no step of it, and a host that is a
 *   member stays what it is;
 * - the same facts and wishes make the same plan, on whichever host it is asked for but the one that begins.
 */
import { type JudgedDisk, mayFormatJudged } from "./disk.ts";
import { formatDuration } from "./duration.ts";
import { type Finding, finding } from "./finding.ts";
import { byText } from "./ids.ts";
import { CLOCK_SLACK_MS, COPIES_MAX, NAME_LENGTH_MAX, poolReserveBytes } from "./limits.ts";
import { parseName } from "./name.ts";
import type { DisksWish, SetupHost, SetupNetwork, SetupWishes } from "./setup-facts.ts";
import { placeableBytes } from "./setup-usable.ts";

/** What weftd, agent and store take of a host with a few volumes. */
export const SETUP_MEMORY_BYTES = 384n << 20n;
/** Above this a clock is told of; a certificate bears a day. */
const CLOCK_OFF_MS = 10_000;
const SLOW_LINK_MBPS = 2_500;
const VOTERS = 3;

export type SetupStep =
  | { readonly kind: "init"; readonly host: string; readonly name: string; readonly address: string }
  | { readonly kind: "join"; readonly host: string; readonly name: string; readonly address: string }
  | { readonly kind: "pool"; readonly host: string; readonly device: string };

export type PlannedHost = {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  /** Of its storage network; null: not known. */
  readonly linkMbps: number | null;
  readonly clockOffMs: number | null;
  readonly isMember: boolean;
  /** It was a host of this cluster, was installed anew, and comes back as that one, with its pools. */
  readonly isReturning: boolean;
  readonly disks: readonly { readonly device: string; readonly sizeBytes: bigint }[];
  /** Pools that it has already. */
  readonly poolsBytes: bigint;
  readonly votes: boolean;
};

export type SetupPlan = {
  readonly copies: number;
  readonly hosts: readonly PlannedHost[];
  /** Hosts that are off: they join when they are back. */
  readonly leftOut: readonly string[];
  readonly network: { readonly id: string; readonly name: string } | null;
  /** In this order. Empty: all of it is so already. */
  readonly steps: readonly SetupStep[];
  readonly rawBytes: bigint;
  readonly usableBytes: bigint;
  /** In words: what may fail without a volume stopping. */
  readonly survives: string;
  /** Sentences, the gravest first. */
  readonly risks: readonly string[];
};

export type SetupDecision =
  | { readonly kind: "ok"; readonly plan: SetupPlan }
  | { readonly kind: "refused"; readonly findings: readonly Finding[] };

export type SetupInput = {
  readonly hosts: readonly SetupHost[];
  readonly wishes: SetupWishes;
  /** The host that a new cluster begins on: who is asked. */
  readonly first: string;
};

export function planSetup(input: SetupInput): SetupDecision {
  const hosts = input.hosts.toSorted((a, b) => byText(a.name, b.name) || byText(a.id, b.id));
  const up = hosts.filter(({ isUp }) => isUp);
  const copies = input.wishes.copies ?? Math.max(1, Math.min(2, up.length));
  const { unread } = input.wishes;
  const findings = [...unread.map(({ finding: one }) => one), ...whoFindings(up), ...clockFindings(up)];
  if (up.length === 0) findings.push(noHost());
  if (copies < 1 || copies > COPIES_MAX)
    findings.push(
      finding("E-VOL-08", `${copies} copies were asked for: 1 to ${COPIES_MAX} are possible.`, SAFE),
    );
  const network = chooseNetwork(up, input.wishes.network);
  if (network.kind === "refused") findings.push(...network.findings);
  const named = namedDisks(hosts, input.wishes.disks);
  findings.push(...named.findings);
  const wish = input.wishes.disks ?? (hasRoom(up, copies) ? NO_DISKS : AUTO);
  const isDefault = input.wishes.disks === null;
  const hasPools = (host: SetupHost): boolean => poolsBytesOf(host) > 0n || isReturning(host, up);
  const disksOf = (host: SetupHost): readonly JudgedDisk[] => {
    if (wish.kind === "named") return named.disks.get(host.id) ?? [];
    // Who has pools has said already which disks are weft's.
    if (wish.kind === "none" || (isDefault && hasPools(host))) return [];
    return blankDisks(host);
  };
  const room = up.filter((host) => disksOf(host).length > 0 || hasPools(host));
  // Where a named disk can't be had, or what is wanted isn't known, that is told, and nothing that follows from it.
  const isKnown = unread.every(({ about }) => about === "network") && named.findings.length === 0;
  if (room.length < copies && up.length > 0 && isKnown) findings.push(tooFewDisks(up, room, copies, wish));
  if (findings.length > 0 || network.kind === "refused") return { kind: "refused", findings };
  const names = namesOf(up);
  const begin = beginner(up, input.first);
  const order = [...up.filter((host) => host === begin), ...up.filter((host) => host !== begin)];
  const voters = votersOf(order);
  const planned = up.map((host) => ({
    ...plannedHost(host, network.value, disksOf(host), names, voters),
    isReturning: isReturning(host, up),
  }));
  const leftOut = hosts.filter(({ isUp }) => !isUp).map(({ name }) => name);
  const byId = new Map(planned.map((host) => [host.id, host]));
  const plan = {
    copies,
    hosts: planned,
    leftOut,
    network: network.value,
    steps: stepsOf(order.flatMap(({ id }) => byId.get(id) ?? [])),
    rawBytes: sum(planned.map((host) => host.poolsBytes + sum(host.disks.map(({ sizeBytes }) => sizeBytes)))),
    usableBytes: placeableBytes(copies, planned.map(capacityOf)),
    survives: survives(copies, voters.size),
  };
  return { kind: "ok", plan: { ...plan, risks: risksOf(plan, up) } };
}

const SAFE = { safe: "Nothing was changed on any host." };
const AUTO: DisksWish = { kind: "auto" };
const NO_DISKS: DisksWish = { kind: "none" };

/** Nothing is to be added where all are members and their pools suffice. */
function hasRoom(up: readonly SetupHost[], copies: number): boolean {
  const isMade = up.every(({ weft }) => weft.kind === "member");
  return isMade && up.filter((host) => poolsBytesOf(host) > 0n).length >= copies;
}

function isReturning({ weft }: SetupHost, up: readonly SetupHost[]): boolean {
  const { kind } = weft;
  if (kind !== "none" || weft.sealedFor === null) return false;
  return up.some((host) => host.weft.kind === "member" && host.weft.cluster === weft.sealedFor);
}

function whoFindings(up: readonly SetupHost[]): Finding[] {
  const absent = up.flatMap(({ name, weft }) =>
    weft.kind === "absent"
      ? [
          finding("E-SETUP-01", `weft does not answer on ${name}: ${weft.reason}.`, {
            facts: { host: name },
            ...SAFE,
            do: [{ why: `On ${name}`, command: "yum install -y weft" }],
          }),
        ]
      : [],
  );
  const clusters = new Map<string, string[]>();
  for (const { name, weft } of up) {
    if (weft.kind === "member") clusters.set(weft.cluster, [...(clusters.get(weft.cluster) ?? []), name]);
  }
  if (clusters.size < 2) return absent;
  const what = Array.from(clusters, ([id, names]) => `${names.join(", ")} in ${id.slice(0, 8)}`).join("; ");
  return [
    ...absent,
    finding("E-SETUP-02", `These hosts belong to ${clusters.size} clusters: ${what}.`, {
      ...SAFE,
      do: [{ why: "Take those out that are in the wrong one", command: "weft host remove HOST" }],
    }),
  ];
}

function clockFindings(up: readonly SetupHost[]): readonly Finding[] {
  return up
    .filter(({ clockOffMs, weft }) => weft.kind === "none" && Math.abs(clockOffMs ?? 0) > CLOCK_SLACK_MS)
    .map(({ name, clockOffMs }) =>
      finding(
        "E-SETUP-05",
        `The clock of ${name} is ${formatDuration(Math.abs(clockOffMs ?? 0))} off: its certificate would not be valid.`,
        {
          facts: { host: name, offMs: clockOffMs },
          ...SAFE,
          do: [{ why: `On ${name}`, command: "chronyc makestep" }],
        },
      ),
    );
}

type NetworkChoice =
  | { readonly kind: "ok"; readonly value: { readonly id: string; readonly name: string } | null }
  | { readonly kind: "refused"; readonly findings: readonly Finding[] };

/**
 * The one that was said; else where the members are; else, of those where all have an address, the fastest, and of equals
 * the one that the hypervisors manage each other over.
 */
function chooseNetwork(up: readonly SetupHost[], wished: string | null): NetworkChoice {
  const newcomers = up.filter(({ weft }) => weft.kind !== "member");
  const all = new Map(up.flatMap(({ networks }) => networks.map((network) => [network.id, network])));
  if (wished !== null && !all.has(wished)) {
    return { kind: "refused", findings: [noNetwork(wished)] };
  }
  const candidates = (wished === null ? candidatesOf(up) : [wished]).toSorted(byText);
  const graded = candidates.map((id) => ({
    id,
    missing: newcomers.filter((host) => !on(host, id)?.address),
  }));
  const fit = graded
    .filter(({ missing }) => missing.length === 0)
    .toSorted((a, b) => grade(up, b.id) - grade(up, a.id) || byText(a.id, b.id));
  const [best] = fit;
  if (best === undefined) {
    if (newcomers.length === 0) return { kind: "ok", value: null };
    const [nearest] = graded.toSorted((a, b) => a.missing.length - b.missing.length || byText(a.id, b.id));
    return { kind: "refused", findings: [noAddress(newcomers, nearest, all)] };
  }
  const twice = sharedAddress(up, best.id);
  if (twice !== null) return { kind: "refused", findings: [twice] };
  return { kind: "ok", value: { id: best.id, name: all.get(best.id)?.name ?? best.id } };
}

/** `id`: of no network of the pool. */
export function noNetwork(id: string): Finding {
  return finding("E-SETUP-03", `No host has a network ${id}.`, {
    facts: { network: id },
    ...SAFE,
    do: [{ why: "See all", command: "xe network-list params=uuid,name-label" }],
  });
}

/** Networks that newcomers may be on: the members' where there are some. */
function candidatesOf(up: readonly SetupHost[]): readonly string[] {
  const members = up.flatMap(({ weft, networks }) =>
    weft.kind === "member" ? networks.filter(({ address }) => address === weft.address) : [],
  );
  const from = members.length > 0 ? members : up.flatMap(({ networks }) => networks);
  return [...new Set(from.map(({ id }) => id))];
}

/** The slowest link counts; a network that manages comes before an equal one. */
function grade(up: readonly SetupHost[], id: string): number {
  const links = up.flatMap((host) => on(host, id) ?? []);
  const speed = Math.min(...links.map(({ linkMbps }) => linkMbps ?? 0));
  return 2 * speed + (links.some(({ isManagement }) => isManagement) ? 1 : 0);
}

function on(host: SetupHost, id: string): SetupNetwork | null {
  return host.networks.find((network) => network.id === id && network.address !== null) ?? null;
}

function noAddress(
  newcomers: readonly SetupHost[],
  nearest: { readonly id: string; readonly missing: readonly SetupHost[] } | undefined,
  all: ReadonlyMap<string, SetupNetwork>,
): Finding {
  const name = nearest === undefined ? null : (all.get(nearest.id)?.name ?? nearest.id);
  const hosts = (nearest?.missing ?? newcomers).map((host) => host.name).join(", ");
  const where = name === null ? "any network" : `the network "${name}"`;
  return finding(
    "E-SETUP-03",
    `${hosts} has no address on ${where}: hosts reach each other there at TCP 7400 to 7403.`,
    {
      facts: { network: nearest?.id ?? null, hosts },
      ...SAFE,
      do: [
        { why: "Give it one", command: "xe pif-reconfigure-ip uuid=PIF mode=static IP=ADDRESS netmask=MASK" },
        { why: "Or take another network", command: "weft init --network UUID" },
      ],
    },
  );
}

function sharedAddress(up: readonly SetupHost[], id: string): Finding | null {
  const seen = new Map<string, string>();
  for (const host of up) {
    const address = host.weft.kind === "member" ? host.weft.address : (on(host, id)?.address ?? "");
    const other = seen.get(address);
    if (other !== undefined)
      return finding("E-SETUP-03", `${other} and ${host.name} have the same address ${address}.`, {
        facts: { address },
        ...SAFE,
      });
    seen.set(address, host.name);
  }
  return null;
}

type Named = {
  readonly disks: ReadonlyMap<string, readonly JudgedDisk[]>;
  readonly findings: readonly Finding[];
};

/** Those that were named and are not a pool yet, and why others can't be one. */
function namedDisks(hosts: readonly SetupHost[], wish: DisksWish | null): Named {
  const disks = new Map<string, JudgedDisk[]>();
  const findings: Finding[] = [];
  for (const { host: id, path } of wish?.kind === "named" ? wish.disks : []) {
    const host = hosts.find((one) => one.id === id);
    const name = host?.name ?? id;
    const disk = host?.disks.find((one) => one.path === path);
    if (host?.isUp !== true || disk === undefined) {
      const why =
        host?.isUp === true
          ? `${path} is no block device of ${name}`
          : `${name} is off, and its ${path} is not known`;
      findings.push(finding("E-DISK-02", `${why}.`, { facts: { device: path, host: name }, ...SAFE }));
      continue;
    }
    // A plan that was cut short got so far; what is unfinished its host goes on with.
    if (disk.verdict.kind === "pool") continue;
    const decision = mayFormatJudged(disk, name, "xfs");
    if (decision.kind === "refused") findings.push({ ...decision.finding, ...SAFE });
    else disks.set(id, [...(disks.get(id) ?? []), disk]);
  }
  return { disks, findings };
}

/** Whole disks only: what somebody made of disks (RAID, LVM, multipath) or loops is taken when it is named. */
function blankDisks(host: SetupHost): readonly JudgedDisk[] {
  return host.disks
    .filter((disk) => disk.kind === "disk" && mayFormatJudged(disk, host.name, "xfs").kind === "ok")
    .toSorted((a, b) => byText(a.path, b.path));
}

function tooFewDisks(
  up: readonly SetupHost[],
  room: readonly SetupHost[],
  copies: number,
  wish: DisksWish,
): Finding {
  const without = up.filter((host) => !room.includes(host));
  const why = without.map((host) => `${host.name}: ${whyNoDisk(host, wish)}`).join("; ");
  const fewer =
    room.length > 0 ? [{ why: "Or with fewer copies", command: `weft init --copies ${room.length}` }] : [];
  const named = without.flatMap((host) =>
    host.disks.filter((disk) => disk.verdict.kind === "data").map((disk) => ({ host, disk })),
  );
  return finding(
    "E-SETUP-04",
    `${copies} ${copies === 1 ? "copy" : "copies"} of every volume wanted, disks for them on ${room.length} of ${up.length} hosts (${why}).`,
    {
      facts: { copies, hosts: room.length },
      ...SAFE,
      do: [
        ...named.slice(0, 3).map(({ host, disk }) => ({
          why: `Erase ${disk.path} of ${host.name} for good`,
          command: `weft disk wipe ${host.name}:${disk.path}`,
        })),
        ...fewer,
      ],
    },
  );
}

function whyNoDisk(host: SetupHost, wish: DisksWish): string {
  if (wish.kind === "named") return "none named";
  if (wish.kind === "none") return "none wanted";
  const whole = host.disks.filter(({ kind }) => kind === "disk").toSorted((a, b) => byText(a.path, b.path));
  const said = whole.slice(0, 4).flatMap((disk) => {
    const { verdict } = disk;
    return verdict.kind === "blank" ? [] : [`${disk.path} ${verdict.what}`];
  });
  if (said.length === 0) return "no disk";
  return said.join(", ") + (whole.length > 4 ? `, ${whole.length - 4} more` : "");
}

/** Names in the cluster: letters, digits and `-._`, each once, whatever the hypervisor calls its hosts. */
function namesOf(up: readonly SetupHost[]): ReadonlyMap<string, string> {
  const names = new Map(
    up.flatMap(({ id, weft }) => (weft.kind === "member" ? [[id, weft.name] as const] : [])),
  );
  const taken = new Set(names.values());
  for (const { id, name } of up) {
    if (names.has(id)) continue;
    const free = freeName(plainName(name) ?? `host-${id.slice(0, 8)}`, id, taken);
    names.set(id, free);
    taken.add(free);
  }
  return names;
}

/** Where another host has the name, the id tells them apart. */
export function freeName(plain: string, id: string, taken: ReadonlySet<string>): string {
  let free = plain;
  for (let digits = 4; taken.has(free) && digits <= id.length; digits += 4)
    free = `${plain.slice(0, NAME_LENGTH_MAX - 1 - digits)}-${id.slice(0, digits)}`;
  return free;
}

/** Null: nothing of it can be a name. */
export function plainName(text: string): string | null {
  const short = text.split(".")[0] ?? "";
  const plain = short
    .toLowerCase()
    .replaceAll(/[^a-z0-9_-]+/g, "-")
    .replaceAll(/^[^a-z0-9]+|-+$/g, "")
    .slice(0, NAME_LENGTH_MAX);
  return parseName("host", plain).kind === "ok" ? plain : null;
}

function beginner(up: readonly SetupHost[], first: string): SetupHost | null {
  const isMade = up.some(({ weft }) => weft.kind === "member");
  return isMade ? null : (up.find(({ id }) => id === first) ?? up[0] ?? null);
}

/** Who votes already does; then who comes first, three together, one where there are two. */
function votersOf(order: readonly SetupHost[]): ReadonlySet<string> {
  const have = order.filter(({ weft }) => weft.kind === "member" && weft.votes);
  const wanted = Math.max(have.length, order.length < VOTERS ? 1 : VOTERS);
  const others = order.filter((host) => !have.includes(host));
  return new Set([...have, ...others].slice(0, wanted).map(({ id }) => id));
}

function plannedHost(
  host: SetupHost,
  network: { readonly id: string } | null,
  disks: readonly JudgedDisk[],
  names: ReadonlyMap<string, string>,
  voters: ReadonlySet<string>,
): Omit<PlannedHost, "isReturning"> {
  const { id, weft } = host;
  const isMember = weft.kind === "member";
  const link = isMember
    ? (host.networks.find(({ address }) => address === weft.address) ?? null)
    : network === null
      ? null
      : on(host, network.id);
  return {
    id,
    name: names.get(id) ?? host.name,
    address: isMember ? weft.address : (link?.address ?? ""),
    linkMbps: link?.linkMbps ?? null,
    clockOffMs: host.clockOffMs,
    isMember,
    disks: disks.map(({ path, sizeBytes }) => ({ device: path, sizeBytes })),
    poolsBytes: poolsBytesOf(host),
    votes: voters.has(id),
  };
}

function stepsOf(order: readonly PlannedHost[]): readonly SetupStep[] {
  const isMade = order.some(({ isMember }) => isMember);
  const enter = order.flatMap((host, index): SetupStep[] => {
    if (host.isMember) return [];
    const { id, name, address } = host;
    return [{ kind: !isMade && index === 0 ? "init" : "join", host: id, name, address }];
  });
  const pools = order.flatMap(({ id, disks }) =>
    disks.map(({ device }): SetupStep => ({ kind: "pool", host: id, device })),
  );
  return [...enter, ...pools];
}

function survives(copies: number, votes: number): string {
  const disks = copies - 1;
  const hosts = Math.min(disks, Math.floor((votes - 1) / 2));
  if (disks === 0) return "nothing: a volume stops with the host of its only copy";
  if (hosts === 0) return `any ${count(disks, "disk")}, and the host without the store's only vote`;
  if (hosts === disks) return hosts === 1 ? "any one host or disk" : `any ${count(hosts, "host")} or disks`;
  return `any ${count(hosts, "host")}, any ${count(disks, "disk")}`;
}

const NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven"];

function count(number: number, thing: string): string {
  return `${NUMBERS[number] ?? number} ${thing}${number === 1 ? "" : "s"}`;
}

function risksOf(plan: Omit<SetupPlan, "risks">, up: readonly SetupHost[]): readonly string[] {
  const { hosts, copies, leftOut } = plan;
  const voter = hosts.find(({ votes }) => votes)?.name ?? "";
  const slow = hosts.filter(({ linkMbps }) => linkMbps !== null && linkMbps > 0 && linkMbps < SLOW_LINK_MBPS);
  const tight = up.filter(
    ({ freeBytes, weft }) => weft.kind !== "member" && freeBytes !== null && freeBytes < SETUP_MEMORY_BYTES,
  );
  const late = up.filter(({ clockOffMs }) => Math.abs(clockOffMs ?? 0) > CLOCK_OFF_MS);
  return [
    ...(copies === 1 ? ["Every volume has one copy: a disk that fails takes its volumes with it."] : []),
    ...(hosts.length === 2
      ? [
          `${voter} has the store's only vote: while it is away nothing can be attached, moved or failed over. A third host ends that.`,
        ]
      : []),
    ...(tight.length === 0
      ? []
      : [`${namesText(tight)} has less free memory than the 384 MiB that weft takes: raise dom0's memory.`]),
    ...late.map(
      ({ name, clockOffMs }) => `The clock of ${name} is ${formatDuration(Math.abs(clockOffMs ?? 0))} off.`,
    ),
    ...(slow.length === 0
      ? []
      : [`${namesText(slow)}: a slow link (${speeds(slow)}) is what every write waits for.`]),
    ...leftOut.map((name) => `${name} is off: it joins when it is back.`),
  ];
}

function namesText(hosts: readonly { readonly name: string }[]): string {
  return hosts.map(({ name }) => name).join(", ");
}

function speeds(hosts: readonly PlannedHost[]): string {
  return [...new Set(hosts.map(({ linkMbps }) => linkText(linkMbps)))].join(", ");
}

/** `25 Gb/s`. */
export function linkText(mbps: number | null): string {
  if (mbps === null || mbps <= 0) return "speed not known";
  return mbps >= 1000 ? `${Math.round(mbps / 100) / 10} Gb/s` : `${mbps} Mb/s`;
}

function poolsBytesOf({ weft }: SetupHost): bigint {
  return weft.kind === "member" ? sum(weft.pools) : 0n;
}

function capacityOf({ disks, poolsBytes }: PlannedHost): bigint {
  const each = disks.map(({ sizeBytes }) => sizeBytes - poolReserveBytes(sizeBytes));
  return sum(each) + poolsBytes - poolReserveBytes(poolsBytes);
}

function sum(values: readonly bigint[]): bigint {
  return values.reduce((all, one) => all + one, 0n);
}

function noHost(): Finding {
  return finding("E-SETUP-06", "No host of this pool is up, as far as its hypervisors know.", SAFE);
}
