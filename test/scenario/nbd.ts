/** A guest's disk as a test reads and writes it itself: one request at a time, so that it knows what came after what. */
import { connect, type Socket } from "node:net";

const FIXED_NEWSTYLE_NO_ZEROES = 3;
const EXPORT_NAME = 1;
const REQUEST = 0x2560_9513;
const REPLY = 0x6744_6698;
const READ = 0;
const WRITE = 1;

export class Disk implements Disposable {
  readonly #socket: Socket;
  readonly #bytes: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#bytes = (socket as AsyncIterable<Buffer>)[Symbol.asyncIterator]();
  }

  static async open(path: string): Promise<Disk> {
    const disk = new Disk(connect(path));
    await disk.#take(18);
    const hello = Buffer.alloc(20);
    hello.writeUInt32BE(FIXED_NEWSTYLE_NO_ZEROES, 0);
    hello.write("IHAVEOPT", 4, "latin1");
    hello.writeUInt32BE(EXPORT_NAME, 12);
    disk.#socket.write(hello);
    await disk.#take(10);
    return disk;
  }

  async read(offset: number, len: number): Promise<Buffer> {
    await this.#ask(READ, offset, len, null);
    return this.#take(len);
  }

  async write(offset: number, data: Buffer): Promise<void> {
    await this.#ask(WRITE, offset, data.length, data);
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  async #ask(kind: number, offset: number, len: number, data: Buffer | null): Promise<void> {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(REQUEST, 0);
    head.writeUInt16BE(kind, 6);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(len, 24);
    this.#socket.write(data === null ? head : Buffer.concat([head, data]));
    const reply = await this.#take(16);
    const error = reply.readUInt32BE(4);
    if (reply.readUInt32BE(0) !== REPLY || error !== 0)
      throw new Error(`NBD: request ${kind}: error ${error}`);
  }

  async #take(len: number): Promise<Buffer> {
    while (this.#rest.length < len) {
      const { done, value } = await this.#bytes.next();
      if (done === true) throw new Error("NBD: the other end has closed");
      this.#rest = Buffer.concat([this.#rest, value]);
    }
    const taken = this.#rest.subarray(0, len);
    this.#rest = this.#rest.subarray(len);
    return taken;
  }
}
