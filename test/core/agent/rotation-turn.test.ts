/** Whose turn a step of a change of the authority is, where the first member only seems to live. */
import { randomUUID } from "node:crypto";
import { EventEmitter, once } from "node:events";
import t from "tap";

import type { Mirror } from "../../../src/core/agent/mirror.ts";
import { RotationKeeper, type RotationKeeperOptions } from "../../../src/core/agent/rotation-keeper.ts";
import { revokeHost } from "../../../src/core/model/trust.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import type { AuthorityKeys } from "../../../src/core/wire/x509-make.ts";
import { listMembers, makeCluster, relist, silent } from "./identity-for-tests.ts";

void t.test("rotation: a step that the first member doesn't take is taken by another one", async (t) => {
  const made = await makeCluster(t);
  const { identity, authority, cluster, host, files } = made;
  const [first, revoked] = listMembers(made, ["10.0.0.2", "10.0.0.3"]);
  if (first === undefined || revoked === undefined) throw new Error("two members");
  // Its old authority may go by now, whoever is missing.
  const sinceMs = Date.now() - 11 * 60_000;
  const next = await authority.makeNext(cluster);
  const named = ({ kid, pem }: AuthorityKeys) => ({ kid, pem, state: "active" as const, sinceMs });
  const replacement = { id: randomUUID(), authority: named(next.host), storeAuthority: named(next.store) };
  relist(made, (trust) => {
    const after = revokeHost(trust, { host: revoked, by: "t", nowMs: sinceMs, nonce: "", replacement });
    if (after.kind === "refused") throw new Error(after.finding.message);
    return after.value;
  });
  const issued = await authority.issueHost(identity.trust(), { host, publicKey: identity.publicKey() });
  await identity.take({ certPem: issued.pem, chainPem: issued.chainPem });

  const looks = new EventEmitter();
  const alive = { key: keys.alive(first), value: JSON.stringify({ since: new Date().toISOString() }) };
  let value = identity.text;
  let swaps = 0;
  const keeperOf = (takeOverMs: number): RotationKeeper =>
    new RotationKeeper({
      identity,
      files,
      authority,
      log: silent,
      mirror: {
        onChange: () => () => undefined,
        get: () => null,
        entries: (prefix: string) => (prefix === keys.alive("") ? [alive] : []),
      } as unknown as Mirror,
      store: {
        get: () =>
          Promise.resolve({ key: keys.trust, value, createRevision: 1n, modRevision: 1n, lease: 0n }),
        put: () => Promise.resolve(),
        txn: (_: unknown, [op]: readonly { readonly value: string }[]) => {
          swaps += 1;
          value = op?.value ?? "";
          return Promise.resolve({ kind: "succeeded", revision: 2n });
        },
      },
      daemon: () => Promise.resolve(null),
      members: () => {
        looks.emit("look");
        return Promise.resolve([first]);
      },
      isMember: () => Promise.resolve(false),
      takeOverMs,
    } as unknown as RotationKeeperOptions);
  const patient = keeperOf(3600_000);
  const looked = once(looks, "look");
  patient.start();
  await looked;
  await patient.stop();
  t.equal(swaps, 0, "it is another one's turn");
  const keeper = keeperOf(300);
  const changed = Promise.withResolvers<null>();
  identity.onChange(() => changed.resolve(null));
  keeper.start();
  await changed.promise;
  await keeper.stop();
  t.equal(identity.trust().rotation?.phase, "drop");
});
