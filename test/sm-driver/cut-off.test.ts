/**
 * Each command ends before each thing that it does outside itself, as when its process or host is killed there; then XAPI tries
 * again. What is found afterwards is what an undisturbed command leaves, and nothing that XAPI doesn't know but what a scan will
 * take away.
 */
import t from "tap";

import { makesNew, plots, seen, staged } from "./lib/plots.ts";
import { World } from "./lib/world.ts";

for (const plot of plots) {
  const { command, call } = plot;
  void t.test(`${command}: killed anywhere and tried again, it is done once and whole`, async (t) => {
    let undisturbed: object | null = null;
    let steps = 0;
    for (let end = 0; end === 0 || end <= steps + 1; end += 1) {
      const world = await World.start(t);
      const h1 = world.host(0);
      const { disk, snapshot } = await staged(world, plot);
      const asked = call(world, disk, snapshot);
      h1.steps.begin(end === 0 ? null : end);
      const first = await h1.call(command, asked).then(
        () => "done",
        () => "failed",
      );
      if (end === 0) {
        steps = h1.steps.done.length;
        t.ok(steps > 0, `it takes ${steps} steps`);
      }
      h1.steps.begin(null);
      // Where all was done the answer was lost, and XAPI tries again in any case, but what makes a new disk each time.
      if (first === "failed" || (end > 0 && !makesNew(command))) await h1.call(command, asked);
      undisturbed ??= seen(world, disk, snapshot);
      t.strictSame(seen(world, disk, snapshot), undisturbed, `ended before step ${end} of ${steps}`);
    }
  });
}
