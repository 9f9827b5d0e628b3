/** Plot: an SR's life as XAPI has it, through the stub, on a real agent and a real store; and what holds while one of them is away. */
import { join } from "node:path";
import t from "tap";

import { startCluster, startHost, type TestHost } from "../core/agent/test-host.ts";
import { stubFor } from "./lib/driver-for-tests.ts";
import { type SrOnHost, callSm, startXapi, type XapiServer } from "./lib/xapi-server.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01";
const OTHER = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f02";
const idOf = (n: number): string => `0a7f5a0e-57a4-4a44-8a28-${String(n).padStart(12, "0")}`;
const GIB = 1n << 30n;

type Scope = { teardown: (end: () => Promise<void>) => void };

async function xapiOf(
  t: Scope,
  host: TestHost,
): Promise<{ readonly xapi: XapiServer; readonly sr: SrOnHost }> {
  const runDir = join(host.directory, "run");
  const xapi = await startXapi(join(runDir, "xapi"));
  t.teardown(() => xapi.close());
  const [own] = xapi.hosts;
  if (own === undefined) throw new Error("the pool has a host");
  const executable = await stubFor(runDir, host.directory);
  const deviceConfig = { copies: "1" };
  return {
    xapi,
    sr: { xapi, host: own, executable, srRef: xapi.addSr(SR, deviceConfig), srUuid: SR, deviceConfig },
  };
}

const labels = ({ xapi, srRef }: SrOnHost): ReadonlySet<unknown> =>
  new Set(xapi.vdis(srRef).map((record) => record.get("name_label")));

await t.test("sr: made, plugged, scanned, found again, deleted; each of it asked twice", async (t) => {
  const [host] = await startCluster(t, 1, 185);
  if (host === undefined) throw new Error("a host");
  const { client } = host;
  const { xapi, sr } = await xapiOf(t, host);
  for (let i = 0; i < 2; i++) {
    t.equal(await callSm(sr, { command: "sr_create", args: ["0"] }), null);
    t.equal(await callSm(sr, { command: "sr_attach" }), null);
    t.equal(await callSm(sr, { command: "sr_scan" }), null);
    t.equal(await callSm(sr, { command: "sr_update" }), null);
  }
  t.match(await client.srs(), [{ uuid: SR, label: "replicated", copies: 1 }]);
  t.match(xapi.record(sr.srRef).get("physical_size"), /^[1-9][0-9]+$/);
  // The scan that attaching asked for has been.
  t.strictSame(xapi.record(sr.srRef).get("other_config"), {});

  const wide = { ...sr, deviceConfig: { copies: "3" }, srUuid: OTHER, srRef: xapi.addSr(OTHER) };
  await t.rejects(callSm(wide, { command: "sr_create", args: ["0"] }), {
    code: 115,
    text: /E-SETUP-04 .*3 copies .* 1 has one/,
  });
  // All that is wrong with it is told at once, and nothing is left of it.
  const nowhere = "00000000-0000-4000-8000-0000000000ff";
  const wrong = { ...wide, deviceConfig: { copies: "9", network: nowhere, copys: "2" } };
  await t.rejects(callSm(wrong, { command: "sr_create", args: ["0"] }), {
    code: 143,
    text: /"copys".*E-VOL-08 .*E-SETUP-03 .*0000000000ff/,
  });
  // Its record in XAPI is gone before it is done, or XAPI can't be told: what was made is taken back.
  xapi.intercept = async ({ method }) => {
    if (method === "SR.set_physical_size") throw new Error("XAPI is away");
  };
  await t.rejects(callSm({ ...wide, deviceConfig: {} }, { command: "sr_create", args: ["0"] }));
  xapi.intercept = null;
  t.strictSame(
    (await client.srs()).map(({ uuid }) => uuid),
    [SR],
  );
  xapi.forget(wide.srRef);

  // Two SRs of one name are two SRs.
  const other = { ...sr, srUuid: OTHER, srRef: xapi.addSr(OTHER) };
  await callSm(other, { command: "sr_create", args: ["0"] });
  const probed = await callSm(sr, { command: "sr_probe", srSmConfig: {} });
  t.match(probed, new RegExp(`<SRlist>.*<UUID>${SR}</UUID>.*<name_label>replicated</name_label>`));
  t.match(probed, new RegExp(`<UUID>${OTHER}</UUID>`));
  await callSm(other, { command: "sr_delete" });
  await callSm(other, { command: "sr_delete" });

  // XAPI's database was lost: its records come back with their names; nothing is done twice.
  await client.createVdi(SR, { uuid: idOf(1), size: GIB, label: "root <&> disk", description: "of a VM" });
  await client.createVdi(SR, { uuid: idOf(2), size: 2n * GIB, label: "data" });
  for (const uuid of [idOf(1), idOf(2)]) await client.changeVdi(uuid, { settled: true });
  await callSm(sr, { command: "sr_scan" });
  t.strictSame(labels(sr), new Set(["data", "root <&> disk"]));
  const first = xapi.record(xapi.vdiRef(idOf(1)));
  t.match(Object.fromEntries(first), {
    location: idOf(1),
    virtual_size: String(GIB),
    type: "user",
    managed: true,
  });
  t.equal(xapi.record(sr.srRef).get("virtual_allocation"), String(3n * GIB));
  const before = xapi.requests.length;
  await callSm(sr, { command: "sr_scan" });
  const writes = xapi.requests
    .slice(before)
    .filter(({ method }) => method.startsWith("VDI.") && !/get/.test(method));
  t.strictSame(writes, [], "a second scan finds nothing to do");

  // Names go from XAPI to the store, sizes from the store to XAPI.
  xapi.set(xapi.vdiRef(idOf(1)), "name_label", "renamed");
  xapi.set(sr.srRef, "name_label", "another name");
  xapi.set(xapi.vdiRef(idOf(2)), "virtual_size", "1");
  await callSm(sr, { command: "sr_scan" });
  t.equal((await client.vdi(idOf(1))).label, "renamed");
  t.equal((await client.sr(SR)).label, "another name");
  t.equal(xapi.record(xapi.vdiRef(idOf(2))).get("virtual_size"), String(2n * GIB));

  await t.rejects(callSm(sr, { command: "sr_delete" }), { code: 39, text: /2 virtual disks/ });
  for (const uuid of [idOf(1), idOf(2)]) await client.deleteVdi(uuid);
  await callSm(sr, { command: "sr_scan" });
  t.strictSame(labels(sr), new Set());
  t.equal((await client.trash()).length, 2, "what is in the trash keeps no SR");
  t.equal(await callSm(sr, { command: "sr_detach" }), null);
  t.equal(await callSm(sr, { command: "sr_delete" }), null);
  await t.rejects(callSm(sr, { command: "sr_attach" }), { code: 47, text: /E-SR-01/ });
  t.strictSame(xapi.violations, []);
  await host.weftd.daemon.stop();
  await t.rejects(callSm(sr, { command: "sr_attach" }), { code: 47, text: /systemctl status weft;/ });
});

await t.test("sr: while the store is away it is attached at once, and a scan forgets nothing", async (t) => {
  const [host] = await startCluster(t, 1, 186);
  if (host === undefined) throw new Error("a host");
  const { xapi, sr } = await xapiOf(t, host);
  await callSm(sr, { command: "sr_create", args: ["0"] });
  await host.client.createVdi(SR, { uuid: idOf(1), size: GIB });
  await host.client.changeVdi(idOf(1), { settled: true });
  await callSm(sr, { command: "sr_scan" });
  // It answers nothing any more, and nobody starts another one: as good as a lost majority.
  const pid = await host.etcd.runningPid();
  if (pid === null) throw new Error("the store runs");
  process.kill(pid, "SIGSTOP");
  t.teardown(async () => void process.kill(pid, "SIGCONT"));

  const begun = performance.now();
  t.equal(await callSm(sr, { command: "sr_attach" }), null);
  const ms = performance.now() - begun;
  t.ok(ms < 9500, `sr_attach took ${Math.round(ms)} ms`);
  await t.rejects(callSm(sr, { command: "sr_scan" }), { code: 47, text: /E-STORE-01/ });
  t.equal(xapi.vdis(sr.srRef).length, 1);

  // XAPI hangs as well: what needs no record of its is done all the same, in time.
  xapi.intercept = () => new Promise(() => undefined);
  const again = performance.now();
  t.equal(await callSm(sr, { command: "sr_attach" }), null);
  t.ok(performance.now() - again < 9500, `sr_attach took ${Math.round(performance.now() - again)} ms`);
  await xapi.close();
  process.kill(pid, "SIGCONT");
});

await t.test("sr: bad wishes are refused by name, and so is a host without a cluster", async (t) => {
  const host = await startHost(t, 187);
  const { sr } = await xapiOf(t, host);
  const wish = (deviceConfig: Readonly<Record<string, string>>, size = "0"): Promise<unknown> =>
    callSm({ ...sr, deviceConfig }, { command: "sr_create", args: [size] });
  for (const copies of ["0", "9", "two", "1.5", ""])
    await t.rejects(wish({ copies }), {
      code: 143,
      text: new RegExp(`E-VOL-08 "${copies}" is no number of copies`),
    });
  await t.rejects(wish({ copys: "2" }), { code: 143, text: /no key "copys".*copies, datapath/ });
  await t.rejects(wish({}, "1GiB"), { code: 143, text: /"1GiB" is no number/ });
  await t.rejects(callSm(sr, { command: "sr_attach" }), { code: 47, text: /in no cluster of weft/ });
  await t.rejects(callSm({ ...sr, srUuid: "x" }, { command: "sr_attach" }), { code: 143, text: /no UUID/ });
});
