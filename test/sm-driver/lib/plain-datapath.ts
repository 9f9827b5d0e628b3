/**
 * A datapath without devices: what is attached and active on a host, and what breaks the order of it.
 *
 * Must always hold: nothing is active whose volume the host doesn't have open, and nothing is active twice in different ways.
 */
import type {
  Activation,
  Attached,
  Datapath,
  DatapathUser,
  DatapathVdi,
} from "../../../src/sm-driver/datapath/datapath.ts";
import type { Steps } from "./steps.ts";

export class PlainDatapath implements Datapath {
  readonly attached = new Map<string, { readonly writable: boolean }>();
  readonly active = new Map<
    string,
    { readonly writable: boolean; readonly exportPath: string; size: bigint }
  >();
  /** Whether tapdisks have block devices. */
  hasNodes = true;
  /** To where a guest's writes go besides. */
  readonly mirrors = new Map<string, string>();
  /** The next activation fails. */
  fails = false;
  /** Nobody can say what is active. */
  isSilent = false;
  readonly #steps: Steps;

  constructor(steps: Steps) {
    this.#steps = steps;
  }

  attach({ sr, vdi, writable }: DatapathVdi & { readonly writable: boolean }): Promise<Attached> {
    return this.#steps.step("datapath.attach", () => {
      this.attached.set(vdi, { writable });
      return {
        params: this.hasNodes ? `/dev/sm/backend/${sr}/${vdi}` : null,
        paramsNbd: `nbd:unix:/run/blktap-control/nbd/${sr}/${vdi}:exportname=${vdi}`,
        xenstoreData: {},
      };
    });
  }

  activate({ vdi, writable, exportPath, size }: DatapathVdi & Activation): Promise<void> {
    return this.#steps.step("datapath.activate", () => {
      if (!this.attached.has(vdi)) throw new Error(`${vdi} is activated and was not attached`);
      if (this.fails) {
        this.fails = false;
        throw new Error("tap-ctl: no memory");
      }
      this.active.set(vdi, { writable, exportPath, size });
    });
  }

  deactivate({ vdi }: DatapathVdi): Promise<void> {
    return this.#steps.step("datapath.deactivate", () => {
      this.active.delete(vdi);
      this.mirrors.delete(vdi);
    });
  }

  detach({ vdi }: DatapathVdi): Promise<void> {
    return this.#steps.step("datapath.detach", () => {
      if (this.active.has(vdi)) throw new Error(`${vdi} is detached and still active`);
      this.attached.delete(vdi);
    });
  }

  async mirrored<T>({ vdi }: DatapathVdi, mirror: string, work: () => Promise<T>): Promise<T> {
    if (!this.active.has(vdi)) throw new Error(`${vdi} is to be mirrored and not active`);
    const done = await work();
    await this.#steps.step("datapath.mirror", () => {
      if (mirror === "null") this.mirrors.delete(vdi);
      else this.mirrors.set(vdi, mirror);
    });
    return done;
  }

  resized({ vdi }: DatapathVdi, size: bigint): Promise<boolean> {
    return this.#steps.step("datapath.resized", () => {
      const active = this.active.get(vdi);
      if (active !== undefined) active.size = size;
      return true;
    });
  }

  async pause(): Promise<void> {
    throw new Error("nobody asks for this");
  }

  async unpause(): Promise<void> {
    throw new Error("nobody asks for this");
  }

  async users(): Promise<readonly DatapathUser[]> {
    if (this.isSilent) throw new Error("its holder doesn't answer");
    return Array.from(this.active, ([vdi, { writable, size }]) => ({
      vdi,
      connected: true,
      writes: writable,
      size,
    }));
  }
}
