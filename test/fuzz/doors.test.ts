/** Plot: a short search at every door, from a fixed place, so that the same inputs are tried every time. `npm run fuzz` goes on. */
import t from "tap";

import { search } from "./door.ts";
import { doors } from "./doors.ts";

/** Inputs that were found before are tried first, whatever the time. */
const MILLISECONDS = 4000;
const SEED = 42;

for (const [name, open] of doors) {
  await t.test(`fuzz: ${name}: hostile input is refused with a code (a few seconds)`, async (t) => {
    const door = await open();
    t.teardown(() => door.close());
    const { executions, finding } = await search(door, MILLISECONDS, SEED);
    t.equal(finding?.text, undefined);
    t.ok(executions > 3, `${executions} inputs were tried`);
  });
}
