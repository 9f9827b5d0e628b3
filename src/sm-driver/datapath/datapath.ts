/**
 * How a volume's socket becomes a block device of dom0 and a disk of a guest.
 *
 * Must always hold, whatever is behind it:
 * - each of these is idempotent, also after a crash in the middle of it: XAPI repeats them;
 * - a device never outlives the ownership that its volume was activated with, and no request that is not answered does.
 */

export type DatapathVdi = { readonly sr: string; readonly vdi: string };

export type Attached = {
  /** Path of the block device. Null: blktap makes none here, and what XAPI gets is the NBD socket alone. */
  readonly params: string | null;
  /** `nbd:unix:SOCKET:exportname=NAME`. */
  readonly paramsNbd: string;
  readonly xenstoreData: Readonly<Record<string, string>>;
};

/** What the volume was opened as. */
export type Activation = {
  readonly writable: boolean;
  /** weftd's NBD socket. */
  readonly exportPath: string;
  /** Bytes. */
  readonly size: bigint;
  readonly volume: string;
  /** Null: it is read without one. */
  readonly session: string | null;
  /** Null: it is the volume itself. */
  readonly snapshot: string | null;
};

/** The one that a PBD's device-config asks for. */
export type DatapathOf = (deviceConfig: ReadonlyMap<string, string>) => Datapath;

export type DatapathUser = {
  readonly vdi: string;
  /** A client has it open. */
  readonly connected: boolean;
  /** It writes to the volume itself, which is this host's still. */
  readonly writes: boolean;
  /** The size that its device knows, in bytes; null: not known, or it never grows. */
  readonly size: bigint | null;
};

export interface Datapath {
  /** Bookkeeping alone: nothing is opened, so that two hosts can have it attached (design xapi.md 3.6). */
  attach(vdi: DatapathVdi & { readonly writable: boolean }): Promise<Attached>;
  activate(vdi: DatapathVdi & Activation): Promise<void>;
  /** Ends what a guest's device was served by: afterwards no request of it reaches the volume. */
  deactivate(vdi: DatapathVdi): Promise<void>;
  detach(vdi: DatapathVdi): Promise<void>;
  /**
   * `work` is done while the guest writes nothing, and from its end on all that the guest writes goes to `mirror` too (`nbd:NAME`, or
   * `null` for nowhere any more). Where either fails the guest goes on.
   */
  mirrored<T>(vdi: DatapathVdi, mirror: string, work: () => Promise<T>): Promise<T>;
  /**
   * The volume has this size now: the device of a running guest learns it, where it can. False: it doesn't take another size while it
   * serves its guest, who sees it when the disk is activated next.
   */
  resized(vdi: DatapathVdi, size: bigint): Promise<boolean>;
  /** Held, for a planned restart. */
  pause(vdi: DatapathVdi): Promise<void>;
  unpause(vdi: DatapathVdi): Promise<void>;
  /** What this host has activated. */
  users(): Promise<readonly DatapathUser[]>;
}
