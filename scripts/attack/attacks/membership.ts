/**
 * A host that is no member of the store says that it is one, by what every host may write: its own key in the store, and
 * etcd's list of members. What it wants are the authority's keys. What it changed is put back after each try.
 */
import { z } from "zod";

import { isWeftError } from "../../../src/core/wire/errors.ts";
import { HostClient } from "../../../src/core/wire/host-client.ts";
import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import { pause } from "../../lib/until.ts";
import type { Attack, Way } from "../attack.ts";
import { mustBe } from "../attack.ts";
import { hostOf } from "../knowledge.ts";
import { type AsHost, askStore, readKey, writeKey } from "../store-client.ts";

const MEMBERS = ["h1", "h2", "h3"] as const;
/** None of the three. */
const THIEF = "h4";

export const membershipAttacks: readonly Attack[] = [
  {
    name: "membership-by-a-host",
    door: "7400",
    from: THIEF,
    // Whoever takes a member out again says so there.
    changes: /^\/weft\/v1\/voters$/,
    atOnce: 1,
    ways: (known) =>
      MEMBERS.flatMap((asked) =>
        claims.map(({ label, claim }): Way => ({
          label: `${label}, asks ${asked}`,
          run: async (local) => {
            const by = { known, as: THIEF, local };
            const undo = await claim(by);
            try {
              return (await askForKeys(by, asked)) === null;
            } finally {
              await undo();
            }
          },
        })),
      ),
    control: async (known, local) => {
      const code = await askForKeys({ known, as: "h2", local }, "h1");
      mustBe(code === null, `a member is given the keys (${code ?? ""})`);
    },
  },
];

type Claim = {
  readonly label: string;
  /** Gives back what undoes it. */
  readonly claim: (by: AsHost) => Promise<() => Promise<void>>;
};

const claims: readonly Claim[] = [
  { label: "it says nothing", claim: async () => async () => {} },
  ...MEMBERS.map((name): Claim => ({
    label: `its key says the address of ${name}`,
    claim: (by) => hasAddress(by, hostOf(by.known, name).address),
  })),
  { label: "etcd has it as a learner", claim: (by) => added(by, { isLearner: true }) },
  { label: "etcd has it as a voter", claim: (by) => added(by, {}) },
  {
    label: "both at once",
    claim: async (by) => {
      const undo = [
        await added(by, { isLearner: true }),
        await hasAddress(by, hostOf(by.known, "h2").address),
      ];
      return async () => {
        for (const one of undo.toReversed()) await one();
      };
    },
  },
];

const hostJson = z.looseObject({ id: z.string(), address: z.string() });
const membersJson = z.object({
  members: z.array(z.object({ ID: z.string(), peerURLs: z.array(z.string()).default([]) })),
});

async function hasAddress(by: AsHost, address: string): Promise<() => Promise<void>> {
  const key = `/weft/v1/host/${hostOf(by.known, by.as).id}`;
  const before = await readKey(by, key);
  if (before === null) throw new Error(`${by.as} has no key in the store`);
  await writeKey(by, key, JSON.stringify({ ...hostJson.parse(JSON.parse(before)), address }));
  return () => writeKey(by, key, before);
}

/** Undone by the cluster itself, as a rule: nobody named it. */
async function added(by: AsHost, rest: { readonly isLearner?: true }): Promise<() => Promise<void>> {
  const url = `https://${hostOf(by.known, by.as).address}:7403`;
  const add = (): Promise<unknown> => askStore(by, "/v3/cluster/member/add", { peerURLs: [url], ...rest });
  await add().catch(async (error: unknown) => {
    // etcd calls a member by its address and the second: within one, what was removed can't be added again.
    if (!String(error).includes("member not found")) throw error;
    await pause(1000);
    await add();
  });
  return async () => {
    const { members } = membersJson.parse(await askStore(by, "/v3/cluster/member/list", {}));
    const own = members.find(({ peerURLs }) => peerURLs.includes(url));
    if (own === undefined) return;
    await askStore(by, "/v3/cluster/member/remove", { ID: own.ID }).catch((error: unknown) => {
      // Somebody was faster.
      if (!String(error).includes("not found")) throw error;
    });
  };
}

/** Null: the keys came. Else the code of the refusal. */
async function askForKeys(by: AsHost, member: string): Promise<string | null> {
  const opened = openFirstTrust((await readKey(by, "/weft/v1/trust")) ?? "");
  if (opened.kind === "refused") throw new Error(opened.finding.message);
  const { trust } = opened.value;
  const { address } = hostOf(by.known, member);
  const shown = hostOf(by.known, by.as).identity;
  const client = new HostClient({
    address,
    from: by.local,
    shown,
    expect: { kind: "host", trust, host: null },
  });
  try {
    const { authorities } = (await client.credentials()).answer;
    return authorities.length > 0 ? null : "none";
  } catch (error) {
    // Anything else is no refusal of this: then the attack is broken.
    if (!isWeftError(error, "E-CA-07")) throw error;
    return error.code;
  }
}
