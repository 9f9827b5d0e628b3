/**
 * How far this host's clock is from the others': certificates are judged by it.
 *
 * Must always hold: one host whose clock is wrong is told apart from this host's own being wrong: by the many.
 */
import type { Finding } from "./finding.ts";
import { finding } from "./finding.ts";

/** NTP keeps milliseconds; this much is a clock that nobody keeps, or a time zone that was taken for another. */
const APART_MS = 5 * 60_000;

export type ClockSample = {
  readonly name: string;
  /** The other clock less this host's. */
  readonly apartMs: number;
};

/** Null: all of those that were asked agree with this host. */
export function clockFinding(samples: readonly ClockSample[]): Finding | null {
  const apart = samples.filter(({ apartMs }) => Math.abs(apartMs) >= APART_MS);
  const [first] = apart.toSorted((a, b) => Math.abs(b.apartMs) - Math.abs(a.apartMs));
  if (first === undefined) return null;
  const isOwn = apart.length * 2 > samples.length;
  const others = apart.map(({ name, apartMs }) => `${name} by ${spanOf(apartMs)}`).join(", ");
  const message = isOwn
    ? `This host's clock differs from most others': ${others}.`
    : `Clocks differ from this host's: ${others}.`;
  return finding("E-NET-05", message, {
    facts: { apartMs: first.apartMs, hosts: apart.length },
    safe: "Certificates bear a clock that is wrong by a day.",
    do: [{ why: isOwn ? "Set this host's clock" : `Set the clock of ${first.name}`, command: "timedatectl" }],
  });
}

function spanOf(ms: number): string {
  const minutes = Math.round(Math.abs(ms) / 60_000);
  const side = ms > 0 ? "ahead" : "behind";
  return minutes < 180 ? `${minutes} min ${side}` : `${Math.round(minutes / 60)} h ${side}`;
}
