/**
 * Secrets as they might be found again: in every spelling that a program of ours could have given them.
 *
 * Must always hold: what is looked for is long enough to be met by chance never, and has no part that is public.
 */

/** What was written, said or stored somewhere, and where. */
export type Source = { readonly name: string; readonly bytes: Uint8Array };

export type Canary = { readonly name: string; readonly spellings: readonly Spelling[] };

/** `plain`: as it stands. `joined`: without white space, hyphens and escaped ends of lines. `lower`: that, lower-case. */
type View = "plain" | "joined" | "lower";
type Spelling = { readonly view: View; readonly text: Buffer };

/** Shorter ones are met by chance. */
const LENGTH_MIN = 12;

/** A secret that is a text to people, and may be folded to groups or lower case. */
export function ofText(name: string, text: string): Canary {
  const joined = text.replaceAll(/[-\s]/g, "");
  return {
    name,
    spellings: [
      spelling("plain", text),
      spelling("joined", joined),
      spelling("lower", joined.toLowerCase()),
      ...ofBytes(name, Buffer.from(text)).spellings,
    ],
  };
}

/** A secret that is bytes: a key's number, a token's random part. */
export function ofBytes(name: string, bytes: Uint8Array): Canary {
  const base64 = alignments(bytes);
  const urlSafe = base64.map((text) => text.replaceAll("+", "-").replaceAll("/", "_"));
  const numbers = Array.from(bytes, String).join(",");
  return {
    name,
    spellings: [
      { view: "plain", text: Buffer.from(bytes) },
      ...base64.flatMap((text) => [spelling("plain", text), spelling("joined", text)]),
      // The other alphabet's hyphen stands inside of the text: it must not be taken out.
      ...urlSafe.map((text) => spelling("plain", text)),
      spelling("lower", Buffer.from(bytes).toString("hex")),
      spelling("joined", numbers),
    ],
  };
}

/** Base64 of whatever has these bytes inside of it: three spellings, without the characters that depend on neighbours. */
function alignments(bytes: Uint8Array): readonly string[] {
  return [0, 1, 2].map((before) => {
    const text = Buffer.concat([Buffer.alloc(before), bytes])
      .toString("base64")
      .replaceAll("=", "");
    const first = Math.ceil((before * 8) / 6);
    const bits = (before + bytes.length) * 8;
    return text.slice(first, Math.floor(bits / 6));
  });
}

function spelling(view: View, text: string): Spelling {
  if (text.length < LENGTH_MIN) throw new Error("a canary that short says nothing");
  return { view, text: Buffer.from(text, "latin1") };
}

/** "SECRET in SOURCE", each once. */
export function hits(canaries: readonly Canary[], sources: readonly Source[]): readonly string[] {
  return sources.flatMap(({ name, bytes }) => {
    const views = viewsOf(bytes);
    return canaries
      .filter(({ spellings }) => spellings.some(({ view, text }) => views[view].includes(text)))
      .map((canary) => `${canary.name} in ${name}`);
  });
}

function viewsOf(bytes: Uint8Array): Readonly<Record<View, Buffer>> {
  const plain = withoutTail(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length));
  const joined = plain.toString("latin1").replaceAll(/[-\s]|\\[nrt]/g, "");
  return {
    plain,
    joined: Buffer.from(joined, "latin1"),
    lower: Buffer.from(joined.toLowerCase(), "latin1"),
  };
}

/** The store makes its files longer than what it writes into them. */
function withoutTail(bytes: Buffer): Buffer {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end -= 1;
  return bytes.subarray(0, end);
}
