/**
 * The links by which XAPI and dom0 find a disk's tapdisk.
 *
 * Must always hold: a link is there as a whole, or as it was; none points to a block device where tapdisks have none.
 */
import { access, mkdir, readFile, readlink, rename, rm, symlink } from "node:fs/promises";
import { dirname } from "node:path";

import type { Attached, DatapathVdi } from "./datapath.ts";
import type { Tapdisk } from "./tap-ctl.ts";

export class DiskLinks {
  readonly #root: string;

  /** `dom0Root` is put before dom0's paths; empty: none. */
  constructor(dom0Root: string) {
    this.#root = dom0Root;
  }

  async attached(vdi: DatapathVdi): Promise<Attached> {
    const { device, nbd } = this.#paths(vdi);
    return {
      params: (await this.hasNodes()) ? device : null,
      paramsNbd: `nbd:unix:${nbd}:exportname=${vdi.vdi}`,
      xenstoreData: { "storage-type": "weft" },
    };
  }

  async link(vdi: DatapathVdi, { pid, minor }: Pick<Tapdisk, "pid" | "minor">): Promise<void> {
    const { device, nbd } = this.#paths(vdi);
    if (await this.hasNodes()) await point(device, `${this.#root}/dev/xen/blktap-2/tapdev${minor}`);
    await point(nbd, `${this.#root}/run/blktap-control/nbd${pid}.${minor}`);
  }

  async unlink(vdi: DatapathVdi): Promise<void> {
    const { device, nbd } = this.#paths(vdi);
    await Promise.all([device, nbd].map((path) => rm(path, { force: true })));
  }

  /** Which tapdisk the disk was linked to last. */
  async linked(vdi: DatapathVdi): Promise<Pick<Tapdisk, "pid" | "minor"> | null> {
    const target = await readlink(this.#paths(vdi).nbd).catch(() => "");
    const [, pid, minor] = /\/nbd(\d{1,9})\.(\d{1,9})$/.exec(target) ?? [];
    return pid === undefined ? null : { pid: Number(pid), minor: Number(minor) };
  }

  /**
   * Whether tapdisks have block devices: blktap 3's have (XCP-ng 8), by its kernel module; blktap 4's (XCP-ng 9) have sockets alone, and
   * this directory from its first tapdisk on. XAPI takes a path that it was given for one that is there.
   */
  async hasNodes(): Promise<boolean> {
    if (await isThere(`${this.#root}/run/blktap-control/tapdisk`)) return false;
    // tap-ctl makes the node of that module with its first tapdisk.
    if (await isThere(`${this.#root}/dev/xen/blktap-2/control`)) return true;
    const modules = await readFile(`${this.#root}/proc/misc`, "latin1").catch(() => "");
    return /^ *\d+ blktap\/control$/m.test(modules);
  }

  #paths({ sr, vdi }: DatapathVdi): { readonly device: string; readonly nbd: string } {
    return {
      device: `${this.#root}/dev/sm/backend/${sr}/${vdi}`,
      nbd: `${this.#root}/run/blktap-control/nbd/${sr}/${vdi}`,
    };
  }
}

export async function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

async function point(path: string, target: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const beside = `${path}~`;
  await rm(beside, { force: true });
  await symlink(target, beside);
  await rename(beside, path);
}
