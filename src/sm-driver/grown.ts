/**
 * A disk has grown under its guest: the guest's device learns it, on whichever host that is.
 *
 *     vdi_resize on the master ─▶ the volume grows, XAPI's record says so ─▶ plug-in `resized` on the guest's host ─▶ its device
 *
 * Must always hold: the disk has grown whatever becomes of this. A device that could not be told is a fault that names its host,
 * and the same resize again tells it.
 */
import { isWeftError, reasonOf } from "../core/wire/errors.ts";
import type { VdiUsersAnswer } from "../core/wire/sr-api.ts";
import { type SmContext, srOf, vdiOf } from "./call.ts";
import type { Datapath, DatapathVdi } from "./datapath/datapath.ts";
import { faultCodes, SmFault } from "./faults.ts";
import { callPlugin } from "./setup/pool-records.ts";
import { hostsByLiveness } from "./xapi-records.ts";

/** The plug-in's function. */
export const RESIZED = "resized";
/** Of the device-config: which datapath it is. */
const DATAPATH_KEY = "datapath";

/** `size` in bytes. */
export async function tellDevices(context: SmContext, size: bigint): Promise<void> {
  const { call, agent, datapath } = context;
  const disk = { sr: srOf(call).uuid, vdi: vdiOf(call).uuid };
  const isHere = await tellDevice(datapath, disk, size);
  // Active on one host at a time: what is active here is open nowhere else.
  if (isHere) return;
  const { users } = await agent.vdiUsers(disk.vdi);
  if (users.length === 0) return;
  const hosts = await hostsByLiveness(context.xapi);
  for (const user of users) {
    const host = hosts.find(({ uuid }) => uuid === user.xapiHost);
    if (host === undefined) throw untold(user, size, "XAPI doesn't know by which name it has that host");
    // Open here, and not by XAPI: nobody's device waits for it.
    if (host.ref === call.hostRef) continue;
    await tellHost(context, { disk, size, user, hostRef: host.ref });
  }
}

async function tellHost(
  { call, xapi }: SmContext,
  {
    disk: { sr, vdi },
    size,
    user,
    hostRef,
  }: {
    readonly disk: DatapathVdi;
    readonly size: bigint;
    readonly user: VdiUsersAnswer["users"][number];
    readonly hostRef: string;
  },
): Promise<void> {
  const kind = call.deviceConfig.get(DATAPATH_KEY);
  const config = kind === undefined ? {} : { [DATAPATH_KEY]: kind };
  try {
    await callPlugin(xapi, hostRef, RESIZED, { sr, vdi, size: String(size), ...config });
  } catch (error) {
    if (error instanceof SmFault || isWeftError(error)) throw untold(user, size, reasonOf(error));
    throw error;
  }
}

function untold({ host: { name } }: VdiUsersAnswer["users"][number], size: bigint, why: string): SmFault {
  return new SmFault(
    faultCodes.vdiResize,
    `The disk has ${size} bytes now; its guest on ${name} doesn't see them yet: ${why}`,
    `the same resize again tells it, once weft and XAPI run on ${name}; so does a restart of the VM`,
  );
}

/** What the plug-in's function does on the guest's host. */
export async function resized(
  datapathOf: (deviceConfig: ReadonlyMap<string, string>) => Datapath,
  disk: DatapathVdi & { readonly size: bigint },
  args: ReadonlyMap<string, string>,
): Promise<string> {
  const kind = args.get(DATAPATH_KEY);
  const config = new Map(kind === undefined ? [] : [[DATAPATH_KEY, kind]]);
  return String(await tellDevice(datapathOf(config), disk, disk.size));
}

/** False: it has none here. */
async function tellDevice(datapath: Datapath, { sr, vdi }: DatapathVdi, size: bigint): Promise<boolean> {
  const users = await datapath.users();
  if (!users.some((user) => user.vdi === vdi)) return false;
  await datapath.resized({ sr, vdi }, size);
  return true;
}
