/** Pools and disks of this host: asked of its weftd, shown to the cluster by keys. */
import type { z } from "zod";

import { type Disk, judgeDisk, nameOfContent } from "../model/disk.ts";
import type {
  DiskAnswer,
  DiskWipeAnswer,
  diskWipeRequest,
  PoolAnswer,
  poolCreateRequest,
} from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import { keys } from "../wire/store-keys.ts";
import type { MemberContext } from "./context.ts";
import { blockDeviceAt, deviceAt } from "./disks.ts";
import { findPool } from "./find.ts";
import { poolAnswers } from "./status.ts";
import { hostName } from "../model/cluster.ts";

const SHOWN_MS = 15_000;

/** Returns when the pool's room stands in the store: from then on any host can place copies there. */
export async function createPool(
  context: MemberContext,
  { path, kind }: z.output<typeof poolCreateRequest>,
): Promise<PoolAnswer> {
  const { daemon, mirror, devices } = context;
  if (kind === "zfs") throw noZfs();
  const device = await deviceMeant(path, kind);
  const made =
    device === null
      ? await daemon.client.call("pool.create", { path })
      : await devices.add(device, kind === "lvm-thin" ? kind : "xfs");
  await daemon.publishPools();
  return mirror.until(`The pool ${path}`, SHOWN_MS, () => {
    const found = poolAnswers(context).find(({ id }) => id === made.pool);
    return found !== undefined && isSettled(found) ? found : null;
  });
}

/** A device is meant where there is one, and where only one can be: never a directory is made then. */
async function deviceMeant(path: string, kind: "dir" | "xfs" | "lvm-thin" | null): Promise<string | null> {
  const isOfDevices = path.startsWith("/dev/") && !path.startsWith("/dev/shm/");
  if (kind === "xfs" || kind === "lvm-thin" || (kind === null && isOfDevices)) return deviceAt(path);
  const device = await blockDeviceAt(path);
  if (device === null || kind === null) return device;
  throw new WeftError({
    code: "E-ARG-02",
    message: `${path} is a device, not a directory.`,
    facts: { path },
    safe: "Nothing was changed.",
    do: [{ why: "Make a pool of the whole device", command: `weft pool add ${path}` }],
  });
}

function noZfs(): WeftError {
  return new WeftError({
    code: "E-POOL-08",
    message: "Pools on ZFS are not offered: nobody has tested them yet.",
    safe: "Nothing was changed.",
    do: [
      { why: "Make one on a blank disk, with XFS", command: "weft pool add /dev/DISK" },
      { why: "Or of an empty directory on ext4, XFS or btrfs", command: "weft pool add DIRECTORY" },
    ],
  });
}

/** It serves and its room is known, or it can't serve and says why. */
function isSettled({ state, total }: PoolAnswer): boolean {
  if (state === "serving") return total !== null && total > 0n;
  return state === "quarantined" || state === "failed";
}

export async function removePool(context: MemberContext, ref: string): Promise<void> {
  const { devices, mirror, store, host, view } = context;
  await mirror.sync();
  const pool = findPool(mirror, ref);
  if (pool.node !== host) {
    const where = hostName(view.cluster(), pool.node);
    throw new WeftError({
      code: "E-POOL-04",
      message: `The pool ${pool.id} is on ${where}; only its own host can remove it.`,
      facts: { pool: pool.id, host: where },
      safe: "Nothing was changed.",
      do: [{ why: `On ${where}`, command: `weft pool remove ${pool.id}` }],
    });
  }
  await devices.remove(pool.id);
  await store.delete(keys.poolUsage(pool.id));
}

/** Those of this host. */
export async function listDisks(
  { devices, self }: MemberContext,
  device: string | null,
): Promise<DiskAnswer[]> {
  return (await devices.list(device)).map((disk) => diskAnswer(disk, self.name));
}

/** E-DISK-08 where another host is meant: only its own agent knows what is there. */
export async function wipeDisk(
  { devices, self }: MemberContext,
  { device, host, name }: z.output<typeof diskWipeRequest>,
): Promise<DiskWipeAnswer> {
  if (host !== null && host !== self.name && host !== self.host) {
    throw new WeftError({
      code: "E-DISK-08",
      message: `This host is ${self.name}; a disk of ${host} is erased by asking ${host} itself.`,
      facts: { host, self: self.name, device },
      safe: "Nothing was erased.",
      do: [{ why: `On ${host}`, command: `weft disk wipe ${host}:${device}` }],
    });
  }
  const { disk, held } = await devices.wipe(device, name);
  return { disk: diskAnswer(disk, self.name), held };
}

export function diskAnswer(disk: Disk, hostName: string): DiskAnswer {
  const verdict = judgeDisk(disk);
  const { name, kind: nameKind } = nameOfContent(disk);
  return {
    hostName,
    device: disk.path,
    kind: disk.kind,
    size: disk.sizeBytes,
    model: disk.model,
    serial: disk.serial,
    blank: verdict.kind === "blank",
    state: verdict.kind,
    what: verdict.kind === "blank" ? null : verdict.what,
    name,
    nameKind,
    pool: disk.pool?.id ?? null,
  };
}
