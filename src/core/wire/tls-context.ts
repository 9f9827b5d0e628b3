/** What a host shows to others of its cluster, and whom it believes. */
import type { Trust } from "../model/trust.ts";
import type { StoreTls } from "./store-http.ts";

/** Getters: a renewal, or a newer trust list, swaps what they return. */
export type ClientTls = StoreTls & {
  /** The list by which other hosts are judged (`judgePeer`). */
  readonly peerTrust: () => Trust;
};
