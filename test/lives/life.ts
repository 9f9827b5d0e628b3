/**
 * The lives of some VMs on a pool of XAPI, drawn by a seed: started, stopped, moved, snapshotted, cloned, taken back, grown, booted
 * without memory and deleted by XAPI's calls in XAPI's order, while their guests write and troubles strike into the calls.
 *
 * Must always hold, and is judged:
 * - a disk, a snapshot and a clone have what their guests were told is done, whatever was struck; a guest sees no error while its
 *   host lives;
 * - what failed works when it is asked again as XAPI does, at the latest some tries after the trouble was over;
 * - nothing that XAPI does not know stays: no disk, no tapdisk, no entry at a holder, no open session;
 * - no fault is one that the driver believed impossible.
 */
import { setTimeout as delay } from "node:timers/promises";

import { until, within } from "../../scripts/lib/until.ts";
import { holderClient } from "../../src/core/wire/holder-client.ts";
import { DriverFailure } from "../sm-driver/lib/client.ts";
import { MIB, type Pool } from "../sm-driver/lib/world.ts";
import { BLOCK, BLOCKS, type Content } from "./content.ts";
import { Guest, Numbers, numbersOn } from "./guest.ts";
import { DEVICE_CONFIG, type PoolHost, type PoolHosts } from "./hosts.ts";
import { Trouble, type TroubleKind } from "./trouble.ts";

/** So often it may fail when nothing is wrong any more: who had the disk may need a moment to be known as dead. */
const CALM_TRIES = 4;
const AGAIN_MS = 300;
/** A guest's write that waits for a host to come back. */
const GUEST_MS = 120_000;
const GROWN = 16n * MIB;
const SNAPSHOTS_MAX = 3;
const VMS_MAX = 5;
/** Of the driver's faults: a bug. */
const IMPOSSIBLE = 1200;
/** Bytes of one bit of changed blocks. */
const CBT_BYTES = 65_536;

export type LifeOptions = {
  readonly hosts: PoolHosts;
  readonly random: () => number;
  readonly seconds: number;
  readonly vms: number;
  readonly perCent: number;
  readonly kinds: readonly TroubleKind[];
  readonly say: (line: string) => void;
};

export type LifeReport = {
  readonly calls: number;
  readonly written: number;
  readonly troubles: ReadonlyMap<string, number>;
  /** What XAPI's callers were told, by how often. */
  readonly faults: ReadonlyMap<string, number>;
  readonly broken: readonly string[];
};

type Snapshot = {
  readonly uuid: string;
  readonly of: string;
  readonly content: Content;
  readonly numbers: readonly number[];
};

type Vm = {
  readonly name: string;
  disk: string;
  readonly guest: Guest;
  on: PoolHost | null;
  onBoot: "persist" | "reset";
  /** What a boot without memory goes back to; null: the next one begins it. */
  mark: Content | null;
  size: bigint;
  snapshots: Snapshot[];
};

/** The host of a call has ended. */
class HostGone extends Error {}
class Broken extends Error {}

export class Life {
  readonly #options: LifeOptions;
  readonly #pool: Pool;
  readonly #numbers = new Numbers();
  readonly #vms: Vm[] = [];
  readonly #trouble: Trouble;
  readonly #faults = new Map<string, number>();
  readonly #broken: string[] = [];
  #calls = 0;
  #made = 0;
  #written = 0;
  /** XAPI does one at a time of what makes, changes or deletes disks of an SR. */
  #exclusive: Promise<unknown> = Promise.resolve();

  constructor(options: LifeOptions) {
    const { hosts, random, perCent, kinds, say } = options;
    this.#options = options;
    this.#pool = hosts.pool;
    this.#trouble = new Trouble({
      hosts,
      random,
      perCent,
      kinds,
      say,
      died: (host) => this.#died(host),
      booted: (host) => this.#plugSr(host),
      broken: (what) => void this.#broken.push(what),
    });
  }

  async live(): Promise<LifeReport> {
    const { hosts, seconds, vms } = this.#options;
    const first = hosts.host(0);
    await first.sm.call("sr_create", { args: ["0"], deviceConfig: DEVICE_CONFIG });
    for (const host of hosts.hosts) await this.#plugSr(host);
    const endMs = performance.now() + seconds * 1000;
    const lanes = Array.from({ length: vms }, async () => this.#lane(endMs));
    await Promise.all(lanes);
    this.#trouble.isOver = true;
    await this.#trouble.calm();
    if (this.#broken.length === 0) await this.#guarded(() => this.#end());
    for (const { guest } of this.#vms) await guest.die();
    return {
      calls: this.#calls,
      written: this.#written,
      troubles: this.#trouble.struck,
      faults: this.#faults,
      broken: [...this.#broken, ...this.#pool.xapi.violations],
    };
  }

  /** One VM after the other, and what is cloned of it. */
  async #lane(endMs: number): Promise<void> {
    const own: Vm[] = [];
    await this.#guarded(async () => {
      own.push(await this.#create());
      while (performance.now() < endMs && this.#broken.length === 0) {
        const vm = own[this.#below(own.length)];
        if (vm === undefined) own.push(await this.#create());
        else await this.#next(vm, own);
      }
    });
  }

  async #guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#broken.push(error instanceof Broken ? error.message : `the life itself: ${stackOf(error)}`);
      this.#trouble.isOver = true;
    }
  }

  #below(limit: number): number {
    return Math.floor(this.#options.random() * limit);
  }

  /** Whatever a user does next with it. */
  async #next(vm: Vm, own: Vm[]): Promise<void> {
    const { on } = vm;
    this.#judgeGuest(vm);
    const dice = this.#below(100);
    try {
      if (on === null) await this.#nextOfHalted(vm, own, dice);
      else await this.#nextOfRunning(vm, on, own, dice);
    } catch (error) {
      if (!(error instanceof HostGone)) throw error;
      // What it was about begins anew, or XAPI has forgotten it with the host.
      await vm.guest.die();
      vm.on = null;
    }
  }

  /** The guests of a host that ends are told so before anybody knows. */
  #judgeGuest({ name, guest: { failure }, on }: Vm): void {
    if (failure !== null && on?.isUp === true)
      throw new Broken(`${name}: its guest on ${on.name} was told: ${failure}`);
  }

  async #nextOfHalted(vm: Vm, own: Vm[], dice: number): Promise<void> {
    const [snapshot] = vm.snapshots.slice(this.#below(vm.snapshots.length));
    if (dice < 45) return this.#start(vm, vm.onBoot);
    if (dice < 52) return this.#start(vm, "reset");
    if (vm.onBoot === "reset") return this.#start(vm, "persist");
    if (dice < 60) return this.#snapshot(vm);
    if (dice < 66) return this.#resize(vm);
    if (dice < 72 && this.#vms.length < VMS_MAX) return void own.push(await this.#clone(vm, null));
    if (snapshot !== undefined) {
      if (dice < 79 && this.#vms.length < VMS_MAX) return void own.push(await this.#clone(vm, snapshot));
      if (dice < 84) return this.#revert(vm, snapshot);
      if (dice < 89) return this.#revertByClone(vm, snapshot);
      if (dice < 93) return this.#deleteSnapshot(vm, snapshot);
    }
    if (dice < 96) return this.#scan();
    if (own.length > 1) return this.#delete(vm, own);
    return this.#start(vm, "persist");
  }

  async #nextOfRunning(vm: Vm, on: PoolHost, own: Vm[], dice: number): Promise<void> {
    const before = vm.guest.written;
    const until_ = performance.now() + 100 + this.#below(700);
    while (performance.now() < until_ && vm.on === on && vm.guest.failure === null) await delay(20);
    this.#written += vm.guest.written - before;
    if (vm.on !== on || vm.guest.failure !== null) return;
    if (dice < 28) return this.#stop(vm, on);
    if (dice < 58) return this.#migrate(vm, on);
    if (dice < 73) return this.#snapshot(vm);
    if (dice < 79) return this.#resize(vm);
    if (dice < 84 && this.#vms.length < VMS_MAX) return void own.push(await this.#clone(vm, null));
    const [snapshot] = vm.snapshots.slice(this.#below(vm.snapshots.length));
    if (dice < 92 && snapshot !== undefined) return this.#deleteSnapshot(vm, snapshot);
    if (dice < 96) return this.#changed(vm);
    return this.#scan();
  }

  async #create(): Promise<Vm> {
    this.#made += 1;
    const name = `vm${this.#made}`;
    const size = 8n * MIB;
    const disk = await this.#onMaster(`${name}: vdi_create`, async (master) =>
      this.#timed("vdi_create", master, () =>
        master.sm.create(size, name, { isMaster: true, deviceConfig: DEVICE_CONFIG }),
      ),
    );
    const guest = new Guest(this.#numbers, 2);
    const vm: Vm = { name, disk, guest, on: null, onBoot: "persist", mark: null, size, snapshots: [] };
    this.#vms.push(vm);
    return vm;
  }

  /** On any host that lives. What is on it is looked at before its guest goes on. */
  async #start(vm: Vm, onBoot: "persist" | "reset"): Promise<void> {
    vm.onBoot = onBoot;
    for (;;) {
      const host = await this.#anyHost();
      try {
        await this.#done(`${vm.name}: start on ${host.name}`, async () => {
          try {
            await this.#call("vdi_epoch_begin", host, vm.disk, { onBoot });
            await this.#attach(host, vm.disk, true, onBoot);
            await this.#call("vdi_activate", host, vm.disk, { onBoot, args: ["true"] });
          } catch (error) {
            if (!(error instanceof HostGone)) await this.#detach(host, vm.disk, onBoot);
            throw error;
          }
        });
        if (onBoot === "reset") {
          vm.mark ??= vm.guest.content.copy();
          vm.guest.content = vm.mark.copy();
        } else {
          vm.mark = null;
        }
        const numbers = await this.#look(
          `${vm.name} at its start (${onBoot}) on ${host.name}`,
          host,
          vm.disk,
          vm.guest.content,
        );
        vm.mark?.settle(numbers);
        vm.on = host;
        await this.#resume(vm, host);
        return;
      } catch (error) {
        if (!(error instanceof HostGone)) throw error;
        vm.on = null;
      }
    }
  }

  async #resume(vm: Vm, host: PoolHost): Promise<void> {
    try {
      await vm.guest.resume(host.pathOf(vm.disk));
    } catch (error) {
      if (!host.isUp) throw new HostGone(host.name, { cause: error });
      throw new Broken(`${vm.name}: its tapdisk on ${host.name} does not answer: ${String(error)}`);
    }
  }

  async #suspend(vm: Vm, on: PoolHost): Promise<void> {
    const { deaths } = on;
    const what = `${vm.name}: the guest's last write on ${on.name}`;
    try {
      await within(vm.guest.suspend(), { what, deadlineMs: GUEST_MS });
    } catch (error) {
      if (on.deaths > deaths || !on.isUp) throw new HostGone(on.name, { cause: error });
      throw new Broken(`${what}: ${String(error)}`);
    }
    if (vm.on !== on) throw new HostGone(on.name);
  }

  async #stop(vm: Vm, on: PoolHost): Promise<void> {
    await this.#suspend(vm, on);
    for (const command of ["vdi_deactivate", "vdi_detach", "vdi_epoch_end"])
      await this.#done(`${vm.name}: ${command} on ${on.name}`, async () =>
        this.#call(command, on, vm.disk, { onBoot: vm.onBoot }),
      );
    vm.on = null;
  }

  /** As XAPI orders it; where the target can't have the disk, the source goes on. */
  async #migrate(vm: Vm, from: PoolHost): Promise<void> {
    const others = this.#options.hosts.hosts.filter((host) => host !== from && host.isUp);
    const to = others[this.#below(others.length)];
    if (to === undefined) return;
    const { onBoot } = vm;
    const isEarly = this.#below(2) === 0;
    try {
      if (isEarly)
        await this.#done(`${vm.name}: attach on ${to.name}`, () => this.#attach(to, vm.disk, true, onBoot));
    } catch (error) {
      if (error instanceof HostGone) return;
      throw error;
    }
    await this.#suspend(vm, from);
    await this.#done(`${vm.name}: deactivate on ${from.name}`, () =>
      this.#call("vdi_deactivate", from, vm.disk, { onBoot }),
    );
    try {
      if (!isEarly) await this.#attach(to, vm.disk, true, onBoot);
      await this.#call("vdi_activate", to, vm.disk, { onBoot, args: ["true"] });
      await this.#resume(vm, to);
    } catch (error) {
      if (error instanceof Broken) throw error;
      this.#options.say(`${vm.name}: ${to.name} could not have it, back to ${from.name}: ${String(error)}`);
      await this.#cleaned(to, vm);
      await this.#done(`${vm.name}: activate again on ${from.name}`, () =>
        this.#call("vdi_activate", from, vm.disk, { onBoot, args: ["true"] }),
      );
      await this.#look(`${vm.name}, back on ${from.name}`, from, vm.disk, vm.guest.content);
      await this.#resume(vm, from);
      return;
    }
    vm.on = to;
    try {
      await this.#done(`${vm.name}: detach on ${from.name}`, () =>
        this.#call("vdi_detach", from, vm.disk, { onBoot }),
      );
    } catch (error) {
      if (!(error instanceof HostGone)) throw error;
    }
  }

  async #cleaned(host: PoolHost, vm: Vm): Promise<void> {
    try {
      await this.#detach(host, vm.disk, vm.onBoot);
    } catch (error) {
      if (!(error instanceof HostGone)) throw error;
    }
  }

  async #snapshot(vm: Vm): Promise<void> {
    if (vm.snapshots.length >= SNAPSHOTS_MAX) return;
    const moment = vm.guest.content.record();
    let uuid: string;
    try {
      uuid = await this.#copied(`${vm.name}: snapshot`, "vdi_snapshot", vm.disk);
    } finally {
      moment.end();
    }
    const numbers = await this.#read(`the snapshot of ${vm.name}`, uuid);
    const content = moment.at(numbers);
    this.#judge(`the snapshot ${uuid} of ${vm.name}`, content.wrong(numbers));
    content.settle(numbers);
    vm.snapshots.push({ uuid, of: vm.disk, content, numbers });
  }

  async #clone(vm: Vm, snapshot: Snapshot | null): Promise<Vm> {
    this.#made += 1;
    const name = `vm${this.#made}`;
    const moment = (snapshot?.content ?? vm.guest.content).record();
    let disk: string;
    try {
      disk = await this.#copied(`${name}: clone of ${vm.name}`, "vdi_clone", snapshot?.uuid ?? vm.disk);
    } finally {
      moment.end();
    }
    const numbers = await this.#read(`the clone ${name} of ${vm.name}`, disk);
    const guest = new Guest(this.#numbers, 2);
    guest.content = moment.at(numbers);
    this.#judge(`the clone ${name} of ${vm.name}`, guest.content.wrong(numbers));
    guest.content.settle(numbers);
    const { size } = vm;
    const made: Vm = { name, disk, guest, on: null, onBoot: "persist", mark: null, size, snapshots: [] };
    this.#vms.push(made);
    return made;
  }

  /** In place. */
  async #revert(vm: Vm, snapshot: Snapshot): Promise<void> {
    if (snapshot.of !== vm.disk) return;
    const args = [this.#pool.xapi.vdiRef(vm.disk)];
    await this.#onMaster(`${vm.name}: vdi_revert`, (master) =>
      this.#call("vdi_revert", master, snapshot.uuid, { args, isMaster: true }),
    );
    vm.guest.content = snapshot.content.copy();
    vm.mark = null;
    vm.size = BigInt(String(this.#pool.record(vm.disk)["virtual_size"]));
  }

  /** As VM.revert does it: a clone takes the disk's place. */
  async #revertByClone(vm: Vm, snapshot: Snapshot): Promise<void> {
    const disk = await this.#copied(`${vm.name}: revert by a clone`, "vdi_clone", snapshot.uuid);
    const old = vm.disk;
    vm.disk = disk;
    vm.guest.content = snapshot.content.copy();
    vm.mark = null;
    vm.size = BigInt(String(this.#pool.record(disk)["virtual_size"]));
    await this.#deleteVdi(`${vm.name}: delete of the disk before the revert`, old);
  }

  async #resize(vm: Vm): Promise<void> {
    if (vm.onBoot === "reset" || vm.size >= 128n * MIB) return;
    const size = vm.size + GROWN;
    const command = vm.on === null ? "vdi_resize" : "vdi_resize_online";
    await this.#onMaster(`${vm.name}: ${command}`, async (master) =>
      this.#timed(command, master, () =>
        master.sm.uuid(command, { vdiUuid: vm.disk, args: [String(size)], isMaster: true }),
      ),
    );
    vm.size = size;
    vm.mark = null;
    const told = this.#pool.record(vm.disk)["virtual_size"];
    if (told !== String(size))
      throw new Broken(`${vm.name} was grown to ${size}, and XAPI has ${String(told)}`);
  }

  /** Every block in which two snapshots of a disk differ is told. */
  async #changed(vm: Vm): Promise<void> {
    const [from, to] = vm.snapshots.filter(({ of }) => of === vm.disk);
    if (from === undefined || to === undefined) return;
    const args = [this.#pool.xapi.vdiRef(to.uuid)];
    const what = `${vm.name}: vdi_list_changed_blocks`;
    const told = await this.#onMaster(what, (master) =>
      this.#call("vdi_list_changed_blocks", master, from.uuid, { args, isMaster: true }),
    );
    const bits = Buffer.from(typeof told === "string" ? told : "", "base64");
    const missed = from.numbers.flatMap((number, block) => {
      if (number === to.numbers[block]) return [];
      const bit = Math.floor((block * BLOCK) / CBT_BYTES);
      return ((bits[bit >> 3] ?? 0) & (0x80 >> (bit & 7))) === 0 ? [`block ${block}`] : [];
    });
    this.#judge(`${what} from ${from.uuid} to ${to.uuid} tells nothing of`, missed);
  }

  async #deleteSnapshot(vm: Vm, snapshot: Snapshot): Promise<void> {
    await this.#deleteVdi(`${vm.name}: delete of a snapshot`, snapshot.uuid);
    vm.snapshots = vm.snapshots.filter((each) => each !== snapshot);
  }

  async #delete(vm: Vm, own: Vm[]): Promise<void> {
    await this.#deleteVdi(`${vm.name}: delete`, vm.disk);
    for (const { uuid, content } of vm.snapshots) {
      const numbers = await this.#read(`a snapshot of ${vm.name}, which is deleted`, uuid);
      this.#judge(`a snapshot of ${vm.name}, which is deleted`, content.wrong(numbers));
      await this.#deleteVdi(`${vm.name}: delete of its snapshot`, uuid);
    }
    own.splice(own.indexOf(vm), 1);
    this.#vms.splice(this.#vms.indexOf(vm), 1);
  }

  async #deleteVdi(what: string, uuid: string): Promise<void> {
    await this.#onMaster(what, async (master) => {
      // Where the first try took XAPI's record there is nothing left to ask for.
      if (this.#pool.knows(uuid)) await this.#call("vdi_delete", master, uuid, { isMaster: true });
    });
    if (this.#pool.knows(uuid)) throw new Broken(`${what}: XAPI still has ${uuid}`);
  }

  async #scan(): Promise<void> {
    await this.#onMaster("sr_scan", (master) =>
      this.#timed("sr_scan", master, () => master.sm.call("sr_scan", { isMaster: true })),
    );
  }

  /** Of any disk that no guest writes: attached for reading on any host. */
  async #read(what: string, uuid: string): Promise<readonly number[]> {
    for (;;) {
      const host = await this.#anyHost();
      try {
        return await this.#done(`${what}: read on ${host.name}`, async () => {
          try {
            await this.#attach(host, uuid, false, "persist");
            await this.#call("vdi_activate", host, uuid, { args: ["false"] });
            return await this.#numbers_(host, uuid);
          } finally {
            await this.#detach(host, uuid, "persist");
          }
        });
      } catch (error) {
        if (!(error instanceof HostGone)) throw error;
      }
    }
  }

  async #numbers_(host: PoolHost, uuid: string): Promise<readonly number[]> {
    const { deaths } = host;
    try {
      const what = `${BLOCKS} blocks of ${uuid} on ${host.name}`;
      return await within(numbersOn(host.pathOf(uuid)), { what, deadlineMs: GUEST_MS });
    } catch (error) {
      if (host.deaths > deaths || !host.isUp) throw new HostGone(host.name, { cause: error });
      throw error;
    }
  }

  /** What is on a disk that is active there, compared. */
  async #look(what: string, host: PoolHost, uuid: string, content: Content): Promise<readonly number[]> {
    const numbers = await this.#numbers_(host, uuid);
    this.#judge(what, content.wrong(numbers));
    content.settle(numbers);
    return numbers;
  }

  #judge(what: string, wrong: readonly string[]): void {
    if (wrong.length > 0)
      throw new Broken(`${what}: ${wrong.length} blocks: ${wrong.slice(0, 5).join("; ")}`);
  }

  async #attach(host: PoolHost, uuid: string, writable: boolean, onBoot: Vm["onBoot"]): Promise<void> {
    await this.#timed("vdi_attach", host, () => host.sm.attach(uuid, writable, onBoot));
  }

  /** After what failed: XAPI asks for detach alone, until it works. */
  async #detach(host: PoolHost, uuid: string, onBoot: Vm["onBoot"]): Promise<void> {
    await this.#done(`detach of ${uuid} on ${host.name}`, () =>
      this.#call("vdi_detach", host, uuid, { onBoot }),
    );
  }

  /** A new disk of a disk. Where the call failed and was tried again, what the first one left is the next scan's. */
  async #copied(what: string, command: "vdi_snapshot" | "vdi_clone", uuid: string): Promise<string> {
    return this.#onMaster(what, (master) =>
      this.#timed(command, master, () => master.sm.copy(command, uuid, { isMaster: true })),
    );
  }

  /** One of those that XAPI does one at a time, on whichever host is the master then. */
  async #onMaster<T>(what: string, work: (master: PoolHost) => Promise<T>): Promise<T> {
    const turn = this.#turn(this.#exclusive, what, work);
    this.#exclusive = turn.catch(() => undefined);
    return turn;
  }

  async #turn<T>(before: Promise<unknown>, what: string, work: (master: PoolHost) => Promise<T>): Promise<T> {
    await before;
    for (;;) {
      const master = await this.#master();
      try {
        return await this.#done(`${what} on ${master.name}`, () => work(master));
      } catch (error) {
        if (!(error instanceof HostGone)) throw error;
      }
    }
  }

  async #master(): Promise<PoolHost> {
    const living = (): PoolHost | null => this.#options.hosts.hosts.find(({ isUp }) => isUp) ?? null;
    return until(living, { what: "a host that lives", deadlineMs: GUEST_MS });
  }

  async #anyHost(): Promise<PoolHost> {
    await this.#master();
    const living = this.#options.hosts.hosts.filter(({ isUp }) => isUp);
    return living[this.#below(living.length)] ?? this.#options.hosts.host(0);
  }

  /** Asked as often as XAPI or a user would: it works when nothing is wrong any more. */
  async #done<T>(what: string, attempt: () => Promise<T>): Promise<T> {
    let calm = 0;
    for (;;) {
      const before = this.#trouble.isCalm ? this.#trouble.count : -1;
      try {
        return await attempt();
      } catch (error) {
        if (error instanceof HostGone || error instanceof Broken) throw error;
        const wasCalm = before === this.#trouble.count;
        if (wasCalm) calm += 1;
        this.#options.say(`${what}: ${wasCalm ? "with nothing wrong" : "in trouble"}: ${String(error)}`);
        if (calm >= CALM_TRIES)
          throw new Broken(`${what}: it does not work again: ${String(error)}`, { cause: error });
        await this.#trouble.calm();
        await delay(AGAIN_MS);
      }
    }
  }

  async #call(
    command: string,
    host: PoolHost,
    vdiUuid: string,
    call: Parameters<PoolHost["sm"]["call"]>[1] = {},
  ): ReturnType<PoolHost["sm"]["call"]> {
    return this.#timed(command, host, () => host.sm.call(command, { vdiUuid, ...call }));
  }

  async #timed<T>(command: string, host: PoolHost, ask: () => Promise<T>): Promise<T> {
    const { deaths } = host;
    if (!host.isUp) throw new HostGone(host.name);
    this.#trouble.maybe(command, host);
    this.#calls += 1;
    const begun = performance.now();
    try {
      const value = await ask();
      this.#trouble.took(command, performance.now() - begun);
      if (host.deaths > deaths) throw new HostGone(host.name);
      return value;
    } catch (error) {
      if (host.deaths > deaths || !host.isUp) throw new HostGone(host.name, { cause: error });
      if (error instanceof DriverFailure) this.#tell(command, error);
      throw error;
    }
  }

  #tell(command: string, { code, text }: DriverFailure): void {
    const words = `${command}: ${code} ${text.replaceAll(/[0-9a-f]{8}-[0-9a-f-]{27}/g, "UUID").slice(0, 160)}`;
    this.#faults.set(words, (this.#faults.get(words) ?? 0) + 1);
    if (code === IMPOSSIBLE) this.#broken.push(`${command}: ${text}`);
  }

  async #died(host: PoolHost): Promise<void> {
    for (const vm of this.#vms) {
      if (vm.on !== host) continue;
      vm.on = null;
      await vm.guest.die();
    }
  }

  /** At a start of the host, or of the pool. */
  async #plugSr(host: PoolHost): Promise<void> {
    await until(
      async () => {
        const begun = performance.now();
        await host.sm.call("sr_attach", { deviceConfig: DEVICE_CONFIG });
        const ms = performance.now() - begun;
        if (ms > 10_000) this.#broken.push(`sr_attach on ${host.name} took ${Math.round(ms)} ms`);
        return true;
      },
      { what: `sr_attach on ${host.name}`, deadlineMs: 60_000 },
    );
    await host.cluster.agent().setXapiHost(host.sm.host.uuid);
  }

  /** All VMs are stopped: what is there is what XAPI knows, and has what was written. */
  async #end(): Promise<void> {
    for (const vm of this.#vms) {
      this.#judgeGuest(vm);
      if (vm.on !== null) await this.#stop(vm, vm.on);
    }
    await this.#scan();
    await this.#compared();
    for (const vm of this.#vms) {
      // A disk that is reset at its boots has what its last boot wrote until the next one.
      const numbers = await this.#read(`${vm.name} at the end`, vm.disk);
      this.#judge(`${vm.name} at the end`, vm.guest.content.wrong(numbers));
      for (const { uuid, content } of vm.snapshots)
        this.#judge(
          `a snapshot of ${vm.name} at the end`,
          content.wrong(await this.#read("a snapshot", uuid)),
        );
    }
    for (const host of this.#options.hosts.hosts) await this.#nothingLeft(host);
    for (const { disk, snapshots } of this.#vms) {
      await this.#deleteVdi("the end", disk);
      for (const { uuid } of snapshots) await this.#deleteVdi("the end", uuid);
    }
    await this.#scan();
    const left = this.#pool.xapi.vdis(this.#pool.srRef).map((record) => String(record.get("uuid")));
    if (left.length > 0) throw new Broken(`all disks are deleted, and XAPI has ${left.join(", ")}`);
  }

  async #compared(): Promise<void> {
    const { vdis } = await this.#options.hosts.host(1).cluster.agent().vdis(this.#pool.srUuid);
    const known = new Map(
      this.#pool.xapi.vdis(this.#pool.srRef).map((record) => [String(record.get("uuid")), record]),
    );
    for (const { uuid, size, settled } of vdis) {
      const record = known.get(uuid);
      if (record === undefined && settled) throw new Broken(`the store alone has the disk ${uuid}`);
      if (record !== undefined && record.get("virtual_size") !== String(size))
        throw new Broken(`${uuid} has ${size} bytes, and XAPI has ${String(record.get("virtual_size"))}`);
      known.delete(uuid);
    }
    if (known.size > 0) throw new Broken(`XAPI alone has ${[...known.keys()].join(", ")}`);
    // What a call that failed has left is a disk more for XAPI's users, and none less.
    const own = this.#vms.flatMap(({ disk, snapshots }) => [disk, ...snapshots.map(({ uuid }) => uuid)]);
    const lost = own.filter((uuid) => !vdis.some((vdi) => vdi.uuid === uuid));
    if (lost.length > 0) throw new Broken(`the store has lost ${lost.join(", ")}`);
    for (const { uuid } of vdis.filter((vdi) => !own.includes(vdi.uuid) && this.#pool.knows(vdi.uuid))) {
      this.#options.say(`a disk is left of a call that failed: ${uuid}`);
      await this.#deleteVdi("what a call that failed has left", uuid);
    }
  }

  async #nothingLeft({ name, cluster, root }: PoolHost): Promise<void> {
    const what = `nothing to be left on ${name}`;
    const left = async (): Promise<string> => {
      const holder = holderClient(`${cluster.layout.runDir}/holder.sock`);
      const { entries } = await holder.call("list", {});
      const tapdisks = await cluster.output([`${root}/usr/sbin/tap-ctl`, "list"]);
      const { sessions } = await cluster.ask("session.list", {});
      const open = sessions.filter(({ caretaker, phase }) => !caretaker && phase !== "ended");
      const { snapshots } = await cluster.ask("snapshot.open_list", {});
      return [
        ...entries.map(({ id }) => `the holder has ${id}`),
        ...tapdisks.split("\n").filter((line) => line.trim() !== ""),
        ...open.map(({ volume }) => `a session has ${volume}`),
        ...snapshots.map(({ id }) => `the snapshot ${id} is open`),
      ].join("; ");
    };
    let last = "";
    try {
      await until(
        async () => {
          last = await left();
          return last === "" ? true : null;
        },
        { what, deadlineMs: 20_000, everyMs: 500 },
      );
    } catch (error) {
      throw new Broken(`${what}: ${last}`, { cause: error });
    }
  }
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
