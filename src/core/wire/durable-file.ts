/**
 * Files that a crash leaves whole: the old content or the new one.
 *
 * Must always hold: what was written is on stable media, and so is its name, when the promise is kept.
 */
import { mkdir, open, rename } from "node:fs/promises";
import { dirname } from "node:path";

/**
 * Written beside, flushed, renamed, and the directory flushed. The file has this mode whatever the umask, and has it
 * before the first byte is in it, also where a crash left one of another mode. A directory that is missing is made
 * under the umask: who keeps secrets in it makes it first.
 */
export async function writeDurably(
  path: string,
  content: string | Uint8Array,
  mode: number = 0o600,
): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const beside = `${path}.new`;
  const file = await open(beside, "w", mode);
  try {
    await file.chmod(mode);
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(beside, path);
  await syncDirectory(dirname(path));
}

export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
