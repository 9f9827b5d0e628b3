/**
 * A guest that writes single sectors all over its disk, zeroes among them.
 *
 * Must always hold: what it knows of its disk is what it was told is done, in the order in which it wrote.
 */
import { TapdiskEnd } from "./tapdisk-end.ts";
import type { SmHost } from "./world.ts";

const SECTOR = 512;

export class SectorGuest {
  readonly #expected: Buffer;
  #end: TapdiskEnd | null = null;
  #written = 0;

  /** `size`: of what it writes to, in bytes, from the disk's beginning on. */
  constructor(size: number) {
    this.#expected = Buffer.alloc(size);
  }

  async resume(host: SmHost, uuid: string): Promise<void> {
    this.#end = await TapdiskEnd.open(host.sockets.get(uuid) ?? "");
  }

  suspend(): void {
    this.#end?.close();
    this.#end = null;
  }

  async write(count: number): Promise<void> {
    for (let i = 0; i < count; i += 1) {
      this.#written += 1;
      const n = this.#written;
      const at = ((n * 389) % (this.#expected.length / SECTOR)) * SECTOR;
      const data = Buffer.alloc(SECTOR, n % 5 === 0 ? 0 : n % 251);
      await this.#end?.write(at, data);
      data.copy(this.#expected, at);
    }
  }

  /** Whether the disk holds that, and nothing else. */
  async sees(): Promise<boolean> {
    return (await this.#end?.read(0, this.#expected.length))?.equals(this.#expected) ?? false;
  }
}
