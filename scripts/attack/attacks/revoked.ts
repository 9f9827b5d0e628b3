/**
 * A host that was revoked: what it had open is cut within five seconds, and nothing of it is let in again, neither by a TLS
 * session of before nor by its key or an old token.
 *
 * The last attack on a stage: the host is gone after it.
 */
import { connect } from "node:tls";
import type { TLSSocket } from "node:tls";

import { AgentClient } from "../../../src/core/wire/agent-client.ts";
import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import type { TcpDoor } from "../doors.ts";
import { isLetIn } from "../doors.ts";
import { knock, request, showing, statusOf } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";
import { hold } from "./lies.ts";

const CUT_MS = 5000;
const EACH = 4;
const ASK_MS = 1000;
const HTTP = ["7400", "7402"] as const;
const doors: readonly TcpDoor[] = ["7400", "7401", "7402"];

let revoked: Promise<{ readonly open: readonly Open[] }> | null = null;

type Open = {
  readonly label: string;
  /** Resolves when it was cut; false: it is still open when the time is over. */
  readonly cut: Promise<boolean>;
  /** Of TLS, to begin another connection with. */
  readonly session: () => Buffer | undefined;
  readonly door: TcpDoor;
  readonly address: string;
};

export const revokedAttacks: readonly Attack[] = [
  {
    name: "revoked-host",
    door: "7401",
    from: "h4",
    changes: /./,
    ways: async (known) => {
      revoked ??= openAndRevoke(known);
      const { open } = await revoked;
      return [
        ...open.map(({ label, cut }): Way => ({
          label: `${label}, open before: it was not cut within ${CUT_MS} ms`,
          run: async () => !(await cut),
        })),
        ...open.map(({ label, session, door, address }): Way => ({
          label: `${label}, resumed`,
          run: async (local) => {
            const old = session();
            const tls = {
              ...showing(hostOf(known, "h4").identity),
              ...(old === undefined ? {} : { session: old }),
            };
            return isLetIn(door, { address, local, tls });
          },
        })),
        ...doors.flatMap((door) =>
          known.hosts
            .filter(({ name }) => name !== "h4")
            .map(({ name, address }): Way => ({
              label: `a new connection to ${door} at ${name}`,
              run: (local) => isLetIn(door, { address, local, tls: showing(hostOf(known, "h4").identity) }),
            })),
        ),
        ...known.hosts
          .filter(({ name }) => name !== "h4")
          .map(({ name, address }): Way => ({
            label: `a new certificate for its key, at ${name}`,
            run: async (local) => {
              const send = request("POST", "/v1/identity/renew", "{}");
              const tls = showing(hostOf(known, "h4").identity);
              return statusOf(await knock({ address, port: 7400, local, tls, send })) === 200;
            },
          })),
      ];
    },
    control: async (known) => {
      const { address } = hostOf(known, "h1");
      const tls = showing(hostOf(known, "h3").identity);
      // From here the address is h4's: what is refused is the identity, not the address.
      const local = hostOf(known, "h4").address;
      mustBe(await isLetIn("7401", { address, local, tls }), "h3's certificate from h4's address");
    },
  },
];

async function openAndRevoke(known: Knowledge): Promise<{ readonly open: readonly Open[] }> {
  const open: Open[] = [];
  let revokedAt: () => void = () => {};
  const decision = new Promise<void>((resolve) => (revokedAt = resolve));
  for (const { name, address } of known.hosts.filter((host) => host.name !== "h4")) {
    for (let i = 0; i < EACH; i += 1) {
      for (const door of HTTP) {
        const { socket, session } = await openTls(known, door, address);
        const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
        open.push({ label: `${door} at ${name}`, door, address, session, cut: within(closed, decision) });
      }
    }
    const { ended } = await hold(known, `${address}:7401`);
    open.push({
      label: `7401 at ${name}`,
      door: "7401",
      address,
      session: () => undefined,
      cut: within(ended, decision),
    });
  }
  const client = new AgentClient({ socketPath: hostOf(known, "h1").agentSocket });
  const answer = client.revokeHost("h4");
  revokedAt();
  await answer;
  return { open };
}

/** Whether it ended within the time from the decision on. */
async function within(closed: Promise<void>, decision: Promise<void>): Promise<boolean> {
  await decision;
  let timer: NodeJS.Timeout | null = null;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), CUT_MS);
  });
  const cut = await Promise.race([closed.then(() => true), late]);
  if (timer !== null) clearTimeout(timer);
  return cut;
}

/** A connection of HTTP that has been served once and is kept. */
async function openTls(
  known: Knowledge,
  door: (typeof HTTP)[number],
  address: string,
): Promise<{ readonly socket: TLSSocket; readonly session: () => Buffer | undefined }> {
  const { identity } = hostOf(known, "h4");
  const socket = connect({
    host: address,
    port: Number(door),
    ...showing(identity),
    rejectUnauthorized: false,
    servername: "",
  });
  socket.on("error", () => {});
  let last: Buffer | undefined;
  socket.on("session", (session: Buffer) => (last = session));
  const body = door === "7402" ? JSON.stringify({ key: "AA==" }) : "";
  const head = door === "7402" ? "POST /v3/kv/range" : "GET /v1/hello";
  const text = `${head} HTTP/1.1\r\nhost: weft\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
  // Asked again and again: a connection that is idle is closed anyway, and would prove nothing.
  const timer = setInterval(() => socket.write(text), ASK_MS);
  socket.once("close", () => clearInterval(timer));
  await new Promise<void>((resolve, reject) => {
    socket.once("secureConnect", () => socket.write(text));
    socket.once("data", () => resolve());
    socket.once("close", () =>
      reject(new Error(`${door} at ${address} does not serve h4 before it is revoked`)),
    );
  });
  return { socket, session: () => last };
}
