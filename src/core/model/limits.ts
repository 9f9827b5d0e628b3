/**
 * What weft refuses early, and the times after which it acts by itself. All are in docs/ARCHITECTURE.md.
 *
 * Must always hold: a value here is a promise to users; raising one needs the test that shows it holds.
 */

export const BLOCK_BYTES = 4096n;
export const VOLUME_BYTES_MAX = 64n << 40n;
export const COPIES_MAX = 8;
/** Of a volume, those that are not being deleted. */
export const SNAPSHOTS_MAX = 1000;
/** Snapshots at one moment: as many volumes as one transaction of the store has room for. */
export const GROUP_VOLUMES_MAX = 30;
export const ATTACHED_PER_HOST_MAX = 500;
export const NAME_LENGTH_MAX = 63;

/** What a volume's guests may be limited to, together: less would be a volume that hangs, more a mistake in a unit. */
export const LIMIT_IOPS_MAX = 1_000_000_000;
export const LIMIT_BPS_MIN = 4096n;
export const LIMIT_BPS_MAX = 1n << 50n;
/** Whoever saves up for a minute may take a minute's worth at once; more would be no limit for others. */
export const LIMIT_BURST_SECONDS_MAX = 60;
export const LIMIT_BURST_SECONDS = 1;

/** What a plan reckons with: as fast as one link of 2.5 Gb/s or a disk of today, guests beside it. */
export const COPY_BYTES_PER_SECOND = 250n << 20n;

/** Copies are compared with each other so often, and so fast, where nothing else is said. */
export const SCRUB_DAYS = 30;
export const SCRUB_DAYS_MAX = 3650;
export const SCRUB_RATE = 32n << 20n;
export const SCRUB_RATE_MIN = 64n << 10n;
export const SCRUB_RATE_MAX = 1n << 40n;
export const DAY_MS = 24 * 3600 * 1000;

/** A snapshot that could not be brought to a copy is tried again after this, and later each time: a full pool stays full a while. */
export const SNAPSHOT_COPY_AGAIN_MS = 30_000;
export const SNAPSHOT_COPY_AGAIN_MS_MAX = 3_600_000;

/** Volumes with copies in a pool may grow to this many times its size before it is called a problem: thin is allowed. */
export const OVERCOMMIT = 4;
export const OVERCOMMIT_MAX = 1000;

/** Used of a pool, in percent. At 98 % it takes nothing that may need room (weftd's gate); below this it does again, and above it what is deleted is given up early. */
export const GO_ON_PERCENT = 97;

/** One request waits so long with a host that is not to stop yet; who wants to wait longer asks again. */
export const STOP_WAIT_MS_MAX = 55_000;

/** So long a host's stop is held up where no guest elsewhere would feel it. */
export const STOP_IDLE_MS = 120_000;

/** A deleted volume rests this long: a mistake is noticed the next morning (architecture.md, safety rule 5). */
export const TRASH_MS = 24 * 3600 * 1000;
/** A host's reboot takes 10 minutes; a copy made anew during one would be wasted (protocol.md 4.13). */
export const REBUILD_AFTER_MS = 30 * 60 * 1000;
/** With one copy left waiting costs more than a wasted copy (protocol.md 4.13). */
export const REBUILD_LAST_COPY_MS = 60 * 1000;
/** A detached volume whose member is away is opened without it after this (protocol.md 4.14). */
export const DEGRADED_OPEN_MS = 60 * 1000;
/** Giving a copy of many TiB its blocks, or those of an aged snapshot, takes a while: then whoever asked for it hears no more of it. */
export const MAKE_MS_MAX = 600_000;
/** A wish that was given up stays so much longer than any copy takes to be made: none comes to nobody. */
export const GIVEN_UP_MS = MAKE_MS_MAX + 60_000;
/** An asked-for change that did not show up is asked for again; every one is idempotent. */
export const ASK_AGAIN_MS = 15_000;

/** Certificates begin this much before they are made, and are remembered this much after their end: a clock may be
 * wrong by a day, and by an hour more for a time zone taken for UTC. */
export const CLOCK_SLACK_MS = 25 * 3600 * 1000;

/**
 * The signed trust list in bytes. Nobody joins when it would be longer than the first: what is left is for revocations and
 * certificates. Where another authority takes over, the list stands twice in one transaction, of which etcd takes 1.5 MiB.
 */
export const TRUST_BYTES = { join: 640 * 1024, takeOver: 720 * 1024, most: 1 << 20 };

/** Certificates of one host that may still be used: a renewal each 20 days needs three. */
export const HOST_CERTS_MAX = 64;

/** Of a request, at the unix socket and at port 7400. Node would drop what comes after them, and read another request. */
export const HEADERS_MAX = 64;

/** The door on port 7400: connections and handshakes by address, before anything of them is read (gate.ts). */
export const DOOR_LIMITS = {
  connections: 256,
  strangers: 192,
  perStranger: 16,
  perHost: 64,
  unproven: 32,
  handshakesPerAddress: 20,
  handshakesOfStrangers: 100,
};
/** Of one caller at that door: a host of the cluster, or an address. */
export const DOOR_REQUESTS = { perSecond: 100, burst: 200, atOnce: 16 };
export const DOOR_HANDSHAKE_MS = 2000;
export const DOOR_HEADERS_MS = 2000;
export const DOOR_REQUEST_MS = 5000;
export const DOOR_IDLE_MS = 5000;
export const DOOR_HEADER_BYTES_MAX = 8192;
export const DOOR_BODY_BYTES_MAX = 64 * 1024;
export const DOOR_REQUESTS_PER_CONNECTION = 1000;

/** Who has no token may try so often to guess one, from one address. */
export const WRONG_TOKENS = { tries: 5, windowMs: 60_000 };
export const JOIN_TOKENS_MAX = 100;
export const JOIN_TOKEN_MS = 60 * 60 * 1000;
export const JOIN_TOKEN_MS_MAX = 7 * 24 * 3600 * 1000;
export const API_TOKENS_MAX = 1000;
/** A token of a program that nobody looks after ends some day. */
export const API_TOKEN_MS = 90 * 24 * 3600 * 1000;
export const API_TOKEN_MS_MAX = 2 * 365 * 24 * 3600 * 1000;
/**
 * Connections to the unix socket at one moment: all, those of users who aren't root together, and of one of these. Root's are those of
 * XAPI too, and a host that starts all its VMs asks for each of their disks at once, with two or three connections each.
 */
export const UNIX_CONNECTIONS = { together: 1024, others: 96, perUser: 32 };

/** Kept free in each pool for the log, checkpoints and stamps that every later repair needs (protocol.md R20). */
export function poolReserveBytes(totalBytes: bigint): bigint {
  const twentieth = totalBytes / 20n;
  const most = 8n << 30n;
  return twentieth < most ? twentieth : most;
}
