/** Whose weftd takes snapshots of several volumes: where their guests are. */
import t from "tap";

import { groupHost, type GroupMember } from "../../../src/core/model/snapshot-group.ts";
import type { VolumeId } from "../../../src/core/model/ids.ts";
import { cluster, hostId, member, owner, record, want } from "./world.ts";

const world = cluster([1, 2, 3]);
const self = hostId(3);

/** The volume `name`, which is open on that host; null: nowhere. */
function one(name: string, onHost: number | null, ownerIsCaretaker: boolean = false): GroupMember {
  const volume = `d0000000-0000-4000-8000-00000000000${name.length}` as VolumeId;
  const fact = record([member(0, 1)], { owner: onHost === null ? null : owner(onHost) });
  return { want: { ...want([]), name, volume }, record: fact, ownerIsCaretaker };
}

void t.test("group: the host of the guests does it, and who was asked where there are none", async (t) => {
  const chosen = (...members: readonly GroupMember[]): unknown => groupHost(members, world, self);
  t.strictSame(chosen(one("db", null), one("log", null)), { kind: "ok", value: self });
  t.strictSame(chosen(one("db", 1), one("log", null), one("page", 1)), { kind: "ok", value: hostId(1) });
  t.strictSame(chosen(one("db", 1, true), one("log", 2, true)), { kind: "ok", value: self });
  t.strictSame(chosen(one("db", 1, true), one("log", 2)), { kind: "ok", value: hostId(2) });
});

void t.test("group: guests of several hosts, and a volume that is named twice, are refused", async (t) => {
  t.match(groupHost([one("db", 1), one("log", 2), one("page", 1), one("other", null)], world, self), {
    finding: {
      code: "E-SNAP-14",
      message: `Guests of several hosts can't be held at one moment: "db", "page" on h1; "log" on h2. No snapshot was taken.`,
      facts: { hosts: "h1 h2" },
    },
  });
  t.match(groupHost([one("db", 1), one("log", null), one("db", 1)], world, self), {
    finding: { code: "E-ARG-02", message: '"db" is named twice.' },
  });
});
