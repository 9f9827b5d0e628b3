/**
 * Plot: somebody asks a host's agent for what makes no sense, or writes it into the store behind everybody's back, while a
 * guest uses a volume there. Each request has an answer with a code, no answer is a bug's (E-AGENT-06), nothing is made of
 * nonsense, and the guest, the agent and the daemon go on: the same processes, the same bytes.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import t from "tap";
import { z } from "zod";

import { Cluster } from "../../scripts/cluster/cluster.ts";
import type { Host } from "../../scripts/cluster/host.ts";
import { until, within } from "../../scripts/lib/until.ts";
import { attachAnswer } from "../../src/core/wire/agent-api.ts";
import { MIB, startLoad } from "./stage.ts";

const nobody = "00000000-0000-4000-8000-00000000dead";
const refusal = z.object({ error: z.object({ code: z.string(), message: z.string().min(1).max(1000) }) });

type Answer = { readonly status: number; readonly text: string };
type Ask = {
  readonly method: string;
  readonly path: string;
  readonly body?: string;
  readonly type?: string;
};

/** What the agent answers to a request that no client of ours would make. */
function rest(host: Host, ask: Ask): Promise<Answer> {
  return new Promise((done, fail) => {
    const headers = { "content-type": ask.type ?? "application/json" };
    const { method, path } = ask;
    const call = request({ socketPath: host.agentSocket, method, path, headers }, (answer) => {
      const parts: Buffer[] = [];
      answer.on("data", (part: Buffer) => parts.push(part));
      answer.on("end", () => {
        done({ status: answer.statusCode ?? 0, text: Buffer.concat(parts).toString() });
      });
    });
    call.on("error", fail);
    call.end(ask.body);
  });
}

const volume = (fields: object): Ask => ({
  method: "POST",
  path: "/v1/volumes",
  body: JSON.stringify({ name: "x", size: String(64 * MIB), ...fields }),
});
const put = (path: string, body: unknown): Ask => ({ method: "PUT", path, body: JSON.stringify(body) });
const post = (path: string, body: unknown): Ask => ({ method: "POST", path, body: JSON.stringify(body) });
const patch = (body: unknown): Ask => ({
  method: "PATCH",
  path: "/v1/volumes/v",
  body: JSON.stringify(body),
});
const of = (method: string, path: string): Ask => ({ method, path });

/** Each with the code that it must be refused with. */
const nonsense: readonly (readonly [Ask, string])[] = [
  [of("GET", "/"), "E-ARG-01"],
  [of("GET", "/v1/../../etc/passwd"), "E-ARG-01"],
  [of("PATCH", "/v1/volumes"), "E-ARG-01"],
  [of("GET", `/v1/${"x".repeat(8000)}`), "E-ARG-01"],
  [{ method: "POST", path: "/v1/volumes", body: "{" }, "E-ARG-02"],
  [{ method: "POST", path: "/v1/volumes", body: "\u0000\u0001" }, "E-ARG-02"],
  [{ method: "POST", path: "/v1/volumes", body: "[".repeat(60_000) }, "E-ARG-02"],
  [{ method: "POST", path: "/v1/volumes", body: `"${"x".repeat(70_000)}"` }, "E-LIMIT-01"],
  [{ method: "POST", path: "/v1/volumes", body: "name=x", type: "text/x-unknown" }, "E-ARG-02"],
  [post("/v1/volumes", null), "E-ARG-02"],
  [post("/v1/volumes", []), "E-ARG-02"],
  [volume({ name: "" }), "E-ARG-02"],
  [volume({ name: "-" }), "E-ARG-02"],
  [volume({ name: "../x" }), "E-ARG-02"],
  [volume({ name: "x y" }), "E-ARG-02"],
  [volume({ name: "Ünïcode" }), "E-ARG-02"],
  [volume({ name: "x".repeat(64) }), "E-ARG-02"],
  [volume({ name: { toString: "x" } }), "E-ARG-02"],
  [volume({ size: "0" }), "E-VOL-02"],
  [volume({ size: "-4096" }), "E-ARG-02"],
  [volume({ size: "4097" }), "E-ARG-02"],
  [volume({ size: "1GiB" }), "E-ARG-02"],
  [volume({ size: 4096 }), "E-ARG-02"],
  [volume({ size: "18446744073709547520" }), "E-VOL-02"],
  [volume({ size: "9".repeat(400) }), "E-ARG-02"],
  [volume({ copies: 0 }), "E-ARG-02"],
  [volume({ copies: 9 }), "E-ARG-02"],
  [volume({ copies: 1.5 }), "E-ARG-02"],
  [volume({ copies: 2 }), "E-VOL-03"],
  [volume({ copies: 1, minIsr: 2 }), "E-VOL-06"],
  [volume({ hosts: ["nowhere"] }), "E-ARG-01"],
  [volume({ hosts: [] }), "E-ARG-02"],
  [volume({ __proto__: null, constructor: 1 }), "E-ARG-02"],
  [volume({ name: "v" }), "E-VOL-01"],
  [of("GET", "/v1/volumes/nothing"), "E-ARG-01"],
  [of("GET", `/v1/volumes/${nobody}`), "E-ARG-01"],
  [of("GET", "/v1/volumes/%00"), "E-ARG-01"],
  [of("GET", "/v1/volumes/%ff%fe"), "E-ARG-02"],
  [of("GET", `/v1/volumes/${"x".repeat(500)}`), "E-ARG-02"],
  [patch({}), "E-ARG-02"],
  [patch({ size: null }), "E-ARG-02"],
  [patch({ size: 8192 }), "E-ARG-02"],
  [patch({ size: "NaN" }), "E-ARG-02"],
  [patch({ size: "-4096" }), "E-ARG-02"],
  [patch({ size: String(64 * MIB + 1) }), "E-ARG-02"],
  [patch({ size: "0" }), "E-VOL-02"],
  [patch({ size: String(64 * 2 ** 40 + 4096) }), "E-VOL-02"],
  [patch({ size: "4096" }), "E-VOL-12"],
  [patch({ size: "8192", limits: null }), "E-ARG-02"],
  [patch({ limits: {} }), "E-VOL-17"],
  [patch({ limits: 5 }), "E-ARG-02"],
  [patch({ limits: { iops: 0 } }), "E-VOL-17"],
  [patch({ limits: { iops: -5 } }), "E-VOL-17"],
  [patch({ limits: { iops: 1.5 } }), "E-VOL-17"],
  [patch({ limits: { iops: "5" } }), "E-ARG-02"],
  [patch({ limits: { bps: "0" } }), "E-VOL-17"],
  [patch({ limits: { bps: "-1" } }), "E-ARG-02"],
  [patch({ limits: { iops: 5, burstS: 61 } }), "E-VOL-17"],
  [patch({ limits: { iops: 5, burstS: -1 } }), "E-VOL-17"],
  [patch({ limits: { iops: 5, later: 1 } }), "E-ARG-02"],
  [of("GET", "/v1/volumes/nothing/stats"), "E-ARG-01"],
  [post("/v1/volumes/nothing/scrub", {}), "E-ARG-01"],
  [post("/v1/volumes/v/scrub", { rate: "0" }), "E-ARG-02"],
  [post("/v1/volumes/v/scrub", { rate: "-1" }), "E-ARG-02"],
  [post("/v1/volumes/v/scrub", { rate: 5 }), "E-ARG-02"],
  [post("/v1/volumes/v/scrub", { speed: "5" }), "E-ARG-02"],
  [of("DELETE", "/v1/volumes/nothing/scrub"), "E-ARG-01"],
  [post("/v1/volumes/nothing/snapshots", {}), "E-ARG-01"],
  [post("/v1/volumes/v/snapshots", { name: "" }), "E-ARG-02"],
  [post("/v1/volumes/v/snapshots", { name: "../x" }), "E-ARG-02"],
  [post("/v1/volumes/v/snapshots", { name: "x".repeat(64) }), "E-ARG-02"],
  [post("/v1/volumes/v/snapshots", { name: nobody }), "E-ARG-02"],
  [post("/v1/volumes/v/snapshots", { name: "x", id: "y" }), "E-ARG-02"],
  [post("/v1/volumes/v/snapshots", { name: "x", later: 1 }), "E-ARG-02"],
  [of("GET", "/v1/volumes/nothing/snapshots"), "E-ARG-01"],
  [post("/v1/snapshots", { name: "x" }), "E-ARG-02"],
  [post("/v1/snapshots", { volumes: [] }), "E-ARG-02"],
  [post("/v1/snapshots", { volumes: ["v", "v"] }), "E-ARG-02"],
  [post("/v1/snapshots", { volumes: Array.from({ length: 31 }, () => "v") }), "E-ARG-02"],
  [post("/v1/snapshots", { volumes: ["v", "nothing"] }), "E-ARG-01"],
  [post("/v1/snapshots", { volumes: ["v"], name: "../x" }), "E-ARG-02"],
  [of("GET", "/v1/snapshots/v%40nothing"), "E-SNAP-09"],
  [of("GET", `/v1/snapshots/${nobody}`), "E-SNAP-09"],
  [of("GET", "/v1/snapshots/v"), "E-ARG-02"],
  [of("GET", "/v1/snapshots/v%40a%40b"), "E-ARG-02"],
  [of("GET", "/v1/snapshots/nothing%40a"), "E-ARG-01"],
  [of("DELETE", "/v1/snapshots/v%40nothing"), "E-SNAP-09"],
  [post("/v1/snapshots/v%40nothing/attach", {}), "E-SNAP-09"],
  [post("/v1/snapshots/v%40nothing/detach", {}), "E-SNAP-09"],
  [post("/v1/snapshots/v%40nothing/revert", {}), "E-SNAP-09"],
  [post("/v1/snapshots/v/revert", {}), "E-ARG-02"],
  [post("/v1/snapshots/v%40nothing/destroy-data", {}), "E-SNAP-09"],
  [of("GET", "/v1/snapshots/v%40nothing/changed?since=x"), "E-SNAP-09"],
  [of("GET", "/v1/snapshots/v%40nothing/changed"), "E-ARG-02"],
  [of("GET", "/v1/snapshots/v%40nothing/changed?since=x&len=0"), "E-ARG-02"],
  [of("GET", "/v1/snapshots/v%40nothing/changed?since=x&later=1"), "E-ARG-02"],
  [{ ...patch({ name: "y" }), path: "/v1/snapshots/v%40nothing" }, "E-SNAP-09"],
  [{ ...patch({}), path: "/v1/snapshots/v%40nothing" }, "E-ARG-02"],
  [{ ...patch({ protected: "yes" }), path: "/v1/snapshots/v%40nothing" }, "E-ARG-02"],
  [put("/v1/settings", {}), "E-ARG-02"],
  [put("/v1/settings", { scrub: {} }), "E-ARG-02"],
  [put("/v1/settings", { scrub: { everyDays: -1 } }), "E-ARG-02"],
  [put("/v1/settings", { scrub: { everyDays: 1e9 } }), "E-ARG-02"],
  [put("/v1/settings", { scrub: { rate: "1" } }), "E-ARG-02"],
  [put("/v1/settings", { pools: { overcommit: 0.5 } }), "E-ARG-02"],
  [put("/v1/settings", { snapshots: { copy: "on" } }), "E-ARG-02"],
  [patch({ size: "4096", loseData: "v" }), "E-VOL-12"],
  [patch({ size: String(64 * MIB), loseData: true }), "E-ARG-02"],
  [patch({ size: String(64 * MIB), name: "w" }), "E-ARG-02"],
  [{ ...patch({ size: "8192" }), path: "/v1/volumes/nothing" }, "E-ARG-01"],
  [of("DELETE", `/v1/volumes/${nobody}`), "E-ARG-01"],
  [of("DELETE", "/v1/volumes/v"), "E-VOL-12"],
  [post("/v1/volumes/nothing/attach", {}), "E-ARG-01"],
  [post("/v1/volumes/v/attach", { steal: "yes" }), "E-ARG-02"],
  [post("/v1/volumes/nothing/detach", {}), "E-ARG-01"],
  [post("/v1/volumes/v/replicas", { host: "nowhere" }), "E-ARG-01"],
  [post("/v1/volumes/v/replicas", { host: "h1" }), "E-REPL-02"],
  [of("DELETE", "/v1/volumes/v/replicas/0"), "E-REPL-03"],
  [of("DELETE", "/v1/volumes/v/replicas/77"), "E-ARG-01"],
  [of("DELETE", "/v1/volumes/v/replicas/-1"), "E-ARG-02"],
  [of("DELETE", "/v1/volumes/v/replicas/NaN"), "E-ARG-02"],
  [of("DELETE", "/v1/volumes/v/replicas/99999999999999999999"), "E-ARG-02"],
  [post("/v1/pools", { path: "relative" }), "E-ARG-02"],
  [post("/v1/pools", { path: `/${"x".repeat(5000)}` }), "E-ARG-02"],
  [post("/v1/pools", { path: "/usr" }), "E-POOL-02"],
  [post("/v1/pools", { path: "/dev/null" }), "E-DISK-02"],
  [of("DELETE", `/v1/pools/${nobody}`), "E-ARG-01"],
  [of("DELETE", "/v1/pools/not-an-id"), "E-ARG-01"],
  [of("DELETE", "/v1/hosts/nowhere"), "E-ARG-01"],
  [of("DELETE", "/v1/hosts/h1"), "E-HOST-02"],
  [post("/v1/init", { address: "10.0.0.1" }), "E-HOST-04"],
  [post("/v1/init", { address: "not an address" }), "E-ARG-02"],
  [post("/v1/join", { from: "", token: "04F6", address: "10.0.0.1" }), "E-ARG-02"],
  [post("/v1/join", { from: "h1", address: "10.0.0.1" }), "E-ARG-02"],
  [post("/v1/join", { from: "h1", token: "04F6", address: "10.0.0.1" }), "E-HOST-04"],
  [post("/v1/tokens", { forMs: 1 }), "E-ARG-02"],
  [post("/v1/tokens", { forMs: "1h" }), "E-ARG-02"],
  [post("/v1/tokens", { name: "../h2" }), "E-ARG-02"],
  [of("DELETE", "/v1/tokens/nothing"), "E-ARG-01"],
  [of("DELETE", "/v1/tokens/..%2ftrust"), "E-ARG-01"],
  [of("POST", "/v1/trash/nothing/restore"), "E-ARG-01"],
  [of("DELETE", "/v1/trash/nothing"), "E-ARG-01"],
  [post("/v1/store/backup", { path: "relative" }), "E-ARG-02"],
  [post("/v1/store/backup", { path: "/proc/nowhere/backup" }), "E-STORE-04"],
  [post("/v1/store/restore", { path: "/nowhere/backup" }), "E-STORE-12"],
  [post("/v1/store/repair", { assent: 1 }), "E-ARG-02"],
];

/** One host with a pool, a volume "v" on it, and a guest that writes and checks what it reads. */
async function onOneHost(play: (host: Host, socket: string) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "weft-scenario-"));
  try {
    const cluster = await Cluster.up({ dir, hosts: 1, pools: ["h1"] });
    const host = cluster.host("h1");
    await host.output(["weft", "volume", "create", "v", "32MiB", "--copies", "1"]);
    const { path } = attachAnswer.parse(await host.json(["weft", "attach", "v", "--json"]));
    const before = await Promise.all([host.running("weftd"), host.running("etcd")]);
    try {
      await play(host, path);
      t.same(await Promise.all([host.running("weftd"), host.running("etcd")]), before, "the same processes");
    } catch (error) {
      for (const [name, text] of Object.entries(host.logs())) {
        console.error(`==> ${name} <==\n${text.split("\n").slice(-30).join("\n")}`);
      }
      throw error;
    }
  } finally {
    await Cluster.down(dir);
    rmSync(dir, { recursive: true, force: true });
  }
}

await t.test(
  "agent: REST: names, sizes and JSON that make no sense are refused with their codes (a guest notices nothing)",
  async (t) => {
    await onOneHost(async (host, socket) => {
      const whole = { name: "load", offset: 0, size: 32 * MIB, rate: 4 * MIB } as const;
      const { end } = await startLoad(host, { ...whole, socket, kind: "write-and-verify" });
      const pools = await host.agent().pools();
      for (const [ask, code] of nonsense) {
        const shown = `${ask.method} ${ask.path.slice(0, 80)} ${(ask.body ?? "").slice(0, 80)}`;
        const { status, text } = await rest(host, ask);
        const parsed = refusal.safeParse(parseJson(text));
        t.equal(parsed.success ? parsed.data.error.code : `${status} ${text.slice(0, 200)}`, code, shown);
        t.ok(status >= 400 && status < 500, `${shown}: status ${status}`);
      }
      // Not even HTTP.
      for (const text of [
        "\r\n\r\n",
        "GET\r\n\r\n",
        "\u0000".repeat(1000),
        `GET / HTTP/1.1\r\n${"x: y\r\n".repeat(5000)}`,
      ]) {
        await said(host, text);
      }
      t.same(
        (await host.agent().volumes()).map(({ name }) => name),
        ["v"],
        "nothing was made",
      );
      t.equal((await host.agent().pools()).length, pools.length);
      t.equal((await within(end, { what: "the load", deadlineMs: 40_000 })).exitCode, 0);
      await host.output(["weft", "detach", "v"]);
    });
  },
);

await t.test(
  "agent: store: entries from newer software and from nobody are named, and the other volumes go on",
  async (t) => {
    await onOneHost(async (host, socket) => {
      for (const name of ["newer", "garbage"]) {
        await host.output(["weft", "volume", "create", name, "32MiB", "--copies", "1"]);
      }
      const agent = host.agent();
      const ids = new Map((await agent.volumes()).map(({ name, id }) => [name, id]));
      const state = (name: string): string => `/weft/v1/vol/${ids.get(name)}/state`;
      const record: unknown = JSON.parse(await host.etcdctl(["get", "--print-value-only", state("newer")]));
      const newer = { ...z.looseObject({}).parse(record), fmt: 9, min_reader: 9, mode: "something new" };
      await host.etcdctl(["put", state("newer"), JSON.stringify(newer)]);
      await host.etcdctl(["put", state("garbage"), "{"]);
      for (const key of [
        "vol/x/state",
        "vol/x/want",
        `vol/${nobody}/want`,
        `vol/${nobody}/state`,
        `vol/${nobody}/replica/x`,
      ]) {
        await host.etcdctl(["put", `/weft/v1/${key}`, "garbage"]);
      }
      for (const key of [
        `host/${nobody}`,
        `pool/${nobody}`,
        `pool-usage/${nobody}`,
        `alive/${nobody}`,
        "name/x",
        "new",
      ]) {
        await host.etcdctl(["put", `/weft/v1/${key}`, `{"x":[1,2,{"y":null}]}`]);
      }

      for (const [name, code] of [
        ["newer", "E-STORE-13"],
        ["garbage", "E-STORE-07"],
      ] as const) {
        const health = async (): Promise<true | null> =>
          (await agent.volumes()).find((one) => one.name === name)?.health === "unreadable" ? true : null;
        await until(health, { what: `${name} to be shown as unreadable`, deadlineMs: 10_000 });
        const { text } = await rest(host, post(`/v1/volumes/${name}/attach`, {}));
        t.equal(refusal.parse(parseJson(text)).error.code, code, `attach ${name}: ${text}`);
        t.equal((await rest(host, of("GET", `/v1/volumes/${name}/why`))).status, 200);
      }
      t.same(JSON.parse(await host.etcdctl(["get", "--print-value-only", state("newer")])), newer);
      for (const path of ["/v1/status", "/v1/hosts", "/v1/pools", "/v1/volumes", "/v1/trash"]) {
        t.equal((await rest(host, of("GET", path))).status, 200, path);
      }
      const whole = { name: "load", offset: 0, size: 32 * MIB, rate: null } as const;
      const { end } = await startLoad(host, { ...whole, socket, kind: "write-and-verify" });
      t.equal((await within(end, { what: "the load", deadlineMs: 40_000 })).exitCode, 0);
      await host.output(["weft", "volume", "create", "after", "32MiB", "--copies", "1"]);
      await host.output(["weft", "attach", "after"]);
      await host.output(["weft", "detach", "after"]);
      await host.output(["weft", "detach", "v"]);
    });
  },
);

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Says something to the agent's socket and waits until it is done with it. */
function said(host: Host, text: string): Promise<void> {
  return new Promise((done) => {
    const socket = connect(host.agentSocket, () => socket.end(text));
    socket.on("data", () => {});
    socket.on("error", () => done());
    socket.on("close", () => done());
  });
}
