/**
 * XAPI's own interface, asked back during one of its calls: XML-RPC over its unix socket, in the session of that call.
 *
 * Must always hold:
 * - no call waits longer than its own deadline, nor than the command's: XAPI may be asleep, or be waiting for us;
 * - what XAPI refuses is an error that names its code, what it does not answer is one that says so: nothing comes back half.
 */
import { request as httpRequest } from "node:http";

import { reasonOf } from "../core/wire/errors.ts";
import { badRequest, faultCodes, SmFault } from "./faults.ts";
import { memberOf, parseResponse, renderCall, XmlError, type XmlOut, type XmlValue } from "./xml.ts";

/** XAPI answers from its memory; a scan of a large pool's records is its longest. */
const CALL_MS = 10_000;
const ANSWER_BYTES_MAX = 64 << 20;

/** XAPI answered, and refused. */
export class XapiError extends SmFault {
  /** XAPI's word: `HANDLE_INVALID`. */
  readonly failure: string;
  readonly params: readonly string[];

  constructor(method: string, failure: string, params: readonly string[]) {
    const words = [failure, ...params].join(" ").slice(0, 400);
    const remedy =
      failure === "SESSION_INVALID"
        ? "the session of this call has ended: XAPI repeats the call with another one"
        : "XAPI repeats the call; if it stays, the log of XAPI has more: /var/log/xensource.log";
    super(faultCodes.apiFailure, `XAPI refused ${method}: ${words}.`, remedy);
    this.name = "XapiError";
    this.failure = failure;
    this.params = params;
  }
}

export function isXapiError(error: unknown, failure?: string): error is XapiError {
  return error instanceof XapiError && (failure === undefined || error.failure === failure);
}

export type XenApiOptions = {
  readonly socketPath: string;
  /** Null: the call has none, and nothing can be asked. */
  readonly sessionRef: string | null;
  /** The task that what is asked becomes a part of. */
  readonly subtaskOf: string | null;
  readonly deadline: AbortSignal;
  /** How long one answer may take. */
  readonly callMs?: number;
};

export class XenApi {
  readonly #options: XenApiOptions;

  constructor(options: XenApiOptions) {
    this.#options = options;
  }

  get hasSession(): boolean {
    return this.#options.sessionRef !== null;
  }

  get session(): string | null {
    return this.#options.sessionRef;
  }

  /** The same, for calls that take as long as this. */
  patient(callMs: number): XenApi {
    return new XenApi({ ...this.#options, callMs });
  }

  /** In the session of the call, which is put before `params`. */
  async call(method: string, ...params: readonly XmlOut[]): Promise<XmlValue> {
    const { sessionRef } = this.#options;
    if (sessionRef === null)
      throw badRequest(`${method} was to be asked, and the request has no session_ref`);
    return this.callBare(method, sessionRef, ...params);
  }

  /** One whose answer is text. */
  async text(method: string, ...params: readonly XmlOut[]): Promise<string> {
    const value = await this.call(method, ...params);
    if (typeof value === "string") return value;
    throw notUnderstood(method, "it is no text");
  }

  /** Without a session: for what makes one. */
  async callBare(method: string, ...params: readonly XmlOut[]): Promise<XmlValue> {
    const answer = await responseOf(method, await this.#post(method, renderCall(method, params)));
    const status = memberOf(answer, "Status");
    if (status === "Success") return memberOf(answer, "Value");
    if (status !== "Failure") throw notUnderstood(method, "it has no Status");
    const words = memberOf(answer, "ErrorDescription");
    const [failure, ...more] = Array.isArray(words) ? words.map(textOf) : [];
    throw new XapiError(method, failure ?? "INTERNAL_ERROR", more);
  }

  #post(method: string, body: string): Promise<string> {
    const { socketPath, subtaskOf, deadline, callMs = CALL_MS } = this.#options;
    const signal = AbortSignal.any([deadline, AbortSignal.timeout(callMs)]);
    const headers: Record<string, string | number> = {
      "content-type": "text/xml",
      "content-length": Buffer.byteLength(body),
      "user-agent": "weft",
      ...(subtaskOf === null ? {} : { "subtask-of": subtaskOf }),
    };
    return new Promise((resolve, reject) => {
      const fail = (cause: unknown): void => reject(unreachable(method, socketPath, signal, cause));
      // One connection a call: XAPI's server ends idle ones when it likes.
      const options = { socketPath, method: "POST", path: "/", headers, agent: false, signal } as const;
      const request = httpRequest(options, (response) => {
        const chunks: Buffer[] = [];
        let length = 0;
        response.on("data", (chunk: Buffer) => {
          length += chunk.length;
          if (length > ANSWER_BYTES_MAX)
            request.destroy(new Error(`it is larger than ${ANSWER_BYTES_MAX} bytes`));
          else chunks.push(chunk);
        });
        response.once("error", fail);
        response.once("end", () => {
          if (response.statusCode === 200) resolve(Buffer.concat(chunks).toString());
          else fail(new Error(`it answers with HTTP status ${response.statusCode ?? 0}`));
        });
      });
      request.once("error", fail);
      request.end(body);
    });
  }
}

async function responseOf(method: string, text: string): Promise<XmlValue> {
  try {
    const response = await parseResponse(text);
    if (response.kind === "value") return response.value;
    throw new XapiError(method, "XML-RPC fault", [textOf(response.code), textOf(response.text)]);
  } catch (error) {
    if (error instanceof XmlError) throw notUnderstood(method, error.message);
    throw error;
  }
}

function textOf(value: XmlValue): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function notUnderstood(method: string, why: string): SmFault {
  return new SmFault(faultCodes.apiFailure, `XAPI's answer to ${method} was not understood: ${why}.`);
}

function unreachable(method: string, socketPath: string, signal: AbortSignal, cause: unknown): SmFault {
  const why = signal.aborted ? "no answer in time" : reasonOf(cause);
  return new SmFault(
    faultCodes.apiFailure,
    `XAPI did not answer ${method} on ${socketPath}: ${why}.`,
    "the volume itself is as the agent says; XAPI repeats the call, and a scan brings its records up to date",
    cause,
  );
}
