/**
 * Keys of the store by the thing that they are about, so that looking at one volume among thousands costs what it has itself.
 *
 *     /weft/v1/vol/ID/want      area vol, thing ID
 *     /weft/v1/host/ID          area host, no thing of its own
 *
 * Must always hold: `under(prefix)` gives every entry whose key begins so, and no other; in the order in which things came.
 */
import type { Entry } from "../wire/store-client.ts";
import { ROOT } from "../wire/store-keys.ts";

type Things = Map<string, Map<string, Entry>>;

export class KeyIndex {
  readonly #areas = new Map<string, Things>();

  constructor(entries: readonly Entry[] = []) {
    for (const entry of entries) this.set(entry);
  }

  get(key: string): Entry | null {
    const [area, thing] = placeOf(key);
    return this.#areas.get(area)?.get(thing)?.get(key) ?? null;
  }

  set(entry: Entry): void {
    const [area, thing] = placeOf(entry.key);
    const things = this.#areas.get(area) ?? new Map<string, Map<string, Entry>>();
    const entries = things.get(thing) ?? new Map<string, Entry>();
    this.#areas.set(area, things.set(thing, entries.set(entry.key, entry)));
  }

  delete(key: string): void {
    const [area, thing] = placeOf(key);
    const things = this.#areas.get(area);
    const entries = things?.get(thing);
    entries?.delete(key);
    if (entries?.size === 0) things?.delete(thing);
  }

  all(): readonly Entry[] {
    return [...this.#areas.values()].flatMap(entriesOf);
  }

  under(prefix: string): readonly Entry[] {
    return this.#near(prefix).filter(({ key }) => key.startsWith(prefix));
  }

  /** As little as has all of them: only what stands before a slash is whole. */
  #near(prefix: string): readonly Entry[] {
    const [area = "", thing, ...rest] = partsOf(prefix);
    if (!prefix.startsWith(ROOT) || thing === undefined) return this.all();
    const things = this.#areas.get(area);
    if (things === undefined) return [];
    return rest.length === 0 ? entriesOf(things) : [...(things.get(thing)?.values() ?? [])];
  }
}

function entriesOf(things: Things): readonly Entry[] {
  return [...things.values()].flatMap((entries) => [...entries.values()]);
}

/** Keys of one area that have no more behind it than a name stand together. */
function placeOf(key: string): readonly [area: string, thing: string] {
  const [area = "", thing = "", ...rest] = partsOf(key);
  return [area, rest.length === 0 ? "" : thing];
}

function partsOf(key: string): readonly string[] {
  return (key.startsWith(ROOT) ? key.slice(ROOT.length) : `/${key}`).split("/");
}
