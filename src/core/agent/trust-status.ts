/**
 * What is wrong with who is trusted, as `weft status` says it.
 *
 * Must always hold: it says what this host knows by itself; nobody is asked.
 */
import { formatDuration } from "../model/duration.ts";
import type { Finding } from "../model/finding.ts";
import { CLOCK_SLACK_MS } from "../model/limits.ts";
import type { CertFacts } from "../model/trust.ts";
import type { Problem } from "../wire/agent-api.ts";

export type TrustFindings = {
  /** Of the list, of this host's etcd, of clocks. */
  readonly findings: readonly (Finding | null)[];
  /** This host's certificate. */
  readonly validity: Pick<CertFacts, "notBeforeMs" | "notAfterMs">;
};

export function trustProblems({ findings, validity }: TrustFindings, nowMs: number): readonly Problem[] {
  return [...findings.filter((one) => one !== null).map(problemOf), ...overdue(validity, nowMs)];
}

function problemOf({ code, message, do: remedies }: Finding): Problem {
  return { code, message, do: [...remedies] };
}

/** Renewed at two thirds of its life; a sixth later something holds it up, and there is as much time to mend that. */
function overdue({ notBeforeMs, notAfterMs }: TrustFindings["validity"], nowMs: number): readonly Problem[] {
  const life = notAfterMs - notBeforeMs - CLOCK_SLACK_MS;
  const left = notAfterMs - nowMs;
  if (left > life / 6) return [];
  const message =
    left > 0
      ? `This host's certificate is not renewed, and ends in ${formatDuration(left)}: no member of the store gives it another one.`
      : "This host's certificate has ended: no member of the store gives it another one.";
  return [{ code: "E-NET-04", message, do: [{ why: "Which members answer", command: "weft status" }] }];
}
