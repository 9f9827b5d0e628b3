/**
 * Plot: agent and daemon judge the same peer by the same list, each in its own language and with its own reader of
 * certificates. The specimens were made and are judged by the daemon's code too: one that is refused there and let in here
 * would be a door.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";
import { z } from "zod";

import { repository } from "../../../scripts/lib/repository.ts";
import { acceptTrust } from "../../../src/core/model/trust.ts";
import { judgeCertificate } from "../../../src/core/wire/certificate.ts";
import { openSigned } from "../../../src/core/wire/signed.ts";
import { parseTrust } from "../../../src/core/wire/trust.ts";
import { testAuthority } from "./authority-for-tests.ts";

const directory = join(repository, "native/weft-io/specimens/peers");
const names = readdirSync(directory).filter((name) => name.endsWith(".json"));

type Body = {
  readonly authorities: readonly { readonly kid: string; readonly pem: string }[];
  readonly hosts: Readonly<Record<string, object>>;
  readonly revoked: Readonly<Record<string, object>>;
};

const specimenJson = z.object({
  chain: z.array(z.string()),
  cluster: z.string(),
  nowMs: z.number(),
  trust: z.looseObject({ body: z.string() }),
  verdict: z.looseObject({ kind: z.string() }),
});

/** The daemon reads no store authorities, no rotation, and of hosts nothing but keys, so its specimens leave away what else
 * there is: put in for our reader. It also leaves revoked hosts listed, which our reader refuses: being revoked weighs more in both. */
const { kid, pem } = await testAuthority("store");
const since = "2026-11-21T00:00:00Z";
const id = "30000000-0000-4000-8000-000000000000";
const storeAuthorities = [{ kid, pem, state: "active", since }];
const rotation = { id, phase: "issue", why: "asked", since };

void t.test("specimens: agent and daemon judge alike", async (t) => {
  t.ok(names.length > 30, "the specimens were found");
  for (const name of names) {
    const specimen = specimenJson.parse(JSON.parse(readFileSync(join(directory, name), "utf8")));
    const body = JSON.parse(specimen.trust.body) as Body;
    const opened = openSigned("trust", JSON.stringify(specimen.trust), body.authorities);
    t.equal(opened.kind, "ok", `${name}: signed in one language, opened in the other`);
    if (opened.kind === "refused") continue;
    const added = body.authorities.length > 1 ? { storeAuthorities, rotation } : { storeAuthorities };
    const hosts = Object.fromEntries(
      Object.entries(body.hosts)
        .filter(([host]) => !(host in body.revoked))
        .map(([host, entry], i) => [host, { ...entry, address: `10.0.9.${i + 11}`, member: false }]),
    );
    const trust = parseTrust(name, JSON.stringify({ ...body, hosts, ...added }));
    t.equal(acceptTrust(null, { trust, ...opened.value }).kind, "ok");
    const [leaf] = specimen.chain;
    const der = leaf === undefined ? undefined : Buffer.from(leaf, "base64");
    const verdict = judgeCertificate(trust, der, specimen.nowMs);
    const { at, ...expected } = specimen.verdict;
    t.strictSame(
      verdict,
      at === undefined ? expected : { ...expected, atMs: Date.parse(z.string().parse(at)) },
      name,
    );
  }
});
