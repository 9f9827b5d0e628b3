/**
 * Network namespaces joined by a bridge: one for each host, and one for the switch between them.
 *
 *     weft-1f2e3d-sw:  br0 ─┬─ h1 ······ eth0 :weft-1f2e3d-h1   10.77.0.11
 *                           ├─ h2 ······ eth0 :weft-1f2e3d-h2   10.77.0.12
 *                           └─ h3 ······ eth0 :weft-1f2e3d-h3   10.77.0.13
 *
 * Must always hold:
 * - nothing is made in the machine's own namespace: clusters don't meet each other, nor the machine's addresses;
 * - everything carries the cluster's key in its name, so that `remove` needs no memory of what was made.
 */
import { existsSync, readdirSync, readlinkSync } from "node:fs";

import { execa } from "execa";

const RUN_NETNS = "/run/netns";

type Member = {
  readonly name: string;
  readonly address: string;
  /** Other addresses that it has too. */
  readonly more?: readonly string[];
};

export class Network {
  readonly #key: string;

  constructor(key: string) {
    this.#key = key;
  }

  namespace(member: string): string {
    return `weft-${this.#key}-${member}`;
  }

  path(member: string): string {
    return `${RUN_NETNS}/${this.namespace(member)}`;
  }

  async create(members: readonly Member[]): Promise<void> {
    const hub = this.namespace("sw");
    await ip("netns", "add", hub);
    await ip("-n", hub, "link", "add", "br0", "type", "bridge");
    await ip("-n", hub, "link", "set", "br0", "up");
    for (const { name, address, more = [] } of members) {
      const own = this.namespace(name);
      await ip("netns", "add", own);
      await ip("-n", own, "link", "set", "lo", "up");
      await ip("-n", hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", own);
      await ip("-n", hub, "link", "set", name, "master", "br0", "up");
      for (const one of [address, ...more]) await ip("-n", own, "address", "add", `${one}/24`, "dev", "eth0");
      await ip("-n", own, "link", "set", "eth0", "up");
    }
  }

  /** Silent packet drop, both ways. Cutting twice is cutting once. */
  async cut(member: string, address: string): Promise<void> {
    await this.heal(member, address);
    for (const rule of rulesAgainst(address)) await this.#iptables(member, "-I", ...rule);
  }

  async heal(member: string, address: string): Promise<void> {
    for (const rule of rulesAgainst(address)) {
      while ((await this.#iptables(member, "-C", ...rule)) === 0) await this.#iptables(member, "-D", ...rule);
    }
  }

  /** Packets from the address never arrive at the member; those to it do. */
  async deafen(member: string, address: string): Promise<void> {
    await this.#iptables(member, "-I", "INPUT", "-s", address, "-j", "DROP");
  }

  /** Each packet of the member, to it and from it, is lost with this probability. */
  async lose(member: string, probability: number): Promise<void> {
    const dice = ["-m", "statistic", "--mode", "random", "--probability", String(probability)];
    await this.#iptables(member, "-I", "INPUT", ...dice, "-j", "DROP");
    await this.#iptables(member, "-I", "OUTPUT", ...dice, "-j", "DROP");
  }

  /** The member's link carries no more than this, each way. What does not fit waits up to 400 ms, then is dropped. */
  async slow(member: string, rate: string): Promise<void> {
    const bucket = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms"];
    await this.#tc(member, "replace", "eth0", ...bucket);
    await this.#tc("sw", "replace", member, ...bucket);
  }

  /** The member's cable is pulled: nobody is told of anything that ends there. */
  async unplug(member: string): Promise<void> {
    await ip("-n", this.namespace("sw"), "link", "set", member, "down");
  }

  /** Undoes everything that was done to the member's link. */
  async clear(member: string): Promise<void> {
    await ip("-n", this.namespace("sw"), "link", "set", member, "up");
    await this.#iptables(member, "-F");
    // Where nothing was slowed there is nothing to delete, which tc calls an error.
    await this.#tc(member, "del", "eth0", "root").catch(() => {});
    await this.#tc("sw", "del", member, "root").catch(() => {});
  }

  /** The members whose namespaces exist, whoever made them. */
  members(): readonly string[] {
    const prefix = this.namespace("");
    if (!existsSync(RUN_NETNS)) return [];
    return readdirSync(RUN_NETNS)
      .filter((name) => name.startsWith(prefix))
      .map((name) => name.slice(prefix.length));
  }

  /** How /proc/PID/ns/net spells the namespace. */
  async inode(member: string): Promise<string | null> {
    if (!existsSync(this.path(member))) return null;
    const { stdout } = await execa(
      "nsenter",
      [`--net=${this.path(member)}`, "readlink", "/proc/self/ns/net"],
      {
        reject: false,
      },
    );
    return stdout === "" || stdout === readlinkSync("/proc/self/ns/net") ? null : stdout;
  }

  /** The veths and the bridge go with their namespaces. No process may be left in them. */
  async remove(): Promise<void> {
    for (const member of this.members()) await ip("netns", "delete", this.namespace(member));
  }

  async #tc(member: string, verb: string, device: string, ...rest: readonly string[]): Promise<void> {
    const command = ["tc", "qdisc", verb, "dev", device, ...rest];
    await execa("ip", ["netns", "exec", this.namespace(member), ...command]);
  }

  /** The exit status: 1 says "no such rule" to a question. */
  async #iptables(member: string, ...rule: readonly string[]): Promise<number> {
    const asks = rule[0] === "-C";
    const result = await execa("ip", ["netns", "exec", this.namespace(member), "iptables", "-w", ...rule], {
      reject: !asks,
    });
    return result.exitCode ?? 1;
  }
}

function rulesAgainst(address: string): readonly (readonly string[])[] {
  return [
    ["INPUT", "-s", address, "-j", "DROP"],
    ["OUTPUT", "-d", address, "-j", "DROP"],
  ];
}

async function ip(...args: readonly string[]): Promise<void> {
  await execa("ip", args);
}
