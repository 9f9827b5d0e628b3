/**
 * A snapshot from which on all that the guest writes goes to a second place too: so XAPI begins to move a running VM's disk away,
 * and so it gives up.
 *
 *     vdi_snapshot on the master, mirror=nbd:NAME ─▶ plug-in `mirror-snapshot` on the guest's host ─▶ its tapdisk (datapath/mirror.ts)
 *
 * Must always hold: no write lies between the snapshot and the mirror, nor in neither of them; where that can't be the snapshot fails, and
 * the guest goes on.
 */
import type { AgentClient } from "../core/wire/agent-client.ts";
import { reasonOf } from "../core/wire/errors.ts";
import type { VdiAnswer, VdiUsersAnswer } from "../core/wire/sr-api.ts";
import { shown, type SmCall, type SmContext, srOf, vdiOf } from "./call.ts";
import type { Datapath, DatapathVdi } from "./datapath/datapath.ts";
import { NO_MIRROR } from "./datapath/mirror.ts";
import { badRequest, faultCodes, SmFault } from "./faults.ts";
import { callPlugin } from "./setup/pool-records.ts";
import { hostsByLiveness } from "./xapi-records.ts";

/** The plug-in's function. */
export const MIRROR_SNAPSHOT = "mirror-snapshot";
const MIRROR = "mirror";
const DATAPATH_KEY = "datapath";
/** A snapshot has 20 s, and its tapdisk a pause before and one after. */
const PLUGIN_MS = 55_000;
/** XAPI's name of what it handed to the tapdisk: no path, and no address to connect to. */
const NAME = /^nbd:[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}$/;

/** `nbd:NAME`, `null`, or null: the call has none. */
export function mirrorOf({ command, driverParams }: SmCall): string | null {
  const mirror = driverParams.get(MIRROR);
  if (mirror === undefined || mirror === NO_MIRROR || NAME.test(mirror)) return mirror ?? null;
  throw badRequest(`${command}: the mirror "${shown(mirror)}" is neither nbd:NAME nor null`);
}

/** A snapshot of the disk, by this UUID, from which on the guest's writes are mirrored. */
export async function snapshotMirrored(
  context: SmContext,
  snapshot: string,
  mirror: string,
): Promise<VdiAnswer> {
  const { call, agent, datapath, xapi } = context;
  const disk = { sr: srOf(call).uuid, vdi: vdiOf(call).uuid };
  const take = (): Promise<VdiAnswer> => agent.snapshotVdi(disk.vdi, { uuid: snapshot });
  if (await isHere(datapath, disk)) return datapath.mirrored(disk, mirror, take);
  const { users } = await agent.vdiUsers(disk.vdi);
  const [user] = users;
  if (user === undefined && mirror === NO_MIRROR) return take();
  if (user === undefined) throw notMirrored(disk, "no host has it active");
  const host = (await hostsByLiveness(xapi)).find(({ uuid }) => uuid === user.xapiHost);
  if (host === undefined) throw notMirrored(disk, `XAPI doesn't know by which name it has ${user.host.name}`);
  // Open here, and for no guest: there is nothing to mirror.
  if (host.ref === call.hostRef) throw notMirrored(disk, `no tapdisk of ${user.host.name} has it`);
  await askHost(context, { disk, snapshot, mirror, user, hostRef: host.ref });
  // It is there: this tells what it is.
  return take();
}

async function askHost(
  { call, xapi }: SmContext,
  {
    disk: { sr, vdi },
    snapshot,
    mirror,
    user,
    hostRef,
  }: {
    readonly disk: DatapathVdi;
    readonly snapshot: string;
    readonly mirror: string;
    readonly user: VdiUsersAnswer["users"][number];
    readonly hostRef: string;
  },
): Promise<void> {
  const kind = call.deviceConfig.get(DATAPATH_KEY);
  const config = kind === undefined ? {} : { [DATAPATH_KEY]: kind };
  try {
    const args = { sr, vdi, snapshot, mirror, ...config };
    await callPlugin(xapi.patient(PLUGIN_MS), hostRef, MIRROR_SNAPSHOT, args);
  } catch (error) {
    if (error instanceof SmFault)
      throw notMirrored({ sr, vdi }, `${user.host.name} says: ${reasonOf(error)}`, error);
    throw error;
  }
}

function notMirrored({ vdi }: DatapathVdi, why: string, cause?: unknown): SmFault {
  return new SmFault(
    faultCodes.vdiSnapshot,
    `The writes of the guest on ${vdi} can't be mirrored: ${why}.`,
    "the guest goes on; migrate the VM again, or while it is halted",
    cause,
  );
}

/** What the plug-in's function does on the guest's host. */
export async function mirrorSnapshot(
  { agent, datapath }: { readonly agent: AgentClient; readonly datapath: Datapath },
  { snapshot, mirror, ...disk }: DatapathVdi & { readonly snapshot: string; readonly mirror: string },
): Promise<string> {
  if (mirror !== NO_MIRROR && !NAME.test(mirror)) throw badRequest("mirror is nbd:NAME, or null");
  await datapath.mirrored(disk, mirror, () => agent.snapshotVdi(disk.vdi, { uuid: snapshot }));
  return "true";
}

async function isHere(datapath: Datapath, { vdi }: DatapathVdi): Promise<boolean> {
  // One that reads the disk here is not the guest that writes to it, which may be on another host.
  return (await datapath.users()).some((user) => user.vdi === vdi && user.writes);
}
