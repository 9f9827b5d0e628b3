/**
 * A file with the cluster's authorities, private keys included, under a passphrase.
 *
 *     {"format": "weft-ca-backup", "version": 1, "cluster", "kids", "kdf": {…}, "iv", "tag", "data"}
 *     key = scrypt(passphrase, salt, N 2^17, r 8, p 1); data = AES-256-GCM of the keys, everything before "iv" is bound
 *
 * Must always hold:
 * - what is in clear names authorities, and is bound to the rest: a changed file is refused as a wrong passphrase is;
 * - a guess costs 128 MiB of memory and a fraction of a second, here as for whoever found the file.
 */
import { createCipheriv, createDecipheriv, randomBytes, scrypt } from "node:crypto";
import { z } from "zod";

import { Secret } from "../model/secret.ts";
import { WeftError } from "./errors.ts";
import { uuid } from "./json-types.ts";
import type { AuthorityKeys } from "./x509-make.ts";

export type CaBackup = {
  readonly cluster: string;
  readonly host: readonly AuthorityKeys[];
  readonly store: readonly AuthorityKeys[];
};

const LOG_N = 17;
const R = 8;
const P = 1;
/** 128 · N · r, and some room. */
const MEMORY_MAX = 192 << 20;
const KEY_BYTES = 32;
/** Larger files are none of ours. */
export const CA_BACKUP_BYTES_MAX = 1 << 20;

const base64 = z
  .string()
  .max(CA_BACKUP_BYTES_MAX)
  .regex(/^[A-Za-z0-9+/]*={0,2}$/);
const headJson = z.strictObject({
  format: z.literal("weft-ca-backup"),
  version: z.literal(1),
  cluster: uuid,
  kids: z.array(z.string().regex(/^[0-9a-f]{64}$/)).max(16),
  // Of this version always the same: what a file asks for is no bill that we pay.
  kdf: z.strictObject({
    name: z.literal("scrypt"),
    logN: z.literal(LOG_N),
    r: z.literal(R),
    p: z.literal(P),
    salt: base64,
  }),
});
const fileJson = headJson.extend({ iv: base64, tag: base64, data: base64 }).strict();
const keysJson = z.array(z.strictObject({ kid: z.string(), pem: z.string(), key: z.string() })).max(8);
const bodyJson = z.strictObject({ host: keysJson, store: keysJson });

export async function sealCaBackup(backup: CaBackup, passphrase: Secret<string>): Promise<string> {
  const salt = randomBytes(16);
  const head = {
    format: "weft-ca-backup",
    version: 1,
    cluster: backup.cluster,
    kids: [...backup.host, ...backup.store].map(({ kid }) => kid),
    kdf: { name: "scrypt", logN: LOG_N, r: R, p: P, salt: salt.toString("base64") },
  };
  const iv = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", await keyOf(passphrase, salt), iv);
  cipher.setAAD(Buffer.from(JSON.stringify(head)));
  const plain = JSON.stringify({ host: backup.host.map(plainKeys), store: backup.store.map(plainKeys) });
  const data = Buffer.concat([cipher.update(plain, "utf8"), cipher.final()]);
  const sealed = {
    ...head,
    iv: iv.toString("base64"),
    tag: cipher.getAuthTag().toString("base64"),
    data: data.toString("base64"),
  };
  return `${JSON.stringify(sealed, null, 2)}\n`;
}

/** E-CA-04 where the file is none, was changed, or the passphrase is another one: that can't be told apart. */
export async function openCaBackup(text: string, passphrase: Secret<string>): Promise<CaBackup> {
  const parsed = fileJson.safeParse(jsonOf(text));
  if (!parsed.success) throw unusable("it is no backup of an authority");
  const { iv, tag, data, ...head } = parsed.data;
  const salt = Buffer.from(head.kdf.salt, "base64");
  try {
    const key = await keyOf(passphrase, salt);
    const decipher = createDecipheriv("aes-256-gcm", key, Buffer.from(iv, "base64"), { authTagLength: 16 });
    decipher.setAAD(Buffer.from(JSON.stringify(head)));
    decipher.setAuthTag(Buffer.from(tag, "base64"));
    const plain = Buffer.concat([decipher.update(Buffer.from(data, "base64")), decipher.final()]);
    const { host, store } = bodyJson.parse(JSON.parse(plain.toString("utf8")));
    return { cluster: head.cluster, host: host.map(secretKeys), store: store.map(secretKeys) };
  } catch {
    // The cause may quote what it read.
    throw unusable("the passphrase is another one, or the file was changed");
  }
}

function keyOf(passphrase: Secret<string>, salt: Uint8Array): Promise<Buffer> {
  const options = { N: 2 ** LOG_N, r: R, p: P, maxmem: MEMORY_MAX };
  return new Promise((resolve, reject) => {
    scrypt(passphrase.reveal().normalize("NFC"), salt, KEY_BYTES, options, (error, key) => {
      if (error === null) resolve(key);
      else reject(error);
    });
  });
}

function plainKeys({ kid, pem, keyPem }: AuthorityKeys): object {
  return { kid, pem, key: keyPem.reveal() };
}

function secretKeys({ kid, pem, key }: z.output<typeof keysJson>[number]): AuthorityKeys {
  return { kid, pem, keyPem: new Secret(key) };
}

function jsonOf(text: string): unknown {
  try {
    return text.length > CA_BACKUP_BYTES_MAX ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

function unusable(why: string): WeftError {
  return new WeftError({
    code: "E-CA-04",
    message: `The backup of the authority can't be used: ${why}.`,
    safe: "Nothing was changed.",
  });
}
