/**
 * The attackers' processes, one in each place: in a network beside the hosts, and inside h3.
 *
 * Must always hold: an attacker that ends unasked is a broken attack, with what it said last.
 */
import { spawn } from "node:child_process";
import type { ChildProcessByStdio } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";

import { within } from "../lib/until.ts";
import { strangerAddresses } from "../cluster/cluster.ts";
import type { Place } from "./attack.ts";
import type { Answer, Order } from "./orders.ts";
import { answer } from "./orders.ts";
import type { Stage } from "./stage.ts";

const DEADLINE_MS = 300_000;

type Result = {
  readonly tries: number;
  readonly accepted: readonly string[];
  readonly faults: readonly string[];
};

export class Attackers {
  readonly #stage: Stage;
  readonly #running = new Map<Place, Attacker>();

  constructor(stage: Stage) {
    this.#stage = stage;
  }

  async play(place: Place, order: Order): Promise<Result> {
    const attacker = this.#running.get(place) ?? (await this.#start(place));
    const accepted: string[] = [];
    const faults: string[] = [];
    let tries = 0;
    const end = attacker.order(order, (label, isIn) => {
      tries += 1;
      if (isIn) accepted.push(label);
    });
    const { control, broken } = await within(end, {
      what: `${order.attack} at ${order.door}`,
      deadlineMs: DEADLINE_MS,
    });
    if (control !== null) faults.push(control);
    if (broken !== null) faults.push(`the attack is broken: ${broken}`);
    return { tries, accepted, faults };
  }

  dispose(): void {
    for (const attacker of this.#running.values()) attacker.kill();
  }

  async #start(place: Place): Promise<Attacker> {
    const { cluster, knowledgePath } = this.#stage;
    const script = join(import.meta.dirname, "attacker.ts");
    const base = [process.execPath, script, knowledgePath];
    const command =
      place === "stranger"
        ? cluster.asStranger([...base, ...strangerAddresses])
        : await cluster.host(place).entering([...base, cluster.host(place).layout.address]);
    const attacker = new Attacker(command);
    this.#running.set(place, attacker);
    return attacker;
  }
}

type Done = Extract<Answer, { kind: "done" }>;

class Attacker {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  #said = "";
  #waiting: {
    readonly onTry: (label: string, accepted: boolean) => void;
    readonly resolve: (done: Done) => void;
    readonly reject: (error: Error) => void;
  } | null = null;

  constructor([file = "", ...words]: readonly string[]) {
    this.#child = spawn(file, words, { stdio: ["pipe", "pipe", "pipe"] });
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => (this.#said += text));
    this.#child.stdin.on("error", () => {});
    createInterface({ input: this.#child.stdout }).on("line", (line) => this.#take(line));
    this.#child.once("close", () => this.#waiting?.reject(new Error(`the attacker ended: ${this.#said}`)));
  }

  order(order: Order, onTry: (label: string, accepted: boolean) => void): Promise<Done> {
    return new Promise((resolve, reject) => {
      this.#waiting = { onTry, resolve, reject };
      this.#child.stdin.write(`${JSON.stringify(order)}\n`);
    });
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  #take(line: string): void {
    const said = answer.parse(JSON.parse(line));
    if (said.kind === "try") {
      this.#waiting?.onTry(said.label, said.accepted);
      return;
    }
    this.#waiting?.resolve(said);
    this.#waiting = null;
  }
}
