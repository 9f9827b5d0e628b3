/**
 * What a volume's guest does and waits for: counted by the weftd of the host where it is attached, asked through that
 * host's agent.
 *
 * Must always hold: figures are that host's own word of its own session; nobody else's are shown as a volume's.
 */
import { type HostId, parseVolumeId, type VolumeId } from "../model/ids.ts";
import type { Histogram } from "../model/histogram.ts";
import type * as api from "../wire/agent-api.ts";
import type * as daemonTypes from "../wire/daemon.gen.ts";
import { isWeftError } from "../wire/errors.ts";
import { HostClient } from "../wire/host-client.ts";
import type { MemberContext } from "./context.ts";
import { findListed, findVolume } from "./find.ts";
import { limitsOfDaemon } from "./limit-keeper.ts";

/** It answers from memory. */
const ANSWER_MS = 3000;

export async function statsAnswer(context: MemberContext, ref: string): Promise<api.StatsAnswer> {
  const { id, want, record, extra } = findVolume(context.mirror, ref);
  const owner = record?.owner ?? null;
  const about = { volume: id, name: want.name, limits: want.limits };
  if (owner === null || extra?.caretaker === true) return { ...about, host: null, open: null };
  const { name } = findListed(context.identity.trust(), owner.host);
  const host = { id: owner.host, name };
  return { ...about, host, open: await statsOn(context, owner.host, id) };
}

function statsOn(context: MemberContext, host: HostId, volume: VolumeId): Promise<api.SessionStats | null> {
  const { identity, self } = context;
  if (host === context.host) return ownStats(context, volume);
  const trust = identity.trust();
  const { address } = findListed(trust, host);
  const expect = { kind: "host" as const, trust, host };
  const client = new HostClient({
    address,
    shown: identity.current(),
    from: self.address,
    expect,
    answerMs: ANSWER_MS,
  });
  return client.stats({ volume }).then(({ answer }) => answer.open);
}

/** Also as another host asks for them. Null: no guest uses the volume here. */
export async function ownStats(
  { daemon }: Pick<MemberContext, "daemon">,
  volume: string,
): Promise<api.SessionStats | null> {
  const id = parseVolumeId(volume);
  if (id === null) return null;
  try {
    const session = await daemon.client.call("session.show", { volume: id }, ANSWER_MS);
    return session.caretaker || session.phase === "ended" ? null : statsOf(session);
  } catch (error) {
    if (isWeftError(error, "E-VOL-13") || isWeftError(error, "E-ARG-01")) return null;
    throw error;
  }
}

function statsOf({ session, limits, held, figures }: daemonTypes.SessionStatus): api.SessionStats {
  const { waits } = figures;
  return {
    session,
    at: new Date().toISOString(),
    limits: limitsOfDaemon(limits),
    held,
    reads: BigInt(figures.reads),
    writes: BigInt(figures.writes),
    trims: BigInt(figures.trims),
    readBytes: BigInt(figures.read_bytes),
    writtenBytes: BigInt(figures.written_bytes),
    gapMsMax: BigInt(waits.gap_ms_max),
    waits: {
      reads: mutable(histogramOf(waits.reads)),
      writes: mutable(histogramOf(waits.writes)),
      stalls: mutable(histogramOf(waits.stalls)),
      limited: mutable(histogramOf(waits.limited)),
    },
  };
}

export function histogramOf({ le_us, counts, count, sum_us }: daemonTypes.Histogram): Histogram {
  return { leUs: le_us, counts: counts.map(BigInt), count: BigInt(count), sumUs: BigInt(sum_us) };
}

/** As the schema of the answer has it. */
function mutable(histogram: Histogram): api.SessionStats["waits"]["reads"] {
  return { ...histogram, leUs: [...histogram.leUs], counts: [...histogram.counts] };
}
