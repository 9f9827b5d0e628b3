/**
 * The native doors under libFuzzer and AddressSanitizer, driven without cargo-fuzz: with the stable compiler that builds
 * the daemon (RUSTC_BOOTSTRAP lets it take the two flags), whose distribution has the sanitizer's runtime.
 *
 * Must always hold:
 * - it is built into a directory of its own: instrumented code never mixes with what a host runs;
 * - a finding is a file, and the line that replays it.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, copyFileSync } from "node:fs";
import { basename, join, relative } from "node:path";

import { execa } from "execa";

import { nativeTarget, repository } from "../lib/repository.ts";
import type { Finding, Outcome } from "./outcome.ts";

const room = join(repository, "native/fuzz");
const corpus = join(room, "corpus");
const artifacts = join(room, "artifacts");
const target = join(nativeTarget(), "fuzz");

/** What a kept corpus may have in each target: the tests hold the limit of files, and 1 MiB in all. */
const KEPT_FILES = 150;
const KEPT_BYTES = 90 * 1024;
/** Longer plots cost more to replay than they are worth; of the others the longest go deepest, and are kept first. */
const KEPT_LENGTH = 2048;

const LIMITS = ["-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-timeout=20", "-max_len=16384"];

const INSTRUMENTATION = [
  "-Zsanitizer=address",
  "--cfg fuzzing",
  "-Cpasses=sancov-module",
  "-Cllvm-args=-sanitizer-coverage-level=4",
  "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
  "-Cllvm-args=-sanitizer-coverage-pc-table",
  "-Cllvm-args=-sanitizer-coverage-trace-compares",
  "-Cdebug-assertions",
  "-Coverflow-checks",
  "-Ccodegen-units=1",
];

/** The targets, as the folders of their corpora name them. */
export function nativeTargets(): readonly string[] {
  return readdirSync(corpus).toSorted();
}

/** A program that runs one target, named by its environment. */
export type Fuzzer = (name: string, args: readonly string[]) => Promise<{ exitCode: number; output: string }>;

export async function builtFuzzer(): Promise<Fuzzer> {
  const triple = await hostTriple();
  const environment = instrumented(INSTRUMENTATION);
  const { exitCode, all } = await execa(
    "cargo",
    [
      "build",
      "--quiet",
      "--release",
      "-p",
      "weft-fuzz",
      "--features",
      "libfuzzer",
      "--bins",
      "--target",
      triple,
    ],
    { cwd: join(repository, "native"), env: environment, all: true, reject: false },
  );
  if (exitCode !== 0) throw new Error(`the fuzzers were not built:\n${all}`);
  const program = join(target, triple, "release/doors");
  return async (name, args) => {
    const run = await execa(program, [...args], {
      cwd: repository,
      env: { WEFT_FUZZ_TARGET: name, ASAN_OPTIONS: "detect_odr_violation=0" },
      all: true,
      reject: false,
      maxBuffer: 256 * 1024 * 1024,
    });
    return { exitCode: run.exitCode ?? 1, output: run.all };
  };
}

/** The unit tests of the crates that have `unsafe`, under AddressSanitizer. */
export async function unitTests(): Promise<boolean> {
  const triple = await hostTriple();
  const { exitCode } = await execa(
    "cargo",
    ["test", "-p", "weft-io", "-p", "weft-export", "--lib", "--target", triple],
    {
      cwd: join(repository, "native"),
      env: { ...instrumented(["-Zsanitizer=address"]), CARGO_TARGET_DIR: join(target, "unit") },
      stdio: "inherit",
      reject: false,
    },
  );
  return exitCode === 0;
}

function instrumented(flags: readonly string[]): Record<string, string> {
  return {
    RUSTC_BOOTSTRAP: "1",
    RUSTFLAGS: flags.join(" "),
    CARGO_TARGET_DIR: target,
    CARGO_INCREMENTAL: "0",
  };
}

async function hostTriple(): Promise<string> {
  const { stdout } = await execa("rustc", ["-vV"], { cwd: join(repository, "native") });
  const triple = /^host: (.+)$/m.exec(stdout)?.[1];
  if (triple === undefined) throw new Error(`rustc -vV names no host:\n${stdout}`);
  return triple;
}

export async function fuzz(
  fuzzer: Fuzzer,
  name: string,
  seconds: number,
  seed: string | null = null,
): Promise<Outcome> {
  const [found, findings] = [join(target, "corpus", name), join(artifacts, name)];
  mkdirSync(found, { recursive: true });
  mkdirSync(findings, { recursive: true });
  const before = new Set(readdirSync(findings));
  const { exitCode, output } = await fuzzer(name, [
    `-max_total_time=${seconds}`,
    ...(seed === null ? [] : [`-seed=${seed}`]),
    ...LIMITS,
    "-print_final_stats=1",
    `-artifact_prefix=${findings}/`,
    found,
    ...(readdirSync(corpus).includes(name) ? [join(corpus, name)] : []),
  ]);
  const fresh = readdirSync(findings).filter((file) => !before.has(file));
  return {
    name,
    seconds,
    ...figures(output),
    findings:
      exitCode === 0
        ? []
        : (fresh.length === 0 ? [null] : fresh).map((file) =>
            finding(name, join(findings, file ?? ""), output),
          ),
  };
}

/** What libFuzzer says of itself. */
export function figures(output: string): { executions: number; coverage: number } {
  const executions = /stat::number_of_executed_units: (\d+)/.exec(output)?.[1];
  const coverage = Array.from(output.matchAll(/ cov: (\d+) /g)).at(-1)?.[1];
  return { executions: Number(executions ?? 0), coverage: Number(coverage ?? 0) };
}

function finding(name: string, file: string, output: string): Finding {
  const input = relative(repository, file);
  return {
    input,
    replay: `npm run fuzz -- --target ${name} --replay ${input}`,
    text: saidWhenItDied(output),
  };
}

/** The panic's or the sanitizer's own words, without the map of the address space. */
function saidWhenItDied(output: string): string {
  const lines = output.split("\n");
  const start = lines.findIndex((line) => /panicked at|ERROR: /.test(line));
  return lines.slice(Math.max(0, start), start + 12).join("\n");
}

export async function replay(fuzzer: Fuzzer, name: string, file: string): Promise<boolean> {
  const { exitCode, output } = await fuzzer(name, [...LIMITS, file]);
  console.log(output);
  return exitCode === 0;
}

/** Keeps, of what was kept and what was found since, the smallest inputs that reach everything. */
export async function minimise(fuzzer: Fuzzer, name: string): Promise<string> {
  const [kept, found] = [join(corpus, name), join(target, "corpus", name)];
  const merged = join(target, "merged", name);
  rmSync(merged, { recursive: true, force: true });
  for (const directory of [merged, found]) mkdirSync(directory, { recursive: true });
  const { exitCode, output } = await fuzzer(name, ["-set_cover_merge=1", ...LIMITS, merged, kept, found]);
  if (exitCode !== 0) throw new Error(`${name} was not minimised:\n${saidWhenItDied(output)}`);
  // Inputs that showed a fault have names of their own and stay.
  const named = readdirSync(kept).filter((file) => !/^[0-9a-f]{40}\.input$/.test(file));
  const files = readdirSync(merged)
    .map((file) => ({ file, bytes: statSync(join(merged, file)).size }))
    .toSorted((a, b) => b.bytes - a.bytes);
  for (const file of readdirSync(kept)) if (!named.includes(file)) rmSync(join(kept, file));
  let bytes = named.reduce((sum, file) => sum + statSync(join(kept, file)).size, 0);
  let count = named.length;
  const contents = new Set(named.map((file) => readFileSync(join(kept, file), "latin1")));
  for (const one of files) {
    if (count >= KEPT_FILES) break;
    if (one.bytes > KEPT_LENGTH || bytes + one.bytes > KEPT_BYTES) continue;
    if (contents.has(readFileSync(join(merged, one.file), "latin1"))) continue;
    copyFileSync(join(merged, one.file), join(kept, `${basename(one.file, ".input")}.input`));
    count += 1;
    bytes += one.bytes;
  }
  return `${name}: ${count} inputs, ${bytes} bytes (of ${files.length} that reach everything)`;
}
