/** How long the trust list gets that is never forgotten who was revoked, and what happens before it is too long. */
import { randomUUID } from "node:crypto";
import t from "tap";

import { changeTrust } from "../../../src/core/agent/trust-change.ts";
import { ok } from "../../../src/core/model/finding.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { TRUST_BYTES } from "../../../src/core/model/limits.ts";
import {
  judgeKey,
  revokeHost,
  type Revoked,
  type Trust,
  type TrustedHost,
} from "../../../src/core/model/trust.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";
import { startStore } from "../wire/etcd-for-tests.ts";
import { makeCluster, newHostId } from "./identity-for-tests.ts";

const DAY_MS = 24 * 3600 * 1000;
const hex = (n: number, digits: number): string => n.toString(16).padStart(digits, "0");

/** With two certificates by the host's authority and one for its etcd, as a member has them. */
function revoked(n: number, endsMs: number): Revoked {
  const serials = [0, 1, 2].map((i) => ({ serial: hex(n * 4 + i, 32), notAfterMs: endsMs }));
  return { name: `host-${n}`, atMs: endsMs - 30 * DAY_MS, by: "root@host-1", keys: [hex(n, 64)], serials };
}

function many(count: number, endsMs: number): ReadonlyMap<HostId, Revoked> {
  return new Map(Array.from({ length: count }, (_, n) => [newHostId(), revoked(n, endsMs)]));
}

async function world(t: Parameters<typeof makeCluster>[0] & Parameters<typeof startStore>[0], n: number) {
  const { endpoints } = await startStore(t, 1, n);
  const store = new StoreClient({ endpoints });
  const made = await makeCluster(t);
  await store.put(keys.trust, made.text);
  const change = async (by: (trust: Trust) => Trust): Promise<number> => {
    const changed = await changeTrust({ store, ...made }, (trust) => ok(by(trust)));
    return changed.kind === "changed" ? Buffer.byteLength(changed.text) : 0;
  };
  const like = made.identity.trust().hosts.get(made.host);
  if (like === undefined) throw new Error("a host");
  /** So many hosts more. */
  const joined = (trust: Trust, count: number): Trust => {
    const host = (i: number): TrustedHost => ({
      ...like,
      name: `h${i}`,
      keys: [{ kid: hex(0xf0000000 + i, 64), sinceMs: 0 }],
      held: [],
    });
    return {
      ...trust,
      hosts: new Map([
        ...trust.hosts,
        ...Array.from({ length: count }, (_, i) => [newHostId(), host(trust.hosts.size + i)] as const),
      ]),
    };
  };
  return { ...made, store, change, joined };
}

void t.test("trust list: 1,000 revocations whose certificates have ended fit, with 100 hosts", async (t) => {
  const { change, joined, identity, cluster } = await world(t, 186);
  const fresh = many(1500, Date.now() + 20 * DAY_MS);
  const long = change((trust) => ({ ...joined(trust, 100), revoked: fresh }));
  await t.rejects(long, { code: "E-LIMIT-01" }, "1,500 within a month are too many for somebody to join");

  const ended = many(1000, Date.now() - 2 * DAY_MS);
  const bytes = await change((trust) => ({ ...joined(trust, 100), revoked: ended }));
  t.comment(`${bytes} bytes`);
  t.ok(bytes < TRUST_BYTES.join / 2, `${bytes} bytes`);
  const now = identity.trust().revoked;
  t.equal(now.size, 1000);
  for (const [host, { name, keys: kids }] of ended) {
    const left = now.get(host);
    if (left?.name !== name || left.keys[0] !== kids[0] || left.serials.length > 0)
      t.fail(`${host} is as it was`);
  }
  // They stay revoked for ever: by the id, and by the key in whatever name.
  const [
    [
      host,
      {
        keys: [kid = ""],
      },
    ] = ["", { keys: [""] }],
  ] = ended;
  const facts = { notBeforeMs: 0, notAfterMs: Date.now() + DAY_MS, issuerKid: null, serverAndClient: true };
  const uris = [`weft://${cluster}/host/${host}`];
  t.match(judgeKey(identity.trust(), { ...facts, kid: "e".repeat(64), uris }), { kind: "revoked", host });
  const other = [`weft://${cluster}/host/${randomUUID()}`];
  t.match(judgeKey(identity.trust(), { ...facts, kid, uris: other }), { kind: "revoked", host });

  // One whose certificates a clock that is a day behind finds valid keeps them.
  const soon = many(1, Date.now() - DAY_MS);
  await change((trust) => ({ ...trust, revoked: new Map([...trust.revoked, ...soon]) }));
  const [[last] = [""]] = soon;
  t.equal(identity.trust().revoked.get(last as HostId)?.serials.length, 3);
});

void t.test(
  "trust list: nobody joins one that is almost full, and a member can still be revoked",
  async (t) => {
    const { change, joined, identity, host, cluster } = await world(t, 187);
    const bytes = await change((trust) => ({ ...trust, revoked: many(1240, Date.now() + 20 * DAY_MS) }));
    t.ok(bytes < TRUST_BYTES.join && bytes > TRUST_BYTES.join - 60_000, `${bytes} bytes`);
    let hosts = 0;
    const full = async (): Promise<unknown> => {
      for (; hosts < 1000; hosts += 20) await change((trust) => joined(trust, 20));
      return null;
    };
    await t.rejects(full(), {
      code: "E-LIMIT-01",
      message: /limit is 655360: it has \d+ hosts and 1240 that were revoked/,
    });
    t.ok(hosts > 0);
    const before = identity.trust().generation;

    // With another authority, whose first list stands twice in what etcd is given at once.
    const nowMs = Date.now();
    const named = async (kind: "host" | "store") => {
      const { kid, pem } = await makeAuthority({ kind, cluster, nowMs });
      return { kid, pem, state: "active" as const, sinceMs: nowMs };
    };
    const replacement = {
      id: randomUUID(),
      authority: await named("host"),
      storeAuthority: await named("store"),
    };
    await change((trust) => {
      const gone = revokeHost(trust, { host, by: "root@h2", nowMs, replacement, nonce: "" });
      if (gone.kind === "refused") throw new Error(gone.finding.message);
      return gone.value;
    });
    t.equal(identity.trust().generation, before + 1n);
    t.ok(identity.trust().revoked.has(host));
  },
);

void t.test("trust list: longer than a host can read is refused before it is signed", async (t) => {
  const { change, identity } = await world(t, 188);
  const { generation } = identity.trust();
  const far = many(2500, Date.now() + 20 * DAY_MS);
  await t.rejects(
    change((trust) => ({ ...trust, revoked: far })),
    { code: "E-LIMIT-01", message: /limit is 1048576/ },
  );
  t.equal(identity.trust().generation, generation);
});
