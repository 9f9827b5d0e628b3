/** `weft token create|list|revoke`: what a host needs to join. */
import type { Command } from "commander";

import type { TokenAnswer } from "../core/wire/agent-api.ts";
import { duration, hostName } from "./arguments.ts";
import type { Bind } from "./context.ts";

type Create = { readonly for?: number; readonly name?: string };

export function addTokenCommands(program: Command, bind: Bind): void {
  const token = program.command("token").description("tokens that let hosts join");

  const create = token
    .command("create")
    .description("make a token that lets one host join")
    .option("--for <time>", "how long it is valid (default: 60m)", duration)
    .option("--name <host>", "only a host of this name can use it", hostName);
  bind<[], Create>(create, async (context, _, options) => {
    context.protect();
    const made = await context.client.createToken({ forMs: options.for ?? null, name: options.name ?? null });
    context.show(
      made,
      (answer) => answer.token,
      (answer) => {
        const who = answer.name === null ? "one host" : `the host "${answer.name}"`;
        return `${answer.token}\nValid until ${clock(answer.expiresAt)}, for ${who}. Shown once: only its hash is kept.`;
      },
    );
  });

  const list = token.command("list").description("tokens, and which hosts used them");
  bind(list, async (context) => {
    context.list(
      await context.client.tokens(),
      ({ id }) => id,
      [
        { title: "ID", of: ({ id }) => id },
        { title: "FOR", of: ({ name }) => name ?? "any host" },
        { title: "MADE BY", of: ({ by }) => by },
        { title: "EXPIRES", of: expiry },
        {
          title: "USED",
          of: ({ used }) => (used === null ? "–" : `by ${used.host}, ${clock(used.at)}`),
        },
      ],
      "No tokens.  Make one:  weft token create",
    );
  });

  const revoke = token
    .command("revoke")
    .description("make a token useless")
    .argument("<id>", "its id, as token list shows it");
  bind<[string], object>(revoke, async (context, [id]) => {
    await context.client.revokeToken(id);
    context.done({ token: id, revoked: true }, `Token ${id} can't be used any more.`);
  });
}

function expiry({ expiresAt }: TokenAnswer): string {
  return Date.parse(expiresAt) < Date.now() ? "past" : clock(expiresAt);
}

/** The time of day here, with the date where it is another day. */
export function clock(at: string): string {
  const date = new Date(at);
  const two = (value: number): string => String(value).padStart(2, "0");
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return date.toDateString() === new Date().toDateString() ? time : `${day(at)} ${time}`;
}

export function day(at: string): string {
  return new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" }).format(new Date(at));
}
