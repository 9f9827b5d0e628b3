/**
 * XML-RPC as XAPI reads and writes it, for tests: a reader of its own, so that the driver's is not judged by itself.
 *
 * Must always hold: what XAPI would refuse throws. That is anything before the root but a declaration and white space, anything
 * after it, attributes, an element or a type that XML-RPC has not, and an empty place where a value has to be.
 */
export type StrictValue = null | string | boolean | bigint | readonly StrictValue[] | StrictStruct;
export type StrictStruct = { readonly [member: string]: StrictValue };

export type StrictReply =
  | { readonly kind: "value"; readonly value: StrictValue }
  | { readonly kind: "fault"; readonly code: number; readonly text: string };

export function readReply(text: string): StrictReply {
  const reader = new Reader(text);
  const reply = reader.element("methodResponse", () => {
    if (reader.isAt("<fault>")) {
      const fault = reader.element("fault", () => reader.value());
      const { faultCode, faultString, ...more } = structOf(fault);
      if (typeof faultCode !== "bigint" || typeof faultString !== "string" || Object.keys(more).length > 0)
        throw new Error(`a fault has an int faultCode and a string faultString: ${text}`);
      return { kind: "fault", code: Number(faultCode), text: faultString } as const;
    }
    return { kind: "value", value: reader.element("params", () => reader.param()) } as const;
  });
  reader.end();
  return reply;
}

export function readCall(text: string): { readonly method: string; readonly params: readonly StrictValue[] } {
  const reader = new Reader(text);
  const call = reader.element("methodCall", () => {
    const method = reader.element("methodName", () => reader.text());
    const params = reader.element("params", () => {
      const all: StrictValue[] = [];
      while (reader.isAt("<param>")) all.push(reader.param());
      return all;
    });
    return { method, params };
  });
  reader.end();
  return call;
}

export function structOf(value: StrictValue): StrictStruct {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as StrictStruct;
  throw new Error(`a struct is wanted, not ${JSON.stringify(value)}`);
}

/** Untyped texts, as XAPI writes them; an empty one is an empty element. */
export function writeText(text: string): string {
  return text === "" ? "<value/>" : `<value>${escaped(text)}</value>`;
}

export function writeStruct(members: readonly (readonly [name: string, xml: string])[]): string {
  const all = members.map(([name, xml]) => `<member><name>${escaped(name)}</name>${xml}</member>`);
  return `<value><struct>${all.join("")}</struct></value>`;
}

export function writeList(items: readonly string[]): string {
  return `<value><array><data>${items.join("")}</data></array></value>`;
}

/** What XAPI's own server answers with: texts, booleans and structs of them. */
export function writeValue(value: unknown): string {
  if (typeof value === "string") return writeText(value);
  if (typeof value === "boolean") return `<value><boolean>${value ? 1 : 0}</boolean></value>`;
  if (value instanceof Date) {
    const text = `${value.toISOString().slice(0, 19).replaceAll("-", "")}Z`;
    return `<value><dateTime.iso8601>${text}</dateTime.iso8601></value>`;
  }
  if (Array.isArray(value)) return writeList(value.map(writeValue));
  if (value instanceof Map) return writeStruct(Array.from(value, ([k, v]) => [String(k), writeValue(v)]));
  return writeStruct(Object.entries(value as object).map(([k, v]) => [k, writeValue(v)]));
}

export function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
    this.#at =
      /^\s*(?:<\?xml version="1\.0"(?: encoding="(?:UTF-8|utf-8)")?\?>)?\s*/.exec(text)?.[0].length ?? 0;
  }

  isAt(tag: string): boolean {
    return this.#text.startsWith(tag, this.#at);
  }

  end(): void {
    if (this.#text.slice(this.#at).trim() !== "") throw this.#error("nothing");
  }

  element<T>(name: string, inside: () => T): T {
    this.#take(`<${name}>`);
    if (name !== "methodName" && name !== "name") this.#blank();
    const value = inside();
    this.#take(`</${name}>`);
    this.#blank();
    return value;
  }

  param(): StrictValue {
    return this.element("param", () => this.value());
  }

  value(): StrictValue {
    if (this.isAt("<value/>")) {
      this.#take("<value/>");
      this.#blank();
      return "";
    }
    this.#take("<value>");
    const typed = /^\s*<(?!!\[CDATA\[|\/value>)/.test(this.#text.slice(this.#at, this.#at + 200));
    const value = typed ? this.#typed() : this.text();
    this.#take("</value>");
    this.#blank();
    return value;
  }

  text(): string {
    let all = "";
    for (;;) {
      if (this.isAt("<![CDATA[")) {
        const end = this.#text.indexOf("]]>", this.#at);
        if (end < 0) throw this.#error("]]>");
        all += this.#text.slice(this.#at + 9, end);
        this.#at = end + 3;
      } else if (this.isAt("<") || this.#at >= this.#text.length) {
        return all;
      } else {
        const end = this.#text.indexOf("<", this.#at);
        all += plain(this.#text.slice(this.#at, end < 0 ? undefined : end));
        this.#at = end < 0 ? this.#text.length : end;
      }
    }
  }

  #typed(): StrictValue {
    this.#blank();
    for (const name of ["string", "boolean", "int", "i4", "dateTime.iso8601", "base64"]) {
      if (this.isAt(`<${name}/>`) && name === "string") {
        this.#take("<string/>");
        this.#blank();
        return "";
      }
      if (!this.isAt(`<${name}>`)) continue;
      this.#take(`<${name}>`);
      const text = this.text();
      this.#take(`</${name}>`);
      this.#blank();
      if (name === "boolean") {
        if (text !== "0" && text !== "1") throw new Error(`a boolean is 0 or 1, not "${text}"`);
        return text === "1";
      }
      return name === "int" || name === "i4" ? BigInt(text) : text;
    }
    if (this.isAt("<nil/>")) {
      this.#take("<nil/>");
      this.#blank();
      return null;
    }
    if (this.isAt("<struct/>")) {
      this.#take("<struct/>");
      this.#blank();
      return {};
    }
    if (this.isAt("<struct>")) return this.element("struct", () => this.#members());
    return this.element("array", () => {
      if (this.isAt("<data/>")) {
        this.#take("<data/>");
        this.#blank();
        return [];
      }
      return this.element("data", () => {
        const all: StrictValue[] = [];
        while (this.isAt("<value")) all.push(this.value());
        return all;
      });
    });
  }

  #members(): StrictStruct {
    const members: [string, StrictValue][] = [];
    while (this.isAt("<member>")) {
      this.element("member", () => {
        const name = this.element("name", () => this.text());
        if (members.some(([known]) => known === name)) throw new Error(`member ${name} stands there twice`);
        members.push([name, this.value()]);
      });
    }
    return Object.fromEntries(members);
  }

  #take(tag: string): void {
    if (!this.isAt(tag)) throw this.#error(tag);
    this.#at += tag.length;
  }

  #blank(): void {
    while (/^\s$/.test(this.#text[this.#at] ?? "")) this.#at++;
  }

  #error(wanted: string): Error {
    return new Error(`${wanted} is wanted at ${this.#at}: ${this.#text.slice(this.#at, this.#at + 120)}`);
  }
}

/** Text between elements: its characters are XML's, and it has no entity but XML's own. */
function plain(text: string): string {
  // oxlint-disable-next-line no-control-regex
  if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/.test(text) || !text.isWellFormed())
    throw new Error(`a character that XML has no place for: ${JSON.stringify(text)}`);
  return text.replaceAll(/&(#x[0-9a-fA-F]+|#[0-9]+|[a-z]*);?/g, (whole, name: string) => {
    const known: Record<string, string> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };
    if (name.startsWith("#x")) return String.fromCodePoint(Number.parseInt(name.slice(2), 16));
    if (name.startsWith("#")) return String.fromCodePoint(Number(name.slice(1)));
    const char = whole.endsWith(";") ? known[name] : undefined;
    if (char === undefined) throw new Error(`an entity that XML has not: ${whole}`);
    return char;
  });
}
