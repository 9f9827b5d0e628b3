/** The parts of npm's xmlrpc and of its sax that are used; neither has types of its own. */
declare module "xmlrpc/lib/deserializer.js" {
  /** Builds values from the events of a parser. Its own parser forgives everything, so it gets no bytes here. */
  class Deserializer {
    type: string | null;
    callback: (error: Error | null | undefined, values?: readonly unknown[]) => void;
    readonly methodname: string | null;
    readonly responseType: "params" | "fault" | null;
    readonly stack: unknown[];
    onOpentag(node: { readonly name: string }): void;
    onText(text: string): void;
    onClosetag(name: string): void;
  }
  export = Deserializer;
}

declare module "xmlrpc/lib/serializer.js" {
  export function serializeMethodCall(method: string, params: readonly unknown[]): string;
  export function serializeMethodResponse(value: unknown): string;
  export function serializeFault(fault: unknown): string;
}

declare module "xmlrpc/lib/customtype.js" {
  class CustomType {
    readonly raw: string;
    readonly tagName: string;
    constructor(raw: string);
  }
  export = CustomType;
}

declare module "sax" {
  export type SaxEvents = {
    readonly onerror: (error: Error) => void;
    readonly onopentag: (tag: { readonly name: string; readonly attributes: object }) => void;
    readonly onclosetag: (name: string) => void;
    readonly ontext: (text: string) => void;
    readonly oncdata: (text: string) => void;
    readonly ondoctype: (text: string) => void;
  };
  class SAXParser {
    constructor(strict: boolean, options: { readonly position: boolean; readonly strictEntities: boolean });
    write(text: string): this;
    close(): this;
  }
  const sax: { readonly SAXParser: typeof SAXParser };
  export default sax;
}
