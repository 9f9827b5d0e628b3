/** XAPI's records as the driver writes them, judged by a XAPI that takes nothing else; and as it reads them. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { XenApi } from "../../src/sm-driver/xen-api.ts";
import * as records from "../../src/sm-driver/xapi-records.ts";
import { startXapi, type XapiServer } from "./lib/xapi-server.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01";
const VDI = "0a7f5a0e-57a4-4a44-8a28-1a8c41a0c002";

const introduced = {
  uuid: VDI,
  label: "root <&> disk",
  description: "",
  type: "user",
  sharable: false,
  readOnly: false,
  managed: true,
  location: VDI,
  size: 10n << 30n,
  physicalUtilisation: 4096n,
  isSnapshot: false,
  snapshotTime: null,
  snapshotOf: null,
  cbt: false,
  smConfig: {},
  metadataOfPool: null,
};

async function start(t: {
  teardown: (end: () => unknown) => void;
}): Promise<{ readonly server: XapiServer; readonly srRef: string; readonly xapi: XenApi }> {
  const directory = await mkdtemp(join(tmpdir(), "weft-xapi-"));
  const server = await startXapi(join(directory, "xapi"), 2);
  t.teardown(async () => {
    await server.close();
    await rm(directory, { recursive: true });
  });
  const srRef = server.addSr(SR);
  const { socketPath } = server;
  const deadline = new AbortController().signal;
  const xapi = new XenApi({ socketPath, sessionRef: server.openSession(srRef), subtaskOf: null, deadline });
  return { server, srRef, xapi };
}

await t.test(
  "records: a VDI is introduced, read, changed and forgotten; each of it may be asked twice",
  async (t) => {
    const { server, srRef, xapi } = await start(t);
    const ref = await records.introduceVdi(xapi, { ...introduced, srRef });
    t.equal(await records.introduceVdi(xapi, { ...introduced, srRef }), ref);
    t.equal(await records.vdiRef(xapi, VDI), ref);
    const [known, ...more] = await records.vdiRecords(xapi, srRef);
    t.strictSame(more, []);
    t.match(known, {
      ref,
      uuid: VDI,
      label: "root <&> disk",
      size: 10n << 30n,
      snapshotOf: records.NULL_REF,
    });
    await records.setVdi(xapi, ref, "set_virtual_size", String(20n << 30n));
    t.equal((await records.vdiRecord(xapi, ref)).size, 20n << 30n);
    await records.setSrSizes(xapi, srRef, {
      physicalSize: 3n,
      physicalUtilisation: 2n,
      virtualAllocation: 1n,
    });
    t.equal(server.record(srRef).get("physical_size"), "3");
    await records.forgetVdi(xapi, ref);
    await records.forgetVdi(xapi, ref);
    t.equal(await records.vdiRef(xapi, VDI), null);
    t.strictSame(server.violations, []);
  },
);

await t.test("records: a VDI of another SR under this uuid is not taken for ours", async (t) => {
  const { server, srRef, xapi } = await start(t);
  const ref = await records.introduceVdi(xapi, { ...introduced, srRef });
  server.set(ref, "location", "elsewhere");
  await t.rejects(records.introduceVdi(xapi, { ...introduced, srRef }), { code: 153, failure: /UNIQUENESS/ });
});

await t.test("records: a record that can't be used is an error, not a record less", async (t) => {
  const { server, srRef, xapi } = await start(t);
  const ref = await records.introduceVdi(xapi, { ...introduced, srRef });
  server.set(ref, "virtual_size", "much");
  await t.rejects(records.vdiRecords(xapi, srRef), { code: 153, message: /virtual_size/ });
});

await t.test("records: a host is dead when XAPI says so, and only then", async (t) => {
  const { server, xapi } = await start(t);
  const [first, second] = server.hosts;
  if (second !== undefined) second.live = false;
  t.match(await records.hostsByLiveness(xapi), [
    { uuid: first?.uuid, live: true },
    { uuid: second?.uuid, live: false },
  ]);
});

await t.test("records: the XAPI of the tests refuses what XAPI refuses", async (t) => {
  const { server, srRef, xapi } = await start(t);
  const other = server.addSr("8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f02");
  await t.rejects(records.introduceVdi(xapi, { ...introduced, srRef: other }));
  await t.rejects(records.introduceVdi(xapi, { ...introduced, srRef, type: "disk" }));
  await records.introduceVdi(xapi, { ...introduced, srRef });
  const twin = "0a7f5a0e-57a4-4a44-8a28-1a8c41a0c003";
  await t.rejects(records.introduceVdi(xapi, { ...introduced, srRef, uuid: twin }));
  await t.rejects(xapi.call("VDI.set_virtual_size", server.vdiRef(VDI), "1.5"));
  await t.rejects(xapi.call("VDI.explode", server.vdiRef(VDI)));
  t.equal(server.violations.length, 5);
});
