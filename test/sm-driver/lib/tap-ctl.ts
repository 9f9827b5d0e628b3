/**
 * tap-ctl's double, and its tapdisk's: a program with the commands that the datapath uses. A tapdisk of it is a process with
 * a real NBD client that is disabled for good by the first error, and serves `nbd<pid>.<minor>` to whoever checks.
 *
 *     tap-ctl.ts ROOT list | create -a TYPE:PATH [-R]
 *     tap-ctl.ts ROOT destroy|pause|unpause|stats -p PID -m MINOR [-t S] [-a TYPE:PATH] [-2 nbd:NAME|null]
 *     tap-ctl.ts ROOT tapdisk MINOR TYPE:PATH
 *
 * Must always hold:
 * - what `list` says is what the processes say; one that died isn't listed;
 * - it has block devices where blktap 3's control device is, and else is blktap 4, of which a minor is a file (XCP-ng 9);
 * - one that is opened anew has the size that it had, or it stays paused, as blktap's does, unless the test says otherwise;
 * - told of a second place it does what blktap's does (drivers/tapdisk-vbd.c, block-nbd.c), also where that is wrong: its own `nbd:`
 *   reads zeroes then, a place of another size is dropped in silence, and one that isn't paused refuses, and has been told all the same.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { EIO, type NbdAnswer, NbdClient, nbdRead, nbdWrite, serveNbd } from "./nbd.ts";

/**
 * `ROOT/usr/sbin/tap-ctl` is this program from now on. Without `nodes` it is the one of XCP-ng 9; with `takesSizes` one that nobody has
 * yet, of which a tapdisk that is opened anew takes another size.
 */
export function installTapCtl(
  root: string,
  { nodes = true, takesSizes = false }: { readonly nodes?: boolean; readonly takesSizes?: boolean } = {},
): void {
  const program = join(root, "usr/sbin/tap-ctl");
  const { control, devices, nodesOf, takesSizesOf } = places(root);
  if (takesSizes) {
    mkdirSync(control, { recursive: true });
    writeFileSync(takesSizesOf, "");
  }
  if (nodes) {
    mkdirSync(devices, { recursive: true });
    writeFileSync(nodesOf, "");
  }
  mkdirSync(join(root, "usr/sbin"), { recursive: true });
  writeFileSync(program, `#!/bin/sh\nexec "${process.execPath}" "${import.meta.filename}" "${root}" "$@"\n`);
  chmodSync(program, 0o755);
}

type Order = {
  readonly op: "close" | "pause" | "unpause" | "show" | "stats";
  readonly seconds?: number;
  readonly args?: string;
  readonly second?: string;
};

/** What `create` makes of a minor, and names. */
function deviceOf(root: string, minor: number): string {
  const { devices, minors, nodesOf } = places(root);
  return existsSync(nodesOf) ? join(devices, `tapdev${minor}`) : join(minors, `tapdisk-${minor}`);
}

const places = (root: string) => {
  const control = join(root, "run/blktap-control");
  return {
    control,
    double: join(control, "double"),
    devices: join(root, "dev/xen/blktap-2"),
    nodesOf: join(root, "dev/xen/blktap-2/control"),
    minors: join(control, "tapdisk"),
    takesSizesOf: join(control, "takes-sizes"),
    socketOf: (minor: number) => join(control, "double", `${minor}`, "ctl"),
  };
};

/** The socket of what it is opened as. */
function pathOf(args: string): string {
  const path = args.slice(args.indexOf(":") + 1);
  if (!args.startsWith("x-chain:")) return path;
  return /^nbd:([^ \n]+)(?: ro)?\n$/.exec(readFileSync(path, "utf8"))?.[1] ?? "";
}

/** What it has open: its disk, and a second place. */
class Images {
  /** What XAPI has handed over: by name, whose socket it is. */
  readonly passed = new Map<string, string>();
  args: string;
  main!: NbdClient;
  mirror: NbdClient | null = null;
  hasFailed = false;
  /** blktap's TD_OPEN_SECONDARY, and the name that stays with it. */
  #isSecondary = false;
  #second = "";
  /** Its own disk was opened as if it were the second place. */
  #readsZeroes = false;

  constructor(args: string) {
    this.args = args;
  }

  tell(second: string): void {
    [this.#isSecondary, this.#second] = [true, second];
  }

  async open(args: string = this.args): Promise<void> {
    this.#readsZeroes = this.#isSecondary && !args.startsWith("x-chain:");
    const main = await NbdClient.connect(pathOf(args));
    this.args = args;
    this.main = main;
    this.mirror = null;
    if (!this.#isSecondary) return;
    if (this.#second === "null") {
      this.hasFailed = false;
      return;
    }
    const path = this.passed.get(this.#second.slice("nbd:".length));
    const mirror = path === undefined ? null : await NbdClient.connect(path).catch(() => null);
    if (mirror === null) this.hasFailed = true;
    // It fails, with which the flag is forgotten, and tries again.
    else if (mirror.size() !== main.size()) this.#isSecondary = false;
    else this.mirror = mirror;
  }

  close(): void {
    this.main.close();
    this.mirror?.close();
  }

  get isIdle(): boolean {
    return this.main.underWay === 0 && (this.mirror?.underWay ?? 0) === 0;
  }

  async ask(command: number, offset: bigint, length: number, data: Buffer): Promise<NbdAnswer> {
    if (command === nbdRead && this.#readsZeroes) return { error: 0, data: Buffer.alloc(length) };
    const second = command === nbdWrite ? this.mirror : null;
    const [answer, mirrored] = await Promise.all([
      this.main.ask(command, offset, length, data),
      second?.ask(command, offset, length, data),
    ]);
    if (mirrored !== undefined && mirrored.error !== 0) [this.mirror, this.hasFailed] = [null, true];
    return answer;
  }

  get stats(): string {
    const images = [this.main, ...(this.mirror === null ? [] : [this.mirror])].map(() => ({
      driver: { type: 15 },
    }));
    return JSON.stringify({
      name: this.args,
      images,
      nbd_mirror_failed: Number(this.hasFailed),
      reqs_outstanding: 0,
    });
  }
}

async function tapdisk(root: string, minor: number, args: string): Promise<void> {
  const { control, double, socketOf, takesSizesOf } = places(root);
  const images = new Images(args);
  await images.open();
  let size = images.main.size();
  let paused: { readonly over: Promise<void>; readonly end: () => void } | null = null;
  const nbd = join(control, `nbd${process.pid}.${minor}`);
  const idle = async (seconds: number): Promise<boolean> => {
    for (const until = Date.now() + seconds * 1000; !images.isIdle;) {
      if (Date.now() > until) return false;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return true;
  };
  const stop = await serveNbd(nbd, {
    size: () => images.main.size(),
    ask: async (command, offset, length, data) => {
      await paused?.over;
      if (images.main.isDead) return { error: EIO, data: Buffer.alloc(0) };
      return images.ask(command, offset, length, data);
    },
  });
  // In place of a connection XAPI hands over its name and whose it is.
  const handed = join(control, `nbdclient${process.pid}`);
  const receiver = createServer((socket) => {
    socket.on("error", () => socket.destroy());
    socket.once("data", (line) => {
      const [name = "", path = ""] = line.toString().trim().split(" ");
      images.passed.set(name, path);
      socket.end("ok\n");
    });
  });
  receiver.listen(handed);
  const obey = async ({ op, seconds = 120, args: as, second }: Order): Promise<string> => {
    if (op === "show")
      return `pid=${process.pid} minor=${minor} state=${paused === null ? "0" : "0x20"} args=${images.args}`;
    if (op === "stats") return images.stats;
    if (op === "unpause") {
      if (second !== undefined) images.tell(second);
      if (paused === null) return "error: Invalid argument";
      await images.open(as);
      if (images.main.size() !== size && !existsSync(takesSizesOf)) {
        // As tapdisk_vbd_resume: it stays paused.
        images.close();
        return "error: Wrong medium type";
      }
      size = images.main.size();
      paused.end();
      paused = null;
      return "";
    }
    if (!(await idle(seconds))) return "error: Connection timed out";
    images.close();
    if (op === "pause") {
      const { promise, resolve } = Promise.withResolvers<void>();
      paused = { over: promise, end: resolve };
      return "";
    }
    await stop();
    rmSync(nbd, { force: true });
    rmSync(handed, { force: true });
    rmSync(deviceOf(root, minor), { force: true });
    rmSync(join(double, `${minor}`), { recursive: true });
    setImmediate(() => process.exit(0));
    return "";
  };
  const server = createServer((socket) => {
    socket.on("error", () => socket.destroy());
    socket.once("data", (line) => {
      obey(JSON.parse(line.toString()) as Order).then(
        (answer) => socket.end(`${answer}\n`),
        (error: unknown) => socket.end(`error: ${String(error)}\n`),
      );
    });
  });
  server.listen(socketOf(minor));
  await once(server, "listening");
  process.stdout.write("ready\n");
}

async function order(root: string, minor: number, what: Order): Promise<string> {
  const socket = connect(places(root).socketOf(minor));
  await once(socket, "connect");
  socket.write(JSON.stringify(what));
  const chunks: Buffer[] = [];
  for await (const chunk of socket as AsyncIterable<Buffer>) chunks.push(chunk);
  const answer = Buffer.concat(chunks).toString().trim();
  if (answer.startsWith("error: ")) throw new Error(answer.slice(7));
  return answer;
}

async function list(root: string): Promise<void> {
  for (const name of readdirSync(places(root).double)) {
    const shown = await order(root, Number(name), { op: "show" }).catch(() => `minor=${name}`);
    process.stdout.write(`${shown}\n`);
  }
}

async function create(root: string, args: string): Promise<void> {
  const { double, minors, nodesOf } = places(root);
  if (!existsSync(nodesOf)) mkdirSync(minors, { recursive: true });
  let minor = 0;
  for (; ; minor += 1) {
    try {
      mkdirSync(join(double, `${minor}`));
      break;
    } catch {
      // It is another one's.
    }
  }
  const device = deviceOf(root, minor);
  const child = spawn(process.execPath, [import.meta.filename, root, "tapdisk", `${minor}`, args], {
    detached: true,
    stdio: ["ignore", "pipe", "ignore"],
  });
  const [line] = (await Promise.race([once(child.stdout, "data"), once(child, "exit")])) as [unknown];
  if (!Buffer.isBuffer(line)) {
    rmSync(join(double, `${minor}`), { recursive: true });
    throw new Error(`the tapdisk ended with ${String(line)}`);
  }
  writeFileSync(device, "");
  process.stdout.write(`${device}\n`);
  child.unref();
  child.stdout.destroy();
}

async function main([root = "", command = "", ...rest]: readonly string[]): Promise<void> {
  mkdirSync(places(root).double, { recursive: true });
  if (command === "tapdisk") return tapdisk(root, Number(rest[0]), rest[1] ?? "");
  const text = { type: "string" } as const;
  const { values } = parseArgs({
    args: [...rest],
    options: {
      a: { ...text, short: "a" },
      p: { ...text, short: "p" },
      m: { ...text, short: "m" },
      t: { ...text, short: "t" },
      second: { ...text, short: "2" },
      R: { type: "boolean", short: "R" },
    },
  });
  const minor = Number(values.m ?? "-1");
  const seconds = Number(values.t ?? "120");
  switch (command) {
    case "list":
      return list(root);
    case "create":
      return create(root, values.a ?? "");
    case "destroy":
      await order(root, minor, { op: "close", seconds });
      return;
    case "pause":
      await order(root, minor, { op: command, seconds });
      return;
    case "unpause": {
      const { a: as, second } = values;
      await order(root, minor, {
        op: command,
        ...(as === undefined ? {} : { args: as }),
        ...(second === undefined ? {} : { second }),
      });
      return;
    }
    case "stats":
      process.stdout.write(`${await order(root, minor, { op: command })}\n`);
      return;
    default:
      throw new Error(`no command ${command}`);
  }
}

if (process.argv[1] === import.meta.filename) {
  try {
    await main(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`tap-ctl: ${String(error)}\n`);
    process.exitCode = 1;
  }
}
