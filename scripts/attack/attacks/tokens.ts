/** Join tokens that are used up, expired, revoked, guessed, stolen on the way; and a machine in the middle of a join. */
import { createServer } from "node:tls";
import type { AddressInfo } from "node:net";
import { createHash, randomUUID } from "node:crypto";

import { parseHostId } from "../../../src/core/model/ids.ts";
import type { HostId } from "../../../src/core/model/ids.ts";
import { Secret } from "../../../src/core/model/secret.ts";
import { decodeJoinToken } from "../../../src/core/model/token-code.ts";
import type { JoinToken } from "../../../src/core/model/token-code.ts";
import { readCertificate, kidOf } from "../../../src/core/wire/certificate.ts";
import { isWeftError } from "../../../src/core/wire/errors.ts";
import { HostClient } from "../../../src/core/wire/host-client.ts";
import { proveToken } from "../../../src/core/wire/join-proof.ts";
import { makeJoinCert, makeKey } from "../../../src/core/wire/x509-make.ts";
import type { Attack, Way } from "../attack.ts";
import { bytesOf, mustBe } from "../attack.ts";
import { forge, otherAuthority } from "../forge.ts";
import type { KnownAuthority, Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

type Shown = { readonly cert: string; readonly key: string };
type Newcomer = {
  readonly host: HostId;
  readonly name: string;
  readonly address: string;
  readonly shown: Shown;
};

export const tokenAttacks: readonly Attack[] = [
  {
    name: "join-token",
    door: "7400",
    from: "stranger",
    ways: (known, random) => wrongTokens(known, random),
    control: async (known, local) =>
      mustBe(await isBelieved(known, joinTokenOf(known.tokens.fresh), local), "a right token is believed"),
  },
  {
    name: "join-in-the-middle",
    door: "7400",
    from: "stranger",
    ways: async (known) => {
      const others: readonly KnownAuthority[] = await Promise.all(
        Array.from({ length: 20 }, async () => otherAuthority()),
      );
      return others.map((authority, i) => ({
        label: `authority ${i} of somebody else heard of the join`,
        run: async (local) => hears(authority, known, local),
      }));
    },
    control: async (known, local) =>
      mustBe(await hears(known.authority, known, local), "a joining host speaks to the right authority"),
  },
];

function wrongTokens(known: Knowledge, random: () => number): readonly Way[] {
  const { fresh, used, revoked, expired } = known.tokens;
  const right = joinTokenOf(fresh);
  const guess = (): JoinToken => ({ ...right, secret12: new Secret(bytesOf(random, 12)) });
  const one = (label: string, token: () => JoinToken): readonly Way[] =>
    known.hosts.map(({ name }) => ({
      label: `${label}, at ${name}`,
      run: async (local: string) => {
        const newcomer = await newcomerAt(local);
        return (await enrol(known, name, token(), newcomer, newcomer)).code === null;
      },
    }));
  return [
    ...one("one that was used", () => joinTokenOf(used)),
    ...one("one that was revoked", () => joinTokenOf(revoked)),
    ...one("one that has expired", () => joinTokenOf(expired)),
    ...one("a guessed secret", guess),
    ...one("a guessed secret again", guess),
    ...one("a token that was never made", () => ({ ...guess(), id4: bytesOf(random, 4) })),
    ...known.hosts.flatMap(({ name }): readonly Way[] => [
      {
        label: `a proof of another key, at ${name}`,
        run: async (local) => {
          const [claimed, thief] = [await newcomerAt(local), await newcomerAt(local)];
          return (await enrol(known, name, right, claimed, { ...claimed, shown: thief.shown })).code === null;
        },
      },
      {
        label: `a proof of another name, at ${name}`,
        run: async (local) => {
          const claimed = await newcomerAt(local);
          return (
            (await enrol(known, name, right, claimed, { ...claimed, name: `${claimed.name}x` })).code === null
          );
        },
      },
    ]),
  ];
}

/** A host's own name is taken: who hears that was believed. Nobody is let in by this. */
export async function isBelieved(known: Knowledge, token: JoinToken, local: string): Promise<boolean> {
  const newcomer = { ...(await newcomerAt(local)), name: hostOf(known, "h2").name };
  const { code } = await enrol(known, "h1", token, newcomer, newcomer);
  if (code === "E-TOKEN-02") return false;
  if (code === null || code === "E-HOST-03") return true;
  throw new Error(`a token was not judged: ${code}`);
}

export function joinTokenOf(text: string): JoinToken {
  const decoded = decodeJoinToken(text);
  if (decoded.kind !== "ok") throw new Error("the stage's token is none");
  return decoded.value;
}

async function newcomerAt(address: string): Promise<Newcomer> {
  const host = parseHostId(randomUUID());
  if (host === null) throw new Error("an id is no id");
  const keyPem = makeKey();
  const cert = await makeJoinCert({ host, keyPem, nowMs: Date.now() });
  return { host, name: `x${host.slice(0, 8)}`, address, shown: { cert, key: keyPem.reveal() } };
}

/** Asks to be let in as `shown`, by a proof that was made for `claimed`; `code` null: it was. */
async function enrol(
  known: Knowledge,
  member: string,
  token: JoinToken,
  claimed: Newcomer,
  shown: Newcomer,
): Promise<{ readonly code: string | null }> {
  const client = new HostClient({
    address: hostOf(known, member).address,
    shown: shown.shown,
    expect: { kind: "authority", fingerprint16: joinTokenOf(known.tokens.fresh).fingerprint16 },
    from: shown.address,
  });
  const kid = kidOfPem(claimed.shown.cert);
  try {
    await client.enrol(({ cluster }) => ({
      token: proveToken(token, {
        cluster,
        kid,
        host: claimed.host,
        name: claimed.name,
        address: claimed.address,
      }),
      host: { id: shown.host, name: shown.name, address: shown.address },
    }));
    return { code: null };
  } catch (error) {
    if (isWeftError(error)) return { code: error.code };
    throw error;
  }
}

/** Whether a joining host says one byte to somebody with a certificate by this authority. */
async function hears(authority: KnownAuthority, known: Knowledge, local: string): Promise<boolean> {
  const names = [{ type: "url" as const, value: `weft://${known.cluster}/host/${hostOf(known, "h1").id}` }];
  const { cert, key } = await forge({ authority, names });
  let heard = 0;
  const server = createServer({
    cert,
    key,
    requestCert: true,
    rejectUnauthorized: false,
    minVersion: "TLSv1.3",
  });
  server.on("secureConnection", (socket) => {
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      heard += chunk.length;
      socket.destroy();
    });
  });
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen({ host: local, port: 0 }, resolve));
  const { port } = server.address() as AddressInfo;
  const newcomer = await newcomerAt(local);
  const token = joinTokenOf(known.tokens.fresh);
  const client = new HostClient({
    address: local,
    port,
    shown: newcomer.shown,
    expect: { kind: "authority", fingerprint16: token.fingerprint16 },
    answerMs: 1000,
  });
  const { host, name, address, shown } = newcomer;
  await client
    .enrol(({ cluster }) => ({
      token: proveToken(token, { cluster, kid: kidOfPem(shown.cert), host, name, address }),
      host: { id: host, name, address },
    }))
    .catch(() => null);
  await new Promise((resolve) => server.close(resolve));
  return heard > 0;
}

function kidOfPem(pem: string): string {
  const certificate = readCertificate(pem);
  return certificate === null ? createHash("sha256").digest("hex") : kidOf(certificate.publicKey);
}
