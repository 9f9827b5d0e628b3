/**
 * One run of one fault: load, fault, promise, healing, judgement.
 *
 * Must always hold: whatever goes wrong in a run is the run's result, with what was waited for.
 */
import { mkdirSync } from "node:fs";

import type { Host } from "../cluster/host.ts";
import type { Arena } from "./arena.ts";
import type { FaultName } from "./catalogue.ts";
import type { FaultRun } from "./figures.ts";
import { Load } from "./load.ts";
import { plays } from "./plays.ts";
import type { Scene } from "./plays.ts";

/** What can be had in more ways than one takes turns over the runs of a fault. */
type Casting = {
  /** The owner has a copy on its own host. */
  readonly local: boolean;
  /** The faulty host, or one of them, has the store's leader. */
  readonly leader: boolean;
};

/** Acknowledgements before the fault and after it. */
const WARM = 200;

/** Where all hosts are faulty, one of them has the leader. */
const alwaysLeader: ReadonlySet<FaultName> = new Set(["power-off-all", "store-restore"]);

export function castingOf(fault: FaultName, turn: number): Casting {
  return {
    leader: turn % 2 === 0 || alwaysLeader.has(fault),
    local: Math.floor(turn / 2) % 2 === 1,
  };
}

/** `scratch` is the run's own; what it holds of a failed run is worth keeping. */
export async function playRun(
  arena: Arena,
  fault: FaultName,
  turn: number,
  scratch: string,
): Promise<FaultRun> {
  mkdirSync(scratch, { recursive: true });
  const play = plays[fault];
  const { leader, local } = castingOf(fault, turn);
  const { leaderOn, ...cast } = castOf(arena, fault, { leader, local });
  const result = { fault, leader, stallMs: null, lostAcks: 0, nonlinear: 0 };
  let load: Load | null = null;
  try {
    const socket = await arena.settle({ owner: cast.owner, leader: leaderOn });
    load = await Load.start({ socket, scratch, dir: arena.cluster.dir, seed: turn });
    const scene: Scene = { arena, load, turn, scratch, ...cast };
    await load.acknowledges(WARM);
    load.mark("fault");
    await play.strike(scene);
    await play.promise(scene);
    load.mark("promise kept");
    await play.heal(scene);
    const last = play.attachedAnew === "refuge" ? cast.refuge : cast.owner;
    await load.acknowledges(WARM);
    await arena.allInSync(last);
    load.mark("healed");
    const { failures, ...judged } = await load.finish();
    const differing = await arena.differingBlocks();
    const wrong = [
      differing === 0 ? [] : `${differing} blocks of the copies differ`,
      failures === 0 || play.attachedAnew !== undefined ? [] : `${failures} requests of the guest failed`,
    ].flat();
    return { ...result, ...judged, broken: wrong.length === 0 ? null : wrong.join("; ") };
  } catch (error) {
    return { ...result, broken: error instanceof Error ? error.message : String(error) };
  } finally {
    load?.end();
  }
}

type Cast = Pick<Scene, "owner" | "victim" | "refuge" | "halted"> & { readonly leaderOn: Host };

/**
 *     diskless: guest on h3, copies on h1 and h2        local: guest on h1, copies on h1 and h2
 *
 * h2 is the faulty member in both; a guest that leaves goes to h1, or from there to h3.
 */
function castOf(arena: Arena, fault: FaultName, { leader, local }: Casting): Cast {
  const [h1, h2, h3] = [arena.host("h1"), arena.host("h2"), arena.host("h3")];
  const [owner, refuge] = local ? [h1, h3] : [h3, h1];
  const faulty = plays[fault].attachedAnew === "refuge" ? owner : h2;
  const [spare = faulty, other = faulty] = arena.others(faulty);
  const leaderOn = leader ? faulty : spare;
  // Of the store: with the leader among them, or the two that it leads.
  const halted: readonly [Host, Host] = leader ? [faulty, spare] : [faulty, other];
  return { owner, victim: h2, refuge, halted, leaderOn };
}
