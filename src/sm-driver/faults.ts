/**
 * What goes wrong, in the numbers that XAPI and sm's tools know (design xapi.md 1.11).
 *
 * Must always hold:
 * - a fault's text says the cause, and what to do about it: XAPI shows it as it is;
 * - a number means to XAPI what we mean: 24, 39 and 144 become errors of its own, and 38 makes it copy instead of clone, so
 *   none of them is ever a guess.
 */
import { isWeftError, reasonOf, type WeftError } from "../core/wire/errors.ts";

/** sm's XE_SR_ERRORCODES.xml, as far as they are used here. */
export const faultCodes = {
  srDeviceInUse: 16,
  vdiInUse: 24,
  notImplemented: 38,
  srNotEmpty: 39,
  srScan: 40,
  vdiExists: 43,
  noSpace: 44,
  vdiUnavailable: 46,
  srUnavailable: 47,
  vdiCreate: 78,
  vdiSize: 79,
  vdiDelete: 80,
  vdiClone: 81,
  vdiSnapshot: 82,
  snapshotChainTooLong: 109,
  vdiResize: 110,
  configParamsMissing: 115,
  badRequest: 143,
  vdiMissing: 144,
  apiFailure: 153,
  metadata: 181,
  again: 201,
  general: 202,
  tapdiskFailed: 453,
  cbtFailed: 460,
  unexpected: 1200,
} as const;

export class SmFault extends Error {
  readonly code: number;
  /** What else is known, and what to do; null: the message says it. */
  readonly detail: string | null;

  constructor(code: number, message: string, detail: string | null = null, cause?: unknown) {
    super(message, cause === undefined ? {} : { cause });
    this.name = "SmFault";
    this.code = code;
    this.detail = detail;
  }

  /** `Description [opterr=detail]`, sm's convention. */
  get text(): string {
    const line = (words: string): string => words.replaceAll(/\s+/g, " ").trim();
    return this.detail === null ? line(this.message) : `${line(this.message)} [opterr=${line(this.detail)}]`;
  }
}

/** What a request of that form can't be answered with. */
export function badRequest(what: string): SmFault {
  return new SmFault(
    faultCodes.badRequest,
    what,
    "XAPI and the driver don't understand each other: nothing was changed",
  );
}

/** By code: what the agent answers whichever command asked. */
const byCode: Readonly<Record<string, number>> = {
  "E-AGENT-01": faultCodes.srUnavailable,
  "E-AGENT-03": faultCodes.srUnavailable,
  "E-AGENT-04": faultCodes.again,
  "E-AGENT-05": faultCodes.srUnavailable,
  "E-HOLD-01": faultCodes.tapdiskFailed,
  "E-HOLD-02": faultCodes.tapdiskFailed,
  "E-HOLD-03": faultCodes.tapdiskFailed,
  "E-HOLD-04": faultCodes.srUnavailable,
  "E-HOLD-08": faultCodes.configParamsMissing,
  "E-HOLD-09": faultCodes.tapdiskFailed,
  "E-VOL-21": faultCodes.vdiUnavailable,
  "E-STORE-01": faultCodes.srUnavailable,
  "E-STORE-06": faultCodes.again,
  "E-STORE-08": faultCodes.noSpace,
  "E-AUDIT-01": faultCodes.srUnavailable,
  "E-TRUST-04": faultCodes.srUnavailable,
  "E-TRUST-07": faultCodes.srUnavailable,
  "E-SR-01": faultCodes.srUnavailable,
  "E-SR-02": faultCodes.srNotEmpty,
  "E-SR-03": faultCodes.badRequest,
  "E-VDI-01": faultCodes.vdiMissing,
  "E-VDI-02": faultCodes.vdiExists,
  "E-VDI-03": faultCodes.badRequest,
  "E-VDI-04": faultCodes.vdiInUse,
  "E-VDI-05": faultCodes.vdiUnavailable,
  "E-VDI-06": faultCodes.badRequest,
  "E-VDI-07": faultCodes.again,
  "E-VDI-08": faultCodes.vdiUnavailable,
  "E-VOL-01": faultCodes.vdiExists,
  "E-VOL-02": faultCodes.vdiSize,
  "E-VOL-12": faultCodes.vdiInUse,
  "E-VOL-14": faultCodes.vdiInUse,
  "E-SNAP-04": faultCodes.vdiInUse,
  "E-SNAP-06": faultCodes.snapshotChainTooLong,
  "E-SNAP-08": faultCodes.noSpace,
  "E-POOL-06": faultCodes.noSpace,
  "E-POOL-10": faultCodes.noSpace,
};

/** Where the code says nothing: what the command was about. */
const byCommand: Readonly<Record<string, number>> = {
  sr_scan: faultCodes.srScan,
  vdi_create: faultCodes.vdiCreate,
  vdi_delete: faultCodes.vdiDelete,
  vdi_clone: faultCodes.vdiClone,
  vdi_compose: faultCodes.vdiUnavailable,
  vdi_snapshot: faultCodes.vdiSnapshot,
  vdi_resize: faultCodes.vdiResize,
  vdi_resize_online: faultCodes.vdiResize,
  vdi_attach: faultCodes.vdiUnavailable,
  vdi_activate: faultCodes.vdiUnavailable,
  vdi_enable_cbt: faultCodes.cbtFailed,
  vdi_disable_cbt: faultCodes.cbtFailed,
  vdi_data_destroy: faultCodes.cbtFailed,
  vdi_list_changed_blocks: faultCodes.cbtFailed,
};

/** Of anything thrown. `command`: the one that failed. */
export function faultOf(error: unknown, command: string): SmFault {
  if (error instanceof SmFault) return error;
  if (isWeftError(error)) {
    const number =
      byCode[error.code] ?? (error.code.startsWith("E-ARG-") ? faultCodes.badRequest : byCommand[command]);
    return new SmFault(
      number ?? faultCodes.general,
      `${error.code} ${error.message}`,
      remedyOf(error),
      error,
    );
  }
  return new SmFault(
    faultCodes.unexpected,
    `The driver failed in a way that it believed impossible: ${reasonOf(error)}.`,
    "the log of weft-agent has more: journalctl -u weft-agent",
    error,
  );
}

function remedyOf({ safe, do: advice, code }: WeftError): string {
  const words = advice.map(({ why, command }) => (command === null ? why : `${why}: ${command}`));
  const sentences = [...(safe === null ? [] : [safe]), ...words];
  return sentences.length > 0 ? sentences.join(" ") : `weft help ${code}`;
}
