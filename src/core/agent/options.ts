/** What the agent is told on its command line. */
import { parseArgs } from "node:util";

import { defaultAddon } from "../wire/addon.ts";
import { programPath } from "../wire/installed.ts";

export type AgentOptions = {
  /** Durable: host.json, etcd's data and log. */
  readonly stateDir: string;
  /** Sockets and pid files; empty after a boot. */
  readonly runDir: string;
  /** Program of the store. */
  readonly etcd: string;
  readonly etcdctl: string;
  /** Several hosts on one machine reboot separately: passed on to the daemon by host.json. */
  readonly bootIdFile: string | null;
  readonly logLevel: string;
  /** The addon of native/weft-node. */
  readonly addon: string;
  /** Where the system's log takes datagrams; empty: it gets no copy of the audit. */
  readonly syslogSocket: string;
  /** Members of this group of the system may read by the unix socket; null: only root may. */
  readonly viewerGroup: string | null;
  /** For debuggers, and for clusters without root: /proc/PID/environ of a protected process is root's. */
  readonly allowCoreDumps: boolean;
  /** After this a lost copy is made anew; null: the default of 30 min. */
  readonly rebuildAfterMs: number | null;
  /** How long certificates live that this host issues; null: 30 days. Shorter in tests of renewal. */
  readonly certificateLifeMs: number | null;
  /** Where XAPI listens, for what lives in the agent's process and talks to it. */
  readonly xapiSocket: string;
  /** Put before dom0's paths (`/dev/sm`, `/run/blktap-control`), so that several hosts live on one machine; empty: none. */
  readonly dom0Root: string;
};

/** Longest path of a unix socket is 107 bytes; the longest name below the run directory is a volume's export. */
const RUN_DIR_MAX = 107 - "/nbd/.sock".length - 36;

export function parseOptions(argv: readonly string[]): AgentOptions {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      "state-dir": { type: "string", default: "/var/lib/weft" },
      "run-dir": { type: "string", default: "/run/weft" },
      "boot-id-file": { type: "string" },
      "rebuild-after": { type: "string" },
      addon: { type: "string", default: defaultAddon(process.env) },
      "syslog-socket": { type: "string", default: "/dev/log" },
      "viewer-group": { type: "string" },
      "allow-core-dumps": { type: "boolean", default: false },
      "certificate-life": { type: "string" },
      etcd: { type: "string", default: programPath(["etcd"], "/usr/bin/etcd") },
      // From etcd 3.6 on backups are restored by etcdutl, with the same words.
      etcdctl: { type: "string", default: programPath(["etcdutl", "etcdctl"], "/usr/bin/etcdctl") },
      "xapi-socket": { type: "string", default: "/var/lib/xcp/xapi" },
      "dom0-root": { type: "string", default: "" },
      "log-level": { type: "string", default: "info" },
    },
  });
  if (Buffer.byteLength(values["run-dir"]) > RUN_DIR_MAX) {
    throw new Error(`--run-dir ${values["run-dir"]} is longer than ${RUN_DIR_MAX} bytes: sockets don't fit`);
  }
  return {
    stateDir: values["state-dir"],
    runDir: values["run-dir"],
    etcd: values.etcd,
    etcdctl: values.etcdctl,
    bootIdFile: values["boot-id-file"] ?? null,
    logLevel: values["log-level"],
    addon: values.addon,
    syslogSocket: values["syslog-socket"],
    viewerGroup: values["viewer-group"] ?? null,
    allowCoreDumps: values["allow-core-dumps"],
    rebuildAfterMs: millisecondsOf("--rebuild-after", values["rebuild-after"]),
    certificateLifeMs: millisecondsOf("--certificate-life", values["certificate-life"]),
    xapiSocket: values["xapi-socket"],
    dom0Root: values["dom0-root"],
  };
}

function millisecondsOf(option: string, seconds: string | undefined): number | null {
  if (seconds === undefined) return null;
  if (!(Number(seconds) > 0)) throw new Error(`${option} wants seconds, more than 0`);
  return Number(seconds) * 1000;
}
