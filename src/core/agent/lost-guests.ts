/**
 * Disks of this host's guests that have lost their volumes: another host took the volume while weftd was away here, and the holder has told
 * the guest so (ADR 0026). Nothing of them comes back by itself, and XAPI does not know of it.
 *
 * Must always hold: who asks for the state of all is answered whatever the holder says; a holder that says nothing is a line of its own.
 */
import { finding, type Finding } from "../model/finding.ts";
import type { VolumeId } from "../model/ids.ts";
import { isWeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import { readable } from "./facts.ts";
import { heldHere } from "./holder.ts";
import { vdiOf } from "./sr-facts.ts";

/** `volume`: of this one alone; null: of all. */
export async function lostGuests(
  { options, mirror, self }: Pick<MemberContext, "options" | "mirror" | "self">,
  volume: VolumeId | null = null,
): Promise<readonly Finding[]> {
  try {
    const held = (await heldHere(options.runDir)) ?? [];
    return held.flatMap((one) => {
      if (one.lost === null || (volume !== null && one.volume !== volume)) return [];
      const label = readable(() => vdiOf(mirror, one.id)?.vdi.label) ?? null;
      return [lostGuest({ ...one, lost: one.lost, label, host: self.name })];
    });
  } catch (error) {
    if (!isWeftError(error)) throw error;
    const remedy = { why: "Is it running?", command: "systemctl status weft-holder" };
    return [finding(error.code, error.message, { do: [remedy] })];
  }
}

function lostGuest({
  id,
  label,
  host,
  lost,
}: {
  readonly id: string;
  readonly label: string | null;
  readonly host: string;
  readonly lost: string;
}): Finding {
  const disk = label === null ? id : `"${label}" (${id})`;
  return finding(
    "E-HOLD-07",
    `The disk ${disk} of a guest on ${host} has lost its volume, and answers with errors only: ${lost.replace(/\.$/, "")}.`,
    {
      facts: { vdi: id, host },
      do: [
        {
          why: "Where its VM still runs there: shut it down by force, and start it again",
          command: "xe vm-shutdown vm=VM --force",
        },
        {
          why: `Where no VM on ${host} has it any more: end its tapdisk there, with tap-ctl destroy and what this says of it`,
          command: `tap-ctl list | grep ${id}`,
        },
      ],
    },
  );
}
