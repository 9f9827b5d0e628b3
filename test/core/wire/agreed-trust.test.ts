/**
 * Plot: a host was off while another one was revoked that holds the authority's key. What others say when it is back is a
 * forged list, the true one, or that there is none, from as many as happen to answer.
 */
import { createPrivateKey, randomUUID } from "node:crypto";
import t from "tap";

import type { HostId } from "../../../src/core/model/ids.ts";
import { parseHostId } from "../../../src/core/model/ids.ts";
import { type Authority, revokeHost, type Trust } from "../../../src/core/model/trust.ts";
import { agreedTrust } from "../../../src/core/wire/agreed-trust.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { sign } from "../../../src/core/wire/signed.ts";
import { renderTrust } from "../../../src/core/wire/trust.ts";
import { type AuthorityKeys, makeAuthority } from "../../../src/core/wire/x509-make.ts";

const cluster = randomUUID();
const nowMs = Date.now();

function newHost(): HostId {
  return parseHostId(randomUUID()) ?? fail();
}

function fail(): never {
  throw new Error("a host's identifier");
}

const signed = (trust: Trust, { keyPem }: AuthorityKeys): string =>
  sign("trust", renderTrust(trust, null), createPrivateKey(keyPem.reveal()));
const named = ({ kid, pem }: AuthorityKeys, state: Authority["state"] = "active"): Authority => ({
  kid,
  pem,
  state,
  sinceMs: nowMs,
});
const authority = (kind: "host" | "store") => makeAuthority({ kind, cluster, nowMs });

const [first, second, third] = [await authority("host"), await authority("host"), await authority("host")];
const [firstStore, secondStore, thirdStore] = [
  await authority("store"),
  await authority("store"),
  await authority("store"),
];
/** `h` is the one that comes back, `m` the one that was revoked. */
const [a, b, m, h, s] = [newHost(), newHost(), newHost(), newHost(), newHost()];

const before: Trust = {
  cluster,
  generation: 2n,
  nonce: randomUUID(),
  transport: "tls",
  authorities: [named(first)],
  storeAuthorities: [named(firstStore)],
  hosts: new Map(
    [a, b, m, h, s].map((id, i) => [
      id,
      {
        name: `h${i}`,
        address: `10.0.0.${i}`,
        member: i < 3,
        keys: [{ kid: String(i).repeat(64), sinceMs: nowMs }],
        certs: [],
        held: i < 3 ? [first.kid, firstStore.kid] : [],
      },
    ]),
  ),
  revoked: new Map(),
  rotation: null,
};
const begun = openFirstTrust(signed(before, first));
if (begun.kind === "refused") throw new Error(begun.finding.message);
const known = begun.value;

function without(trust: Trust, host: HostId, next: AuthorityKeys, store: AuthorityKeys): Trust {
  const gone = revokeHost(trust, {
    host,
    by: "root",
    nowMs,
    replacement: { id: randomUUID(), authority: named(next), storeAuthority: named(store) },
    nonce: randomUUID(),
  });
  if (gone.kind === "refused") throw new Error(gone.finding.message);
  return gone.value;
}

const later = (trust: Trust, generation: bigint): Trust => ({ ...trust, generation, nonce: randomUUID() });
const revoking = without(before, m, second, secondStore);
const link = signed(revoking, first);
const after = signed(later(revoking, 4n), second);
/** Its other authority ends, and a third one takes over. */
const settled = {
  ...later(revoking, 5n),
  authorities: [named(second)],
  rotation: null,
};
const settledText = signed(settled, second);
const rotated = without(settled, s, third, thirdStore);
const rotatedText = signed(rotated, second);
const forged = (generation: bigint): string => signed(later(before, generation), first);
/** By who was revoked: it revokes the others. */
const coup = signed(later(without(before, a, third, thirdStore), 60n), first);

type Voters = readonly (HostId | null)[];
type Word = readonly [HostId, ...string[]];
const agree = (voters: Voters, ...said: readonly Word[]) => agreeAfter(false, voters, said);
const agreeAfter = (isRecent: boolean, voters: Voters, said: readonly Word[]) => {
  const agreed = agreedTrust(
    known,
    said.map(([host, ...texts]) => ({ host, texts })),
    { self: h, voters, isRecent },
  );
  if (agreed.kind !== "agreed") return agreed.kind;
  return agreed.newest === null ? "known" : (said[agreed.newest]?.at(-1) ?? "nothing");
};

void t.test(
  "agreed trust: one alone is not believed, whatever it says, nor is a list beside others",
  async (t) => {
    const voters = [a, b, m];
    t.equal(agree(voters), "too-few");
    t.equal(agree(voters, [m]), "too-few", "that nothing has changed");
    t.equal(agree(voters, [m, forged(50n)]), "too-few");
    t.equal(agree(voters, [m, coup]), "too-few");
    const one = forged(50n);
    t.equal(
      agree(voters, [m, one], [m, one], [h, one]),
      "too-few",
      "each host once, and nobody for this one",
    );
    t.equal(agree(voters, [a, link, after], [m, forged(50n)]), "forked");
    t.equal(agree(voters, [a, link, after], [m, coup]), "forked");
    t.equal(
      agree(voters, [a, "{}"], [b, "{}"]),
      "too-few",
      "what leads nowhere is no word for what is known",
    );
    t.equal(agree(voters, [a, after], [b, after]), "too-few", "nor is a list without those that lead to it");
  },
);

void t.test(
  "agreed trust: a majority of those that this host knew is believed, also beside a forged list",
  async (t) => {
    const voters = [a, b, m];
    t.equal(agree(voters, [a], [b]), "known");
    t.equal(agree(voters, [a, link, after], [b, link, after]), after);
    t.equal(agree(voters, [b, link], [a, link, after]), after, "one is a step behind on the same way");
    t.equal(agree(voters, [a, link, after], [b, link, after], [m, forged(1000n)]), after);
    t.equal(agree(voters, [m, coup], [b, link, after], [a, link]), after);
    const twice = [link, settledText, rotatedText] as const;
    t.equal(agree(voters, [a, ...twice], [b, ...twice]), rotatedText, "two authorities took over meanwhile");
  },
);

void t.test(
  "agreed trust: who was off as well does not speak against the one that knows better",
  async (t) => {
    const voters = [a, b, m];
    t.equal(agree(voters, [a, link, after], [b], [m]), "too-few", "nor for it");
    t.equal(agree(voters, [m, coup], [a], [b]), "too-few");
  },
);

void t.test("agreed trust: it counts itself, so that what makes a store makes a majority", async (t) => {
  t.equal(agree([h]), "known", "the only vote");
  t.equal(agree([a], [a]), "known", "the other one has the only vote");
  t.equal(agree([a]), "too-few");
  const soon = (...said: readonly Word[]) => agreeAfter(true, [h, a, m], said);
  t.equal(soon([a]), "known");
  t.equal(soon([a, link, after]), after, "the third one was revoked");
  t.equal(soon(), "too-few");
  const words: readonly Word[] = [
    [a, link, after],
    [m, forged(50n)],
  ];
  t.equal(soon(...words), "forked", "but not to tell two from each other");
});

void t.test("agreed trust: after a long time somebody else may have its vote", async (t) => {
  const voters = [h, a, m];
  t.equal(agree(voters, [m]), "too-few", "two of five hosts, the other one perhaps revoked");
  t.equal(agree(voters, [m, coup]), "too-few");
  t.equal(agree(voters, [m], [s]), "known", "three of five");
  t.equal(agree(voters, [m], [s, link, after]), "too-few", "the one that has its vote knows better");
  t.equal(agree(voters, [m], [a]), "known", "two voters without it");
});

void t.test(
  "agreed trust: where voters are gone, a majority of all other hosts of the list says the same",
  async (t) => {
    const voters = [a, null, null];
    const told = [link, after] as const;
    t.equal(agree(voters, [a, ...told], [b, ...told]), "too-few", "two of five");
    t.equal(agree(voters, [a, ...told], [b, ...told], [s, ...told]), after);
  },
);

void t.test("agreed trust: a change that was announced is no other authority's", async (t) => {
  const announced: Trust = {
    ...later(before, 3n),
    authorities: [named(first), named(second, "incoming")],
    storeAuthorities: [named(firstStore), named(secondStore, "incoming")],
    rotation: { id: randomUUID(), phase: "bundle", why: "asked", sinceMs: nowMs, without: [] },
  };
  const switched: Trust = {
    ...later(announced, 4n),
    authorities: [named(second), named(first, "outgoing")],
    storeAuthorities: [named(secondStore), named(firstStore, "outgoing")],
    rotation: { id: randomUUID(), phase: "issue", why: "asked", sinceMs: nowMs, without: [] },
  };
  const [one, two] = [signed(announced, first), signed(switched, first)];
  t.equal(agree([a, b, m], [a, one, two], [b, one]), two, "who has heard of it speaks for who has done it");
  t.equal(agree([a, b, m], [a, one, two], [b]), "too-few");
});
