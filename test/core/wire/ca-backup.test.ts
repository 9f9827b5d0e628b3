/** The authority's keys under a passphrase: nothing of them in clear, nothing of the file changed unseen. */
import { randomUUID } from "node:crypto";
import t from "tap";

import { Secret } from "../../../src/core/model/secret.ts";
import { openCaBackup, sealCaBackup } from "../../../src/core/wire/ca-backup.ts";
import { makeAuthority } from "../../../src/core/wire/x509-make.ts";

void t.test("ca backup: sealed and opened; a wrong word or a changed file is refused", async (t) => {
  const cluster = randomUUID();
  const [host, store] = await Promise.all(
    (["host", "store"] as const).map((kind) => makeAuthority({ kind, cluster, nowMs: Date.now() })),
  );
  if (host === undefined || store === undefined) throw new Error("two authorities");
  const word = new Secret("correct horse battery staple");
  const text = await sealCaBackup({ cluster, host: [host], store: [store] }, word);
  const body = host.keyPem.reveal().split("\n")[1] ?? "";
  t.notOk(text.includes(body) || text.includes("PRIVATE") || text.includes(word.reveal()));
  const opened = await openCaBackup(text, word);
  t.equal(opened.cluster, cluster);
  t.same(
    [...opened.host, ...opened.store].map(({ kid, pem, keyPem }) => [kid, pem, keyPem.reveal()]),
    [host, store].map(({ kid, pem, keyPem }) => [kid, pem, keyPem.reveal()]),
  );
  await t.rejects(openCaBackup(text, new Secret("correct horse battery stapler")), { code: "E-CA-04" });
  const other = randomUUID();
  for (const changed of [
    text.replace(cluster, other),
    text.replace(host.kid, store.kid),
    text.replace(/"tag": ".{4}/, '"tag": "AAAA'),
    text.replace('"logN": 17', '"logN": 30'),
    text.slice(0, -20),
    "{}",
  ])
    await t.rejects(openCaBackup(changed, word), { code: "E-CA-04", safe: "Nothing was changed." });
});
