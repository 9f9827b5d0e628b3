/** One good value of each kind of key in the store. */
const [volume, host, pool] = [
  "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b77",
  "11111111-1111-4111-8111-111111111111",
  "33333333-3333-4333-8333-333333333333",
];
const at = "2026-11-21T12:00:00.000Z";

const state = {
  fmt: 1,
  min_reader: 1,
  vol: volume,
  size: "268435456",
  region_shift: 20,
  mode: "excl",
  policy: { copies: 2, min_isr: 1, ack: "durable", on_loss: "pause", spread: "host" },
  epoch: "7",
  rev: "12",
  next_rid: 3,
  deleted: null,
  created_by: "h1/42",
  nonce: "0f0e0d0c-0b0a-0908-0706-050403020100",
  owner: { node: host, session: "22222222-2222-4222-8222-222222222222" },
  next: null,
  clean: false,
  closed_gen: "0",
  replicas: [
    {
      rid: 1,
      node: host,
      pool,
      pool_inc: "4",
      state: "INSYNC",
      base: "0",
      reason: "",
      since: "1790000000000",
    },
  ],
  snaps: { count: 0, newest: null },
  parent: null,
  lineage: [],
  wait: false,
};

export const goodValues = {
  cluster: { id: volume, name: "lab", createdAt: at },
  store: { cluster: volume, incarnation: "1" },
  host: { id: host, name: "h1", address: "10.0.0.1", joinedAt: at },
  pool: { id: pool, node: host, inc: "3", boot_id: "b", intent: null, path: "/pool", kind: "dir" },
  usage: { free: "1", total: "2", state: "serving", reason: null },
  name: { volume },
  alive: { since: at },
  made: { rid: 1, host, pool, made: true },
  want: {
    id: volume,
    name: "db",
    size: "268435456",
    copies: 2,
    minIsr: 1,
    placements: [{ rid: 1, host, pool }],
    deletedAt: null,
    createdBy: "h1/42",
  },
  state,
  extra: state,
} as const;
