/**
 * Half-open handshakes and slow clients at every TCP door: what is asked there is whether others are still served.
 *
 * Our own doors end such a connection by themselves too; etcd's ports belong to etcd, which keeps them.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";
import { connect as connectTls } from "node:tls";

import { pause } from "../../lib/until.ts";
import type { Attack, Way } from "../attack.ts";
import { bytesOf, mustBe } from "../attack.ts";
import type { TcpDoor } from "../doors.ts";
import { isLetIn } from "../doors.ts";
import { showing } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

const HALF_OPEN = 1000;
const SLOW = 100;
const HOLD_MS = 1500;
/** Longer than any wait of ours for a peer's proof or a request's head. */
const SLOW_MS = 7000;
const DRIP_MS = 200;

const doors: readonly TcpDoor[] = ["7400", "7401", "7402", "7403"];

export const floodAttacks: readonly Attack[] = doors.flatMap((door): readonly Attack[] => [
  {
    name: "half-open",
    door,
    from: door === "7403" ? "h3" : "stranger",
    // From one address at a time: who has a hundred addresses on the storage network is beyond any limit for each.
    atOnce: 1,
    ways: (known, random) => halfOpenWays(door, known, random),
    control: async (known, local) => mustBe(await honest(door, known, local), `others at ${door}`),
  },
  {
    name: "slow-loris",
    door,
    from: door === "7403" ? "h3" : "stranger",
    atOnce: 1,
    ways: (known, random) => slowWays(door, known, random),
    control: async (known, local) => mustBe(await honest(door, known, local), `others at ${door}`),
  },
]);

function honest(door: TcpDoor, known: Knowledge, local: string): Promise<boolean> {
  const { identity, store } = hostOf(known, "h3");
  const tls = showing(door === "7403" ? store : identity);
  return isLetIn(door, { address: hostOf(known, "h1").address, local, tls });
}

/** From the attack's own address nobody can expect to be served: the honest one comes from the one beside it. */
function beside(local: string): string {
  const [, head = "", last = "0"] = /^(.*\.)([0-9]+)$/.exec(local) ?? [];
  const value = Number(last);
  return value >= 128 && value <= 191 ? `${head}${128 + ((value - 128 + 32) % 64)}` : local;
}

function halfOpenWays(door: TcpDoor, known: Knowledge, random: () => number): readonly Way[] {
  const { address } = hostOf(known, "h1");
  const beginnings: readonly (readonly [string, Buffer])[] = [
    ["nothing sent", Buffer.alloc(0)],
    ["a record's head", Buffer.from("1603010200", "hex")],
    ["half a greeting", Buffer.concat([Buffer.from("1603010200010001fc0303", "hex"), bytesOf(random, 32)])],
    ["one byte", Buffer.from([0x16])],
  ];
  return beginnings.map(([label, bytes]) => ({
    label: `${HALF_OPEN} connections with ${label}: others were kept out`,
    run: async (local) => {
      const sockets = Array.from({ length: HALF_OPEN }, () => open(address, Number(door), local, bytes));
      try {
        await pause(HOLD_MS / 2);
        const served = await honest(door, known, beside(local));
        await pause(HOLD_MS / 2);
        return !served;
      } finally {
        for (const socket of sockets) socket.destroy();
      }
    },
  }));
}

function slowWays(door: TcpDoor, known: Knowledge, random: () => number): readonly Way[] {
  const { address } = hostOf(known, "h1");
  const port = Number(door);
  const greeting = Buffer.concat([Buffer.from("1603010200010001fc0303", "hex"), bytesOf(random, 501)]);
  const ways: Way[] = [
    {
      label: `${SLOW} greetings, byte by byte`,
      run: (local) =>
        drip(door, known, local, (from) => ({
          socket: open(address, port, from, Buffer.alloc(0)),
          bytes: greeting,
        })),
    },
  ];
  if (door !== "7400") return ways;
  const heads: readonly (readonly [string, Buffer])[] = [
    ["heads of requests", Buffer.from(`GET /v1/hello HTTP/1.1\r\n${"x-slow: yes\r\n".repeat(40)}`, "latin1")],
    [
      "bodies",
      Buffer.from(
        `POST /v1/enrol HTTP/1.1\r\nhost: weft\r\ncontent-length: 400\r\n\r\n${" ".repeat(300)}`,
        "latin1",
      ),
    ],
  ];
  for (const [label, bytes] of heads) {
    ways.push({
      label: `${SLOW} ${label}, byte by byte`,
      run: (local) =>
        drip(door, known, local, (from) => {
          const lower = open(address, port, from, Buffer.alloc(0));
          const socket = connectTls({ socket: lower, rejectUnauthorized: false, servername: "" });
          socket.on("error", () => {});
          return { socket, bytes };
        }),
    });
  }
  return ways;
}

/** Whether one of our doors still listens to such a client at the end, or others are kept out. */
async function drip(
  door: TcpDoor,
  known: Knowledge,
  local: string,
  begin: (from: string) => { readonly socket: Socket; readonly bytes: Buffer },
): Promise<boolean> {
  const clients = Array.from({ length: SLOW }, () => begin(local));
  let at = 0;
  const timer = setInterval(() => {
    for (const { socket, bytes } of clients) {
      if (!socket.destroyed && !socket.connecting) socket.write(bytes.subarray(at, at + 1));
    }
    at += 1;
  }, DRIP_MS);
  try {
    await pause(SLOW_MS / 2);
    const served = await honest(door, known, beside(local));
    await pause(SLOW_MS / 2);
    const isOurs = door === "7400" || door === "7401";
    return !served || (isOurs && clients.some(({ socket }) => !socket.destroyed));
  } finally {
    clearInterval(timer);
    for (const { socket } of clients) socket.destroy();
  }
}

function open(host: string, port: number, localAddress: string, bytes: Buffer): Socket {
  const socket = connect({ host, port, localAddress });
  socket.on("error", () => {});
  if (bytes.length > 0) socket.write(bytes);
  return socket;
}
