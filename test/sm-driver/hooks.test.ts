/** Plot: XAPI tells a host of its stop: that of its toolstack alone, and that of the whole host, on which others depend. */
import t from "tap";

import type { Message } from "../../src/core/model/alerts.ts";
import { AgentClient } from "../../src/core/wire/agent-client.ts";
import { WeftError } from "../../src/core/wire/errors.ts";
import { answerHook } from "../../src/sm-driver/setup/hooks.ts";

const log = { info: () => {}, warn: () => {}, error: () => {}, debug: () => {} };
const because = "it has the only copy in sync of 1 volume (db)";

/** Says what its host depends on, if it is there at all. */
class Held extends AgentClient {
  readonly #held: boolean | null;

  constructor(held: boolean | null) {
    super({ socketPath: "/nowhere" });
    this.#held = held;
  }

  override async stopCheck(): ReturnType<AgentClient["stopCheck"]> {
    if (this.#held === null) throw new WeftError({ code: "E-AGENT-03", message: "in no cluster" });
    return { held: this.#held, because, volumes: [], store: false, urgent: false };
  }

  override async status(): ReturnType<AgentClient["status"]> {
    throw new WeftError({ code: "E-STORE-01", message: "No majority of the store answers." });
  }
}

async function told(
  held: boolean | null,
  state: "running" | "stopping",
  hook: string,
): Promise<readonly string[]> {
  const said: Message[] = [];
  const context = {
    agent: new Held(held),
    isStopping: async () => state === "stopping",
    say: async (messages: readonly Message[]) => void said.push(...messages),
    log,
  };
  const body = JSON.stringify({ hook, args: { hostuuid: "u", reason: "clean-shutdown" } });
  t.equal((await answerHook(context, body)).hook, hook);
  return said.map(({ name, text }) => `${name}: ${text}`);
}

void t.test(
  "hooks: a host that stops while others depend on it says so at last, a toolstack does not",
  async (t) => {
    const hook = "xapi-pre-shutdown";
    t.strictSame(await told(true, "running", hook), []);
    t.strictSame(await told(false, "stopping", hook), []);
    t.strictSame(await told(null, "stopping", hook), [], "a host of no cluster");
    const [line, ...more] = await told(true, "stopping", hook);
    t.match(line, /^WEFT_STOPS: .* stops now, though it has the only copy in sync of 1 volume \(db\)\. /);
    t.strictSame(more, []);
    for (const other of ["pool-join", "pool-eject", "host-post-declare-dead", "toString"])
      t.strictSame(await told(true, "stopping", other), [], other);
  },
);
