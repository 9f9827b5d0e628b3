/**
 * What the device-config of an SR asks for: read whole, and refused whole, before anything is made.
 *
 * Must always hold: all that is wrong is told at once, with what would be right.
 */
import { type Finding, finding } from "../../core/model/finding.ts";
import { readWishes, type SetupWords } from "../../core/model/setup-facts.ts";
import { noNetwork } from "../../core/model/setup-plan.ts";
import { findingsText } from "../../core/model/setup-text.ts";
import type { StatusAnswer } from "../../core/wire/agent-api.ts";
import { type SmContext, type Texts, shown } from "../call.ts";
import { faultCodes, SmFault } from "../faults.ts";
import type { XapiPool } from "./pool-records.ts";

/** `SRmaster` is XAPI's own. */
const KEYS: ReadonlySet<string> = new Set(["copies", "datapath", "disks", "network"]);

const NOTHING_DONE = { safe: "Nothing was changed on any host." };

export function wordsOf(deviceConfig: Texts): SetupWords {
  return {
    disks: deviceConfig.get("disks") ?? null,
    copies: deviceConfig.get("copies") ?? null,
    network: deviceConfig.get("network") ?? null,
  };
}

/** Null: not said. Of a device-config that was not refused. */
export function copiesOf(deviceConfig: Texts): number | null {
  return readWishes({ ...wordsOf(deviceConfig), disks: null }, []).copies;
}

/** What is wrong whatever the pool is. */
export function keyFindings({
  call,
  refusedDatapath,
}: Pick<SmContext, "call" | "refusedDatapath">): readonly Finding[] {
  const known = Array.from(KEYS).join(", ");
  const unknown = Array.from(call.deviceConfig.keys()).filter((key) => !KEYS.has(key));
  return [
    ...unknown.map((key) =>
      finding("E-ARG-02", `The device-config has no key "${shown(key)}". It has: ${known}.`, NOTHING_DONE),
    ),
    ...(refusedDatapath === null ? [] : [finding("E-ARG-02", refusedDatapath.message, NOTHING_DONE)]),
  ];
}

/** Words that can't be understood whatever hosts there are. */
export function wordFindings(words: SetupWords): readonly Finding[] {
  return readWishes({ ...words, disks: null }, []).unread.map(({ finding: one }) => one);
}

/** What keeps an SR from being registered in the cluster that is there. `pool`: asked for only where a network is named. */
export async function registrationFindings(
  words: SetupWords,
  status: StatusAnswer & { readonly kind: "cluster" },
  pool: () => Promise<XapiPool>,
): Promise<readonly Finding[]> {
  const { copies, network } = readWishes({ ...words, disks: null }, []);
  const findings = [...wordFindings(words)];
  const isThere = async (id: string): Promise<boolean> =>
    (await pool()).hosts.some((host) => host.networks.some((one) => one.id === id));
  if (network !== null && !(await isThere(network))) findings.push(noNetwork(network));
  const hosts = new Set(status.pools.map(({ host }) => host)).size;
  if (copies !== null && hosts < copies)
    findings.push(
      finding(
        "E-SETUP-04",
        `${copies} copies of each disk want as many hosts with a pool, and ${hosts} ${hosts === 1 ? "has" : "have"} one.`,
        {
          ...NOTHING_DONE,
          do: [
            { why: "Add a disk on another host", command: "weft pool add /dev/DISK" },
            ...(hosts === 0
              ? []
              : [{ why: "Or ask for fewer", command: `xe sr-create … device-config:copies=${hosts}` }]),
          ],
        },
      ),
    );
  return findings;
}

/** Refuses where there is one: 143 where words were not understood, else 115. */
export function refuseFor(findings: readonly Finding[]): void {
  if (findings.length === 0) return;
  const isWords = findings.some(({ code }) => code.startsWith("E-ARG-") || code === "E-VOL-08");
  throw new SmFault(
    isWords ? faultCodes.badRequest : faultCodes.configParamsMissing,
    findingsText(findings),
    "the same, with a plan that is shown first: weft init --plan",
  );
}
