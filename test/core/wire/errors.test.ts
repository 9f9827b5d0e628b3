/** Codes are a promise: each one that control raises is documented, and classed for exit codes and HTTP. */
import { readFileSync } from "node:fs";
import t from "tap";

import { finding } from "../../../src/core/model/finding.ts";
import { isWeftError, knownCodes, reasonOf, WeftError } from "../../../src/core/wire/errors.ts";

void t.test("errors: every code stands in docs/errors.md, once", async (t) => {
  const text = readFileSync(new URL("../../../docs/errors.md", import.meta.url), "utf8");
  const rows = [...text.matchAll(/^\| (E-[A-Z]+-\d\d) \|/gm)].map(([, code]) => code ?? "");
  t.same(
    rows.filter((code, i) => rows.indexOf(code) !== i),
    [],
    "no code twice",
  );
  t.same(
    knownCodes.filter((code) => !rows.includes(code)),
    [],
  );
});

void t.test("errors: a code tells the exit code and the status, also one of the daemon", async (t) => {
  const of = (code: string): readonly [number, number, string] => {
    const error = new WeftError({ code, message: "m" });
    return [error.exitCode, error.status, error.culprit];
  };
  t.same(of("E-ARG-01"), [1, 404, "caller"]);
  t.same(of("E-VOL-12"), [2, 409, "caller"]);
  t.same(of("E-STORE-01"), [4, 503, "peer"]);
  t.same(of("E-DISK-01"), [2, 409, "disk"]);
  t.same(of("E-SESS-01"), [2, 409, "caller"]);
  t.ok(new WeftError({ code: "E-STORE-01", message: "m" }).isRetryable);
  t.notOk(new WeftError({ code: "E-AGENT-06", message: "m" }).isRetryable);
});

void t.test("errors: what the model refused and what crossed the socket is the same error", async (t) => {
  const found = finding("E-VOL-01", "taken", {
    facts: { name: "db" },
    do: [{ why: "look", command: "weft" }],
  });
  const error = WeftError.fromBody(WeftError.fromFinding(found).toBody());
  t.same(error.toBody(), { ...found });
  t.ok(isWeftError(error, "E-VOL-01"));
  t.equal(reasonOf(new Error("outer", { cause: new Error("inner") })), "outer: inner");
});
