/**
 * `weft ca backup|restore`: the authorities' keys in a file, for the day on which no member of the store has them any more.
 *
 * Must always hold:
 * - a backup never replaces a file, and nobody but root reads it;
 * - what is restored are keys of authorities that this host's list names: an old backup brings no authority back that a
 *   revocation or a rotation put out;
 * - the list says that this host has them as soon as the store takes it: revoking it calls for new ones.
 */
import { open, readFile } from "node:fs/promises";
import { dirname } from "node:path";

import { Secret } from "../model/secret.ts";
import type { Authority } from "../model/trust.ts";
import type { CaFileAnswer } from "../wire/agent-api.ts";
import { openCaBackup, sealCaBackup } from "../wire/ca-backup.ts";
import { syncDirectory } from "../wire/durable-file.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import type { AuthorityKeys } from "../wire/x509-make.ts";
import type { MemberContext } from "./context.ts";
import { sayHeld } from "./members.ts";

type Request = { readonly path: string; readonly passphrase: string };

export async function backupAuthority(context: MemberContext, request: Request): Promise<CaFileAnswer> {
  const { authority, identity, self } = context;
  const given = authority.give(identity.trust());
  try {
    // First: a file that can't be made is said before the passphrase's second of work.
    const file = await open(request.path, "wx", 0o600);
    try {
      const backup = { cluster: self.cluster, ...given };
      await file.writeFile(await sealCaBackup(backup, new Secret(request.passphrase)));
      await file.sync();
    } finally {
      await file.close();
    }
    await syncDirectory(dirname(request.path));
  } catch (error) {
    throw badFile(request.path, `can't be written: ${reasonOf(error)}`);
  }
  return { path: request.path, kids: [...given.host, ...given.store].map(({ kid }) => kid) };
}

export async function restoreAuthority(context: MemberContext, request: Request): Promise<CaFileAnswer> {
  const { authority, identity, self, storeKeeper, log } = context;
  let text: string;
  try {
    text = await readFile(request.path, "utf8");
  } catch (error) {
    throw badFile(request.path, `can't be read: ${reasonOf(error)}`);
  }
  const backup = await openCaBackup(text, new Secret(request.passphrase));
  if (backup.cluster !== self.cluster) throw badFile(request.path, `is of cluster ${backup.cluster}`);
  const { authorities, storeAuthorities } = identity.trust();
  const host = listed(backup.host, authorities);
  const store = listed(backup.store, storeAuthorities);
  const kids = [...host, ...store].map(({ kid }) => kid);
  if (kids.length === 0) throw badFile(request.path, "holds no authority that this cluster trusts now");
  await authority.take({ host, store });
  // Where it comes back by these keys, the store keeper says it.
  await sayHeld(context).catch((error: unknown) => {
    if (!isWeftError(error)) throw error;
    log.warn({ code: error.code }, `the list does not say yet that this host has the keys: ${error.message}`);
  });
  storeKeeper.nudge();
  return { path: request.path, kids };
}

function listed(keys: readonly AuthorityKeys[], list: readonly Authority[]): readonly AuthorityKeys[] {
  return keys.filter(({ kid }) => list.some((authority) => authority.kid === kid));
}

function badFile(path: string, what: string): WeftError {
  return new WeftError({
    code: "E-CA-04",
    message: `${path} ${what}.`,
    facts: { path },
    safe: "Nothing was changed.",
  });
}
