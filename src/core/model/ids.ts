/**
 * Identifiers, each a type of its own so that they can't be swapped.
 *
 * Must always hold:
 * - a `VolumeId`, `HostId` or `PoolId` is a lower-case UUID with hyphens, so that text comparison is identity;
 * - a `Rid` is a whole number from 0 to 2^32 - 1, never given out twice within a volume (protocol.md 4.1).
 */

declare const brand: unique symbol;
type Branded<Base, Name extends string> = Base & { readonly [brand]: Name };

export type VolumeId = Branded<string, "VolumeId">;
export type HostId = Branded<string, "HostId">;
export type PoolId = Branded<string, "PoolId">;
export type SessionId = Branded<string, "SessionId">;
export type SnapshotId = Branded<string, "SnapshotId">;
export type Rid = Branded<number, "Rid">;

const UUID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;

/** The canonical form of a UUID, or null when the text is none. */
export function parseUuid(text: string): string | null {
  if (!UUID.test(text)) return null;
  const digits = text.replaceAll("-", "").toLowerCase();
  return [
    digits.slice(0, 8),
    digits.slice(8, 12),
    digits.slice(12, 16),
    digits.slice(16, 20),
    digits.slice(20),
  ].join("-");
}

export function parseVolumeId(text: string): VolumeId | null {
  return parseUuid(text) as VolumeId | null;
}

export function parseHostId(text: string): HostId | null {
  return parseUuid(text) as HostId | null;
}

export function parsePoolId(text: string): PoolId | null {
  return parseUuid(text) as PoolId | null;
}

export function parseSessionId(text: string): SessionId | null {
  return parseUuid(text) as SessionId | null;
}

export function parseSnapshotId(text: string): SnapshotId | null {
  return parseUuid(text) as SnapshotId | null;
}

export function parseRid(value: number): Rid | null {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff ? (value as Rid) : null;
}

/** Text order of identifiers: the tie-break everywhere, so that every host decides alike. */
export function byText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
