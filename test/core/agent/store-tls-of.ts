/** What a host shows to the store, read from its state directory as weftd reads it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { openFirstTrust } from "../../../src/core/wire/signed-trust.ts";
import type { StoreTls } from "../../../src/core/wire/store-http.ts";

export function storeTlsOf(stateDir: string): StoreTls {
  const read = (name: string): string => readFileSync(join(stateDir, "identity", name), "utf8");
  return {
    current: () => ({ cert: read("host.pem"), key: read("host.pem") }),
    storeCa: () => {
      const opened = openFirstTrust(read("trust.json"));
      if (opened.kind === "refused") throw new Error(opened.finding.message);
      return opened.value.trust.storeAuthorities.map(({ pem }) => pem).join("");
    },
  };
}
