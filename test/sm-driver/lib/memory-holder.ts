/**
 * A holder whose volumes are memory: what it does of the real one's is to offer, to cut, and to tell.
 *
 * Must always hold: a volume that nobody wrote reads as zeroes, and of each sector it is known whether it was written.
 */
import { mkdir, rm } from "node:fs/promises";
import { dirname } from "node:path";

import { WeftError } from "../../../src/core/wire/errors.ts";
import type { HolderClient } from "../../../src/core/wire/holder-client.ts";
import type { HolderEntry, HolderOpen } from "../../../src/core/wire/holder.gen.ts";
import { EIO, nbdRead, serveNbd } from "./nbd.ts";

const SECTOR = 512;

export class MemoryVolume {
  bytes: Buffer;
  #written: Set<number>;

  constructor(size: number, written: Iterable<number> = []) {
    this.bytes = Buffer.alloc(size);
    this.#written = new Set(written);
  }

  write(at: number, data: Buffer): void {
    if (at + data.length > this.bytes.length) throw new Error(`a write of ${data.length} at ${at}`);
    data.copy(this.bytes, at);
    for (let sector = at / SECTOR; sector < (at + data.length) / SECTOR; sector += 1)
      this.#written.add(sector);
  }

  copy(): MemoryVolume {
    const copy = new MemoryVolume(0, this.#written);
    copy.bytes = Buffer.from(this.bytes);
    return copy;
  }

  /** What was written here is written there. */
  layOver(base: MemoryVolume): void {
    for (const sector of this.#written) {
      const at = sector * SECTOR;
      base.write(at, this.bytes.subarray(at, at + SECTOR));
    }
  }
}

/** Of all hosts that a test has: by a volume's or a snapshot's id. */
export class MemoryVolumes extends Map<string, MemoryVolume> {
  make(id: string, size: number): void {
    this.set(id, new MemoryVolume(size));
  }

  copy(from: string, to: string): void {
    this.set(to, this.of(from).copy());
  }

  grow(id: string, size: number): void {
    const volume = this.of(id);
    volume.bytes = Buffer.concat([volume.bytes, Buffer.alloc(size - volume.bytes.length)]);
  }

  lay(leaf: string, onto: string): void {
    this.of(leaf).layOver(this.of(onto));
  }

  of(id: string): MemoryVolume {
    const volume = this.get(id);
    if (volume === undefined) throw new Error(`there is no volume ${id}`);
    return volume;
  }
}

export class MemoryHolder implements HolderClient {
  readonly #volumes: MemoryVolumes;
  readonly #offers = new Map<string, Offer>();

  constructor(volumes: MemoryVolumes) {
    this.#volumes = volumes;
  }

  call: HolderClient["call"] = async (method, params) => {
    const answer: unknown = await this.#answer(method, params);
    return answer as never;
  };

  async stop(): Promise<void> {
    for (const id of this.#offers.keys()) await this.#close(id);
  }

  async #answer(method: string, params: unknown): Promise<unknown> {
    if (method === "list") return { entries: [...this.#offers.values()].map(entryOf) };
    if (method === "open") return this.#open(params as HolderOpen);
    const { id, size } = params as { readonly id: string; readonly size?: "now" | "before" };
    if (method === "close") await this.#close(id);
    else if (method === "tell_size" && size !== undefined) this.#offers.get(id)?.told.tell(size);
    else throw new Error(`it doesn't know ${method}`);
    return {};
  }

  async #open(open: HolderOpen): Promise<{ readonly first: string | null }> {
    const known = this.#offers.get(open.id);
    if (known !== undefined && JSON.stringify(known.open) === JSON.stringify(open))
      return { first: open.session };
    if (known !== undefined) throw new WeftError({ code: "E-HOLD-02", message: "It is offered.", facts: {} });
    const volume = this.#volumes.of(open.snapshot ?? open.volume);
    await mkdir(dirname(open.listen), { recursive: true });
    const offer: Offer = { open, clients: 0, told: new ToldSize(), stop: async () => undefined };
    offer.stop = await serveNbd(open.listen, {
      size: () => {
        offer.clients += 1;
        return offer.told.next(BigInt(volume.bytes.length));
      },
      ask: async (command, offset, length, data) => {
        const at = Number(offset);
        if (at + length > volume.bytes.length) return { error: EIO, data: Buffer.alloc(0) };
        if (command === nbdRead)
          return { error: 0, data: Buffer.from(volume.bytes.subarray(at, at + length)) };
        volume.write(at, data);
        return { error: 0, data: Buffer.alloc(0) };
      },
    });
    this.#offers.set(open.id, offer);
    return { first: open.session };
  }

  async #close(id: string): Promise<void> {
    const offer = this.#offers.get(id);
    this.#offers.delete(id);
    await offer?.stop();
    if (offer !== undefined) await rm(offer.open.listen, { force: true });
  }
}

/** Of one entry: each client is told what the first was, unless it is said otherwise. */
export class ToldSize {
  last: bigint | null = null;
  #before: bigint | null = null;

  next(now: bigint): bigint {
    this.last ??= now;
    return this.last;
  }

  tell(size: "now" | "before"): void {
    [this.last, this.#before] = size === "now" ? [null, this.last] : [this.#before ?? this.last, null];
  }
}

type Offer = {
  readonly open: HolderOpen;
  clients: number;
  readonly told: ToldSize;
  stop: () => Promise<void>;
};

function entryOf({ open, clients, told }: Offer): HolderEntry {
  return {
    ...open,
    first: open.session,
    connected: clients > 0,
    client_pid: null,
    told_size: told.last === null ? null : String(told.last),
    unanswered: 0,
    held_bytes: "0",
    away_ms: null,
    waits_for: null,
    lost: null,
    paused: false,
    replayed: "0",
  };
}
