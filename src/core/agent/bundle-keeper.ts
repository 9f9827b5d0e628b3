/**
 * Who this host is, sealed, on the disk of each of its pools: when its system is installed anew, that is all there is of it.
 *
 * Must always hold:
 * - it lies only on whole disks that are pools of this host, and is written as a whole;
 * - it is sealed by what the authority of now has the key of: one that was replaced, because a revoked host had its key, opens
 *   none that is written after.
 */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { byText, type HostId } from "../model/ids.ts";
import { Secret } from "../model/secret.ts";
import { signerOf, type Trust } from "../model/trust.ts";
import { type BundlePayload, sealBundle } from "../wire/bundle.ts";
import { writeDurably } from "../wire/durable-file.ts";
import { isWeftError, reasonOf } from "../wire/errors.ts";
import { askMembers } from "./ask-members.ts";
import type { AuthorityKeeper } from "./authority.ts";
import type { MemberContext } from "./context.ts";
import { notMember } from "./enrol.ts";
import { Wake } from "./wake.ts";

export const BUNDLE_FILE = "identity.sealed";
/** Certificates, lists and disks change seldom, and a disk may come back any time. */
const LOOK_MS = 60_000;

type Keeping = Pick<MemberContext, "self" | "host" | "store" | "identity" | "authority" | "log"> & {
  readonly stateDir: string;
  /** Where disks of this host's pools are mounted now. */
  readonly places: () => Promise<readonly string[]>;
};

type Key = { readonly kid: string; readonly key: Secret<Uint8Array> };

export class BundleKeeper {
  readonly #keeping: Keeping;
  readonly #wake = new Wake();
  readonly #stop = new AbortController();
  /** What was written where. */
  readonly #written = new Map<string, string>();
  #key: Key | null = null;
  #isStarted = false;
  #pools = "";

  constructor(keeping: Keeping) {
    this.#keeping = keeping;
  }

  start(): void {
    if (this.#isStarted) return;
    this.#isStarted = true;
    void this.#run();
  }

  nudge(): void {
    this.#wake.nudge();
  }

  /** What weftd says of pools: where one came or went, disks are looked at. */
  heard(pools: readonly string[]): void {
    const now = pools.toSorted(byText).join(" ");
    if (now === this.#pools) return;
    this.#pools = now;
    this.#wake.nudge();
  }

  stop(): void {
    this.#stop.abort();
    this.#wake.nudge();
  }

  async #run(): Promise<void> {
    const { log } = this.#keeping;
    while (!this.#stop.signal.aborted) {
      try {
        await this.look();
      } catch (error) {
        // No member answers, or a disk went away just now: the next look does it.
        if (isWeftError(error)) log.debug({ code: error.code }, "the sealed bundle waits");
        else log.warn({ reason: reasonOf(error) }, "the sealed bundle could not be written, and is later");
      }
      await this.#wake.wait(LOOK_MS);
    }
  }

  /** Writes it where it isn't, or says something else by now. */
  async look(): Promise<void> {
    const places = await this.#keeping.places();
    for (const known of this.#written.keys()) if (!places.includes(known)) this.#written.delete(known);
    if (places.length === 0) return;
    const payload = await this.#payload();
    const { kid, key } = await this.#keyOf(this.#keeping.identity.trust());
    const { cluster, host } = this.#keeping.self;
    const hash = createHash("sha256")
      .update(JSON.stringify([kid, payload]))
      .digest("hex");
    for (const place of places) {
      if (this.#written.get(place) === hash) continue;
      await writeDurably(join(place, BUNDLE_FILE), sealBundle(key, { cluster, host, kid }, payload));
      this.#written.set(place, hash);
    }
  }

  async #payload(): Promise<BundlePayload> {
    const { stateDir, identity } = this.#keeping;
    const { certPem, chainPem, keyPem } = identity.certificate;
    return {
      hostFile: await readFile(join(stateDir, "host.json"), "utf8"),
      keyPem: keyPem.reveal(),
      certPem,
      chainPem,
      trust: identity.text,
      devices: await readFile(join(stateDir, "devices.json"), "utf8").catch(() => null),
    };
  }

  async #keyOf(trust: Trust): Promise<Key> {
    const { self, host, store, identity, authority } = this.#keeping;
    const kid = signerOf(trust);
    if (this.#key !== null && this.#key.kid === kid) return this.#key;
    const own = authority.bundleKey({ cluster: trust.cluster, host, kid });
    if (own !== null) this.#key = { kid, key: own };
    else {
      const given = await askMembers({ self, store, identity }, (member) => member.bundleKey());
      this.#key = { kid: given.kid, key: new Secret(new Uint8Array(Buffer.from(given.key, "hex"))) };
    }
    return this.#key;
  }
}

/** The member's side: a host's own, and no other's. */
export function ownBundleKey(
  authority: AuthorityKeeper,
  trust: Trust,
  host: HostId,
  members: readonly string[],
): { readonly kid: string; readonly key: string } {
  const kid = signerOf(trust);
  const key = authority.bundleKey({ cluster: trust.cluster, host, kid });
  if (key === null) throw notMember(members);
  return { kid, key: Buffer.from(key.reveal()).toString("hex") };
}
