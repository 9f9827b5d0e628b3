/** What stands in the store may be anything: a value that only shows something must not fail whoever looks. */
import t from "tap";
import { z } from "zod";

import { readValue } from "../../../src/core/agent/store-value.ts";

await t.test("agent: a value of the store that can't be read is nothing", async (t) => {
  const schema = z.object({ copied: z.string() });
  for (const text of ["", "{", `{"id":"6c"x`, "null", "[]", "7", `{"copied":7}`]) {
    t.equal(readValue(schema, text), null, text);
  }
  t.strictSame(readValue(schema, `{"copied":"7","more":1}`), { copied: "7" });
});
