/**
 * What can be refused before weftd is asked: attach, detach and delete, by what the store says.
 *
 * Must always hold:
 * - a refusal rests on the record, never on who seems alive: weftd asks the copies themselves (protocol.md R16);
 * - whatever passes here can still be refused by weftd, whose swap decides.
 */
import { hostName } from "./cluster.ts";
import type { Cluster } from "./cluster.ts";
import type { Decision, Finding } from "./finding.ts";
import { finding, ok, refused } from "./finding.ts";
import type { HostId } from "./ids.ts";
import { ATTACHED_PER_HOST_MAX } from "./limits.ts";
import type { VolumeRecord, Want } from "./volume-record.ts";

type Known = {
  readonly want: Want;
  readonly record: VolumeRecord | null;
  readonly cluster: Cluster;
  /** The owner is a session without a guest: it makes way. */
  readonly ownerIsCaretaker: boolean;
};

export type AttachInput = Known & {
  readonly here: HostId;
  /** Sessions with a guest on this host. */
  readonly attachedHere: number;
  readonly steal: boolean;
};

export function checkAttach(input: AttachInput): Decision<null> {
  const { want, record, cluster, here } = input;
  const notThere = checkThere(input);
  if (notThere !== null) return refused(notThere);
  const owner = record?.owner ?? null;
  const isOpen = owner !== null && !input.ownerIsCaretaker;
  if (isOpen && owner.host === here) return ok(null);
  if (isOpen && !input.steal) return refused(openFinding(want, cluster, owner.host, "Not attached."));
  if (input.attachedHere >= ATTACHED_PER_HOST_MAX) {
    return refused(
      finding(
        "E-VOL-04",
        `${input.attachedHere} volumes are attached on ${hostName(cluster, here)}, the limit. Not attached.`,
        {
          facts: { host: here, limit: ATTACHED_PER_HOST_MAX },
        },
      ),
    );
  }
  return ok(null);
}

export function checkDelete(input: Known): Decision<null> {
  const { want, record, cluster } = input;
  const notThere = checkThere(input);
  // A volume that is still being made can be given up.
  if (notThere !== null && notThere.code !== "E-VOL-14") return refused(notThere);
  const owner = record?.owner ?? null;
  if (owner === null || input.ownerIsCaretaker) return ok(null);
  return refused(openFinding(want, cluster, owner.host, "Not deleted."));
}

export function checkDetach({
  want,
  record,
  cluster,
  here,
}: Known & { readonly here: HostId }): Decision<null> {
  const owner = record?.owner ?? null;
  if (owner?.host === here) return ok(null);
  const where = owner === null ? "It is not open anywhere" : `It is open on ${hostName(cluster, owner.host)}`;
  return refused(
    finding("E-VOL-13", `"${want.name}" is not attached on ${hostName(cluster, here)}. ${where}.`, {
      facts: { volume: want.volume, host: here },
    }),
  );
}

function checkThere({ want, record }: Known): Finding | null {
  if (want.deletedAtMs !== null || (record !== null && record.deletedAtMs !== null)) {
    return finding("E-VOL-11", `"${want.name}" is in the trash.`, {
      facts: { volume: want.volume },
      do: [{ why: "Bring it back", command: `weft trash restore ${want.name}` }],
    });
  }
  if (record !== null) return null;
  return finding("E-VOL-14", `"${want.name}" is still being made.`, {
    facts: { volume: want.volume },
    do: [{ why: "See how far it is", command: `weft volume show ${want.name}` }],
  });
}

function openFinding(want: Want, cluster: Cluster, host: HostId, verdict: string): Finding {
  const name = hostName(cluster, host);
  return finding("E-VOL-12", `"${want.name}" is open on ${name}. ${verdict}`, {
    facts: { volume: want.volume, host },
    safe: "Its session there is not disturbed.",
    do: [
      { why: `Detach it, on ${name}`, command: `weft detach ${want.name}` },
      { why: `Or, when ${name} is dead`, command: `weft steal ${want.name}` },
    ],
  });
}
