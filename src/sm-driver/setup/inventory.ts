/**
 * What a host tells of itself to whoever plans a setup.
 *
 * Must always hold: nothing of it is a secret, and nothing is changed by asking.
 */
import { freemem } from "node:os";
import { z } from "zod";

import type { JudgedDisk } from "../../core/model/disk.ts";
import type { SetupWeft } from "../../core/model/setup-facts.ts";
import { diskAnswer } from "../../core/wire/agent-api.ts";
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { parseBundle } from "../../core/wire/bundle.ts";
import { instant, u64, uuid } from "../../core/wire/json-types.ts";

const inventory = z.object({
  now: instant,
  freeBytes: u64,
  weft: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("none"), sealedFor: uuid.nullable().default(null) }),
    z.object({
      kind: z.literal("member"),
      cluster: uuid,
      name: z.string(),
      address: z.string(),
      votes: z.boolean(),
      pools: z.array(u64),
    }),
  ]),
  disks: z.array(diskAnswer),
});

export type Inventory = z.output<typeof inventory>;

export async function takeInventory(agent: AgentClient): Promise<Inventory> {
  const [status, disks] = await Promise.all([agent.status(), agent.disks()]);
  const now = new Date().toISOString();
  const freeBytes = BigInt(freemem());
  if (status.kind === "no-cluster")
    return { now, freeBytes, weft: { kind: "none", sealedFor: await sealedFor(agent) }, disks };
  const { self, cluster, store, pools } = status;
  const own = pools.filter(({ host }) => host === self.host);
  return {
    now,
    freeBytes,
    weft: {
      kind: "member",
      cluster: cluster.id,
      name: self.name,
      address: self.address,
      votes: store.members.some(({ address, learner }) => address === self.address && !learner),
      pools: own.flatMap(({ total }) => total ?? []),
    },
    disks,
  };
}

async function sealedFor(agent: AgentClient): Promise<string | null> {
  const { bundles } = await agent.bundles();
  return bundles.flatMap((text) => parseBundle(text)?.cluster ?? [])[0] ?? null;
}

export function inventoryText(value: Inventory): string {
  return JSON.stringify(inventory.encode(value));
}

/** Null: not understood, so it is another version's. */
export function parseInventory(text: string): Inventory | null {
  try {
    const parsed = inventory.safeParse(JSON.parse(text));
    return parsed.success ? parsed.data : null;
  } catch {
    return null;
  }
}

export function weftOf({ weft }: Inventory): SetupWeft {
  return weft;
}

export function disksOf({ disks }: Inventory): readonly JudgedDisk[] {
  return disks.map(({ device, kind, size, state, what, name, nameKind, pool }) => ({
    path: device,
    kind,
    sizeBytes: size,
    verdict: state === "blank" ? { kind: state } : { kind: state, what: what ?? "not known" },
    content: { kind: nameKind, name },
    pool,
  }));
}
