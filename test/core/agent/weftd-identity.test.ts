/** Plot: a daemon that belongs to a cluster and finds no identity. Nobody may be served by a host that proves nothing. */
import { mkdtemp, rm, writeFile, mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { execa } from "execa";
import t from "tap";

import { weftd } from "../../../scripts/lib/repository.ts";

void t.test("weftd: without an identity a host of a cluster does not start", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "weft-no-identity-"));
  t.teardown(() => rm(dir, { recursive: true }));
  await mkdir(join(dir, "run"));
  const host = {
    cluster: "0b6f3c2e-6f0a-4c55-9d7e-0d1f7a2c9a10",
    host: "5b0e7d6e-32a4-4a55-8a58-4f6f3f0f5a11",
    name: "h1",
    address: "127.0.78.1",
    etcd: ["https://127.0.78.1:7402"],
  };
  await writeFile(join(dir, "host.json"), JSON.stringify(host));
  const places = ["--state-dir", dir, "--run-dir", join(dir, "run")];
  const { exitCode, stderr } = await execa(weftd(), places, { reject: false, timeout: 20_000 });
  t.equal(exitCode, 1);
  t.match(stderr, /E-TRUST-03/);
});
