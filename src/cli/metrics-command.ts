/** `weft metrics`: figures for a collector that reads files, and so need not prove a host's authority by itself. */
import type { Command } from "commander";

import type { Bind } from "./context.ts";

export function addMetricsCommand(program: Command, bind: Bind): void {
  const metrics = program
    .command("metrics")
    .description("the cluster and this host's agent as figures, in Prometheus' text format");
  bind(metrics, async (context) => {
    context.console.write(await context.client.metrics());
  });
}
