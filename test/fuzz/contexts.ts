/**
 * A user's file of contexts, damaged or written by somebody else.
 *
 * Must always hold: it is used as a whole, and written again as the same, or not at all; no address in it leads elsewhere
 * than to a host's door.
 */
import * as fc from "fast-check";

import { chosenContext, parseContexts, remoteOf, renderContexts } from "../../src/cli/context-file.ts";
import { isWeftError } from "../../src/core/wire/errors.ts";
import type { OpenDoor } from "./door.ts";
import { anyJson, nearly, textOf } from "./values.ts";

const lab = {
  url: "https://10.0.9.11:7400",
  fingerprint: "3f9c".repeat(16),
  token: `wft1.a81c04fe.${"x".repeat(43)}`,
};
const good = { current: "lab", contexts: { lab, "far.away": { ...lab, url: "https://[fd00::11]:7400" } } };
const url = fc
  .tuple(fc.string({ maxLength: 20 }), fc.constantFrom("https://h1", "http://h1:7400", "h1:99999", "//h1@h2"))
  .map(([more, start]) => ({ ...good, contexts: { lab: { ...lab, url: start + more } } }));

export async function openContexts(): Promise<OpenDoor> {
  return {
    arbitrary: fc.oneof(
      { weight: 4, arbitrary: textOf(nearly(good)) },
      { weight: 2, arbitrary: textOf(url) },
      { weight: 1, arbitrary: textOf(anyJson) },
      { weight: 1, arbitrary: fc.string({ unit: "binary", maxLength: 300 }) },
    ),
    judge: (text: string) => {
      const contexts = parseContexts(text);
      if (contexts === null) return;
      const again = renderContexts(contexts);
      const read = parseContexts(again);
      if (read === null || renderContexts(read) !== again) throw new Error(`written as ${again}`);
      for (const context of contexts.all) {
        const { address, port } = remoteOf(context);
        if (!/^[a-z0-9.:-]+$/i.test(address) || port < 1 || port > 65_535)
          throw new Error(`it leads to ${address} port ${port}`);
      }
      try {
        chosenContext(contexts, null);
        chosenContext(contexts, "lab");
      } catch (error) {
        if (!isWeftError(error, "E-CTX-01")) throw error;
      }
    },
    kept: [JSON.stringify(good)],
    shrinks: true,
    close: async () => undefined,
  };
}
