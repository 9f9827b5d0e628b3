/** Plot: rights of principals, against a table written out by hand and by properties. */
import * as fc from "fast-check";
import t from "tap";

import type { HostId, VolumeId } from "../../../src/core/model/ids.ts";
import { mayDo, maySee, principalKey, roles, shownPrincipal } from "../../../src/core/model/roles.ts";
import type { Principal, Right, Subject } from "../../../src/core/model/roles.ts";

const host = "00000000-0000-4000-8000-000000000001" as HostId;
const volume = (n: number): VolumeId => `00000000-0000-4000-8000-0000000000${n + 10}` as VolumeId;
const token = (role: (typeof roles)[number], volumes: readonly string[] | null = null): Principal => ({
  kind: "token",
  id: "a81c04fe",
  name: "ci",
  role,
  volumes,
});

const principals = {
  root: { kind: "root", uid: 0, pid: 1 },
  group: { kind: "group", uid: 1000, pid: 1 },
  host: { kind: "host", host, name: "h2" },
  viewer: token("viewer"),
  operator: token("operator"),
  admin: token("admin"),
  nobody: { kind: "nobody", address: "10.0.0.9" },
} as const satisfies Record<string, Principal>;

const rights = ["open", "host", "viewer", "operator", "admin", "local-root"] as const satisfies Right[];
const may: Readonly<Record<keyof typeof principals, readonly Right[]>> = {
  root: ["open", "viewer", "operator", "admin", "local-root"],
  group: ["open", "viewer"],
  host: ["open", "host"],
  viewer: ["open", "viewer"],
  operator: ["open", "viewer", "operator"],
  admin: ["open", "viewer", "operator", "admin"],
  nobody: ["open"],
};

void t.test("roles: each principal has its rights and no others", async (t) => {
  for (const [name, principal] of Object.entries(principals)) {
    const has = rights.filter((right) => mayDo(principal, right, { kind: "cluster" }));
    t.strictSame(has, may[name as keyof typeof may], name);
  }
});

const subject: fc.Arbitrary<Subject> = fc.oneof(
  fc.constantFrom<Subject>({ kind: "cluster" }, { kind: "volumes" }),
  fc.option(fc.nat(3)).map((n): Subject => ({ kind: "volume", volume: n === null ? null : volume(n) })),
);
const bound = fc.record({
  role: fc.constantFrom(...roles),
  volumes: fc.uniqueArray(fc.nat(3).map(volume)),
});

void t.test("roles: binding a token to volumes takes rights away and gives none", async (t) => {
  fc.assert(
    fc.property(bound, fc.constantFrom(...rights), subject, ({ role, volumes }, right, subject) => {
      const [free, narrow] = [token(role), token(role, volumes)];
      if (mayDo(narrow, right, subject)) t.ok(mayDo(free, right, subject));
      if (right === "open" || !mayDo(free, right, subject)) return;
      const own = subject.kind === "volume" && subject.volume !== null && volumes.includes(subject.volume);
      t.equal(mayDo(narrow, right, subject), own || subject.kind === "volumes");
    }),
  );
});

void t.test("roles: a list shows a bound token its volumes alone", async (t) => {
  t.ok(maySee(token("viewer", [volume(1)]), volume(1)));
  t.notOk(maySee(token("viewer", [volume(1)]), volume(2)));
  t.ok(maySee(token("viewer"), volume(2)));
  t.ok(maySee(principals.group, volume(2)));
});

void t.test("roles: principals have a name for people and a key that tells them apart", async (t) => {
  t.strictSame(Object.values(principals).map(shownPrincipal), [
    "root",
    "uid 1000 (viewer)",
    "host h2",
    "ci (viewer)",
    "ci (operator)",
    "ci (admin)",
    "nobody",
  ]);
  t.equal(shownPrincipal({ kind: "root", uid: 1000, pid: 1 }), "uid 1000 (admin)");
  const keys = [principals.root, principals.group, principals.host, principals.viewer, principals.nobody];
  t.equal(new Set(keys.map(principalKey)).size, keys.length);
});
