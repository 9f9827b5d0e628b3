/**
 * The copies of a volume side by side, as their pools' files hold them.
 *
 * Must always hold: they are read through the mounted disk, where what was not flushed yet is there too.
 */
import { open, readdir } from "node:fs/promises";
import { join } from "node:path";

const BLOCK = 4096;
/** Of one read: a multiple of a block. */
const PIECE = 1024 * 1024;

/** Blocks in which the copies of a volume differ. A file that ends earlier reads as zeroes. */
export async function differingBlocks(pools: readonly string[], volume: string): Promise<number> {
  const copies = await Promise.all(pools.map((pool) => copyIn(pool, volume)));
  const [first, ...others] = copies;
  if (first === undefined) return 0;
  let differing = 0;
  for (const other of others) {
    for (const segment of new Set([...first.segments, ...other.segments])) {
      differing += await differingIn(join(first.dir, segment), join(other.dir, segment));
    }
  }
  return differing;
}

type Copy = { readonly dir: string; readonly segments: readonly string[] };

async function copyIn(pool: string, volume: string): Promise<Copy> {
  const all = join(pool, "replicas");
  const own = (await readdir(all)).filter((name) => name.startsWith(`${volume}.`) && !name.endsWith(".tmp"));
  const [name] = own;
  if (name === undefined || own.length > 1) throw new Error(`${own.length} copies of ${volume} in ${pool}`);
  const dir = join(all, name);
  return { dir, segments: (await readdir(dir)).filter((file) => file.startsWith("seg-")) };
}

async function differingIn(a: string, b: string): Promise<number> {
  const [left, right] = [Buffer.alloc(PIECE), Buffer.alloc(PIECE)];
  let differing = 0;
  for (let offset = 0; ; offset += PIECE) {
    const lengths = await Promise.all([readAt(a, left, offset), readAt(b, right, offset)]);
    if (Math.max(...lengths) === 0) return differing;
    for (let block = 0; block < PIECE; block += BLOCK) {
      const end = block + BLOCK;
      if (!left.subarray(block, end).equals(right.subarray(block, end))) differing += 1;
    }
  }
}

/** Bytes that were there; the rest of the piece is zeroes. */
async function readAt(path: string, into: Buffer, offset: number): Promise<number> {
  into.fill(0);
  let file;
  try {
    file = await open(path, "r");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return 0;
    throw error;
  }
  try {
    let done = 0;
    while (done < into.length) {
      const { bytesRead } = await file.read(into, done, into.length - done, offset + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return done;
  } finally {
    await file.close();
  }
}
