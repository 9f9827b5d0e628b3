/**
 * Client of an agent's REST interface: of this host's over its unix socket, of any host's over TLS with a token.
 *
 * Must always hold:
 * - the token leaves only on a connection whose other end has proven to be a host of the pinned authority;
 * - whatever goes wrong comes back as a WeftError;
 * - an answer is parsed before anybody sees it.
 */
import { request as httpRequest } from "node:http";
import type { z } from "zod";

import * as admission from "./admission-api.ts";
import * as api from "./agent-api.ts";
import { wrappedKey, type WrappedKey } from "./bundle.ts";
import type { Secret } from "../model/secret.ts";
import type { VolumeLimits } from "../model/volume-limits.ts";
import { isWeftError, reasonOf, WeftError } from "./errors.ts";
import * as holder from "./holder-restart-api.ts";
import * as setup from "./setup-api.ts";
import { connectProven, exchange, fingerprintText } from "./host-client.ts";
import * as sr from "./sr-api.ts";

/** A layer of a large disk may take long, and XAPI waits for it. */
const COMPOSE_PATIENCE_MS = 3600_000;

export type RemoteAgent = {
  readonly address: string;
  readonly port: number;
  /** SHA-256 of the key of the cluster's authority, hex. */
  readonly fingerprint: string;
  /** Null: it asks as nobody. */
  readonly token: Secret<string> | null;
};

export type AgentWay = { readonly socketPath: string } | { readonly remote: RemoteAgent };

/** `choose`: the way is looked up when the first request is made. */
export type AgentClientOptions = (AgentWay | { readonly choose: () => Promise<AgentWay> }) & {
  /** How long an answer may take: the agent itself gives up on a request after 60 s, with a better sentence. */
  readonly timeoutMs?: number;
};

type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";

export class AgentClient {
  readonly #choose: () => Promise<AgentWay>;
  readonly #timeoutMs: number;

  constructor(options: AgentClientOptions) {
    this.#choose = "choose" in options ? options.choose : async () => options;
    this.#timeoutMs = options.timeoutMs ?? 90_000;
  }

  status(): Promise<api.StatusAnswer> {
    return this.#call("GET", "/v1/status", api.statusAnswer);
  }

  init(body: z.input<typeof api.initRequest>): Promise<api.EnteredAnswer> {
    return this.#call("POST", "/v1/init", api.enteredAnswer, api.initRequest, body);
  }

  join(body: z.input<typeof api.joinRequest>): Promise<api.EnteredAnswer> {
    return this.#call("POST", "/v1/join", api.enteredAnswer, api.joinRequest, body);
  }

  /** By a door that only an agent beside XAPI has. */
  planSetup(body: z.input<typeof setup.setupRequest>): Promise<setup.SetupPlanAnswer> {
    return this.#call("POST", "/v1/setup/plan", setup.setupPlanAnswer, setup.setupRequest, body);
  }

  runSetup(body: z.input<typeof setup.setupRunRequest>): Promise<setup.SetupRunAnswer> {
    return this.#call("POST", "/v1/setup/run", setup.setupRunAnswer, setup.setupRunRequest, body);
  }

  /** By a door that an agent of a host with tapdisks has. */
  restartHolder(): Promise<holder.HolderRestartAnswer> {
    const { holderRestartAnswer, holderRestartRequest } = holder;
    return this.#call("POST", "/v1/holder/restart", holderRestartAnswer, holderRestartRequest, {});
  }

  requestAdmission(body: admission.AdmissionWish): Promise<admission.AdmissionRequest> {
    const { admissionRequest, admissionWish } = admission;
    return this.#call("POST", "/v1/admission/request", admissionRequest, admissionWish, body);
  }

  admit(body: admission.AdmissionOrder): Promise<admission.AdmissionAnswer> {
    return this.#call("POST", "/v1/admission", admission.admissionAnswer, admission.admissionOrder, body);
  }

  bundles(): Promise<admission.Bundles> {
    return this.#call("GET", "/v1/bundles", admission.bundlesAnswer);
  }

  unseal(body: admission.UnsealOrder): Promise<WrappedKey> {
    return this.#call("POST", "/v1/bundles/key", wrappedKey, admission.unsealOrder, body);
  }

  reclaim(body: admission.Reclaim): Promise<api.EnteredAnswer> {
    return this.#call("POST", "/v1/reclaim", api.enteredAnswer, admission.reclaimRequest, body);
  }

  enter(body: admission.AdmissionAnswer): Promise<api.EnteredAnswer> {
    return this.#call("POST", "/v1/admission/answer", api.enteredAnswer, admission.admissionAnswer, body);
  }

  /** Of the host that is asked: whether it may stop. */
  stopCheck(waitMs: number): Promise<api.StopAnswer> {
    return this.#call("POST", "/v1/stop-check", api.stopAnswer, api.stopRequest, { waitMs });
  }

  cluster(): Promise<api.ClusterAnswer> {
    return this.#call("GET", "/v1/cluster", api.clusterAnswer);
  }

  settings(): Promise<api.Settings> {
    return this.#call("GET", "/v1/settings", api.settings);
  }

  changeSettings(body: z.input<typeof api.settingsChange>): Promise<api.Settings> {
    return this.#call("PUT", "/v1/settings", api.settings, api.settingsChange, body);
  }

  tokens(): Promise<api.TokenAnswer[]> {
    return this.#call("GET", "/v1/tokens", api.tokenAnswer.array());
  }

  createToken(body: z.input<typeof api.tokenCreateRequest> = {}): Promise<api.TokenCreated> {
    return this.#call("POST", "/v1/tokens", api.tokenCreated, api.tokenCreateRequest, body);
  }

  async revokeToken(id: string): Promise<void> {
    await this.#call("DELETE", path`/v1/tokens/${id}`, api.okAnswer);
  }

  revokeHost(ref: string): Promise<api.HostRevokeAnswer> {
    return this.#call("POST", path`/v1/hosts/${ref}/revoke`, api.hostRevokeAnswer);
  }

  authorities(): Promise<api.CaAnswer> {
    return this.#call("GET", "/v1/ca", api.caAnswer);
  }

  backupAuthority(body: z.input<typeof api.caFileRequest>): Promise<api.CaFileAnswer> {
    return this.#call("POST", "/v1/ca/backup", api.caFileAnswer, api.caFileRequest, body);
  }

  restoreAuthority(body: z.input<typeof api.caFileRequest>): Promise<api.CaFileAnswer> {
    return this.#call("POST", "/v1/ca/restore", api.caFileAnswer, api.caFileRequest, body);
  }

  /** It goes on by itself after the answer. */
  rotateAuthority(body: z.input<typeof api.caRotateRequest> = {}): Promise<api.CaAnswer> {
    return this.#call("POST", "/v1/ca/rotate", api.caAnswer, api.caRotateRequest, body);
  }

  me(): Promise<api.MeAnswer> {
    return this.#call("GET", "/v1/me", api.meAnswer);
  }

  apiTokens(): Promise<api.ApiTokenAnswer[]> {
    return this.#call("GET", "/v1/api-tokens", api.apiTokenAnswer.array());
  }

  createApiToken(body: z.input<typeof api.apiTokenCreateRequest>): Promise<api.ApiTokenCreated> {
    return this.#call("POST", "/v1/api-tokens", api.apiTokenCreated, api.apiTokenCreateRequest, body);
  }

  async revokeApiToken(ref: string): Promise<void> {
    await this.#call("DELETE", path`/v1/api-tokens/${ref}`, api.okAnswer);
  }

  pools(): Promise<api.PoolAnswer[]> {
    return this.#call("GET", "/v1/pools", api.poolAnswer.array());
  }

  createPool(body: z.input<typeof api.poolCreateRequest>): Promise<api.PoolAnswer> {
    return this.#call("POST", "/v1/pools", api.poolAnswer, api.poolCreateRequest, body);
  }

  disks(device: string | null = null): Promise<api.DiskAnswer[]> {
    const query = device === null ? "" : `?device=${encodeURIComponent(device)}`;
    return this.#call("GET", `/v1/disks${query}`, api.diskAnswer.array());
  }

  wipeDisk(body: z.input<typeof api.diskWipeRequest>): Promise<api.DiskWipeAnswer> {
    return this.#call("POST", "/v1/disks/wipe", api.diskWipeAnswer, api.diskWipeRequest, body);
  }

  async removePool(pool: string): Promise<void> {
    await this.#call("DELETE", path`/v1/pools/${pool}`, api.okAnswer);
  }

  hosts(): Promise<api.HostAnswer[]> {
    return this.#call("GET", "/v1/hosts", api.hostAnswer.array());
  }

  changeHost(ref: string, body: z.input<typeof api.hostChangeRequest>): Promise<api.HostAnswer> {
    return this.#call("PATCH", path`/v1/hosts/${ref}`, api.hostAnswer, api.hostChangeRequest, body);
  }

  removeHost(ref: string): Promise<api.HostRemoveAnswer> {
    return this.#call("DELETE", path`/v1/hosts/${ref}`, api.hostRemoveAnswer);
  }

  volumes(): Promise<api.VolumeAnswer[]> {
    return this.#call("GET", "/v1/volumes", api.volumeAnswer.array());
  }

  volume(ref: string): Promise<api.VolumeAnswer> {
    return this.#call("GET", path`/v1/volumes/${ref}`, api.volumeAnswer);
  }

  /** `size` as bigint: it is encoded for the wire here. */
  createVolume(body: VolumeCreate): Promise<api.VolumeAnswer> {
    const { size = null } = body;
    const wire = { ...body, size: size === null ? undefined : String(size) };
    return this.#call("POST", "/v1/volumes", api.volumeAnswer, api.volumeCreateRequest, wire);
  }

  resizeVolume(ref: string, size: bigint, loseData: string | null = null): Promise<api.VolumeAnswer> {
    const body = { size: String(size), loseData };
    return this.#call("PATCH", path`/v1/volumes/${ref}`, api.volumeAnswer, api.volumeChangeRequest, body);
  }

  limitVolume(ref: string, limits: VolumeLimits | null): Promise<api.VolumeAnswer> {
    const wire = limits === null ? null : { ...limits, bps: limits.bps === null ? null : String(limits.bps) };
    return this.#call("PATCH", path`/v1/volumes/${ref}`, api.volumeAnswer, api.volumeChangeRequest, {
      limits: wire,
    });
  }

  changeVolume(ref: string, body: z.input<typeof api.placeChangeRequest>): Promise<api.VolumeAnswer> {
    return this.#call("PATCH", path`/v1/volumes/${ref}`, api.volumeAnswer, api.placeChangeRequest, body);
  }

  /** What such a change would do; nothing is done. */
  planVolume(ref: string, body: z.input<typeof api.placeChangeRequest>): Promise<api.PlanAnswer> {
    return this.#call("POST", path`/v1/volumes/${ref}/plan`, api.planAnswer, api.placeChangeRequest, body);
  }

  scrub(ref: string, rate: bigint | null = null): Promise<api.VolumeAnswer> {
    const body = { rate: rate === null ? null : String(rate) };
    return this.#call("POST", path`/v1/volumes/${ref}/scrub`, api.volumeAnswer, api.scrubRequest, body);
  }

  stopScrub(ref: string): Promise<api.VolumeAnswer> {
    return this.#call("DELETE", path`/v1/volumes/${ref}/scrub`, api.volumeAnswer);
  }

  async deleteVolume(ref: string, body: z.input<typeof api.volumeDeleteRequest> = {}): Promise<void> {
    await this.#call("DELETE", path`/v1/volumes/${ref}`, api.okAnswer, api.volumeDeleteRequest, body);
  }

  attach(ref: string, body: z.input<typeof api.attachRequest> = {}): Promise<api.AttachAnswer> {
    return this.#call("POST", path`/v1/volumes/${ref}/attach`, api.attachAnswer, api.attachRequest, body);
  }

  steal(ref: string): Promise<api.AttachAnswer> {
    return this.#call("POST", path`/v1/volumes/${ref}/steal`, api.attachAnswer);
  }

  detach(ref: string, body: z.input<typeof api.detachRequest> = {}): Promise<api.DetachAnswer> {
    return this.#call("POST", path`/v1/volumes/${ref}/detach`, api.detachAnswer, api.detachRequest, body);
  }

  addReplica(ref: string, body: z.input<typeof api.replicaAddRequest> = {}): Promise<api.VolumeAnswer> {
    return this.#call(
      "POST",
      path`/v1/volumes/${ref}/replicas`,
      api.volumeAnswer,
      api.replicaAddRequest,
      body,
    );
  }

  removeReplica(ref: string, rid: number): Promise<api.VolumeAnswer> {
    return this.#call("DELETE", path`/v1/volumes/${ref}/replicas/${String(rid)}`, api.volumeAnswer);
  }

  why(ref: string): Promise<api.WhyAnswer> {
    return this.#call("GET", path`/v1/volumes/${ref}/why`, api.whyAnswer);
  }

  progress(ref: string): Promise<api.ProgressAnswer> {
    return this.#call("GET", path`/v1/volumes/${ref}/progress`, api.progressAnswer);
  }

  stats(ref: string): Promise<api.StatsAnswer> {
    return this.#call("GET", path`/v1/volumes/${ref}/stats`, api.statsAnswer);
  }

  /** Of one volume, or of all. */
  snapshots(volume: string | null = null): Promise<api.SnapshotAnswer[]> {
    const url = volume === null ? "/v1/snapshots" : path`/v1/volumes/${volume}/snapshots`;
    return this.#call("GET", url, api.snapshotAnswer.array());
  }

  snapshot(ref: string): Promise<api.SnapshotAnswer> {
    return this.#call("GET", path`/v1/snapshots/${ref}`, api.snapshotAnswer);
  }

  createSnapshot(
    volume: string,
    body: z.input<typeof api.snapshotCreateRequest> = {},
  ): Promise<api.SnapshotCreated> {
    const url = path`/v1/volumes/${volume}/snapshots`;
    return this.#call("POST", url, api.snapshotCreated, api.snapshotCreateRequest, body);
  }

  createGroup(body: z.input<typeof api.groupCreateRequest>): Promise<api.GroupCreated> {
    return this.#call("POST", "/v1/snapshots", api.groupCreated, api.groupCreateRequest, body);
  }

  changeSnapshot(ref: string, body: api.SnapshotChange): Promise<api.SnapshotAnswer> {
    const url = path`/v1/snapshots/${ref}`;
    return this.#call("PATCH", url, api.snapshotAnswer, api.snapshotChangeRequest, body);
  }

  async deleteSnapshot(ref: string): Promise<void> {
    await this.#call("DELETE", path`/v1/snapshots/${ref}`, api.okAnswer);
  }

  /** Its volume is as it was then when this answers; E-AGENT-04 where that takes longer. */
  revertVolume(snapshot: string): Promise<api.VolumeAnswer> {
    return this.#call("POST", path`/v1/snapshots/${snapshot}/revert`, api.volumeAnswer);
  }

  /** What it holds is gone for good; what changed since it can be told still. */
  destroySnapshotData(ref: string): Promise<api.SnapshotAnswer> {
    return this.#call("POST", path`/v1/snapshots/${ref}/destroy-data`, api.snapshotAnswer);
  }

  attachSnapshot(ref: string): Promise<api.SnapshotAttached> {
    return this.#call("POST", path`/v1/snapshots/${ref}/attach`, api.snapshotAttached);
  }

  async detachSnapshot(ref: string): Promise<void> {
    await this.#call("POST", path`/v1/snapshots/${ref}/detach`, api.okAnswer);
  }

  /** A part of what changed since an older snapshot of the volume: the answer says which. */
  changedBlocks(
    ref: string,
    { since, offset, len }: { readonly since: string; readonly offset?: bigint; readonly len?: bigint },
  ): Promise<api.ChangedAnswer> {
    const query = new URLSearchParams({
      since,
      ...(offset === undefined ? {} : { offset: String(offset) }),
      ...(len === undefined ? {} : { len: String(len) }),
    });
    return this.#call("GET", `${path`/v1/snapshots/${ref}/changed`}?${query.toString()}`, api.changedAnswer);
  }

  srs(): Promise<sr.SrAnswer[]> {
    return this.#call("GET", "/v1/srs", sr.srAnswer.array());
  }

  sr(uuid: string): Promise<sr.SrAnswer> {
    return this.#call("GET", path`/v1/srs/${uuid}`, sr.srAnswer);
  }

  createSr(body: z.input<typeof sr.srCreateRequest>): Promise<sr.SrAnswer> {
    return this.#call("POST", "/v1/srs", sr.srAnswer, sr.srCreateRequest, body);
  }

  changeSr(uuid: string, body: z.input<typeof sr.srChangeRequest>): Promise<sr.SrAnswer> {
    return this.#call("PATCH", path`/v1/srs/${uuid}`, sr.srAnswer, sr.srChangeRequest, body);
  }

  /** E-SR-02 while it has disks. One that is not there is E-SR-01. */
  async deleteSr(uuid: string): Promise<void> {
    await this.#call("DELETE", path`/v1/srs/${uuid}`, api.okAnswer);
  }

  /** All of them, or an error. */
  vdis(srUuid: string): Promise<sr.VdiListAnswer> {
    return this.#call("GET", path`/v1/srs/${srUuid}/vdis`, sr.vdiListAnswer);
  }

  vdi(uuid: string): Promise<sr.VdiAnswer> {
    return this.#call("GET", path`/v1/vdis/${uuid}`, sr.vdiAnswer);
  }

  /** By the same UUID again it answers with the one that is there. */
  createVdi(srUuid: string, body: VdiCreate): Promise<sr.VdiAnswer> {
    const wire = { ...body, size: String(body.size) };
    return this.#call("POST", path`/v1/srs/${srUuid}/vdis`, sr.vdiAnswer, sr.vdiCreateRequest, wire);
  }

  introduceVdi(srUuid: string, body: z.input<typeof sr.vdiIntroduceRequest>): Promise<sr.VdiAnswer> {
    const url = path`/v1/srs/${srUuid}/introduce`;
    return this.#call("POST", url, sr.vdiAnswer, sr.vdiIntroduceRequest, body);
  }

  changeVdi(uuid: string, body: VdiChanges): Promise<sr.VdiAnswer> {
    const { size, ...rest } = body;
    const wire = { ...rest, ...(size === undefined ? {} : { size: String(size) }) };
    return this.#call("PATCH", path`/v1/vdis/${uuid}`, sr.vdiAnswer, sr.vdiChangeRequest, wire);
  }

  /** One that is gone already is no error. */
  async deleteVdi(uuid: string): Promise<void> {
    await this.#call("DELETE", path`/v1/vdis/${uuid}`, api.okAnswer);
  }

  /** Answers with the snapshot, of `body.uuid`. */
  snapshotVdi(uuid: string, body: z.input<typeof sr.vdiCopyRequest>): Promise<sr.VdiAnswer> {
    return this.#call("POST", path`/v1/vdis/${uuid}/snapshot`, sr.vdiAnswer, sr.vdiCopyRequest, body);
  }

  /** Answers with the clone, of `body.uuid`. */
  cloneVdi(uuid: string, body: z.input<typeof sr.vdiCopyRequest>): Promise<sr.VdiAnswer> {
    return this.#call("POST", path`/v1/vdis/${uuid}/clone`, sr.vdiAnswer, sr.vdiCopyRequest, body);
  }

  destroyVdiData(uuid: string): Promise<sr.VdiAnswer> {
    return this.#call("POST", path`/v1/vdis/${uuid}/destroy-data`, sr.vdiAnswer);
  }

  /** E-AGENT-04 where it takes longer: it goes on. */
  revertVdi(uuid: string, snapshot: string): Promise<sr.VdiAnswer> {
    const url = path`/v1/vdis/${uuid}/revert`;
    return this.#call("POST", url, sr.vdiAnswer, sr.vdiRevertRequest, { snapshot });
  }

  /** What is written to it from now on can be laid over another disk. E-VDI-08 for one that was opened before. */
  layerVdi(uuid: string): Promise<sr.VdiAnswer> {
    return this.#call("POST", path`/v1/vdis/${uuid}/layer`, sr.vdiAnswer);
  }

  /**
   * Lays a layer over its parent: the disk is both then, and the parent is a disk no more. Asked again until it is done,
   * however long it takes; E-VDI-07 where it was cut, E-AGENT-04 after `patienceMs`.
   */
  async composeVdi(
    uuid: string,
    parent: string,
    patienceMs: number = COMPOSE_PATIENCE_MS,
  ): Promise<sr.VdiAnswer> {
    const url = path`/v1/vdis/${uuid}/compose`;
    const end = performance.now() + patienceMs;
    for (;;) {
      try {
        return await this.#call("POST", url, sr.vdiAnswer, sr.vdiComposeRequest, { parent });
      } catch (error) {
        if (!isWeftError(error, "E-AGENT-04") || performance.now() >= end) throw error;
      }
    }
  }

  /** On-boot reset: see `vdiResetRequest`. */
  resetVdi(uuid: string, mark: boolean | null = null): Promise<sr.VdiAnswer> {
    return this.#call("POST", path`/v1/vdis/${uuid}/reset`, sr.vdiAnswer, sr.vdiResetRequest, { mark });
  }

  /** What differs between an older snapshot of the same disk and this disk, or snapshot of it: all of it. */
  changedVdiBlocks(uuid: string, since: string): Promise<sr.VdiChangedAnswer> {
    const url = path`/v1/vdis/${uuid}/changed`;
    return this.#call("POST", url, sr.vdiChangedAnswer, sr.vdiChangedRequest, { since });
  }

  /** E-VDI-04 while another host has it, after `waitMs`. */
  activateVdi(uuid: string, body: z.input<typeof sr.vdiActivateRequest>): Promise<sr.VdiActivated> {
    return this.#call("POST", path`/v1/vdis/${uuid}/activate`, sr.vdiActivated, sr.vdiActivateRequest, body);
  }

  /** One that is not open on this host is no error. */
  async deactivateVdi(uuid: string): Promise<void> {
    await this.#call("POST", path`/v1/vdis/${uuid}/deactivate`, api.okAnswer);
  }

  vdiUsers(uuid: string): Promise<sr.VdiUsersAnswer> {
    return this.#call("GET", path`/v1/vdis/${uuid}/users`, sr.vdiUsersAnswer);
  }

  async setXapiHost(uuid: string): Promise<void> {
    await this.#call("PUT", "/v1/xapi-host", api.okAnswer, sr.xapiHostRequest, { uuid });
  }

  async declareXapiHostDead(uuid: string): Promise<z.output<typeof sr.xapiHostDead>> {
    return this.#call("POST", "/v1/xapi-host/dead", sr.xapiHostDead, sr.xapiHostRequest, { uuid });
  }

  trash(): Promise<api.TrashAnswer[]> {
    return this.#call("GET", "/v1/trash", api.trashAnswer.array());
  }

  restoreFromTrash(ref: string): Promise<api.VolumeAnswer> {
    return this.#call("POST", path`/v1/trash/${ref}/restore`, api.volumeAnswer);
  }

  /** Empties the trash of one volume, or all of it. */
  async emptyTrash(ref: string | null): Promise<void> {
    await this.#call("DELETE", ref === null ? "/v1/trash" : path`/v1/trash/${ref}`, api.okAnswer);
  }

  backupStore(file: string): Promise<api.BackupAnswer> {
    return this.#call("POST", "/v1/store/backup", api.backupAnswer, api.storeFileRequest, { path: file });
  }

  async restoreStore(file: string): Promise<void> {
    await this.#call("POST", "/v1/store/restore", api.okAnswer, api.storeFileRequest, { path: file });
  }

  repairStore(body: z.input<typeof api.storeRepairRequest> = {}): Promise<api.RepairAnswer> {
    return this.#call("POST", "/v1/store/repair", api.repairAnswer, api.storeRepairRequest, body);
  }

  audit(query: Readonly<Record<keyof api.AuditQuery, string | null>>): Promise<api.AuditAnswer> {
    const given = Object.entries(query).filter((pair): pair is [string, string] => pair[1] !== null);
    return this.#call("GET", `/v1/audit?${new URLSearchParams(given).toString()}`, api.auditAnswer);
  }

  verifyAudit(): Promise<api.AuditVerdict> {
    return this.#call("GET", "/v1/audit/verify", api.auditVerdict);
  }

  /** Figures, as Prometheus reads them. */
  async metrics(): Promise<string> {
    const url = "/metrics";
    const { status, text } = await this.#send("GET", url, undefined);
    if (status < 400) return text;
    throw errorOf(parseJson(text, `GET ${url}`), status, `GET ${url}`);
  }

  async #call<A extends z.ZodType>(method: Method, url: string, answer: A): Promise<z.output<A>>;
  async #call<A extends z.ZodType, B extends z.ZodType>(
    method: Method,
    url: string,
    answer: A,
    request: B,
    body: z.input<B>,
  ): Promise<z.output<A>>;
  async #call<A extends z.ZodType>(
    method: Method,
    url: string,
    answer: A,
    request?: z.ZodType,
    body?: unknown,
  ): Promise<z.output<A>> {
    if (request !== undefined) checkRequest(request, body);
    const { status, text } = await this.#send(method, url, body);
    const json = parseJson(text, `${method} ${url}`);
    if (status >= 400) throw errorOf(json, status, `${method} ${url}`);
    const parsed = answer.safeParse(json);
    if (parsed.success) return parsed.data;
    throw notUnderstood(`${method} ${url}`, parsed.error.issues[0]);
  }

  async #send(method: Method, url: string, body: unknown): Promise<{ status: number; text: string }> {
    const way = await this.#choose();
    if ("remote" in way) return sendRemote(way.remote, { method, url, body, timeoutMs: this.#timeoutMs });
    const { socketPath } = way;
    const payload = body === undefined ? "" : JSON.stringify(body);
    const headers =
      body === undefined
        ? {}
        : { "content-type": "application/json", "content-length": Buffer.byteLength(payload) };
    return new Promise((resolve, reject) => {
      const fail = (cause: Error): void => reject(unreachable(socketPath, cause));
      const request = httpRequest({ socketPath, method, path: url, headers }, (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.once("error", fail);
        response.once("end", () =>
          resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() }),
        );
      });
      request.once("error", fail);
      request.setTimeout(this.#timeoutMs, () =>
        request.destroy(new Error(`no answer within ${this.#timeoutMs} ms`)),
      );
      request.end(payload);
    });
  }
}

async function sendRemote(
  { address, port, fingerprint, token }: RemoteAgent,
  asked: {
    readonly method: Method;
    readonly url: string;
    readonly body: unknown;
    readonly timeoutMs: number;
  },
): Promise<{ status: number; text: string }> {
  const { method, url, body, timeoutMs } = asked;
  const { socket } = await connectPinned({ address, port, fingerprint });
  try {
    const headers: Record<string, string> =
      token === null ? {} : { authorization: `Bearer ${token.reveal()}` };
    return await exchange(socket, {
      method,
      path: url,
      headers,
      body: body ?? null,
      address,
      answerMs: timeoutMs,
    });
  } catch (cause) {
    // What was asked may have been done: nobody can say.
    throw new WeftError({
      code: "E-AGENT-01",
      message: `${address} gave no answer: ${causeOf(cause)}.`,
      facts: { address },
      do: [{ why: "Look what came of it", command: "weft status" }],
      cause,
    });
  } finally {
    socket.destroy();
  }
}

/** A connection to a host whose authority has this fingerprint; "": whichever it shows, for who will ask a person. */
export async function connectPinned({
  address,
  port,
  fingerprint,
}: Omit<RemoteAgent, "token">): ReturnType<typeof connectProven> {
  const expect = { kind: "authority", fingerprint16: Buffer.from(fingerprint, "hex") } as const;
  try {
    return await connectProven({ address, port, shown: null, expect });
  } catch (error) {
    if (!isWeftError(error, "E-TOKEN-04")) throw error;
    const { shown = null } = error.facts;
    throw new WeftError({
      code: "E-CTX-02",
      message: `${address} shows ${shown === null ? "no authority that signed for it" : `authority ${String(shown)}`}, not ${fingerprintText(fingerprint)}.`,
      facts: { address, shown, pinned: fingerprint },
      safe: "The token was not sent. Nothing was changed.",
      do: [
        {
          why: "If the cluster's authority was changed, log in again",
          command: `weft login https://${address}:${port}`,
        },
      ],
      cause: error,
    });
  }
}

/** The reason alone: the error that carries it promises that nothing was changed. */
function causeOf(cause: unknown): string {
  return cause instanceof WeftError && cause.cause !== undefined ? reasonOf(cause.cause) : reasonOf(cause);
}

export type VolumeCreate = Omit<z.input<typeof api.volumeCreateRequest>, "size"> & {
  readonly size?: bigint | null;
};

export type VdiCreate = Omit<z.input<typeof sr.vdiCreateRequest>, "size"> & { readonly size: bigint };
export type VdiChanges = Omit<z.input<typeof sr.vdiChangeRequest>, "size"> & { readonly size?: bigint };

/** A URL path whose parts are escaped. */
function path(parts: TemplateStringsArray, ...values: readonly string[]): string {
  return parts.reduce((url, part, i) => url + encodeURIComponent(values[i - 1] ?? "") + part);
}

function checkRequest(schema: z.ZodType, body: unknown): void {
  const parsed = schema.safeDecode(body);
  if (!parsed.success) throw badRequest(parsed.error);
}

/** Also the agent's answer to a body that it can't take, so that both say the same. */
export function badRequest(error: z.ZodError): WeftError {
  const issue = error.issues[0];
  const field = issue?.path.join(".") ?? "";
  const where = field === "" ? "" : `"${field}": `;
  return new WeftError({
    code: "E-ARG-02",
    message: `${where}${issue?.message ?? "not understood"}.`,
    facts: { field },
    safe: "Nothing was changed.",
  });
}

function parseJson(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new WeftError({ code: "E-AGENT-02", message: `The agent's answer to ${what} is not JSON.`, cause });
  }
}

function errorOf(json: unknown, status: number, what: string): WeftError {
  const parsed = api.errorAnswer.safeParse(json);
  if (parsed.success) return WeftError.fromBody(parsed.data.error);
  return new WeftError({
    code: "E-AGENT-02",
    message: `The agent answered ${what} with status ${status} and no error of ours.`,
  });
}

function notUnderstood(what: string, issue: z.core.$ZodIssue | undefined): WeftError {
  const where = issue === undefined ? "" : ` at "${issue.path.join(".")}": ${issue.message}`;
  return new WeftError({
    code: "E-AGENT-02",
    message: `The agent's answer to ${what} was not understood${where}.`,
    do: [{ why: "Agent and command of one version?", command: "weft --version" }],
  });
}

function unreachable(socketPath: string, cause: Error): WeftError {
  return new WeftError({
    code: "E-AGENT-01",
    message: `The agent doesn't answer on ${socketPath}: ${reasonOf(cause)}.`,
    facts: { socket: socketPath },
    safe: "Attached volumes go on without the agent.",
    do: [{ why: "Is it running?", command: "systemctl status weft-agent" }],
    cause,
  });
}
