/**
 * Values of arguments and options, understood at this door: a bad one gets a code before anything is sent.
 *
 * Must always hold: what passes is what the agent accepts; limits and messages are the model's.
 */
import { networkInterfaces } from "node:os";
import { resolve } from "node:path";

import type { Decision } from "../core/model/finding.ts";
import { parseDuration } from "../core/model/duration.ts";
import { COPIES_MAX, LIMIT_BURST_SECONDS } from "../core/model/limits.ts";
import { parseSnapshotId } from "../core/model/ids.ts";
import { parseAddress, parseName } from "../core/model/name.ts";
import { checkOvercommit } from "../core/model/overcommit.ts";
import { type Role, roles } from "../core/model/roles.ts";
import { checkScrubDays, checkScrubRate } from "../core/model/scrub.ts";
import { parseRate, parseSize } from "../core/model/size.ts";
import { parseSnapshotRef, type SnapshotRef } from "../core/model/snapshot.ts";
import { checkLimits, type VolumeLimits } from "../core/model/volume-limits.ts";
import type { Settings } from "../core/wire/agent-api.ts";
import { WeftError } from "../core/wire/errors.ts";

export function volumeName(text: string): string {
  return accept(parseName("volume", text));
}

export function snapshotName(text: string): string {
  return accept(parseName("snapshot", text));
}

export function snapshotRef(text: string): SnapshotRef {
  return accept(parseSnapshotRef(text));
}

/** A snapshot in a form that can name one: `VOLUME@NAME`, or its id. */
export function knownSnapshot(text: string): string {
  if (parseSnapshotId(text) === null) snapshotRef(text);
  return text;
}

export function hostName(text: string): string {
  return accept(parseName("host", text));
}

export function clusterName(text: string): string {
  return accept(parseName("cluster", text));
}

export function address(text: string): string {
  return accept(parseAddress(text));
}

export function size(text: string): bigint {
  return accept(parseSize(text));
}

/** HOST or HOST:7400, with brackets around an IPv6 address that has a port. */
export function joinTarget(text: string): string {
  const isBareIpv6 = !text.startsWith("[") && text.split(":").length > 2;
  const match = isBareIpv6 ? null : /^(.+):(\d+)$/.exec(text);
  const [, name = text, port = "7400"] = match ?? [];
  accept(parseAddress(name));
  if (port === "7400") return text;
  throw new WeftError({
    code: "E-ARG-02",
    message: `Agents listen on port 7400, "${text}" names port ${port}.`,
  });
}

/** `https://HOST[:7400]`, or HOST alone: null when it is no address of a host. */
export function remoteUrl(text: string): { readonly address: string; readonly port: number } | null {
  const [, bare = "", digits = "7400"] =
    /^(?:https:\/\/)?(\[[0-9a-fA-F:.]+\]|[^/:?#@\s]+)(?::([0-9]{1,5}))?\/?$/.exec(text) ?? [];
  const parsed = parseAddress(bare);
  const port = Number(digits);
  return parsed.kind === "ok" && port > 0 && port < 65_536 ? { address: parsed.value, port } : null;
}

/** SHA-256 in hexadecimal; blanks and colons are free. */
export function fingerprint(text: string): string {
  const hex = text.replaceAll(/[\s:]/g, "").toLowerCase();
  if (/^[0-9a-f]{64}$/.test(hex)) return hex;
  throw new WeftError({
    code: "E-ARG-02",
    message: "A fingerprint has 64 hexadecimal digits: weft context show and weft ca show print it whole.",
  });
}

export function contextName(text: string): string {
  if (text !== "local") return accept(parseName("context", text));
  throw new WeftError({ code: "E-ARG-02", message: '"local" always means this host\'s own agent.' });
}

export function tokenName(text: string): string {
  return accept(parseName("token", text));
}

export function role(text: string): Role {
  const found = roles.find((name) => name === text);
  if (found !== undefined) return found;
  throw new WeftError({ code: "E-ARG-02", message: `"${text}" is not a role: ${roles.join(", ")} are.` });
}

/** A length of time back from now, or a date: what the agent takes is a moment. */
export function since(text: string): string {
  const back = parseDuration(text);
  const moment = back === null ? Date.parse(text) : Date.now() - back;
  if (Number.isFinite(moment)) return new Date(moment).toISOString();
  throw new WeftError({
    code: "E-ARG-02",
    message: `--since "${text}" is neither a length of time nor a date. Examples: 2h, 30m, 3d, 2026-11-21T14:00.`,
  });
}

export function auditLimit(text: string): string {
  const value = wholeNumber("--limit", text);
  if (value >= 1 && value <= 1000) return String(value);
  throw new WeftError({ code: "E-ARG-02", message: `--limit ${value}: from 1 to 1000 lines can be shown.` });
}

/** `HOST:/dev/sdb` or `/dev/sdb`. */
export function diskOfHost(text: string): { readonly host: string | null; readonly device: string } {
  const [, host, device = ""] = /^(?:([^/:]+):)?(\/.+)$/.exec(text) ?? [];
  if (device !== "") return { host: host === undefined ? null : hostName(host), device };
  throw new WeftError({
    code: "E-ARG-02",
    message: `"${text}" is no disk. Examples: /dev/sdb, h2:/dev/sdb.`,
  });
}

/** `xfs` or `lvm-thin` for a whole device, `dir` for a directory. */
export function poolKind(text: string): "dir" | "xfs" | "lvm-thin" | "zfs" {
  if (text === "dir" || text === "xfs" || text === "lvm-thin" || text === "zfs") return text;
  throw new WeftError({
    code: "E-ARG-02",
    message: `--kind "${text}" is not known: dir, xfs and lvm-thin are.`,
  });
}

export function absolutePath(text: string): string {
  if (text === "") throw new WeftError({ code: "E-ARG-02", message: "The path is empty." });
  return resolve(text);
}

export function copies(text: string): number {
  const value = wholeNumber("--copies", text);
  if (value >= 1 && value <= COPIES_MAX) return value;
  throw new WeftError({
    code: "E-VOL-08",
    message: `${value} copies wanted, a volume has 1 to ${COPIES_MAX}.`,
    facts: { copies: value, limit: COPIES_MAX },
  });
}

export function minIsr(text: string): number {
  const value = wholeNumber("--min-isr", text);
  if (value >= 1 && value <= COPIES_MAX) return value;
  throw new WeftError({ code: "E-VOL-06", message: `--min-isr ${value} is not 1 to the number of copies.` });
}

export type LimitOptions = {
  readonly iops?: string;
  readonly rate?: string;
  readonly burst?: string;
  readonly none?: true;
};

/** What a volume's guests may take: null for `--none`. E-ARG-03 without any, E-VOL-17 out of range. */
export function limits({ iops, rate, burst, none }: LimitOptions): VolumeLimits | null {
  if (none === true && iops === undefined && rate === undefined && burst === undefined) return null;
  if (none === true || (iops === undefined && rate === undefined)) {
    throw new WeftError({
      code: "E-ARG-03",
      message: none === true ? "--none leaves nothing to limit." : "Say what to limit, or --none.",
      do: [{ why: "For example", command: "weft volume limit VOLUME --iops 2000 --rate 100MiB/s" }],
    });
  }
  return accept(
    checkLimits({
      iops: iops === undefined ? null : requests(iops),
      bps: rate === undefined ? null : accept(parseRate(rate)),
      burstS: burst === undefined ? LIMIT_BURST_SECONDS : seconds(burst),
    }),
  );
}

export function transport(text: string): Settings["transport"] {
  const found = (["tls", "auth", "clear"] as const).find((name) => name === text);
  if (found !== undefined) return found;
  throw new WeftError({ code: "E-ARG-02", message: `"${text}" is not a transport: tls, auth, clear are.` });
}

/** 0: never. */
export function days(text: string): number {
  return accept(checkScrubDays(wholeNumber("scrub.everyDays", text)));
}

/** Times a pool's size. */
export function overcommit(text: string): number {
  return accept(checkOvercommit(wholeNumber("pools.overcommit", text)));
}

export function onOrOff(text: string): boolean {
  if (text === "on" || text === "off") return text === "on";
  throw new WeftError({ code: "E-ARG-02", message: `"${text}" is neither on nor off.` });
}

/** Bytes a second. */
export function rate(text: string): bigint {
  return accept(checkScrubRate(accept(parseRate(text))));
}

function requests(text: string): number {
  if (/^\d{1,12}$/.test(text)) return Number(text);
  throw new WeftError({ code: "E-ARG-02", message: `--iops "${text}" is not a whole number.` });
}

/** `5s`, `1m`, or a number of seconds. */
function seconds(text: string): number {
  const ms = /^\d{1,6}$/.test(text) ? Number(text) * 1000 : parseDuration(text);
  if (ms !== null) return ms / 1000;
  throw new WeftError({
    code: "E-ARG-02",
    message: `--burst "${text}" is not a length of time: 5s, 1m are.`,
  });
}

/** Appends one of several `--host`. */
export function collectHost(text: string, before: readonly string[] = []): readonly string[] {
  const name = hostName(text);
  if (before.includes(name)) {
    throw new WeftError({
      code: "E-ARG-02",
      message: `--host ${name} is named twice; no two copies are placed on one host.`,
    });
  }
  return [...before, name];
}

/** `db,log`: names or ids. */
export function volumeList(text: string): readonly string[] {
  const names = text.split(",").map((name) => name.trim());
  if (names.every((name) => name !== "")) return names;
  throw new WeftError({
    code: "E-ARG-02",
    message: `--group "${text}" is no list of volumes: db,log is one.`,
  });
}

/** Only `durable`: `cached` waits for the fault tests that cover it. */
export function acknowledgement(text: string): "durable" {
  if (text === "durable") return text;
  if (text === "cached") {
    throw new WeftError({
      code: "E-VOL-05",
      message:
        "Acknowledgement mode cached is not offered: the fault tests do not cover it yet. Nothing was made.",
      do: [{ why: "Leave it away for durable, the default", command: "weft volume create NAME SIZE" }],
    });
  }
  throw new WeftError({ code: "E-ARG-02", message: `--ack "${text}" is not known. The mode is durable.` });
}

/** The address on the storage network when there is only one that it can be. */
export function ownAddress(): string {
  const found = Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .filter((one) => !one.internal && one.family === "IPv4" && !one.address.startsWith("169.254."))
    .map((one) => one.address);
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  throw new WeftError({
    code: "E-ARG-03",
    message:
      found.length === 0
        ? "This host has no address but its loopback: say which one the others shall use."
        : `This host has ${found.length} addresses (${found.join(", ")}): say which one the others shall use.`,
    do: [{ why: "For example", command: `--address ${only ?? "10.0.9.11"}` }],
  });
}

/** `60m`, `24h`, `7d`; in milliseconds. */
export function duration(text: string): number {
  const ms = parseDuration(text) ?? 0;
  if (ms > 0) return ms;
  throw new WeftError({
    code: "E-ARG-02",
    message: `"${text}" is not a length of time: 90s, 60m, 24h and 7d are.`,
  });
}

function wholeNumber(option: string, text: string): number {
  if (/^\d{1,6}$/.test(text)) return Number(text);
  throw new WeftError({ code: "E-ARG-02", message: `${option} "${text}" is not a whole number.` });
}

function accept<Value>(decision: Decision<Value>): Value {
  if (decision.kind === "ok") return decision.value;
  throw WeftError.fromFinding(decision.finding);
}
