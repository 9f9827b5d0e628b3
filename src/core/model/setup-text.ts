/**
 * A setup's plan as a person reads it before it is done, or what stands in its way.
 *
 * Must always hold: the same plan is the same text, and what came from elsewhere (names, what is on a disk) stays on its line.
 */
import type { Finding } from "./finding.ts";
import {
  linkText,
  type PlannedHost,
  SETUP_MEMORY_BYTES,
  type SetupDecision,
  type SetupPlan,
} from "./setup-plan.ts";
import { formatSize } from "./size.ts";

/** `pool` is the hypervisors' name of it, `sr` the storage repository's that is made of it. */
export function setupText(
  decision: SetupDecision,
  about: { readonly pool: string; readonly sr: string | null },
): string {
  if (decision.kind === "refused") return findingsText(decision.findings);
  const { plan } = decision;
  const rows = plan.hosts.map(hostCells);
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => length(row[column] ?? ""))));
  const lines = rows.map((row) =>
    row
      .map((cell, column) => pad(cell, widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
  return [
    `Pool "${plain(about.pool)}" (${plan.hosts.length + plan.leftOut.length} ${plan.hosts.length === 1 && plan.leftOut.length === 0 ? "host" : "hosts"})`,
    ...lines.map((line) => `  ${line}`),
    "Plan",
    `  ${copiesText(plan)}, ${votesText(plan)}`,
    `  survives: ${plan.survives}`,
    `  usable ${formatSize(plan.usableBytes)} of ${formatSize(plan.rawBytes)} raw`,
    `  memory ${formatSize(SETUP_MEMORY_BYTES)} per host; TCP 7400-7403 between them`,
    ...(about.sr === null ? [] : [`  SR "${plain(about.sr)}" (shared)`]),
    ...plan.risks.map((risk) => `Risk: ${plain(risk)}`),
    erasedText(plan),
  ].join("\n");
}

/** Each as an error is shown: code, what, safe, what to do. */
export function findingsText(findings: readonly Finding[]): string {
  return findings
    .flatMap(({ code, message, safe, do: remedies }) => [
      `${code}  ${plain(message)}`,
      ...(safe === null ? [] : [`    ${plain(safe)}`]),
      ...remedies.map(({ why, command }) => `    ${plain(why)}:  ${plain(command)}`),
    ])
    .join("\n");
}

function hostCells(host: PlannedHost): readonly string[] {
  const { name, address, linkMbps, clockOffMs } = host;
  const clock =
    clockOffMs === null
      ? "clock not known"
      : Math.abs(clockOffMs) <= 1000
        ? "clock ok"
        : `clock ${Math.round(clockOffMs / 1000)} s off`;
  return [plain(name), disksText(host), `${plain(address)}  ${linkText(linkMbps)}`, clock];
}

function disksText({ disks, poolsBytes, votes, isMember, isReturning }: PlannedHost): string {
  const parts = [
    ...(isReturning ? ["comes back with its pools"] : []),
    ...(poolsBytes > 0n ? [`pools ${formatSize(poolsBytes)}`] : []),
    ...disks.map(
      ({ device, sizeBytes }) => `${device.replace(/^\/dev\//, "")} ${formatSize(sizeBytes)} blank`,
    ),
  ];
  if (parts.length > 0) return parts.join(", ");
  return `— no free disk (diskless${votes && !isMember ? ", votes" : ""})`;
}

function copiesText({ copies }: SetupPlan): string {
  return copies === 1 ? "1 copy of every volume" : `${copies} copies of every volume`;
}

function votesText({ hosts }: SetupPlan): string {
  const voters = hosts.filter(({ votes }) => votes).map(({ name }) => plain(name));
  return `${voters.length === 1 ? "the store's vote" : `${voters.length} votes`} on ${voters.join(" ")}`;
}

function erasedText({ steps, hosts }: SetupPlan): string {
  if (steps.length === 0) return "All of it is so already: nothing is to be done.";
  const disks = hosts.reduce((all, host) => all + host.disks.length, 0);
  if (disks === 0) return "Nothing is erased: no disk is touched.";
  return `Nothing is erased: ${disks === 1 ? "the disk is" : disks === 2 ? "both disks are" : `all ${disks} disks are`} blank.`;
}

/** What came from elsewhere is printed without anything that moves the cursor. */
function plain(text: string): string {
  // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ");
}

function length(text: string): number {
  return Array.from(text).length;
}

function pad(text: string, columns: number): string {
  return text + " ".repeat(Math.max(0, columns - length(text)));
}
