/** Keys of authorities on a member of the store: when they come, and when they are destroyed. */
import t from "tap";

import { AuthorityKeeper } from "../../../src/core/agent/authority.ts";
import type { Trust } from "../../../src/core/model/trust.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";
import { makeCluster } from "./identity-for-tests.ts";

const MINUTE_MS = 60_000;

void t.test("authority: keys that were given wait for the list that names them", async (t) => {
  const { files, identity, cluster } = await makeCluster(t);
  let nowMs = Date.now();
  const authority = await AuthorityKeeper.open({ files, nowMs: () => nowMs });
  const before = identity.trust();
  const old = authority.kids();
  const host = await makeAuthority({ kind: "host", cluster, nowMs });
  const store = await makeAuthority({ kind: "store", cluster, nowMs });
  await authority.take({ host: [host], store: [store] });
  // The old list is still in force here: whoever cleans up by it now must not take what the next one needs.
  t.equal(await authority.dropOthers(before), 0);
  t.same(new Set(authority.kids()), new Set([...old, host.kid, store.kid]));
  // Nor an agent that was started again meanwhile.
  const again = await AuthorityKeeper.open({ files, nowMs: () => nowMs });
  t.equal(await again.dropOthers(before), 0);
  t.same(new Set(again.kids()), new Set([...old, host.kid, store.kid]));

  const named = ({ kid, pem }: typeof host) => ({ kid, pem, state: "active" as const, sinceMs: nowMs });
  const after: Trust = {
    ...before,
    generation: before.generation + 1n,
    authorities: [named(host)],
    storeAuthorities: [named(store)],
  };
  t.equal(await authority.dropOthers(after), 2, "what a list named, and names no more");
  t.same(new Set(authority.kids()), new Set([host.kid, store.kid]));
  t.ok(authority.holds(after));

  // That list was another's: once named, they go like all others, also after a restart.
  t.same(await files.readUnnamed(), []);
  t.equal(await authority.dropOthers(before), 2);
  t.same(authority.kids(), []);

  await authority.take({ host: [host], store: [] });
  nowMs += 9 * MINUTE_MS;
  t.equal(await authority.dropOthers(before), 0);
  const late = await AuthorityKeeper.open({ files, nowMs: () => nowMs });
  t.equal(await late.dropOthers(before), 0);
  nowMs += 2 * MINUTE_MS;
  t.equal(await late.dropOthers(before), 1, "no list ever named it: a restart is no new beginning");

  // A clock that was set back by a day since then makes it no longer.
  await late.take({ host: [host], store: [] });
  nowMs -= 24 * 60 * MINUTE_MS;
  const back = await AuthorityKeeper.open({ files, nowMs: () => nowMs });
  t.equal(await back.dropOthers(before), 0);
  nowMs += 11 * MINUTE_MS;
  t.equal(await back.dropOthers(before), 1);
});
