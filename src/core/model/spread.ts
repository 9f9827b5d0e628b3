/**
 * What copies of a volume must not share: a host, a rack, a site. Racks and sites are labels that an operator gives hosts.
 *
 * Must always hold:
 * - whatever the rule, no two copies rest on one host;
 * - a host without the label that the rule asks for is no place: where it stands is not known;
 * - two racks are one when they have one name, in whatever sites: names of racks are the cluster's.
 */
import type { Host } from "./cluster.ts";
import type { Decision } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import { parseName } from "./name.ts";

export const spreads = ["host", "rack", "site"] as const;
export type Spread = (typeof spreads)[number];

export const labelNames = ["rack", "site"] as const;
export type LabelName = (typeof labelNames)[number];

/** Null: not said. */
export type Labels = Readonly<Record<LabelName, string | null>>;
export const NO_LABELS: Labels = { rack: null, site: null };

/** What no other copy of the volume may have besides; null: the host has no such label. */
export function spreadKey(host: Host, spread: Spread): string | null {
  return spread === "host" ? host.id : host.labels[spread];
}

/** What is not named stays, and null takes one off. */
export type LabelChange = { readonly [Name in LabelName]?: string | null | undefined };

export function withLabels(before: Labels, { rack = before.rack, site = before.site }: LabelChange): Labels {
  return { rack, site };
}

/** `rack=a site=x`, as `weft host label` takes it; `rack=` takes the label off. */
export function parseLabels(texts: readonly string[]): Decision<LabelChange> {
  const labels: { -readonly [Name in LabelName]?: string | null } = {};
  for (const text of texts) {
    const at = text.indexOf("=");
    const name = labelNames.find((known) => known === text.slice(0, Math.max(0, at)));
    if (name === undefined || name in labels) {
      return refused(
        finding("E-ARG-02", `"${text}" is no label: each of ${labelNames.join(" and ")} may be given once.`, {
          facts: { label: text },
          safe: "Nothing was changed.",
          do: [{ why: "For example", command: "weft host label HOST rack=a site=x" }],
        }),
      );
    }
    const value = text.slice(at + 1);
    if (value !== "") {
      const parsed = parseName("label", value);
      if (parsed.kind === "refused") return parsed;
    }
    labels[name] = value === "" ? null : value;
  }
  return ok(labels);
}

/** `rack a, site x`; `—` without any. */
export function labelsText(labels: Labels): string {
  const said = labelNames.flatMap((name) => (labels[name] === null ? [] : [`${name} ${labels[name]}`]));
  return said.length === 0 ? "—" : said.join(", ");
}
