/** What a host says about a revocation is believed of its own key alone. */
import { createPrivateKey, createPublicKey } from "node:crypto";
import { EventEmitter, once } from "node:events";
import t from "tap";

import type { Changed } from "../../../src/core/agent/mirror.ts";
import { readAck, RevocationAcks } from "../../../src/core/agent/revocation-acks.ts";
import { revokeHost, withKey } from "../../../src/core/model/trust.ts";
import { kidOf } from "../../../src/core/wire/certificate.ts";
import { WeftError } from "../../../src/core/wire/errors.ts";
import { signByHost } from "../../../src/core/wire/signed.ts";
import type { Entry } from "../../../src/core/wire/store-client.ts";
import { keys } from "../../../src/core/wire/store-keys.ts";
import { makeKey } from "../../../src/core/wire/x509-make.ts";
import { listMembers, makeCluster, newHostId, relist, silent } from "./identity-for-tests.ts";

void t.test(
  "revocation: an acknowledgement is its host's own, of this revocation, or it is none",
  async (t) => {
    const { identity, host, files } = await makeCluster(t);
    const [gone, other] = [newHostId(), newHostId()];
    const [goneKey, otherKey] = [makeKey(), makeKey()];
    const nowMs = Date.now();
    const listed = [
      { host: gone, name: "h2", address: "10.0.0.2", key: goneKey },
      { host: other, name: "h3", address: "10.0.0.3", key: otherKey },
    ].reduce((trust, { key, ...rest }) => {
      const kid = kidOf(createPublicKey(key.reveal()));
      const added = withKey(trust, { ...rest, kid, nowMs, nonce: "" });
      if (added.kind === "refused") throw new Error(added.finding.message);
      return added.value;
    }, identity.trust());
    const revoked = revokeHost(listed, { host: gone, by: "t", nowMs, nonce: "", replacement: null });
    if (revoked.kind === "refused") throw new Error(revoked.finding.message);
    const trust = revoked.value;
    const said = { agent: true, weftd: true, member: true, revoked: gone, by: host };
    const keyOf = (key: typeof goneKey) => createPrivateKey(key.reveal());
    const own = keyOf(identity.certificate.keyPem);
    const body = JSON.stringify(said);
    t.match(readAck(trust, signByHost("revocation-ack", body, own), gone, host), said);
    const [authority] = (await files.readAuthorities()).host;
    if (authority === undefined) throw new Error("an authority");
    const plots: Readonly<Record<string, string>> = {
      unsigned: body,
      "by the host that is to be cut off": signByHost("revocation-ack", body, keyOf(goneKey)),
      "by another host": signByHost("revocation-ack", body, keyOf(otherKey)),
      "by the authority": signByHost("revocation-ack", body, keyOf(authority.keyPem)),
      "as something else": signByHost("api-token", body, own),
      "of another revocation": signByHost("revocation-ack", JSON.stringify({ ...said, revoked: other }), own),
      "said for another": signByHost("revocation-ack", JSON.stringify({ ...said, by: other }), own),
      "with another body": signByHost("revocation-ack", body, own).replace("true", "false"),
      "no JSON": "{",
      "no key": JSON.stringify({ body, key: "AAAA", sig: "AAAA" }),
    };
    for (const [what, text] of Object.entries(plots)) t.equal(readAck(trust, text, gone, host), null, what);
    const theirs = signByHost("revocation-ack", JSON.stringify({ ...said, by: gone }), keyOf(goneKey));
    t.equal(readAck(trust, theirs, gone, gone), null, "who is revoked says nothing more");
  },
);

/** The store's keys, and a mirror of them that is told at once. `puts` are answered when the event is taken. */
class FakeStore {
  readonly events = new EventEmitter();
  readonly values = new Map<string, string>();
  failures = 0;

  async put(key: string, value: string): Promise<void> {
    if (this.failures > 0) {
      this.failures -= 1;
      throw new WeftError({ code: "E-STORE-01", message: "away" });
    }
    this.set(key, value);
  }

  /** Null: it is deleted. */
  set(key: string, value: string | null): void {
    if (value === null) this.values.delete(key);
    else this.values.set(key, value);
    this.events.emit("changed", new Set([key]));
    if (value !== null) this.events.emit("put", value);
  }

  get(key: string): Entry | null {
    const value = this.values.get(key);
    return value === undefined ? null : { key, value, createRevision: 1n, modRevision: 1n, lease: 0n };
  }

  onChange(listener: (changed: Changed) => void): () => void {
    this.events.on("changed", listener);
    return () => this.events.off("changed", listener);
  }
}

void t.test(
  "revocation: it is said after a restart, when weftd follows, and again when it is gone",
  async (t) => {
    const made = await makeCluster(t);
    const { identity, host } = made;
    const [gone, older] = listMembers(made, ["10.0.0.2", "10.0.0.3"]);
    if (gone === undefined || older === undefined) throw new Error("two hosts");
    const nowMs = Date.now();
    relist(made, (trust) => {
      // Neither of them ever had the authority's keys.
      const hosts = new Map(Array.from(trust.hosts, ([id, entry]) => [id, { ...entry, held: [] }]));
      const once = revokeHost(
        { ...trust, hosts },
        { host: gone, by: "t", nowMs, nonce: "", replacement: null },
      );
      if (once.kind === "refused") throw new Error(once.finding.message);
      const atMs = nowMs - 8 * 24 * 3600_000;
      const twice = revokeHost(once.value, {
        host: older,
        by: "t",
        nowMs: atMs,
        nonce: "",
        replacement: null,
      });
      if (twice.kind === "refused") throw new Error(twice.finding.message);
      return twice.value;
    });
    const store = new FakeStore();
    store.failures = 1;
    let generation = identity.trust().generation - 1n;
    const started = () =>
      new RevocationAcks({
        store,
        mirror: store,
        identity,
        log: silent,
        cut: () => undefined,
        daemonGeneration: () => Promise.resolve(generation),
        isStoreCut: () => Promise.resolve(true),
      });
    const key = keys.revocationBy(gone, host);
    const nextPut = async () => {
      const [value] = (await once(store.events, "put")) as [string];
      return readAck(identity.trust(), value, gone, host);
    };
    // The list came while no agent ran.
    let first = nextPut();
    const acks = started();
    t.match(await first, { agent: true, weftd: false, member: true });
    generation += 1n;
    first = nextPut();
    acks.nudge();
    t.match(await first, { agent: true, weftd: true, member: true });
    // Before who asked has seen it.
    first = nextPut();
    store.set(key, null);
    t.match(await first, { agent: true, weftd: true, member: true });
    store.set(key, "garbage");
    t.match(await nextPut(), { agent: true, weftd: true, member: true });
    acks.stop();

    const puts: string[] = [];
    store.events.on("put", (value: string) => puts.push(value));
    const again = started();
    first = nextPut();
    // What stands there is not written again; what goes is.
    store.set(key, null);
    await first;
    again.stop();
    t.equal(puts.length, 1);
    t.same([...store.values.keys()], [key], "of what is long ago nothing is said");
  },
);
