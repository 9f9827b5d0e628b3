/**
 * The agent as a whole: nothing but init and join without a cluster; as a member the loops over store, hosts and volumes.
 *
 *     idle ──init, join, or host.json found──▶ member ──host removed──▶ idle
 *
 * Must always hold: a restart loses nothing: all it knows is in the store, in host.json and in weftd.
 */
import { mkdir } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import type { FastifyInstance } from "fastify";
import type { z } from "zod";

import { type HostId, parseHostId } from "../model/ids.ts";
import type { AdmissionAnswer, AdmissionRequest, admissionWish, Reclaim } from "../wire/admission-api.ts";
import type * as api from "../wire/agent-api.ts";
import { isWeftError, reasonOf, WeftError } from "../wire/errors.ts";
import { IdentityFiles } from "../wire/identity-files.ts";
import { openNextTrust } from "../wire/signed-trust.ts";
import { StoreClient } from "../wire/store-client.ts";
import { keys } from "../wire/store-keys.ts";
import { alertFacts, AlertKeeper, type AlertSink, reachesStore } from "./alert-keeper.ts";
import { askHost, askMembers, catchUp, followHosts, renewOwn } from "./ask-members.ts";
import { type Audit, openAudit } from "./audit.ts";
import { AuditHeads } from "./audit-head.ts";
import { AuthorityKeeper } from "./authority.ts";
import { BundleKeeper } from "./bundle-keeper.ts";
import { ClockWatch } from "./clock-watch.ts";
import { ClusterView } from "./cluster-view.ts";
import { enterAdmitted, requestAdmission } from "./admission.ts";
import { Confirmation } from "./confirmation.ts";
import type { GuestDevices, MemberContext } from "./context.ts";
import { DevicePools } from "./device-pools.ts";
import { lookAtDisks } from "./disks.ts";
import type { Door } from "./door.ts";
import { openDoor } from "./door-handlers.ts";
import { isRegistered, type JoinContext, openPorts, registration } from "./entering.ts";
import { EtcdLog } from "./etcd-log.ts";
import { EtcdProcess, peerUrl } from "./etcd-process.ts";
import { aliveOf, hostsOf } from "./facts.ts";
import { type HostFile, HostFiles } from "./host-file.ts";
import { hostRevoked, IdentityKeeper } from "./identity.ts";
import { initCluster } from "./init.ts";
import { joinCluster } from "./join.ts";
import { Keeper } from "./keeper.ts";
import { UsedKeeper } from "./used-keeper.ts";
import { RoomKeeper } from "./room-keeper.ts";
import { LimitKeeper } from "./limit-keeper.ts";
import { LocalDaemon } from "./local-daemon.ts";
import type { LocalDoor } from "./local-door.ts";
import { type Log, openLog } from "./log.ts";
import { Mirror, syncIfPossible } from "./mirror.ts";
import type { AgentOptions } from "./options.ts";
import { byOwner } from "./owner-work.ts";
import { findBundles, takeBundle } from "./reclaim.ts";
import { perform } from "./perform.ts";
import { diskAnswer, listDisks } from "./pools.ts";
import { auditPeer } from "./peer-audit.ts";
import { PauseKeeper } from "./pause-keeper.ts";
import { Placer } from "./placer.ts";
import { Presence } from "./presence.ts";
import { renewBeforeStart } from "./renew.ts";
import { answerRepair } from "./repair.ts";
import { Rescue } from "./rescue.ts";
import { RevertProgress } from "./revert.ts";
import { RevocationAcks } from "./revocation-acks.ts";
import { memberHosts } from "./rotate.ts";
import { RotationKeeper } from "./rotation-keeper.ts";
import { tellReady } from "./ready.ts";
import { serveLocal } from "./rest.ts";
import { ScrubKeeper } from "./scrub-keeper.ts";
import { type DeviceSizes, SizeKeeper } from "./size-keeper.ts";
import { copiesSnapshots, refuseUnlessClear, scrubSettings } from "./settings.ts";
import { SnapshotImages } from "./snapshot-images.ts";
import { SnapshotKeeper } from "./snapshot-keeper.ts";
import { agentFacts, clusterStatus, daemonStatus } from "./status.ts";
import { StoreIdentity } from "./store-identity.ts";
import { StoreKeeper } from "./store-keeper.ts";
import { VdiKeeper } from "./vdi-keeper.ts";

/** How long `join` waits for its place in the store; it goes on in the background. */
const SETTLE_MS = 20_000;

type Member = {
  readonly context: MemberContext;
  readonly presence: Presence;
  readonly keeper: Keeper;
  readonly door: Door;
  readonly heads: AuditHeads;
  readonly acks: RevocationAcks;
  readonly rotation: RotationKeeper;
  readonly rescue: Rescue;
  readonly etcdLog: EtcdLog;
  readonly pauseKeeper: PauseKeeper;
  readonly snapshotKeeper: SnapshotKeeper;
  readonly vdiKeeper: VdiKeeper;
  readonly sizeKeeper: SizeKeeper | null;
  readonly alertKeeper: AlertKeeper | null;
  readonly bundleKeeper: BundleKeeper;
};

/** Made one after the other, and told of each other. */
type Loops = {
  keeper: Keeper | null;
  storeKeeper: StoreKeeper | null;
  presence: Presence | null;
  told: (() => void) | null;
};

export class Agent {
  readonly #options: AgentOptions;
  readonly #log: Log;
  readonly #doors: readonly LocalDoor[];
  readonly #alerts: AlertSink | null;
  readonly #guests: GuestDevices;
  readonly #sizes: DeviceSizes | null;
  readonly #files: HostFiles;
  readonly #identityFiles: IdentityFiles;
  readonly #etcd: EtcdProcess;
  readonly #daemon: LocalDaemon;
  /** Of everything that is asked of this host, in a cluster or not. */
  readonly audit: Audit;
  #member: Member | null = null;
  #rest: FastifyInstance | null = null;
  /** One of init, join, restart at a time. */
  #turn: Promise<unknown> = Promise.resolve();

  /**
   * `doors`: those that live in this process. `alerts`: where they go; null: nowhere. `guests`: see {@link GuestDevices}. `sizes`: of
   * their devices; null: what has a volume open here learns its size by itself.
   */
  constructor(
    options: AgentOptions,
    log: Log = openLog(options.logLevel),
    doors: readonly LocalDoor[] = [],
    alerts: AlertSink | null = null,
    guests: GuestDevices = async () => new Set(),
    sizes: DeviceSizes | null = null,
  ) {
    this.#options = options;
    this.#alerts = alerts;
    this.#guests = guests;
    this.#sizes = sizes;
    this.#log = log;
    this.#doors = doors;
    this.#files = new HostFiles(options.stateDir);
    this.#identityFiles = new IdentityFiles(options.stateDir);
    this.#etcd = new EtcdProcess({
      stateDir: options.stateDir,
      runDir: options.runDir,
      program: options.etcd,
    });
    this.#daemon = new LocalDaemon({ socketPath: join(options.runDir, "weftd.sock"), log });
    this.audit = openAudit(options, log, () => this.#member?.context.host ?? null);
  }

  async start(): Promise<void> {
    await mkdir(this.#options.stateDir, { recursive: true, mode: 0o700 });
    await mkdir(this.#options.runDir, { recursive: true });
    const self = await this.#files.readHost();
    if (self !== null) await this.#begin(self, false);
    this.#rest = await serveLocal(this, this.#options, this.#log, this.#doors);
    this.#log.info({ member: self !== null, runDir: this.#options.runDir }, "the agent serves");
    tellReady(process.env["NOTIFY_SOCKET"], this.#options.addon, this.#log);
  }

  /** etcd and weftd go on. */
  async stop(): Promise<void> {
    await this.#rest?.close();
    await this.#end();
    this.#daemon.close();
    await this.audit.close();
  }

  /** The context of a member's requests, or E-AGENT-03. */
  member(): MemberContext {
    if (this.#member !== null) return this.#member.context;
    throw new WeftError({
      code: "E-AGENT-03",
      message: "This host is not in a cluster yet.",
      safe: "Nothing was changed.",
      do: [
        { why: "Make a cluster", command: "weft init" },
        { why: "Or enter one", command: "weft join HOST" },
      ],
    });
  }

  /** Of this host, in a cluster or not. */
  async disks(device: string | null): Promise<api.DiskAnswer[]> {
    if (this.#member !== null) return listDisks(this.#member.context, device);
    return (await lookAtDisks(device, () => null)).map((disk) => diskAnswer(disk, hostname()));
  }

  async status(): Promise<api.StatusAnswer> {
    if (this.#member !== null) return clusterStatus(this.#member.context);
    return { kind: "no-cluster", agent: agentFacts(), daemon: await daemonStatus(this.#daemon) };
  }

  init(request: z.output<typeof api.initRequest>): Promise<void> {
    return this.#inTurn(async () => {
      if (request.transport === "clear") await refuseUnlessClear(this.#daemon);
      await openPorts(this.#log);
      await this.#begin(await initCluster(this.#joining(), request), true);
    });
  }

  join(request: z.output<typeof api.joinRequest>): Promise<void> {
    return this.#inTurn(async () => {
      await openPorts(this.#log);
      await this.#begin(await joinCluster(this.#joining(), request), true);
      await this.#untilSettled();
    });
  }

  /** What a member needs to let this host in without a token. */
  requestAdmission(wish: z.output<typeof admissionWish>): Promise<AdmissionRequest> {
    return this.#inTurn(async () => {
      await openPorts(this.#log);
      return requestAdmission(this.#joining(), wish);
    });
  }

  /** It was let in. Its place in the store follows in the background. */
  enter(answer: AdmissionAnswer): Promise<void> {
    return this.#inTurn(async () => this.#begin(await enterAdmitted(this.#joining(), answer), true));
  }

  /** Of hosts that this one may have been, on its disks. */
  bundles(): Promise<readonly string[]> {
    return this.#inTurn(() => findBundles(this.#joining()));
  }

  /** It is that host again. Which store is the cluster's it has to ask. */
  reclaim(request: Reclaim): Promise<void> {
    return this.#inTurn(async () => this.#begin(await takeBundle(this.#joining(), request), false));
  }

  /** The store under it was replaced. */
  restart(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#end();
      const self = await this.#files.readHost();
      // Whoever replaced it knows which one it is.
      if (self !== null) await this.#begin(self, true);
    });
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work, work);
    this.#turn = mine.catch(() => null);
    return mine;
  }

  #joining(): JoinContext {
    const { bootIdFile, certificateLifeMs } = this.#options;
    return {
      files: this.#files,
      identityFiles: this.#identityFiles,
      etcd: this.#etcd,
      bootIdFile,
      certificateLifeMs,
      log: this.#log,
    };
  }

  /** `confirmed`: which store is the cluster's is known without asking the others. */
  async #begin(self: HostFile, confirmed: boolean): Promise<void> {
    const host = parseHostId(self.host);
    if (host === null) throw new Error(`host.json names no host: ${self.host}`);
    const log = this.#log;
    const { authority, identity, storeIdentity } = await this.#identify(self, host);
    const store: StoreClient = new StoreClient({
      endpoints: self.etcd,
      tls: identity.tls,
      forbidden: () => confirmation.forbidden(),
    });
    const mirror = new Mirror(store);
    const loops: Loops = { keeper: null, storeKeeper: null, presence: null, told: null };
    const isAway = (): boolean => !view.storeUp;
    const confirmation = new Confirmation({
      identity,
      isAway,
      follow: (asked, how) => followHosts({ self, store, identity }, asked, how),
      seenMs: () => this.#files.readSeen(),
      see: (nowMs) => this.#files.writeSeen(nowMs),
      onChange: () => {
        this.#background("weftd", this.#daemon.tellConfirmed());
        loops.storeKeeper?.nudge();
        loops.presence?.nudge();
      },
      log,
      confirmed,
    });
    const follow = (): Promise<void> => confirmation.look();
    const isPlacer = (): boolean => loops.presence?.isPlacer ?? false;
    const view = new ClusterView(mirror, () => {
      loops.keeper?.stepAll();
      loops.storeKeeper?.nudge();
    });
    const storeKeeper = new StoreKeeper({
      self,
      store,
      mirror,
      etcd: this.#etcd,
      log,
      liveness: () => view.liveness,
      isPlacer,
      authority,
      identity,
      identityFiles: this.#identityFiles,
      storeIdentity,
      credentials: () => askMembers({ self, store, identity }, (member) => member.credentials()),
      isConfirmed: () => confirmation.isConfirmed,
      onEndpoints: (endpoints) => this.#onEndpoints(self, endpoints, store),
      onRestarted: () => loops.told?.(),
    });
    const clocks = new ClockWatch({
      others: () => {
        const alive = aliveOf(mirror);
        return hostsOf(mirror).filter(({ id }) => id !== host && alive.has(id));
      },
      ask: async (address) => Date.parse((await askHost({ self, identity }, address)).now),
      log,
    });
    const shared = {
      store,
      mirror,
      log,
      cluster: () => view.cluster(),
      liveness: () => view.liveness,
      isPlacer,
    };
    const placer = new Placer({ ...shared, rebuildAfterMs: this.#options.rebuildAfterMs });
    const scrubKeeper = new ScrubKeeper({
      ...shared,
      host,
      daemon: this.#daemon,
      settings: () => scrubSettings(mirror),
    });
    const usedKeeper = new UsedKeeper({ mirror, store, daemon: this.#daemon, log });
    const images = new SnapshotImages({ host, mirror, store, daemon: this.#daemon, log });
    const revertProgress = new RevertProgress(store, host);
    const pauseKeeper = new PauseKeeper({ host, mirror, store, daemon: this.#daemon, log });
    const roomKeeper = new RoomKeeper({ mirror, store, log });
    const limitKeeper = new LimitKeeper({ mirror, daemon: this.#daemon, log });
    const devices = await DevicePools.open({
      stateDir: this.#options.stateDir,
      cluster: self.cluster,
      host: self.name,
      client: this.#daemon.client,
      log,
    });
    const context: MemberContext = {
      options: this.#options,
      self,
      host,
      store,
      mirror,
      view,
      daemon: this.#daemon,
      devices,
      etcd: this.#etcd,
      storeKeeper,
      placer,
      limitKeeper,
      scrubKeeper,
      log,
      identity,
      authority,
      storeIdentity,
      clocks,
      confirmation,
      held: new Set(),
      guests: this.#guests,
      composing: new Map(),
    };
    const snapshotKeeper = new SnapshotKeeper({
      ...shared,
      host,
      daemon: this.#daemon,
      isOn: () => copiesSnapshots(mirror),
      add: async ({ volume, snapshot: id, rid }) => {
        await byOwner(context, { kind: "add-snapshot-copy", volume, id, rid });
        await mirror.sync();
      },
    });
    const vdiKeeper = new VdiKeeper({ context, isPlacer });
    const keeper = new Keeper({
      self: host,
      mirror,
      log,
      cluster: () => view.cluster(),
      isPlacer,
      perform: (volume, effect, state) =>
        perform(
          { store, daemon: this.#daemon.client, self: host, held: context.held },
          volume,
          effect,
          state,
        ),
    });
    const presence = new Presence({
      store,
      host,
      log,
      onStore: (up) => view.setStore(up),
      onPlacer: () => {
        keeper.stepAll();
        storeKeeper.nudge();
        placer.nudge();
      },
    });
    Object.assign(loops, { keeper, storeKeeper, presence });
    // First: when the address can't be served, nothing else has begun.
    const door = await openDoor(context, this);
    await confirmation.start();
    if (confirmation.isConfirmed && (await this.#isMember())) {
      // Without the authorities' keys it has no certificate; the agent still serves, so that they can be restored.
      await this.#etcd.ensureRunning().catch((error: unknown) => {
        if (!isWeftError(error, "E-CA-01")) throw error;
        log.error({ code: error.code }, error.message);
      });
    }
    const isMissing = (): boolean => !isRegistered(mirror.get(keys.host(host)), host, identity.trust());
    // Best effort: with the store away the agent still serves, and shows that.
    if (await syncIfPossible(mirror)) view.setStore(true);
    mirror.onChange((changed) => {
      if (changed === null || changed.has(keys.voters)) storeKeeper.nudge();
      if (changed?.has(keys.placer) === true && mirror.get(keys.placer) === null) presence.nudge();
      if (changed?.has(keys.alive(host)) === true && mirror.get(keys.alive(host)) === null) presence.unseen();
      if (changed?.has(keys.repairAsk) === true) this.#background("repair", answerRepair(context));
      if (changed?.has(keys.host(host)) === true && isMissing())
        this.#background("registration", this.#register(context));
    });
    const acks = new RevocationAcks({
      store,
      mirror,
      identity,
      log,
      cut: (revoked) => door.dropPeer(revoked),
      daemonGeneration: async () => (await this.#daemon.identity())?.generation ?? null,
      isStoreCut: async () => ((await this.#isMember()) ? (await storeIdentity.restartDue()) === null : null),
    });
    const rotation = new RotationKeeper({
      store,
      mirror,
      identity,
      authority,
      files: this.#identityFiles,
      log,
      daemon: () => this.#daemon.identity(),
      members: () => memberHosts(context),
      isMember: () => this.#isMember(),
    });
    const told = (): void => {
      acks.nudge();
      rotation.nudge();
    };
    Object.assign(loops, { told });
    const keep = (): Promise<void> => this.#keepTrust(identity);
    const rescue = new Rescue({
      isAway,
      catchUp: () => catchUp({ self, store, identity, follow, keep }),
      log,
    });
    mirror.start();
    identity.start({ mirror, renew: () => renewOwn({ self, store, identity, authority, isAway, follow }) });
    identity.onChange((change) => {
      storeKeeper.nudge();
      if (change.kind === "trust" && !change.after.hosts.has(host))
        this.#background("removal", this.#removed(context));
      if (change.kind === "certificate") {
        door.renew();
        this.#background("weftd's certificate", this.#daemon.reloadIdentity().then(told));
      }
    });
    presence.start();
    storeKeeper.start();
    keeper.start();
    placer.start();
    limitKeeper.start();
    scrubKeeper.start();
    snapshotKeeper.start();
    vdiKeeper.start();
    const sizeKeeper = this.#sizes === null ? null : new SizeKeeper({ mirror, devices: this.#sizes, log });
    sizeKeeper?.start();
    rotation.start();
    const bundleKeeper = new BundleKeeper({
      self,
      host,
      store,
      identity,
      authority,
      log,
      stateDir: this.#options.stateDir,
      places: () => devices.mountedPlaces(),
    });
    bundleKeeper.start();
    identity.onChange(() => bundleKeeper.nudge());
    // What is mounted by now weftd finds at once.
    await devices.start();
    await this.#daemon
      .begin({
        self,
        host,
        store,
        deviceOf: (path) => devices.deviceOf(path),
        onBack: () => {
          devices.nudge();
          keeper.stepAll();
          limitKeeper.nudge();
          scrubKeeper.nudge();
          snapshotKeeper.nudge();
          pauseKeeper.nudge();
        },
        onPools: (pools) => {
          bundleKeeper.heard(pools.map(({ pool }) => pool));
          this.#background("room", roomKeeper.heard(pools));
          this.#background("used", usedKeeper.settle());
          this.#background("images", images.settle());
        },
        onSession: (session) => {
          this.#background("revert", revertProgress.heard(session));
          scrubKeeper.heard(session);
          pauseKeeper.heard(session);
        },
        onTrust: told,
        confirmed: () => (confirmation.isConfirmed ? identity.trust().generation : null),
        keepTrust: keep,
        onPeerRefused: (refused) => this.#background("audit", auditPeer(this.audit, refused)),
      })
      .catch((error: unknown) => log.warn({ reason: reasonOf(error) }, "weftd was not configured yet"));
    const heads = new AuditHeads(this.audit, store, identity, log);
    heads.start();
    const etcdLog = new EtcdLog({ path: this.#etcd.logPath, audit: this.audit, log });
    etcdLog.start();
    const alerts = this.#alerts;
    const alertKeeper =
      alerts === null
        ? null
        : new AlertKeeper({
            store,
            name: self.name,
            isPlacer,
            isStoreUp: () => view.storeUp,
            reachesStore: (poolHost) => reachesStore(mirror, poolHost),
            sink: alerts,
            facts: (hosts) => alertFacts(context, hosts),
            log,
          });
    alertKeeper?.start();
    this.#member = {
      context,
      presence,
      keeper,
      door,
      heads,
      acks,
      rotation,
      rescue,
      etcdLog,
      pauseKeeper,
      snapshotKeeper,
      vdiKeeper,
      sizeKeeper,
      alertKeeper,
      bundleKeeper,
    };
    this.#background("repair", answerRepair(context));
    // What happened while this agent was down.
    if (!identity.trust().hosts.has(host)) this.#background("removal", this.#removed(context));
    else if (mirror.get(keys.cluster) !== null && isMissing())
      this.#background("registration", this.#register(context));
  }

  /** Who this host is. A member's own certificates are renewed here if they must be: before anybody is asked. */
  async #identify(
    self: HostFile,
    host: HostId,
  ): Promise<Pick<MemberContext, "authority" | "identity" | "storeIdentity">> {
    const log = this.#log;
    const files = this.#identityFiles;
    const { certificateLifeMs } = this.#options;
    const life = certificateLifeMs === null ? {} : { certificateLifeMs };
    const identity = await IdentityKeeper.open({ files, cluster: self.cluster, host, log });
    const authority = await AuthorityKeeper.open({ files, ...life });
    await renewBeforeStart(authority, identity);
    const storeIdentity = new StoreIdentity({ files, authority, identity, address: self.address, log });
    this.#etcd.prepareBy(() => storeIdentity.prepare());
    return { authority, identity, storeIdentity };
  }

  /** Whether this host runs a member of the store. */
  async #isMember(): Promise<boolean> {
    return (await this.#etcd.isConfigured()) && (await this.#etcd.hasData());
  }

  async #end(): Promise<void> {
    const member = this.#member;
    if (member === null) return;
    this.#member = null;
    const { context, presence, keeper, door, heads, acks, rotation, rescue, etcdLog, pauseKeeper } = member;
    const { snapshotKeeper, vdiKeeper, sizeKeeper, alertKeeper, bundleKeeper } = member;
    const confirmationEnds = context.confirmation.stop();
    // Before the identity ends that it renews.
    const rotationEnds = rotation.stop();
    heads.stop();
    await door.close();
    this.#daemon.end();
    keeper.stop();
    await context.identity.stop();
    context.clocks.stop();
    await context.devices.stop();
    context.placer.stop();
    context.limitKeeper.stop();
    context.scrubKeeper.stop();
    snapshotKeeper.stop();
    vdiKeeper.stop();
    sizeKeeper?.stop();
    alertKeeper?.stop();
    bundleKeeper.stop();
    pauseKeeper.stop();
    await presence.stop();
    // From here on nobody waits for the store.
    context.store.call.close();
    acks.stop();
    rescue.stop();
    await confirmationEnds;
    await etcdLog.stop();
    await rotationEnds;
    await context.storeKeeper.stop();
    await context.mirror.stop();
  }

  /** host.json is written from what we know, not from what is there: weftd writes it too, without our fields. */
  async #onEndpoints(self: HostFile, endpoints: readonly string[], store: StoreClient): Promise<void> {
    if (JSON.stringify(store.call.endpoints) === JSON.stringify(endpoints)) return;
    store.setEndpoints(endpoints);
    await this.#files.writeHost({ ...self, etcd: [...endpoints] });
    this.#log.info({ endpoints }, "the store's endpoints changed");
    await this.#daemon
      .setEndpoints(endpoints)
      .catch((error: unknown) =>
        this.#log.warn({ reason: reasonOf(error) }, "weftd learns the endpoints later"),
      );
  }

  /**
   * The list names this host, and the store doesn't know it or says something else of it: somebody wrote there who may not
   * decide that, or the store is an older one. It registers anew.
   */
  async #register({ store, host, identity }: MemberContext): Promise<void> {
    const entry = await store.get(keys.trust);
    if (entry !== null) identity.offer(entry.value);
    const trust = identity.trust();
    const listed = trust.hosts.get(host);
    const found = await store.get(keys.host(host));
    if (listed === undefined || isRegistered(found, host, trust)) return;
    const { name, address } = listed;
    const { ops } = registration({ host, name, address, joinedAt: new Date().toISOString() });
    const own = { key: keys.host(host), modRevision: found?.modRevision ?? 0n };
    const outcome = await store.txn([own], ops);
    if (outcome.kind === "succeeded")
      this.#log.warn({}, "the store did not know this host as the list names it; it registered anew");
  }

  /** weftd is as cut off as this agent was, so nobody else writes the file now. What is there may be newer all the same. */
  async #keepTrust(identity: IdentityKeeper): Promise<void> {
    const kept = await this.#identityFiles.readTrust();
    if (kept !== null && openNextTrust(identity.known, kept).kind === "ok") return;
    await this.#identityFiles.writeTrustFirst(identity.text);
    this.#background("weftd's trust list", this.#daemon.reloadIdentity());
  }

  /** Another host took this one out of the cluster. Believed only of the signed list. */
  async #removed({ host, identity, storeKeeper }: MemberContext): Promise<void> {
    if (identity.trust().hosts.has(host) || this.#member === null) return;
    const revoked = identity.trust().revoked.get(host);
    if (revoked === undefined) this.#log.warn({}, "this host was removed from its cluster");
    else this.#log.warn({ code: "E-HOST-14" }, hostRevoked(host, revoked.atMs).message);
    await storeKeeper.stop();
    await this.#inTurn(async () => {
      if (this.#member === null) return;
      await this.#end();
      await this.#etcd.retire();
      await this.#identityFiles.dropAuthorities();
      await this.#identityFiles.dropHost();
      await this.#files.retireHost();
    });
  }

  /** Until this host is a member of the store, or there are more hosts than members. */
  async #untilSettled(): Promise<void> {
    const { mirror, storeKeeper, self } = this.member();
    const end = performance.now() + SETTLE_MS;
    const own = peerUrl(self.address);
    while (performance.now() < end) {
      try {
        const members = await storeKeeper.members.list();
        const mine = members.find((member) => member.peerUrls.includes(own));
        const wantsVoters = hostsOf(mirror).length >= 3;
        const voters = members.filter(({ learner, name }) => !learner && name !== "").length;
        if (mine === undefined ? voters >= 3 : mine.name !== "" && mine.learner !== wantsVoters) return;
      } catch (error) {
        if (!isWeftError(error)) throw error;
      }
      storeKeeper.nudge();
      await mirror.until("the store's membership", 500, () => null).catch(() => null);
    }
  }

  #background(what: string, work: Promise<void>): void {
    work.catch((error: unknown) => {
      if (isWeftError(error)) this.#log.warn({ code: error.code }, `${what}: ${error.message}`);
      else this.#log.error({ error: reasonOf(error) }, `${what}: a bug`);
    });
  }
}
