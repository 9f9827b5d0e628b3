/**
 * The package's etcd: 3.7, static, from its Go modules, where a Go of 1.24 or newer is there; else Debian's.
 *
 * Must always hold: what was taken, and why, is told, and stands in the package (`share/BUILD`).
 */
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";

import { execa } from "execa";

import { repository } from "../lib/repository.ts";
import type { Component } from "./sbom.ts";

const SOURCES = join(repository, "packaging/etcd");
const GO_AT_LEAST = [1, 24] as const;
/** Debian's has as many. */
const LICENCE = /^(?:licen[cs]e|copying|notice)/i;

export type Etcd = {
  readonly kind: "static" | "debian";
  /** Each with the names that it goes by, the first is the file's. */
  readonly programs: readonly { readonly path: string; readonly names: readonly string[] }[];
  /** One line for people. */
  readonly said: string;
  readonly components: readonly Component[];
  /** A directory with what the modules say of their licences, one directory each; null: Debian's packages have them. */
  readonly licences: string | null;
};

export type EtcdChoice = "auto" | "go" | "debian";

export async function provideEtcd(choice: EtcdChoice, say: (line: string) => void): Promise<Etcd> {
  if (choice === "debian") return debianEtcd("as it was asked for");
  const go = await goVersion();
  if (go === null) {
    if (choice === "go") throw new Error(`no Go of ${GO_AT_LEAST.join(".")} or newer is here`);
    return debianEtcd(`no Go of ${GO_AT_LEAST.join(".")} or newer was there`);
  }
  try {
    return await staticEtcd(go, say);
  } catch (error) {
    if (choice === "go") throw error;
    const [why = ""] = (error instanceof Error ? error.message : String(error)).split("\n");
    say(`etcd could not be built from its modules (${why}): Debian's is taken`);
    return debianEtcd("its modules could not be built");
  }
}

/** `go1.26.8`; null: none, or too old. */
async function goVersion(): Promise<string | null> {
  const { stdout, failed } = await execa("go", ["env", "GOVERSION"], { reject: false, cwd: "/" });
  const [, major, minor] = /^go(\d+)\.(\d+)/.exec(stdout ?? "") ?? [];
  if (failed || major === undefined) return null;
  const newer = Number(major) > GO_AT_LEAST[0] || Number(minor) >= GO_AT_LEAST[1];
  return newer ? stdout.trim() : null;
}

async function staticEtcd(go: string, say: (line: string) => void): Promise<Etcd> {
  const hash = createHash("sha256").update(go);
  for (const name of ["go.mod", "go.sum", "main.go"]) hash.update(readFileSync(join(SOURCES, name)));
  const cached = join(repository, "node_modules/.cache/weft-etcd", hash.digest("hex").slice(0, 32));
  if (!existsSync(cached)) await build(cached, say);
  const path = join(cached, "etcd");
  const { stdout } = await execa("go", ["version", "-m", path]);
  const modules = Array.from(stdout.matchAll(/^\tdep\t(\S+)\t(\S+)/gm), ([, name = "", version = ""]) => ({
    name,
    version,
  }));
  const version = modules.find(({ name }) => name === "go.etcd.io/etcd/server/v3")?.version.slice(1) ?? "?";
  return {
    kind: "static",
    programs: [{ path, names: ["etcd", "etcdctl", "etcdutl"] }],
    said: `etcd ${version}, static, built from its Go modules with ${go}`,
    components: modules.map(({ name, version }) => ({
      name,
      version,
      purl: `pkg:golang/${name}@${version}`,
      licence: licenceOfText(join(cached, "licences", `${name}@${version}`.replaceAll("/", "-"))),
    })),
    licences: join(cached, "licences"),
  };
}

async function build(cached: string, say: (line: string) => void): Promise<void> {
  say("etcd: built from its Go modules, some minutes the first time");
  const making = `${cached}.new`;
  rmSync(making, { recursive: true, force: true });
  mkdirSync(making, { recursive: true });
  const env = { CGO_ENABLED: "0", GOFLAGS: "-mod=readonly" };
  const at = { cwd: SOURCES, env };
  // The same bytes from the same modules, wherever they lie.
  const flags = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="];
  await execa("go", ["build", ...flags, "-o", join(making, "etcd"), "."], at);
  const { stdout } = await execa(
    "go",
    ["list", "-deps", "-f", "{{with .Module}}{{.Path}}@{{.Version}} {{.Dir}}{{end}}", "."],
    at,
  );
  for (const line of new Set(stdout.split("\n"))) {
    const [name = "", dir = ""] = line.split(" ");
    if (dir === "" || dir === SOURCES) continue;
    const into = join(making, "licences", name.replaceAll("/", "-"));
    mkdirSync(into, { recursive: true });
    for (const file of readdirSync(dir).filter((file) => LICENCE.test(file)))
      cpSync(join(dir, file), join(into, file), { recursive: true });
  }
  renameSync(making, cached);
}

/** The licences that Go's modules have, by words that only they use. */
function licenceOfText(directory: string): string | null {
  const files = existsSync(directory) ? readdirSync(directory) : [];
  const text = files.map((file) => readFileSync(join(directory, file), "utf8")).join("\n");
  if (/Apache License\s+Version 2\.0/.test(text)) return "Apache-2.0";
  if (/Permission is hereby granted, free of charge/.test(text)) return "MIT";
  if (/Neither the name of/.test(text)) return "BSD-3-Clause";
  if (/Redistribution and use in source and binary forms/.test(text)) return "BSD-2-Clause";
  return null;
}

async function debianEtcd(why: string): Promise<Etcd> {
  const { stdout } = await execa("dpkg-query", ["--show", "--showformat=${Version}", "etcd-server"]);
  return {
    kind: "debian",
    programs: [
      { path: "/usr/bin/etcd", names: ["etcd"] },
      { path: "/usr/bin/etcdctl", names: ["etcdctl"] },
    ],
    said: `etcd of Debian's etcd-server ${stdout.trim()}, under the bundled loader: ${why}`,
    components: [],
    licences: null,
  };
}
