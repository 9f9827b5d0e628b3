/** The unix sockets of a host, by a user of the machine who is neither root nor of a named group. */
import { spawn } from "node:child_process";
import { join } from "node:path";

import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import { request } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

const NOBODY = 65_534;

const requests: readonly (readonly [string, string])[] = [
  ["status", request("GET", "/v1/status", null)],
  ["a new volume", request("POST", "/v1/volumes", JSON.stringify({ name: "mine", size: "1048576" }))],
  ["a steal", request("POST", "/v1/volumes/victim/steal", "{}")],
  ["a host's removal", request("DELETE", "/v1/hosts/h2", null)],
  ["a token", request("POST", "/v1/tokens", "{}")],
  ["the store's backup", request("POST", "/v1/store/backup", JSON.stringify({ path: "/tmp/x" }))],
];

const orders: readonly (readonly [string, string])[] = [
  ["hello", JSON.stringify({ id: 1, method: "hello", params: {} })],
  ["sessions", JSON.stringify({ id: 1, method: "session.list", params: {} })],
  ["pools", JSON.stringify({ id: 1, method: "pool.list", params: {} })],
];

export const socketAttacks: readonly Attack[] = [
  {
    name: "socket-as-nobody",
    door: "unix",
    from: "h3",
    ways: (known) => requests.flatMap(([label, text]) => waysAt(known, "agentSocket", label, text)),
    control: async (known) =>
      mustBe(
        await answers(hostOf(known, "h3").agentSocket, requests[0]?.[1] ?? "", 0),
        "root at the agent's socket",
      ),
  },
  {
    name: "socket-as-nobody",
    door: "weftd.sock",
    from: "h3",
    ways: (known) => orders.flatMap(([label, text]) => waysAt(known, "daemonSocket", label, `${text}\n`)),
    control: async (known) =>
      mustBe(
        await answers(hostOf(known, "h3").daemonSocket, `${orders[0]?.[1] ?? ""}\n`, 0),
        "root at the daemon's socket",
      ),
  },
];

function waysAt(
  known: Knowledge,
  socket: "agentSocket" | "daemonSocket",
  label: string,
  text: string,
): readonly Way[] {
  return [NOBODY, 1000, 1].map((uid) => ({
    label: `${label}, by user ${uid}`,
    run: () => answers(hostOf(known, "h3")[socket], text, uid),
  }));
}

/** Whether anything but a refusal comes back to this user. */
function answers(path: string, text: string, uid: number): Promise<boolean> {
  const script = join(import.meta.dirname, "../as-user.ts");
  const child = spawn(process.execPath, [script, String(uid), path], { stdio: ["pipe", "pipe", "ignore"] });
  const heard: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => heard.push(chunk));
  child.stdin.on("error", () => {});
  child.stdin.end(text);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", () => {
      const said = Buffer.concat(heard).toString("latin1");
      resolve(said !== "" && !/^HTTP\/1\.1 [45]/.test(said));
    });
  });
}
