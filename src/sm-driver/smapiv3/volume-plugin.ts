/**
 * SMAPIv3's volume plug-in: SRs and their volumes, asked of the same agent as SMAPIv1's commands.
 *
 * Must always hold: XAPI keeps its own records here, so nothing is told to it but the answer; what XAPI sets on a volume comes back.
 */
import { z } from "zod";

import { COPIES_MAX } from "../../core/model/limits.ts";
import { SR_TEXT_MAX } from "../../core/model/vdi.ts";
import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError, WeftError } from "../../core/wire/errors.ts";
import type { SrAnswer, VdiAnswer } from "../../core/wire/sr-api.ts";
import { bytes, flag, id, type Json, method, type Methods, PluginError, texts } from "./plugin-call.ts";
import { uriOf } from "./volume-uri.ts";

/** SR.type; `weft` is SMAPIv1's. */
export const V3_TYPE = "weft3";
/** Which SR a PBD's device-config means. */
const SR_KEY = "sr-uuid";
const VDI_TYPE_KEY = "vdi-type";

const label = z.string().transform((text) => text.slice(0, SR_TEXT_MAX.label).toWellFormed());
const description = z.string().transform((text) => text.slice(0, SR_TEXT_MAX.description).toWellFormed());

export const volumeMethods: Methods = {
  "plugin.query": method({}, async () => ({
    plugin: V3_TYPE,
    name: "weft",
    description: "Replicated volumes on the disks of the pool's own hosts",
    vendor: "weft",
    copyright: "(C) 2026 the weft authors, Apache License 2.0",
    version: "0.1.0",
    required_api_version: "5.0",
    features: [
      "SR_ATTACH",
      "SR_DETACH",
      "SR_CREATE",
      "SR_DELETE",
      "SR_SCAN",
      "SR_PROBE",
      "SR_UPDATE",
      ...VOLUME_FEATURES,
    ],
    configuration: { copies: "copies of each volume on different hosts, 1 to 8" },
    required_cluster_stack: [],
  })),
  "plugin.diagnostics": method({}, async ({ agent }) => {
    const status = await agent.status();
    return status.kind === "cluster" ? status.health : status.kind;
  }),

  "sr.create": method(
    { uuid: id, configuration: texts, name: label, description },
    async ({ agent }, { uuid, configuration, name, description }) => {
      await agent.createSr({ uuid, label: name, description, copies: copiesOf(configuration["copies"]) });
      return { ...configuration, [SR_KEY]: uuid };
    },
  ),
  "sr.attach": method({ configuration: texts }, async ({ agent }, { configuration }) => {
    const sr = id.safeParse(configuration[SR_KEY]);
    if (!sr.success) throw new PluginError("SR_does_not_exist", [configuration[SR_KEY] ?? ""]);
    try {
      return (await agent.sr(sr.data)).uuid;
    } catch (error) {
      if (isWeftError(error, "E-SR-01")) throw new PluginError("SR_does_not_exist", [sr.data]);
      throw error;
    }
  }),
  "sr.detach": method({ sr: id }, async () => null),
  "sr.destroy": method({ sr: id }, async ({ agent }, { sr }) => {
    await agent.deleteSr(sr);
    return null;
  }),
  "sr.probe": method({ configuration: texts }, async ({ agent }, { configuration }) =>
    (await agent.srs()).map((sr) => ({
      configuration: { ...configuration, [SR_KEY]: sr.uuid },
      complete: true,
      sr: statOf(sr),
      extra_info: {},
    })),
  ),
  "sr.stat": method({ sr: id }, async ({ agent }, { sr }) => statOf(await agent.sr(sr))),
  "sr.ls": method({ sr: id }, async ({ agent }, { sr }) => {
    const { vdis, unread } = await agent.vdis(sr);
    const [lost] = unread;
    // XAPI forgets what a list lacks.
    if (lost !== undefined)
      throw new WeftError({
        code: "E-STORE-07",
        message: `What the store has of the virtual disk ${lost} can't be read, so no list of the repository is whole.`,
        facts: { vdi: lost },
        safe: "Nothing was changed.",
      });
    return vdis.filter(({ whole }) => whole).map(volumeOf);
  }),
  "sr.set_name": method({ sr: id, new_name: label }, async ({ agent }, { sr, new_name }) => {
    await agent.changeSr(sr, { label: new_name });
    return null;
  }),
  "sr.set_description": method(
    { sr: id, new_description: description },
    async ({ agent }, { sr, new_description }) => {
      await agent.changeSr(sr, { description: new_description });
      return null;
    },
  ),

  "volume.create": method(
    { sr: id, name: label, description, size: bytes, sharable: flag.default(false) },
    async ({ agent, newUuid }, { sr, name, description, size, sharable }) => {
      const uuid = newUuid();
      await agent.createVdi(sr, { uuid, size: BigInt(size), label: name, description, sharable });
      return settled(agent, uuid);
    },
  ),
  "volume.snapshot": method({ sr: id, key: id }, async ({ agent, newUuid }, { sr, key }) => {
    await inSr(agent, sr, key);
    const uuid = newUuid();
    await agent.snapshotVdi(key, { uuid });
    return settled(agent, uuid);
  }),
  "volume.clone": method({ sr: id, key: id }, async ({ agent, newUuid }, { sr, key }) => {
    await inSr(agent, sr, key);
    const uuid = newUuid();
    await agent.cloneVdi(key, { uuid });
    return settled(agent, uuid);
  }),
  "volume.destroy": method({ sr: id, key: id }, async ({ agent }, { sr, key }) => {
    await inSr(agent, sr, key);
    await agent.deleteVdi(key);
    return null;
  }),
  "volume.stat": method({ sr: id, key: id }, async ({ agent }, { sr, key }) =>
    volumeOf(await inSr(agent, sr, key)),
  ),
  "volume.resize": method({ sr: id, key: id, new_size: bytes }, async ({ agent }, { sr, key, new_size }) => {
    await inSr(agent, sr, key);
    await agent.changeVdi(key, { size: BigInt(new_size) });
    return null;
  }),
  "volume.set": method(
    { sr: id, key: id, k: z.string(), v: z.string() },
    async ({ agent }, { sr, key, k, v }) => {
      const { smConfig } = await inSr(agent, sr, key);
      const change = k === VDI_TYPE_KEY ? { type: v } : { smConfig: { ...smConfig, [k]: v } };
      await agent.changeVdi(key, change);
      return null;
    },
  ),
  "volume.unset": method({ sr: id, key: id, k: z.string() }, async ({ agent }, { sr, key, k }) => {
    const { smConfig } = await inSr(agent, sr, key);
    const rest = Object.fromEntries(Object.entries(smConfig).filter(([name]) => name !== k));
    await agent.changeVdi(key, { smConfig: rest });
    return null;
  }),
  "volume.set_name": method(
    { sr: id, key: id, new_name: label },
    async ({ agent }, { sr, key, new_name }) => {
      await inSr(agent, sr, key);
      await agent.changeVdi(key, { label: new_name });
      return null;
    },
  ),
  "volume.set_description": method(
    { sr: id, key: id, new_description: description },
    async ({ agent }, { sr, key, new_description }) => {
      await inSr(agent, sr, key);
      await agent.changeVdi(key, { description: new_description });
      return null;
    },
  ),
  "volume.enable_cbt": method({ sr: id, key: id }, ({ agent }, { sr, key }) =>
    changedBlocks(agent, sr, key, true),
  ),
  "volume.disable_cbt": method({ sr: id, key: id }, ({ agent }, { sr, key }) =>
    changedBlocks(agent, sr, key, false),
  ),
  "volume.data_destroy": method({ sr: id, key: id }, async ({ agent }, { sr, key }) => {
    await inSr(agent, sr, key);
    await agent.destroyVdiData(key);
    return null;
  }),
  "volume.list_changed_blocks": method(
    { sr: id, key: id, key2: id, offset: bytes, length: bytes },
    async ({ agent }, { sr, key, key2, offset, length }) => {
      await inSr(agent, sr, key);
      await inSr(agent, sr, key2);
      const { granularity, bitmap } = await agent.changedVdiBlocks(key2, key);
      return { granularity, bitmap: partOf(bitmap, granularity, { offset, length }) };
    },
  ),
};

/** What volumes can besides; SMAPIv3 adds others by which files there are. */
const VOLUME_FEATURES = [
  "VDI_CREATE",
  "VDI_DESTROY",
  "VDI_ATTACH",
  "VDI_DETACH",
  "VDI_ACTIVATE",
  "VDI_DEACTIVATE",
  "VDI_UPDATE",
  "VDI_CLONE",
  "VDI_SNAPSHOT",
  "VDI_RESIZE",
  "VDI_CONFIG_CBT",
  "LARGE_VDI",
  "THIN_PROVISIONING",
];

function copiesOf(text: string | undefined): number | null {
  if (text === undefined) return null;
  const copies = /^[0-9]{1,2}$/.test(text) ? Number(text) : 0;
  if (copies >= 1 && copies <= COPIES_MAX) return copies;
  throw new PluginError("Bad_request", [
    `copies is "${text.slice(0, 40)}", which is no number from 1 to ${COPIES_MAX}`,
  ]);
}

/** As it is told to XAPI: from now on somebody knows of it. */
async function settled(agent: AgentClient, uuid: string): Promise<Json> {
  return volumeOf(await agent.changeVdi(uuid, { settled: true }));
}

async function changedBlocks(agent: AgentClient, sr: string, key: string, cbt: boolean): Promise<null> {
  await inSr(agent, sr, key);
  await agent.changeVdi(key, { cbt });
  return null;
}

async function inSr(agent: AgentClient, sr: string, key: string): Promise<VdiAnswer> {
  const vdi = await agent.vdi(key);
  if (vdi.sr === sr) return vdi;
  throw new PluginError("Volume_does_not_exist", [key]);
}

function statOf({ uuid, label, description, physicalSize, physicalUtilisation }: SrAnswer): Json {
  const free = physicalSize > physicalUtilisation ? physicalSize - physicalUtilisation : 0n;
  return {
    sr: uuid,
    name: label,
    uuid,
    description,
    free_space: Number(free),
    total_space: Number(physicalSize),
    datasources: [],
    clustered: true,
    health: ["Healthy", ""],
  };
}

function volumeOf(vdi: VdiAnswer): Json {
  const { uuid, sr, label, description, readOnly, sharable, size, physicalUtilisation, smConfig, type, cbt } =
    vdi;
  return {
    key: uuid,
    uuid,
    name: label,
    description,
    read_write: !readOnly,
    sharable,
    virtual_size: Number(size),
    physical_utilisation: Number(physicalUtilisation),
    uri: [uriOf({ sr, vdi: uuid })],
    keys: { ...smConfig, [VDI_TYPE_KEY]: type },
    volume_type: vdi.dataDestroyed ? "CBT_Metadata" : "Data",
    cbt_enabled: cbt,
  };
}

/** Whole bytes of the bitmap, of the blocks that lie in that part: XAPI asks for parts that begin and end with blocks. */
function partOf(
  bitmap: string,
  granularity: number,
  { offset, length }: { readonly offset: number; readonly length: number },
): string {
  const all = Buffer.from(bitmap, "base64");
  const first = Math.floor(offset / granularity);
  const count = Math.min(all.length * 8 - first, Math.ceil((offset + length) / granularity) - first);
  const part = Buffer.alloc(Math.ceil(Math.max(0, count) / 8));
  for (let i = 0; i < count; i += 1) {
    const at = first + i;
    const bit = ((all[at >> 3] ?? 0) >> (7 - (at & 7))) & 1;
    part[i >> 3] = (part[i >> 3] ?? 0) | (bit << (7 - (i & 7)));
  }
  return part.toString("base64");
}
