/** The guest's end of a tapdisk, as XAPI and its storage migration find it from what attach has said. */
import { once } from "node:events";
import { realpathSync } from "node:fs";
import { connect } from "node:net";
import { basename, dirname, join } from "node:path";

import { NbdClient, nbdRead, nbdWrite } from "./nbd.ts";

/** `link`: the socket of `params_nbd`. Its own name is what XAPI reads the tapdisk's pid from. */
export function tapdiskOf(link: string): { readonly socket: string; readonly pid: number } {
  const socket = realpathSync(link);
  const found = /^nbd(\d+)\.(\d+)$/.exec(basename(socket));
  if (found === null) throw new Error(`No tapdisk found for NBD backend: ${link}`);
  return { socket, pid: Number(found[1]) };
}

/** As XAPI passes a connection to what is served at `to`: from now on the tapdisk knows it by that name. */
export async function handOver(link: string, name: string, to: string): Promise<void> {
  const { socket, pid } = tapdiskOf(link);
  const receiver = connect(join(dirname(socket), `nbdclient${pid}`));
  await once(receiver, "connect");
  receiver.write(`${name} ${to}\n`);
  await once(receiver, "data");
  receiver.end();
}

export class TapdiskEnd {
  readonly #client: NbdClient;

  private constructor(client: NbdClient) {
    this.#client = client;
  }

  static async open(link: string): Promise<TapdiskEnd> {
    return new TapdiskEnd(await NbdClient.connect(tapdiskOf(link).socket));
  }

  get size(): number {
    return Number(this.#client.size());
  }

  async write(at: number, data: Buffer): Promise<void> {
    const { error } = await this.#client.ask(nbdWrite, BigInt(at), data.length, data);
    if (error !== 0) throw new Error(`a write at ${at} failed: ${error}`);
  }

  async read(at: number, length: number): Promise<Buffer> {
    const { error, data } = await this.#client.ask(nbdRead, BigInt(at), length, Buffer.alloc(0));
    if (error !== 0) throw new Error(`a read at ${at} failed: ${error}`);
    return data;
  }

  close(): void {
    this.#client.close();
  }
}
