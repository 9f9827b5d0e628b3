/** From what a person typed (a name or an identifier) to the thing, or E-ARG-01 with the nearest name. */
import { type HostId, parseHostId, parsePoolId, parseUuid } from "../model/ids.ts";
import { suggest } from "../model/suggest.ts";
import type { Trust, TrustedHost } from "../model/trust.ts";
import type { Want } from "../model/volume-record.ts";
import { WeftError } from "../wire/errors.ts";
import type { HostJson } from "../wire/record.ts";
import { hostsOf, type PoolFacts, poolsOf, type VolumeFacts, volumesOf } from "./facts.ts";
import type { Mirror } from "./mirror.ts";

export type WantedVolume = VolumeFacts & { readonly want: Want };

/** A volume that isn't deleted. One in the trash is E-VOL-11. */
export function findVolume(mirror: Mirror, ref: string): WantedVolume {
  const all = volumesOf(mirror).filter(hasWant);
  const live = all.filter(({ want }) => want.deletedAtMs === null);
  const found = pick(live, ref);
  if (found !== null) return found;
  const [deleted] = all.filter((volume) => matches(volume, ref));
  if (deleted === undefined)
    throw noSuch(
      "volume",
      ref,
      live.map(({ want }) => want.name),
    );
  throw new WeftError({
    code: "E-VOL-11",
    message: `"${deleted.want.name}" is in the trash.`,
    facts: { volume: deleted.id },
    safe: "Nothing was changed.",
    do: [{ why: "Bring it back", command: `weft trash restore ${ref}` }],
  });
}

/** A volume in the trash; of several with one name the last deleted. */
export function findDeleted(mirror: Mirror, ref: string): WantedVolume {
  const deleted = volumesOf(mirror)
    .filter(hasWant)
    .filter(({ want }) => want.deletedAtMs !== null)
    .toSorted((a, b) => (b.want.deletedAtMs ?? 0) - (a.want.deletedAtMs ?? 0));
  const found = pick(deleted, ref);
  if (found !== null) return found;
  throw noSuch(
    "volume in the trash",
    ref,
    deleted.map(({ want }) => want.name),
  );
}

export function findHost(mirror: Mirror, ref: string): HostJson {
  const hosts = hostsOf(mirror);
  const id = parseUuid(ref);
  const found = hosts.find((host) => host.id === id || host.name === ref);
  if (found !== undefined) return found;
  throw noSuch(
    "host",
    ref,
    hosts.map(({ name }) => name),
  );
}

export type ListedHost = Pick<TrustedHost, "name" | "address"> & { readonly id: HostId };

/**
 * Whom an act of trust means: by the signed list, never by what the store says, whose names are every host's to write.
 * E-ARG-01 where the list has no such host.
 */
export function findListed(trust: Trust, ref: string): ListedHost {
  const id = parseHostId(ref);
  const all = Array.from(trust.hosts, ([id, { name, address }]) => ({ id, name, address }));
  // A host may be named like another one's identifier.
  const found = all.find((host) => host.id === id) ?? all.find(({ name }) => name === ref);
  if (found !== undefined) return found;
  throw noSuch(
    "host",
    ref,
    all.map(({ name }) => name),
  );
}

export function findPool(mirror: Mirror, ref: string): PoolFacts {
  const pools = poolsOf(mirror);
  const id = parsePoolId(ref);
  const found = pools.find((pool) => pool.id === id);
  if (found !== undefined) return found;
  throw noSuch(
    "pool",
    ref,
    pools.map((pool) => pool.id),
  );
}

export function hasWant(volume: VolumeFacts): volume is WantedVolume {
  return volume.want !== null;
}

function pick(volumes: readonly WantedVolume[], ref: string): WantedVolume | null {
  return volumes.find((volume) => matches(volume, ref)) ?? null;
}

function matches({ id, want }: WantedVolume, ref: string): boolean {
  return id === parseUuid(ref) || want.name === ref;
}

function noSuch(thing: string, ref: string, known: readonly string[]): WeftError {
  const near = suggest(ref, known);
  return new WeftError({
    code: "E-ARG-01",
    message: `No ${thing} "${ref}".${near === null ? "" : ` Did you mean "${near}"?`}`,
    facts: near === null ? { ref } : { ref, near },
    safe: "Nothing was changed.",
  });
}
