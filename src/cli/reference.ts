/**
 * Names that a user typed, with a suggestion when there is no such thing:
 * `E-ARG-01  No volume "bd". Did you mean "db"?`
 *
 * Must always hold: the first answer is the agent's; names are only fetched to make its refusal more helpful, and
 * when that fails too, the refusal is passed on as it was.
 */
import { parseUuid } from "../core/model/ids.ts";
import { suggest } from "../core/model/suggest.ts";
import type { AgentClient } from "../core/wire/agent-client.ts";
import type { HostAnswer, PoolAnswer, VolumeAnswer } from "../core/wire/agent-api.ts";
import { isWeftError, WeftError } from "../core/wire/errors.ts";

export type Thing = "volume" | "host" | "deleted volume";

/** Does the work for `ref`; a refusal for want of it gets the nearest name. */
export async function withSuggestion<Value>(
  client: AgentClient,
  thing: Thing,
  ref: string,
  work: () => Promise<Value>,
): Promise<Value> {
  try {
    return await work();
  } catch (error) {
    if (!isWeftError(error, "E-ARG-01") || error.message.includes("Did you mean")) throw error;
    const names = await namesOf(client, thing);
    const near = names === null || names.includes(ref) ? null : suggest(ref, names);
    if (near === null) throw error;
    throw new WeftError({
      ...error.toBody(),
      message: `No ${thing} "${ref}". Did you mean "${near}"?`,
      cause: error,
    });
  }
}

async function namesOf(client: AgentClient, thing: Thing): Promise<readonly string[] | null> {
  try {
    switch (thing) {
      case "volume":
        return (await client.volumes()).map(({ name }) => name);
      case "host":
        return (await client.hosts()).map(({ name }) => name);
      case "deleted volume":
        return (await client.trash()).map(({ name }) => name);
    }
  } catch {
    return null;
  }
}

/** A pool by id, by path or device, or by HOST:PATH. */
export function findPool(
  pools: readonly PoolAnswer[],
  hosts: readonly HostAnswer[],
  ref: string,
): PoolAnswer {
  const id = parseUuid(ref);
  const byId = pools.find((pool) => pool.id === id);
  if (byId !== undefined) return byId;
  const here = hosts.find((host) => host.self)?.id ?? null;
  const pathsOf = ({ path, device }: PoolAnswer): readonly string[] =>
    device === null ? [path] : [path, device];
  const matches = pools.filter((pool) =>
    pathsOf(pool).some((path) => path === ref || `${pool.hostName}:${path}` === ref),
  );
  const found = matches.length > 1 ? matches.find((pool) => pool.host === here) : matches[0];
  if (found !== undefined) return found;
  const near = suggest(
    ref,
    pools.flatMap((pool) => pathsOf(pool).flatMap((path) => [path, `${pool.hostName}:${path}`])),
  );
  const hint = near === null ? "" : ` Did you mean "${near}"?`;
  throw new WeftError(
    matches.length > 1
      ? {
          code: "E-ARG-01",
          message: `Pool "${ref}" is on ${matches.map((pool) => pool.hostName).join(", ")}: write HOST:PATH.`,
        }
      : {
          code: "E-ARG-01",
          message: `No pool "${ref}".${hint}`,
          do: [{ why: "See all pools", command: "weft pool list" }],
        },
  );
}

/** A copy of a volume by its number or its host's name. */
export function findReplica(volume: VolumeAnswer, ref: string): VolumeAnswer["replicas"][number] {
  const found = volume.replicas.find((replica) => String(replica.rid) === ref || replica.hostName === ref);
  if (found !== undefined) return found;
  const known = volume.replicas.map((replica) => `${replica.rid} (${replica.hostName})`).join(", ");
  throw new WeftError({
    code: "E-ARG-01",
    message: `"${volume.name}" has no copy "${ref}". Its copies: ${known === "" ? "none" : known}.`,
  });
}
