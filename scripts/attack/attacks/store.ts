/**
 * The store, written by a host with a valid certificate: trust that it gives itself, tokens of its own making.
 *
 * Every host is an equal client of etcd, so the write succeeds. What counts is whether anybody obeys it; what was there is
 * put back after each try.
 */
import { createPrivateKey, randomBytes, randomUUID } from "node:crypto";

import { z } from "zod";

import { kidOf, readCertificate } from "../../../src/core/wire/certificate.ts";
import { sign } from "../../../src/core/wire/signed.ts";
import { pause } from "../../lib/until.ts";
import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import { isLetIn } from "../doors.ts";
import { forge, otherAuthority } from "../forge.ts";
import { showing } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";
import { type AsHost, readKey, writeKey } from "../store-client.ts";

const TRUST = "/weft/v1/trust";
/** Longer than a watch takes to tell every host, by far. */
const OBEY_MS = 1500;
const POLL_MS = 250;

export const storeAttacks: readonly Attack[] = [
  {
    name: "store-by-a-host",
    door: "7402",
    from: "h3",
    ways: (known) =>
      rivals.map(({ label, make }): Way => ({
        label,
        run: (local) => inTurn(async () => isObeyed(known, local, make)),
      })),
    control: async (known, local) => {
      const signed = await readKey(h3At(known, local), TRUST);
      mustBe(signed !== null && signed.length > 0, "h3 reads the trust list");
    },
  },
];

type Rival = {
  readonly label: string;
  /** What is written where `now` stood; null: the key is deleted. `wanted`: the body that the attacker wishes for. */
  readonly make: (now: string, wanted: TrustBody) => Promise<string | null>;
};

const signedJson = z.looseObject({ body: z.string() });
const trustBody = z.looseObject({
  generation: z.string(),
  nonce: z.string(),
  hosts: z.record(z.string(), z.unknown()),
  authorities: z.array(z.looseObject({})),
});
type TrustBody = z.output<typeof trustBody>;

/** Each of them names the attacker's own key as h3's. */
const rivals: readonly Rival[] = [
  {
    label: "a list without a signature",
    make: async (now, wanted) =>
      JSON.stringify({ ...signedJson.parse(JSON.parse(now)), body: JSON.stringify(wanted), sig: "AA==" }),
  },
  {
    label: "a list under the old signature",
    make: async (now, wanted) =>
      JSON.stringify({ ...signedJson.parse(JSON.parse(now)), body: JSON.stringify(wanted) }),
  },
  {
    label: "a list signed by another authority",
    make: async (_, wanted) => {
      const other = await otherAuthority();
      return sign("trust", JSON.stringify(wanted), createPrivateKey(other.key));
    },
  },
  {
    label: "a list that brings its own authority",
    make: async (_, wanted) => {
      const other = await otherAuthority();
      const certificate = readCertificate(other.pem);
      const kid = certificate === null ? "" : kidOf(certificate.publicKey);
      const own = { kid, pem: other.pem, state: "incoming", since: new Date().toISOString() };
      const body = { ...wanted, authorities: [...wanted.authorities, own] };
      return sign("trust", JSON.stringify(body), createPrivateKey(other.key));
    },
  },
  { label: "no list", make: async () => null },
  { label: "an empty list", make: async () => "" },
  { label: "no JSON", make: async () => "{".repeat(1000) },
  { label: "noise", make: async () => randomBytes(3000).toString("latin1") },
];

function h3At(known: Knowledge, local: string): AsHost {
  return { known, as: "h3", local };
}

/** They all write to the same key. */
let turn: Promise<unknown> = Promise.resolve();

function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const mine = turn.then(work, work);
  turn = mine.catch(() => null);
  return mine;
}

/** Whether h1 lets a key in that only the rival list names. */
async function isObeyed(known: Knowledge, local: string, make: Rival["make"]): Promise<boolean> {
  const now = await readKey(h3At(known, local), TRUST);
  if (now === null) throw new Error("there is no trust list");
  const h3 = hostOf(known, "h3");
  const mine = await forge({
    authority: known.authority,
    names: [{ type: "url", value: `weft://${known.cluster}/host/${h3.id}` }],
  });
  const leaf = readCertificate(mine.cert.slice(0, mine.cert.indexOf("-----END CERTIFICATE-----") + 26));
  if (leaf === null) throw new Error("what was forged can't be read");
  const key = { kid: kidOf(leaf.publicKey), since: new Date().toISOString() };
  const body = trustBody.parse(JSON.parse(signedJson.parse(JSON.parse(now)).body));
  const wanted: TrustBody = {
    ...body,
    generation: String(BigInt(body.generation) + 1n),
    nonce: randomUUID(),
    hosts: {
      ...body.hosts,
      [h3.id]: { name: "h3", address: h3.address, member: true, keys: [key], certs: [], held: [] },
    },
  };
  try {
    await writeKey(h3At(known, local), TRUST, await make(now, wanted));
    const end = performance.now() + OBEY_MS;
    while (performance.now() < end) {
      const { address } = hostOf(known, "h1");
      if (await isLetIn("7401", { address, local, tls: showing(mine) })) return true;
      await pause(POLL_MS);
    }
    return false;
  } finally {
    await writeKey(h3At(known, local), TRUST, now);
  }
}
