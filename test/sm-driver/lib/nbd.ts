/**
 * Both sides of NBD, as far as tapdisk speaks it: one export, reads and writes, simple replies.
 *
 * Must always hold: an answer carries the number of what was asked; nothing is answered twice.
 */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

const OPTION = Buffer.from("IHAVEOPT");
const INIT = Buffer.concat([Buffer.from("NBDMAGIC"), OPTION]);
const OPTION_REPLY = Buffer.from("0003e889045565a9", "hex");
const REQUEST = 0x25609513;
const REPLY = 0x67446698;
const EXPORT_NAME = 1;
const GO = 7;
export const EIO = 5;

export const nbdRead = 0;
export const nbdWrite = 1;
const DISCONNECT = 2;
const FLUSH = 3;

/** What a request is answered: an error's number, or 0 and what a read found. */
export type NbdAnswer = { readonly error: number; readonly data: Buffer };

/** Whatever serves requests. */
export type NbdBackend = {
  readonly size: () => bigint;
  readonly ask: (command: number, offset: bigint, length: number, data: Buffer) => Promise<NbdAnswer>;
};

/** A stream of bytes, taken in pieces. */
class Bytes {
  readonly #parts: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#parts = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  async take(length: number): Promise<Buffer> {
    const parts = [this.#rest];
    let have = this.#rest.length;
    while (have < length) {
      const next = await this.#parts.next();
      if (next.done === true) throw new Error("the connection was closed");
      parts.push(next.value);
      have += next.value.length;
    }
    const all = Buffer.concat(parts);
    this.#rest = all.subarray(length);
    return all.subarray(0, length);
  }
}

/** A client that disables itself for good at the first error, as tapdisk's. */
export class NbdClient implements NbdBackend {
  readonly #socket: Socket;
  readonly #waiters = new Map<
    bigint,
    { readonly length: number; readonly done: (answer: NbdAnswer) => void }
  >();
  readonly #size: bigint;
  #next = 1n;
  #dead = false;

  private constructor(socket: Socket, size: bigint, bytes: Bytes) {
    this.#socket = socket;
    this.#size = size;
    socket.on("error", () => socket.destroy());
    this.#listen(bytes).then(
      () => this.#die(),
      () => this.#die(),
    );
  }

  static async connect(path: string): Promise<NbdClient> {
    const socket = connect(path);
    await once(socket, "connect");
    const bytes = new Bytes(socket);
    const greeting = await bytes.take(18);
    if (!greeting.subarray(0, 16).equals(INIT)) throw new Error("no NBD server of the newstyle");
    const name = Buffer.from("tapdisk_client");
    const option = Buffer.alloc(8);
    option.writeUInt32BE(EXPORT_NAME);
    option.writeUInt32BE(name.length, 4);
    socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), OPTION, option, name]));
    const told = await bytes.take(10);
    return new NbdClient(socket, told.readBigUInt64BE(), bytes);
  }

  get isDead(): boolean {
    return this.#dead;
  }

  get underWay(): number {
    return this.#waiters.size;
  }

  size = (): bigint => this.#size;

  ask = async (command: number, offset: bigint, length: number, data: Buffer): Promise<NbdAnswer> => {
    if (this.#dead) return { error: EIO, data: Buffer.alloc(0) };
    const head = Buffer.alloc(28);
    const cookie = this.#next;
    this.#next += 1n;
    head.writeUInt32BE(REQUEST);
    head.writeUInt16BE(command, 6);
    head.writeBigUInt64BE(cookie, 8);
    head.writeBigUInt64BE(offset, 16);
    head.writeUInt32BE(length, 24);
    const answered = new Promise<NbdAnswer>((resolve) => {
      this.#waiters.set(cookie, { length: command === nbdRead ? length : 0, done: resolve });
    });
    this.#socket.write(command === nbdWrite ? Buffer.concat([head, data]) : head);
    return answered;
  };

  close(): void {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(REQUEST);
    head.writeUInt16BE(DISCONNECT, 6);
    this.#socket.end(head);
  }

  async #listen(bytes: Bytes): Promise<void> {
    for (;;) {
      const head = await bytes.take(16);
      const waiter = this.#waiters.get(head.readBigUInt64BE(8));
      if (head.readUInt32BE() !== REPLY || waiter === undefined) throw new Error("an answer to nothing");
      const error = head.readUInt32BE(4);
      const data = error === 0 ? Buffer.from(await bytes.take(waiter.length)) : Buffer.alloc(0);
      this.#waiters.delete(head.readBigUInt64BE(8));
      waiter.done({ error, data });
      if (error !== 0) throw new Error(`error ${error}`);
    }
  }

  #die(): void {
    this.#dead = true;
    this.#socket.destroy();
    for (const { done } of this.#waiters.values()) done({ error: EIO, data: Buffer.alloc(0) });
    this.#waiters.clear();
  }
}

/** Serves one export; the returned function ends it and all connections. */
export async function serveNbd(path: string, backend: NbdBackend): Promise<() => Promise<void>> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    serveOne(socket, backend).then(
      () => socket.end(),
      () => socket.destroy(),
    );
  });
  server.listen(path);
  await once(server, "listening");
  return async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, "close");
  };
}

async function serveOne(socket: Socket, backend: NbdBackend): Promise<void> {
  const bytes = new Bytes(socket);
  socket.write(Buffer.concat([INIT, Buffer.from([0, 3])]));
  await bytes.take(4);
  const told = Buffer.alloc(10);
  told.writeBigUInt64BE(backend.size());
  told.writeUInt16BE(1, 8);
  for (;;) {
    const head = await bytes.take(16);
    const option = head.readUInt32BE(8);
    await bytes.take(head.readUInt32BE(12));
    if (option === EXPORT_NAME) {
      socket.write(told);
      break;
    }
    const reply = (kind: number, body: Buffer): Buffer => {
      const rest = Buffer.alloc(12);
      rest.writeUInt32BE(option);
      rest.writeUInt32BE(kind, 4);
      rest.writeUInt32BE(body.length, 8);
      return Buffer.concat([OPTION_REPLY, rest, body]);
    };
    if (option === GO) {
      socket.write(
        Buffer.concat([reply(3, Buffer.concat([Buffer.from([0, 0]), told])), reply(1, Buffer.alloc(0))]),
      );
      break;
    }
    socket.write(reply(2 ** 31 + 1, Buffer.alloc(0)));
  }
  for (;;) {
    const head = await bytes.take(28);
    const command = head.readUInt16BE(6);
    if (command === DISCONNECT) return;
    const length = head.readUInt32BE(24);
    const data = command === nbdWrite ? Buffer.from(await bytes.take(length)) : Buffer.alloc(0);
    const cookie = head.subarray(8, 16);
    const answer = async (): Promise<void> => {
      const none = { error: 0, data: Buffer.alloc(0) };
      const { error, data: found } =
        command === FLUSH ? none : await backend.ask(command, head.readBigUInt64BE(16), length, data);
      const reply = Buffer.alloc(16);
      reply.writeUInt32BE(REPLY);
      reply.writeUInt32BE(error, 4);
      cookie.copy(reply, 8);
      socket.write(Buffer.concat([reply, found]));
    };
    answer().catch(() => socket.destroy());
  }
}

/** A disk in memory. */
export function memoryDisk(size: number): NbdBackend & { bytes: Buffer } {
  const disk = {
    bytes: Buffer.alloc(size),
    size: () => BigInt(disk.bytes.length),
    ask: async (command: number, offset: bigint, length: number, data: Buffer): Promise<NbdAnswer> => {
      const at = Number(offset);
      if (command === nbdRead) return { error: 0, data: Buffer.from(disk.bytes.subarray(at, at + length)) };
      data.copy(disk.bytes, at);
      return { error: 0, data: Buffer.alloc(0) };
    },
  };
  return disk;
}
