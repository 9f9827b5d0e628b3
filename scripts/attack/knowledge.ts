/** What the attackers know: they have stolen a member's disk, so nearly all. */
import { z } from "zod";

const credential = z.object({
  /** Leaf first, then what vouches for it. PEM. */
  cert: z.string(),
  key: z.string(),
});

const authority = z.object({ kid: z.string(), pem: z.string(), key: z.string() });

const host = z.object({
  name: z.string(),
  id: z.string(),
  address: z.string(),
  identity: credential,
  identityDir: z.string(),
  agentSocket: z.string(),
  daemonSocket: z.string(),
  /** Of its member of the store; null: it is none. */
  store: credential.nullable(),
});

export const knowledge = z.object({
  cluster: z.string(),
  hosts: z.array(host).min(3),
  /** Copies of the victim, whose record stands in the store. */
  targets: z.array(
    z.object({
      host: z.string(),
      volume: z.string(),
      rid: z.number(),
      pool: z.string(),
      record: z.looseObject({}),
    }),
  ),
  /** For joining: one that is good, and three that are not. */
  tokens: z.object({ fresh: z.string(), used: z.string(), revoked: z.string(), expired: z.string() }),
  /** Of people and programs. */
  apiTokens: z.object({ viewer: z.string(), operator: z.string(), expired: z.string(), revoked: z.string() }),
  /** The program that lies. */
  liar: z.string(),
  /** Signs host certificates. */
  authority,
  /** Signs certificates of store members. */
  storeAuthority: authority,
});

export type Credential = z.output<typeof credential>;
export type KnownAuthority = z.output<typeof authority>;
export type KnownHost = z.output<typeof host>;
export type Knowledge = z.output<typeof knowledge>;

/** h1 is asked, h3 is whose identity is misused where one is. */
export function hostOf(known: Knowledge, name: string): KnownHost {
  const found = known.hosts.find((one) => one.name === name);
  if (found === undefined) throw new Error(`there is no host ${name}`);
  return found;
}
