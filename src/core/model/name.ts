/**
 * Names of volumes and hosts.
 *
 * Must always hold:
 * - 1 to 63 characters of `a-z 0-9 . _ -`, the first a letter or a digit: a name is also part of a socket's path, a
 *   key of the store and a URL;
 * - never a UUID, "." or "..": `:ref` in a request means one thing only.
 */
import { finding, ok, refused } from "./finding.ts";
import type { Decision, Finding } from "./finding.ts";
import { parseUuid } from "./ids.ts";
import { NAME_LENGTH_MAX } from "./limits.ts";

export function parseName(
  thing: "volume" | "snapshot" | "host" | "cluster" | "token" | "context" | "label",
  text: string,
): Decision<string> {
  if (text.length === 0) return refused(bad(thing, text, "it is empty"));
  if (text.length > NAME_LENGTH_MAX) {
    return refused(
      bad(thing, text, `it has ${text.length} characters, at most ${NAME_LENGTH_MAX} are allowed`),
    );
  }
  const stranger = /[^a-z0-9._-]/u.exec(text);
  if (stranger !== null) {
    const lower = text.toLowerCase();
    const hint = /^[a-z0-9._-]+$/.test(lower) ? `; "${lower}" would do` : "";
    return refused(bad(thing, text, `it contains "${stranger[0]}", only a-z 0-9 . _ - are allowed${hint}`));
  }
  if (!/^[a-z0-9]/.test(text)) return refused(bad(thing, text, "it must begin with a letter or a digit"));
  if (parseUuid(text) !== null) return refused(bad(thing, text, "it looks like an identifier"));
  return ok(text);
}

/** A host's cluster address: IPv4, IPv6 without brackets, or a DNS name. No port: ports are fixed. */
export function parseAddress(text: string): Decision<string> {
  const bare = text.startsWith("[") && text.endsWith("]") ? text.slice(1, -1) : text;
  const ipv4 = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(bare);
  const fine =
    ipv4 === null
      ? /^[0-9a-f:]*:[0-9a-f:.]*$/i.test(bare) || isDnsName(bare)
      : ipv4.slice(1).every((part) => Number(part) <= 255);
  return fine
    ? ok(bare)
    : refused(
        finding("E-ARG-02", `"${text}" is not an address. Examples: 10.0.9.11, fd00::11, h1.example.org.`, {
          facts: { address: text },
        }),
      );
}

function isDnsName(text: string): boolean {
  return (
    text.length <= 253 &&
    text.split(".").every((label) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/i.test(label)) &&
    !/^[\d.]+$/.test(text)
  );
}

function bad(thing: string, text: string, reason: string): Finding {
  return finding("E-ARG-02", `"${text}" can't be the name of a ${thing}: ${reason}.`, {
    facts: { name: text },
  });
}
