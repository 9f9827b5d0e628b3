/** XML-RPC in both directions, compared with a reader and a writer that are not the driver's. */
import * as fc from "fast-check";
import t from "tap";

import { SmFault } from "../../src/sm-driver/faults.ts";
import * as xml from "../../src/sm-driver/xml.ts";
import { readCall, readReply, writeStruct, writeText, writeValue } from "./lib/strict-xml.ts";

const call = (param: string, method = "sr_scan"): string =>
  `<methodCall><methodName>${method}</methodName><params><param>${param}</param></params></methodCall>`;

await t.test("xml: any texts that XML can hold arrive as they were sent, in both directions", async (t) => {
  const text = fc.string({ unit: "binary" }).map((any) =>
    // oxlint-disable-next-line no-control-regex
    any.replaceAll(/[\u0000-\u0008\u000b-\u001f\ufffe\uffff]/g, "").replaceAll("\r", ""),
  );
  fc.assert(
    fc.property(fc.dictionary(text, text, { noNullPrototype: true }), text, (members, single) => {
      const sent = Object.fromEntries(
        Object.entries(members).filter(([name]) => !["__proto__", ""].includes(name)),
      );
      t.strictSame(readReply(xml.renderAnswer({ all: sent, list: [single] })), {
        kind: "value",
        value: { all: sent, list: [single] },
      });
      const struct = writeStruct(Object.entries(sent).map(([name, value]) => [name, writeText(value)]));
      t.strictSame(xml.parseCall(call(struct)), { method: "sr_scan", params: [sent] });
      t.strictSame(readCall(xml.renderCall("VDI.get_by_uuid", [single, sent])).params, [single, sent]);
    }),
    { numRuns: 40 },
  );
});

await t.test("xml: what XML has no place for is left out, and the rest arrives", async (t) => {
  for (const odd of ["a\u0000b", "a\u001bb", "a\ud800b", "a\uffffb"]) {
    const reply = readReply(xml.renderFault({ code: 46, text: odd }));
    t.match(reply, { kind: "fault", code: 46, text: /^a.?b$/u });
  }
  t.strictSame(readReply(xml.renderAnswer("]]>&<")), { kind: "value", value: "]]>&<" });
});

await t.test("xml: unit is nil, flags are 0 and 1, a moment is XAPI's", async (t) => {
  t.match(xml.renderAnswer(null), "<value><nil/></value>");
  t.match(xml.renderAnswer(true), "<value><boolean>1</boolean></value>");
  t.match(
    xml.renderCall("x", [new xml.XmlDate("20261122T21:40:00Z")]),
    "<value><dateTime.iso8601>20261122T21:40:00Z</dateTime.iso8601></value>",
  );
});

const hostile: readonly (readonly [title: string, text: string, error: RegExp])[] = [
  ["nothing", "", /cut off/],
  ["no XML", "hello", /text|Non-whitespace/],
  ["cut off within", call("<value>a</value>").slice(0, -20), /Unclosed|cut off|end/],
  ["cut off in a tag", call("<value>a</value>").slice(0, 40), /Unclosed|cut off|end/],
  [
    "a document type with entities",
    `<!DOCTYPE a [<!ENTITY b "c">]>${call("<value>&b;</value>")}`,
    /document type/,
  ],
  ["an entity that is not XML's", call("<value>&nbsp;</value>"), /entity/i],
  ["attributes", call('<value a="b">c</value>'), /attributes/],
  ["another root", "<methodResponse></methodResponse>", /<methodResponse> stands where <methodCall>/],
  ["two roots", `${call("<value>a</value>")}<methodCall/>`, /stands where|outside|root/],
  ["text between elements", call("text<value>a</value>"), /text stands in <param>/],
  [
    "a member twice",
    call(
      writeStruct([
        ["a", "<value/>"],
        ["a", "<value/>"],
      ]),
    ),
    /twice/,
  ],
  [
    "a value before its name",
    call("<value><struct><member><value/><name>a</name></member></struct></value>"),
    /stands in <member>/,
  ],
  [
    "a member without a value",
    call("<value><struct><member><name>a</name></member></struct></value>"),
    /lacks <value>/,
  ],
  ["an element of nobody", call("<value><script>a</script></value>"), /<script> stands in <value>/],
  ["two types in a value", call("<value><int>1</int><int>2</int></value>"), /<int> stands in <value>/],
  ["a number that is none", call("<value><int>1e9</int></value>"), /no integer/],
  ["a boolean that is none", call("<value><boolean>true</boolean></value>"), /boolean/i],
  [
    "nested without end",
    call(`${"<value><array><data>".repeat(40)}<value/>${"</data></array></value>".repeat(40)}`),
    /deep/,
  ],
  ["too large", call(`<value>${"a".repeat(xml.CALL_BYTES_MAX)}</value>`), /more than 131072/],
];

for (const [title, text, error] of hostile) {
  await t.test(`xml: refuses ${title}`, async (t) => {
    t.throws(() => xml.parseCall(text), { constructor: xml.XmlError, message: error });
  });
}

await t.test("xml: hostile member names reach nothing of ours", async (t) => {
  const struct = writeStruct([["__proto__", writeStruct([["command", "<value>x</value>"]])]]);
  const { params } = xml.parseCall(call(struct));
  t.equal(xml.memberOf(params[0] ?? null, "command"), null);
  t.equal(xml.memberOf(params[0] ?? null, "toString"), null);
  t.equal(({} as { command?: string }).command, undefined);
});

await t.test("xml: cut anywhere, changed anywhere, it is a value or an XmlError", async () => {
  const good = call(
    writeStruct([
      ["command", "<value>sr_scan</value>"],
      ["args", writeValue(["a", "b"])],
    ]),
  );
  fc.assert(
    fc.property(fc.nat(good.length), fc.nat(good.length), fc.string(), (from, to, insert) => {
      const text = good.slice(0, from) + insert + good.slice(to);
      try {
        xml.parseCall(text);
      } catch (error) {
        if (!(error instanceof xml.XmlError)) throw error;
      }
    }),
    { numRuns: 1000 },
  );
});

await t.test("xml: answers of XAPI: a value, and a fault", async (t) => {
  const answer = `<?xml version="1.0"?><methodResponse><params><param>${writeValue({ Status: "Success", Value: true })}</param></params></methodResponse>`;
  t.strictSame(await xml.parseResponse(answer), { kind: "value", value: { Status: "Success", Value: true } });
  t.strictSame(await xml.parseResponse(xml.renderFault({ code: 7, text: "no" })), {
    kind: "fault",
    code: 7,
    text: "no",
  });
});

await t.test("xml: a large answer is read a piece a turn, and is whole", async (t) => {
  const records = Object.fromEntries(
    Array.from({ length: 1000 }, (_, i) => [`OpaqueRef:${i}`, { uuid: `${i}`, label: "x".repeat(50) }]),
  );
  const answer = `<methodResponse><params><param>${writeValue({ Status: "Success", Value: records })}</param></params></methodResponse>`;
  let turns = 0;
  const counting = setInterval(() => (turns += 1), 1);
  const parsed = await xml.parseResponse(answer);
  clearInterval(counting);
  t.strictSame(parsed, { kind: "value", value: { Status: "Success", Value: records } });
  t.ok(turns > 0, `others had ${turns} turns meanwhile`);
});

await t.test("faults: the text says cause and remedy in one line", async (t) => {
  t.equal(new SmFault(46, "Cause.\nMore.", "do this").text, "Cause. More. [opterr=do this]");
  t.equal(new SmFault(46, "Cause.").text, "Cause.");
});
