/** Commands of single VDIs. None is built yet: the driver declares none of them, and refuses them by name. */
import type { Commands } from "./call.ts";

export const vdiCommands: Commands = {};
