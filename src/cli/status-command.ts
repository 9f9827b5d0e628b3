/**
 * `weft status`: is my data safe, what is wrong, what is there.
 *
 * Must always hold: exit code 3 unless all is well, so that a script needs no parsing.
 */
import type { Command } from "commander";

import { formatSize } from "../core/model/size.ts";
import { summarise } from "../core/model/summary.ts";
import type { Summary } from "../core/model/summary.ts";
import type { DaemonStatus, StatusAnswer } from "../core/wire/agent-api.ts";
import type { Bind, Context } from "./context.ts";
import { oneLine, table } from "./table.ts";

type ClusterStatus = Extract<StatusAnswer, { readonly kind: "cluster" }>;

export function addStatusCommand(program: Command, bind: Bind): void {
  const status = program.command("status").description("is my data safe, and what is there");
  bind(status, async (context) => {
    const answer = await context.client.status();
    switch (answer.kind) {
      case "no-cluster":
        context.exitCode = 3;
        context.show(
          answer,
          () => answer.kind,
          () =>
            [
              "NO CLUSTER — this host belongs to none yet",
              ...(answer.daemon.reachable ? [] : [`  ${daemonLine(answer.daemon)}`]),
              "Next:  weft init, or weft join HOST",
            ].join("\n"),
        );
        return;
      case "cluster": {
        const summary = summaryOf(answer);
        context.exitCode = headlineOf(answer, summary).startsWith("HEALTHY") ? 0 : 3;
        context.show(
          answer,
          () => answer.health,
          () => statusText(context, answer, summary),
        );
      }
    }
  });
}

function summaryOf(answer: ClusterStatus): Summary {
  const now = Date.parse(answer.now);
  return summarise({
    hosts: answer.hosts.map(({ name, alive, aliveSince }) => ({
      name,
      alive,
      awayMs: alive || aliveSince === null ? null : Math.max(0, now - Date.parse(aliveSince)),
    })),
    storeUp: answer.store.writable,
    volumes: answer.volumes.map(({ name, health, minIsr, replicas }) => ({
      name,
      health,
      minIsr,
      insyncOn: replicas
        .filter(({ state, alive }) => state === "INSYNC" && alive)
        .map(({ hostName }) => hostName),
    })),
  });
}

function statusText(context: Context, answer: ClusterStatus, summary: Summary): string {
  const headline = headlineOf(answer, summary);
  const colour = headline.startsWith("HEALTHY")
    ? "green"
    : headline.startsWith("DEGRADED")
      ? "yellow"
      : "red";
  return [
    context.console.colour(headline, colour),
    ...summary.lines.map((line) => `  ${line}`),
    ...(answer.daemon.reachable ? [] : [`  ${daemonLine(answer.daemon)}`]),
    ...answer.problems.flatMap(({ code, message, do: remedies }) => [
      `  ${code}  ${oneLine(message)}`,
      ...remedies.map(({ why, command }) =>
        command === null ? `      ${oneLine(why)}` : `      ${oneLine(why)}:  ${oneLine(command)}`,
      ),
    ]),
    "",
    `Cluster "${answer.cluster.name}", this host is ${answer.self.name}. ${storeLine(answer)}`,
    hostTable(answer),
  ].join("\n");
}

/** There may be more amiss than the volumes show, such as a daemon that does not answer. */
function headlineOf({ health, daemon }: ClusterStatus, { level, headline }: Summary): string {
  if (level !== "healthy" || (health === "healthy" && daemon.reachable)) return headline;
  const word = health === "unavailable" ? "UNAVAILABLE" : "DEGRADED";
  return `${word} — volumes have their copies, but see below`;
}

/** The agent's reason is a sentence that names weftd already. */
function daemonLine({ reason }: DaemonStatus): string {
  return reason === null ? "weftd on this host does not answer." : oneLine(reason);
}

function storeLine({ store }: ClusterStatus): string {
  const voters = store.members.filter(({ learner }) => !learner);
  const answering = voters.filter(({ answers }) => answers).length;
  const state = store.writable ? "" : `, not writable${store.reason === null ? "" : ` (${store.reason})`}`;
  const alarms = store.alarms.length === 0 ? "" : `, alarms: ${store.alarms.join(", ")}`;
  return `Store: ${answering} of ${voters.length} ${voters.length === 1 ? "vote" : "votes"} answer${state}${alarms}.`;
}

function hostTable({ hosts, pools, volumes }: ClusterStatus): string {
  const poolsOf = (host: string): string => {
    const own = pools.filter((pool) => pool.host === host);
    const sizes = own.map(({ free, total, state }) =>
      free === null || total === null || state !== "serving"
        ? state
        : `${formatSize(free)} of ${formatSize(total)} free`,
    );
    return own.length === 0 ? "—" : sizes.join(", ");
  };
  return table(hosts, [
    { title: "HOST", of: ({ name }) => name },
    { title: "ADDRESS", of: ({ address }) => address },
    { title: "ANSWERS", of: ({ alive }) => (alive ? "yes" : "no") },
    { title: "STORE", of: ({ store }) => (store === "none" ? "—" : store) },
    {
      title: "OPEN",
      of: ({ id }) => String(volumes.filter(({ owner }) => owner?.host === id && !owner.caretaker).length),
      right: true,
    },
    {
      title: "COPIES",
      of: ({ id }) =>
        String(volumes.flatMap(({ replicas }) => replicas).filter(({ host }) => host === id).length),
      right: true,
    },
    { title: "POOL", of: ({ id }) => poolsOf(id) },
  ]);
}
