/** No TLS, old TLS, weak TLS, another protocol inside, a session of before. */
import type { ConnectionOptions } from "node:tls";

import type { Attack, Way } from "../attack.ts";
import { bytesOf, mustBe } from "../attack.ts";
import type { TcpDoor } from "../doors.ts";
import { isLetIn } from "../doors.ts";
import { knock, request, showing, statusOf } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

const doors: readonly TcpDoor[] = ["7400", "7401", "7402", "7403"];

/** Beginnings of a frame of ours, as a build without TLS would send them. */
const MAGIC = Buffer.from("WEFT", "latin1");
const ALERT = 0x15;
const HANDSHAKE = 0x16;

export const transportAttacks: readonly Attack[] = [
  ...doors.map((door): Attack => ({
    name: "no-tls",
    door,
    from: door === "7403" ? "h3" : "stranger",
    ways: clearWays(door),
    control: rightOne(door),
  })),
  ...(["7400", "7401"] as const).map((door): Attack => ({
    name: "downgrade",
    door,
    from: "stranger",
    ways: (known) => downgrades.flatMap((tls) => tlsWays(door, known, tls)),
    control: rightOne(door),
  })),
  {
    name: "other-protocol",
    door: "7401",
    from: "stranger",
    ways: (known) => protocols.flatMap((tls) => tlsWays("7401", known, tls)),
    control: rightOne("7401"),
  },
];

/** Each of these with h3's right certificate. */
type Old = { readonly label: string; readonly tls: ConnectionOptions };

const downgrades: readonly Old[] = [
  { label: "TLS 1.2 at most", tls: { maxVersion: "TLSv1.2" } },
  {
    label: "TLS 1.1 at most",
    tls: { minVersion: "TLSv1", maxVersion: "TLSv1.1", ciphers: "DEFAULT@SECLEVEL=0" },
  },
  {
    label: "TLS 1.0 at most",
    tls: { minVersion: "TLSv1", maxVersion: "TLSv1", ciphers: "DEFAULT@SECLEVEL=0" },
  },
  { label: "TLS 1.2 with CBC", tls: { maxVersion: "TLSv1.2", ciphers: "ECDHE-ECDSA-AES128-SHA" } },
  {
    label: "TLS 1.2 without forward secrecy",
    tls: { maxVersion: "TLSv1.2", ciphers: "AES128-SHA:@SECLEVEL=0" },
  },
  {
    label: "TLS 1.2 without a server's certificate",
    tls: { maxVersion: "TLSv1.2", ciphers: "aNULL:@SECLEVEL=0" },
  },
];

const protocols: readonly Old[] = [
  { label: "no protocol named", tls: { ALPNProtocols: [] } },
  { label: "HTTP/2", tls: { ALPNProtocols: ["h2"] } },
  { label: "HTTP/1.1", tls: { ALPNProtocols: ["http/1.1"] } },
  { label: "a version of ours that isn't there", tls: { ALPNProtocols: ["weft/0", "weft/2"] } },
  { label: "MAC only, where encryption is asked for", tls: { ALPNProtocols: ["weft-auth/1"] } },
];

function tlsWays(door: TcpDoor, known: Knowledge, { label, tls }: Old): readonly Way[] {
  return known.hosts.map(({ name, address }) => ({
    label: `${label}, at ${name}`,
    run: async (local) =>
      isLetIn(door, { address, local, tls: { ...showing(hostOf(known, "h3").identity), ...tls } }),
  }));
}

function clearWays(door: TcpDoor): Attack["ways"] {
  return (known, random) => {
    const texts: readonly (readonly [string, Uint8Array | string])[] = [
      ["GET /v1/status", request("GET", "/v1/status", null)],
      ["GET /v1/cluster", request("GET", "/v1/cluster", null)],
      [
        "a read of the store",
        request("POST", "/v3/kv/range", JSON.stringify({ key: "Lw==", range_end: "AA==" })),
      ],
      ["HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
      ["a frame's header", Buffer.concat([MAGIC, bytesOf(random, 60)])],
      ["noise", bytesOf(random, 1 + Math.floor(random() * 500))],
      ["a record of TLS that says nothing", Buffer.from("1603010000", "hex")],
      [
        "application data before a handshake",
        Buffer.concat([Buffer.from("1703030020", "hex"), bytesOf(random, 32)]),
      ],
    ];
    return texts.flatMap(([label, send]) =>
      known.hosts.map(({ name, address }): Way => ({
        label: `${label}, at ${name}`,
        run: async (local) => {
          const heard = await knock({ address, port: Number(door), local, tls: null, send });
          if (heard.length === 0 || heard[0] === ALERT || heard[0] === HANDSHAKE) return false;
          const status = statusOf(heard);
          // A refusal in words tells a stranger nothing of the cluster.
          return status === null || status < 400;
        },
      })),
    );
  };
}

function rightOne(door: TcpDoor): Attack["control"] {
  return async (known, local) => {
    const { address } = hostOf(known, "h1");
    const { identity, store } = hostOf(known, "h3");
    mustBe(
      await isLetIn(door, { address, local, tls: showing(door === "7403" ? store : identity) }),
      `h3's own certificate at ${door}`,
    );
  };
}
