/**
 * What Node has no interface for, from native/weft-node.
 *
 * Must always hold: the agent does not run without it: it could not say who asks. The command goes on without it, and says so.
 */
import { existsSync } from "node:fs";
import type { Socket } from "node:net";
import { constants } from "node:os";
import { join } from "node:path";

import { reasonOf, WeftError } from "./errors.ts";
import { rootDirectory } from "./installed.ts";

export type PeerCredentials = { readonly pid: number; readonly uid: number; readonly gid: number };

export type Addon = {
  /** Of the process that connected this unix socket; throws when `fd` is none. */
  readonly peerCredentials: (fd: number) => PeerCredentials;
  /** From now on no core dump of this process or its children, and no look into its memory but root's. */
  readonly protect: () => void;
  readonly isDumpable: () => boolean;
  /** One datagram to the unix socket at this path; throws when it can't go at once. */
  readonly sendDatagram: (path: string, data: Buffer) => void;
};

const names: readonly (keyof Addon)[] = ["peerCredentials", "protect", "isDumpable", "sendDatagram"];

/** Where it lies below the directory that weft is installed or built in, the best first. */
const places = ["lib", "native/target/release", "native/target/debug"];
const FILE = "libweft_node.so";

export function loadAddon(path: string): Addon {
  const loaded: { exports: Partial<Addon> } = { exports: {} };
  try {
    process.dlopen(loaded, path, constants.dlopen.RTLD_NOW);
  } catch (cause) {
    throw broken(path, reasonOf(cause), cause);
  }
  const missing = names.filter((name) => typeof loaded.exports[name] !== "function");
  if (missing.length > 0) throw broken(path, `it has no ${missing.join(", ")}`);
  return loaded.exports as Addon;
}

/** `WEFT_NODE`, or where an installation and a build have it. */
export function defaultAddon(environment: NodeJS.ProcessEnv): string {
  const told = environment["WEFT_NODE"] ?? "";
  if (told !== "") return told;
  const root = rootDirectory();
  const found = places.map((place) => join(root, place, FILE)).find((path) => existsSync(path));
  return found ?? join(root, "lib", FILE);
}

/** The number of the socket's descriptor, which Node keeps to itself; null when it is closed. */
export function descriptorOf(socket: Socket): number | null {
  const handle = (socket as { readonly _handle?: { readonly fd?: unknown } | null })._handle;
  const fd = handle?.fd;
  return typeof fd === "number" && fd >= 0 ? fd : null;
}

function broken(path: string, reason: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "E-AGENT-07",
    message: `The addon ${path} can't be used: ${reason}.`,
    facts: { path },
    safe: "Attached volumes go on without the agent.",
    do: [{ why: "Install weft again, or build it", command: "cargo build -p weft-node" }],
    cause,
  });
}
