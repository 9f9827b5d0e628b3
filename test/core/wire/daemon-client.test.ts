/** The client of the daemon's control socket, against a server that answers as told. */
import t from "tap";

import { DaemonClient, type DaemonEvent } from "../../../src/core/wire/daemon-client.ts";
import { refuse, startFakeDaemon } from "./fake-daemon.ts";

const V = "11111111-1111-4111-8111-111111111111";
const hello = {
  version: "0.1.0",
  wire_min: 1,
  wire_max: 1,
  cluster: null,
  host: null,
  incarnation: "1",
  pid: 7,
  driver: "io_uring",
};

void t.test("daemon: answers find their requests, in whatever order they come", async (t) => {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => (release = resolve));
  const daemon = await startFakeDaemon(t, {
    hello: () => hello,
    "session.list": async () => {
      await held;
      return { sessions: [] };
    },
  });
  const client = new DaemonClient({ socketPath: daemon.socketPath });
  const slow = client.call("session.list", {});
  t.same(await client.call("hello", {}), hello);
  release();
  t.same(await slow, { sessions: [] });
  client.close();
});

void t.test("daemon: a refusal keeps its code, nested facts become text", async (t) => {
  const daemon = await startFakeDaemon(t, {
    "session.open": () => refuse("E-VOL-12", "open on h2", { owner: { node: "h2" }, epoch: "7" }),
  });
  const client = new DaemonClient({ socketPath: daemon.socketPath });
  const params = {
    volume: V,
    mode: "closed",
    export: null,
    caretaker: false,
    old_stopped: false,
    expected: null,
    limits: null,
  } as const;
  await t.rejects(client.call("session.open", params), {
    code: "E-VOL-12",
    exitCode: 2,
    facts: { owner: '{"node":"h2"}', epoch: "7" },
  });
  client.close();
});

// An update restarts the agent alone, and a daemon refuses what it does not know.
void t.test("daemon: one of the version before is asked without what says nothing", async (t) => {
  const unknown = (name: string): never =>
    refuse("E-ARG-02", `parameters of session.open: unknown field \`${name}\``, {
      method: "session.open",
      wrong: `unknown field \`${name}\`, expected one of \`volume\``,
    });
  const asked: string[] = [];
  const daemon = await startFakeDaemon(t, {
    "session.open": (params) => {
      asked.push(Object.keys(params).join());
      for (const name of ["expected", "limits"]) if (name in params) unknown(name);
      return { session: V, epoch: "1", path: null };
    },
  });
  const client = new DaemonClient({ socketPath: daemon.socketPath });
  const plain = { volume: V, mode: "steal", export: null, caretaker: false, old_stopped: false } as const;
  t.match(await client.call("session.open", { ...plain, expected: null, limits: null }), { session: V });
  t.equal(asked.at(-1), "volume,mode,export,caretaker,old_stopped");
  // What says something is never left out: the caller decides.
  await t.rejects(client.call("session.open", { ...plain, expected: V, limits: null }), { code: "E-ARG-02" });
  client.close();
});

void t.test(
  "daemon: what was asked fails with E-AGENT-05 when it goes away, and works when it is back",
  async (t) => {
    const daemon = await startFakeDaemon(t, { hello: () => hello, "pool.list": () => new Promise(() => {}) });
    const client = new DaemonClient({ socketPath: daemon.socketPath });
    await client.call("hello", {});
    const asked = client.call("pool.list", {});
    asked.catch(() => {});
    await client.call("hello", {});
    await daemon.stop();
    await t.rejects(asked, { code: "E-AGENT-05" });
    await t.rejects(client.call("hello", {}), { code: "E-AGENT-05", status: 503 });
    await daemon.start();
    t.same(await client.call("hello", {}), hello);
    await t.rejects(client.call("pool.list", {}, 50), { code: "E-AGENT-05", message: /within 50 ms/ });
    client.close();
  },
);

void t.test("daemon: events are subscribed to again after a reconnect", async (t) => {
  const daemon = await startFakeDaemon(t, {});
  const events: string[] = [];
  let wake = (): void => {};
  const connections: boolean[] = [];
  const client = new DaemonClient({
    socketPath: daemon.socketPath,
    onEvent: (event: DaemonEvent) => {
      events.push(event.event);
      wake();
    },
    onConnection: (connected) => {
      connections.push(connected);
      wake();
    },
  });
  const until = async (test: () => boolean): Promise<void> => {
    while (!test()) await new Promise<void>((resolve) => (wake = resolve));
  };
  const store = {
    reachable: true,
    since_ms: "0",
    last_error: null,
    rolled_back: false,
    watermark: null,
    claims: [],
  };
  await until(() => connections.length === 1);
  daemon.emit({ event: "store.changed", data: store });
  await until(() => events.length === 1);
  await daemon.stop();
  await until(() => connections.length === 2);
  await daemon.start();
  await until(() => connections.length === 3);
  daemon.emit({ event: "store.changed", data: store });
  await until(() => events.length === 2);
  t.same(connections, [true, false, true]);
  client.close();
});
