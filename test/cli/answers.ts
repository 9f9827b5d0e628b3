/** Answers as the agent sends them: numbers that may pass 2^53 are strings. */
export const ids = {
  cluster: "c0000000-0000-4000-8000-000000000000",
  h1: "10000000-0000-4000-8000-000000000000",
  h2: "20000000-0000-4000-8000-000000000000",
  pool: "b0000000-0000-4000-8000-000000000000",
  db: "d0000000-0000-4000-8000-000000000000",
  session: "50000000-0000-4000-8000-000000000000",
} as const;

export function host(name: "h1" | "h2", rest: object = {}): object {
  return {
    id: ids[name],
    name,
    address: name === "h1" ? "10.0.9.11" : "10.0.9.12",
    joinedAt: "2026-11-21T14:00:00.000Z",
    self: name === "h1",
    alive: true,
    aliveSince: "2026-11-21T14:00:00.000Z",
    store: name === "h1" ? "voter" : "learner",
    labels: { rack: null, site: null },
    ...rest,
  };
}

export function pool(name: "h1" | "h2", rest: object = {}): object {
  return {
    id: ids.pool,
    host: ids[name],
    hostName: name,
    path: "/srv/weft",
    kind: "dir",
    state: "serving",
    reason: null,
    free: "107374182400",
    total: "214748364800",
    bitRot: { found: "0", left: "0" },
    noSnapshots: null,
    room: "plenty",
    ...rest,
  };
}

export function replica(rid: number, name: "h1" | "h2", state: string = "INSYNC", rest: object = {}): object {
  return {
    rid,
    host: ids[name],
    hostName: name,
    pool: ids.pool,
    state,
    reason: null,
    alive: true,
    leaving: false,
    used: "429496729600",
    ...rest,
  };
}

export function volume(rest: object = {}): object {
  return {
    id: ids.db,
    name: "db",
    size: "3298534883328",
    wantedSize: "3298534883328",
    used: "429496729600",
    limits: null,
    scrub: { asked: null, progress: null, last: null },
    snapshots: {
      count: 0,
      deleting: 0,
      fewerCount: 0,
      fewer: [],
      damagedCount: 0,
      damaged: [],
      unable: null,
    },
    reverting: null,
    copies: 2,
    minIsr: 1,
    spread: "host",
    thick: false,
    inSync: 2,
    health: "healthy",
    reason: null,
    epoch: "7",
    rev: "12",
    owner: null,
    replicas: [replica(0, "h1"), replica(1, "h2")],
    createdBy: "test",
    createdFrom: null,
    disk: null,
    deletedAt: null,
    head: null,
    ...rest,
  };
}

export function snapshot(rest: object = {}): object {
  const member = (rid: number, name: "h1" | "h2"): object => ({
    rid,
    host: ids[name],
    hostName: name,
    pool: ids.pool,
    alive: true,
    left: false,
  });
  return {
    id: ids.session,
    name: "before-upgrade",
    volume: ids.db,
    volumeName: "db",
    size: "3298534883328",
    takenAt: "2026-11-22T14:02:07.311Z",
    createdBy: "root@h1",
    state: "ready",
    protected: false,
    copies: 2,
    wantedCopies: 2,
    members: [member(0, "h1"), member(1, "h2")],
    missedBy: [],
    openOn: [],
    ...rest,
  };
}

export function progress(rest: object = {}): object {
  return { volume: ids.db, health: "degraded", workedOnBy: "h1", resync: null, waitingFor: [], ...rest };
}

export function status(rest: object = {}): object {
  return {
    kind: "cluster",
    now: "2026-11-21T14:33:17.000Z",
    agent: { version: "0.1.0", pid: 1 },
    daemon: { reachable: true, reason: null, version: "0.1.0", driver: "io_uring" },
    cluster: { id: ids.cluster, name: "lab", createdAt: "2026-11-21T14:00:00.000Z" },
    self: { host: ids.h1, name: "h1", address: "10.0.9.11" },
    health: "healthy",
    store: {
      writable: true,
      reason: null,
      incarnation: "1",
      revision: "99",
      quotaBytes: "2147483648",
      members: [
        {
          id: "1",
          name: "h1",
          address: "10.0.9.11",
          learner: false,
          leader: true,
          answers: true,
          version: "3.4.23",
          dbBytes: "4096",
        },
      ],
      alarms: [],
    },
    hosts: [host("h1"), host("h2")],
    pools: [pool("h1"), pool("h2")],
    volumes: [volume()],
    problems: [],
    ...rest,
  };
}

export function token(rest: object = {}): object {
  return {
    id: "a81c04fe",
    token: "04F6-0000",
    expiresAt: "2999-11-21T15:00:00.000Z",
    name: null,
    authority: `3f9c21aa77d04be1${"0".repeat(48)}`,
    ...rest,
  };
}

const none = { leUs: [], counts: [], count: "0", sumUs: "0" };

export function stats(rest: object = {}, open: object | null = {}): object {
  const waits = { reads: none, writes: none, stalls: none, limited: none };
  const counts = { reads: "0", writes: "0", trims: "0", readBytes: "0", writtenBytes: "0", gapMsMax: "0" };
  return {
    volume: ids.db,
    name: "db",
    limits: null,
    host: open === null ? null : { id: ids.h1, name: "h1" },
    open:
      open === null
        ? null
        : {
            session: ids.session,
            at: "2026-11-21T14:33:17.000Z",
            limits: null,
            held: 0,
            ...counts,
            waits,
            ...open,
          },
    ...rest,
  };
}

/** What a scrub found. */
export function scrubbed(rest: object = {}): object {
  return {
    startedAt: "2026-11-21T14:00:00.000Z",
    endedAt: "2026-11-21T14:33:17.000Z",
    hostName: "h1",
    whole: true,
    comparedBytes: "53687091200",
    rotten: "0",
    repaired: "0",
    divergent: "0",
    lost: "0",
    members: [
      { rid: 0, hostName: "h1", pool: ids.pool, rotten: "0", repaired: "0" },
      { rid: 1, hostName: "h2", pool: ids.pool, rotten: "0", repaired: "0" },
    ],
    ...rest,
  };
}
