/**
 * One call of xapi-storage-script, SMAPIv3's side of XAPI (design xapi.md 4.2): a method, named parameters, an answer in JSON.
 *
 * Must always hold: what goes wrong is a code and its parameters, as XAPI shows them; those that XAPI knows have its names.
 */
import { z } from "zod";

import type { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError } from "../../core/wire/errors.ts";
import { uuid } from "../../core/wire/json-types.ts";
import type { SmContext } from "../call.ts";
import { faultCodes, faultOf } from "../faults.ts";

export class PluginError extends Error {
  readonly code: string;
  readonly params: readonly string[];

  constructor(code: string, params: readonly string[]) {
    super([code, ...params].join(": "));
    this.code = code;
    this.params = params;
  }
}

/** A command of SMAPIv1 by its name, for what both do alike: `args`, and whether the disk is reset on boot. */
export type Commanded = (
  command: string,
  disk: { readonly sr: string; readonly vdi: string },
  args: readonly string[],
  onBoot?: SmContext["call"]["onBoot"],
) => Promise<unknown>;

export type PluginContext = {
  readonly agent: AgentClient;
  readonly newUuid: () => string;
  readonly command: Commanded;
};

export type Json = null | string | number | boolean | readonly Json[] | { readonly [name: string]: Json };
export type Method = (context: PluginContext, params: unknown) => Promise<Json>;
export type Methods = Readonly<Record<string, Method>>;

/** A method whose parameters are parsed; `dbg`, and what we don't know, is left aside. */
export function method<Shape extends z.ZodRawShape>(
  shape: Shape,
  work: (context: PluginContext, params: z.output<z.ZodObject<Shape>>) => Promise<Json>,
): Method {
  const schema = z.object(shape);
  return async (context, params) => {
    const parsed = schema.safeParse(params);
    if (parsed.success) return work(context, parsed.data);
    const issue = parsed.error.issues[0];
    throw new PluginError("Bad_request", [
      `${issue?.path.join(".") ?? ""}: ${issue?.message ?? "not understood"}`,
    ]);
  };
}

/** Keys and SRs are UUIDs of ours. */
export const id = uuid;
/** Bytes: a number of JSON, or its digits where it stood on a command line. */
export const bytes = z.union([
  z.int().min(0),
  z
    .string()
    .regex(/^[0-9]{1,15}$/)
    .transform(Number),
]);
export const flag = z.union([z.boolean(), z.enum(["true", "false"]).transform((text) => text === "true")]);
export const texts = z.record(z.string(), z.string());

/** Of anything thrown. */
export function pluginErrorOf(error: unknown, name: string, params: unknown): PluginError {
  if (error instanceof PluginError) return error;
  const known = z.object({ sr: z.string().default(""), key: z.string().default("") }).safeParse(params);
  const { sr = "", key = "" } = known.data ?? {};
  if (isWeftError(error, "E-SR-01")) return new PluginError("SR_does_not_exist", [sr]);
  if (isWeftError(error, "E-VDI-01")) return new PluginError("Volume_does_not_exist", [key]);
  const fault = faultOf(error, name);
  if (fault.code === faultCodes.notImplemented) return new PluginError("Unimplemented", [name]);
  return new PluginError(`SR_BACKEND_FAILURE_${fault.code}`, [fault.text]);
}
