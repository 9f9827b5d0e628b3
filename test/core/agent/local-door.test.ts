/** Plot: a door that lives in the agent's process is root's alone, takes its own kind of text, and leaves one line in the audit. */
import t from "tap";

import type { AskedAgent } from "../../../src/core/agent/handlers.ts";
import type { LocalDoor } from "../../../src/core/agent/local-door.ts";
import { createApp } from "../../../src/core/agent/rest.ts";
import type { Principal } from "../../../src/core/model/roles.ts";
import { HeardAudit, silent } from "./identity-for-tests.ts";

const root: Principal = { kind: "root", uid: 0, pid: 7 };
const asked: string[] = [];
const door: LocalDoor = {
  method: "POST",
  path: "/v1/sm",
  contentType: "text/xml",
  bodyLimit: 100,
  handle: async (body) => {
    asked.push(body);
    const audit = body === "quiet" ? null : { target: { command: body }, outcome: "ok" };
    return { contentType: "text/xml", body: `<${body}/>`, audit };
  },
};

async function ask(
  principal: Principal,
  payload: string,
  type: string,
): Promise<{ readonly status: number; readonly body: string; readonly audit: HeardAudit }> {
  const audit = new HeardAudit();
  const agent = { audit } as unknown as AskedAgent;
  const app = createApp({ agent, log: silent, names: [], principalOf: () => principal }, [door]);
  const { statusCode, body } = await app.inject({
    method: "POST",
    url: "/v1/sm",
    headers: { "content-type": type },
    payload,
  });
  await app.close();
  return { status: statusCode, body, audit };
}

await t.test("local door: root is answered, and the audit says what was asked", async (t) => {
  const { status, body, audit } = await ask(root, "sr_scan", "text/xml");
  t.match({ status, body }, { status: 200, body: "<sr_scan/>" });
  t.strictSame(audit.lines, ["end POST /v1/sm ok"]);
  t.strictSame((await ask(root, "quiet", "text/xml")).audit.lines, []);
});

await t.test("local door: others are refused before anything is looked at", async (t) => {
  asked.length = 0;
  const others: readonly Principal[] = [
    { kind: "group", uid: 1000, pid: 7 },
    { kind: "nobody", address: "unix uid 1000" },
  ];
  for (const principal of others) {
    const { status, body, audit } = await ask(principal, "sr_delete", "text/xml");
    t.match({ status, body }, { status: 403, body: /E-AUTH-02/ });
    t.match(audit.lines[0], "refused POST /v1/sm E-AUTH-02");
  }
  t.strictSame(asked, []);
});

await t.test("local door: another kind of text, and too much of it, are refused", async (t) => {
  asked.length = 0;
  t.match(await ask(root, "{}", "application/json"), { status: 400, body: /takes text\/xml/ });
  t.match(await ask(root, "a".repeat(101), "text/xml"), { status: 413, body: /E-LIMIT-01/ });
  t.strictSame(asked, []);
});
