/** `weft ca show|rotate`: the cluster's authority, and another one in its place. */
import type { Command } from "commander";

import type { CaAnswer } from "../core/wire/agent-api.ts";
import type { Bind } from "./context.ts";
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
