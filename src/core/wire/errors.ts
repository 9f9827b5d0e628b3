/**
 * Errors that answer: a code that never changes, a sentence, the facts, whether anything was changed, what to do next.
 *
 * Must always hold:
 * - every code of this table stands in docs/errors.md (a test compares them);
 * - a bug is not a WeftError: it is an assertion, and reaches the door as E-AGENT-06.
 */
import type { Decision, Finding } from "../model/finding.ts";

/** Who has to act: the caller asked wrongly, a peer or disk is in trouble, or we are wrong. */
export type Culprit = "caller" | "peer" | "disk" | "us";

/** 1 user error, 2 refused for safety, 3 degraded, 4 unreachable. */
export type ExitCode = 1 | 2 | 3 | 4;

export type HttpStatus = 400 | 401 | 403 | 404 | 409 | 413 | 421 | 429 | 431 | 503;

/** One thing a person can do about it. `command` is null when no command of ours helps. */
export type Advice = { readonly why: string; readonly command: string | null };

export type FactValue = string | number | boolean | null | readonly string[];
export type Facts = Readonly<Record<string, FactValue>>;

/** What goes over the agent's socket as `{"error": …}`. */
export type ErrorBody = {
  readonly code: string;
  readonly message: string;
  readonly facts: Facts;
  /** What was or wasn't changed, as a sentence; null when the message says it. */
  readonly safe: string | null;
  readonly do: readonly Advice[];
};

type Kind = { readonly culprit: Culprit; readonly exit: ExitCode; readonly status: HttpStatus };

const user: Kind = { culprit: "caller", exit: 1, status: 409 };
const refused: Kind = { culprit: "caller", exit: 2, status: 409 };
const away: Kind = { culprit: "peer", exit: 4, status: 503 };
const degraded: Kind = { culprit: "peer", exit: 3, status: 503 };

/** Codes that control itself raises. Codes of the daemon pass through and are classed by `kindOf`. */
const kinds = {
  "E-ARG-01": { culprit: "caller", exit: 1, status: 404 },
  "E-ARG-02": { culprit: "caller", exit: 1, status: 400 },
  "E-AGENT-01": away,
  "E-AGENT-02": { culprit: "us", exit: 4, status: 503 },
  "E-AGENT-03": user,
  "E-AGENT-04": degraded,
  "E-AGENT-05": away,
  "E-AGENT-06": { culprit: "us", exit: 4, status: 503 },
  "E-AGENT-07": { culprit: "us", exit: 4, status: 503 },
  "E-AUDIT-01": { culprit: "disk", exit: 2, status: 503 },
  "E-AUDIT-02": { culprit: "disk", exit: 3, status: 409 },
  "E-CTX-01": user,
  "E-CTX-02": refused,
  "E-CTX-03": refused,
  "E-AUTH-01": { culprit: "caller", exit: 1, status: 401 },
  "E-AUTH-02": { culprit: "caller", exit: 1, status: 403 },
  "E-STORE-01": away,
  "E-STORE-02": refused,
  "E-STORE-03": refused,
  "E-STORE-04": user,
  "E-STORE-05": refused,
  "E-STORE-06": away,
  "E-STORE-07": refused,
  "E-STORE-08": degraded,
  "E-STORE-09": { culprit: "us", exit: 4, status: 503 },
  "E-STORE-10": refused,
  "E-STORE-12": refused,
  "E-STORE-13": refused,
  "E-HOST-01": refused,
  "E-HOST-02": refused,
  "E-HOST-03": user,
  "E-HOST-04": user,
  "E-HOST-06": { culprit: "disk", exit: 2, status: 409 },
  "E-HOST-08": user,
  "E-HOST-09": away,
  "E-HOST-10": refused,
  "E-HOST-11": refused,
  "E-HOST-14": { culprit: "caller", exit: 2, status: 403 },
  "E-HOST-15": refused,
  "E-HOLD-01": user,
  "E-HOLD-02": refused,
  "E-HOLD-03": user,
  "E-HOLD-04": away,
  "E-HOLD-05": refused,
  "E-HOLD-06": degraded,
  "E-HOLD-07": degraded,
  "E-HOLD-08": refused,
  "E-HOLD-09": away,
  "E-VOL-01": user,
  "E-VOL-02": user,
  "E-VOL-03": user,
  "E-VOL-04": user,
  "E-VOL-06": user,
  "E-VOL-08": user,
  "E-VOL-11": user,
  "E-VOL-12": refused,
  "E-VOL-13": user,
  "E-VOL-14": degraded,
  "E-VOL-15": refused,
  "E-VOL-18": degraded,
  "E-VOL-21": refused,
  "E-VOL-19": user,
  "E-VOL-20": user,
  "E-VOL-22": degraded,
  "E-VOL-23": user,
  "E-VOL-17": { culprit: "caller", exit: 1, status: 400 },
  "E-REPL-01": user,
  "E-REPL-02": user,
  "E-REPL-03": refused,
  "E-REPL-04": user,
  "E-REPL-05": degraded,
  "E-SNAP-01": user,
  "E-SNAP-02": user,
  "E-SNAP-03": degraded,
  "E-SNAP-04": refused,
  "E-SNAP-05": refused,
  "E-SNAP-06": user,
  "E-SNAP-07": refused,
  "E-SNAP-08": degraded,
  "E-SNAP-09": { culprit: "caller", exit: 1, status: 404 },
  "E-SNAP-10": refused,
  "E-SNAP-11": degraded,
  "E-SNAP-12": user,
  "E-SNAP-13": refused,
  "E-SNAP-14": user,
  "E-SNAP-15": user,
  "E-SNAP-16": degraded,
  "E-SNAP-17": user,
  "E-SNAP-18": user,
  "E-SNAP-19": refused,
  "E-SNAP-20": degraded,
  "E-SNAP-21": degraded,
  "E-SNAP-22": degraded,
  "E-SNAP-23": { culprit: "disk", exit: 3, status: 409 },
  "E-SR-01": { culprit: "caller", exit: 1, status: 404 },
  "E-SR-02": refused,
  "E-SR-03": user,
  "E-VDI-01": { culprit: "caller", exit: 1, status: 404 },
  "E-VDI-02": user,
  "E-VDI-03": user,
  "E-VDI-04": refused,
  "E-VDI-05": degraded,
  "E-VDI-06": user,
  "E-VDI-07": degraded,
  "E-VDI-08": user,
  "E-POOL-04": refused,
  "E-POOL-08": user,
  "E-POOL-09": degraded,
  "E-POOL-10": degraded,
  "E-POOL-11": degraded,
  "E-POOL-12": user,
  "E-POOL-06": degraded,
  "E-DISK-02": { culprit: "caller", exit: 1, status: 404 },
  "E-DISK-03": refused,
  "E-DISK-04": refused,
  "E-DISK-05": refused,
  "E-DISK-06": { culprit: "disk", exit: 2, status: 409 },
  "E-DISK-07": refused,
  "E-DISK-08": refused,
  "E-DISK-09": degraded,
  "E-DISK-10": degraded,
  "E-DISK-11": { culprit: "disk", exit: 3, status: 409 },
  "E-TRUST-01": refused,
  "E-TRUST-02": refused,
  "E-TRUST-03": degraded,
  "E-TRUST-04": refused,
  "E-TRUST-05": degraded,
  "E-TRUST-06": refused,
  "E-TRUST-07": refused,
  "E-CA-01": user,
  "E-CA-02": refused,
  "E-CA-03": degraded,
  "E-CA-04": user,
  "E-CA-05": { culprit: "disk", exit: 2, status: 409 },
  "E-CA-07": refused,
  "E-SETUP-03": refused,
  "E-SETUP-07": refused,
  "E-SETUP-08": away,
  "E-SETUP-09": refused,
  "E-SETUP-10": degraded,
  "E-SETUP-11": degraded,
  "E-SETUP-12": away,
  "E-SETUP-13": user,
  "E-SETUP-14": refused,
  "E-SETUP-15": refused,
  "E-SETUP-16": refused,
  "E-SETUP-17": refused,
  "E-TOKEN-01": { culprit: "caller", exit: 1, status: 400 },
  "E-TOKEN-02": { culprit: "caller", exit: 1, status: 403 },
  "E-TOKEN-03": { culprit: "caller", exit: 1, status: 429 },
  "E-TOKEN-04": refused,
  "E-TOKEN-05": { culprit: "caller", exit: 1, status: 421 },
  "E-AUTH-03": { culprit: "caller", exit: 1, status: 429 },
  "E-LIMIT-01": { culprit: "caller", exit: 1, status: 413 },
  "E-LIMIT-02": { culprit: "caller", exit: 1, status: 431 },
  "E-NET-01": away,
  "E-NET-02": away,
  "E-NET-03": away,
  "E-NET-04": away,
  "E-NET-05": away,
  "E-NET-07": refused,
} as const satisfies Readonly<Record<string, Kind>>;

export type KnownCode = keyof typeof kinds;

/** All codes raised in TypeScript, for the test that compares them with docs/errors.md. */
export const knownCodes: readonly string[] = Object.keys(kinds);

export type WeftErrorOptions = {
  readonly code: string;
  readonly message: string;
  readonly facts?: Facts;
  readonly safe?: string | null;
  readonly do?: readonly Advice[];
  readonly cause?: unknown;
};

export class WeftError extends Error {
  readonly code: string;
  readonly facts: Facts;
  readonly safe: string | null;
  readonly do: readonly Advice[];

  constructor(options: WeftErrorOptions) {
    super(options.message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = "WeftError";
    this.code = options.code;
    this.facts = options.facts ?? {};
    this.safe = options.safe ?? null;
    this.do = options.do ?? [];
  }

  get culprit(): Culprit {
    return kindOf(this.code).culprit;
  }

  get exitCode(): ExitCode {
    return kindOf(this.code).exit;
  }

  get status(): HttpStatus {
    return kindOf(this.code).status;
  }

  /** Whether the same request can succeed later without anybody changing it. */
  get isRetryable(): boolean {
    return this.status === 503 && this.culprit !== "us";
  }

  toBody(): ErrorBody {
    return { code: this.code, message: this.message, facts: this.facts, safe: this.safe, do: this.do };
  }

  static fromBody(body: ErrorBody): WeftError {
    return new WeftError(body);
  }

  /** A refusal that the model decided. */
  static fromFinding(found: Finding): WeftError {
    return new WeftError(found);
  }
}

/** What the model decided; throws its refusal. */
export function decided<Value>(decision: Decision<Value>): Value {
  if (decision.kind === "ok") return decision.value;
  throw WeftError.fromFinding(decision.finding);
}

export function isWeftError(error: unknown, code?: KnownCode): error is WeftError {
  return error instanceof WeftError && (code === undefined || error.code === code);
}

/** The sentence of anything thrown, for a message or a log line. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const inner =
    error.cause instanceof Error && !error.message.includes(error.cause.message)
      ? `: ${error.cause.message}`
      : "";
  return `${error.message}${inner}`;
}

/** A code of the daemon is classed by its area: wrong arguments, a disk in trouble, or refused for safety. */
function kindOf(code: string): Kind {
  const known = (kinds as Readonly<Record<string, Kind>>)[code];
  if (known !== undefined) return known;
  if (code.startsWith("E-ARG-")) return kinds["E-ARG-02"];
  if (code.startsWith("E-DISK-")) return { culprit: "disk", exit: 2, status: 409 };
  if (code.startsWith("E-NET-")) return away;
  return refused;
}
