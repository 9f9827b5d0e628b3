/** `weft host list|label|stop-check|restart-holder|remove|revoke`. */
import type { Command } from "commander";

import { formatDuration } from "../core/model/duration.ts";
import { STOP_IDLE_MS, STOP_WAIT_MS_MAX } from "../core/model/limits.ts";
import { labelsText, parseLabels } from "../core/model/spread.ts";
import type { HostAnswer, HostRevokeAnswer } from "../core/wire/agent-api.ts";
import { decided } from "../core/wire/errors.ts";
import { duration } from "./arguments.ts";
import type { Bind } from "./context.ts";
import { withSuggestion } from "./reference.ts";

/** Tapdisks that don't go on at once are waited for. */
const RESTART_MS = 300_000;

export function addHostCommands(program: Command, bind: Bind): void {
  const host = program.command("host").description("members of the cluster");

  const list = host.command("list").description("all hosts of the cluster");
  bind(list, async (context) => {
    const hosts = await context.client.hosts();
    context.list(
      hosts,
      ({ id }) => id,
      [
        { title: "HOST", of: ({ name, self }) => (self ? `${name} (here)` : name) },
        { title: "ADDRESS", of: ({ address }) => address },
        { title: "ANSWERS", of: ({ alive }) => (alive ? "yes" : "no") },
        { title: "STORE", of: ({ store }) => (store === "none" ? "—" : store) },
        ...(hosts.some(({ labels }) => labelsText(labels) !== "—")
          ? [{ title: "STANDS IN", of: ({ labels }: HostAnswer) => labelsText(labels) }]
          : []),
        { title: "ID", of: ({ id }) => id },
      ],
      "No hosts.",
    );
  });

  const label = host
    .command("label")
    .description("say where a host stands, for volumes whose copies must not share a rack or site")
    .argument("<host>", "its name or id")
    .argument("<labels...>", "rack=NAME, site=NAME; rack= takes it off");
  bind<[string], object>(label, async (context, [ref]) => {
    const labels = decided(parseLabels(label.args.slice(1)));
    const answer = await withSuggestion(context.client, "host", ref, () =>
      context.client.changeHost(ref, { labels }),
    );
    context.show(
      answer,
      ({ id }) => id,
      ({ name, labels: now }) => `${name} stands in: ${labelsText(now)}.`,
    );
  });

  const stopCheck = host
    .command("stop-check")
    .description("whether this host may stop now: exit code 3 while a volume or the store would stop with it")
    .option("--wait <time>", "until it may, at most so long", duration);
  bind<[], { readonly wait?: number }>(stopCheck, async (context, _, { wait = 0 }) => {
    context.stayHere();
    const begun = performance.now();
    let isTold = false;
    let isUrgent = true;
    for (;;) {
      const whole = isUrgent ? wait : Math.min(wait, STOP_IDLE_MS);
      const left = Math.max(0, Math.round(begun + whole - performance.now()));
      const answer = await context.client.stopCheck(isTold ? Math.min(left, STOP_WAIT_MS_MAX) : 0);
      isUrgent = answer.urgent;
      if (answer.held && left > 0) {
        if (!isTold) {
          const most = formatDuration(isUrgent ? wait : Math.min(wait, STOP_IDLE_MS));
          context.note(`Waiting, ${most} at most: ${answer.because}.`);
        }
        isTold = true;
        continue;
      }
      if (answer.held) context.exitCode = 3;
      context.show(
        answer,
        ({ held }) => (held ? "held" : "free"),
        ({ held, because }) => (held ? `Better not yet: ${because}.` : `This host may stop: ${because}.`),
      );
      return;
    }
  });

  const restart = host
    .command("restart-holder")
    .description("put a new weft-holder under this host's guests: their disks pause for a moment");
  bind(restart, async (context) => {
    context.stayHere();
    await context.confirm("Pause every guest's disk of this host, and restart weft-holder?");
    const answer = await context.patientClient(RESTART_MS).restartHolder();
    context.show(
      answer,
      ({ version }) => version,
      ({ version, paused, pausedMs }) =>
        `weft-holder ${version} runs. ${paused === 1 ? "One disk was" : `${paused} disks were`} paused, for ${formatDuration(pausedMs)} at most.`,
    );
  });

  const remove = host
    .command("remove")
    .description("take a host out of the cluster for good")
    .argument("<host>", "its name or id");
  bind<[string], object>(remove, async (context, [ref]) => {
    await context.confirm(`Remove host "${ref}" from the cluster? It can only come back by joining anew.`);
    const answer = await withSuggestion(context.client, "host", ref, () => context.client.removeHost(ref));
    context.show(
      answer,
      ({ host: id }) => id,
      (removed) =>
        [
          `Host ${removed.name} removed.${removed.storeMemberRemoved ? " Its vote in the store is gone too." : ""}`,
          ...newAuthority(removed),
          ...(removed.complete ? [] : notYet(removed.host)),
        ].join("\n"),
    );
  });

  const revoke = host
    .command("revoke")
    .description("listen to nothing of a host from now on: it was stolen, or does what it should not")
    .argument("<host>", "its name or id");
  bind<[string], object>(revoke, async (context, [ref]) => {
    await context.confirm(
      `From now on nothing of host "${ref}" is listened to, and nothing on it is reached. It can never come back under this identity.`,
    );
    const answer = await withSuggestion(context.client, "host", ref, () => context.client.revokeHost(ref));
    context.show(answer, ({ host: id }) => id, revokeText);
  });
}

function revokeText(answer: HostRevokeAnswer): string {
  const { host, name, generation, hosts, complete, fenced, open } = answer;
  const said = (ms: number | null): string => (ms === null ? "not yet" : `${(ms / 1000).toFixed(2)} s`);
  const refused = hosts.map((other) => `${other.name} ${said(other.refusedMs)}`);
  const store = hosts.filter(({ member }) => member).map((other) => `${other.name} ${said(other.storeMs)}`);
  return [
    `${name} is revoked at generation ${generation}.`,
    `  refused by   ${refused.join("   ")}`,
    `  store        ${store.join("   ")}   (its connections were cut)`,
    ...(fenced.length === 0
      ? []
      : [`  fenced       ${fenced.map((volume) => `${volume.name} at epoch ${volume.epoch}`).join(", ")}`]),
    ...(open.length === 0 ? [] : [`  still its    ${open.map((volume) => volume.name).join(", ")}`]),
    ...newAuthority(answer),
    ...(complete ? [] : notYet(host)),
  ].join("\n");
}

/** By its id: another host may have its name by then. */
function notYet(host: string): readonly string[] {
  return [
    "Not every host has said yet that it refuses it. One that is cut off from the store keeps its sessions with it until it sees the store again.",
    `Ask again:   weft host revoke ${host}`,
  ];
}

/** Who has the new key decides whether the next lost disk is the end of it. */
function newAuthority({
  name,
  authority,
  keyOn,
  keyMissing,
}: Pick<HostRevokeAnswer, "name" | "authority" | "keyOn" | "keyMissing">): readonly string[] {
  if (authority === null) return [];
  return [
    `${name} held the authority's key: a new authority was made (${authority.slice(0, 4)} …).   weft ca show`,
    ...(keyOn.length === 0 ? [] : [`  its key is on ${keyOn.join(", ")}`]),
    ...(keyMissing.length === 0
      ? []
      : [`  not yet on    ${keyMissing.join(", ")}: given when it is back, while one of the others lives`]),
    ...(keyOn.length !== 1
      ? []
      : [
          "The new authority's key is on this one host only: if its disk is lost, so is the authority.",
          "Keep a copy elsewhere now:   weft ca backup FILE",
        ]),
  ];
}
