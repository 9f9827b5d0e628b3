/** Commands of whole SRs. */
import type { Commands } from "./call.ts";

export const srCommands: Commands = {
  /** "An SR of this content": of user's disks. */
  sr_content_type: async () => "user",
};
