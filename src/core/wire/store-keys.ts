/** Names of the keys in the store, and how to read them back. One place, so that nobody builds one by hand. */

export const ROOT = "/weft/v1/";

export const keys = {
  cluster: `${ROOT}cluster`,
  store: `${ROOT}store`,
  /** The agent that holds the placing lease. */
  placer: `${ROOT}placer`,
  /** Addresses of the store's voters, so that every host learns of a change at once. */
  voters: `${ROOT}voters`,
  hosts: `${ROOT}host/`,
  /** Unique: made in the transaction that registers the host. */
  hostName: (name: string) => `${ROOT}host-name/${name}`,
  hostAddress: (address: string) => `${ROOT}host-address/${address}`,
  host: (host: string) => `${ROOT}host/${host}`,
  /** Where it stands, by the operator's word: apart from the host's own key, which it writes anew when it comes back. */
  hostLabels: (host: string) => `${ROOT}host-labels/${host}`,
  alive: (host: string) => `${ROOT}alive/${host}`,
  pools: `${ROOT}pool/`,
  pool: (pool: string) => `${ROOT}pool/${pool}`,
  poolUsage: (pool: string) => `${ROOT}pool-usage/${pool}`,
  name: (volume: string) => `${ROOT}name/${volume}`,
  /** Token of a request -> the volume it made. */
  token: (token: string) => `${ROOT}token/${token}`,
  volumes: `${ROOT}vol/`,
  volume: (volume: string) => `${ROOT}vol/${volume}/`,
  want: (volume: string) => `${ROOT}vol/${volume}/want`,
  made: (volume: string, rid: number) => `${ROOT}vol/${volume}/replica/${rid}`,
  /** The operator asked: no 24 h for this deleted volume. */
  emptyTrash: (volume: string) => `${ROOT}vol/${volume}/empty-trash`,
  state: (volume: string) => `${ROOT}vol/${volume}/state`,
  /** Why its owner's session waits, by that host's agent. */
  pause: (volume: string) => `${ROOT}vol/${volume}/pause`,
  /** What a copy takes of its pool, by its host's agent, some seconds ago. */
  used: (volume: string, rid: number) => `${ROOT}vol/${volume}/used/${rid}`,
  snapshots: (volume: string) => `${ROOT}vol/${volume}/snap/`,
  /** By the weftd that owns the volume, in one transaction with the volume's record. */
  snapshot: (volume: string, id: string) => `${ROOT}vol/${volume}/snap/${id}`,
  /** By the weftd of a host that offers the snapshot, while its lease lives. */
  snapshotOpen: (id: string) => `${ROOT}snap-open/${id}/`,
  /** What the last scrub found, by the agent of the host that worked on it. */
  scrub: (volume: string) => `${ROOT}vol/${volume}/scrub`,
  /** A scrub under way, by the same agent, while its lease lives. */
  scrubProgress: (volume: string) => `${ROOT}scrub-progress/${volume}`,
  /** What an image of a snapshot takes of its copy's pool, and what of it is damaged, by the copy's host, some seconds ago. */
  images: (volume: string) => `${ROOT}vol/${volume}/image/`,
  image: (volume: string, rid: number, snapshot: string) => `${ROOT}vol/${volume}/image/${rid}/${snapshot}`,
  /** How far the volume's owner is with taking it back to a snapshot, by its agent, while its lease lives. */
  revertProgress: (volume: string) => `${ROOT}revert-progress/${volume}`,
  snapshotCopies: `${ROOT}snap-copy/`,
  /** The snapshot that this host brings to one of its copies, by its agent, while its lease lives. */
  snapshotCopy: (host: string) => `${ROOT}snap-copy/${host}`,
  alerts: `${ROOT}alert/`,
  /** Trouble of a kind, since when, and whether the hypervisors' pool was told: by the agent that places. */
  alert: (kind: string) => `${ROOT}alert/${kind}`,
  stopWaits: `${ROOT}stop-wait/`,
  /** That this host waits with its stop, and for what, by its agent, while its lease lives. */
  stopWait: (host: string) => `${ROOT}stop-wait/${host}`,
  srs: `${ROOT}sr/`,
  /** A storage repository of XAPI's. */
  sr: (uuid: string) => `${ROOT}sr/${uuid}`,
  vdis: `${ROOT}vdi/`,
  /** What XAPI has beside a volume or a snapshot, whose id the UUID is. */
  vdi: (uuid: string) => `${ROOT}vdi/${uuid}`,
  /** That a disk is being laid over another one, or another one over it, by the agent that does it, while its lease lives. */
  composing: (uuid: string) => `${ROOT}composing/${uuid}`,
  xapiHosts: `${ROOT}xapi-host/`,
  /** By which UUID XAPI knows the host: its own agent's word. */
  xapiHost: (host: string) => `${ROOT}xapi-host/${host}`,
  /** That XAPI has declared the host dead, by the agent that was told, for some minutes. */
  xapiDead: (host: string) => `${ROOT}xapi-dead/${host}`,
  /** What the whole cluster goes by and needs no signature. */
  settings: `${ROOT}settings`,
  resyncs: `${ROOT}progress/`,
  /** A resync under way, by the owner's agent, while its lease lives. */
  progress: (volume: string) => `${ROOT}progress/${volume}`,
  repairAsk: `${ROOT}repair-ask`,
  repairs: `${ROOT}repair/`,
  repair: (host: string) => `${ROOT}repair/${host}`,
  allRepairImages: `${ROOT}repair-images/`,
  /** Beside a host's answer: what one of its copies keeps of snapshots. */
  repairImages: (host: string, volume: string, rid: number) =>
    `${ROOT}repair-images/${host}/${volume}.${rid}`,
  /** Who belongs to the cluster: signed by an authority. */
  trust: `${ROOT}trust`,
  trustLinks: `${ROOT}trust-link/`,
  /** By the KID of an authority: the list by which another one took over from it, for hosts that were away then. */
  trustLink: (kid: string) => `${ROOT}trust-link/${kid}`,
  /** How far a host followed the trust list, while the authority changes. */
  trustAcks: `${ROOT}trust-ack/`,
  trustAck: (host: string) => `${ROOT}trust-ack/${host}`,
  /** Held while a member restarts its etcd: one at a time. */
  memberTurn: `${ROOT}member-turn`,
  /** How far a revocation got: each host writes its own. */
  revocation: (host: string) => `${ROOT}revoke/${host}/by/`,
  revocationBy: (host: string, by: string) => `${ROOT}revoke/${host}/by/${by}`,
  joinTokens: `${ROOT}join-token/`,
  /** Signed; its secret as a hash. */
  joinToken: (id: string) => `${ROOT}join-token/${id}`,
  joinTokensUsed: `${ROOT}join-token-used/`,
  /** Made once: a token that has it can't be used again. */
  joinTokenUsed: (id: string) => `${ROOT}join-token-used/${id}`,
  apiTokens: `${ROOT}api-token/`,
  /** Signed; its secret as a hash. */
  apiToken: (id: string) => `${ROOT}api-token/${id}`,
  apiTokensUsed: `${ROOT}api-token-used/`,
  /** When and from where it was used last, a minute ago or less. */
  apiTokenUsed: (id: string) => `${ROOT}api-token-used/${id}`,
  /** Number and hash of the last line of the host's audit, a minute ago or less. */
  auditHead: (host: string) => `${ROOT}audit-head/${host}`,
} as const;

export type ParsedKey =
  | { readonly kind: "cluster" | "store" | "placer" | "voters" | "repair-ask" }
  | {
      readonly kind: "host" | "alive" | "pool" | "pool-usage" | "name" | "token" | "repair";
      readonly id: string;
    }
  | { readonly kind: "want" | "state" | "empty-trash"; readonly volume: string }
  | { readonly kind: "made"; readonly volume: string; readonly rid: number }
  | { readonly kind: "snapshot"; readonly volume: string; readonly id: string };

/** What a key is about; null: not one of ours (a newer version's, or somebody's by hand). */
export function parseKey(key: string): ParsedKey | null {
  if (!key.startsWith(ROOT)) return null;
  const [area = "", id, part, rid, ...rest] = key.slice(ROOT.length).split("/");
  if (rest.length > 0) return null;
  switch (area) {
    case "cluster":
    case "store":
    case "placer":
    case "voters":
    case "repair-ask":
      return id === undefined ? { kind: area } : null;
    case "host":
    case "alive":
    case "pool":
    case "pool-usage":
    case "name":
    case "token":
    case "repair":
      return id === undefined || id === "" || part !== undefined ? null : { kind: area, id };
    case "vol":
      return parseVolumeKey(id, part, rid);
    default:
      return null;
  }
}

function parseVolumeKey(
  volume: string | undefined,
  part: string | undefined,
  rid: string | undefined,
): ParsedKey | null {
  if (volume === undefined || volume === "") return null;
  if ((part === "want" || part === "state" || part === "empty-trash") && rid === undefined)
    return { kind: part, volume };
  if (part === "replica" && rid !== undefined && /^[0-9]{1,10}$/.test(rid))
    return { kind: "made", volume, rid: Number(rid) };
  if (part === "snap" && rid !== undefined && rid !== "") return { kind: "snapshot", volume, id: rid };
  return null;
}

/** The end of the range of all keys that start with `prefix`, as etcd wants it. */
export function prefixEnd(prefix: string): string {
  const last = prefix.codePointAt(prefix.length - 1);
  if (last === undefined || last >= 0x7f)
    throw new Error(`a key prefix ends in ASCII, found ${JSON.stringify(prefix)}`);
  return prefix.slice(0, -1) + String.fromCodePoint(last + 1);
}
