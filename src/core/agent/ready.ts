/** Tells systemd that the agent serves (`sd_notify(3)`): XAPI, ordered after it, then finds its socket. */
import { loadAddon } from "../wire/addon.ts";
import { reasonOf } from "../wire/errors.ts";
import type { Log } from "./log.ts";

/** Once. `socket` is the value of NOTIFY_SOCKET; without one nobody waits. */
export function tellReady(socket: string | undefined, addon: string, log: Log): void {
  if (socket === undefined || socket === "") return;
  try {
    loadAddon(addon).sendDatagram(socket, Buffer.from("READY=1\n"));
  } catch (error) {
    log.warn({ socket, error: reasonOf(error) }, "systemd could not be told that the agent serves");
  }
}
