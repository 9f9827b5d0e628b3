/**
 * XAPI's storage migration of one disk of a running VM, in its order of calls (xen-api: storage_migrate.ml,
 * storage_smapiv1_migrate.ml, storage_smapiv1.ml), from one SR to another, between hosts of one pool or of two.
 *
 *     start():  to:   scan, create leaf, snapshot it (dummy), attach and activate leaf, clone or create parent
 *               from: hand a connection to leaf over, snapshot with mirror, copy the snapshot to parent, delete the snapshot
 *     finish(): from: deactivate   to: deactivate and detach leaf, compose, delete dummy   from: detach, delete
 *     cancel(): from: snapshot with mirror=null, delete both snapshots   to: deactivate and detach leaf, delete dummy, leaf, parent
 *
 * Must always hold: what XAPI ignores is ignored here as well: a compose that fails is no end of a migration (its
 * `log_and_ignore_exn`), nor is a delete at its end.
 */

import { handOver, TapdiskEnd, tapdiskOf } from "./tapdisk-end.ts";
import type { Pool, SmHost, Sr } from "./world.ts";

const CHUNK = 64 << 10;

export type MigrationSide = {
  /** Where the VM runs, or will. */
  readonly host: SmHost;
  /** Makes, snapshots, deletes and composes. */
  readonly master: SmHost;
};

export class Migration {
  readonly #pool: Pool;
  readonly #from: MigrationSide;
  readonly #to: MigrationSide & { readonly sr: Sr };
  readonly #vdi: string;
  readonly #id: string;
  /** XAPI's: `mirror_` and the name of the VM's datapath. */
  readonly #name = "mirror_vbd/12/xvda";
  readonly #made: string[] = [];
  /** Set by start. */
  leaf = "";
  parent = "";
  dummy = "";
  #snapshot: string | null = null;
  /** What XAPI logged and ignored. */
  readonly ignored: string[] = [];

  constructor(pool: Pool, vdi: string, from: MigrationSide, to: MigrationSide & { readonly sr: Sr }) {
    this.#pool = pool;
    this.#vdi = vdi;
    this.#from = from;
    this.#to = to;
    this.#id = `${String(pool.record(vdi)["SR"])}/${vdi}`;
  }

  /** `nearest`: a snapshot at the destination that is like an older state of the disk. `beforeCopy`: then the mirror is on. */
  async start(
    nearest: string | null = null,
    beforeCopy: () => Promise<void> = async () => {},
  ): Promise<void> {
    await this.#receive(nearest);
    await this.#send();
    await beforeCopy();
    await this.#copy(nearest);
    const { master, sr } = this.#to;
    await this.#from.master.call("vdi_delete", { vdiUuid: this.#snapshot ?? "" });
    this.#snapshot = null;
    for (const command of ["sr_scan", "sr_update"]) await master.call(command, { sr });
  }

  /** receive_start_common, at the destination. */
  async #receive(nearest: string | null): Promise<void> {
    const { host, master, sr } = this.#to;
    for (const command of ["sr_scan", "sr_update"]) await master.call(command, { sr });
    const mirrored = { base_mirror: this.#id };
    this.leaf = await this.#create(mirrored);
    this.dummy = await this.#copyOf("vdi_snapshot", this.leaf, mirrored);
    await host.plug(this.leaf);
    if (nearest === null) {
      this.parent = await this.#create(mirrored);
      return;
    }
    this.parent = await this.#copyOf("vdi_clone", nearest, mirrored);
    const size = String(this.#pool.record(this.#vdi)["virtual_size"]);
    if (this.#pool.record(this.parent)["virtual_size"] !== size)
      await master.uuid("vdi_resize", { vdiUuid: this.parent, args: [size] });
  }

  async #create(vdiSmConfig: Readonly<Record<string, string>>): Promise<string> {
    const { master, sr } = this.#to;
    const size = String(this.#pool.record(this.#vdi)["virtual_size"]);
    const label = String(this.#pool.record(this.#vdi)["name_label"]);
    const uuid = await master.create(size, label, { sr, vdiSmConfig });
    this.#made.push(uuid);
    if (this.#pool.record(uuid)["virtual_size"] !== size) throw new Error("XAPI: the sizes differ");
    return uuid;
  }

  /** snapshot_and_clone of storage_smapiv1.ml. */
  async #copyOf(
    command: "vdi_snapshot" | "vdi_clone",
    vdiUuid: string,
    driverParams: Readonly<Record<string, string>>,
  ): Promise<string> {
    const uuid = await this.#to.master.uuid(command, { vdiUuid, driverParams });
    this.#made.push(uuid);
    this.#noteCopy(command, uuid, vdiUuid, driverParams);
    await this.#to.master.call("vdi_update", { vdiUuid: uuid });
    return uuid;
  }

  #noteCopy(
    command: "vdi_snapshot" | "vdi_clone",
    uuid: string,
    of: string,
    { base_mirror: id }: Readonly<Record<string, string>>,
  ): void {
    const { xapi } = this.#pool;
    const ref = xapi.vdiRef(uuid);
    xapi.set(ref, "name_label", this.#pool.record(of)["name_label"]);
    xapi.set(ref, "is_a_snapshot", command === "vdi_snapshot");
    const smConfig = this.#pool.record(uuid)["sm_config"] as Record<string, string>;
    if (id !== undefined) xapi.set(ref, "sm_config", { ...smConfig, base_mirror: id });
  }

  /** mirror_pass_fds and mirror_snapshot, at the source. */
  async #send(): Promise<void> {
    const { host, master } = this.#from;
    const leaf = this.#to.host.sockets.get(this.leaf) ?? "";
    await handOver(host.sockets.get(this.#vdi) ?? "", this.#name, tapdiskOf(leaf).socket);
    const driverParams = { mirror: `nbd:${this.#name}`, base_mirror: this.#id };
    this.#snapshot = await master.uuid("vdi_snapshot", { vdiUuid: this.#vdi, driverParams });
    this.#noteCopy("vdi_snapshot", this.#snapshot, this.#vdi, driverParams);
    await master.call("vdi_update", { vdiUuid: this.#snapshot });
  }

  /** copy_into_vdi: sparse_dd to a disk that is taken for zeroes, or for what it is a clone of. */
  async #copy(nearest: string | null): Promise<void> {
    const source = this.#snapshot ?? "";
    await this.#to.host.plug(this.parent);
    await this.#from.host.plug(source, false);
    const from = await TapdiskEnd.open(this.#from.host.sockets.get(source) ?? "");
    const to = await TapdiskEnd.open(this.#to.host.sockets.get(this.parent) ?? "");
    for (let at = 0; at < from.size; at += CHUNK) {
      const chunk = await from.read(at, Math.min(CHUNK, from.size - at));
      if (nearest !== null || !chunk.equals(Buffer.alloc(chunk.length))) await to.write(at, chunk);
    }
    from.close();
    to.close();
    await this.#from.host.unplug(source);
    await this.#to.host.unplug(this.parent);
  }

  /** The VM is suspended: its disk is deactivated, and what hangs on that is done, before it goes on at the destination. */
  async finish(): Promise<void> {
    const { host, master } = this.#from;
    await host.call("vdi_deactivate", { vdiUuid: this.#vdi });
    await this.#ignore(() => this.#finalize());
    await host.call("vdi_detach", { vdiUuid: this.#vdi });
    await master.call("vdi_delete", { vdiUuid: this.#vdi });
  }

  /** receive_finalize_common. */
  async #finalize(): Promise<void> {
    const { host, master } = this.#to;
    const { xapi } = this.#pool;
    await host.unplug(this.leaf);
    await master.call("vdi_compose", { vdiUuid: this.leaf, args: [xapi.vdiRef(this.parent)] });
    await this.#ignore(() => master.call("vdi_delete", { vdiUuid: this.dummy }));
    const { base_mirror: _, ...smConfig } = this.#pool.record(this.leaf)["sm_config"] as Record<
      string,
      string
    >;
    xapi.set(xapi.vdiRef(this.leaf), "sm_config", smConfig);
  }

  /** stop_internal and receive_cancel. */
  async cancel(): Promise<void> {
    const { master } = this.#from;
    for (const command of ["sr_scan", "sr_update"]) await master.call(command);
    const last = await master.uuid("vdi_snapshot", { vdiUuid: this.#vdi, driverParams: { mirror: "null" } });
    await master.call("vdi_update", { vdiUuid: last });
    await master.call("vdi_delete", { vdiUuid: last });
    if (this.#snapshot !== null) await master.call("vdi_delete", { vdiUuid: this.#snapshot });
    await this.#ignore(() => this.#to.host.unplug(this.leaf));
    for (const vdiUuid of [this.dummy, this.leaf, this.parent])
      await this.#ignore(() => this.#to.master.call("vdi_delete", { vdiUuid }));
  }

  async #ignore(work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.ignored.push(String(error));
    }
  }
}
