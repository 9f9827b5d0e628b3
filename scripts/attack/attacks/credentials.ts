/**
 * Wrong certificates at every TCP door: none, forged, somebody else's, out of time, of a host that is not listed.
 *
 * Each is made of what a thief of a store member's disk has, so that only the list of keys stands between.
 */
import type { ConnectionOptions } from "node:tls";

import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import type { TcpDoor } from "../doors.ts";
import { isLetIn } from "../doors.ts";
import { forge, otherAuthority } from "../forge.ts";
import type { Forgery } from "../forge.ts";
import { showing } from "../knock.ts";
import type { Credential, KnownAuthority, Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const CODE_SIGNING = "1.3.6.1.5.5.7.3.3";
const doors: readonly TcpDoor[] = ["7400", "7401", "7402", "7403"];

/** What is right at a door: the store's own has its own authority. */
function rightFor(door: TcpDoor, known: Knowledge): Credential {
  const { identity, store } = hostOf(known, "h3");
  if (door !== "7403") return identity;
  if (store === null) throw new Error("h3 is no member of the store");
  return store;
}

function authorityOf(door: TcpDoor, known: Knowledge): KnownAuthority {
  return door === "7403" ? known.storeAuthority : known.authority;
}

/** The names of h3 as the right certificate has them at this door. */
function namesAt(door: TcpDoor, known: Knowledge): Forgery["names"] {
  const { id, address } = hostOf(known, "h3");
  return door === "7403" ? [{ type: "ip", value: address }] : uris(uriOf(known.cluster, id));
}

type Wrong = {
  readonly label: string;
  readonly make: (known: Knowledge, door: TcpDoor, random: () => number) => Promise<ConnectionOptions>;
};

type Family = {
  readonly name: string;
  readonly doors: readonly TcpDoor[];
  readonly wrongs: readonly Wrong[];
};

/** h3's right certificate for this door, but for what is told. */
async function butFor(known: Knowledge, door: TcpDoor, wrong: Partial<Forgery>): Promise<ConnectionOptions> {
  const { key } = rightFor(door, known);
  const right = { authority: authorityOf(door, known), names: namesAt(door, known), key };
  return showing(await forge({ ...right, ...wrong }));
}

function uriOf(cluster: string, host: string): string {
  return `weft://${cluster}/host/${host}`;
}

function uris(...values: readonly string[]): Forgery["names"] {
  return values.map((value) => ({ type: "url", value }));
}

/** Names beside the one that a certificate of h3 has; `right` is that one. */
const strangeNames: readonly (readonly [
  label: string,
  of: (right: string, known: Knowledge) => readonly string[],
])[] = [
  ["two names", (right, known) => [right, uriOf(known.cluster, hostOf(known, "h1").id)]],
  ["an encoded zero byte", (right) => [`${right}%00`]],
  ["upper case", (right) => [right.toUpperCase()]],
  ["a longer path", (right) => [`${right}/x`]],
  ["a query", (right) => [`${right}?x`]],
  ["another scheme", (right) => [right.replace("weft:", "https:")]],
  ["a user and port", (right) => [right.replace("weft://", "weft://x@").replace("/host/", ":7401/host/")]],
  ["no host", (_, known) => [uriOf(known.cluster, "")]],
  ["a joiner's name", (_, known) => [`weft://join/${hostOf(known, "h3").id}`]],
  ["no name", () => []],
];

const families: readonly Family[] = [
  {
    name: "no-certificate",
    doors,
    wrongs: [{ label: "TLS without a certificate", make: async () => ({}) }],
  },
  {
    name: "self-signed",
    doors,
    wrongs: [
      {
        label: "h3's names, signed by itself",
        make: async (known, door) => showing(await forge({ authority: null, names: namesAt(door, known) })),
      },
      {
        label: "h3's very key and names, signed by itself",
        make: async (known, door) => butFor(known, door, { authority: null }),
      },
    ],
  },
  {
    name: "other-cluster",
    doors,
    wrongs: [
      {
        label: "h3's names and key, by another authority",
        make: async (known, door) => butFor(known, door, { authority: await otherAuthority() }),
      },
    ],
  },
  {
    name: "out-of-time",
    doors,
    wrongs: [
      {
        label: "expired an hour ago",
        make: async (known, door) => butFor(known, door, { notAfterMs: Date.now() - HOUR_MS }),
      },
      {
        label: "expired a year ago",
        make: async (known, door) =>
          butFor(known, door, {
            notBeforeMs: Date.now() - 400 * DAY_MS,
            notAfterMs: Date.now() - 365 * DAY_MS,
          }),
      },
      {
        label: "valid from tomorrow",
        make: async (known, door) => butFor(known, door, { notBeforeMs: Date.now() + DAY_MS }),
      },
    ],
  },
  {
    // etcd believes every chain of its authority: the list of keys is the agents' and daemons'. What a minted
    // certificate reads there is of no use for trust, which is signed; revoking a member makes a new authority.
    name: "minted-with-stolen-authority",
    doors: ["7400", "7401"],
    wrongs: [
      {
        label: "h3's name, another key",
        make: async (known, door) =>
          showing(await forge({ authority: known.authority, names: namesAt(door, known) })),
      },
      {
        label: "another cluster's name, by our authority",
        make: async (known, door) => {
          const other = known.cluster.replace(/^./, (c) => (c === "0" ? "1" : "0"));
          return butFor(known, door, { names: uris(uriOf(other, hostOf(known, "h3").id)) });
        },
      },
      {
        label: "a host that never joined",
        make: async (known, _door, random) =>
          showing(
            await forge({ authority: known.authority, names: uris(uriOf(known.cluster, uuid(random))) }),
          ),
      },
      {
        label: "h1's name, h3's key",
        make: async (known, door) =>
          butFor(known, door, { names: uris(uriOf(known.cluster, hostOf(known, "h1").id)) }),
      },
    ],
  },
  {
    name: "strange-names",
    doors: ["7400", "7401"],
    wrongs: strangeNames.map(([label, of]) => ({
      label,
      make: async (known, door) =>
        butFor(known, door, {
          names: uris(...of(uriOf(known.cluster, hostOf(known, "h3").id), known)),
        }),
    })),
  },
  {
    name: "wrong-purpose",
    doors: ["7400", "7401"],
    wrongs: [
      {
        label: "the authority's own certificate",
        make: async (known) => showing({ cert: known.authority.pem, key: known.authority.key }),
      },
      {
        label: "an authority in h3's name",
        make: async (known, door) => butFor(known, door, { isAuthority: true }),
      },
      {
        label: "a leaf of the store's authority",
        make: async (known) => showing(hostOf(known, "h3").store),
      },
      {
        label: "h3's names and key, for signing code",
        make: async (known, door) => butFor(known, door, { usages: [CODE_SIGNING] }),
      },
    ],
  },
  {
    name: "client-at-peer-port",
    doors: ["7403"],
    wrongs: [
      { label: "h3's identity", make: async (known) => showing(hostOf(known, "h3").identity) },
      { label: "h1's identity", make: async (known) => showing(hostOf(known, "h1").identity) },
      {
        label: "h3's address, by the hosts' authority",
        make: async (known) =>
          showing(await forge({ authority: known.authority, names: namesAt("7403", known) })),
      },
    ],
  },
];

export const credentialAttacks: readonly Attack[] = families.flatMap((family) =>
  family.doors.map((door) => attackOf(family, door)),
);

function attackOf(family: Family, door: TcpDoor): Attack {
  return {
    name: family.name,
    door,
    // etcd compares the names of a member's certificate with where it comes from.
    from: door === "7403" ? "h3" : "stranger",
    ways: (known, random) =>
      family.wrongs.flatMap((wrong) =>
        known.hosts.map((host): Way => ({
          label: `${wrong.label}, at ${host.name}`,
          run: async (local) =>
            isLetIn(door, { address: host.address, local, tls: await wrong.make(known, door, random) }),
        })),
      ),
    control: async (known, local) => {
      const { address } = hostOf(known, "h1");
      const tls = showing(rightFor(door, known));
      mustBe(await isLetIn(door, { address, local, tls }), `h3's own certificate at ${door}`);
    },
  };
}

function uuid(random: () => number): string {
  const hex = Array.from({ length: 32 }, () => Math.floor(random() * 16).toString(16)).join("");
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `4${hex.slice(13, 16)}`,
    `8${hex.slice(17, 20)}`,
    hex.slice(20),
  ].join("-");
}
