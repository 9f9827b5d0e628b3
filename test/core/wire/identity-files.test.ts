/**
 * Plot: a host's keys and certificates lie in files, are renewed while others read them, and a crash comes at any moment.
 * Nobody but root ever sees one, and no reader meets half of one.
 */
import { spawn } from "node:child_process";
import { createPublicKey } from "node:crypto";
import { once } from "node:events";
import { chmod, mkdir, open, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inspect } from "node:util";

import t from "tap";

import { parseHostId } from "../../../src/core/model/ids.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { writeDurably } from "../../../src/core/wire/durable-file.ts";
import { isWeftError } from "../../../src/core/wire/errors.ts";
import { IdentityFiles } from "../../../src/core/wire/identity-files.ts";
import {
  makeAuthority,
  makeCrl,
  makeHostCert,
  makeKey,
  makeStoreCert,
} from "../../../src/core/wire/x509-make.ts";
import { CLUSTER } from "./authority-for-tests.ts";

const HOST = parseHostId("11111111-1111-4111-8111-111111111111") as HostId;
const nowMs = Date.now();
const a = await makeAuthority({ kind: "host", cluster: CLUSTER, nowMs });
const b = await makeAuthority({ kind: "store", cluster: CLUSTER, nowMs });
const keyPem = makeKey();
const publicKey = createPublicKey(keyPem.reveal());

async function identity(): Promise<{ certPem: string; chainPem: string; keyPem: typeof keyPem }> {
  const { pem } = await makeHostCert({ authority: a, cluster: CLUSTER, host: HOST, publicKey, nowMs });
  return { certPem: pem, chainPem: a.pem, keyPem };
}

async function everything(files: IdentityFiles): Promise<void> {
  await files.writeHostKey(keyPem);
  await files.writeHost(await identity());
  await files.writeTrustFirst("signed");
  await files.writeAuthority("host", a);
  await files.writeAuthority("store", b);
  const { pem } = await makeStoreCert({ authority: b, host: HOST, address: "10.0.9.11", publicKey, nowMs });
  const crl = await makeCrl({ authority: a, serials: [], nowMs });
  await files.writeEtcd({ certPem: pem, keyPem, clients: a.pem + b.pem, peers: b.pem, crl });
}

async function modes(directory: string): Promise<Readonly<Record<string, string>>> {
  const found: Record<string, string> = {};
  for (const name of (await readdir(directory, { recursive: true })).toSorted())
    found[name] = ((await stat(join(directory, name))).mode & 0o7777).toString(8);
  return found;
}

async function codeOf(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
    return "ok";
  } catch (error) {
    if (!isWeftError(error)) throw error;
    // Whatever is wrong with a key, nothing of it is shown.
    const shown = inspect(error, { depth: 9 }) + JSON.stringify(error.toBody());
    return shown.includes(keyPem.reveal().slice(40, 60)) ? "shown" : error.code;
  }
}

const all = {
  authority: "700",
  [`authority/host-${a.kid.slice(0, 8)}.key`]: "600",
  [`authority/host-${a.kid.slice(0, 8)}.pem`]: "600",
  [`authority/store-${b.kid.slice(0, 8)}.key`]: "600",
  [`authority/store-${b.kid.slice(0, 8)}.pem`]: "600",
  "authority/tls": "700",
  "authority/tls/clients.pem": "600",
  "authority/tls/crl.der": "600",
  "authority/tls/etcd.pem": "600",
  "authority/tls/peers.pem": "600",
  identity: "700",
  "identity/host.key": "600",
  "identity/host.pem": "600",
  "identity/trust.json": "600",
};

void t.test(
  "identity: files are root's alone under any umask, also where something lay open before",
  async (t) => {
    const before = process.umask(0o000);
    t.teardown(() => process.umask(before));
    for (const umask of [0o000, 0o777]) {
      process.umask(0o000);
      const stateDir = t.testdir({ [`${umask}`]: {} });
      const place = join(stateDir, String(umask));
      await mkdir(join(place, "identity"), { mode: 0o777 });
      for (const name of ["host.pem", "host.pem.new", "host.key.new"]) {
        await writeFile(join(place, "identity", name), "left by a crash");
        await chmod(join(place, "identity", name), 0o666);
      }
      process.umask(umask);
      await everything(new IdentityFiles(place));
      process.umask(0o000);
      t.strictSame(await modes(place), all, umask.toString(8));
    }
  },
);

void t.test("identity: what was written is read, and before that there is nothing", async (t) => {
  const files = new IdentityFiles(t.testdir());
  t.equal(await files.readHost(), null);
  t.equal(await files.readHostKey(), null);
  t.equal(await files.readTrust(), null);
  t.equal(await files.readEtcdCertificate(), null);
  t.strictSame(await files.readAuthorities(), { host: [], store: [] });
  await everything(files);
  const host = await files.readHost();
  t.equal(host?.facts.issuerKid, a.kid);
  t.strictSame(host?.facts.uris, [`weft://${CLUSTER}/host/${HOST}`]);
  t.equal(host?.keyPem.reveal(), keyPem.reveal());
  t.equal((await files.readHostKey())?.reveal(), keyPem.reveal());
  t.equal(await files.readTrust(), "signed");
  t.equal((await files.readEtcdCertificate())?.subjectAltName, "IP Address:10.0.9.11");
  const { host: hosts, store } = await files.readAuthorities();
  t.strictSame([hosts.map(({ kid }) => kid), store.map(({ kid }) => kid)], [[a.kid], [b.kid]]);
  t.equal(hosts[0]?.keyPem.reveal(), a.keyPem.reveal());
  t.notMatch(inspect([host, hosts], { depth: 9 }) + JSON.stringify([host, hosts]), /PRIVATE/);
});

void t.test("identity: files that don't belong together are refused, and show no key", async (t) => {
  const files = new IdentityFiles(t.testdir());
  const good = await identity();
  t.equal(await codeOf(() => files.writeHost({ ...good, keyPem: makeKey() })), "E-HOST-06");
  t.equal(await codeOf(() => files.writeHost({ ...good, chainPem: b.pem })), "E-HOST-06");
  t.equal(await codeOf(() => files.writeHost({ ...good, certPem: "" })), "E-HOST-06");
  t.equal(await codeOf(() => files.writeAuthority("host", { ...a, keyPem: b.keyPem })), "E-CA-05");
  t.equal(await codeOf(() => files.writeAuthority("host", { ...a, kid: b.kid })), "E-CA-05");
  t.equal(await codeOf(() => files.writeAuthority("host", { ...a, pem: good.certPem })), "E-CA-05");
  t.equal(await files.readHost(), null, "nothing was written");
  await everything(files);
  const path = (name: string): string => join(files.stateDir, name);
  await truncate(path("identity/host.pem"), 900);
  await truncate(path("identity/host.key"), 100);
  await truncate(path("authority/tls/etcd.pem"), 100);
  t.equal(await codeOf(() => files.readHost()), "E-HOST-06");
  t.equal(await codeOf(() => files.readHostKey()), "E-HOST-06");
  t.equal(await codeOf(() => files.readEtcdCertificate()), "E-CA-05");
  await truncate(path(`authority/host-${a.kid.slice(0, 8)}.key`), 100);
  t.equal(await codeOf(() => files.readAuthorities()), "E-CA-05");
  await writeDurably(
    path("identity/host.pem"),
    good.certPem + good.chainPem + keyPem.reveal() + good.certPem,
  );
  t.equal(await codeOf(() => files.readHost()), "E-HOST-06");
});

void t.test(
  "identity: a crash between write and rename leaves the old one, and the next write the new one",
  async (t) => {
    const files = new IdentityFiles(t.testdir());
    const old = await identity();
    await files.writeHost(old);
    const half = (await identity()).certPem.slice(0, 300);
    await writeFile(join(files.stateDir, "identity/host.pem.new"), half);
    t.equal((await files.readHost())?.certPem, old.certPem);
    const renewed = await identity();
    await files.writeHost(renewed);
    t.equal((await files.readHost())?.certPem, renewed.certPem);
    t.strictSame(Object.keys(await modes(join(files.stateDir, "identity"))), ["host.pem"]);
  },
);

void t.test(
  "identity: a process killed at any moment of its renewals leaves one whole identity",
  async (t) => {
    const files = new IdentityFiles(t.testdir());
    const [one, two] = [await identity(), await identity()];
    await files.writeHost(one);
    const program = `
    import { readFileSync } from "node:fs";
    import { IdentityFiles } from ${JSON.stringify(new URL("../../../src/core/wire/identity-files.ts", import.meta.url).href)};
    import { Secret } from ${JSON.stringify(new URL("../../../src/core/model/secret.ts", import.meta.url).href)};
    const files = new IdentityFiles(process.argv[1]);
    const both = JSON.parse(readFileSync(0, "utf8")).map((i) => ({ ...i, keyPem: new Secret(i.keyPem) }));
    for (let i = 1; ; i += 1) {
      await files.writeHost(both[i % 2]);
      process.stdout.write("w");
    }`;
    for (let round = 0; round < 6; round += 1) {
      const child = spawn(process.execPath, ["--input-type=module", "-e", program, files.stateDir], {
        stdio: ["pipe", "pipe", "inherit"],
      });
      child.stdin.end(JSON.stringify([one, two].map((i) => ({ ...i, keyPem: i.keyPem.reveal() }))));
      // After some whole renewals, within the next one.
      let seen = 0;
      for await (const chunk of child.stdout) {
        seen += (chunk as Buffer).length;
        if (seen > round) break;
      }
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
      const left = await files.readHost();
      t.ok(left?.certPem === one.certPem || left?.certPem === two.certPem);
    }
  },
);

void t.test("identity: a host that stops being a store member keeps no authority's key", async (t) => {
  const files = new IdentityFiles(t.testdir());
  await everything(files);
  const next = await makeAuthority({ kind: "host", cluster: CLUSTER, nowMs });
  await files.writeAuthority("host", next);
  await files.dropAuthority("host", a.kid);
  t.strictSame(
    (await files.readAuthorities()).host.map(({ kid }) => kid),
    [next.kid],
  );
  const key = join(files.stateDir, `authority/host-${next.kid.slice(0, 8)}.key`);
  // An open file shows what becomes of the bytes themselves.
  await using file = await open(key, "r");
  await writeFile(`${key}.new`, await readFile(key));
  await files.dropAuthorities();
  t.strictSame(await files.readAuthorities(), { host: [], store: [] });
  t.strictSame(
    Object.keys(await modes(files.stateDir)).filter((name) => name.startsWith("authority")),
    [],
  );
  t.match(await file.readFile("latin1"), /^\0+$/);
  t.ok(await files.readHost(), "its own identity stays");
  await files.dropAuthorities();
});
