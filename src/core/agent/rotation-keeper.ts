/**
 * This host's part in a change of the authority (rotation.ts): it does what the list asks of it, says so, and takes the next
 * step where it is its turn to.
 *
 *     list ──▶ duties: renew, certificate of etcd, restart of etcd ──▶ acknowledgement (a key of its own)
 *     acknowledgements ──▶ next list, by the first living member; by any, where that one takes too long
 *
 * Must always hold:
 * - what is acknowledged is so: the list and the certificate in both processes, the bundle in the running etcd. Each host
 *   signs its own with its key, and is believed by the key that the list has: nobody hurries a change in another's name;
 * - two that take a step do no harm: it is one swap of the list that it was decided from;
 * - keys of authorities that are gone are destroyed.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";

import { ok } from "../model/finding.ts";
import { byText, parseHostId } from "../model/ids.ts";
import type { HostId } from "../model/ids.ts";
import { stepRotation } from "../model/rotation.ts";
import type { Awaited as AwaitedHost, MemberAck, RotationAck } from "../model/rotation.ts";
import { signerOf } from "../model/trust.ts";
import type { Trust } from "../model/trust.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import type { IdentityFiles } from "../wire/identity-files.ts";
import { u64 } from "../wire/json-types.ts";
import type { StoreClient } from "../wire/store-client.ts";
import { openOfHost } from "../wire/signed-trust.ts";
import { keys } from "../wire/store-keys.ts";
import { readCertificate } from "../wire/certificate.ts";
import type { AuthorityKeeper } from "./authority.ts";
import { aliveOf } from "./facts.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { DaemonIdentity } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import { Overdue } from "./overdue.ts";
import { readValue } from "./store-value.ts";
import { changeTrust } from "./trust-change.ts";
import { Wake } from "./wake.ts";

/** Without an event, while the authority changes. */
const LOOK_MS = 1000;
const IDLE_MS = 60_000;

const ackJson = z.object({
  host: z.string(),
  generation: u64,
  certBy: z.string(),
  member: z
    .object({ storeBy: z.string(), bundle: z.array(z.string()), holds: z.array(z.string()) })
    .nullable(),
});

export type RotationKeeperOptions = {
  readonly store: StoreClient;
  readonly mirror: Mirror;
  readonly identity: IdentityKeeper;
  readonly authority: AuthorityKeeper;
  readonly files: IdentityFiles;
  readonly log: Log;
  /** Null: weftd doesn't answer. */
  readonly daemon: () => Promise<DaemonIdentity | null>;
  /** Hosts that have a member of the store, by what the store says now. */
  readonly members: () => Promise<readonly HostId[]>;
  /** Whether this host runs one. */
  readonly isMember: () => Promise<boolean>;
  /** How long a step may wait for the host whose turn it is; shorter in tests. */
  readonly takeOverMs?: number;
};

export class RotationKeeper {
  readonly #options: RotationKeeperOptions;
  readonly #wake = new Wake();
  readonly #stop = new AbortController();
  readonly #overdue: Overdue;
  #running: Promise<void> | null = null;
  readonly #forget: (() => void)[] = [];

  constructor(options: RotationKeeperOptions) {
    this.#options = options;
    this.#overdue = new Overdue(options.takeOverMs);
  }

  start(): void {
    const { identity, mirror } = this.#options;
    this.#forget.push(
      identity.onChange(() => this.nudge()),
      mirror.onChange((changed) => {
        if (changed === null || Array.from(changed).some((key) => key.startsWith(keys.trustAcks)))
          this.nudge();
      }),
    );
    this.#running ??= this.#run();
  }

  nudge(): void {
    this.#wake.nudge();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    for (const forget of this.#forget) forget();
    this.nudge();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { log, identity } = this.#options;
    while (!this.#stop.signal.aborted) {
      try {
        await this.#look();
      } catch (error) {
        // Its parts end one after the other: what a look misses then is no fault.
        if (this.#stop.signal.aborted) return;
        if (isWeftError(error)) log.warn({ code: error.code }, `authority: ${error.message}`);
        else log.error({ error: reasonOf(error) }, "authority: a bug");
      }
      await this.#wake.wait(identity.trust().rotation === null ? IDLE_MS : LOOK_MS);
    }
  }

  async #look(): Promise<void> {
    const { identity, authority, log } = this.#options;
    const trust = identity.trust();
    await authority.see(trust);
    // Revoked or removed: nobody waits for it, and nobody gives it a certificate.
    if (!trust.hosts.has(identity.host)) return;
    if (trust.rotation === null) {
      const dropped = await authority.dropOthers(trust);
      if (dropped > 0) log.info({ dropped }, "keys of authorities that are gone were destroyed");
      return;
    }
    let own = await this.#ownAck(trust);
    if (identity.issuerOf(trust) !== signerOf(trust)) {
      // etcd's own files are the store keeper's to make.
      await identity.renewNow();
      own = await this.#ownAck(trust);
    }
    await this.#say(own, trust);
    await this.#step(trust);
  }

  /** Said again where it doesn't stand in the store: every host can write there. */
  async #say(ack: RotationAck, trust: Trust): Promise<void> {
    const { store, identity, mirror } = this.#options;
    const entry = mirror.get(keys.trustAck(identity.host));
    const known = entry === null ? null : readAck(trust, identity.host, entry.value);
    if (known !== null && bodyOf(identity.host, known) === bodyOf(identity.host, ack)) return;
    await store.put(keys.trustAck(identity.host), identity.sign("trust-ack", bodyOf(identity.host, ack)));
  }

  /** The first living member takes it; another one, where it doesn't. */
  async #step(trust: Trust): Promise<void> {
    const { identity, authority, mirror, store, members, log } = this.#options;
    if (!authority.holds(trust)) return;
    const alive = aliveOf(mirror);
    const those = await members();
    const [first] = those.filter((host) => alive.has(host)).toSorted(byText);
    const acks = acksOf(mirror, trust);
    const input = { acks, members: those, nonce: randomUUID() };
    if (stepRotation({ ...input, trust }, Date.now()).kind !== "write") {
      this.#overdue.clear();
      return;
    }
    if (first !== identity.host && !this.#overdue.is(String(trust.generation))) return;
    await changeTrust({ store, authority, identity }, (now) => {
      const step = stepRotation({ ...input, trust: now }, Date.now());
      return ok(step.kind === "write" ? step.trust : now);
    });
    log.info({ phase: identity.trust().rotation?.phase ?? "done" }, "the change of the authority goes on");
  }

  async #ownAck(trust: Trust): Promise<RotationAck> {
    const { identity, daemon, isMember } = this.#options;
    const known = await daemon();
    const own = trust.generation;
    const ours = Math.floor(identity.certificate.facts.notAfterMs / 1000);
    const isShown = known !== null && Math.floor(known.notAfterMs / 1000) === ours;
    return {
      generation: known === null ? 0n : known.generation < own ? known.generation : own,
      // Nobody's, while weftd shows another one.
      certBy: isShown ? (identity.issuerOf(trust) ?? "") : "",
      member: (await isMember()) ? await this.#memberAck(trust) : null,
    };
  }

  async #memberAck(trust: Trust): Promise<MemberAck> {
    const { files, authority } = this.#options;
    const [certificate, started] = [await files.readEtcdCertificate(), await files.readEtcdStart()];
    const issuer = trust.storeAuthorities.find(({ pem }) => {
      const key = readCertificate(pem)?.publicKey;
      return key !== undefined && certificate?.verify(key) === true;
    });
    return { storeBy: issuer?.kid ?? "", bundle: started?.bundle ?? [], holds: authority.kids() };
  }
}

/** Those that their hosts have signed. */
export function acksOf(mirror: Pick<Mirror, "entries">, trust: Trust): ReadonlyMap<HostId, RotationAck> {
  const acks = new Map<HostId, RotationAck>();
  for (const { key, value } of mirror.entries(keys.trustAcks)) {
    const host = parseHostId(key.slice(keys.trustAcks.length));
    if (host === null) continue;
    const ack = readAck(trust, host, value);
    if (ack !== null) acks.set(host, ack);
  }
  return acks;
}

function readAck(trust: Trust, host: HostId, text: string): RotationAck | null {
  const body = openOfHost(trust, host, "trust-ack", text);
  const ack = body === null ? null : readValue(ackJson, body);
  if (ack === null || ack.host !== host) return null;
  const { generation, certBy, member } = ack;
  return { generation, certBy, member };
}

function bodyOf(host: HostId, { generation, certBy, member }: RotationAck): string {
  const of = member === null ? null : { storeBy: member.storeBy, bundle: member.bundle, holds: member.holds };
  return JSON.stringify({ host, generation: String(generation), certBy, member: of });
}

/** For people: who is waited for, and for what; empty: for nobody. */
export function awaitedNow(mirror: Mirror, trust: Trust, members: readonly HostId[]): readonly AwaitedHost[] {
  const input = { trust, acks: acksOf(mirror, trust), members, nonce: "" };
  const step = stepRotation(input, Date.now());
  return step.kind === "wait" ? step.awaited : [];
}
