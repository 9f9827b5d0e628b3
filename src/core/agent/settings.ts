/**
 * What the whole cluster goes by. Settings that decide what others on the network can do stand in the trust list, which is
 * signed: nobody on the path, and no host that isn't a store member, can talk two hosts down. What only decides when this
 * software works stands in the store.
 */
import { z } from "zod";

import { ok } from "../model/finding.ts";
import { OVERCOMMIT, SCRUB_DAYS, SCRUB_RATE } from "../model/limits.ts";
import { checkOvercommit } from "../model/overcommit.ts";
import { checkScrubDays, checkScrubRate, type ScrubSettings } from "../model/scrub.ts";
import type { Settings, SettingsChange } from "../wire/agent-api.ts";
import { decided, WeftError } from "../wire/errors.ts";
import { u64 } from "../wire/json-types.ts";
import { isObject } from "../wire/record.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Mirror } from "./mirror.ts";
import { readValue } from "./store-value.ts";
import { changeTrust } from "./trust-change.ts";

/** A build of weftd that obeys `clear` says so. */
const CLEAR = "insecure-clear";

const anySettings = z.record(z.string(), z.unknown());
const storedScrub = z.object({
  scrub: z.object({
    everyDays: z.number().refine((days) => checkScrubDays(days).kind === "ok"),
    rate: u64.refine((rate) => checkScrubRate(rate).kind === "ok"),
  }),
});

const storedPools = z.object({
  pools: z.object({ overcommit: z.number().refine((times) => checkOvercommit(times).kind === "ok") }),
});

const storedSnapshots = z.object({ snapshots: z.object({ copy: z.boolean() }) });

export function settingsOf({ identity, mirror }: Pick<MemberContext, "identity" | "mirror">): Settings {
  const { transport } = identity.trust();
  return {
    transport,
    scrub: { ...scrubSettings(mirror) },
    pools: { overcommit: overcommitOf(mirror) },
    snapshots: { copy: copiesSnapshots(mirror) },
  };
}

/** What can't be read is as if nothing had been set. */
export function scrubSettings(mirror: Mirror): ScrubSettings {
  const entry = mirror.get(keys.settings);
  const stored = entry === null ? null : readValue(storedScrub, entry.value);
  return stored?.scrub ?? { everyDays: SCRUB_DAYS, rate: SCRUB_RATE };
}

/** As many times a pool's size may be promised. What can't be read is as if nothing had been set. */
export function overcommitOf(mirror: Mirror): number {
  const entry = mirror.get(keys.settings);
  const stored = entry === null ? null : readValue(storedPools, entry.value);
  return stored?.pools.overcommit ?? OVERCOMMIT;
}

/** Copies are given the snapshots that they missed. What can't be read is as if nothing had been set. */
export function copiesSnapshots(mirror: Mirror): boolean {
  const entry = mirror.get(keys.settings);
  const stored = entry === null ? null : readValue(storedSnapshots, entry.value);
  return stored?.snapshots.copy ?? true;
}

/** Throws E-CA-01 where this host can't sign, E-NET-07 for `clear` in a build without it, E-ARG-02 out of range. */
export async function changeSettings(
  context: Pick<MemberContext, "store" | "authority" | "identity" | "daemon" | "mirror">,
  { transport, scrub, pools, snapshots }: SettingsChange,
): Promise<Settings> {
  if (scrub?.everyDays !== undefined) decided(checkScrubDays(scrub.everyDays));
  if (scrub?.rate !== undefined) decided(checkScrubRate(scrub.rate));
  if (pools !== undefined) decided(checkOvercommit(pools.overcommit));
  if (transport === "clear") await refuseUnlessClear(context.daemon);
  if (transport !== undefined) {
    const changed = await changeTrust(context, (trust) =>
      ok(trust.transport === transport ? trust : { ...trust, transport }),
    );
    if (changed.kind === "compare-failed") throw new Error("a change without compares failed one");
  }
  if (scrub !== undefined)
    await changeStored(context, "scrub", () => {
      const known = scrubSettings(context.mirror);
      return { everyDays: scrub.everyDays ?? known.everyDays, rate: String(scrub.rate ?? known.rate) };
    });
  if (pools !== undefined) await changeStored(context, "pools", () => pools);
  if (snapshots !== undefined) await changeStored(context, "snapshots", () => snapshots);
  return settingsOf(context);
}

/** One group of settings anew, from what the mirror has when it is written; fields of newer software stay. */
async function changeStored(
  { store, mirror }: Pick<MemberContext, "store" | "mirror">,
  group: "scrub" | "pools" | "snapshots",
  next: () => Readonly<Record<string, unknown>>,
): Promise<void> {
  for (;;) {
    await mirror.sync();
    const entry = mirror.get(keys.settings);
    const all = entry === null ? {} : (readValue(anySettings, entry.value) ?? {});
    const before = isObject(all[group]) ? all[group] : {};
    const value = JSON.stringify({ ...all, [group]: { ...before, ...next() } });
    const outcome = await store.cas(keys.settings, entry?.modRevision ?? 0n, value);
    if (outcome.kind === "won") break;
  }
  await mirror.sync();
}

/** `clear` is asked for: E-NET-07 unless this host's weftd is of a build that obeys it. */
export async function refuseUnlessClear(daemon: Pick<LocalDaemon, "client">): Promise<void> {
  const { features } = await daemon.client.call("hello", {});
  if (!features.includes(CLEAR)) throw clearIsNotBuilt();
}

function clearIsNotBuilt(): WeftError {
  return new WeftError({
    code: "E-NET-07",
    message: "Traffic in the clear isn't in this build of weftd.",
    safe: "Nothing was changed.",
    do: [
      {
        why: "Isolated network, and no encryption wanted",
        command: "weft settings set transport.encryption auth",
      },
    ],
  });
}
