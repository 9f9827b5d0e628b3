/**
 * What this agent believes of the cluster: the mirror, who is alive, and both as the model's words.
 *
 * Must always hold: liveness is the model's machine, fed with leases as the mirror shows them.
 */
import type { Cluster } from "../model/cluster.ts";
import { initialLiveness, type LivenessEvent, type LivenessState, stepLiveness } from "../model/liveness.ts";
import { aliveOf, clusterOf, hostsOf } from "./facts.ts";
import type { Mirror } from "./mirror.ts";

export class ClusterView {
  readonly mirror: Mirror;
  readonly #onHosts: () => void;
  #liveness: LivenessState = initialLiveness(Date.now());
  #cluster: Cluster | null = null;

  /** `onHosts` is told when a host came, went, or changed between alive and away. */
  constructor(mirror: Mirror, onHosts: () => void) {
    this.mirror = mirror;
    this.#onHosts = onHosts;
    mirror.onChange(() => {
      this.#cluster = null;
      this.#look();
    });
  }

  get liveness(): LivenessState {
    return this.#liveness;
  }

  get storeUp(): boolean {
    return this.#liveness.store.kind === "up";
  }

  cluster(): Cluster {
    this.#cluster ??= clusterOf(this.mirror, this.#liveness);
    return this.#cluster;
  }

  setStore(up: boolean): void {
    const leases = [...aliveOf(this.mirror).keys()];
    this.#step([up ? { kind: "store-back", leases } : { kind: "store-lost" }]);
  }

  #look(): void {
    const hosts = hostsOf(this.mirror);
    const alive = aliveOf(this.mirror);
    const events: LivenessEvent[] = [];
    for (const { id } of hosts) {
      if (!this.#liveness.hosts.has(id)) events.push({ kind: "host-joined", host: id });
    }
    for (const host of this.#liveness.hosts.keys()) {
      if (!hosts.some(({ id }) => id === host)) events.push({ kind: "host-removed", host });
    }
    // Without the store nothing is concluded: neither from keys that are there nor from such as are not.
    if (this.storeUp) {
      for (const { id } of hosts)
        events.push({ kind: alive.has(id) ? "lease-seen" : "lease-gone", host: id });
    }
    this.#step(events);
  }

  #step(events: readonly LivenessEvent[]): void {
    const before = this.#liveness;
    let changed = false;
    for (const event of events) {
      const [next, effects] = stepLiveness(this.#liveness, event, Date.now());
      this.#liveness = next;
      changed ||= effects.length > 0;
    }
    if (before === this.#liveness) return;
    this.#cluster = null;
    if (
      changed ||
      before.hosts.size !== this.#liveness.hosts.size ||
      before.store.kind !== this.#liveness.store.kind
    ) {
      this.#onHosts();
    }
  }
}
