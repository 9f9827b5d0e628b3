/** Messages of XAPI (`xe message-list`, and what its clients make of them): about the SR where there is one, else the pool. */
import type { Message } from "../../core/model/alerts.ts";
import type { XenApi } from "../xen-api.ts";
import { aboutWhat } from "./pool-records.ts";

export async function createMessages(xapi: XenApi, messages: readonly Message[]): Promise<void> {
  const { kind, uuid } = await aboutWhat(xapi);
  for (const { name, priority, text } of messages)
    await xapi.call("message.create", name, String(priority), kind, uuid, text);
}
