/** The audit of all hosts, asked of one: each tells what it did, and who doesn't answer is named. */
import t from "tap";

import { startCluster } from "./test-host.ts";

const everything = { since: null, volume: null, host: null, who: null, refused: null, limit: null };

void t.test("audit: one host shows what was done at all of them, and names who can't be asked", async (t) => {
  const [h1, h2] = await startCluster(t, 2, 91);
  if (h1 === undefined || h2 === undefined) throw new Error("two hosts");
  await t.rejects(h2.client.deleteVolume("nothing"), { code: "E-ARG-01" });
  const from = async (
    host: typeof h1,
    query: Readonly<Record<string, string>> = {},
  ): Promise<{ lines: string[]; missing: string[] }> => {
    const { lines, missing, names } = await host.client.audit({ ...everything, ...query });
    return {
      lines: lines.map(({ event, what, outcome, host: id }) =>
        [id === null ? "-" : names[id], event, what, outcome].join(" "),
      ),
      missing: missing.map((one) => one.host),
    };
  };
  const all = await from(h1);
  t.same(all.missing, []);
  for (const line of [
    `${h1.name} end POST /v1/enrol ok`,
    `${h1.name} end POST /v1/tokens ok`,
    `${h2.name} end DELETE /v1/volumes/:ref E-ARG-01`,
  ])
    t.ok(all.lines.includes(line), line);
  t.same(await from(h2), all, "whoever is asked");
  const only = await from(h1, { host: h2.name });
  t.ok(only.lines.length > 0);
  t.ok(only.lines.every((line) => line.startsWith(h2.name) || line.startsWith("-")));
  t.notOk((await from(h2, { host: h1.name, who: "nobody" })).lines.some((line) => !line.includes("enrol")));
  await h2.stopAgent();
  const without = await from(h1);
  t.same(without.missing, [h2.name]);
  t.ok(without.lines.some((line) => line.startsWith(h1.name)));
});
