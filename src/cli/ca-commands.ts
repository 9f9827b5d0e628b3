/** `weft ca show|rotate|backup|restore`: the cluster's authority, another one in its place, a copy of its keys. */
import type { Command } from "commander";

import type { CaAnswer } from "../core/wire/agent-api.ts";
import { absolutePath } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { passphraseFrom } from "./passphrase.ts";
import { clock, day } from "./token-commands.ts";

type Rotate = { readonly without?: readonly string[] };

export function addCaCommands(program: Command, bind: Bind): void {
  const ca = program.command("ca").description("the cluster's authority, which signs who is trusted");

  const show = ca.command("show").description("authorities, certificates, and what a change waits for");
  bind(show, async (context) => {
    context.show(await context.client.authorities(), ({ authorities: [first] }) => first?.kid ?? "", caText);
  });

  const rotate = ca
    .command("rotate")
    .description("put a new authority in the place of the old one, while everything goes on")
    .option("--without <host...>", "hosts that are not waited for: they come back by their key");
  bind<[], Rotate>(rotate, async (context, _, { without = [] }) => {
    await context.confirm("Every member of the store restarts once or twice, one after the other.");
    const answer = await context.client.rotateAuthority({ without: [...without] });
    context.show(answer, ({ authorities: [first] }) => first?.kid ?? "", rotationText);
  });
  addFileCommands(ca, bind);
}

type File = { readonly passphraseFile?: string };

function addFileCommands(ca: Command, bind: Bind): void {
  const option = ["--passphrase-file <file>", "where the passphrase stands; else it is asked for"] as const;
  const backup = ca
    .command("backup")
    .description("write the authority's keys to a file on this host, under a passphrase")
    .argument("<file>", "must not exist")
    .option(...option);
  bind<[string], File>(backup, async (context, [file], options) => {
    const passphrase = await passphraseFrom(context, options, true);
    const answer = await context.client.backupAuthority({ path: absolutePath(file), passphrase });
    context.show(
      answer,
      ({ path }) => path,
      ({ path, kids: [first = ""] }) =>
        `Authority ${fingerprint(first)} written to ${path}. Keep it off this host; who has it and the passphrase can make hosts.`,
    );
  });

  const restore = ca
    .command("restore")
    .description("give this store member the authority's keys back, when no member has them")
    .argument("<file>", "written by weft ca backup")
    .option(...option);
  bind<[string], File>(restore, async (context, [file], options) => {
    const passphrase = await passphraseFrom(context, options, false);
    const answer = await context.client.restoreAuthority({ path: absolutePath(file), passphrase });
    context.show(
      answer,
      ({ path }) => path,
      ({ kids }) => `Restored: ${kids.map(fingerprint).join(", ")}.`,
    );
  });
}

function caText(answer: CaAnswer): string {
  const { authorities, hosts, revoked } = answer;
  const lines = authorities.map(
    ({ kind, kid, state, since, signed }) =>
      `${kind === "host" ? "authority" : "store"}  ${fingerprint(kid)}  ${state}  since ${clock(since)}  ${signed} hosts`,
  );
  const ends = hosts.map(
    ({ name, keys, notAfter }) =>
      `${name}  until ${notAfter === null ? "unknown" : day(notAfter)}  key ${keys.map(fingerprint).join(", ")}`,
  );
  const gone = revoked.map(({ name, at, by }) => `${name}  revoked ${clock(at)} by ${by}`);
  const change = answer.rotation === null ? [] : ["", rotationText(answer)];
  return [...lines, "", ...ends, ...gone, ...change].join("\n");
}

function rotationText({ rotation, authorities }: CaAnswer): string {
  if (rotation === null) {
    const [active] = authorities.filter(({ kind, state }) => kind === "host" && state === "active");
    return `Authority ${fingerprint(active?.kid ?? "")} is the only one.`;
  }
  const { phase, awaited, without } = rotation;
  const step = ["announce", "bundle", "issue", "drop"].indexOf(phase) + 1;
  const waits = awaited.map(({ host, what }) => `${host} (${what})`).join(", ");
  return [
    `Phase ${step}/4 ${phase}: ${waits === "" ? "goes on" : `waits for ${waits}`}`,
    ...(without.length === 0 ? [] : [`Without ${without.join(", ")}.`]),
    "It goes on by itself:   weft ca show",
  ].join("\n");
}

/** As people compare them. */
function fingerprint(kid: string): string {
  return (kid.slice(0, 16).match(/.{4}/g) ?? []).join(" ");
}
