/** `weft api-token create|list|revoke`: what people and programs on other machines prove themselves with. */
import type { Command } from "commander";

import type { Role } from "../core/model/roles.ts";
import { duration, role, tokenName } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { clock } from "./token-commands.ts";

type Create = { readonly role: Role; readonly for?: number; readonly volume?: readonly string[] };

export function addApiTokenCommands(program: Command, bind: Bind): void {
  const token = program.command("api-token").description("tokens for people and programs on other machines");

  const create = token
    .command("create")
    .description("make one; it is shown once")
    .argument("<name>", "who or what uses it", tokenName)
    .requiredOption("--role <role>", "viewer, operator or admin", role)
    .option("--for <time>", "how long it is valid (default: 90d)", duration)
    .option(
      "--volume <volume>",
      "only for this one; may be repeated",
      (one: string, more?: readonly string[]) => [...(more ?? []), one],
    );
  bind<[string], Create>(create, async (context, [name], options) => {
    context.protect();
    const made = await context.client.createApiToken({
      name,
      role: options.role,
      volumes: options.volume === undefined ? null : [...options.volume],
      ...(options.for === undefined ? {} : { forMs: options.for }),
    });
    context.show(
      made,
      (answer) => answer.token,
      ({ token, expiresAt, address, authority }) =>
        [
          token,
          `Valid until ${clock(expiresAt)}. Shown once: only its hash is kept.`,
          "Use it on another machine:",
          `    weft login https://${address.includes(":") ? `[${address}]` : address}:7400 --fingerprint ${authority}`,
        ].join("\n"),
    );
  });

  const list = token.command("list").description("tokens, and when they were used last");
  bind(list, async (context) => {
    context.list(
      await context.client.apiTokens(),
      ({ id }) => id,
      [
        { title: "ID", of: ({ id }) => id },
        { title: "NAME", of: ({ name }) => name },
        { title: "ROLE", of: ({ role }) => role },
        { title: "VOLUMES", of: ({ volumes }) => (volumes === null ? "all" : String(volumes.length)) },
        { title: "MADE BY", of: ({ by }) => by },
        {
          title: "EXPIRES",
          of: ({ expiresAt }) => (Date.parse(expiresAt) < Date.now() ? "past" : clock(expiresAt)),
        },
        { title: "USED", of: ({ used }) => (used === null ? "–" : `${clock(used.at)} from ${used.from}`) },
      ],
      "No API tokens.  Make one:  weft api-token create NAME --role viewer",
    );
  });

  const revoke = token
    .command("revoke")
    .description("make one useless at once, on every host")
    .argument("<token>", "its id or name");
  bind<[string], object>(revoke, async (context, [ref]) => {
    await context.client.revokeApiToken(ref);
    context.done({ token: ref, revoked: true }, `Token ${ref} can't be used any more.`);
  });
}
