/**
 * XAPI's door: calls with anything in them, and texts that are no calls, to a driver with a store and a XAPI of maps.
 *
 * Must always hold: what comes out is one document that XAPI takes: a value of the command's kind, or a fault with a number of
 * XAPI's and a text; nothing is a bug of ours; and XAPI's database is never given what XAPI would refuse.
 */
import * as fc from "fast-check";

import { faultCodes } from "../../src/sm-driver/faults.ts";
import { type DriverCall, replyOf, requestOf } from "../sm-driver/lib/client.ts";
import { readReply } from "../sm-driver/lib/strict-xml.ts";
import { MIB, World } from "../sm-driver/lib/world.ts";
import type { OpenDoor } from "./door.ts";

const commands =
  `sr_get_driver_info sr_attach sr_detach sr_scan sr_update sr_content_type sr_probe sr_delete vdi_create vdi_update
vdi_introduce vdi_delete vdi_attach vdi_detach vdi_activate vdi_deactivate vdi_snapshot vdi_clone vdi_resize vdi_resize_online
vdi_compose vdi_epoch_begin vdi_epoch_end vdi_generate_config vdi_enable_cbt vdi_disable_cbt vdi_data_destroy
vdi_list_changed_blocks vdi_revert sr_explode constructor`.split(/\s+/);

const known: ReadonlySet<number> = new Set(Object.values(faultCodes));

type Input = { readonly text: string; readonly command: string };

export async function openSmDriver(): Promise<OpenDoor> {
  const ends: (() => Promise<void>)[] = [];
  const world = await World.start({ teardown: (end) => void ends.push(end) });
  const h1 = world.host(0);
  const disk = await h1.create(MIB);
  const snapshot = await h1.copy("vdi_snapshot", disk);
  const { xapi, srRef, srUuid } = world;
  const word = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.constantFrom("true", "false", "0", "1048576", "-1", "1e9", "", "19700101T00:00:00Z"),
    },
    {
      weight: 2,
      arbitrary: fc.constantFrom(disk, snapshot, srUuid, xapi.vdiRef(disk), xapi.vdiRef(snapshot), srRef),
    },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        "9".repeat(30),
        "OpaqueRef:NULL",
        "../../etc",
        "__proto__",
        "a".repeat(5000),
      ),
    },
    { weight: 1, arbitrary: fc.string({ maxLength: 20, unit: "binary" }) },
  );
  const texts = fc.dictionary(fc.oneof(fc.constantFrom("copies", "type", "base_mirror"), word), word, {
    maxKeys: 3,
  });
  const maybe = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
    fc.option(arbitrary, { nil: undefined });
  const session = xapi.openSession(srRef);
  const call = fc.record({
    command: fc.constantFrom(...commands),
    args: fc.array(word, { maxLength: 9 }),
    deviceConfig: texts,
    sessionRef: fc.oneof({ weight: 5, arbitrary: fc.constant(session) }, { weight: 1, arbitrary: word }),
    // Another one is XAPI's mistake, and its session is for this one.
    srRef: fc.constant(srRef),
    srUuid: fc.oneof({ weight: 5, arbitrary: fc.constant(srUuid) }, { weight: 1, arbitrary: word }),
    vdiRef: maybe(word),
    vdiUuid: maybe(
      fc.oneof({ weight: 4, arbitrary: fc.constantFrom(disk, snapshot) }, { weight: 1, arbitrary: word }),
    ),
    vdiType: maybe(word),
    newUuid: maybe(word),
    vdiSmConfig: maybe(texts),
    driverParams: maybe(texts),
    onBoot: fc.constantFrom("persist" as const, "reset" as const),
  });
  const whole = call.map((asked): Input => ({
    text: requestOf(asked as DriverCall),
    command: asked.command,
  }));
  const broken = fc
    .tuple(whole, fc.nat(2000), fc.nat(40), fc.string({ maxLength: 12 }))
    .map(([{ text, command }, at, length, insert]) => ({
      text: text.slice(0, at) + insert + text.slice(at + length),
      command,
    }));
  return {
    arbitrary: fc.oneof({ weight: 3, arbitrary: whole }, { weight: 1, arbitrary: broken }),
    judge: async ({ text, command }: Input) => {
      xapi.violations.length = 0;
      const { xml } = await h1.answer(text);
      const reply = readReply(xml);
      if (reply.kind === "value") replyOf(command, { stdout: xml, stderr: "", exitCode: 0, ms: 0 });
      else if (!known.has(reply.code) || reply.code === faultCodes.unexpected || reply.text === "")
        throw new Error(`fault ${reply.code}: ${reply.text}`);
      if (xapi.violations.length > 0) throw new Error(xapi.violations.join("; "));
    },
    kept: [],
    shrinks: false,
    close: async () => {
      for (const end of ends.toReversed()) await end();
    },
  };
}
