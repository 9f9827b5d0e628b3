/**
 * Plot: the simulator is built with broken rules in the protocol, to see that it finds them. What cargo builds together shares
 * features, so that one careless dependency would bring the broken rules into the daemon that holds people's data.
 */
import { execa } from "execa";
import t from "tap";

import { repository } from "../../scripts/lib/repository.ts";

async function featuresOfTheProtocol(...options: readonly string[]): Promise<string> {
  const args = ["tree", "--edges", "normal,features", "--invert", "weft-proto", ...options];
  const { stdout } = await execa("cargo", args, { cwd: `${repository}/native` });
  return stdout;
}

await t.test("simulator: its broken rules are in no build of the daemon", async (t) => {
  const daemon = await featuresOfTheProtocol("--package", "weftd");
  t.match(daemon, /weftd/, "the daemon has the protocol");
  t.notMatch(daemon, /mutants/);
  const simulator = await featuresOfTheProtocol("--package", "weft-sim", "--features", "mutants");
  t.match(simulator, /weft-proto feature "mutants"/, "the question finds them where they are");
});
