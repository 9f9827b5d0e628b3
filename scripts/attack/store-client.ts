/** The store's gateway, asked by one of the hosts: each of them is an equal client of etcd. */
import { request as httpsRequest } from "node:https";

import { z } from "zod";

import type { Knowledge } from "./knowledge.ts";
import { hostOf } from "./knowledge.ts";

const rangeJson = z.object({ kvs: z.array(z.object({ value: z.string().default("") })).default([]) });

/** Whose certificate is shown, and the address to come from. */
export type AsHost = { readonly known: Knowledge; readonly as: string; readonly local: string };

export async function readKey(by: AsHost, key: string): Promise<string | null> {
  const { kvs } = rangeJson.parse(await askStore(by, "/v3/kv/range", { key: base64(key) }));
  const [first] = kvs;
  return first === undefined ? null : Buffer.from(first.value, "base64").toString("utf8");
}

/** Null: it is deleted. */
export async function writeKey(by: AsHost, key: string, value: string | null): Promise<void> {
  if (value === null) await askStore(by, "/v3/kv/deleterange", { key: base64(key) });
  else await askStore(by, "/v3/kv/put", { key: base64(key), value: base64(value) });
}

/** Rejects with what the store answers, where that is no success. */
export function askStore({ known, as, local }: AsHost, path: string, body: unknown): Promise<unknown> {
  const { address } = hostOf(known, "h1");
  const { cert, key } = hostOf(known, as).identity;
  return new Promise((resolve, reject) => {
    const asked = httpsRequest({
      host: address,
      port: 7402,
      localAddress: local,
      path,
      method: "POST",
      cert,
      key,
      rejectUnauthorized: false,
      agent: false,
      timeout: 5000,
    });
    asked.on("timeout", () => asked.destroy(new Error("the store does not answer")));
    asked.on("error", reject);
    asked.on("response", (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => (text += chunk));
      response.on("end", () => {
        if (response.statusCode === 200) resolve(JSON.parse(text));
        else reject(new Error(`${path} at the store is answered ${response.statusCode}: ${text}`));
      });
    });
    asked.end(JSON.stringify(body));
  });
}

function base64(text: string): string {
  return Buffer.from(text, "utf8").toString("base64");
}
