/**
 * The text of an API token, `wft1.a81c04fe.` and 43 characters of secret, and the header that carries one.
 *
 * Must always hold:
 * - what is no token is null, and shown nowhere: it may be somebody's password;
 * - one token has one text: it is compared as it is written.
 */
import { Secret } from "./secret.ts";

/** 32 random bytes in base64url, without `=`. */
export const API_SECRET = /^[A-Za-z0-9_-]{43}$/;
export const API_TOKEN_ID = /^[0-9a-f]{8}$/;
const PREFIX = "wft1";

export type ApiTokenText = { readonly id: string; readonly secret: Secret<string> };

export function renderApiToken({ id, secret }: ApiTokenText): string {
  return `${PREFIX}.${id}.${secret.reveal()}`;
}

export function parseApiToken(text: string): ApiTokenText | null {
  const [prefix, id = "", secret = "", ...rest] = text.length > 100 ? [] : text.split(".");
  if (prefix !== PREFIX || rest.length > 0 || !API_TOKEN_ID.test(id) || !API_SECRET.test(secret)) return null;
  return { id, secret: new Secret(secret) };
}

/** Of `Authorization: Bearer wft1.…`; the scheme's case is free (RFC 9110 11.1). */
export function parseAuthorization(header: string): ApiTokenText | null {
  const [, text] = /^bearer +(\S+)$/i.exec(header.length > 200 ? "" : header) ?? [];
  return text === undefined ? null : parseApiToken(text);
}
