/**
 * Tokens that a host made for itself: it writes their records into the store, as every host can, and shows them. A record
 * is believed of an authority's signature alone. What was planted is taken out after each try.
 */
import { createHash, createPrivateKey, randomBytes } from "node:crypto";

import { z } from "zod";

import { Secret } from "../../../src/core/model/secret.ts";
import type { JoinToken } from "../../../src/core/model/token-code.ts";
import { tokenHash } from "../../../src/core/wire/join-proof.ts";
import { sign, signByHost, type SignedKind } from "../../../src/core/wire/signed.ts";
import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import { otherAuthority } from "../forge.ts";
import { knock, request, statusOf } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";
import { type AsHost, readKey, writeKey } from "../store-client.ts";
import { isBelieved, joinTokenOf } from "./tokens.ts";

const HOUR_MS = 3_600_000;
/** An admin's right. */
const ASKED = "/v1/api-tokens";

export const plantedAttacks: readonly Attack[] = [
  {
    name: "planted-api-token",
    door: "7400",
    from: "stranger",
    ways: (known) =>
      seals.map(({ label, seal }): Way => ({
        label,
        run: async (local) => {
          const by = { known, as: "h3", local };
          const id = randomBytes(4).toString("hex");
          const secret = randomBytes(32).toString("base64url");
          const record = {
            id,
            name: `mine-${id}`,
            hash: sha256(`weft api v1\0${known.cluster}${id}${secret}`),
            role: "admin",
            volumes: null,
            ...times(),
          };
          const like = `/weft/v1/api-token/${known.apiTokens.viewer.split(".")[1] ?? ""}`;
          const value = await seal({ by, kind: "api-token", body: JSON.stringify(record), like });
          return planted(by, `/weft/v1/api-token/${id}`, value, async () => {
            const status = await asked(known, local, `wft1.${id}.${secret}`);
            if (status === 401) return false;
            if (status === 200) return true;
            throw new Error(`a planted token was not judged: ${status}`);
          });
        },
      })),
    control: async (known, local) => {
      // The right one is believed; what it asks for needs an admin.
      const status = await asked(known, local, known.apiTokens.viewer);
      mustBe(status === 403, `a viewer's token is known (${status})`);
    },
  },
  {
    name: "planted-join-token",
    door: "7400",
    from: "stranger",
    ways: (known) =>
      seals.map(({ label, seal }): Way => ({
        label,
        run: async (local) => {
          const by = { known, as: "h3", local };
          const right = joinTokenOf(known.tokens.fresh);
          const [id4, secret] = [randomBytes(4), randomBytes(12)];
          const token: JoinToken = { ...right, id4, secret12: new Secret(secret) };
          const id = id4.toString("hex");
          const record = { id, hash: tokenHash(known.cluster, id, secret), name: null, ...times() };
          const like = `/weft/v1/join-token/${Buffer.from(right.id4).toString("hex")}`;
          const value = await seal({ by, kind: "join-token", body: JSON.stringify(record), like });
          return planted(by, `/weft/v1/join-token/${id}`, value, () => isBelieved(known, token, local));
        },
      })),
    control: async (known, local) =>
      mustBe(
        await isBelieved(known, joinTokenOf(known.tokens.fresh), local),
        "a token that a member made is believed",
      ),
  },
];

type Wanted = {
  readonly by: AsHost;
  readonly kind: SignedKind;
  readonly body: string;
  /** The key of a record that an authority has signed. */
  readonly like: string;
};
type Seal = { readonly label: string; readonly seal: (wanted: Wanted) => string | Promise<string> };

const signedJson = z.looseObject({ body: z.string(), by: z.string(), sig: z.string() });

const seals: readonly Seal[] = [
  { label: "not signed", seal: ({ body }) => body },
  {
    label: "signed in name only",
    seal: ({ by, body }) => JSON.stringify({ body, by: by.known.authority.kid, sig: "AA==" }),
  },
  {
    label: "under another record's signature",
    seal: async (wanted) => JSON.stringify({ ...(await realOf(wanted)), body: wanted.body }),
  },
  { label: "another record under its name", seal: async (wanted) => JSON.stringify(await realOf(wanted)) },
  {
    label: "signed by an authority of its own",
    seal: async ({ kind, body }) => sign(kind, body, createPrivateKey((await otherAuthority()).key)),
  },
  {
    label: "signed by an authority of its own, under the right one's name",
    seal: async ({ by, kind, body }) => {
      const own = sign(kind, body, createPrivateKey((await otherAuthority()).key));
      return JSON.stringify({ ...signedJson.parse(JSON.parse(own)), by: by.known.authority.kid });
    },
  },
  {
    label: "signed by the store's authority",
    seal: ({ by, kind, body }) => sign(kind, body, createPrivateKey(by.known.storeAuthority.key)),
  },
  {
    label: "signed by the host's own key",
    seal: ({ by, kind, body }) => sign(kind, body, createPrivateKey(hostOf(by.known, by.as).identity.key)),
  },
  {
    label: "signed as a host signs",
    seal: ({ by, kind, body }) =>
      signByHost(kind, body, createPrivateKey(hostOf(by.known, by.as).identity.key)),
  },
  {
    label: "signed by the authority as something else",
    seal: ({ by, kind, body }) =>
      sign(kind === "api-token" ? "join-token" : "api-token", body, createPrivateKey(by.known.authority.key)),
  },
];

async function realOf({ by, like }: Wanted): Promise<z.output<typeof signedJson>> {
  return signedJson.parse(JSON.parse((await readKey(by, like)) ?? ""));
}

function times(): { readonly createdAt: string; readonly expiresAt: string; readonly by: string } {
  const now = Date.now();
  const [createdAt, expiresAt] = [now, now + HOUR_MS].map((ms) => new Date(ms).toISOString());
  return { createdAt: createdAt ?? "", expiresAt: expiresAt ?? "", by: "root@h1" };
}

async function planted(
  by: AsHost,
  key: string,
  value: string,
  isAccepted: () => Promise<boolean>,
): Promise<boolean> {
  await writeKey(by, key, value);
  try {
    return await isAccepted();
  } finally {
    await writeKey(by, key, null);
  }
}

async function asked(known: Knowledge, local: string, token: string): Promise<number | null> {
  const { address } = hostOf(known, "h1");
  const text = request("GET", ASKED, null).replace("\r\n", `\r\nauthorization: Bearer ${token}\r\n`);
  return statusOf(await knock({ address, port: 7400, local, tls: {}, send: text }));
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
