/**
 * One door for some seconds: `node test/fuzz/main.ts rest 30 [SEED]`; `npm run fuzz` starts it. The last line is the
 * report as JSON.
 *
 * Must always hold: a promise that nobody waited for and an exception that nobody caught are findings too.
 */
import { randomInt } from "node:crypto";

import { search } from "./door.ts";
import { doors } from "./doors.ts";

const [name = "--list", seconds = "30", seed = String(randomInt(2 ** 31))] = process.argv.slice(2);
const open = doors.get(name);
if (open === undefined) {
  console.log([...doors.keys()].join("\n"));
} else {
  const door = await open();
  const stray: unknown[] = [];
  process.on("uncaughtException", (error) => void stray.push(error));
  process.on("unhandledRejection", (error) => void stray.push(error));
  const report = await search(door, Number(seconds) * 1000, Number(seed));
  await door.close();
  const [error] = stray;
  const finding =
    report.finding ??
    (error === undefined
      ? null
      : {
          seed: Number(seed),
          text: `nobody caught ${error instanceof Error ? error.stack : JSON.stringify(error)}`,
        });
  console.log(JSON.stringify({ ...report, finding }));
  process.exit(finding === null ? 0 : 1);
}
