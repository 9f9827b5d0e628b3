/** A host without tapdisk: nothing can be activated, and all is ended already. */
import { faultCodes, SmFault } from "../faults.ts";
import type { Datapath } from "./datapath.ts";

async function refuse(): Promise<never> {
  throw new SmFault(
    faultCodes.tapdiskFailed,
    "This host has no way from a volume to a guest's disk.",
    "is it a host of XCP-ng, with tapdisk?",
  );
}

async function done(): Promise<void> {
  return undefined;
}

export const noDatapath: Datapath = {
  attach: refuse,
  activate: refuse,
  deactivate: done,
  detach: done,
  mirrored: refuse,
  resized: async () => true,
  pause: done,
  unpause: done,
  users: async () => [],
};
