/**
 * A copy of each line of the audit for the system's log, as a datagram to its unix socket.
 *
 * Must always hold: nobody waits for it, and nothing fails by it: what it does not take is counted.
 */
import type { Addon } from "../wire/addon.ts";

/** authpriv, as syslog.h numbers it. */
const FACILITY = 10;
const severities = { notice: 5, warning: 4 } as const;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export class Syslog {
  readonly #addon: Pick<Addon, "sendDatagram">;
  readonly #path: string;
  #dropped = 0;

  constructor(addon: Pick<Addon, "sendDatagram">, path: string) {
    this.#addon = addon;
    this.#path = path;
  }

  /** Since the start. */
  get dropped(): number {
    return this.#dropped;
  }

  send(severity: keyof typeof severities, text: string, at: Date): void {
    try {
      this.#addon.sendDatagram(this.#path, Buffer.from(syslogText(severity, text, at, process.pid)));
    } catch {
      this.#dropped += 1;
    }
  }
}

/** RFC 3164, which journald and rsyslog both take: the time is the host's own, without a year. */
export function syslogText(severity: keyof typeof severities, text: string, at: Date, pid: number): string {
  const two = (value: number): string => String(value).padStart(2, "0");
  const day = String(at.getDate()).padStart(2, " ");
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
  const priority = FACILITY * 8 + severities[severity];
  return `<${priority}>${MONTHS[at.getMonth()]} ${day} ${time} weft-agent[${pid}]: ${text}`;
}
