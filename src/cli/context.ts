/**
 * What every command gets: the agent's client, the console, and how the answer shall look.
 *
 * Must always hold: the only way out of the process is an agent's REST interface, of this host or, with a context, of
 * another one; no command opens the store or weftd's socket.
 */
import { join } from "node:path";
import type { Command } from "commander";

import { AgentClient, type AgentWay } from "../core/wire/agent-client.ts";
import { WeftError } from "../core/wire/errors.ts";
import { chosenContext, type Contexts, contextsPath, readContexts, remoteOf } from "./context-file.ts";
import { json } from "./console.ts";
import type { Console } from "./console.ts";
import { table } from "./table.ts";
import type { Column } from "./table.ts";

export type Globals = {
  readonly json?: true;
  readonly quiet?: true;
  readonly yes?: true;
  readonly context?: string;
  readonly runDir: string;
  readonly stateDir: string;
};

export type Surroundings = {
  readonly console: Console;
  readonly environment: NodeJS.ProcessEnv;
  /** From the call on, ^C aborts the signal instead of ending the process. */
  readonly interruption: () => AbortSignal;
  /** From the call on, no core dump of this process and no look into its memory but root's; else why that can't be. */
  readonly protect: () => string | null;
};

export class Context {
  readonly console: Console;
  readonly environment: NodeJS.ProcessEnv;
  readonly interruption: () => AbortSignal;
  readonly globals: Globals;
  /** Set by a command that did its work and found something degraded, or passes on another program's. */
  exitCode = 0;
  #isLocal = false;
  #isProtected = false;
  readonly #hasNamedSockets: boolean;
  readonly #protect: () => string | null;

  /** `hasNamedSockets`: the command line or the environment says where they are. */
  constructor(surroundings: Surroundings, globals: Globals, hasNamedSockets: boolean) {
    this.#hasNamedSockets = hasNamedSockets;
    this.console = surroundings.console;
    this.environment = surroundings.environment;
    this.interruption = surroundings.interruption;
    this.#protect = surroundings.protect;
    this.globals = globals;
  }

  get client(): AgentClient {
    return new AgentClient({ choose: () => this.#way() });
  }

  /** For what takes longer than a request may. */
  patientClient(timeoutMs: number): AgentClient {
    return new AgentClient({ choose: () => this.#way(), timeoutMs });
  }

  get contextsPath(): string {
    return contextsPath(this.environment);
  }

  /** What this user has logged in to. */
  contexts(): Promise<Contexts> {
    return readContexts(this.contextsPath, () => this.protect());
  }

  /** Before a secret comes into memory. Where it can't be, the command goes on and says so: its user may have no other way. */
  protect(): void {
    if (this.#isProtected) return;
    this.#isProtected = true;
    const reason = this.#protect();
    if (reason !== null)
      this.console.error(
        `A core dump of this command, or a debugger of yours, could show the secret that it is given: ${reason}`,
      );
  }

  /** Whatever context is in use: what is asked is about this very host. */
  stayHere(): void {
    this.#isLocal = true;
  }

  /** The context that was named; this host's own agent where its sockets were named; else the context that is in use. */
  async #way(): Promise<AgentWay> {
    const local = { socketPath: join(this.globals.runDir, "agent.sock") };
    const named = this.globals.context ?? this.environment["WEFT_CONTEXT"] ?? "";
    if (this.#isLocal || (named === "" && this.#hasNamedSockets)) return local;
    const contexts = await this.contexts();
    const chosen = chosenContext(contexts, named === "" ? null : named);
    return chosen === null ? local : { remote: remoteOf(chosen) };
  }

  /** One thing: JSON, its id alone, or the text for people. */
  show<Value>(value: Value, id: (value: Value) => string, text: (value: Value) => string): void {
    if (this.globals.json === true) this.console.line(json(value));
    else if (this.globals.quiet === true) this.console.line(id(value));
    else this.console.line(text(value));
  }

  /** Done, nothing to show: JSON says so, `-q` nothing. */
  done(facts: Readonly<Record<string, unknown>>, text: string): void {
    if (this.globals.json === true) this.console.line(json(facts));
    else if (this.globals.quiet !== true) this.console.line(text);
  }

  list<Row>(
    rows: readonly Row[],
    id: (row: Row) => string,
    columns: readonly Column<Row>[],
    none: string,
  ): void {
    if (this.globals.json === true) this.console.line(json(rows));
    else if (this.globals.quiet === true) for (const row of rows) this.console.line(id(row));
    else this.console.line(rows.length === 0 ? none : table(rows, columns));
  }

  /** A sentence beside the answer; only for people. */
  note(text: string): void {
    if (this.globals.json !== true && this.globals.quiet !== true) this.console.line(text);
  }

  /** Asks for a name before what loses data: a `y` is typed too easily. */
  async confirmName(question: string, name: string): Promise<void> {
    if (this.globals.yes === true) return;
    const typed = await this.console.question(`${question} `);
    if (typed === name) return;
    throw new WeftError({
      code: "E-ARG-04",
      message: typed === null ? `${question} Nobody could be asked.` : `"${typed}" is not its name.`,
      safe: "Nothing was changed.",
      do: [{ why: "Confirm on the command line", command: "--yes" }],
    });
  }

  /** Asks before what can't be taken back. */
  async confirm(question: string): Promise<void> {
    if (this.globals.yes === true) return;
    const answer = await this.console.confirm(question);
    if (answer === true) return;
    throw new WeftError({
      code: "E-ARG-04",
      message: answer === null ? `${question} Nobody could be asked.` : "Not confirmed.",
      safe: "Nothing was changed.",
      do: [{ why: "Confirm on the command line", command: "--yes" }],
    });
  }
}

/** Joins a command of commander with its work. `Args` and `Options` are what the command declares beside it. */
// oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- commander's own types do not carry a declaration
export type Bind = <Args extends readonly (string | undefined)[], Options extends object>(
  command: Command,
  work: (context: Context, args: Args, options: Options) => Promise<void>,
) => void;
