/**
 * RUN/agent.sock: the host's own door.
 *
 * Must always hold:
 * - nobody else reaches it at any moment of its life: it is made where only we look, gets its owner and mode, and then its name;
 * - one agent for a run directory.
 */
import { execFile } from "node:child_process";
import { chmod, chown, mkdir, rename, rm } from "node:fs/promises";
import { connect, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import type { FastifyInstance } from "fastify";

import { UNIX_CONNECTIONS } from "../model/limits.ts";
import { type Principal, principalKey } from "../model/roles.ts";
import { WeftError } from "../wire/errors.ts";
import type { UnixPrincipals } from "./principal.ts";

const OWNER_ONLY = 0o600;
const OWNER_AND_GROUP = 0o660;

/** `group`: its members may connect as well. */
export async function listenLocal(app: FastifyInstance, runDir: string, group: string | null): Promise<void> {
  const path = join(runDir, "agent.sock");
  const gid = group === null ? null : await groupId(group);
  await refuseSecond(path);
  const hidden = join(runDir, ".agent");
  await rm(hidden, { recursive: true, force: true });
  await mkdir(hidden, { mode: 0o700 });
  const made = join(hidden, "agent.sock");
  await app.listen({ path: made });
  if (gid !== null && process.getuid !== undefined) await chown(made, process.getuid(), gid);
  await chmod(made, gid === null ? OWNER_ONLY : OWNER_AND_GROUP);
  await rename(made, path);
  await rm(hidden, { recursive: true, force: true });
}

/** Whoever isn't root has a share, and all of them together leave places for root. `refused`: who has used up theirs. */
export function boundConnections(
  server: Server,
  principals: UnixPrincipals,
  refused: (principal: Principal) => void,
): void {
  const { together, others: othersMax, perUser } = UNIX_CONNECTIONS;
  server.maxConnections = together;
  const others = new Map<string, number>();
  server.on("connection", (socket: Socket) => {
    const principal = principals.of(socket);
    if (principal.kind === "root") return;
    const key = principalKey(principal);
    const own = others.get(key) ?? 0;
    const all = Array.from(others.values()).reduce((sum, count) => sum + count, 0);
    if (own >= perUser || all >= othersMax) {
      socket.destroy();
      refused(principal);
      return;
    }
    others.set(key, own + 1);
    socket.once("close", () => {
      const left = (others.get(key) ?? 1) - 1;
      if (left === 0) others.delete(key);
      else others.set(key, left);
    });
  });
}

/** Its name goes too: Node knows the socket only by the one that it was made under. */
export async function removeLocal(runDir: string): Promise<void> {
  await rm(join(runDir, "agent.sock"), { force: true });
}

/** By name or number, as the system's own programs know it. */
async function groupId(group: string): Promise<number> {
  try {
    const { stdout } = await promisify(execFile)("getent", ["group", "--", group]);
    const gid = Number(stdout.split(":")[2] ?? "");
    if (stdout !== "" && Number.isInteger(gid)) return gid;
  } catch (cause) {
    throw noGroup(group, cause);
  }
  throw noGroup(group);
}

function noGroup(group: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-ARG-02",
    message: `--viewer-group "${group}" is not a group of this system.`,
    facts: { group },
    do: [{ why: "See all groups", command: "getent group" }],
    cause,
  });
}

/** A socket file that nobody listens on is left from a crash; one that answers is another agent's. */
async function refuseSecond(path: string): Promise<void> {
  const answers = await new Promise<boolean>((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
  if (answers) {
    throw new WeftError({
      code: "E-HOST-08",
      message: `Another agent serves ${path}.`,
      facts: { socket: path },
    });
  }
  await rm(path, { force: true });
}
