/** The doors that TypeScript guards, by name. */
import { openAuthorization } from "./authorization.ts";
import { openCli } from "./cli.ts";
import { openContexts } from "./contexts.ts";
import { openDaemonLines } from "./daemon-lines.ts";
import type { OpenDoor } from "./door.ts";
import { openHostDoor } from "./host-door.ts";
import { openJoinToken } from "./join-token.ts";
import { openRest } from "./rest.ts";
import { openSignedDoor } from "./signed.ts";
import { openSmDriver } from "./sm-driver.ts";
import { openStoreValues } from "./store-values.ts";

export const doors: ReadonlyMap<string, () => Promise<OpenDoor>> = new Map([
  ["authorization", openAuthorization],
  ["cli", openCli],
  ["contexts", openContexts],
  ["daemon-lines", openDaemonLines],
  ["host-door", openHostDoor],
  ["join-token", openJoinToken],
  ["rest", openRest],
  ["signed", openSignedDoor],
  ["sm-driver", openSmDriver],
  ["store-values", openStoreValues],
]);
