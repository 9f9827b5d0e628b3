/** Plot: volumes that are open, deleted or half made are asked for. A wrong yes fences a guest; a wrong no strands one. */
import t from "tap";

import { ATTACHED_PER_HOST_MAX } from "../../../src/core/model/limits.ts";
import { checkAttach, checkDelete, checkDetach } from "../../../src/core/model/volume-check.ts";
import type { AttachInput } from "../../../src/core/model/volume-check.ts";
import { cluster, hostId, member, owner, place, record, want } from "./world.ts";

const closed: AttachInput = {
  want: want([place(0, 1)]),
  record: record([member(0, 1)]),
  cluster: cluster([1, 2], [2]),
  ownerIsCaretaker: false,
  here: hostId(1),
  attachedHere: 0,
  steal: false,
};
const openThere = { ...closed, record: record([member(0, 1)], { owner: owner(2) }) };

void t.test(
  "attach: an open volume is refused with where it is open, though that host seems dead",
  async (t) => {
    t.equal(checkAttach(closed).kind, "ok");
    t.match(checkAttach(openThere), {
      finding: {
        code: "E-VOL-12",
        message: '"db" is open on h2. Not attached.',
        do: [{ command: "weft detach db" }, { command: "weft steal db" }],
      },
    });
    t.equal(checkAttach({ ...openThere, steal: true }).kind, "ok");
    t.equal(checkAttach({ ...openThere, ownerIsCaretaker: true }).kind, "ok", "a caretaker makes way");
    t.equal(
      checkAttach({ ...openThere, here: hostId(2) }).kind,
      "ok",
      "again on the same host: the same session",
    );
  },
);

void t.test("attach: the 501st volume, a deleted one and one without a record are refused", async (t) => {
  t.match(checkAttach({ ...closed, attachedHere: ATTACHED_PER_HOST_MAX }), { finding: { code: "E-VOL-04" } });
  t.match(checkAttach({ ...closed, want: { ...closed.want, deletedAtMs: 1 } }), {
    finding: { code: "E-VOL-11" },
  });
  t.match(checkAttach({ ...closed, record: null }), { finding: { code: "E-VOL-14" } });
});

void t.test("delete: an open volume is refused, one that is still being made can be given up", async (t) => {
  t.match(checkDelete(openThere), {
    finding: { code: "E-VOL-12", message: '"db" is open on h2. Not deleted.' },
  });
  t.equal(checkDelete({ ...openThere, ownerIsCaretaker: true }).kind, "ok");
  t.equal(checkDelete({ ...closed, record: null }).kind, "ok");
  t.match(checkDelete({ ...closed, want: { ...closed.want, deletedAtMs: 1 } }), {
    finding: { code: "E-VOL-11" },
  });
});

void t.test("detach: only where it is open", async (t) => {
  t.equal(checkDetach({ ...openThere, here: hostId(2) }).kind, "ok");
  t.match(checkDetach(openThere), {
    finding: { code: "E-VOL-13", message: '"db" is not attached on h1. It is open on h2.' },
  });
  t.match(checkDetach(closed), {
    finding: { message: '"db" is not attached on h1. It is not open anywhere.' },
  });
});
