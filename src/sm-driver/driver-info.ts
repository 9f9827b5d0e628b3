/**
 * What the driver says of itself when XAPI starts.
 *
 * Must always hold:
 * - a feature stands here only when each command that XAPI then gives is in the table: what is declared works;
 * - it names no host, cluster or store: XAPI asks before any of them is there. The stub has this answer in it.
 */
import type { SmValue } from "./call.ts";

/** Each feature, and the commands that XAPI gives because of it. */
const features: readonly (readonly [feature: string, ...commands: readonly string[]])[] = [
  ["SR_PROBE", "sr_probe"],
  ["SR_UPDATE", "sr_update"],
  ["THIN_PROVISIONING", "vdi_create"],
  ["LARGE_VDI", "vdi_create"],
  ["VDI_CREATE", "vdi_create"],
  ["VDI_DELETE", "vdi_delete"],
  ["VDI_ATTACH", "vdi_attach"],
  ["VDI_DETACH", "vdi_detach"],
  ["VDI_ACTIVATE", "vdi_activate"],
  ["VDI_DEACTIVATE", "vdi_deactivate"],
  ["VDI_UPDATE", "vdi_update"],
  ["VDI_INTRODUCE", "vdi_introduce"],
  ["VDI_RESIZE", "vdi_resize"],
  ["VDI_RESIZE_ONLINE", "vdi_resize_online"],
  ["VDI_SNAPSHOT", "vdi_snapshot"],
  ["VDI_CLONE", "vdi_clone"],
  ["VDI_REVERT", "vdi_revert"],
  ["VDI_MIRROR", "vdi_snapshot", "vdi_compose"],
  ["VDI_MIRROR_IN", "vdi_compose"],
  ["VDI_COMPOSE", "vdi_compose"],
  ["VDI_RESET_ON_BOOT/2", "vdi_epoch_begin", "vdi_epoch_end"],
  ["VDI_CONFIG_CBT", "vdi_enable_cbt", "vdi_disable_cbt", "vdi_data_destroy", "vdi_list_changed_blocks"],
];

/** Keys of device-config, as `xe sm-list` shows them. */
const configuration: readonly (readonly [key: string, description: string])[] = [
  ["copies", "copies of each volume on different hosts, 1 to 8; without it 2, or 1 where there is one host"],
  [
    "disks",
    "disks for a pool of hosts without weft: auto (every blank disk), none, or HOST:/dev/DISK,...; without it auto",
  ],
  [
    "network",
    "UUID of the network between the hosts; without it the fastest on which all of them have an address",
  ],
  [
    "datapath",
    "what guests' disks go over on a host: tapdisk (without it), or kernel-nbd (Linux 5.14 or later)",
  ],
];

export function driverInfo(commands: readonly string[]): SmValue {
  const built = new Set(commands);
  return {
    name: "weft",
    description: "Replicated volumes on the disks of the pool's own hosts",
    vendor: "weft",
    copyright: "(C) 2026 the weft authors, Apache License 2.0",
    driver_version: "0.1.0",
    required_api_version: "1.0",
    capabilities: features
      .filter(([, ...needed]) => needed.every((name) => built.has(name)))
      .map(([name]) => name),
    configuration: configuration.map(([key, description]) => ({ key, description })),
  };
}
