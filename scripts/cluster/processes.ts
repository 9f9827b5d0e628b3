/**
 * Processes of this machine as /proc shows them.
 *
 * Must always hold: a process is known by its number and its start time together; a number alone may be given out anew.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

import { until } from "../lib/until.ts";

export type ProcessId = { readonly pid: number; readonly startedAt: string };

type Stat = { readonly state: string; readonly startedAt: string; readonly name: string };

/** Null when there is no such process. The name stands in brackets and may hold anything, brackets included. */
export function statOf(pid: number): Stat | null {
  const text = read(`/proc/${pid}/stat`);
  if (text === null) return null;
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const name = text.slice(text.indexOf("(") + 1, text.lastIndexOf(")"));
  return { state: fields[0] ?? "?", startedAt: fields[19] ?? "?", name };
}

/** What it was started with; nothing of one that has ended. */
export function wordsOf(pid: number): readonly string[] {
  return read(`/proc/${pid}/cmdline`)?.split("\0") ?? [];
}

export function identify(pid: number): ProcessId | null {
  const stat = statOf(pid);
  return stat === null ? null : { pid, startedAt: stat.startedAt };
}

/** A zombie does nothing any more: it counts as gone. */
export function isAlive(id: ProcessId): boolean {
  const stat = statOf(id.pid);
  return stat !== null && stat.startedAt === id.startedAt && stat.state !== "Z" && stat.state !== "X";
}

function allPids(): readonly number[] {
  return readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number);
}

/** Processes whose network namespace is the one with this inode: "net:[4026531840]". */
export function pidsInNetwork(namespace: string): readonly number[] {
  return allPids().filter((pid) => namespaceOf(pid, "net") === namespace);
}

/**
 * Processes that carry this setting in their environment, or that were told a path below this directory, as a word or as
 * the value of a flag: the agent starts etcd with an environment of its own.
 */
export function pidsMarked(mark: { readonly setting: string; readonly below: string }): readonly number[] {
  return allPids().filter((pid) => {
    if (pid === process.pid) return false;
    const environment = read(`/proc/${pid}/environ`)?.split("\0") ?? [];
    const words = wordsOf(pid);
    return (
      environment.includes(mark.setting) ||
      words.some((word) => word.replace(/^--[a-z-]+=/, "").startsWith(`${mark.below}/`))
    );
  });
}

export function namespaceOf(pid: number, kind: "net" | "pid"): string | null {
  try {
    return readlinkSync(`/proc/${pid}/ns/${kind}`);
  } catch {
    return null;
  }
}

export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

/**
 * SIGKILL to whatever the question names, again and again until it names nobody and all that it named are gone: a process
 * that is ending has left its namespaces already, and still holds its files and locks.
 */
export async function killAll(pids: () => readonly number[], what: string): Promise<void> {
  const named = new Map<string, ProcessId>();
  await until(
    () => {
      for (const id of pids().map(identify)) {
        if (id !== null) named.set(`${id.pid} ${id.startedAt}`, id);
      }
      const living = [...named.values()].filter(isAlive);
      for (const { pid } of living) signal(pid, "SIGKILL");
      return living.length === 0 ? true : null;
    },
    { what: `the end of the processes of ${what}`, deadlineMs: 20_000, everyMs: 20 },
  );
}

function read(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}
