/**
 * The faults, as data: what each does, how it is healed, and what must hold meanwhile.
 *
 * A run of any of them: a load of stamped blocks goes on, the fault strikes, service is waited for (or what the fault
 * promises instead), it is healed, all copies are waited for, and the history of the load is judged: no acknowledged
 * write is lost, every block is linearizable, the copies are equal.
 *
 * Must always hold: a fault without a play does not compile (plays.ts), one without a row in the docs fails a test.
 */

export type Fault = {
  /** What it does. */
  readonly does: string;
  /** How it ends. */
  readonly healed: string;
  /** What must hold while it lasts, beyond what holds in every run. */
  readonly holds: string;
  /** The bars for a guest's longest wait count here. */
  readonly barred: boolean;
};

const goesOn = "the guest's writes go on while it lasts";
const outAndOn = "the copy is taken out, and the guest's writes go on without it";

export const catalogue = {
  kill: {
    does: "kill -9 to weftd on a member's host",
    healed: "weftd is started again",
    holds: outAndOn,
    barred: true,
  },
  stop: {
    does: "SIGSTOP to everything on a member's host, its member of the store included",
    healed: "SIGCONT",
    holds: outAndOn,
    barred: true,
  },
  drop: {
    does: "every packet from and to a member's host is dropped in silence (iptables)",
    healed: "the rules are taken away",
    holds: outAndOn,
    barred: true,
  },
  "power-off": {
    does: "everything on a member's host ends at once and in silence, and what its disk was not told to flush is gone",
    healed: "the host boots, with a new boot id",
    holds: outAndOn,
    barred: true,
  },
  cut: {
    does: "packets between owner and member pass one way only, in turns the one and the other",
    healed: "the rule is taken away",
    holds: outAndOn,
    barred: false,
  },
  "slow-link": {
    does: "a member's host has a link of 1 Mbit/s (tc tbf)",
    healed: "the limit is taken away",
    holds: goesOn,
    barred: false,
  },
  "lossy-link": {
    does: "each packet of a member's host is lost with a probability of 5, 10 or 20 % (iptables)",
    healed: "the rule is taken away",
    holds: goesOn,
    barred: false,
  },
  "disk-full": {
    does: "a member's pool has no space left (ENOSPC)",
    healed: "there is space again",
    holds: outAndOn,
    barred: false,
  },
  "disk-error": {
    does: "each write and flush of a member's pool fails (EIO)",
    healed: "the disk works again, and weftd is started anew: a disk that failed is not believed before",
    holds: outAndOn,
    barred: false,
  },
  "disk-stall": {
    does: "a member's pool answers nothing; its weftd does (M23)",
    healed: "the disk answers what it was asked",
    holds: outAndOn,
    barred: false,
  },
  "store-member-kill": {
    does: "kill -9 to one member of the store",
    healed: "the host's agent starts it again",
    holds: goesOn,
    barred: false,
  },
  "store-majority-loss": {
    does: "two of three members of the store are halted",
    healed: "SIGCONT",
    holds: goesOn,
    barred: false,
  },
  "store-majority-loss-kill": {
    does: "two of three members of the store are halted, and a member's weftd is killed",
    healed: "SIGCONT, then weftd is started again",
    holds: "writes wait, none fails, and they go on by themselves when the store is back",
    barred: false,
  },
  "store-restore": {
    does: "the store is lost and restored from a backup older than the volume's last changes and a member's last start, and its weftd starts again before the repair",
    healed: "weft store repair",
    holds: "nothing opens before the repair; the guest that has the volume open is not disturbed",
    barred: false,
  },
  "power-off-all": {
    does: "everything on all hosts ends at once, and what the disks were not told to flush is gone",
    healed: "the hosts boot, and the volume is attached again",
    holds: "the volume opens without anybody's help",
    barred: false,
  },
  "initiator-kill": {
    does: "kill -9 to weftd on the owner's host",
    healed: "the guest is attached on another host; weftd is started again",
    holds: "the volume opens there",
    barred: false,
  },
  steal: {
    does: "the volume is taken over by another host, while its owner lives and its guest writes",
    healed: "nothing is to be healed",
    holds: "nothing is acknowledged to the old guest any more, and it is told so",
    barred: false,
  },
  "steal-cut": {
    does: "the owner is cut off from everybody, and the volume is taken over by another host",
    healed: "the rules are taken away",
    holds: "nothing is acknowledged to the old guest any more, and it is told so when the links are back",
    barred: false,
  },
} as const satisfies Readonly<Record<string, Fault>>;

export type FaultName = keyof typeof catalogue;

export const faultNames = Object.keys(catalogue) as readonly FaultName[];

/** Of the four faults with bars, in 100 runs each. */
export const STALL_P95_MS = 2000;
export const STALL_MAX_MS = 5000;

export function isFaultName(text: string): text is FaultName {
  return Object.hasOwn(catalogue, text);
}
