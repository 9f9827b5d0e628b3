/** `weft3://SR/VDI`: by which SMAPIv3's datapath is told its disk. */
import { uuid } from "../../core/wire/json-types.ts";

const SCHEME = "weft3";

export function uriOf({ sr, vdi }: { readonly sr: string; readonly vdi: string }): string {
  return `${SCHEME}://${sr}/${vdi}`;
}

/** Null: it is none of ours. */
export function parseUri(text: string): { readonly sr: string; readonly vdi: string } | null {
  const found = /^weft3:\/\/([^/]*)\/([^/]*)$/.exec(text);
  const sr = uuid.safeParse(found?.[1]);
  const vdi = uuid.safeParse(found?.[2]);
  return sr.success && vdi.success ? { sr: sr.data, vdi: vdi.data } : null;
}
