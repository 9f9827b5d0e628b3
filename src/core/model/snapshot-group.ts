/**
 * Snapshots of several volumes at one moment (scenario D19): all of them or none.
 *
 * Must always hold:
 * - one weftd holds the writes of all: guests of several hosts can't be held at one moment (E-SNAP-14);
 * - each volume stands in a group once, and afterwards each snapshot is one as every other.
 */
import { type Cluster, hostName } from "./cluster.ts";
import { type Decision, finding, ok, refused } from "./finding.ts";
import type { HostId } from "./ids.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

export type GroupMember = {
  readonly want: Want;
  readonly record: VolumeRecord;
  /** Its owner has no guest: any host may take it over for a while. */
  readonly ownerIsCaretaker: boolean;
};

/**
 * The host whose weftd does it: where the guests are; `self` where there are none. E-SNAP-14 where they are on several hosts,
 * E-ARG-02 for a volume that is named twice.
 */
export function groupHost(members: readonly GroupMember[], cluster: Cluster, self: HostId): Decision<HostId> {
  const twice = members.find(
    ({ want }, i) => members.findIndex((other) => other.want.volume === want.volume) < i,
  );
  if (twice !== undefined)
    return refused(
      finding("E-ARG-02", `"${twice.want.name}" is named twice.`, {
        facts: { volume: twice.want.volume },
        safe: "Nothing was done.",
      }),
    );
  const open = members.flatMap(({ want, record: { owner }, ownerIsCaretaker }) =>
    owner === null || ownerIsCaretaker ? [] : [{ name: want.name, host: owner.host }],
  );
  const hosts = [...new Set(open.map(({ host }) => host))];
  const [first = self, ...others] = hosts;
  if (others.length === 0) return ok(first);
  const where = hosts.map((host) => {
    const names = open.filter((one) => one.host === host).map(({ name }) => `"${name}"`);
    return `${names.join(", ")} on ${hostName(cluster, host)}`;
  });
  return refused(
    finding(
      "E-SNAP-14",
      `Guests of several hosts can't be held at one moment: ${where.join("; ")}. No snapshot was taken.`,
      {
        facts: { hosts: hosts.map((host) => hostName(cluster, host)).join(" ") },
        safe: "Guests go on as before.",
        do: [
          { why: "Those of one host together", command: "weft snapshot create --group VOLUME,VOLUME NAME" },
          { why: "Or each by itself", command: "weft snapshot create VOLUME@NAME" },
        ],
      },
    ),
  );
}
