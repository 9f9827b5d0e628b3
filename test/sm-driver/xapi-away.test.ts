/**
 * XAPI, asked back by a command, is slow, answers garbage or nothing, or has ended the session: at each of the questions of each
 * command. The command is answered with a fault that says so, or does without; asked again by an XAPI that is well it is done once and
 * whole, and nothing that XAPI doesn't know stays but what a scan will take away.
 */
import { randomUUID } from "node:crypto";

import t from "tap";

import { DriverFailure } from "./lib/client.ts";
import { makesNew, type Plot, plots, seen, staged } from "./lib/plots.ts";
import { World } from "./lib/world.ts";
import type { Garbled, XapiRequest, XapiServer } from "./lib/xapi-server.ts";

/** So long it is waited for one that never answers. */
const HANG_MS = 100;

type Trouble = {
  /** Until it is well again: it stays so. */
  readonly stays: boolean;
  readonly answer: (xapi: XapiServer, request: XapiRequest) => Garbled | null;
};

const HANGS = "never answers";
const ok = (body: string): Garbled => ({ status: 200, body });
const response = (members: string): Garbled =>
  ok(
    `<?xml version="1.0"?><methodResponse><params><param><value><struct>${members}</struct></value></param></params></methodResponse>`,
  );
const member = (name: string, value: string): string =>
  `<member><name>${name}</name><value>${value}</value></member>`;
const SUCCESS = member("Status", "Success");

const troubles: Readonly<Record<string, Trouble>> = {
  [HANGS]: { stays: true, answer: () => "hang" },
  "answers with an error of HTTP": { stays: true, answer: () => ({ status: 500, body: "<html>" }) },
  "has ended the session": {
    stays: true,
    answer: (xapi, { params: [session] }) => {
      if (typeof session === "string") xapi.closeSession(session);
      return null;
    },
  },
  "answers half": { stays: false, answer: () => ok('<?xml version="1.0"?><methodResponse><params><par') },
  "answers nothing": { stays: false, answer: () => ok("") },
  "answers no XML, and much of it": { stays: false, answer: () => ok("x".repeat(1 << 20)) },
  "answers with a fault": {
    stays: false,
    answer: () =>
      ok(
        "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-32601</int></value></member>" +
          "<member><name>faultString</name><value>no such method</value></member></struct></value></fault></methodResponse>",
      ),
  },
  "answers without a status": { stays: false, answer: () => response(member("Value", "x")) },
  "answers without a value": { stays: false, answer: () => response(SUCCESS) },
  "answers a number": { stays: false, answer: () => response(SUCCESS + member("Value", "<int>7</int>")) },
  "answers a list": {
    stays: false,
    answer: () => response(SUCCESS + member("Value", "<array><data><value>x</value></data></array>")),
  },
  "answers a struct of something else": {
    stays: false,
    answer: () => response(SUCCESS + member("Value", `<struct>${member("uuid", "1")}</struct>`)),
  },
  "refuses without a word": {
    stays: false,
    answer: () =>
      response(member("Status", "Failure") + member("ErrorDescription", "<array><data/></array>")),
  },
};

const all: readonly Plot[] = [
  ...plots,
  { command: "sr_scan", call: () => ({}) },
  { command: "sr_update", call: () => ({}) },
];

/** XAPI takes these for more than a failure: it clones by hand, forgets the disk, takes it for somebody's. */
const MEANT = new Set([24, 38, 39, 144, 1200]);

function failureOf(error: unknown): DriverFailure {
  if (error instanceof DriverFailure) return error;
  throw error;
}

for (const plot of all) {
  void t.test(
    `${plot.command}: with an XAPI that is slow, ill or gone at any of its questions`,
    async (t) => {
      const { command } = plot;
      let undisturbed: object | null = null;
      let questions = 0;
      const none: readonly [string, Trouble | null] = ["nothing wrong", null];
      for (const [what, trouble] of [none, ...Object.entries(troubles)]) {
        for (let at = 0; at < (trouble === null ? 1 : questions); at += 1) {
          const world = await World.start(t);
          const h1 = world.host(0);
          const { disk, snapshot } = await staged(world, plot);
          const asked = plot.call(world, disk, snapshot);
          const before = world.xapi.requests.length;
          world.xapi.garble = (request) => {
            const nth = world.xapi.requests.length - before - 1;
            const isIll = trouble !== null && (trouble.stays ? nth >= at : nth === at);
            return isIll ? trouble.answer(world.xapi, request) : null;
          };
          const { xapiMs } = h1.waits;
          if (what === HANGS) h1.waits.xapiMs = HANG_MS;
          const first = await h1.call(command, asked).then(
            () => null,
            (error: unknown) => failureOf(error),
          );
          if (trouble === null) questions = world.xapi.requests.length - before;
          world.xapi.garble = null;
          h1.waits.xapiMs = xapiMs;
          const name = `${what} from question ${at + 1} of ${questions} on`;
          if (first !== null) {
            const { code, text } = first;
            t.ok(code > 0 && !MEANT.has(code), `${name}: ${code} ${text.slice(0, 100)}`);
            t.match(text, /XAPI/);
          }
          if (first !== null || !makesNew(command)) await h1.call(command, asked);
          undisturbed ??= seen(world, disk, snapshot);
          t.strictSame(seen(world, disk, snapshot), undisturbed, name);
        }
      }
    },
  );
}

void t.test("a call whose session never was is refused as one that has ended", async (t) => {
  const world = await World.start(t);
  const h1 = world.host(0);
  const disk = await h1.create(1n << 20n);
  world.xapi.garble = (request) => {
    const [session] = request.params;
    if (typeof session === "string") world.xapi.closeSession(session);
    return null;
  };
  await t.rejects(h1.call("vdi_update", { vdiUuid: disk }), { code: 153, text: /SESSION_INVALID/ });
  await t.rejects(h1.call("vdi_delete", { vdiUuid: disk, vdiRef: `OpaqueRef:${randomUUID()}` }), {
    code: 153,
  });
});
