/**
 * Plot: volumes whose copies shall be compared, their sessions that come and go, and the turns of those that nobody
 * remembers. One that is begun twice costs a disk's time; one that never ends is never told.
 */
import * as fc from "fast-check";
import t from "tap";

import type { SessionId, VolumeId } from "../../../src/core/model/ids.ts";
import { DAY_MS } from "../../../src/core/model/limits.ts";
import {
  checkScrubDays,
  checkScrubRate,
  dueScrubs,
  scrubStep,
  type Scrubbable,
  type ScrubAsk,
} from "../../../src/core/model/scrub.ts";
import { hostId } from "./world.ts";

const [one, other] = [
  "50000000-0000-4000-b000-000000000001" as SessionId,
  "50000000-0000-4000-b000-000000000002" as SessionId,
];
const ask: ScrubAsk = { id: "a", atMs: 0, by: "root@h1", rate: 5n << 20n, session: one };
const running = { state: "running", rate: ask.rate } as const;

void t.test(
  "scrub: is begun once a session, told of when it ends, stopped when nobody wants it",
  async (t) => {
    const begin = { kind: "begin", rate: ask.rate };
    t.strictSame(scrubStep({ ...ask, session: null }, one, null), begin);
    t.strictSame(scrubStep({ ...ask, session: null }, one, running), begin, "of an earlier wish");
    t.strictSame(scrubStep({ ...ask, session: null }, one, { ...running, state: "done" }), begin);
    t.strictSame(scrubStep(ask, one, running), { kind: "none" });
    t.strictSame(scrubStep(ask, one, { ...running, rate: null }), { kind: "change-rate", rate: ask.rate });
    t.strictSame(scrubStep(ask, one, { ...running, state: "done" }), { kind: "tell" });
    t.strictSame(scrubStep(ask, one, { ...running, state: "stopped" }), { kind: "tell" });
    t.strictSame(scrubStep(ask, one, null), begin, "its daemon was restarted");
    t.strictSame(scrubStep(ask, other, running), begin, "another owner's has seen nothing");
    t.strictSame(scrubStep(null, one, running), { kind: "stop" });
    t.strictSame(scrubStep(null, one, { ...running, state: "done" }), { kind: "none" });
    t.strictSame(scrubStep(null, one, null), { kind: "none" });
  },
);

const volume = (n: number, host: number, lastMs: number, isAsked: boolean = false): Scrubbable => ({
  volume: `d0000000-0000-4000-a000-${String(n).padStart(12, "0")}` as VolumeId,
  host: hostId(host),
  isAsked,
  lastMs,
});
const settings = { everyDays: 30, rate: 1n << 20n };

void t.test("scrub: by itself one a host, the longest forgotten first, and none too early", async (t) => {
  const now = 100 * DAY_MS;
  const due = (volumes: readonly Scrubbable[], everyDays: number = 30): readonly number[] =>
    dueScrubs(volumes, { ...settings, everyDays }, now).map((id) => Number(id.slice(-12)));
  t.strictSame(
    due([volume(1, 1, 20 * DAY_MS), volume(2, 1, 10 * DAY_MS), volume(3, 2, 30 * DAY_MS)]),
    [2, 3],
  );
  t.strictSame(due([volume(1, 1, 10 * DAY_MS), volume(2, 1, 99 * DAY_MS, true)]), [], "that host is at work");
  t.strictSame(due([volume(1, 1, 70 * DAY_MS + 1)]), []);
  t.strictSame(due([volume(1, 1, 70 * DAY_MS)]), [1]);
  t.strictSame(due([volume(1, 1, 0)], 0), [], "never");
});

void t.test("scrub: everything has its turn, however many there are", async (t) => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: 1, max: 3 }), fc.nat(40)), { maxLength: 30 }), (told) => {
      const now = 100 * DAY_MS;
      let volumes = told.map(([host, days], n) => volume(n, host, days * DAY_MS));
      for (let round = 0; round < told.length; round += 1) {
        const due = dueScrubs(volumes, settings, now);
        volumes = volumes.map((one) => (due.includes(one.volume) ? { ...one, lastMs: now } : one));
      }
      return volumes.every(({ lastMs }) => lastMs === now);
    }),
  );
  t.pass("each is compared");
});

void t.test("scrub: rates and days that make no sense are refused with the range", async (t) => {
  for (const rate of [0n, -1n, 65_535n, (1n << 40n) + 1n])
    t.match(checkScrubRate(rate), { finding: { code: "E-ARG-02", message: /64 KiB to 1 TiB/ } });
  for (const rate of [65_536n, 1n << 40n]) t.equal(checkScrubRate(rate).kind, "ok");
  for (const days of [-1, 0.5, 3651, NaN, Infinity])
    t.match(checkScrubDays(days), { finding: { code: "E-ARG-02", message: /1 to 3650 are, 0 for never/ } });
  for (const days of [0, 1, 3650]) t.equal(checkScrubDays(days).kind, "ok");
});
