/**
 * What agents keep of SRs and disks, without hosts or daemons: maps, and an agent's socket for each host that asks of them.
 *
 * Must always hold: what it refuses and how it answers is what the real agent does (src/core/wire/sr-api.ts), so that a driver
 * can't tell; a disk's content is a text, which snapshots, clones, reverts and resets carry along.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { z } from "zod";

import * as sr from "../../../src/core/wire/sr-api.ts";
import type { SrAnswer, VdiAnswer } from "../../../src/core/wire/sr-api.ts";
import { Steps } from "./steps.ts";

type Disk = Omit<VdiAnswer, "resets"> & {
  content: string;
  /** On-boot reset: what it goes back to; null: it has none. */
  mark: string | null;
};

type Refusal = { readonly code: string; readonly message: string; readonly status: number };

class Refused extends Error {
  readonly refusal: Refusal;

  constructor(code: string, message: string, status = 409) {
    super(message);
    this.refusal = { code, message, status };
  }
}

const BLOCK = 4096n;
const GRAIN = 65536;

/** Content of volumes and snapshots, by their ids, where a test has it as bytes. */
export type PlainData = {
  make(id: string, size: number): void;
  copy(from: string, to: string): void;
  grow(id: string, size: number): void;
  lay(leaf: string, onto: string): void;
};

export class PlainStore {
  data: PlainData | null = null;
  readonly srs = new Map<
    string,
    Omit<SrAnswer, "physicalSize" | "physicalUtilisation" | "virtualAllocation">
  >();
  readonly disks = new Map<string, Disk>();
  /** Volumes that weft has and XAPI's door doesn't: by id, their size. */
  readonly elsewhere = new Map<string, bigint>();
  /** By disk: the hosts on which it is open, and whether for writing. */
  readonly open = new Map<string, { readonly host: string; readonly writable: boolean }[]>();
  /** What `activate` was asked, in order. */
  readonly activations: {
    readonly host: string;
    readonly vdi: string;
    readonly deadHosts: readonly string[];
  }[] = [];
  /** Every request is refused so. */
  refuses: Refusal | null = null;
  /** Disks that were open once. */
  readonly #written = new Set<string>();
  readonly #dirs: string[] = [];
  readonly #servers: Server[] = [];

  addSr(uuid: string): void {
    const createdAt = new Date(0).toISOString();
    this.srs.set(uuid, { uuid, label: "replicated", description: "", copies: 2, createdAt });
  }

  /** The socket of this host's agent. */
  async serve(host: string, steps: Steps = new Steps()): Promise<string> {
    const dir = await mkdtemp(join(tmpdir(), "weft-plain-"));
    this.#dirs.push(dir);
    const socketPath = join(dir, "agent.sock");
    const server = createServer((request, response) => {
      const { method = "", url = "" } = request;
      const answer = async (): Promise<void> => {
        const text = await textOf(request);
        const [status, body] = await steps.step(`${method} ${url}`, () =>
          this.#handle(host, method, url, text),
        );
        response
          .writeHead(status, { "content-type": "application/json" })
          .end(
            JSON.stringify(body, (_, value: unknown) => (typeof value === "bigint" ? String(value) : value)),
          );
      };
      answer().catch(() => request.socket.destroy());
    });
    this.#servers.push(server);
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    return socketPath;
  }

  async stop(): Promise<void> {
    for (const server of this.#servers) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
    for (const dir of this.#dirs) await rm(dir, { recursive: true, force: true });
  }

  disk(uuid: string): Disk {
    const disk = this.disks.get(uuid);
    if (disk === undefined) throw new Refused("E-VDI-01", `There is no disk ${uuid}.`, 404);
    return disk;
  }

  /** Of a guest: only who has it open for writing can. */
  write(host: string, uuid: string, content: string): void {
    const mine = this.open.get(uuid)?.find((one) => one.host === host && one.writable);
    if (mine === undefined) throw new Error(`${host} writes to ${uuid} and doesn't have it`);
    this.disk(uuid).content = content;
  }

  #handle(host: string, method: string, url: string, text: string): readonly [number, unknown] {
    try {
      if (this.refuses !== null)
        throw new Refused(this.refuses.code, this.refuses.message, this.refuses.status);
      return [200, this.#answer(host, method, url, text === "" ? null : JSON.parse(text))];
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      const { code, message, status } = error.refusal;
      return [status, { error: { code, message, facts: {}, safe: null, do: [] } }];
    }
  }

  #answer(host: string, method: string, url: string, body: unknown): unknown {
    const [, , kind = "", ref = "", verb = ""] = url.split("/");
    switch (`${method} ${kind} ${verb}`) {
      case "GET srs ":
        return this.#srAnswer(ref);
      case "PATCH srs ": {
        const before = this.#srAnswer(ref);
        const { label = before.label, description = before.description } = sr.srChangeRequest.parse(body);
        this.srs.set(ref, { ...before, label, description });
        return this.#srAnswer(ref);
      }
      case "GET srs vdis":
        return { sr: this.#srAnswer(ref), vdis: this.#in(ref).map((disk) => this.#shown(disk)), unread: [] };
      case "POST srs vdis":
        return this.#shown(this.#create(ref, sr.vdiCreateRequest.parse(body)));
      case "POST srs introduce":
        return this.#shown(this.#introduce(ref, sr.vdiIntroduceRequest.parse(body)));
      case "GET vdis ":
        return this.#shown(this.disk(ref));
      case "PATCH vdis ":
        return this.#shown(this.#change(ref, sr.vdiChangeRequest.parse(body)));
      case "DELETE vdis ":
        return this.#delete(ref);
      case "POST vdis snapshot":
        return this.#shown(this.#snapshot(ref, sr.vdiCopyRequest.parse(body)));
      case "POST vdis clone":
        return this.#shown(this.#clone(ref, sr.vdiCopyRequest.parse(body)));
      case "POST vdis destroy-data":
        return this.#shown(Object.assign(this.disk(ref), { dataDestroyed: true, physicalUtilisation: 0n }));
      case "POST vdis revert":
        return this.#shown(this.#revert(ref, sr.vdiRevertRequest.parse(body).snapshot));
      case "POST vdis layer":
        return this.#shown(this.#layer(ref));
      case "POST vdis compose":
        return this.#shown(this.#compose(ref, sr.vdiComposeRequest.parse(body).parent));
      case "POST vdis reset":
        return this.#shown(this.#reset(host, ref, sr.vdiResetRequest.parse(body).mark));
      case "POST vdis changed":
        return this.#changed(ref, sr.vdiChangedRequest.parse(body).since);
      case "GET vdis users": {
        const users = this.open.get(this.disk(ref).uuid) ?? [];
        return {
          users: users.map((user) => ({
            host: { uuid: user.host, name: `host-${user.host.slice(0, 8)}` },
            xapiHost: user.host,
            connected: true,
          })),
        };
      }
      case "POST vdis activate":
        return this.#activate(host, ref, sr.vdiActivateRequest.parse(body));
      case "POST vdis deactivate": {
        const users = this.open.get(this.disk(ref).uuid) ?? [];
        this.open.set(
          ref,
          users.filter((user) => user.host !== host),
        );
        return { ok: true };
      }
      default:
        throw new Error(`no ${method} ${url}`);
    }
  }

  #in(uuid: string): readonly Disk[] {
    return [...this.disks.values()].filter((disk) => disk.sr === uuid);
  }

  #srAnswer(uuid: string): SrAnswer {
    const found = this.srs.get(uuid);
    if (found === undefined) throw new Refused("E-SR-01", `There is no SR ${uuid}.`, 404);
    const sum = (of: (disk: Disk) => bigint): bigint =>
      this.#in(uuid).reduce((all, disk) => all + of(disk), 0n);
    const physicalUtilisation = sum((disk) => disk.physicalUtilisation);
    const virtualAllocation = sum(({ size, snapshot }) => (snapshot === null ? size : 0n));
    return { ...found, physicalSize: 1n << 40n, physicalUtilisation, virtualAllocation };
  }

  #create(srUuid: string, asked: z.output<typeof sr.vdiCreateRequest>): Disk {
    this.#srAnswer(srUuid);
    const { uuid } = asked;
    const size = roundUp(asked.size);
    const known = this.disks.get(uuid);
    if (known !== undefined) {
      if (known.size === size && known.sr === srUuid) return known;
      throw new Refused("E-VDI-02", `There is a disk ${uuid} already.`);
    }
    this.data?.make(uuid, Number(size));
    return this.#add({ ...asked, ...fresh(uuid, srUuid), size, volume: uuid, snapshot: null });
  }

  #introduce(srUuid: string, { uuid, label }: z.output<typeof sr.vdiIntroduceRequest>): Disk {
    const known = this.disks.get(uuid);
    if (known !== undefined) return known;
    const size = this.elsewhere.get(uuid);
    if (size === undefined) throw new Refused("E-VOL-03", `There is no volume ${uuid}.`);
    const texts = { label: label ?? "made-elsewhere", description: "", type: "user", smConfig: {} };
    const flags = {
      readOnly: false,
      sharable: false,
      isSnapshot: false,
      snapshotOf: null,
      snapshotTime: null,
    };
    return this.#add({ ...texts, ...flags, ...fresh(uuid, srUuid), size, volume: uuid, snapshot: null });
  }

  #change(uuid: string, changes: z.output<typeof sr.vdiChangeRequest>): Disk {
    const disk = this.disk(uuid);
    const size = changes.size === undefined ? disk.size : roundUp(changes.size);
    if (size < disk.size) throw new Refused("E-VOL-06", "It only grows.");
    // A marked disk goes back before it grows.
    if (size > disk.size && disk.mark !== null) disk.content = disk.mark;
    if (size > disk.size) this.data?.grow(disk.volume, Number(size));
    return Object.assign(disk, changes, { size });
  }

  #delete(uuid: string): unknown {
    if ((this.open.get(uuid) ?? []).length > 0) throw new Refused("E-VOL-12", `The disk ${uuid} is open.`);
    this.disks.delete(uuid);
    return { ok: true };
  }

  #snapshot(of: string, { uuid, label, description }: z.output<typeof sr.vdiCopyRequest>): Disk {
    const disk = this.disk(of);
    const known = this.disks.get(uuid);
    if (known !== undefined) return known;
    this.data?.copy(disk.snapshot ?? disk.volume, uuid);
    // A caretaker opens it for that.
    disk.untouched = false;
    return this.#add({
      ...disk,
      uuid,
      snapshot: uuid,
      isSnapshot: true,
      readOnly: true,
      snapshotOf: of,
      snapshotTime: new Date().toISOString(),
      settled: false,
      untouched: false,
      layer: false,
      composedFrom: null,
      mark: null,
      label: label ?? disk.label,
      description: description ?? disk.description,
    });
  }

  #clone(of: string, { uuid, label, description }: z.output<typeof sr.vdiCopyRequest>): Disk {
    const disk = this.disk(of);
    if (disk.dataDestroyed) throw new Refused("E-SNAP-18", "Its data is gone.");
    const known = this.disks.get(uuid);
    if (known !== undefined) return known;
    this.data?.copy(disk.snapshot ?? disk.volume, uuid);
    const flags = { readOnly: false, isSnapshot: false, snapshotOf: null, snapshotTime: null, cbt: false };
    return this.#add({
      ...disk,
      ...flags,
      uuid,
      volume: uuid,
      snapshot: null,
      settled: false,
      untouched: false,
      layer: false,
      composedFrom: null,
      mark: null,
      label: label ?? disk.label,
      description: description ?? disk.description,
    });
  }

  #revert(uuid: string, snapshot: string): Disk {
    const [disk, then] = [this.disk(uuid), this.disk(snapshot)];
    if ((this.open.get(uuid) ?? []).length > 0) throw new Refused("E-VOL-12", `The disk ${uuid} is open.`);
    return Object.assign(disk, { content: then.content });
  }

  #layer(uuid: string): Disk {
    const disk = this.disk(uuid);
    if (!disk.layer && !disk.untouched) throw new Refused("E-VDI-08", `The disk ${uuid} was opened before.`);
    return Object.assign(disk, { layer: true });
  }

  /** Of a layer's text what was not written is a dot. */
  #compose(uuid: string, parentUuid: string): Disk {
    const leaf = this.disk(uuid);
    if (leaf.composedFrom === parentUuid) return leaf;
    const parent = this.disk(parentUuid);
    if (leaf === parent || leaf.sr !== parent.sr) throw new Refused("E-VDI-03", "No two disks of one SR.");
    if (leaf.snapshot !== null || parent.snapshot !== null || parent.size > leaf.size)
      throw new Refused("E-VDI-03", "It can't be laid over that.");
    for (const each of [leaf, parent]) {
      if ((this.open.get(each.uuid) ?? []).length > 0)
        throw new Refused("E-VDI-04", `The disk ${each.uuid} is open.`);
    }
    if (!leaf.layer) throw new Refused("E-VDI-08", `The disk ${uuid} does not know what was written.`);
    const length = Math.max(leaf.content.length, parent.content.length);
    const content = Array.from({ length }, (_, at) => {
      const block = leaf.content[at] ?? ".";
      return block === "." ? (parent.content[at] ?? ".") : block;
    }).join("");
    this.data?.lay(leaf.volume, parent.volume);
    this.disks.delete(parentUuid);
    const physicalUtilisation = leaf.physicalUtilisation + parent.physicalUtilisation;
    const flags = { layer: false, composedFrom: parentUuid, volume: parent.volume };
    return Object.assign(leaf, { content, physicalUtilisation, ...flags });
  }

  /** A host's own guests have no client here: what is open there is closed. */
  #reset(host: string, uuid: string, mark: boolean | null): Disk {
    const disk = this.disk(uuid);
    if (mark === false) return Object.assign(disk, { mark: null });
    const others = (this.open.get(uuid) ?? []).filter((user) => user.host !== host);
    // Who has it would take the mark, and is away where a test comes here.
    if (others.length > 0 && disk.mark === null) throw new Refused("E-HOST-09", "Its agent gives no answer.");
    if (others.length > 0) throw new Refused("E-VOL-12", `The disk ${uuid} is open.`);
    if (mark === null) this.open.delete(uuid);
    if (mark === true || disk.mark === null) return Object.assign(disk, { mark: disk.content });
    return Object.assign(disk, { content: disk.mark });
  }

  /** Texts are compared as blocks of one letter each. */
  #changed(uuid: string, since: string): unknown {
    const [disk, then] = [this.disk(uuid), this.disk(since)];
    const bitmap = Buffer.alloc(Number((disk.size + BigInt(GRAIN) * 8n - 1n) / (BigInt(GRAIN) * 8n)));
    for (let block = 0; block < Math.max(disk.content.length, then.content.length); block += 1) {
      if (disk.content[block] !== then.content[block])
        bitmap[block >> 3] = (bitmap[block >> 3] ?? 0) | (0x80 >> (block & 7));
    }
    return { size: disk.size, granularity: GRAIN, bitmap: bitmap.toString("base64") };
  }

  #activate(
    host: string,
    uuid: string,
    { writable, deadHosts }: z.output<typeof sr.vdiActivateRequest>,
  ): unknown {
    const disk = this.disk(uuid);
    this.activations.push({ host, vdi: uuid, deadHosts });
    if (writable && disk.readOnly) throw new Refused("E-VDI-06", `The disk ${uuid} is read-only.`);
    const users = (this.open.get(uuid) ?? []).filter((user) => !deadHosts.includes(user.host));
    const others = users.filter((user) => user.host !== host);
    if (disk.layer && this.#written.has(uuid) && users.length === 0)
      throw new Refused("E-VDI-08", `The disk ${uuid} is the newer half of one.`);
    if (disk.snapshot === null && others.length > 0)
      throw new Refused("E-VDI-04", `The disk ${uuid} is open on ${others[0]?.host}.`);
    this.open.set(uuid, [...others, { host, writable }]);
    this.#written.add(uuid);
    disk.untouched = false;
    const { size, volume, snapshot } = disk;
    return { path: `/run/weft/${uuid}.nbd`, size, volume, snapshot, session: writable ? SESSION : null };
  }

  #shown({ content, mark, ...answer }: Disk): VdiAnswer {
    assert.equal(typeof content, "string", "which no agent tells");
    const [user] = this.open.get(answer.uuid) ?? [];
    const openOn = user === undefined ? null : { uuid: user.host, name: `host-${user.host.slice(0, 8)}` };
    return { ...answer, openOn, resets: mark !== null };
  }

  #add(disk: Disk): Disk {
    this.disks.set(disk.uuid, disk);
    return disk;
  }
}

const SESSION = "5e551055-0000-4000-8000-000000000001";

function fresh(
  uuid: string,
  srUuid: string,
): Omit<
  Disk,
  | ("size" | "volume" | "snapshot" | "label" | "description" | "type" | "smConfig" | "readOnly" | "sharable")
  | ("isSnapshot" | "snapshotOf" | "snapshotTime")
> {
  return {
    uuid,
    sr: srUuid,
    physicalUtilisation: 8192n,
    managed: true,
    cbt: false,
    dataDestroyed: false,
    settled: false,
    whole: true,
    openOn: null,
    untouched: true,
    layer: false,
    composedFrom: null,
    content: "",
    mark: null,
    createdAt: new Date().toISOString(),
  };
}

function roundUp(size: bigint): bigint {
  if (size === 0n) throw new Refused("E-VOL-02", 'Size "0" is not more than zero.');
  return ((size + BLOCK - 1n) / BLOCK) * BLOCK;
}

async function textOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}
