/** Authorities with their keys, made once per test file. */
import { createPrivateKey } from "node:crypto";
import type { KeyObject } from "node:crypto";

import { makeAuthority } from "../../../src/core/wire/x509-make.ts";

export const CLUSTER = "c0000000-0000-4000-8000-000000000000";

export type TestAuthority = { readonly kid: string; readonly pem: string; readonly key: KeyObject };

export async function testAuthority(kind: "host" | "store" = "host"): Promise<TestAuthority> {
  const { kid, pem, keyPem } = await makeAuthority({ kind, cluster: CLUSTER, nowMs: Date.now() });
  return { kid, pem, key: createPrivateKey(keyPem.reveal()) };
}
