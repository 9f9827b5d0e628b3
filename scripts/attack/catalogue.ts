/** All attacks. */
import type { Attack } from "./attack.ts";
import { credentialAttacks } from "./attacks/credentials.ts";
import { floodAttacks } from "./attacks/floods.ts";
import { httpAttacks } from "./attacks/http.ts";
import { lieAttacks } from "./attacks/lies.ts";
import { membershipAttacks } from "./attacks/membership.ts";
import { plantedAttacks } from "./attacks/planted.ts";
import { revokedAttacks } from "./attacks/revoked.ts";
import { roleAttacks } from "./attacks/roles.ts";
import { socketAttacks } from "./attacks/sockets.ts";
import { storeAttacks } from "./attacks/store.ts";
import { tokenAttacks } from "./attacks/tokens.ts";
import { transportAttacks } from "./attacks/transport.ts";

export const attacks: readonly Attack[] = [
  ...transportAttacks,
  ...credentialAttacks,
  ...httpAttacks,
  ...socketAttacks,
  ...roleAttacks,
  ...lieAttacks,
  ...tokenAttacks,
  ...storeAttacks,
  ...membershipAttacks,
  ...plantedAttacks,
  ...floodAttacks,
  // The last: a host is gone after it.
  ...revokedAttacks,
];
