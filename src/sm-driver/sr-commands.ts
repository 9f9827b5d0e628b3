/**
 * Commands of whole SRs: registered, attached, found again, forgotten. An SR is a name for volumes of this cluster; its data is theirs.
 *
 * Must always hold:
 * - sr_attach needs this host's agent and weftd, and nothing else: XAPI plugs once, at a start, when a whole pool may still be
 *   without a majority (design xapi.md 9.5);
 * - sr_delete deletes no volume;
 * - names and sizes reach XAPI's records from here, and XAPI's names the store.
 */
import { SR_TEXT_MAX } from "../core/model/vdi.ts";
import { isWeftError, reasonOf } from "../core/wire/errors.ts";
import type { SrAnswer } from "../core/wire/sr-api.ts";
import { type Commands, type SmContext, sizeArg, srOf } from "./call.ts";
import { badRequest, faultCodes, SmFault } from "./faults.ts";
import { planScan, snapshotOfRef } from "./scan.ts";
import { copiesOf } from "./setup/device-config.ts";
import { ejectRefusal } from "./setup/eject.ts";
import { ensureCluster, ensureMember, otherCluster } from "./setup/ensure.ts";
import { cut } from "./vdi-changes.ts";
import { introductionOf } from "./vdi-record.ts";
import { forgetVdi, introduceVdi, setSrSizes, setVdi, vdiRecords } from "./xapi-records.ts";
import { isXapiError } from "./xen-api.ts";
import { escapeXml, memberOf, textsOf } from "./xml.ts";

/** What sr_attach waits for an answer that it can do without; XAPI holds all other SRs of the host meanwhile. */
const ASIDE_MS = 2500;
/** Records of XAPI that are changed at once. */
const TOGETHER = 4;

export const srCommands: Commands = {
  sr_create: createSr,
  sr_probe: async ({ agent }) => probeText(await agent.srs()),
  sr_attach: attachSr,
  // Nothing of this host's is open for an SR alone: XAPI detaches its VDIs before.
  sr_detach: async (context) => {
    srOf(context.call);
    const looked = await aside(ejectRefusal(context));
    if (looked.kind === "done" && looked.value !== null) throw looked.value;
    return null;
  },
  sr_delete: async ({ call, agent }) => {
    const { uuid } = srOf(call);
    try {
      await agent.deleteSr(uuid);
    } catch (error) {
      if (!isWeftError(error, "E-SR-01")) throw error;
    }
    return null;
  },
  sr_scan: scanSr,
  sr_update: async ({ call, agent, xapi }) => {
    const { ref, uuid } = srOf(call);
    await setSrSizes(xapi, ref, await agent.sr(uuid));
    return null;
  },
  /** Of users' disks. */
  sr_content_type: async () => "user",
};

/** Registers it. Again: it is there already, which is as good. */
async function createSr(context: SmContext): Promise<null> {
  const { call, agent, xapi, log } = context;
  const { ref, uuid } = srOf(call);
  // Room is taken by what is written, so there is none to reserve; but it has to be a number.
  if (call.args.length > 0) sizeArg(call, 0);
  await ensureCluster(context);
  const before = await agent.srs();
  const wasThere = before.some((sr) => sr.uuid === uuid);
  const names = await namesOf(context);
  try {
    const made = await agent.createSr({ uuid, ...names, copies: copiesOf(call.deviceConfig) });
    await setSrSizes(xapi, ref, made);
  } catch (error) {
    // XAPI forgets an SR whose making failed, and asks nobody to undo it. It may be there though its answer came too late.
    if (!wasThere) {
      await agent.deleteSr(uuid).catch((reason: unknown) => {
        if (isWeftError(reason, "E-SR-01")) return;
        log.warn(
          { sr: uuid, reason: reasonOf(reason) },
          "an SR that XAPI does not know stays: xe sr-probe shows it",
        );
      });
    }
    throw error;
  }
  return null;
}

async function attachSr(context: SmContext): Promise<null> {
  const { call, agent, log } = context;
  const { uuid } = srOf(call);
  // Together: with the store away each of them takes its whole time.
  const [isDaemonHere, known] = await Promise.all([daemonAnswers(context), aside(agent.sr(uuid))]);
  if (!isDaemonHere.reachable) {
    throw new SmFault(
      faultCodes.srUnavailable,
      `weftd, the data daemon of this host, does not answer its agent: ${isDaemonHere.reason ?? "no reason is known"}.`,
      "systemctl status weft; then plug the PBD again",
    );
  }
  const isNew = known.kind === "failed" && isWeftError(known.error, "E-AGENT-03");
  if (isNew) await ensureMember(context);
  const sr = isNew ? await aside(agent.sr(uuid)) : known;
  if (sr.kind === "failed") {
    if (isWeftError(sr.error, "E-SR-01")) await refuseOtherCluster(context);
    // Only what the store itself says: that it can't be asked is no reason.
    if (isWeftError(sr.error, "E-SR-01") || isWeftError(sr.error, "E-AGENT-03")) throw sr.error;
    log.warn(
      { sr: uuid, reason: reasonOf(sr.error) },
      "an SR is attached while the store can't be asked about it",
    );
  }
  await Promise.all([aside(noteHost(context)), aside(askForScan(context))]);
  return null;
}

/** A host that was in another cluster before it came to this pool is let into no second one: then that is what is told. */
async function refuseOtherCluster(context: SmContext): Promise<void> {
  const looked = await aside(otherCluster(context));
  if (looked.kind === "done" && looked.value !== null) throw looked.value;
}

async function daemonAnswers({
  agent,
}: SmContext): Promise<{ readonly reachable: boolean; readonly reason: string | null }> {
  const status = await aside(agent.status(), 2 * ASIDE_MS);
  if (status.kind === "done") return status.value.daemon;
  if (isWeftError(status.error)) throw status.error;
  // It answers, and slowly: something that it asks for the whole picture is away.
  return { reachable: true, reason: null };
}

async function noteHost({ call, xapi, hostNote }: SmContext): Promise<void> {
  if (call.hostRef === null || !xapi.hasSession) return;
  hostNote.learn(await xapi.text("host.get_uuid", call.hostRef));
}

/** As sm does: XAPI scans an SR that is marked so, once it is attached on the master. */
async function askForScan({ call, xapi }: SmContext): Promise<void> {
  if (!call.isMaster || !xapi.hasSession) return;
  try {
    await xapi.call("SR.add_to_other_config", srOf(call).ref, "dirty", "");
  } catch (error) {
    if (!isXapiError(error, "MAP_DUPLICATE_KEY")) throw error;
  }
}

type Aside<T> =
  | { readonly kind: "done"; readonly value: T }
  | { readonly kind: "failed"; readonly error: unknown };

/** What may fail, or take longer than is waited for it. */
async function aside<T>(work: Promise<T>, ms: number = ASIDE_MS): Promise<Aside<T>> {
  const late = Promise.withResolvers<Aside<T>>();
  const timer = setTimeout(
    () => late.resolve({ kind: "failed", error: new Error(`no answer within ${ms} ms`) }),
    ms,
  );
  try {
    const done = work.then(
      (value): Aside<T> => ({ kind: "done", value }),
      (error: unknown): Aside<T> => ({ kind: "failed", error }),
    );
    return await Promise.race([done, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

async function scanSr(context: SmContext): Promise<null> {
  const { call, agent, xapi, log } = context;
  const { ref: srRef, uuid: srUuid } = srOf(call);
  const names = await namesOf(context);
  // The store's list first: what is made after it is in neither, or in XAPI's as well only if its call was answered.
  const { sr, vdis, unread } = await agent.vdis(srUuid);
  const records = await vdiRecords(xapi, srRef);
  const plan = planScan({ vdis, unread }, records, Date.now());
  if (unread.length > 0)
    log.warn({ sr: srUuid, vdis: unread }, "disks that can't be read are left as XAPI has them");
  const refs = new Map(records.map(({ uuid, ref }) => [uuid, ref]));
  const one = (what: string, uuid: string, work: () => Promise<unknown>): Promise<void> =>
    alone(log, { sr: srUuid, vdi: uuid }, what, work);

  for (const vdi of plan.remove) {
    log.warn({ sr: srUuid, vdi: vdi.uuid }, "an empty disk goes that a call of XAPI was to make and didn't");
    await one("removed", vdi.uuid, () => agent.deleteVdi(vdi.uuid));
  }
  const [snapshots = [], disks = []] = [true, false].map((is) =>
    plan.introduce.filter(({ isSnapshot }) => isSnapshot === is),
  );
  for (const group of [disks, snapshots]) {
    await together(group, (vdi) =>
      one("introduced", vdi.uuid, async () => {
        const snapshotOf = snapshotOfRef(vdi, refs);
        refs.set(
          vdi.uuid,
          await introduceVdi(xapi, introductionOf(vdi, { srRef, snapshotOf, metadataOfPool: null })),
        );
        if (!vdi.settled) await agent.changeVdi(vdi.uuid, { settled: true });
      }),
    );
  }
  await together(plan.update, ({ ref, uuid, set }) =>
    one("updated", uuid, async () => {
      for (const [setter, value] of set) await setVdi(xapi, ref, setter, value);
    }),
  );
  await together(plan.follow, ({ uuid, changes }) =>
    one("followed", uuid, () => agent.changeVdi(uuid, changes)),
  );
  for (const { ref, uuid } of plan.forget) {
    const found = await lookFor(context, uuid);
    if (found === "gone") {
      log.info({ sr: srUuid, vdi: uuid }, "XAPI forgets a VDI that the store does not have");
      await one("forgotten", uuid, () => forgetVdi(xapi, ref));
    } else if (found === "no disk") {
      log.warn({ sr: srUuid, vdi: uuid }, "a volume that XAPI has as a VDI is taken in again");
      await one("taken in", uuid, async () => {
        await agent.introduceVdi(srUuid, { uuid });
        await agent.changeVdi(uuid, { settled: true });
      });
    }
  }
  await scanned(context, sr, names);
  return null;
}

/**
 * Asked once more by itself: a record that is forgotten takes its VM's disk with it. `no disk`: the volume lives, and what made it
 * a disk is lost with the store that knew it.
 */
async function lookFor({ agent }: SmContext, uuid: string): Promise<"disk" | "no disk" | "gone"> {
  try {
    await agent.vdi(uuid);
    return "disk";
  } catch (error) {
    if (isWeftError(error, "E-VDI-01")) return error.facts["live"] === true ? "no disk" : "gone";
    throw error;
  }
}

/** The SR's own record: its sizes, its names, and that it was scanned. */
async function scanned({ call, agent, xapi }: SmContext, sr: SrAnswer, names: Names): Promise<void> {
  const { ref, uuid } = srOf(call);
  await setSrSizes(xapi, ref, sr);
  if (names.label !== sr.label || names.description !== sr.description) await agent.changeSr(uuid, names);
  const config = textsOf(await xapi.call("SR.get_other_config", ref));
  if (config?.has("dirty") === true) await xapi.call("SR.remove_from_other_config", ref, "dirty");
}

type Names = { readonly label: string; readonly description: string };

/** XAPI's, of the SR that it says it is: what is forgotten by a record of another one would be another one's. */
async function namesOf({ call, xapi }: SmContext): Promise<Names> {
  const { ref, uuid } = srOf(call);
  const record = await xapi.call("SR.get_record", ref);
  if (memberOf(record, "uuid") !== uuid)
    throw badRequest(`${call.command}: sr_ref is not that of the SR ${uuid}`);
  const label = memberOf(record, "name_label");
  const description = memberOf(record, "name_description");
  if (typeof label !== "string" || typeof description !== "string")
    throw new SmFault(faultCodes.apiFailure, "XAPI's record of the SR has no names.");
  return { label: cut(label, SR_TEXT_MAX.label), description: cut(description, SR_TEXT_MAX.description) };
}

/** One VDI that XAPI or the store refuses does not keep the others from being scanned; one of them being away does. */
async function alone(
  log: SmContext["log"],
  facts: object,
  what: string,
  work: () => Promise<unknown>,
): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!isXapiError(error) && !(isWeftError(error) && !error.isRetryable)) throw error;
    if (isXapiError(error, "SESSION_INVALID")) throw error;
    log.warn({ ...facts, reason: reasonOf(error) }, `a scan left out a VDI that was to be ${what}`);
  }
}

async function together<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const waiting = items.values();
  const lane = async (): Promise<void> => {
    for (const item of waiting) await work(item);
  };
  await Promise.all(Array.from({ length: TOGETHER }, lane));
}

/** By sm's convention: an XML text, with what helps people to tell one SR from another. */
function probeText(srs: readonly SrAnswer[]): string {
  const entries = srs.map(({ uuid, label, description, copies, physicalSize }) => {
    const members: readonly (readonly [string, string])[] = [
      ["UUID", uuid],
      ["Devlist", "weft"],
      ["size", String(physicalSize)],
      ["name_label", label],
      ["name_description", description],
      ...(copies === null ? [] : [["copies", String(copies)] as const]),
    ];
    return `<SR>${members.map(([name, text]) => `<${name}>${escapeXml(text)}</${name}>`).join("")}</SR>`;
  });
  return `<?xml version="1.0" ?><SRlist>${entries.join("")}</SRlist>`;
}
