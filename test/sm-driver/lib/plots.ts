/**
 * Each command with what comes before it, and all that can be seen afterwards: for tests that disturb it and ask again.
 *
 * Must always hold: what is seen after a command that was disturbed and asked again is what is seen after one that was not.
 */
import type { DriverCall } from "./client.ts";
import type { PlainStore } from "./plain-store.ts";
import { MIB, type SmHost, type World } from "./world.ts";

export type Plot = {
  readonly command: string;
  /** Of the disk, and of a snapshot of it; what the call is. */
  readonly call: (world: World, disk: string, snapshot: string) => Omit<DriverCall, "command">;
  /** Before it: attached, or active. */
  readonly before?: (h1: SmHost, disk: string, world: World) => Promise<void>;
};

const PARENT = "parent";

function parentOf({ disks }: PlainStore): string {
  return [...disks.values()].find(({ label }) => label === PARENT)?.uuid ?? "";
}

export const plots: readonly Plot[] = [
  {
    command: "vdi_create",
    call: () => ({
      args: ["1048576", "new", "", "OpaqueRef:NULL", "false", "19700101T00:00:00Z", "", "false"],
      vdiType: "user",
    }),
  },
  { command: "vdi_delete", call: (_, vdiUuid) => ({ vdiUuid }) },
  { command: "vdi_update", call: (_, vdiUuid) => ({ vdiUuid }) },
  { command: "vdi_snapshot", call: (_, vdiUuid) => ({ vdiUuid, driverParams: {} }) },
  {
    command: "vdi_snapshot",
    call: (_, vdiUuid) => ({ vdiUuid, driverParams: { mirror: "nbd:mirror_vbd/1/xvda" } }),
    before: (h1, disk) => h1.plug(disk),
  },
  { command: "vdi_clone", call: (_, __, vdiUuid) => ({ vdiUuid, driverParams: {} }) },
  {
    command: "vdi_resize",
    call: (_, vdiUuid) => ({ vdiUuid, args: [String(128n * MIB)] }),
    before: (h1, disk) => h1.plug(disk),
  },
  { command: "vdi_revert", call: ({ xapi }, disk, vdiUuid) => ({ vdiUuid, args: [xapi.vdiRef(disk)] }) },
  {
    command: "vdi_compose",
    call: ({ xapi, store }, vdiUuid) => ({ vdiUuid, args: [xapi.vdiRef(parentOf(store))] }),
    before: async (h1, disk, { store }) => {
      // As if it had been one from its beginning on.
      Object.assign(store.disk(disk), { layer: true, content: "..new" });
      store.disk(await h1.create(64n * MIB, PARENT)).content = "older";
    },
  },
  { command: "vdi_epoch_begin", call: (_, vdiUuid) => ({ vdiUuid, onBoot: "reset" }) },
  { command: "vdi_attach", call: (_, vdiUuid) => ({ vdiUuid, args: ["true"] }) },
  {
    command: "vdi_activate",
    call: (_, vdiUuid) => ({ vdiUuid, args: ["true"] }),
    before: async (h1, vdiUuid) => void (await h1.call("vdi_attach", { vdiUuid, args: ["true"] })),
  },
  { command: "vdi_deactivate", call: (_, vdiUuid) => ({ vdiUuid }), before: (h1, disk) => h1.plug(disk) },
  { command: "vdi_detach", call: (_, vdiUuid) => ({ vdiUuid }), before: (h1, disk) => h1.plug(disk) },
  { command: "vdi_data_destroy", call: (_, __, vdiUuid) => ({ vdiUuid }) },
];

/** Everything that can be seen of it, but for what is new in each world. */
export function seen(world: World, disk: string, snapshot: string): object {
  const others = [...world.store.disks.values()].filter(
    ({ uuid, settled }) => uuid !== disk && uuid !== snapshot && (settled || world.knows(uuid)),
  );
  const of = (uuid: string): object | null => {
    const found = world.store.disks.get(uuid);
    if (found === undefined) return null;
    const { size, content, mark, label, type, dataDestroyed } = found;
    return { size, content, mark, label, type, dataDestroyed };
  };
  const h1 = world.host(0);
  return {
    disk: of(disk),
    snapshot: of(snapshot),
    others: others.map(({ uuid }) => of(uuid)),
    knownToXapi: world.xapi.vdis(world.srRef).length,
    open: world.store.open.get(disk)?.length ?? 0,
    active: [...h1.datapath.active.values()].map(({ writable, size }) => ({ writable, size })),
    mirrors: [...h1.datapath.mirrors.values()],
    attached: h1.datapath.attached.size,
    differences: world.differences(),
  };
}

/** Its call makes another disk each time. */
export function makesNew(command: string): boolean {
  return command === "vdi_create" || command === "vdi_snapshot" || command === "vdi_clone";
}

/** A disk with changed-block tracking, a snapshot of it, and what XAPI calls the disk now. */
export async function staged(
  world: World,
  { before }: Plot,
): Promise<{ readonly disk: string; readonly snapshot: string }> {
  const h1 = world.host(0);
  const disk = await h1.create(64n * MIB);
  await h1.call("vdi_enable_cbt", { vdiUuid: disk });
  const snapshot = await h1.copy("vdi_snapshot", disk);
  world.store.disk(disk).content = "later";
  world.xapi.set(world.xapi.vdiRef(disk), "name_label", "renamed");
  await before?.(h1, disk, world);
  return { disk, snapshot };
}
