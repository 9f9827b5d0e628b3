/**
 * The automaton by which XAPI attaches disks (design xapi.md 1.10): what it has where, and what it asks next.
 *
 *     detached ─▶ attached RO|RW ─▶ activated RO|RW ─▶ attached ─▶ detached
 *
 * Must always hold: nothing is asked of a driver that XAPI would not ask; deactivate and detach may be asked at any time, since XAPI
 * repeats them after a crash, and asks for detach alone after an activate that failed.
 */
import type { DriverCall } from "./client.ts";

type Mode = "RO" | "RW";
type Place = "detached" | `${"attached" | "activated"} ${Mode}`;

export class Places {
  readonly #places = new Map<string, Place>();

  /** Refuses what XAPI would not ask; answers with what notes that it worked. */
  step(
    hostRef: string,
    { command, args, vdiUuid }: Pick<DriverCall, "command" | "args" | "vdiUuid">,
  ): () => void {
    const key = `${hostRef} ${vdiUuid ?? ""}`;
    const now = this.#places.get(key) ?? "detached";
    const mode: Mode = args?.[0] === "true" ? "RW" : "RO";
    const note = (next: Place) => (): void => void this.#places.set(key, next);
    const refuse = (): never => {
      throw new Error(`XAPI does not ask for ${command} ${mode} of a VDI that is ${now}`);
    };
    switch (command) {
      case "vdi_attach":
        return now === "detached" || now === `attached ${mode}` ? note(`attached ${mode}`) : refuse();
      case "vdi_activate":
        return now === `attached ${mode}` || now === `activated ${mode}`
          ? note(`activated ${mode}`)
          : refuse();
      case "vdi_deactivate":
        return note(now === "detached" ? now : now.endsWith("RW") ? "attached RW" : "attached RO");
      case "vdi_detach":
        return note("detached");
      case "vdi_delete":
        return () => {
          for (const known of this.#places.keys())
            if (known.endsWith(` ${vdiUuid ?? ""}`)) this.#places.delete(known);
        };
      default:
        return () => undefined;
    }
  }

  /** That host was started anew: what XAPI noted of it lay in memory. */
  forget(hostRef: string): void {
    for (const key of this.#places.keys()) if (key.startsWith(`${hostRef} `)) this.#places.delete(key);
  }
}
