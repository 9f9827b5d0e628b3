/**
 * Plot: the certificates that weft makes are read by everybody who will meet them: OpenSSL, Node's own reader, a TLS 1.3
 * handshake from both sides. The profile is a promise: a host is a URI name, a store member an address.
 */
import { execFile } from "node:child_process";
import { createPrivateKey, createPublicKey, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, createServer } from "node:tls";
import { promisify } from "node:util";

import t from "tap";

import { parseHostId } from "../../../src/core/model/ids.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { judgePeer } from "../../../src/core/model/trust.ts";
import {
  factsOf,
  isP256,
  judgeCertificate,
  kidOf,
  readCertificate,
} from "../../../src/core/wire/certificate.ts";
import {
  HOST_CERT_LIFE_MS,
  makeAuthority,
  makeCrl,
  makeHostCert,
  makeKey,
  makeStoreCert,
} from "../../../src/core/wire/x509-make.ts";

const CLUSTER = "c0000000-0000-4000-8000-000000000000";
const HOST = parseHostId("11111111-1111-4111-8111-111111111111") as HostId;
const DAY_MS = 24 * 3600 * 1000;
const nowMs = Math.floor(Date.now() / 1000) * 1000;

const a = await makeAuthority({ kind: "host", cluster: CLUSTER, nowMs });
const b = await makeAuthority({ kind: "store", cluster: CLUSTER, nowMs });
const other = await makeAuthority({ kind: "host", cluster: CLUSTER, nowMs });
const keyPem = makeKey();
const publicKey = createPublicKey(keyPem.reveal());
const host = await makeHostCert({ authority: a, cluster: CLUSTER, host: HOST, publicKey, nowMs });
const store = await makeStoreCert({ authority: b, host: HOST, address: "127.0.9.11", publicKey, nowMs });

const directory = await mkdtemp(join(tmpdir(), "weft-x509-"));
t.teardown(() => rm(directory, { recursive: true }));
const path = (name: string): string => join(directory, name);
for (const [name, content] of [
  ["a", a.pem],
  ["b", b.pem],
  ["host", host.pem],
  ["store", store.pem],
] as const)
  await writeFile(path(name), content);

const trust = {
  cluster: CLUSTER,
  generation: 1n,
  nonce: "n",
  transport: "tls" as const,
  authorities: [{ kid: a.kid, pem: a.pem, state: "active" as const, sinceMs: 0 }],
  storeAuthorities: [],
  hosts: new Map([
    [
      HOST,
      {
        name: "h1",
        address: "10.0.0.1",
        member: true,
        keys: [{ kid: kidOf(publicKey), sinceMs: 0 }],
        certs: [],
        held: [],
      },
    ],
  ]),
  revoked: new Map(),
  rotation: null,
};

const run = promisify(execFile);
async function openssl(...words: readonly string[]): Promise<string> {
  try {
    const { stdout, stderr } = await run("openssl", words);
    return stdout + stderr;
  } catch (error) {
    return `failed: ${error instanceof Error ? error.message : "?"}`;
  }
}

void t.test(
  "x509: OpenSSL verifies leaves for servers and for clients, each by its own authority only",
  async (t) => {
    for (const purpose of ["sslserver", "sslclient"]) {
      for (const [leaf, right, wrong] of [
        ["host", "a", "b"],
        ["store", "b", "a"],
      ] as const) {
        const strict = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile"];
        t.match(await openssl(...strict, path(right), path(leaf)), /: OK/);
        t.match(await openssl(...strict, path(wrong), path(leaf)), /^failed/);
      }
    }
    // A day behind it is valid; at 26 h before it never was.
    const at = (ms: number): readonly string[] => ["-attime", String((nowMs + ms) / 1000)];
    t.match(await openssl("verify", "-CAfile", path("a"), ...at(-DAY_MS), path("host")), /: OK/);
    t.match(
      await openssl("verify", "-CAfile", path("a"), ...at(HOST_CERT_LIFE_MS + 1000), path("host")),
      /expired/,
    );
  },
);

void t.test("x509: the profile, as OpenSSL prints it", async (t) => {
  const print = (name: string): Promise<string> => openssl("x509", "-in", path(name), "-noout", "-text");
  const [authority, leaf, member] = await Promise.all([print("a"), print("host"), print("store")]);
  t.match(authority, /Basic Constraints: critical\s+CA:TRUE, pathlen:0/);
  t.match(authority, /Key Usage: critical\s+Certificate Sign, CRL Sign/);
  t.match(authority, /Subject: CN = weft c0000000\n/);
  t.match(await print("b"), /Subject: CN = weft store c0000000\n/);
  for (const text of [leaf, member]) {
    t.match(text, /Basic Constraints: critical\s+CA:FALSE/);
    t.match(text, /Key Usage: critical\s+Digital Signature\n/);
    t.match(
      text,
      /Extended Key Usage: critical\s+TLS Web Server Authentication, TLS Web Client Authentication/,
    );
    t.match(text, /Signature Algorithm: ecdsa-with-SHA256/);
    t.match(text, /NIST CURVE: P-256/);
    t.match(text, new RegExp(`Subject: CN = ${HOST}\\n`));
  }
  t.match(leaf, new RegExp(`Alternative Name: \\n +URI:weft://${CLUSTER}/host/${HOST}\\n`));
  t.match(member, /Alternative Name: \n +IP Address:127\.0\.9\.11, IP Address:127\.0\.0\.1\n/);
});

void t.test(
  "x509: a member's name is its address; 127.0.0.1 stands beside it only within 127/8",
  async (t) => {
    const names = async (address: string): Promise<string | undefined> => {
      const { pem } = await makeStoreCert({ authority: b, host: HOST, address, publicKey, nowMs });
      return new X509Certificate(pem).subjectAltName;
    };
    t.equal(await names("10.0.9.11"), "IP Address:10.0.9.11");
    t.equal(await names("127.0.0.1"), "IP Address:127.0.0.1");
    t.equal(await names("fd00::11"), "IP Address:FD00:0:0:0:0:0:0:11");
    t.equal(await names("h1.example.org"), "DNS:h1.example.org");
  },
);

void t.test("x509: Node reads what the model judges by", async (t) => {
  const certificate = new X509Certificate(host.pem);
  const facts = factsOf(certificate, [other, a]);
  t.strictSame(facts, {
    kid: kidOf(publicKey),
    uris: [`weft://${CLUSTER}/host/${HOST}`],
    notBeforeMs: nowMs - 25 * 3600 * 1000,
    notAfterMs: nowMs + 30 * DAY_MS,
    issuerKid: a.kid,
    serverAndClient: true,
  });
  t.equal(certificate.serialNumber.toLowerCase(), host.serial);
  t.match(host.serial, /^[4-7][0-9a-f]{31}$/);
  t.equal(host.notAfterMs, facts.notAfterMs);
  t.ok(isP256(certificate.publicKey));
  t.equal(factsOf(certificate, [other]).issuerKid, null, "the same name, another key");
  t.equal(factsOf(new X509Certificate(store.pem), [b]).uris.length, 0, "an address is no host's name");
  t.equal(factsOf(new X509Certificate(a.pem), [a]).serverAndClient, false, "an authority is no host");
  t.equal(readCertificate(host.pem + a.pem), null);
  t.equal(readCertificate(""), null);
  t.equal(readCertificate(host.pem.replace("MII", "QII")), null);
});

void t.test(
  "x509: a certificate with any bit flipped is read, or is none; by its authority it never is",
  async (t) => {
    const { raw } = new X509Certificate(host.pem);
    let accepted = 0;
    for (let bit = 0; bit < raw.length * 8; bit += 1) {
      const flipped = Buffer.from(raw);
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      const pem = `-----BEGIN CERTIFICATE-----\n${flipped.toString("base64")}\n-----END CERTIFICATE-----\n`;
      const certificate = readCertificate(pem);
      if (certificate !== null && factsOf(certificate, [a]).issuerKid !== null) accepted += 1;
      // As a peer's it is judged from its bytes.
      if (judgeCertificate(trust, flipped, nowMs).kind === "ok") accepted += 1;
    }
    t.equal(accepted, 0);
    t.equal(judgeCertificate(trust, raw, nowMs).kind, "ok");
  },
);

void t.test("x509: two hosts shake hands by TLS 1.3, and each sees who the other is", async (t) => {
  const tls = { key: keyPem.reveal(), cert: host.pem, ca: a.pem, minVersion: "TLSv1.3" as const };
  const server = createServer({ ...tls, requestCert: true, rejectUnauthorized: true }, (socket) => {
    const peer = socket.getPeerX509Certificate();
    const verdict = peer === undefined ? null : judgePeer(trust, factsOf(peer, [a]), nowMs);
    socket.end(JSON.stringify({ verdict, protocol: socket.getProtocol() }));
  });
  server.listen(0, "127.0.0.1");
  t.teardown(() => server.close());
  await once(server, "listening");
  const address = server.address();
  const port = address !== null && typeof address === "object" ? address.port : 0;
  // Names are judged by us: a host has no address.
  const socket = connect({ ...tls, host: "127.0.0.1", port, checkServerIdentity: () => undefined });
  let answer = "";
  socket.setEncoding("utf8").on("data", (text: string) => (answer += text));
  await once(socket, "secureConnect");
  const peer = socket.getPeerX509Certificate();
  t.ok(socket.authorized);
  t.equal(peer === undefined ? null : judgePeer(trust, factsOf(peer, [a]), nowMs).kind, "ok");
  await once(socket, "close");
  t.strictSame(JSON.parse(answer), {
    verdict: { kind: "ok", host: HOST, notAfterMs: host.notAfterMs },
    protocol: "TLSv1.3",
  });
  const stranger = connect({
    ...tls,
    ca: other.pem,
    host: "127.0.0.1",
    port,
    checkServerIdentity: () => undefined,
  });
  const [error] = await once(stranger, "error").catch((error: unknown) => [error]);
  t.match(error, { code: "SELF_SIGNED_CERT_IN_CHAIN" });
});

void t.test(
  "x509: a revocation list is DER that OpenSSL reads, names its serials, and is signed by its authority",
  async (t) => {
    await writeFile(path("empty"), await makeCrl({ authority: b, serials: [], nowMs }));
    await writeFile(path("crl"), await makeCrl({ authority: a, serials: [host.serial], nowMs }));
    const read = (name: string, by: string): Promise<string> =>
      openssl("crl", "-inform", "DER", "-in", path(name), "-noout", "-text", "-CAfile", path(by));
    t.match(
      await read("empty", "b"),
      /verify OK[^]*No Revoked Certificates|No Revoked Certificates[^]*verify OK/,
    );
    t.match(await read("crl", "a"), new RegExp(`Serial Number: ${host.serial.toUpperCase()}`));
    t.match(await read("crl", "b"), /verify failure|Error/i);
    await run("openssl", ["crl", "-inform", "DER", "-in", path("crl"), "-out", path("crl.pem")]);
    const check = ["verify", "-crl_check", "-CRLfile", path("crl.pem"), "-CAfile", path("a"), path("host")];
    t.match(await openssl(...check), /certificate revoked/);
  },
);

void t.test("x509: a private key is P-256, and shown to nobody", async (t) => {
  t.ok(isP256(createPrivateKey(keyPem.reveal())));
  t.match(keyPem.reveal(), /^-----BEGIN PRIVATE KEY-----\n/);
  t.equal(JSON.stringify(a).includes("PRIVATE"), false);
});
