/**
 * XML-RPC: what XAPI sends and gets, as values. npm's xmlrpc builds and writes them; what may come in is decided here.
 *
 * Must always hold:
 * - what is parsed is one whole document of XML-RPC's grammar and nothing else: no document type, no entity but XML's five, no
 *   text between elements, no member twice; anything else is an error, never a guess;
 * - size and depth are bounded before anything is built;
 * - what is written is XML whatever a name holds: characters that XML has no place for are left out.
 */
import { setImmediate } from "node:timers/promises";

import sax, { type SaxEvents } from "sax";
import CustomType from "xmlrpc/lib/customtype.js";
import Deserializer from "xmlrpc/lib/deserializer.js";
import { serializeFault, serializeMethodCall, serializeMethodResponse } from "xmlrpc/lib/serializer.js";

/** Dates and 64-bit numbers stay text: nothing here counts with them. */
export type XmlValue = null | string | boolean | number | readonly XmlValue[] | XmlStruct;
export type XmlStruct = { readonly [member: string]: XmlValue };

/** What XAPI runs has its request as one argument, and Linux ends those there. */
export const CALL_BYTES_MAX = 128 << 10;
/** All records of the VDIs of a large SR are 10 MiB. */
const RESPONSE_BYTES_MAX = 64 << 20;
/** Characters that are read in one turn: some 20 ms. */
const PIECE = 32 << 10;
const DEPTH_MAX = 48;

/** The text is no XML-RPC: what is wrong, as a sentence. */
export class XmlError extends Error {}

/** A moment, as XML-RPC writes it: `20261122T21:40:00Z`. */
export class XmlDate {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

class XmlMoment extends CustomType {
  override readonly tagName = "dateTime.iso8601";
}

class XmlText extends CustomType {
  override readonly tagName = "string";
}

/** What can be sent: a date besides what can be read. */
export type XmlOut =
  | null
  | string
  | boolean
  | XmlDate
  | readonly XmlOut[]
  | { readonly [member: string]: XmlOut };

export function parseCall(text: string): { readonly method: string; readonly params: readonly XmlValue[] } {
  refuseLonger(text, CALL_BYTES_MAX);
  const reader = new Reader("methodCall");
  reader.write(text);
  const { methodname, stack } = reader.end();
  if (methodname === null || methodname === "") throw new XmlError("the call has no method name");
  return { method: methodname, params: stack.map(valueOf) };
}

export type XmlResponse =
  | { readonly kind: "value"; readonly value: XmlValue }
  | { readonly kind: "fault"; readonly code: XmlValue; readonly text: XmlValue };

/** A piece a turn: all records of a large SR take a second, and the agent has others to answer meanwhile. */
export async function parseResponse(text: string): Promise<XmlResponse> {
  refuseLonger(text, RESPONSE_BYTES_MAX);
  const reader = new Reader("methodResponse");
  for (let at = 0; at < text.length; at += PIECE) {
    if (at > 0) await setImmediate();
    reader.write(text.slice(at, at + PIECE));
  }
  const { responseType, stack } = reader.end();
  const [first = null, ...more] = stack.map(valueOf);
  if (more.length > 0) throw new XmlError("the answer has several values");
  if (responseType !== "fault") return { kind: "value", value: first };
  return { kind: "fault", code: memberOf(first, "faultCode"), text: memberOf(first, "faultString") };
}

export function renderCall(method: string, params: readonly XmlOut[]): string {
  return serializeMethodCall(method, params.map(written));
}

export function renderAnswer(value: XmlOut): string {
  return serializeMethodResponse(written(value));
}

export function renderFault({ code, text }: { readonly code: number; readonly text: string }): string {
  return serializeFault({ faultCode: code, faultString: new XmlText(printable(text)) });
}

/** For an XML text within a string, as a probe answers. */
export function escapeXml(text: string): string {
  return printable(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A member that the struct itself has; null: none, or no struct. */
export function memberOf(value: XmlValue, name: string): XmlValue {
  if (!isStruct(value) || !Object.hasOwn(value, name)) return null;
  return value[name] ?? null;
}

export function isStruct(value: XmlValue): value is XmlStruct {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Null: no struct, or a member of it is no text. */
export function textsOf(value: XmlValue): ReadonlyMap<string, string> | null {
  if (!isStruct(value)) return null;
  const texts = new Map<string, string>();
  for (const [name, member] of Object.entries(value)) {
    if (typeof member !== "string") return null;
    texts.set(name, member);
  }
  return texts;
}

type Rule = {
  /** What stands first, second, … */
  readonly first: readonly ReadonlySet<string>[];
  /** How many of these have to be there; then their names. */
  readonly needed: readonly string[];
  /** What follows as often as it likes; null: nothing does. */
  readonly more: string | null;
};

const GRAMMAR: ReadonlyMap<string, Rule> = new Map([
  ["methodCall", rule(["methodName", "params"], ["methodName"])],
  ["methodResponse", { first: [new Set(["params", "fault"])], needed: ["params"], more: null }],
  ["params", rule([], [], "param")],
  ["param", rule(["value"])],
  ["fault", rule(["value"])],
  ["struct", rule([], [], "member")],
  ["member", rule(["name", "value"])],
  ["array", rule(["data"])],
  ["data", rule([], [], "value")],
]);

function rule(first: readonly string[], needed: readonly string[] = first, more: string | null = null): Rule {
  return { first: first.map((name) => new Set([name])), needed, more };
}

const SCALARS = "string boolean int i4 i8 double nil dateTime.iso8601 base64".split(" ");
const TYPES: ReadonlySet<string> = new Set(["struct", "array", ...SCALARS]);
/** What stays text, whatever it says that it is; and what there is much of. */
const BUILT_AS: ReadonlyMap<string, string> = new Map([
  ["dateTime.iso8601", "STRING"],
  ["base64", "STRING"],
  ...["member", "name", "value", "string", "boolean", "struct"].map(
    (name) => [name, name.toUpperCase()] as const,
  ),
]);
const LEAVES: ReadonlySet<string> = new Set(["methodName", "name", ...SCALARS]);

type Open = {
  readonly name: string;
  /** How many elements are in it so far. */
  children: number;
  text: string;
  /** Of a struct: the members that it has. */
  readonly members: Set<string> | null;
};

function refuseLonger(text: string, charactersMax: number): void {
  if (text.length > charactersMax) throw new XmlError(`it has more than ${charactersMax} characters`);
}

/** Of one document with this root. */
class Reader {
  readonly #root: string;
  readonly #into = new Deserializer();
  readonly #parser = new sax.SAXParser(true, { position: false, strictEntities: true });
  readonly #open: Open[] = [];
  #ended = false;

  constructor(root: string) {
    this.#root = root;
    // Errors of its own arrive here.
    this.#into.callback = (error) => {
      if (error instanceof Error) throw new XmlError(error.message);
    };
    const events: SaxEvents = {
      onerror: (error) => {
        throw new XmlError(error.message.replaceAll("\n", ", "));
      },
      ondoctype: () => {
        throw new XmlError("it has a document type");
      },
      onopentag: ({ name, attributes }) => this.#onOpen(name, attributes),
      ontext: (text) => this.#onText(text),
      oncdata: (text) => this.#onText(text),
      onclosetag: (name) => this.#onClose(name),
    };
    Object.assign(this.#parser, events);
  }

  write(piece: string): void {
    this.#parser.write(piece);
  }

  end(): Deserializer {
    this.#parser.close();
    if (!this.#ended) throw new XmlError("it is cut off");
    return this.#into;
  }

  #onOpen(name: string, attributes: object): void {
    if (Object.keys(attributes).length > 0) throw new XmlError(`<${name}> has attributes`);
    const parent = this.#open.at(-1);
    if (parent === undefined) {
      if (this.#ended || name !== this.#root)
        throw new XmlError(`<${name}> stands where <${this.#root}> is wanted`);
    } else {
      if (this.#open.length >= DEPTH_MAX) throw new XmlError(`it is nested more than ${DEPTH_MAX} deep`);
      refuseUnlessChild(parent, name);
      parent.children += 1;
    }
    this.#open.push({ name, children: 0, text: "", members: name === "struct" ? new Set() : null });
    this.#into.onOpentag({ name: builtAs(name) });
  }

  #onText(piece: string): void {
    const parent = this.#open.at(-1);
    if (parent !== undefined) parent.text += piece;
    else if (piece.trim() !== "") throw new XmlError("text stands outside of its root");
  }

  #onClose(name: string): void {
    const closed = this.#open.pop();
    if (closed === undefined) throw new XmlError(`</${name}> ends nothing`);
    const isLeaf = LEAVES.has(name) || (name === "value" && closed.children === 0);
    if (!isLeaf && closed.text.trim() !== "") throw new XmlError(`text stands in <${name}>`);
    refuseUnlessWhole(closed);
    if (name === "name") {
      const members = this.#open.at(-2)?.members;
      if (members?.has(closed.text) === true)
        throw new XmlError(`member "${closed.text}" stands there twice`);
      members?.add(closed.text);
    }
    if (isLeaf) this.#into.onText(closed.text);
    this.#into.onClosetag(builtAs(name));
    this.#ended = this.#open.length === 0;
  }
}

/** xmlrpc knows elements in capital letters, as a parser gives them that takes both. */
function builtAs(name: string): string {
  return BUILT_AS.get(name) ?? name.toUpperCase();
}

function refuseUnlessChild(parent: Open, name: string): void {
  const bad = (): XmlError => new XmlError(`<${name}> stands in <${parent.name}>`);
  const count = parent.children;
  if (parent.name === "value") {
    if (!TYPES.has(name) || count > 0 || parent.text.trim() !== "") throw bad();
    return;
  }
  const wanted = GRAMMAR.get(parent.name);
  if (wanted === undefined || !(wanted.first[count]?.has(name) ?? wanted.more === name)) throw bad();
}

function refuseUnlessWhole({ name, children, text }: Open): void {
  const missing = GRAMMAR.get(name)?.needed[children];
  if (missing !== undefined) throw new XmlError(`<${name}> lacks <${missing}>`);
  const isNumber = name === "int" || name === "i4" || name === "i8";
  if (isNumber && !/^\s*[+-]?\d{1,20}\s*$/.test(text))
    throw new XmlError(`"${text.slice(0, 40)}" is no integer`);
}

function valueOf(built: unknown): XmlValue {
  if (built === null || built === undefined) return null;
  if (typeof built === "string" || typeof built === "boolean" || typeof built === "number") return built;
  if (Array.isArray(built)) return built.map(valueOf);
  if (typeof built !== "object") return null;
  return Object.fromEntries(Object.entries(built).map(([name, member]) => [name, valueOf(member)]));
}

function written(value: XmlOut): unknown {
  if (value === null || typeof value === "boolean") return value;
  if (typeof value === "string") return new XmlText(printable(value));
  if (value instanceof XmlDate) return new XmlMoment(value.text);
  if (isList(value)) return value.map(written);
  return Object.fromEntries(
    Object.entries(value).map(([name, member]) => [printable(name), written(member)]),
  );
}

function isList(value: XmlOut): value is readonly XmlOut[] {
  return Array.isArray(value);
}

/** XML 1.0 has no place for most control characters, halves of pairs and two of the last, not even escaped. */
function printable(text: string): string {
  return (
    text
      .toWellFormed()
      // oxlint-disable-next-line no-control-regex
      .replaceAll(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "")
  );
}
