/**
 * Where the command's words go: stdout for the answer, stderr for progress and errors.
 *
 * Must always hold:
 * - stdout has the answer only: one JSON value with `--json`, ids or paths only with `-q`;
 * - no colour and no moving cursor unless stderr or stdout is a terminal; NO_COLOR is honoured.
 */
import { createInterface } from "node:readline/promises";
import { Writable } from "node:stream";
import { styleText } from "node:util";

export type Streams = {
  readonly stdin: NodeJS.ReadableStream & { readonly isTTY?: boolean };
  readonly stdout: NodeJS.WritableStream & { readonly isTTY?: boolean };
  readonly stderr: NodeJS.WritableStream & { readonly isTTY?: boolean };
};

type Colour = "green" | "yellow" | "red" | "bold";

export class Console {
  readonly #streams: Streams;
  readonly #colours: boolean;
  #hasProgress = false;

  constructor(streams: Streams, environment: NodeJS.ProcessEnv) {
    this.#streams = streams;
    const wish = environment["NO_COLOR"] ?? "";
    this.#colours = streams.stdout.isTTY === true && wish === "" && environment["TERM"] !== "dumb";
  }

  line(text: string): void {
    this.#clearProgress();
    this.#streams.stdout.write(`${text}\n`);
  }

  error(text: string): void {
    this.#clearProgress();
    this.#streams.stderr.write(`${text}\n`);
  }

  /** Text that has its own line ends. */
  write(text: string): void {
    this.#clearProgress();
    this.#streams.stdout.write(text);
  }

  writeError(text: string): void {
    this.#clearProgress();
    this.#streams.stderr.write(text);
  }

  /** Whether progress replaces its own line. */
  get isTerminal(): boolean {
    return this.#streams.stderr.isTTY === true;
  }

  /** One line that the next one replaces; off a terminal each is a line of its own. */
  progress(text: string): void {
    if (this.#streams.stderr.isTTY === true) {
      this.#streams.stderr.write(`\r\u001b[K${text}`);
      this.#hasProgress = true;
    } else {
      this.#streams.stderr.write(`${text}\n`);
    }
  }

  colour(text: string, colour: Colour): string {
    return this.#colours ? styleText(colour, text, { validateStream: false }) : text;
  }

  /** Asks yes or no; null when nobody is there to answer. */
  async confirm(question: string): Promise<boolean | null> {
    const answer = await this.question(`${question} [y/N] `);
    return answer === null ? null : /^y(es)?$/i.test(answer);
  }

  /** What somebody types; null when nobody is there to answer. */
  async question(text: string): Promise<string | null> {
    if (this.#streams.stdin.isTTY !== true) return null;
    const lines = createInterface({ input: this.#streams.stdin, output: this.#streams.stderr });
    try {
      return (await lines.question(text)).trim();
    } finally {
      lines.close();
    }
  }

  /** Asks for what nobody shall read over the shoulder: what is typed is not shown. Null when nobody is there, or ^C or ^D. */
  async secret(question: string): Promise<string | null> {
    if (this.#streams.stdin.isTTY !== true) return null;
    this.#streams.stderr.write(question);
    const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
    const lines = createInterface({ input: this.#streams.stdin, output: nowhere, terminal: true });
    try {
      return await new Promise<string | null>((resolve, reject) => {
        lines.once("SIGINT", () => resolve(null));
        lines.once("close", () => resolve(null));
        lines.question("").then(resolve, reject);
      });
    } finally {
      lines.close();
      this.#streams.stderr.write("\n");
    }
  }

  /** All of standard input, for a secret that another program writes. */
  async input(): Promise<string> {
    const chunks: Buffer[] = [];
    for await (const chunk of this.#streams.stdin) chunks.push(Buffer.from(chunk));
    return Buffer.concat(chunks).toString("utf8");
  }

  #clearProgress(): void {
    if (this.#hasProgress) this.#streams.stderr.write("\r\u001b[K");
    this.#hasProgress = false;
  }
}

/** JSON for programs; 64-bit numbers as decimal strings, as everywhere on the wire. */
export function json(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? part.toString() : part), 2);
}
