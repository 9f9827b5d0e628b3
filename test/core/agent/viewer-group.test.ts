/**
 * Plot: an agent with `--viewer-group`, asked by a user of that group, by one who is in no such group, and by root.
 *
 * `connect` looks at the effective user of this process, which is another one for just that call.
 */
import { once } from "node:events";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { nativeBin } from "../../../scripts/lib/repository.ts";
import type { AskedAgent } from "../../../src/core/agent/handlers.ts";
import { serveLocal } from "../../../src/core/agent/rest.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { HeardAudit, silent } from "./identity-for-tests.ts";

/** Of Debian: its number is every machine's. */
const GROUP = { name: "nogroup", gid: 65534 };
const USER = 65534;
const OTHER_GROUP = 1;
const isRoot = process.getuid?.() === 0;

/** Connects as that user, of that group alone. */
function connectAs(path: string, uid: number, gid: number): Socket {
  const groups = process.getgroups?.() ?? [];
  process.setgroups?.([]);
  process.setegid?.(gid);
  process.seteuid?.(uid);
  try {
    return connect(path);
  } finally {
    process.seteuid?.(0);
    process.setegid?.(0);
    process.setgroups?.(groups);
  }
}

/** The answer's status, or the code of the error at `connect`. */
async function asked(socket: Socket, line: string): Promise<string> {
  let answer = "";
  socket.on("data", (chunk: Buffer) => (answer += chunk.toString()));
  try {
    await once(socket, "connect");
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? "";
  }
  const headers = ["host: weft", "connection: close", "content-type: application/json", "content-length: 2"];
  socket.write([`${line} HTTP/1.1`, ...headers, "", "{}"].join("\r\n"));
  await once(socket, "close");
  return answer.slice("HTTP/1.1 ".length).slice(0, 3);
}

void t.test(
  "viewer group: its members read, and change nothing; others reach no socket",
  { skip: isRoot ? false : "only root may be another user" },
  async (t) => {
    const runDir = await mkdtemp(join(tmpdir(), "weft-group-"));
    await chmod(runDir, 0o711);
    const audit = new HeardAudit();
    const member = (): never => {
      throw new WeftError({ code: "E-AGENT-03", message: "This host is in no cluster." });
    };
    const agent = { member, audit };
    const options = { runDir, viewerGroup: GROUP.name, addon: join(nativeBin(), "libweft_node.so") };
    const app = await serveLocal(agent as unknown as AskedAgent, options, silent);
    t.teardown(async () => {
      await app.close();
      await rm(runDir, { recursive: true });
    });
    const path = join(runDir, "agent.sock");
    const read = "GET /v1/hosts";
    const change = "POST /v1/volumes";

    t.equal(await asked(connect(path), read), "409", "root is answered: of no cluster");
    t.equal(await asked(connectAs(path, USER, GROUP.gid), read), "409", "a member of the group as well");
    t.equal(await asked(connectAs(path, USER, GROUP.gid), change), "403", "a member changes nothing");
    t.ok(
      audit.lines.some((line) => line.startsWith(`refused ${change}`)),
      audit.lines.join("\n"),
    );
    t.equal(
      await asked(connectAs(path, USER, OTHER_GROUP), read),
      "EACCES",
      "who is no member is not let in",
    );
  },
);
