/**
 * Who is at the other end of a connection.
 *
 * Must always hold: a connection whose other end the kernel does not name is nobody's.
 */
import type { Socket } from "node:net";

import type { Principal } from "../model/roles.ts";
import { type Addon, descriptorOf, type PeerCredentials } from "../wire/addon.ts";

/**
 * By the kernel's word at `connect`: root, the user as whom the agent runs, and, when a group was named, whoever the
 * socket's mode let in besides.
 */
export class UnixPrincipals {
  readonly #addon: Pick<Addon, "peerCredentials">;
  readonly #ownUid: number;
  readonly #viewers: boolean;
  readonly #known = new WeakMap<Socket, Principal>();

  constructor(addon: Pick<Addon, "peerCredentials">, ownUid: number, viewers: boolean) {
    this.#addon = addon;
    this.#ownUid = ownUid;
    this.#viewers = viewers;
  }

  of(socket: Socket): Principal {
    const known = this.#known.get(socket);
    if (known !== undefined) return known;
    const principal = this.#ask(socket);
    this.#known.set(socket, principal);
    return principal;
  }

  #ask(socket: Socket): Principal {
    const fd = descriptorOf(socket);
    if (fd === null) return { kind: "nobody", address: "unix" };
    let peer: PeerCredentials;
    try {
      peer = this.#addon.peerCredentials(fd);
    } catch {
      return { kind: "nobody", address: "unix" };
    }
    const { uid, pid } = peer;
    if (uid === 0 || uid === this.#ownUid) return { kind: "root", uid, pid };
    return this.#viewers ? { kind: "group", uid, pid } : { kind: "nobody", address: `unix uid ${uid}` };
  }
}
