/** How a host of XCP-ng makes a guest's disk of a volume: by tapdisk, behind this host's holder or on a device of the kernel. */
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";

import type { GuestDevices } from "../core/agent/context.ts";
import type { Log } from "../core/agent/log.ts";
import type { AgentOptions } from "../core/agent/options.ts";
import { reasonOf } from "../core/wire/errors.ts";
import { holderClient } from "../core/wire/holder-client.ts";
import { shown } from "../sm-driver/call.ts";
import type { DatapathOf } from "../sm-driver/datapath/datapath.ts";
import { HolderRestart } from "../sm-driver/datapath/holder-restart.ts";
import { KernelNbdDatapath } from "../sm-driver/datapath/kernel-nbd.ts";
import { TapCtl } from "../sm-driver/datapath/tap-ctl.ts";
import { TapdiskDatapath } from "../sm-driver/datapath/tapdisk.ts";
import type { Turns } from "../sm-driver/datapath/turns.ts";
import { faultCodes, SmFault } from "../sm-driver/faults.ts";

type Options = Pick<AgentOptions, "runDir" | "dom0Root">;

/** Whose tapdisks there are here, paused or not. Where no tap-ctl is there are none. */
export function guestDevices({ runDir, dom0Root }: Options): GuestDevices {
  const program = `${dom0Root}/usr/sbin/tap-ctl`;
  const tapCtl = new TapCtl(program);
  const ours = join(runDir, "tap");
  return async () => {
    if (!existsSync(program)) return new Set();
    const paths = (await tapCtl.list()).map(({ args }) => args.slice(args.indexOf(":") + 1));
    const own = paths.filter((path) => dirname(path) === ours);
    return new Set(own.map((path) => basename(path).replace(/\.[a-z]+$/, "")));
  };
}

/** `turns`: the same as {@link holderRestart}'s. */
export function tapdisks({ runDir, dom0Root }: Options, log: Log, turns: Turns): DatapathOf {
  const holder = holderClient(join(runDir, "holder.sock"));
  const datapath = new TapdiskDatapath({ runDir, dom0Root, holder, log, turns });
  // An agent that was killed in the middle of a snapshot has left a guest waiting.
  datapath.wakeAll().catch((error: unknown) => {
    log.error({ reason: reasonOf(error) }, "it is not known whether a tapdisk of this host was left paused");
  });
  const kernelNbd = new KernelNbdDatapath({ dom0Root, holder, log });
  return (deviceConfig) => {
    const wanted = deviceConfig.get("datapath") ?? "tapdisk";
    if (wanted === "tapdisk") return datapath;
    if (wanted === "kernel-nbd") return kernelNbd;
    throw new SmFault(
      faultCodes.configParamsMissing,
      `The device-config has datapath=${shown(wanted)}; there are tapdisk and kernel-nbd.`,
      "make the PBD without it: xe pbd-create …",
    );
  };
}

/** By which the holder is replaced under this host's guests. */
export function holderRestart({ runDir, dom0Root }: Options, log: Log, turns: Turns): HolderRestart {
  return new HolderRestart({
    runDir,
    dom0Root,
    holder: holderClient(join(runDir, "holder.sock")),
    turns,
    log,
  });
}
