/** Values of storage repositories and virtual disks: those of each format, damaged ones, and what newer software adds. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { repository } from "../../../scripts/lib/repository.ts";
import { parseSr, parseVdi, renderSr, renderVdi } from "../../../src/core/wire/sr-json.ts";

const specimen = (name: string): string =>
  readFileSync(join(repository, "test/core/wire/specimens", name), "utf8");
const changed = (text: string, change: object): string =>
  JSON.stringify({ ...(JSON.parse(text) as object), ...change });

void t.test("sr-json: specimens of the first format are read, and written as they were", async (t) => {
  const [sr, vdi] = [specimen("sr-1.json"), specimen("vdi-1.json")];
  t.match(parseSr("k", sr), { label: "replicated", copies: 2 });
  t.match(parseVdi("k", vdi), { label: "Debian: root <1>", cbt: true, smConfig: { base_mirror: "x" } });
  t.same(JSON.parse(renderSr(parseSr("k", sr), null)), JSON.parse(sr));
  t.same(JSON.parse(renderVdi(parseVdi("k", vdi), null)), JSON.parse(vdi));
});

void t.test("sr-json: a disk that was composed has another volume than its UUID", async (t) => {
  const composed = specimen("vdi-composed-1.json");
  const vdi = parseVdi("k", composed);
  t.not(vdi.volume, vdi.uuid);
  t.equal(vdi.composedFrom, vdi.volume);
  t.same(JSON.parse(renderVdi(vdi, null)), JSON.parse(composed));
  const refused = { code: "E-STORE-07" };
  t.throws(() => parseVdi("k", changed(composed, { composedFrom: null })), refused);
  t.throws(
    () => parseVdi("k", changed(composed, { snapshot: "22222222-2222-4222-8222-222222222222" })),
    refused,
    "a snapshot never was",
  );
  // What is not any more is not left standing.
  const opened = renderVdi({ ...vdi, layerOpened: true }, composed);
  t.match(JSON.parse(opened), { layerOpened: true });
  t.same(JSON.parse(renderVdi(vdi, opened)), JSON.parse(composed));
});

void t.test("sr-json: what newer software added survives, and what it asks for is heard", async (t) => {
  const vdi = changed(specimen("vdi-1.json"), { colour: "green" });
  const next = { ...parseVdi("k", vdi), label: "new" };
  t.match(JSON.parse(renderVdi(next, vdi)), { colour: "green", label: "new", format: 1 });
  t.throws(() => parseVdi("k", changed(vdi, { min_reader: 2 })), { code: "E-STORE-13" });
});

void t.test("sr-json: a damaged value names its key and place", async (t) => {
  const [sr, vdi] = [specimen("sr-1.json"), specimen("vdi-1.json")];
  const refused = { code: "E-STORE-07" };
  t.throws(() => parseSr("/k", changed(sr, { copies: 9 })), { ...refused, message: /\/k.*"copies"/ });
  t.throws(() => parseVdi("/k", changed(vdi, { uuid: "6c1f0a52-3b1d-4e0b-9d52-6f3a0c9e1b78" })), refused);
  for (const change of [{ snapshot: "x" }, { smConfig: [] }, { settled: null }, { label: "x".repeat(2000) }])
    t.throws(() => parseVdi("/k", changed(vdi, change)), refused, JSON.stringify(change));
  t.throws(() => parseVdi("/k", "{"), refused);
});
