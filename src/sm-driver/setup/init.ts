/**
 * `weft init` on a host of XAPI's pool: the plan for people, and all of it: toolstacks, cluster, SR.
 *
 *     plan shown ──▶ no task runs ──▶ toolstacks restarted, master first ──▶ the plan's steps ──▶ SR.create
 *
 * Must always hold:
 * - what is done is the plan that was shown; a pool that changed meanwhile is shown anew;
 * - no toolstack is restarted while XAPI has a task: what it was doing would be lost;
 * - all of it may be repeated: what is there already is left as it is.
 */
import { stat } from "node:fs/promises";

import { setupText } from "../../core/model/setup-text.ts";
import { AgentClient } from "../../core/wire/agent-client.ts";
import { isWeftError, reasonOf, WeftError } from "../../core/wire/errors.ts";
import type {
  SetupPlanAnswer,
  SetupRequest,
  SetupRunAnswer,
  SetupRunRequest,
} from "../../core/wire/setup-api.ts";
import type { Log } from "../call.ts";
import { SmFault } from "../faults.ts";
import { isXapiError, type XenApi } from "../xen-api.ts";
import {
  callPlugin,
  hostOfRef,
  isRegistered,
  pendingTasks,
  type PoolHost,
  srNamed,
  type XapiPool,
} from "./pool-records.ts";
import { alone } from "./setup-lock.ts";
import { thisHost, withLocalSession } from "./session.ts";
import { planPool, type PlannedSetup, runPlan, type SetupContext } from "./setup.ts";

export type PoolInitOptions = {
  readonly agentSocket: string;
  readonly xapiSocket: string;
  readonly log: Log;
};

const PLAN_MS = 60_000;
const RUN_MS = 1_800_000;
/** A file system on a large disk of a slow host, or an SR that is plugged on all of them. */
const STEP_MS = 300_000;
/** XAPI stops, starts, and takes up its hosts. */
const RESTART_MS = 180_000;
/** Then it hears of its hosts: they say every 30 s that they live. */
const SEEN_MS = 60_000;
/** XAPI tells nobody that it is back. */
const LOOK_MS = 1000;

export class PoolInit {
  readonly #options: PoolInitOptions;

  constructor(options: PoolInitOptions) {
    this.#options = options;
  }

  async plan(request: SetupRequest): Promise<SetupPlanAnswer> {
    if (!(await this.#hasXapi())) return { kind: "no-xapi" };
    return this.#inSession(PLAN_MS, async (context) => {
      const planned = await planPool(context, request);
      return this.#answer(context, planned, request.sr);
    });
  }

  async run(request: SetupRunRequest, gone: AbortSignal): Promise<SetupRunAnswer> {
    const { pool, steps } = await this.#inSession(PLAN_MS, async (context) => {
      const planned = await planPool(context, request);
      const answer = await this.#answer(context, planned, request.sr);
      if (answer.kind === "no-xapi" || answer.text !== request.shown) throw changed();
      return { pool: planned.pool, steps: stepsOf(planned) };
    });
    const restarted = await this.#registered(pool, gone);
    return this.#inSession(RUN_MS, async (context) => {
      // By now XAPI may be another process: its records have other refs for some things.
      const { hostname } = hostOfRef(pool, context.hostRef);
      const done = await alone(context.xapi, hostname, Date.now(), async () => {
        // A host may seem off to an XAPI that has just come back.
        const end = performance.now() + (restarted === 0 ? 0 : SEEN_MS);
        let planned = await planPool(context, request);
        while (!hasAll(planned.pool, pool) && performance.now() < end && !gone.aborted) {
          await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
          planned = await planPool(context, request);
        }
        const { decision } = planned;
        // A disk that came meanwhile is nobody's to take.
        if (decision.kind === "refused" || stepsOf(planned) !== steps) throw changed();
        await runPlan(context, planned, decision.plan);
        return { plan: decision.plan, self: planned.self };
      });
      // The driver's own sr_create finds all of it done.
      const known = await srNamed(context.xapi, request.sr);
      const sr = known ?? (await createSr(context.xapi, done.self, request.sr, done.plan.copies));
      return { sr, hosts: done.plan.hosts.length, restarted };
    });
  }

  async #hasXapi(): Promise<boolean> {
    try {
      return (await stat(this.#options.xapiSocket)).isSocket();
    } catch {
      return false;
    }
  }

  async #answer(
    { xapi }: SetupContext,
    { pool, decision }: PlannedSetup,
    label: string,
  ): Promise<SetupPlanAnswer> {
    const sr = await srNamed(xapi, label);
    const text = setupText(decision, { pool: pool.name, sr: sr === null ? label : null });
    if (decision.kind === "refused")
      return { kind: "refused", text, codes: decision.findings.map(({ code }) => code) };
    const restarts = !(await isRegistered(xapi));
    const { steps, copies, usableBytes } = decision.plan;
    const names = new Map(pool.hosts.map(({ uuid, hostname }) => [uuid, hostname]));
    return {
      kind: "plan",
      text: restarts
        ? `${text}\nThe toolstack of each host is restarted, the master's first; running VMs go on.`
        : text,
      steps: steps.map((step) => ({
        kind: step.kind,
        host: names.get(step.host) ?? step.host,
        what: step.kind === "pool" ? step.device : step.address,
      })),
      restarts,
      copies,
      usableBytes: String(usableBytes),
      sr,
    };
  }

  /** How many toolstacks were restarted, so that XAPI knows the driver. */
  async #registered(pool: XapiPool, gone: AbortSignal): Promise<number> {
    const isThere = await this.#inSession(PLAN_MS, async ({ xapi }) => {
      if (await isRegistered(xapi)) return true;
      if (pool.hasHa) throw hasHa();
      const tasks = await pendingTasks(xapi, new Set());
      if (tasks.length > 0) throw tasksRun(tasks);
      return false;
    });
    if (isThere) return 0;
    const up = pool.hosts.filter(({ isUp }) => isUp);
    const order = up.toSorted((a, b) => Number(b.isMaster) - Number(a.isMaster));
    for (const host of order) await this.#restart(host, gone);
    if (await this.#inSession(PLAN_MS, ({ xapi }) => isRegistered(xapi))) return order.length;
    throw new WeftError({
      code: "E-SETUP-10",
      message: "XAPI was restarted and does not take up weft's driver.",
      do: [
        { why: "Is weft in its list?", command: "grep -r sm-plugins /etc/xapi.conf /etc/xapi.conf.d" },
        { why: "What it says", command: "grep 'SM weft' /var/log/xensource.log" },
      ],
    });
  }

  async #restart({ ref, hostname }: PoolHost, gone: AbortSignal): Promise<void> {
    const ask = (name: string): Promise<string> =>
      this.#inSession(PLAN_MS, ({ xapi }) => callPlugin(xapi, ref, name));
    const before = doneOf(await ask("toolstack-restarted"));
    await this.#inSession(PLAN_MS, async ({ xapi }) => {
      // One that began meanwhile is not lost either.
      const tasks = await pendingTasks(xapi, new Set());
      if (tasks.length > 0) throw tasksRun(tasks);
      await callPlugin(xapi, ref, "restart-toolstack");
    });
    this.#options.log.info({ host: hostname }, "its toolstack is restarted");
    const end = performance.now() + RESTART_MS;
    let last = "it is not back";
    while (performance.now() < end && !gone.aborted) {
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
      try {
        const now = doneOf(await ask("toolstack-restarted"));
        if (now.failed !== null) throw restartFailed(hostname, now.failed);
        if (now.done > before.done) return;
      } catch (error) {
        // XAPI is away, or believes that the host is.
        if (!(error instanceof SmFault)) throw error;
        last = reasonOf(error);
      }
    }
    throw restartFailed(hostname, last);
  }

  async #inSession<T>(ms: number, work: (context: SetupContext) => Promise<T>): Promise<T> {
    const { agentSocket, xapiSocket, log } = this.#options;
    const deadline = AbortSignal.timeout(ms);
    return withLocalSession({ socketPath: xapiSocket, deadline, callMs: STEP_MS, log }, async (xapi) => {
      const agent = new AgentClient({ socketPath: agentSocket, timeoutMs: STEP_MS });
      return work({ agent, xapi, hostRef: await thisHost(xapi), log });
    });
  }
}

/** XAPI makes its records and PBDs, calls the driver, and plugs it on all hosts. */
async function createSr(xapi: XenApi, self: PoolHost, label: string, copies: number): Promise<string> {
  const config = { copies: String(copies) };
  const words = [self.ref, config, "0", label, "Replicated by weft", "weft", "user", true, {}] as const;
  const ref = await xapi.text("SR.create", ...words);
  return xapi.text("SR.get_uuid", ref);
}

/** What would be done, in order; of a plan that is refused nothing. */
function stepsOf({ decision }: PlannedSetup): string {
  if (decision.kind === "refused") return "";
  const { steps, copies } = decision.plan;
  return JSON.stringify([steps, copies]);
}

/** Every host that was there then. */
function hasAll(now: XapiPool, then: XapiPool): boolean {
  const up = new Set(now.hosts.flatMap(({ uuid, isUp }) => (isUp ? [uuid] : [])));
  return then.hosts.every(({ uuid, isUp }) => !isUp || up.has(uuid));
}

type Done = { readonly done: number; readonly failed: string | null };

function doneOf(text: string): Done {
  const state: unknown = JSON.parse(text);
  const done = typeof state === "object" && state !== null && "done" in state ? Number(state.done) : 0;
  const failed =
    typeof state === "object" && state !== null && "failed" in state && typeof state.failed === "string"
      ? state.failed
      : null;
  return { done, failed };
}

/** What went wrong, as the command line shows it. */
export function asWeftError(error: unknown): WeftError {
  if (isWeftError(error)) return error;
  if (isXapiError(error) && /^E-[A-Z]+-[0-9]{2}$/.test(error.failure)) {
    const [message = error.message, ...more] = error.params;
    return new WeftError({ code: error.failure, message, safe: more[0] ?? null, cause: error });
  }
  if (error instanceof SmFault) {
    const [, code = "E-SETUP-11", message = error.message] =
      /^(E-[A-Z]+-[0-9]{2}) +([^]*)$/.exec(error.message) ?? [];
    return new WeftError({ code, message, cause: error });
  }
  throw error;
}

function changed(): WeftError {
  return new WeftError({
    code: "E-SETUP-09",
    message: "The pool is not as it was when the plan was shown.",
    safe: "Nothing was changed on any host.",
    do: [{ why: "See the plan of now", command: "weft init --plan" }],
  });
}

function tasksRun(tasks: readonly string[]): WeftError {
  const shown = tasks.slice(0, 5).join(", ");
  return new WeftError({
    code: "E-SETUP-07",
    message: `XAPI has ${tasks.length} ${tasks.length === 1 ? "task" : "tasks"} under way (${shown}): its toolstack is not restarted meanwhile.`,
    facts: { tasks: tasks.length },
    safe: "Nothing of them was disturbed.",
    do: [
      { why: "See them", command: "xe task-list" },
      { why: "When they are done", command: "weft init" },
    ],
  });
}

function hasHa(): WeftError {
  return new WeftError({
    code: "E-SETUP-14",
    message: "HA is on in this pool: a toolstack that is restarted may have its host fenced.",
    safe: "Nothing was changed.",
    do: [
      { why: "Switch it off for as long as this takes", command: "xe pool-ha-disable" },
      { why: "Then", command: "weft init" },
    ],
  });
}

function restartFailed(host: string, why: string): WeftError {
  return new WeftError({
    code: "E-SETUP-12",
    message: `The toolstack of ${host} did not come back: ${why.replace(/\.$/, "")}.`,
    facts: { host },
    safe: "Running VMs go on. The same command continues.",
    do: [{ why: `On ${host}`, command: "xe-toolstack-restart" }],
  });
}
