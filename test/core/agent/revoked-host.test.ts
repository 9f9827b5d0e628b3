/** A host hears that it was revoked: it says so, once and in these words, and asks for nothing that it isn't given. */
import { randomUUID } from "node:crypto";
import { EventEmitter, once } from "node:events";
import t from "tap";

import type { Log } from "../../../src/core/agent/log.ts";
import type { Mirror } from "../../../src/core/agent/mirror.ts";
import { Rescue } from "../../../src/core/agent/rescue.ts";
import { RotationKeeper, type RotationKeeperOptions } from "../../../src/core/agent/rotation-keeper.ts";
import { revokeHost } from "../../../src/core/model/trust.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";
import { makeCluster, type TestCluster } from "./identity-for-tests.ts";

/** Lines as `error E-HOST-14 the message`. */
class HeardLog {
  readonly lines: string[] = [];
  readonly events = new EventEmitter();

  get log(): Log {
    const hear =
      (level: string) =>
      (facts: { readonly code?: string }, message: string): void => {
        this.lines.push([level, ...(facts.code === undefined ? [] : [facts.code]), message].join(" "));
        this.events.emit("line");
      };
    return Object.fromEntries(
      ["info", "warn", "error", "debug"].map((level) => [level, hear(level)]),
    ) as never;
  }
}

const noMirror = { onChange: () => () => undefined, get: () => null, entries: () => [] } as unknown as Mirror;

/** By a list that begins another authority, since this host held the old one's key. */
async function revoke({ identity, authority, cluster, host }: TestCluster): Promise<void> {
  const nowMs = Date.now();
  const [next, store] = [
    await makeAuthority({ kind: "host", cluster, nowMs }),
    await makeAuthority({ kind: "store", cluster, nowMs }),
  ];
  const named = ({ kid, pem }: typeof next) => ({ kid, pem, state: "active" as const, sinceMs: nowMs });
  const { trust, body } = identity.known;
  const gone = revokeHost(trust, {
    host,
    by: "root",
    nowMs,
    replacement: { id: randomUUID(), authority: named(next), storeAuthority: named(store) },
    nonce: randomUUID(),
  });
  if (gone.kind === "refused") throw new Error(gone.finding.message);
  const taken = identity.offer(authority.sign(trust, "trust", renderTrust(gone.value, body)));
  if (taken.kind === "refused") throw new Error(taken.finding.message);
}

void t.test("revoked host: it asks nobody for another certificate", async (t) => {
  const made = await makeCluster(t);
  let asked = 0;
  const renew = (): Promise<never> => {
    asked += 1;
    return Promise.reject(new Error("not given"));
  };
  made.identity.start({ mirror: noMirror, renew });
  await revoke(made);
  await t.rejects(made.identity.renewNow(), { code: "E-HOST-14", message: /^This host was revoked at / });
  t.equal(asked, 0);
});

void t.test("revoked host: the change of the authority that it forces is no fault of its own", async (t) => {
  const { identity, files, ...made } = await makeCluster(t);
  await revoke({ identity, files, ...made });
  await identity.stop();
  const heard = new HeardLog();
  const looks = new EventEmitter();
  const keeper = new RotationKeeper({
    identity,
    files,
    authority: Object.assign(Object.create(made.authority) as object, { see: () => looks.emit("look") }),
    mirror: noMirror,
    log: heard.log,
    daemon: () => Promise.resolve(null),
    members: () => Promise.resolve([]),
    isMember: () => Promise.resolve(false),
  } as unknown as RotationKeeperOptions);
  const looked = once(looks, "look");
  keeper.start();
  await looked;
  await keeper.stop();
  t.same(heard.lines, []);
});

void t.test("revoked host: one that was off is told so by a member, and says it once", async (t) => {
  const heard = new HeardLog();
  let asked = 0;
  const tries = new EventEmitter();
  const fifth = once(tries, "fifth");
  const rescue = new Rescue({
    isAway: () => true,
    catchUp: () => {
      asked += 1;
      if (asked === 5) tries.emit("fifth");
      const message =
        "This host was revoked at 2026-11-21T12:00:00.000Z: its identity is never trusted again.";
      const code = asked === 1 ? "E-HOST-09" : "E-HOST-14";
      return Promise.reject(new WeftError({ code, message }));
    },
    log: heard.log,
    everyMs: 5,
  });
  await fifth;
  rescue.stop();
  t.equal(heard.lines.length, 1);
  t.match(heard.lines[0], /^error E-HOST-14 This host was revoked at /);
});
