/**
 * An attacker: a process in a network of its own, or inside a host, that tries what it is told.
 *
 *     node scripts/attack/attacker.ts KNOWLEDGE-FILE ADDRESS…
 *
 * Must always hold: the control is tried after the attack, from an address that the attack did not use where there is one,
 * so that a door which only closes itself is found out.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { pause } from "../lib/until.ts";
import type { Attack, Way } from "./attack.ts";
import { randomOf } from "./attack.ts";
import { attacks } from "./catalogue.ts";
import type { Knowledge } from "./knowledge.ts";
import { knowledge } from "./knowledge.ts";
import type { Answer, Order } from "./orders.ts";
import { order } from "./orders.ts";

/** Tries under way at once: the machine is the guests' too. */
const AT_ONCE = 4;
/** From one try to the next: below what the doors let strangers begin, so that each try is judged for what it is. */
const PACE_MS = 50;

const [file = "", ...addresses] = process.argv.slice(2);
const known = knowledge.parse(JSON.parse(readFileSync(file, "utf8")));

for await (const line of createInterface({ input: process.stdin })) {
  const asked = order.parse(JSON.parse(line));
  say(await play(asked, known));
}

async function play({ attack: name, door, tries, seed }: Order, all: Knowledge): Promise<Answer> {
  try {
    const attack = attacks.find((one) => one.name === name && one.door === door);
    if (attack === undefined) throw new Error(`there is no attack "${name}" at ${door}`);
    const ways = await waysOf(attack, tries, seed, all);
    await inTurns(ways, attack.atOnce ?? AT_ONCE, async (way, i) => {
      say({ kind: "try", label: way.label, accepted: await way.run(addressAt(i)) });
    });
    const control = await attack.control(all, addresses.at(-1) ?? "").then(
      () => null,
      (error: unknown) => textOf(error),
    );
    return { kind: "done", control, broken: null };
  } catch (error) {
    return { kind: "done", control: null, broken: textOf(error) };
  }
}

/** At least as many as are asked for, and each of the attack's own once. */
async function waysOf(attack: Attack, tries: number, seed: number, all: Knowledge): Promise<readonly Way[]> {
  const random = randomOf(seed);
  const ways: Way[] = [];
  do {
    const more = await attack.ways(all, random);
    if (more.length === 0) throw new Error("it has no way of trying");
    ways.push(...more);
  } while (ways.length < tries);
  return ways;
}

async function inTurns(
  ways: readonly Way[],
  atOnce: number,
  run: (way: Way, i: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  let due = performance.now();
  const worker = async (): Promise<void> => {
    while (next < ways.length) {
      const i = next++;
      const way = ways[i];
      due = Math.max(due + PACE_MS, performance.now());
      await pause(due - performance.now());
      if (way !== undefined) await run(way, i);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

/** The last one is the control's, unless there is only one. */
function addressAt(i: number): string {
  return addresses[i % Math.max(1, addresses.length - 1)] ?? "";
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function say(said: Answer): void {
  process.stdout.write(`${JSON.stringify(said)}\n`);
}
