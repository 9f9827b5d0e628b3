/** A host with a valid identity that lies to the data ports, told by weft-liar from inside that host. */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { z } from "zod";

import { AgentClient } from "../../../src/core/wire/agent-client.ts";
import { until } from "../../lib/until.ts";
import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

const lineJson = z.object({ label: z.string(), accepted: z.boolean() });

export const lieAttacks: readonly Attack[] = [
  { name: "liar", door: "7401", from: "h3", ways: allLies, control: theTruth },
  {
    // The same lies, and frames that are altered, replayed, left out: only here is there something to alter.
    name: "frames-under-auth",
    door: "7401",
    from: "h3",
    changes: /^\/weft\/v1\/trust$/,
    ways: async (known) => {
      await speak(known, "auth");
      return allLies(known);
    },
    control: async (known) => {
      try {
        await theTruth(known);
      } finally {
        await speak(known, "tls");
      }
    },
  },
];

async function allLies(known: Knowledge): Promise<readonly Way[]> {
  const told = await Promise.all(
    known.targets.map(async (target) => ({ target, lines: (await tell(known, target)).lines })),
  );
  // All are told in one go: each is a way that has been gone.
  return told.flatMap(({ target, lines }) =>
    lines.map(({ label, accepted }) => ({
      label: `${label}, at ${target.host}`,
      run: () => Promise.resolve(accepted),
    })),
  );
}

async function theTruth(known: Knowledge): Promise<void> {
  const [target] = known.targets;
  mustBe(target !== undefined && (await tell(known, target)).status === 0, "h3 in its own name at 7401");
}

/** Returns when h3, in whose name lies are told, has heard of it. */
async function speak(known: Knowledge, transport: "tls" | "auth"): Promise<void> {
  const client = new AgentClient({ socketPath: hostOf(known, "h1").agentSocket });
  await client.changeSettings({ transport });
  const path = join(hostOf(known, "h3").identityDir, "trust.json");
  await until(
    () => (readFileSync(path, "utf8").includes(`\\"transport\\":\\"${transport}\\"`) ? true : null),
    {
      what: `h3 to hear of ${transport}`,
      deadlineMs: 10_000,
    },
  );
}

type Told = { readonly status: number | null; readonly lines: readonly z.output<typeof lineJson>[] };

function tell(known: Knowledge, target: Knowledge["targets"][number]): Promise<Told> {
  const { host, ...rest } = target;
  const to = `${hostOf(known, host).address}:7401`;
  const child = spawn(known.liar, ["--identity", hostOf(known, "h3").identityDir, "--to", to], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  child.stdin.on("error", () => {});
  child.stdin.end(JSON.stringify(rest));
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (said += text));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status) => {
      const lines = said.split("\n").filter((line) => line !== "");
      resolve({ status, lines: lines.map((line) => lineJson.parse(JSON.parse(line))) });
    });
  });
}

/** h4's connection to a data port, greeted and kept: here when it stands. */
export async function hold(known: Knowledge, to: string): Promise<{ readonly ended: Promise<void> }> {
  const child = spawn(known.liar, ["--identity", hostOf(known, "h4").identityDir, "--to", to, "--hold"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  await new Promise<void>((resolve, reject) => {
    child.stdout.once("data", () => resolve());
    child.once("close", () => reject(new Error(`${to} does not serve h4 before it is revoked`)));
  });
  return { ended };
}
