/** Plot: a host starts; XAPI, agent and store's agent are not up yet, and static-vdis attaches a disk from what was kept of it. */
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

import { repository } from "../../scripts/lib/repository.ts";
import type { AgentClient } from "../../src/core/wire/agent-client.ts";
import type { SmContext } from "../../src/sm-driver/call.ts";
import { smCallOf } from "../../src/sm-driver/call.ts";
import { staticCommands } from "../../src/sm-driver/static-attach.ts";
import { FakeDaemon, type Handlers, refuse } from "../core/wire/fake-daemon.ts";
import { replyOf, requestOf, runDriver } from "./lib/client.ts";
import { stubFor } from "./lib/driver-for-tests.ts";

const SR = "8d2e2c0e-4a54-4b8c-9d2a-7d3f4f8d9f01";
const VDI = "0a7f5a0e-57a4-4a44-8a28-1a8c41a0c002";
const HOST = "0a7f5a0e-57a4-4a44-8a28-1a8c41a0c003";

type Scope = { teardown: (end: () => Promise<void>) => void };

async function configOf(type: string, volume: string = VDI): Promise<string> {
  const request = requestOf({
    command: "vdi_generate_config",
    deviceConfig: { copies: "2" },
    srRef: "OpaqueRef:r",
    srUuid: SR,
    vdiRef: "OpaqueRef:v",
    vdiUuid: VDI,
  });
  const agent = { vdi: async () => ({ type, volume }) } as unknown as AgentClient;
  const context = { call: smCallOf(request), agent } as SmContext;
  return (await staticCommands["vdi_generate_config"]?.(context)) as string;
}

async function stubWith(
  t: Scope,
  handlers: Handlers,
): Promise<{ readonly stub: string; readonly daemon: FakeDaemon }> {
  const directory = await mkdtemp(join(tmpdir(), "weft-static-"));
  const daemon = new FakeDaemon(join(directory, "weftd.sock"), handlers);
  await daemon.start();
  t.teardown(async () => {
    await daemon.stop();
    await rm(directory, { recursive: true });
  });
  return {
    stub: await stubFor(directory, directory, { PATIENCE_S: 0.1, STATIC_S: 1, AGAIN_S: 0.05 }),
    daemon,
  };
}

/** As static-vdis does it: the kept text is the argument, and for the end the command's name is replaced in it. */
async function attach(stub: string, config: string): Promise<unknown> {
  return replyOf("vdi_attach_from_config", await runDriver(stub, config));
}
async function detach(stub: string, config: string): Promise<unknown> {
  const text = config.replaceAll("vdi_attach_from_config", "vdi_detach_from_config");
  return replyOf("vdi_detach", await runDriver(stub, text));
}

await t.test("static: what is kept attaches the disk by weftd alone, and lets it go", async (t) => {
  const config = await configOf("user");
  const { stub, daemon } = await stubWith(t, {
    "session.open": () => ({ session: SR, epoch: "3", path: "/run/weft/nbd/x.sock" }),
    "session.close": () => ({ lost_writes: [] }),
  });
  t.strictSame(await attach(stub, config), {
    params: "/run/weft/nbd/x.sock",
    params_nbd: `nbd:unix:/run/weft/nbd/x.sock:exportname=${VDI}`,
  });
  t.equal(await detach(stub, config), null);
  t.match(daemon.calls, [
    { method: "session.open", params: { volume: VDI, mode: "closed" } },
    { method: "session.close", params: { volume: VDI, abandon: false } },
  ]);
});

await t.test("static: a disk that came by a migration is the volume that it was laid over", async (t) => {
  const { stub, daemon } = await stubWith(t, {
    "session.open": () => ({ session: SR, epoch: "3", path: "/run/weft/nbd/x.sock" }),
    "session.close": () => ({ lost_writes: [] }),
  });
  const config = await configOf("user", HOST);
  await attach(stub, config);
  await detach(stub, config);
  // What was kept before that was told has the disk's UUID, or something else there.
  await attach(stub, config.replace(HOST, "x"));
  t.strictSame(
    daemon.calls.map(({ params }) => params["volume"]),
    [HOST, HOST, VDI],
  );
});

await t.test(
  "static: the stub asks weftd for what weftd's own schema says, and for nothing else",
  async (t) => {
    const { stub, daemon } = await stubWith(t, {
      "session.open": () => ({ session: SR, epoch: "3", path: "/run/weft/nbd/x.sock" }),
      "session.close": () => ({ lost_writes: [] }),
    });
    const config = await configOf("user");
    await attach(stub, config);
    await detach(stub, config);
    const text = readFileSync(join(repository, "native/weft-control/schema.json"), "utf8");
    const { $defs } = JSON.parse(text) as { $defs: Record<string, { required?: string[] }> };
    for (const [at, name] of ["SessionOpen", "SessionClose"].entries()) {
      const given = new Set(Object.keys(daemon.calls[at]?.params ?? {}));
      t.ok(given.size > 1, name);
      t.strictSame(given, new Set($defs[name]?.required), name);
    }
  },
);

await t.test(
  "static: one that this host owned before it was started again is opened, another host's never",
  async (t) => {
    const config = await configOf("redo_log");
    for (const owner of [HOST, SR]) {
      const { stub, daemon } = await stubWith(t, {
        "session.open": ({ mode }) =>
          mode === "steal"
            ? { session: SR, epoch: "4", path: "/run/weft/nbd/x.sock" }
            : refuse("E-VOL-12", `volume is open on host ${owner}`, { host: owner, session: VDI }),
        hello: () => ({ host: HOST }),
      });
      if (owner === HOST) t.match(await attach(stub, config), { params: "/run/weft/nbd/x.sock" });
      else await t.rejects(attach(stub, config), { code: 46, text: /E-VOL-12 volume is open on host/ });
      const modes = daemon.calls.flatMap(({ params: { mode, expected } }) =>
        mode === undefined ? [] : [{ mode, expected }],
      );
      // Exactly the session that was this host's is replaced: by then it may be another's.
      const steal = { mode: "steal", expected: VDI };
      t.strictSame(modes, [{ mode: "closed", expected: null }, ...(owner === HOST ? [steal] : [])]);
    }
  },
);

await t.test("static: while a whole pool starts it is tried until the store has a majority", async (t) => {
  const config = await configOf("redo_log");
  let asked = 0;
  const { stub, daemon } = await stubWith(t, {
    "session.open": ({ mode }) => {
      asked += 1;
      if (asked < 4) return refuse("E-STORE-01", "the store has no majority");
      return mode === "steal"
        ? { session: SR, epoch: "4", path: "/run/weft/nbd/x.sock" }
        : refuse("E-VOL-12", "volume is open", { host: HOST, session: VDI });
    },
    hello: () => ({ host: HOST }),
  });
  t.match(await attach(stub, config), { params: "/run/weft/nbd/x.sock" });
  t.strictSame(
    daemon.calls.flatMap(({ params }) => params["mode"] ?? []),
    ["closed", "closed", "closed", "closed", "steal"],
  );
});

await t.test(
  "static: a disk that isn't open is let go all the same, and what can't be done says why",
  async (t) => {
    const config = await configOf("user");
    const { stub, daemon } = await stubWith(t, {
      "session.close": () => refuse("E-VOL-13", "not open here"),
      "session.open": () => refuse("E-STORE-01", "the store has no majority"),
    });
    t.equal(await detach(stub, config), null);
    await t.rejects(attach(stub, config), { code: 46, text: /E-STORE-01 the store has no majority/ });
    await daemon.stop();
    await t.rejects(attach(stub, config), { code: 47, text: /systemctl status weft\]/ });
    const cut = config.slice(0, config.length / 2) + "<methodName>vdi_attach_from_config</methodName>";
    await t.rejects(attach(stub, cut), { code: 143 });
    await t.rejects(attach(stub, config.replace(VDI, "../../etc")), { code: 143 });
  },
);

await t.test("static: a disk that all hosts write at once is refused", async (t) => {
  await t.rejects(configOf("ha_statefile"), { code: 38, message: /statefile/ });
});
