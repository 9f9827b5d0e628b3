/**
 * What the whole cluster goes by. Settings that decide what others on the network can do stand in the trust list, which is
 * signed: nobody on the path, and no host that isn't a store member, can talk two hosts down.
 */
import { ok } from "../model/finding.ts";
import type { Settings } from "../wire/agent-api.ts";
import { WeftError } from "../wire/errors.ts";
import type { MemberContext } from "./context.ts";
import type { LocalDaemon } from "./local-daemon.ts";
import { changeTrust } from "./trust-change.ts";

/** A build of weftd that obeys `clear` says so. */
const CLEAR = "insecure-clear";

export function settingsOf({ identity }: Pick<MemberContext, "identity">): Settings {
  const { transport } = identity.trust();
  return { transport };
}

/** Throws E-CA-01 where this host can't sign, E-NET-07 for `clear` in a build without it. */
export async function changeSettings(
  context: Pick<MemberContext, "store" | "authority" | "identity" | "daemon">,
  { transport }: Settings,
): Promise<Settings> {
  if (transport === "clear") await refuseUnlessClear(context.daemon);
  const changed = await changeTrust(context, (trust) =>
    ok(trust.transport === transport ? trust : { ...trust, transport }),
  );
  if (changed.kind === "compare-failed") throw new Error("a change without compares failed one");
  return { transport: changed.signed.trust.transport };
}

/** `clear` is asked for: E-NET-07 unless this host's weftd is of a build that obeys it. */
export async function refuseUnlessClear(daemon: Pick<LocalDaemon, "client">): Promise<void> {
  const { features } = await daemon.client.call("hello", {});
  if (!features.includes(CLEAR)) throw clearIsNotBuilt();
}

function clearIsNotBuilt(): WeftError {
  return new WeftError({
    code: "E-NET-07",
    message: "Traffic in the clear isn't in this build of weftd.",
    safe: "Nothing was changed.",
    do: [
      {
        why: "Isolated network, and no encryption wanted",
        command: "weft settings set transport.encryption auth",
      },
    ],
  });
}
