/**
 * What the daemon tells of peers at its data port, as lines of the audit.
 *
 * Must always hold: who it was is what the peer says of itself; nothing of it is proven.
 */
import { networkOf } from "../model/gate.ts";
import { whoOf } from "../wire/audit-line.ts";
import type { PeerRefused } from "../wire/daemon.gen.ts";
import type { Audit } from "./audit.ts";

export function auditPeer(
  audit: Pick<Audit, "refused">,
  { address, host, code, reason, unsaid }: PeerRefused,
): Promise<void> {
  const request = {
    id: null,
    who: whoOf({ kind: "nobody", address }),
    from: address,
    what: "the data port",
    target: { host, reason },
  };
  return audit.refused(request, `peer ${networkOf(address)}`, code, 1 + unsaid);
}
