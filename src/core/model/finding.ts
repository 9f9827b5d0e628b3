/**
 * A finding: why something was refused or is not as wanted, in the form in which a person reads it.
 *
 * Must always hold:
 * - `code` stands in docs/errors.md and never changes its meaning;
 * - `message` says what was wanted and what was found; `safe` says what was *not* changed, null when that is plain;
 * - `do` are commands that help, the best first.
 */

export type Remedy = {
  /** What the command is good for, as the start of a line: "Detach it there". */
  readonly why: string;
  readonly command: string;
};

export type Finding = {
  readonly code: string;
  readonly message: string;
  readonly facts: Readonly<Record<string, string | number | boolean | null>>;
  readonly safe: string | null;
  readonly do: readonly Remedy[];
};

/** A decision that can be refused. */
export type Decision<Value> =
  | { readonly kind: "ok"; readonly value: Value }
  | { readonly kind: "refused"; readonly finding: Finding };

export function ok<Value>(value: Value): Decision<Value> {
  return { kind: "ok", value };
}

export function refused(finding: Finding): { readonly kind: "refused"; readonly finding: Finding } {
  return { kind: "refused", finding };
}

/** A finding with the parts that are often empty left away. */
export function finding(
  code: string,
  message: string,
  rest: Partial<Pick<Finding, "facts" | "safe" | "do">> = {},
): Finding {
  return { code, message, facts: rest.facts ?? {}, safe: rest.safe ?? null, do: rest.do ?? [] };
}
