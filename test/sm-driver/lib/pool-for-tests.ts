/** A pool of XAPI with real agents on its hosts: what one asks of another goes through XAPI and the real plug-in. */
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { AgentOptions } from "../../../src/core/agent/options.ts";
import { openLog } from "../../../src/core/agent/log.ts";
import { xapiDoors } from "../../../src/resident/xapi-doors.ts";
import { poolRef as setupPoolRef } from "../../../src/sm-driver/setup/pool-records.ts";
import { XenApi } from "../../../src/sm-driver/xen-api.ts";
import { startHost, type TestHost } from "../../core/agent/test-host.ts";
import { runDriver } from "./client.ts";
import { NULL_REF, startXapi, type XapiHost, type XapiServer } from "./xapi-server.ts";

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

const PLUGIN = join(import.meta.dirname, "../../../packaging/xapi.d/plugins/weft");
export const NETWORK = "00000000-0000-4000-8000-0000000000bb";

export type TestPool = {
  readonly xapi: XapiServer;
  /** In the order of XAPI's hosts; each is a host of XAPI's of its name, and has an address on the one network. */
  readonly hosts: readonly { readonly weft: TestHost; readonly xapi: XapiHost }[];
  readonly poolRef: string;
  /** What plug-ins were started with. */
  readonly argv: readonly string[];
  /** A session as a driver's call has it. */
  readonly session: () => XenApi;
};

export async function startPool(t: Scope, count: number, first: number): Promise<TestPool> {
  const directory = await mkdtemp(join(tmpdir(), "weft-pool-"));
  const xapi = await startXapi(join(directory, "xapi"), count);
  t.teardown(async () => {
    await xapi.close();
    await rm(directory, { recursive: true, force: true });
  });
  const log = openLog(process.env["WEFT_TEST_LOG"] ?? "silent");
  const poolRef = await poolOf(xapi);
  for (const [name, value] of Object.entries({ name_label: "lab", ha_enabled: false, other_config: {} }))
    xapi.set(poolRef, name, value);
  const network = xapi.add("network", { uuid: NETWORK, name_label: "storage" });
  const hosts: { weft: TestHost; xapi: XapiHost }[] = [];
  const plugins = new Map<string, string>();
  for (const [n, host] of xapi.hosts.entries()) {
    const weft = await startHost(t, first + n, null, null, ({ directory: own }) => {
      const options = { runDir: join(own, "run"), xapiSocket: xapi.socketPath, dom0Root: own };
      return xapiDoors(options satisfies Partial<AgentOptions>, log);
    });
    xapi.set(host.ref, "hostname", weft.name);
    const metrics = xapi.add("PIF_metrics", { speed: "25000" });
    xapi.add("PIF", {
      host: host.ref,
      network,
      IP: weft.address,
      IPv6: [],
      metrics,
      management: true,
      currently_attached: true,
    });
    const text = await readFile(PLUGIN, "utf8");
    const path = join(directory, `weft-${n}`);
    await writeFile(
      path,
      text.replace('RUN = "/run/weft"', `RUN = ${JSON.stringify(join(weft.directory, "run"))}`),
    );
    await chmod(path, 0o755);
    plugins.set(host.ref, path);
    hosts.push({ weft, xapi: host });
  }
  const argv: string[] = [];
  xapi.plugin = async ({ ref }, argument) => {
    argv.push(argument);
    return (await runDriver(plugins.get(ref) ?? "", argument)).stdout;
  };
  return {
    xapi,
    hosts,
    argv,
    poolRef,
    session: () =>
      new XenApi({
        socketPath: xapi.socketPath,
        sessionRef: xapi.openSession(NULL_REF),
        subtaskOf: null,
        deadline: AbortSignal.timeout(60_000),
      }),
  };
}

/** XAPI's ref of its pool. */
export async function poolOf(xapi: XapiServer): Promise<string> {
  const options = { socketPath: xapi.socketPath, subtaskOf: null, deadline: AbortSignal.timeout(5000) };
  return setupPoolRef(new XenApi({ ...options, sessionRef: xapi.openSession(NULL_REF) }));
}
