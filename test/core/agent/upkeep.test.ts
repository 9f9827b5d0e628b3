/** A store whose quota is used up takes changes again by itself: history is dropped, files shrink, the alarm goes. */
import t from "tap";

import { openLog } from "../../../src/core/agent/log.ts";
import { Upkeep } from "../../../src/core/agent/store-upkeep.ts";
import { StoreClient } from "../../../src/core/wire/store-client.ts";
import { StoreMembers } from "../../../src/core/wire/store-members.ts";
import { startStore } from "../wire/etcd-for-tests.ts";

void t.test(
  "upkeep: NOSPACE: refused with E-STORE-08, then writable after one look of the placer",
  async (t) => {
    const quota = ["--quota-backend-bytes", String(16 << 20)];
    const { endpoints } = await startStore(t, 1, 51, quota);
    const store = new StoreClient({ endpoints, deadlineMs: 3000 });
    const members = new StoreMembers(store);
    const megabyte = "x".repeat(1 << 20);
    const fill = async (): Promise<void> => {
      for (let i = 0; i < 64; i += 1) await store.put("/weft/v1/k", `${i}${megabyte}`);
    };
    await t.rejects(fill(), { code: "E-STORE-08", exitCode: 3 });
    t.same(
      (await members.alarms()).map(({ alarm }) => alarm),
      ["NOSPACE"],
    );
    t.ok((await store.get("/weft/v1/k")) !== null, "reads go on");
    await new Upkeep(members, store, openLog("silent")).look(endpoints);
    t.same(await members.alarms(), []);
    await store.put("/weft/v1/k", "small");
    t.equal((await store.get("/weft/v1/k"))?.value, "small");
  },
);
