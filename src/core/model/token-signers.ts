/**
 * Whose signature is believed under a token, of hosts or of people.
 *
 * Must always hold: an authority that is being replaced because a revoked host held its key signs nothing any more: that
 * host may have signed tokens of its own. In a planned change the old one's tokens live on.
 */
import type { Authority, Trust } from "./trust.ts";

export function tokenSigners({ authorities, rotation }: Trust): readonly Authority[] {
  return rotation?.why === "revoked" ? authorities.filter(({ state }) => state === "active") : authorities;
}
