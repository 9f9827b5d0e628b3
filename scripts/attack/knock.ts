/**
 * Knocking at a TCP door: connects from a given address, with TLS or without, and brings back what was said to it.
 *
 * Must always hold: a knock ends by itself, whatever the other side does.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import type { ConnectionOptions } from "node:tls";

import type { Credential } from "./knowledge.ts";

/** Longer than any door waits for a stranger's first byte. */
const PATIENCE_MS = 4000;

export type Knock = {
  readonly address: string;
  readonly port: number;
  readonly local: string;
  /** Null: no TLS at all. */
  readonly tls: Omit<ConnectionOptions, "host" | "port" | "socket"> | null;
  /** Sent when the connection (of TLS, if any) stands. */
  readonly send: Uint8Array | string;
  /** Enough was heard to judge: the knock needn't wait for the end. */
  readonly enough?: (heard: Buffer) => boolean;
};

/** What came back, whatever ended it; nothing came from a door that refused. */
export async function knock(at: Knock): Promise<Buffer> {
  const heard: Buffer[] = [];
  const socket = await opened(at);
  if (socket === null) return Buffer.alloc(0);
  return new Promise((resolve) => {
    const end = (): void => {
      socket.destroy();
      clearTimeout(timer);
      resolve(Buffer.concat(heard));
    };
    const timer = setTimeout(end, PATIENCE_MS);
    socket.on("data", (chunk: Buffer) => {
      heard.push(chunk);
      if (at.enough?.(Buffer.concat(heard)) === true) end();
    });
    socket.on("error", end);
    socket.on("close", end);
    socket.write(at.send);
  });
}

/** Null: refused before it stood. */
async function opened(at: Knock): Promise<Socket | null> {
  const socket = connect({ host: at.address, port: at.port, localAddress: at.local });
  const upper =
    at.tls === null ? socket : connectTls({ rejectUnauthorized: false, ...at.tls, socket, servername: "" });
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      socket.destroy();
    }, PATIENCE_MS);
    const refused = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(null);
    };
    upper.once("error", refused);
    socket.once("close", refused);
    upper.once(at.tls === null ? "connect" : "secureConnect", () => {
      clearTimeout(timer);
      upper.off("error", refused);
      upper.on("error", () => socket.destroy());
      resolve(upper);
    });
  });
}

/** What a credential makes of TLS options; null: a client without one. */
export function showing(credential: Credential | null): ConnectionOptions {
  return credential === null ? {} : { cert: credential.cert, key: credential.key };
}

/** A request of HTTP/1.1 as text; `body` null: none. */
export function request(method: string, path: string, body: string | null): string {
  const head = [`${method} ${path} HTTP/1.1`, "host: weft", "connection: close"];
  if (body !== null)
    head.push("content-type: application/json", `content-length: ${Buffer.byteLength(body)}`);
  return `${head.join("\r\n")}\r\n\r\n${body ?? ""}`;
}

/** The status of an answer of HTTP/1.1; null: it is none. */
export function statusOf(heard: Buffer): number | null {
  const found = /^HTTP\/1\.[01] ([0-9]{3}) /.exec(heard.toString("latin1", 0, 32));
  return found === null ? null : Number(found[1]);
}
