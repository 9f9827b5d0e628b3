/** What commands take out of a request, and what they say when it isn't there. */
import t from "tap";

import * as call from "../../src/sm-driver/call.ts";
import { type DriverCall, requestOf } from "./lib/client.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01";
const VDI = "0a7f5a0e-57a4-4a44-8a28-1a8c41a0c002";

function callOf(asked: Omit<DriverCall, "command">): call.SmCall {
  return call.smCallOf(requestOf({ command: "vdi_attach", ...asked }));
}

await t.test("call: everything that XAPI sends is there, without the master's mark", async (t) => {
  const parsed = callOf({
    args: ["true", "42"],
    deviceConfig: { copies: "3" },
    isMaster: false,
    sessionRef: "OpaqueRef:s",
    srRef: "OpaqueRef:r",
    srUuid: SR.toUpperCase(),
    vdiRef: "OpaqueRef:v",
    vdiUuid: VDI,
    vdiLocation: "where",
    vdiSmConfig: { type: "raw" },
    driverParams: { mirror: "x" },
    onBoot: "reset",
  });
  t.match(parsed, {
    command: "vdi_attach",
    isMaster: false,
    onBoot: "reset",
    allowCaching: false,
    vdiType: null,
  });
  t.strictSame(Array.from(parsed.deviceConfig), [["copies", "3"]]);
  t.strictSame(Array.from(parsed.driverParams), [["mirror", "x"]]);
  t.strictSame(call.srOf(parsed), { ref: "OpaqueRef:r", uuid: SR });
  t.strictSame(call.vdiOf(parsed), { ref: "OpaqueRef:v", uuid: VDI, location: "where" });
  t.equal(call.sessionOf(parsed), "OpaqueRef:s");
  t.equal(call.flagArg(parsed, 0, "writable"), true);
  t.equal(call.sizeArg(parsed, 1), 42n);
  t.equal(call.configOf(parsed, "copies"), "3");
});

await t.test("call: what is missing, or something else than it should be, is named", async (t) => {
  const bare = callOf({
    args: ["maybe", "12e9", "-1", "99999999999999999999"],
    vdiUuid: "not-a-uuid",
    vdiRef: "OpaqueRef:v",
  });
  t.throws(() => call.srOf(bare), { code: 143, message: /no sr_uuid|no sr_ref/ });
  t.throws(() => call.vdiOf(bare), { code: 143, message: /vdi_uuid is "not-a-uuid", which is no UUID/ });
  t.throws(() => call.sessionOf(bare), { code: 143, message: /no session_ref/ });
  t.throws(() => call.flagArg(bare, 0, "writable"), { code: 143, message: /writable is "maybe"/ });
  for (const at of [0, 1, 2, 3])
    t.throws(() => call.sizeArg(bare, at), { code: 143, message: /is no number/ });
  t.throws(() => call.argOf(bare, 4, "a name"), { code: 143, message: /no argument 5 \(a name\)/ });
  t.throws(() => call.configOf(bare, "copies"), { code: 115, message: /no "copies"/ });
});

await t.test("call: empty structs and arrays, as XAPI leaves them, are none", async (t) => {
  const text = requestOf({ command: "sr_scan" }).replace(
    "<value><array><data></data></array></value>",
    "<value/>",
  );
  t.match(call.smCallOf(text), { args: [], srUuid: null });
});
