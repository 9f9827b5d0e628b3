/** What a disk has where a bundle would be: anybody may have written it. */
import { execFile } from "node:child_process";
import { generateKeyPairSync, randomUUID } from "node:crypto";
import { mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import t from "tap";

import { bundleAt } from "../../../src/core/agent/reclaim.ts";
import { Secret } from "../../../src/core/model/secret.ts";
import { BUNDLE_BYTES_MAX, bundleKey, sealBundle } from "../../../src/core/wire/bundle.ts";

void t.test("reclaim: only a file of a bundle's form is one, and nothing else is read", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "weft-bundle-"));
  t.teardown(() => rm(dir, { recursive: true }));
  const at = (name: string): string => join(dir, name);
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
  const pem = new Secret(privateKey.export({ type: "pkcs8", format: "pem" }).toString());
  const of = { cluster: randomUUID(), host: randomUUID(), kid: "0".repeat(64) };
  const texts = { hostFile: "", keyPem: "", certPem: "", chainPem: "", trust: "", devices: null };
  const bundle = sealBundle(bundleKey(pem, of), of, texts);
  await writeFile(at("bundle"), bundle);
  t.equal(await bundleAt(at("bundle")), bundle);

  await symlink(at("bundle"), at("link"));
  t.equal(await bundleAt(at("link")), null);
  // Its end never comes.
  await symlink("/dev/zero", at("endless"));
  t.equal(await bundleAt(at("endless")), null);
  await promisify(execFile)("mkfifo", [at("pipe")]);
  t.equal(await bundleAt(at("pipe")), null);
  await writeFile(at("other"), "{}");
  t.equal(await bundleAt(at("other")), null);
  await writeFile(at("huge"), "");
  await truncate(at("huge"), BUNDLE_BYTES_MAX + 1);
  t.equal(await bundleAt(at("huge")), null);
  await t.rejects(bundleAt(at("none")), { code: "ENOENT" });
});
