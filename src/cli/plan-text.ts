/** A plan as text: what is done in which order, how much moves, what is at stake. */
import { formatDuration } from "../core/model/duration.ts";
import { formatSize } from "../core/model/size.ts";
import type { PlanAnswer } from "../core/wire/agent-api.ts";

type Step = PlanAnswer["steps"][number];

export function planText({ name, steps, bytes, seconds, inSync, risks }: PlanAnswer): string {
  if (steps.length === 0) return `"${name}" is so already: nothing is to be done.`;
  const moves =
    bytes === 0n
      ? "Nothing is copied."
      : `At most ${formatSize(bytes)} are copied, about ${formatDuration(seconds * 1000)} at 250 MiB/s; what was never written is not.`;
  return [
    `Plan for "${name}"`,
    ...steps.map((step, index) => `  ${index + 1}. ${stepText(step, steps)}`),
    moves,
    `In sync: ${inSync.now} now, never fewer than ${inSync.least}, ${inSync.after} in the end.`,
    ...risks.map((risk) => `Risk: ${risk}`),
  ].join("\n");
}

function stepText(step: Step, steps: readonly Step[]): string {
  switch (step.kind) {
    case "policy": {
      const noun = step.copies === 1 ? "copy" : "copies";
      return `${step.copies} ${noun} wanted, apart by ${step.spread}, at least ${step.minIsr} in sync for writes`;
    }
    case "add":
      return `add a copy on ${placeText(step)}: at most ${formatSize(step.bytes)}`;
    case "keep":
      return `keep the copy on ${placeText(step)}, which was to go`;
    case "wait":
      return `wait until ${step.rids.map((rid) => `copy ${rid}${whereOf(rid, steps)}`).join(" and ")} ${step.rids.length === 1 ? "is" : "are"} in sync`;
    case "remove":
      return `remove copy ${step.rid} on ${placeText(step)}; its data rests in the trash for 24 h`;
  }
}

function whereOf(rid: number, steps: readonly Step[]): string {
  const added = steps.find((step) => step.kind === "add" && step.rid === rid);
  return added?.kind === "add" ? ` on ${added.hostName}` : "";
}

function placeText({ hostName, poolPath, pool }: Extract<Step, { readonly rid: number }>): string {
  return `${hostName} (pool ${poolPath === "" ? pool.slice(0, 8) : poolPath})`;
}
