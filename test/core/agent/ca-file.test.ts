/** No member of the store has the authority's keys any more: a backup brings the cluster back, an old one does not. */
import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { eventually, startCluster } from "./test-host.ts";

void t.test("ca backup: the keys are lost with the disk that they were on, and restored", async (t) => {
  const [h1] = await startCluster(t, 1, 1);
  if (h1 === undefined) throw new Error("a host");
  const file = { path: join(h1.directory, "ca.backup"), passphrase: "not a word in any book" };
  const backup = await h1.client.backupAuthority(file);
  t.equal((await stat(file.path)).mode & 0o777, 0o600);
  await t.rejects(h1.client.backupAuthority(file), { code: "E-CA-04" }, "no file is replaced");
  const { authorities } = await h1.client.authorities();
  t.same(
    backup.kids,
    authorities.map(({ kid }) => kid),
  );

  await h1.stopAgent();
  await h1.etcd.stop();
  await rm(join(h1.stateDir, "authority"), { recursive: true });
  await h1.startAgent();
  t.match(
    await h1.client.status(),
    { kind: "cluster", store: { writable: false } },
    "it serves, and says so",
  );
  await t.rejects(h1.client.restoreAuthority({ ...file, passphrase: "another word, as it seems" }), {
    code: "E-CA-04",
  });
  t.same((await h1.client.restoreAuthority(file)).kids, backup.kids);
  await eventually(
    "the store",
    () => h1.client.status(),
    (status) => status.kind === "cluster" && status.store.writable,
  );

  // After a change of the authority the backup holds keys that nobody trusts.
  await h1.client.rotateAuthority();
  await eventually(
    "the end of the rotation",
    () => h1.client.authorities(),
    (now) => now.rotation === null && now.authorities.every(({ kid }) => !backup.kids.includes(kid)),
    20_000,
  );
  await t.rejects(h1.client.restoreAuthority(file), { code: "E-CA-04", message: /trusts now/ });
});
