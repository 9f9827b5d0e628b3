/**
 * SMAPIv3's datapath plug-in: the same commands as SMAPIv1's, under SMAPIv3's names.
 *
 * Must always hold: who has a disk is decided where SMAPIv1's commands decide it, so that both hold at once.
 */
import { z } from "zod";

import { flag, type Json, method, type Methods, type PluginContext, PluginError } from "./plugin-call.ts";
import { parseUri } from "./volume-uri.ts";

const uri = z.string().transform((text) => {
  const disk = parseUri(text);
  if (disk === null) throw new PluginError("Volume_does_not_exist", [text.slice(0, 200)]);
  return disk;
});
const domain = z.string();

const attached = z.object({
  params: z.string().optional(),
  params_nbd: z.string(),
  xenstore_data: z.record(z.string(), z.string()),
});

export const datapathMethods: Methods = {
  "plugin.query": method({}, async () => ({
    plugin: "weft3",
    name: "weft",
    description: "Volumes of weft through tapdisk",
    vendor: "weft",
    copyright: "(C) 2026 the weft authors, Apache License 2.0",
    version: "0.1.0",
    required_api_version: "5.0",
    features: [],
    configuration: {},
    required_cluster_stack: [],
  })),
  "datapath.open": method(
    { uri, persistent: flag.default(true) },
    async ({ agent, command }, { uri, persistent }) => {
      if (persistent && (await agent.vdi(uri.vdi)).resets) await agent.resetVdi(uri.vdi, false);
      await command("vdi_epoch_begin", uri, [], persistent ? "persist" : "reset");
      return null;
    },
  ),
  "datapath.attach": method({ uri, domain }, async (context, { uri }) => {
    // Whether it is written is said in activate: a snapshot, which never is, is asked about by the command.
    const { params, params_nbd, xenstore_data } = await attach(context, uri);
    const disk = { params: params ?? params_nbd, extra: xenstore_data, backend_type: "vbd3" };
    const implementations: Json[] = [["XenDisk", disk]];
    if (params !== undefined) implementations.push(["BlockDevice", { path: params }]);
    if (params_nbd !== "") implementations.push(["Nbd", { uri: params_nbd }]);
    return { implementations };
  }),
  "datapath.activate": method({ uri, domain }, async (context, { uri }) => {
    await context.command("vdi_activate", uri, [String(await isWritable(context, uri))]);
    return null;
  }),
  "datapath.activate_readonly": method({ uri, domain }, async ({ command }, { uri }) => {
    await command("vdi_activate", uri, ["false"]);
    return null;
  }),
  "datapath.deactivate": method({ uri, domain }, async ({ command }, { uri }) => {
    await command("vdi_deactivate", uri, []);
    return null;
  }),
  "datapath.detach": method({ uri, domain }, async ({ command }, { uri }) => {
    await command("vdi_detach", uri, []);
    return null;
  }),
  "datapath.close": method({ uri }, async ({ command }, { uri }) => {
    await command("vdi_epoch_end", uri, []);
    return null;
  }),
};

type Disk = { readonly sr: string; readonly vdi: string };

async function attach(context: PluginContext, disk: Disk): Promise<z.output<typeof attached>> {
  const writable = await isWritable(context, disk);
  return attached.parse(await context.command("vdi_attach", disk, [String(writable)]));
}

/** SMAPIv3 asks for writing wherever it doesn't say otherwise, and a snapshot can't be written. */
async function isWritable({ agent }: PluginContext, { vdi }: Disk): Promise<boolean> {
  return !(await agent.vdi(vdi)).readOnly;
}
