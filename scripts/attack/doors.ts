/**
 * The four TCP doors of a host, and what being let in means at each of them.
 *
 *     7400 the agent     it hands out the authority's keys
 *     7401 the daemon    it greets (the first frame of the wire)
 *     7402 the store     it shows its keys
 *     7403 the store     it shows its members to one of them
 */
import type { ConnectionOptions } from "node:tls";

import type { Door } from "./attack.ts";
import { knock, request, statusOf } from "./knock.ts";

export type TcpDoor = Extract<Door, "7400" | "7401" | "7402" | "7403">;

/** TLS records: a plaintext stranger who is answered by one of these was not let in. */
const ALERT = 0x15;

export type Attempt = {
  readonly address: string;
  readonly local: string;
  readonly tls: Omit<ConnectionOptions, "host" | "port" | "socket"> | null;
};

/** Whether the door let it in. */
export async function isLetIn(door: TcpDoor, attempt: Attempt): Promise<boolean> {
  const port = Number(door);
  switch (door) {
    case "7400":
      return (
        statusOf(
          await knock({ ...attempt, port, send: request("POST", "/v1/members/credentials", "{}") }),
        ) === 200
      );
    case "7402": {
      const range = { key: base64("/weft/v1/"), range_end: base64("/weft/v10"), limit: "1" };
      const send = request("POST", "/v3/kv/range", JSON.stringify(range));
      return statusOf(await knock({ ...attempt, port, send })) === 200;
    }
    case "7403":
      return statusOf(await knock({ ...attempt, port, send: request("GET", "/members", null) })) === 200;
    case "7401": {
      const tls = attempt.tls === null ? null : { ALPNProtocols: ["weft/1", "weft-auth/1"], ...attempt.tls };
      const heard = await knock({ ...attempt, tls, port, send: "", enough: ({ length }) => length > 0 });
      return heard.length > 0 && heard[0] !== ALERT;
    }
  }
}

function base64(text: string): string {
  return Buffer.from(text, "latin1").toString("base64");
}
