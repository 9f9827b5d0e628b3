/** Disks of this host's guests, as the agent's keeper of sizes sees them. */
import type { DeviceSizes } from "../core/agent/size-keeper.ts";
import type { DatapathOf } from "../sm-driver/datapath/datapath.ts";

/** Of the datapath that a PBD has which says of none. */
export function deviceSizes(datapathOf: DatapathOf): DeviceSizes {
  const datapath = datapathOf(new Map());
  return {
    list: () => datapath.users(),
    grow: (disk, size) => datapath.resized(disk, size),
  };
}
