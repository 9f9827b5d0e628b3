/**
 * Plot: a disk of a pool is stolen, altered, or put into another host; on it lies who its host is. Without the authority's key it
 * opens for nobody, and what goes over XAPI opens it for one host only.
 */
import { createPublicKey, randomBytes } from "node:crypto";
import t from "tap";

import { Secret } from "../../../src/core/model/secret.ts";
import {
  bundleKey,
  type BundlePayload,
  openBundle,
  parseBundle,
  sealBundle,
  unwrapKey,
  wrapKey,
} from "../../../src/core/wire/bundle.ts";
import { makeKey } from "../../../src/core/wire/x509-make.ts";

const of = {
  cluster: "00000000-0000-4000-8000-00000000c1c1",
  host: "00000000-0000-4000-8000-000000000001",
  kid: "ab".repeat(32),
};
const payload: BundlePayload = {
  hostFile: "{}",
  keyPem: "-----BEGIN PRIVATE KEY-----",
  certPem: "c",
  chainPem: "a",
  trust: "t",
  devices: null,
};

void t.test("bundle: opens with the key of its host and authority, and with no other", async (t) => {
  const authority = makeKey();
  const key = bundleKey(authority, of);
  const text = sealBundle(key, of, payload);
  t.notMatch(text, /PRIVATE|BEGIN/);
  const sealed = parseBundle(text);
  if (sealed === null) throw new Error("a bundle");
  t.strictSame(openBundle(key, sealed), payload);
  t.equal(openBundle(bundleKey(makeKey(), of), sealed), null, "another authority's");
  t.equal(openBundle(bundleKey(authority, { ...of, host: of.cluster }), sealed), null, "another host's");
  t.equal(openBundle(key, { ...sealed, host: of.cluster }), null, "what stands outside is bound to it");
  const broken = Buffer.from(sealed.box, "base64");
  broken[3] = (broken[3] ?? 0) ^ 1;
  t.equal(openBundle(key, { ...sealed, box: broken.toString("base64") }), null);
  t.equal(openBundle(key, { ...sealed, nonce: "" }), null);
  t.not(sealBundle(key, of, payload), text, "never twice the same nonce");
});

void t.test("bundle: its key goes to who has the private half, and to nobody else", async (t) => {
  const key = new Secret(new Uint8Array(randomBytes(32)));
  const [mine, other] = [makeKey(), makeKey()];
  const wrapped = wrapKey(key, createPublicKey(mine.reveal()));
  t.strictSame(unwrapKey(wrapped, mine)?.reveal(), key.reveal());
  t.equal(unwrapKey(wrapped, other), null);
  t.equal(unwrapKey({ ...wrapped, from: wrapKey(key, createPublicKey(mine.reveal())).from }, mine), null);
  for (const from of ["", "AAAA", wrapped.box]) t.equal(unwrapKey({ ...wrapped, from }, mine), null);
});

void t.test("bundle: what is none is none", async (t) => {
  for (const text of [
    "",
    "{}",
    "null",
    "[]",
    "\u0000",
    '{"format":2}',
    JSON.stringify({ ...of, format: 1, nonce: "*", box: "" }),
  ])
    t.equal(parseBundle(text), null, JSON.stringify(text));
});

/** Written by the first version that sealed any. */
const SPECIMEN =
  '{"format":1,"cluster":"00000000-0000-4000-8000-00000000c1c1","host":"00000000-0000-4000-8000-000000000001","kid":"abababababababababababababababababababababababababababababababab","nonce":"CkGakoJrH0T85qd9","box":"inbSXIuRpLWs24zPb3Sgpf7qcnmVdVpcf3Woweo7cxWqoZR2X3qkQ4jsofTJtmDdp8v4KI8NIvOlmLuqoMkMwiNXMpU+bZcJN+jw9KWZG1kp57+GG8lErmc0Rg1QQxF7Z4vfNt6o2RTQzk+RCNIclHU4HnlmGNlY2ozMTkAIT1E="}';

void t.test("bundle: one of format 1 opens for ever", async (t) => {
  const sealed = parseBundle(SPECIMEN);
  if (sealed === null) throw new Error("a bundle");
  t.strictSame(openBundle(new Secret(new Uint8Array(32).fill(7)), sealed), payload);
});
