/**
 * Which connections a door takes: numbers and rates, by the address that they come from, before a byte of TLS is looked at.
 *
 *     admit ──taken──▶ unproven ──handshake done──▶ proven ──end──▶ gone
 *       └─ refused: closed at once, nothing is answered
 *
 * Must always hold:
 * - one address takes no place and no handshake from others: its own bounds are asked first, the door's after them;
 * - places are kept for the cluster's own hosts: strangers together never fill the door;
 * - what is remembered of an address goes when it has no connection and its allowance is whole again.
 */

export type GateLimits = {
  /** Connections at one moment: all, those of strangers, one stranger's, one host's, and those without a finished handshake. */
  readonly connections: number;
  readonly strangers: number;
  readonly perStranger: number;
  readonly perHost: number;
  readonly unproven: number;
  /** Handshakes a second: of one address, and of all strangers together. A second's worth of them may come at once. */
  readonly handshakesPerAddress: number;
  readonly handshakesOfStrangers: number;
};

export type Entrance = {
  readonly address: string;
  /** It comes from the address of a host of the cluster: a hint, no proof. */
  readonly isHost: boolean;
};

/** A connection that was taken. */
export type Place = Entrance & { proven: boolean };

export class Gate {
  readonly #limits: GateLimits;
  readonly #places = new Set<Place>();
  readonly #perAddress: Allowances;
  readonly #together: Allowances;

  constructor(limits: GateLimits) {
    this.#limits = limits;
    this.#perAddress = new Allowances({
      perSecond: limits.handshakesPerAddress,
      burst: limits.handshakesPerAddress,
    });
    this.#together = new Allowances({
      perSecond: limits.handshakesOfStrangers,
      burst: limits.handshakesOfStrangers,
    });
  }

  /** Null: it is to be closed at once. */
  admit({ address, isHost }: Entrance, nowMs: number): Place | null {
    const limits = this.#limits;
    const source = networkOf(address);
    const own = this.#count((place) => networkOf(place.address) === source);
    if (own >= (isHost ? limits.perHost : limits.perStranger)) return null;
    if (this.#places.size >= limits.connections) return null;
    if (!isHost && this.#count((place) => !place.isHost) >= limits.strangers) return null;
    // Kept apart, so that handshakes that never end keep no host out.
    if (this.#count((place) => !place.proven && place.isHost === isHost) >= limits.unproven) return null;
    if (!this.#perAddress.has(source, nowMs)) return null;
    if (!isHost && !this.#together.take("", nowMs)) return null;
    this.#perAddress.take(source, nowMs);
    const place = { address, isHost, proven: false };
    this.#places.add(place);
    return place;
  }

  /** Its handshake is done, whoever it is. */
  prove(place: Place): void {
    place.proven = true;
  }

  leave(place: Place): void {
    this.#places.delete(place);
  }

  get size(): number {
    return this.#places.size;
  }

  #count(matches: (place: Place) => boolean): number {
    let count = 0;
    for (const place of this.#places) if (matches(place)) count += 1;
    return count;
  }
}

type Allowance = { readonly perSecond: number; readonly burst: number };
type Level = { left: number; atMs: number };

/** Allowances that fill again by themselves, one for each key; a key that was never seen has a whole one. */
export class Allowances {
  readonly #allowance: Allowance;
  readonly #levels = new Map<string, Level>();
  #sweepAt = 1024;

  constructor(allowance: Allowance) {
    this.#allowance = allowance;
  }

  has(key: string, nowMs: number): boolean {
    return this.#left(key, nowMs) >= 1;
  }

  /** False: it is used up, and nothing was taken. */
  take(key: string, nowMs: number): boolean {
    const left = this.#left(key, nowMs);
    if (left < 1) return false;
    this.#levels.set(key, { left: left - 1, atMs: nowMs });
    if (this.#levels.size >= this.#sweepAt) this.#sweep(nowMs);
    return true;
  }

  /** Keys that are remembered. */
  get size(): number {
    return this.#levels.size;
  }

  #left(key: string, nowMs: number): number {
    const level = this.#levels.get(key);
    if (level === undefined) return this.#allowance.burst;
    const more = (Math.max(0, nowMs - level.atMs) / 1000) * this.#allowance.perSecond;
    return Math.min(this.#allowance.burst, level.left + more);
  }

  /** Those that are whole again are as good as never seen. */
  #sweep(nowMs: number): void {
    for (const key of this.#levels.keys())
      if (this.#left(key, nowMs) >= this.#allowance.burst) this.#levels.delete(key);
    this.#sweepAt = Math.max(1024, 2 * this.#levels.size);
  }
}

/** Within IPv6 whoever has one address has 2^64 of them: they count as one. */
export function networkOf(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined || !address.includes(":")) return mapped ?? address;
  const [bare = ""] = address.toLowerCase().split("%");
  const [head = "", tail] = bare.split("::");
  const before = head === "" ? [] : head.split(":");
  const after = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros = Array.from({ length: Math.max(0, 8 - before.length - after.length) }, () => "0");
  return `${[...before, ...zeros, ...after]
    .slice(0, 4)
    .map((group) => group.replace(/^0+(?=.)/, ""))
    .join(":")}::/64`;
}
