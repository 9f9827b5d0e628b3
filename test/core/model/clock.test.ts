/** Whose clock is wrong: one among many, or this host's own. */
import t from "tap";

import { clockFinding } from "../../../src/core/model/clock.ts";

const MINUTE = 60_000;

void t.test("clocks: seconds are nothing, minutes are named, the many are right", async (t) => {
  const at = (name: string, minutes: number) => ({ name, apartMs: minutes * MINUTE });
  t.equal(clockFinding([]), null);
  t.equal(clockFinding([at("h2", 0.2), at("h3", -4.9)]), null);
  t.match(clockFinding([at("h2", 0), at("h3", -7), at("h4", 0)]), {
    code: "E-NET-05",
    message: "Clocks differ from this host's: h3 by 7 min behind.",
    do: [{ why: "Set the clock of h3" }],
  });
  t.match(clockFinding([at("h2", 1500), at("h3", 1500)]), {
    message: "This host's clock differs from most others': h2 by 25 h ahead, h3 by 25 h ahead.",
    do: [{ why: "Set this host's clock", command: "timedatectl" }],
  });
});
