/** What the requests of a member host are answered with. */
import type { HostId, VolumeId } from "../model/ids.ts";
import type { StoreClient } from "../wire/store-client.ts";
import type { AuthorityKeeper } from "./authority.ts";
import type { ClockWatch } from "./clock-watch.ts";
import type { ClusterView } from "./cluster-view.ts";
import type { Confirmation } from "./confirmation.ts";
import type { DevicePools } from "./device-pools.ts";
import type { EtcdProcess } from "./etcd-process.ts";
import type { HostFile } from "./host-file.ts";
import type { IdentityKeeper } from "./identity.ts";
import type { LimitKeeper } from "./limit-keeper.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import type { Log } from "./log.ts";
import type { Mirror } from "./mirror.ts";
import type { AgentOptions } from "./options.ts";
import type { Placer } from "./placer.ts";
import type { ScrubKeeper } from "./scrub-keeper.ts";
import type { StoreIdentity } from "./store-identity.ts";
import type { StoreKeeper } from "./store-keeper.ts";

export type MemberContext = {
  readonly options: AgentOptions;
  readonly self: HostFile;
  readonly host: HostId;
  readonly store: StoreClient;
  readonly mirror: Mirror;
  readonly view: ClusterView;
  readonly daemon: LocalDaemon;
  readonly devices: DevicePools;
  readonly etcd: EtcdProcess;
  readonly storeKeeper: StoreKeeper;
  readonly placer: Placer;
  readonly limitKeeper: LimitKeeper;
  readonly scrubKeeper: ScrubKeeper;
  readonly log: Log;
  readonly identity: IdentityKeeper;
  readonly authority: AuthorityKeeper;
  readonly storeIdentity: StoreIdentity;
  readonly clocks: ClockWatch;
  readonly confirmation: Confirmation;
  /** Volumes whose session without a guest here is used by a request: it is closed by that. */
  readonly held: Set<VolumeId>;
  readonly guests: GuestDevices;
  /** Disks that are being laid over others here, by their UUIDs. */
  readonly composing: Map<string, Composing>;
};

export type Composing = { readonly parent: string; readonly work: Promise<void> };

/**
 * UUIDs of disks on which a guest's device stands on this host, also where it has no connection in this moment: one that is paused
 * closes its own, and its guest waits. It rejects where nobody can say.
 */
export type GuestDevices = () => Promise<ReadonlySet<string>>;
