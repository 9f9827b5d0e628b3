/** SMAPIv3's plug-ins as xapi-storage-script and static-vdis run them, on a real agent and a real store. */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmod, mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { repository, repositoryFiles } from "../../scripts/lib/repository.ts";
import { volumeMethods } from "../../src/sm-driver/smapiv3/volume-plugin.ts";
import { datapathMethods } from "../../src/sm-driver/smapiv3/datapath-plugin.ts";
import { parseUri, uriOf } from "../../src/sm-driver/smapiv3/volume-uri.ts";
import { Driver } from "../../src/sm-driver/driver.ts";
import { Smapiv3 } from "../../src/sm-driver/smapiv3/smapiv3.ts";
import { PlainDatapath } from "./lib/plain-datapath.ts";
import { Steps } from "./lib/steps.ts";
import { MIB, World } from "./lib/world.ts";
import { startCluster, type TestHost } from "../core/agent/test-host.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01";
const NONE = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f09";
const VOLUMES = "packaging/smapiv3/volume/org.xen.xapi.storage.weft3";
const DATAPATHS = "packaging/smapiv3/datapath/weft3";
const GIB = 2 ** 30;

type Ran = { readonly exitCode: number | null; readonly out: unknown };

async function run(path: string, words: readonly string[], stdin: string): Promise<Ran> {
  const child = spawn(path, words, { env: { PATH: "/usr/bin:/bin" }, cwd: "/" });
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
  child.stdin.end(stdin);
  const [exitCode] = (await once(child, "close")) as [number | null];
  return { exitCode, out: JSON.parse(out) };
}

/** The files as they are installed, but for where the agent's socket is. */
async function installed(
  host: TestHost,
): Promise<(method: string, params?: object, words?: readonly string[]) => Promise<Ran>> {
  const text = await readFile(join(repository, VOLUMES, "plugin"), "utf8");
  const root = join(host.directory, "smapiv3");
  for (const [plugin, name] of [
    ["volume", "weft3"],
    ["datapath", "weft3"],
  ] as const) {
    await mkdir(join(root, plugin, name), { recursive: true });
    const file = join(root, plugin, name, "plugin");
    await writeFile(
      file,
      text.replace('RUN = "/run/weft"', `RUN = ${JSON.stringify(join(host.directory, "run"))}`),
    );
    await chmod(file, 0o755);
  }
  return async (method, params, words = ["--json"]) => {
    const plugin = method.startsWith("Datapath.") ? "datapath" : "volume";
    const path = join(root, plugin, "weft3", method);
    await symlink("plugin", path).catch(() => undefined);
    return run(path, words, params === undefined ? "" : JSON.stringify({ dbg: "test", ...params }));
  };
}

await t.test("smapiv3: an SR and its volumes, from creation to their end", async (t) => {
  const [host] = await startCluster(t, 1, 188);
  if (host === undefined) throw new Error("a host");
  const ask = await installed(host);
  const result = async (method: string, params: object): Promise<unknown> => {
    const { exitCode, out } = await ask(method, params);
    t.equal(exitCode, 0, `${method}: ${JSON.stringify(out)}`);
    return out;
  };
  t.match(await result("Plugin.Query", {}), { plugin: "weft3", required_api_version: "5.0" });
  t.equal(await result("Plugin.diagnostics", {}), "healthy");

  const wish = { uuid: SR, configuration: { copies: "1" }, name: "replicated", description: "" };
  const configuration = (await result("SR.create", wish)) as Record<string, string>;
  t.strictSame(configuration, { copies: "1", "sr-uuid": SR });
  t.equal(await result("SR.attach", { configuration }), SR);
  t.match(await result("SR.stat", { sr: SR }), {
    uuid: SR,
    name: "replicated",
    health: ["Healthy", ""],
    clustered: true,
  });
  t.match(await result("SR.probe", { configuration: {} }), [
    { complete: true, configuration: { "sr-uuid": SR } },
  ]);
  // As static-vdis asks.
  const words = ["static-vdis", "--configuration", "copies", "1", "--configuration", "sr-uuid", SR];
  t.strictSame(await ask("SR.attach", undefined, words), { exitCode: 0, out: SR });

  const asked = { sr: SR, name: "root disk", description: "of a VM", size: GIB, sharable: false };
  const volume = (await result("Volume.create", asked)) as { key: string; uri: string[] };
  t.match(volume, {
    name: "root disk",
    virtual_size: GIB,
    read_write: true,
    uri: [uriOf({ sr: SR, vdi: volume.key })],
  });
  const { key } = volume;
  t.match(await ask("Volume.stat", undefined, ["static-vdis", SR, key]), {
    exitCode: 0,
    out: { key, name: "root disk" },
  });
  await result("Volume.set", { sr: SR, key, k: "vdi-type", v: "system" });
  await result("Volume.set", { sr: SR, key, k: "content_id", v: "x" });
  await result("Volume.set_name", { sr: SR, key, new_name: "renamed" });
  await result("Volume.resize", { sr: SR, key, new_size: 2 * GIB });
  t.match(await result("Volume.stat", { sr: SR, key }), {
    name: "renamed",
    virtual_size: 2 * GIB,
    keys: { "vdi-type": "system", content_id: "x" },
  });
  await result("Volume.unset", { sr: SR, key, k: "content_id" });
  const snapshot = (await result("Volume.snapshot", { sr: SR, key })) as { key: string };
  t.match(snapshot, { read_write: false, virtual_size: 2 * GIB });
  const clone = (await result("Volume.clone", { sr: SR, key: snapshot.key })) as { key: string };
  const listed = (await result("SR.ls", { sr: SR })) as readonly { key: string }[];
  t.strictSame(new Set(listed.map((one) => one.key)), new Set([key, snapshot.key, clone.key]));
  t.match(await ask("SR.destroy", { sr: SR }), {
    exitCode: 1,
    out: { code: "SR_BACKEND_FAILURE_39", params: [/E-SR-02/] },
  });
  for (const one of [clone, snapshot, volume]) await result("Volume.destroy", { sr: SR, key: one.key });
  await result("SR.detach", { sr: SR });
  await result("SR.destroy", { sr: SR });

  // What isn't there has SMAPIv3's names.
  t.match(await ask("SR.attach", { configuration }), {
    exitCode: 1,
    out: { code: "SR_does_not_exist", params: [SR] },
  });
  t.match(await ask("Volume.stat", { sr: SR, key }), {
    exitCode: 1,
    out: { code: "Volume_does_not_exist", params: [key] },
  });
  t.match(await ask("SR.ls", { sr: NONE }), {
    exitCode: 1,
    out: { code: "SR_does_not_exist", params: [NONE] },
  });
  t.match(await ask("Volume.compose", { sr: SR, key }), { exitCode: 1, out: { code: "Unimplemented" } });
  t.match(await ask("Volume.resize", { sr: SR, key, new_size: "much" }), {
    exitCode: 1,
    out: { code: "Bad_request" },
  });
  t.match(await ask("Volume.stat", undefined, ["static-vdis", SR]), {
    exitCode: 1,
    out: { params: [/takes dbg sr key/] },
  });
  t.match(await ask("Datapath.attach", { uri: "weft3://x/y", domain: "0" }), {
    exitCode: 1,
    out: { code: "Volume_does_not_exist" },
  });

  await host.stopAgent();
  t.match(await ask("SR.ls", { sr: SR }), {
    exitCode: 1,
    out: { code: "SR_BACKEND_FAILURE_47", params: [/systemctl/] },
  });
});

await t.test(
  "smapiv3: a disk is opened, attached, activated and given back by SMAPIv1's commands",
  async (t) => {
    const world = await World.start(t);
    const vdi = await world.host(0).create(MIB);
    const steps = new Steps();
    const datapath = new PlainDatapath(steps);
    const parts = {
      agentSocket: await world.store.serve(randomUUID(), steps),
      xapiSocket: "/nowhere",
      datapath: () => datapath,
      newUuid: randomUUID,
      log: { info: () => {}, warn: () => {}, error: () => {}, debug: () => {} },
    };
    const smapiv3 = new Smapiv3(parts, new Driver(parts));
    const uri = uriOf({ sr: world.srUuid, vdi });
    const ask = async (method: string, more: object = { domain: "u0_1" }): Promise<unknown> => {
      const request = JSON.stringify({ plugin: "datapath", method, params: { dbg: "test", uri, ...more } });
      return JSON.parse((await smapiv3.handle(request, new AbortController().signal)).body);
    };
    t.strictSame(await ask("Datapath.open", { persistent: true }), { result: null });
    t.match(await ask("Datapath.attach"), {
      result: {
        implementations: [
          ["XenDisk", { params: `/dev/sm/backend/${world.srUuid}/${vdi}`, extra: {}, backend_type: "vbd3" }],
          ["BlockDevice", { path: `/dev/sm/backend/${world.srUuid}/${vdi}` }],
          ["Nbd", { uri: `nbd:unix:/run/blktap-control/nbd/${world.srUuid}/${vdi}:exportname=${vdi}` }],
        ],
      },
    });
    datapath.hasNodes = false;
    const socket = `nbd:unix:/run/blktap-control/nbd/${world.srUuid}/${vdi}:exportname=${vdi}`;
    t.strictSame(await ask("Datapath.attach"), {
      result: {
        implementations: [
          ["XenDisk", { params: socket, extra: {}, backend_type: "vbd3" }],
          ["Nbd", { uri: socket }],
        ],
      },
    });
    t.strictSame(await ask("Datapath.activate"), { result: null });
    t.match(datapath.active.get(vdi), { writable: true });
    // The other interface sees who has it: both are one.
    await world.host(0).call("vdi_attach", { vdiUuid: vdi, args: ["false"] });
    await t.rejects(world.host(0).call("vdi_activate", { vdiUuid: vdi, args: ["false"] }), { code: 24 });
    for (const method of ["Datapath.deactivate", "Datapath.detach"])
      t.strictSame(await ask(method), { result: null });
    t.strictSame(await ask("Datapath.close", {}), { result: null });
    t.equal(datapath.active.size, 0);
    t.equal(datapath.attached.size, 0);
    t.match(await ask("Datapath.resize"), { error: { code: "Unimplemented" } });

    // What is reset on boot: each open that says so goes back, and one that doesn't ends it.
    const guest = async (persistent: boolean, content: string): Promise<string> => {
      await ask("Datapath.open", { persistent });
      for (const method of ["Datapath.attach", "Datapath.activate"]) await ask(method);
      const booted = world.store.disk(vdi).content;
      world.store.disk(vdi).content = content;
      for (const method of ["Datapath.deactivate", "Datapath.detach"]) await ask(method);
      await ask("Datapath.close", {});
      return booted;
    };
    await guest(true, "installed");
    t.equal(await guest(false, "used by Ann"), "installed");
    t.equal(await guest(false, "used by Bob"), "installed");
    t.equal(await guest(true, "upgraded"), "used by Bob");
    t.equal(await guest(false, "used by Cyd"), "upgraded");
  },
);

await t.test("smapiv3: each method that is built has its file, and no other has one", async (t) => {
  const files = (directory: string): ReadonlySet<string> =>
    new Set(
      repositoryFiles()
        .filter((path) => path.startsWith(`${directory}/`) && !path.endsWith("/plugin"))
        .map((path) => path.slice(directory.length + 1).toLowerCase()),
    );
  t.strictSame(files(VOLUMES), new Set(Object.keys(volumeMethods)));
  t.strictSame(files(DATAPATHS), new Set(Object.keys(datapathMethods)));
});

await t.test("smapiv3: a URI is of an SR and a disk, or it is none", async (t) => {
  t.strictSame(parseUri(uriOf({ sr: SR, vdi: NONE })), { sr: SR, vdi: NONE });
  for (const bad of [
    "",
    "weft3://",
    `weft3://${SR}`,
    `weft3://${SR}/x`,
    `nbd://${SR}/${NONE}`,
    `weft3://${SR}/${NONE}/a`,
  ])
    t.equal(parseUri(bad), null);
});
