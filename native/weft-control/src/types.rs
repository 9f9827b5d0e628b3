//! Parameters, answers and events of the control socket.
//!
//! Must always hold: a type here says only what crosses the socket; nothing of it is a machine's own state.

mod snapshots;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use weft_proto::ids::{ClusterId, Epoch, HostId, PoolId, PoolInc, Rev, Rid, SessionId, SnapId, VolumeId};

pub use snapshots::*;

/// A 64-bit number, written as a decimal string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal(pub u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<u64> for Decimal {
    fn from(value: u64) -> Self {
        Decimal(value)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(d)?;
        text.parse().map(Decimal).map_err(|_| {
            serde::de::Error::custom(format!("expected a decimal number in a string, found {text:?}"))
        })
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A 64-bit number, written as a decimal string.",
            "type": "string",
            "pattern": "^[0-9]{1,20}$",
        })
    }
}

/// The schema of identifiers: a UUID in its hyphenated form.
#[derive(Clone, Copy, Debug)]
pub struct Uuid;

impl JsonSchema for Uuid {
    fn schema_name() -> Cow<'static, str> {
        "Uuid".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An identifier: 32 hexadecimal digits, hyphenated.",
            "type": "string",
            "format": "uuid",
        })
    }
}

/// A volume's record as protocol.md 4.2 defines it. It passes through the socket untouched: unknown fields are
/// kept, and the one parser of records is weft-proto's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordJson(pub Value);

impl JsonSchema for RecordJson {
    fn schema_name() -> Cow<'static, str> {
        "RecordJson".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A volume's record (protocol.md 4.2), unknown fields included.",
            "type": "object",
            "additionalProperties": true,
        })
    }
}

/// Named facts of an error or of a finding.
pub type Facts = BTreeMap<String, Value>;

/// Nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DaemonError")]
pub struct ErrorBody {
    /// A code that never changes; docs/errors.md explains each.
    pub code: String,
    /// A sentence for a person: what was wanted and what was found.
    pub message: String,
    /// The facts of the sentence.
    pub facts: Facts,
}

/// How disks are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// io_uring, kernel 5.15 or later.
    IoUring,
    /// Linux AIO, for older kernels.
    Libaio,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The daemon's version.
    pub version: String,
    /// Oldest wire version it speaks.
    pub wire_min: u16,
    /// Newest wire version it speaks.
    pub wire_max: u16,
    /// The cluster, once configured.
    #[schemars(with = "Option<Uuid>")]
    pub cluster: Option<ClusterId>,
    /// The host, once configured.
    #[schemars(with = "Option<Uuid>")]
    pub host: Option<HostId>,
    /// Random per process: tells a restarted daemon from the one before.
    pub incarnation: Decimal,
    /// Process id.
    pub pid: u32,
    /// How disks are driven.
    pub driver: Driver,
    /// What this build can do that others can't: `insecure-clear`.
    pub features: Vec<String>,
}

/// Makes the daemon part of a cluster. Repeating it with the same values changes nothing; another cluster or host
/// is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// The cluster.
    #[schemars(with = "Uuid")]
    pub cluster: ClusterId,
    /// This host.
    #[schemars(with = "Uuid")]
    pub host: HostId,
    /// The host's name.
    pub name: String,
    /// The host's address in the cluster, without port.
    pub address: String,
    /// Client URLs of the store.
    pub endpoints: Vec<String>,
}

/// Where the store is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// Client URLs of the store.
    pub endpoints: Vec<String>,
}

/// Whether the hosts that this one knew have said which store is the cluster's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreConfirm {
    /// The trust list by which they know it, at least; none: they have to say it anew.
    pub generation: Option<Decimal>,
}

/// Names a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolPath {
    /// Absolute path of the pool's directory: empty, or not there yet.
    pub path: String,
}

/// Names a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolRef {
    /// The pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
}

/// How a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Its start (protocol.md R10) is under way.
    Starting,
    /// Its lock is still held by I/O of a process that has died (R13).
    WaitingLock,
    /// Replicas of it are served.
    Serving,
    /// Its incarnation is not the store's, or its metadata is damaged: nothing of it is trusted (R10, R24).
    Quarantined,
    /// Its disk failed or its directory is missing.
    Failed,
}

/// How full a pool's file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolRoom {
    /// There is enough.
    Plenty,
    /// At 95 % or above: somebody should make room.
    Low,
    /// At 98 %, and not yet below 97 % again: what may need room is refused, and writes wait.
    Full,
}

/// A pool of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolInfo {
    /// The pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// Its directory.
    pub path: String,
    /// How it is.
    pub state: PoolState,
    /// Why it isn't serving, as a sentence.
    pub reason: Option<String>,
    /// Its incarnation (R10).
    #[schemars(with = "Decimal")]
    pub inc: PoolInc,
    /// Free bytes of its file system.
    pub free: Decimal,
    /// Bytes of its file system.
    pub total: Decimal,
    /// How full it is; plenty while it does not serve.
    pub room: PoolRoom,
    /// Replicas in it.
    pub replicas: u32,
    /// Blocks whose checksum was found not to match since it was started, each counted once until it is written again.
    pub bit_rot: Decimal,
    /// Those of them that were not written again.
    pub bit_rot_left: Decimal,
    /// Why volumes with a copy here can't have snapshots, as a sentence; none if its file system shares blocks, or has
    /// not been tried yet.
    pub no_snapshots: Option<String>,
}

/// The pools of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolList {
    /// In order of their identifiers.
    pub pools: Vec<PoolInfo>,
}

/// Makes a replica durable in a pool of this host, unpromised: empty, or a clone. Idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaCreate {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// Size in bytes.
    pub size: Decimal,
    /// Regions are 2^region_shift bytes.
    pub region_shift: u8,
    /// Its blocks and those of its sidecars are reserved now, and stay its own whatever is trimmed; none: they are not.
    pub thick: Option<bool>,
    /// It has what a snapshot has, whose size and regions are its own, and shares its blocks; none: it is empty.
    pub from: Option<CloneFrom>,
}

/// The snapshot of which a clone is made. A copy in the clone's own pool has it, logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneFrom {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The number of the copy in that pool; none: any that has it.
    #[schemars(with = "Option<u32>")]
    pub rid: Option<Rid>,
    /// Which.
    #[schemars(with = "Uuid")]
    pub snap: SnapId,
}

/// Names a replica of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRef {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
}

/// What became of `replica.trash`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trashed {
    /// True when the replica rests in the trash now.
    pub trashed: bool,
    /// Why not, as a sentence (protocol.md R15).
    pub reason: Option<String>,
}

/// How a replica of this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// No session has asked it to promise yet.
    Fresh,
    /// It obeys the epoch it promised.
    Serving,
    /// Its disk failed; it answers with errors.
    Failed,
    /// Its metadata is not trusted (R24).
    Quarantined,
}

/// A replica of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaInfo {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// Promised epoch.
    #[schemars(with = "Decimal")]
    pub promised: Epoch,
    /// Highest sealed generation.
    pub sealed: Decimal,
    /// Size in bytes.
    pub size: Decimal,
    /// Bytes of the file system that its data takes, without snapshots; none while they are counted.
    pub used: Option<Decimal>,
    /// Its blocks are reserved.
    pub thick: bool,
    /// How it is.
    pub state: ReplicaState,
    /// Promises that it gave without a read of the store, which was away, since it was started.
    pub unverified_promises: Decimal,
}

/// The replicas of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaList {
    /// In order of volume and number.
    pub replicas: Vec<ReplicaInfo>,
}

/// The record that a replica keeps beside its promise (protocol.md 4.15).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeptRecord {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The replica's number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// Promised epoch.
    #[schemars(with = "Decimal")]
    pub promised: Epoch,
    /// The record, or null if the replica never promised.
    pub record: Option<RecordJson>,
    /// Its images of snapshots, the oldest first.
    pub images: Vec<KeptImage>,
    /// Images that it had and has removed: their snapshots' keys are not made again.
    pub gone: Vec<GoneImage>,
}

/// A pool as a repair of the store needs it: its key there may be older than its disk (protocol.md R10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptPool {
    /// The pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// Its directory.
    pub path: String,
    /// The incarnation of its disk; null if that could not be read, or is not this pool's on this host.
    #[schemars(with = "Option<Decimal>")]
    pub inc: Option<PoolInc>,
    /// The incarnation at which this host served it last, as far as its state directory knows: a disk below was put back.
    #[schemars(with = "Decimal")]
    pub served: PoolInc,
    /// Its copies were heard, and this host knows nothing against its disk: what they keep is their latest.
    pub tells: bool,
    /// Why not, as a sentence.
    pub reason: Option<String>,
}

/// The records kept by the replicas of this host: what a lost store is rebuilt from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeptRecords {
    /// In order of volume and number. Also those of pools that don't tell: there may be later ones.
    pub records: Vec<KeptRecord>,
    /// In order of their identifiers.
    pub pools: Vec<KeptPool>,
}

/// Writes rebuilt records to the store (protocol.md R11): each epoch raised by 2^20 unless the store's already is,
/// the owner cleared; the keys of pools; at last the store's incarnation. Repeating it finishes what was begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreRepair {
    /// The store's incarnation after the repair: above every watermark's.
    pub incarnation: Decimal,
    /// The best record of each volume.
    pub records: Vec<RecordJson>,
    /// What each pool's key is raised to, unless it is as high already (R10).
    #[serde(default)]
    pub pools: Vec<RepairPool>,
    /// The snapshots that copies have logged.
    #[serde(default)]
    pub snaps: Vec<RepairSnapshot>,
}

/// A snapshot's key after a repair. One that the store has keeps what it says, but for what goes: that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepairSnapshot {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The image: the same of every copy that has it.
    pub image: KeptImage,
    /// The copies that have logged it.
    pub members: Vec<SnapshotMember>,
}

/// A copy that has an image of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMember {
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// Its host.
    #[schemars(with = "Uuid")]
    pub node: HostId,
    /// Its pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
}

/// A pool's key after a repair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepairPool {
    /// The pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// The host that has it.
    #[schemars(with = "Uuid")]
    pub node: HostId,
    /// Its directory there.
    pub path: String,
    /// The highest incarnation that anybody knows of: a disk below is an old one.
    #[schemars(with = "Decimal")]
    pub inc: PoolInc,
}

/// What a repair wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreRepaired {
    /// Records written.
    pub written: u32,
    /// Records that an earlier run had already written.
    pub kept: u32,
}

/// A replica in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrashItem {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// When it was put there, in seconds since 1970.
    pub since: Decimal,
}

/// The trash of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrashList {
    /// In order of volume and number.
    pub items: Vec<TrashItem>,
}

/// Replicas that came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrashRestored {
    /// Their numbers.
    #[schemars(with = "Vec<u32>")]
    pub rids: Vec<Rid>,
}

/// What to empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrashEmpty {
    /// One volume's replicas, or all.
    #[schemars(with = "Option<Uuid>")]
    pub volume: Option<VolumeId>,
}

/// What was emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrashEmptied {
    /// Replicas removed for good.
    pub removed: u32,
}

/// Makes a volume's record after its replicas are durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// The first record. A present one with the same `created_by` is taken for an earlier try of this request.
    pub record: RecordJson,
}

/// Names a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRef {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
}

/// Marks a volume deleted, if nobody owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeDelete {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Where it has snapshots: its head alone is deleted, and it lives on in them. Else that is refused.
    #[serde(default)]
    pub keep_snapshots: bool,
}

/// Whether the recorded owner may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OpenMode {
    /// Only if nobody owns the volume.
    Closed,
    /// Also if somebody does: the old owner can write nothing afterwards.
    Steal,
}

/// An export over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NbdExport {
    /// Path of the unix socket; null is `nbd/<volume>.sock` in the run directory.
    pub path: Option<String>,
}

/// How a session offers its volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Export {
    /// A unix socket that speaks NBD.
    Nbd(NbdExport),
}

/// Opens a volume here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionOpen {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Whether the recorded owner may be replaced.
    pub mode: OpenMode,
    /// How to offer it; null for none.
    pub export: Option<Export>,
    /// A session without guest: reconciles, resyncs, adds and removes copies of a detached volume, then closes.
    pub caretaker: bool,
    /// The caller asserts that the process of the recorded owner has ended: no wait for its read lease (R9).
    pub old_stopped: bool,
    /// With `steal`: only exactly this owner is replaced, or a caretaker's session (docs/model.md, R33); any other guest's
    /// keeps the volume, and the answer is E-VOL-12. Null: whoever has it.
    #[serde(default)]
    #[schemars(with = "Option<Uuid>")]
    pub expected: Option<SessionId>,
    /// How much its guests may ask for; null for as much as they like. Told of a session that is open already, they
    /// are its limits from then on.
    pub limits: Option<VolumeLimits>,
}

/// How much the guests of a volume may ask for, all together. At least one of the two rates is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeLimits {
    /// Requests a second, from 1 to 1,000,000,000: reads, writes, trims and zeroes. Flushes are free.
    pub iops: Option<u32>,
    /// Bytes a second, read and written together, from 4 KiB to 1 PiB. Trims and zeroes have none.
    pub bps: Option<Decimal>,
    /// So many seconds of each rate may be saved up while little is asked for, and then be used at once: 0 to 60.
    pub burst_s: u32,
}

/// Changes the limits of a volume that is open here, at once: also for requests that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionLimit {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its limits from now on; null for none.
    pub limits: Option<VolumeLimits>,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionOpened {
    /// The session.
    #[schemars(with = "Uuid")]
    pub session: SessionId,
    /// The session that began this ownership, which may be this one (docs/model.md, R32). The export answers to its name, too.
    #[schemars(with = "Uuid")]
    pub first: SessionId,
    /// Its epoch.
    #[schemars(with = "Decimal")]
    pub epoch: Epoch,
    /// The export's socket.
    pub path: Option<String>,
}

/// Opens a volume here again, or tells of the session that is open, for somebody who has requests of a guest that were not
/// answered: only while the ownership that this session began, or was part of, goes on (docs/model.md, R32). Refused for
/// good with E-VOL-21: somebody else has owned the volume since. Every other refusal passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionContinue {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The session that began the ownership, or the one that has it now.
    #[schemars(with = "Uuid")]
    pub session: SessionId,
    /// How to offer it.
    pub export: Export,
}

/// Takes the ownership of a volume from a host. Only after the store refuses that host: else it takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeFence {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// From whom.
    #[schemars(with = "Uuid")]
    pub host: HostId,
}

/// A volume that the host does not own any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeFenced {
    /// The volume's epoch now.
    #[schemars(with = "Decimal")]
    pub epoch: Epoch,
    /// The host owned it until now. False: it did not.
    pub fenced: bool,
}

/// Changes a volume's size through its session here, a guest's or a caretaker's: larger at any time, smaller only in a
/// caretaker's. Answered when every in-sync copy durably holds the record with the new size (protocol.md R25). Idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its size to come, in bytes: whole 4 KiB blocks, at most 64 TiB.
    pub size: Decimal,
    /// A smaller size is meant: what lies beyond it is lost.
    pub lose: bool,
}

/// A volume's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeResized {
    /// In bytes.
    pub size: Decimal,
    /// The epoch of the session that has it.
    #[schemars(with = "Decimal")]
    pub epoch: Epoch,
}

/// Takes a volume back to one of its snapshots, in place, through a caretaker's session here: what was written since is lost,
/// unless a later snapshot has it. Answered when it is done and every in-sync copy holds a record that says so, however long
/// that takes; once the record says that it is under way, whoever opens the volume finishes it before anything else. Asked
/// for while it is under way it is answered with that; afterwards it is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRevert {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot, which has the volume's size.
    #[schemars(with = "Uuid")]
    pub snapshot: SnapId,
}

/// A volume that was taken back to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeReverted {
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub snapshot: SnapId,
    /// The epoch of the session that has done it.
    #[schemars(with = "Decimal")]
    pub epoch: Epoch,
    /// Bytes that were not as the snapshot has them, and were written.
    pub bytes: Decimal,
}

/// A volume that is being taken back to a snapshot. Guests' requests wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevertStatus {
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub snapshot: SnapId,
    /// Bytes that have to be compared; null while it is not known which.
    pub total_bytes: Option<Decimal>,
    /// Those of them that are as the snapshot has them.
    pub done_bytes: Decimal,
    /// What it waits for, if it can't go on.
    pub waits: Option<String>,
}

/// Changes what is wanted of a volume through its session here, a guest's or a caretaker's. No write completes under it
/// before every in-sync copy holds the record that says so (protocol.md R25). Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumePolicy {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Copies, 1 to 8.
    pub copies: u8,
    /// Fewest in-sync copies under which writes complete, 1 to `copies`; not raised above those that are in sync.
    pub min_isr: u8,
    /// What copies must not share: `host`, `rack` or `site`.
    pub spread: String,
}

/// Closes the session of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionClose {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Drop writes that can't complete instead of refusing.
    pub abandon: bool,
}

/// A closed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionClosed {
    /// Writes of the guest that were never acknowledged and are dropped now.
    pub lost_writes: u32,
}

/// Lays a layer over another volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionLay {
    /// The layer.
    #[schemars(with = "Uuid")]
    pub from: VolumeId,
    /// The volume below, at least as large.
    #[schemars(with = "Uuid")]
    pub onto: VolumeId,
}

/// What was written to the volume below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionLaid {
    /// Bytes of data.
    pub data_bytes: Decimal,
    /// Bytes of zeroes.
    pub zero_bytes: Decimal,
}

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionPhase {
    /// Steps 1 to 5 of protocol.md 4.11.
    Opening,
    /// Guest I/O flows.
    Serving,
    /// Guest I/O waits.
    Paused,
    /// Draining and sealing.
    Closing,
    /// Closed, fenced or stopped.
    Ended,
}

/// A replica as its session sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberStatus {
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// Its host.
    #[schemars(with = "Uuid")]
    pub node: HostId,
    /// The record's word for it: `INSYNC`, `STALE`, `JOINING`, `REMOVING`, `QUARANTINED`.
    pub state: String,
    /// The member as one line.
    pub line: String,
    /// Writes that it acknowledged.
    pub acked: Decimal,
    /// Writes that were sent to it.
    pub sent: Decimal,
}

/// A copy to a replica that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResyncStatus {
    /// The joiner.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// Bytes copied or found equal.
    pub copied_bytes: Decimal,
    /// Bytes to look at in all.
    pub total_bytes: Decimal,
    /// Bytes that crossed the network as data.
    pub sent_bytes: Decimal,
    /// Since when, in milliseconds.
    pub age_ms: Decimal,
}

/// How long things took. The bounds are the same for everything and for ever: 16 µs, four to each doubling, up to
/// 67,108,864 µs (67 s); those with nothing in them are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// Bounds in microseconds, ascending: an entry counts what took longer than the bound before it (of all bounds,
    /// not of those told here), and at most this.
    pub le_us: Vec<u32>,
    /// How many, one for each bound.
    pub counts: Vec<Decimal>,
    /// How many in all: those above the last bound of all are counted here only.
    pub count: Decimal,
    /// Together, in microseconds.
    pub sum_us: Decimal,
}

/// What guests waited for. A request begins when all of it has arrived and ends when its answer is on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestWaits {
    /// Reads that succeeded, as the guest saw them: what the volume's limits made them wait is in it.
    pub reads: Histogram,
    /// Writes that succeeded, as the guest saw them; no trims, zeroes or flushes.
    pub writes: Histogram,
    /// Stalls: requests of every kind that the guest waited 100 ms or longer for, by how long. What the volume's limits
    /// made them wait is not in it.
    pub stalls: Histogram,
    /// Requests that waited for the volume's limits, by how long. Trims and zeroes may have waited although it has none:
    /// while others read and write, they get 2 GiB a second.
    pub limited: Histogram,
    /// The longest time without any answer while there was something to answer, in milliseconds; also one that goes on
    /// now, whose requests no histogram has yet.
    pub gap_ms_max: Decimal,
}

/// Counters of a session since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionFigures {
    /// Reads completed.
    pub reads: Decimal,
    /// Writes, trims and zeroes completed.
    pub writes: Decimal,
    /// Trims and zeroes completed.
    pub trims: Decimal,
    /// Bytes that guests asked to read.
    pub read_bytes: Decimal,
    /// Bytes that guests wrote.
    pub written_bytes: Decimal,
    /// The longest time that a guest's request waited, in milliseconds.
    pub stall_ms_max: Decimal,
    /// Bytes sent by resyncs.
    pub resynced_bytes: Decimal,
    /// Bytes that had changed while their targets were away.
    pub changed_bytes: Decimal,
    /// Bytes compared by their hashes.
    pub hashed_bytes: Decimal,
    /// Bytes made equal after an open (protocol.md R5).
    pub reconciled_bytes: Decimal,
    /// Requests that failed because another session owns the volume.
    pub fenced_writes: Decimal,
    /// What guests waited for.
    pub waits: GuestWaits,
    /// Bytes whose copies scrubs have compared.
    pub scrubbed_bytes: Decimal,
    /// Blocks that a copy could not give, to a guest or to a scrub; each copy counts.
    pub rotten_blocks: Decimal,
    /// Those of them that were written again from another copy.
    pub repaired_blocks: Decimal,
    /// Blocks whose copies are all valid, and differ: which is right nobody knows, and none was written.
    pub divergent_blocks: Decimal,
    /// Blocks that no in-sync copy could give.
    pub lost_blocks: Decimal,
}

/// Compares the copies of a volume once, and mends what one of them can't give any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScrubStart {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// At most so many bytes of the volume a second, of which each copy reads as many; null: as fast as it goes.
    pub rate: Option<Decimal>,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// It goes on, or waits until every in-sync copy can be asked.
    Running,
    /// Everything was looked at.
    Done,
    /// It was stopped, or its session ended.
    Stopped,
}

/// A scrub of a volume: the one under way, or the last one of this session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScrubStatus {
    /// How far it is.
    pub state: ScrubState,
    /// Its bandwidth cap, in bytes of the volume a second.
    pub rate: Option<Decimal>,
    /// When it began, in milliseconds since 1970.
    pub started: Decimal,
    /// When it ended.
    pub ended: Option<Decimal>,
    /// Bytes of the volume that were looked at.
    pub done_bytes: Decimal,
    /// Bytes of the volume.
    pub total_bytes: Decimal,
    /// Bytes whose copies were compared: those that hold data.
    pub compared_bytes: Decimal,
    /// Blocks that a copy could not give; each copy counts.
    pub rotten: Decimal,
    /// Those of them that were written again from another copy.
    pub repaired: Decimal,
    /// Blocks whose copies are all valid, and differ: none was written.
    pub divergent: Decimal,
    /// Blocks that no in-sync copy could give.
    pub lost: Decimal,
    /// What was found on which copy, in order; copies without a finding are left out.
    pub members: Vec<ScrubbedMember>,
}

/// What a scrub found on a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScrubbedMember {
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// Blocks that it could not give.
    pub rotten: Decimal,
    /// Those of them that it was given again.
    pub repaired: Decimal,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStatus {
    /// Its volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The session.
    #[schemars(with = "Uuid")]
    pub session: SessionId,
    /// True when it has no guest.
    pub caretaker: bool,
    /// Where it is in its life.
    pub phase: SessionPhase,
    /// Its epoch.
    #[schemars(with = "Decimal")]
    pub epoch: Epoch,
    /// Its record's revision.
    #[schemars(with = "Decimal")]
    pub rev: Rev,
    /// Why guest I/O waits, or why the session ended, as a sentence.
    pub paused_reason: Option<String>,
    /// The export's socket.
    pub path: Option<String>,
    /// Connections to the export.
    pub clients: u32,
    /// Connections since it is offered, those that have gone among them.
    pub clients_seen: u32,
    /// Its replicas.
    pub members: Vec<MemberStatus>,
    /// The copy under way.
    pub resync: Option<ResyncStatus>,
    /// The revert under way: its record says so, whoever began it.
    pub reverting: Option<RevertStatus>,
    /// Its limits; null for none.
    pub limits: Option<VolumeLimits>,
    /// Requests that wait for them now, or for that of trims and zeroes.
    pub held: u32,
    /// The scrub under way, or the last one.
    pub scrub: Option<ScrubStatus>,
    /// Its counters.
    pub figures: SessionFigures,
}

/// The sessions of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionList {
    /// In order of volume.
    pub sessions: Vec<SessionStatus>,
}

/// Adds a copy: the owner or caretaker here names it in the record as stale with base 0 and joins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaAdd {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its number: the record's `next_rid`.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// On which host.
    #[schemars(with = "Uuid")]
    pub node: HostId,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
}

/// Removes a copy: refused if it would leave fewer in-sync copies than the volume's `min_isr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRemove {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its number.
    #[schemars(with = "u32")]
    pub rid: Rid,
}

/// How far this host has seen the store advance (protocol.md R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatermarkInfo {
    /// The store's cluster.
    #[schemars(with = "Uuid")]
    pub cluster: ClusterId,
    /// The store's incarnation.
    pub incarnation: Decimal,
    /// The store's revision.
    pub revision: Decimal,
}

/// The store as this host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreStatus {
    /// The last call succeeded.
    pub reachable: bool,
    /// For how long it has been so, in milliseconds.
    pub since_ms: Decimal,
    /// What the last failed call said.
    pub last_error: Option<String>,
    /// True when the store has gone back behind the watermark: nothing opens, nothing is trashed.
    pub rolled_back: bool,
    /// The watermark, once there is one.
    pub watermark: Option<WatermarkInfo>,
    /// Other hosts that say they have seen more: while there are any, nothing opens here.
    pub claims: Vec<StoreClaim>,
}

/// How far another host says that it has seen the store, above what this one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreClaim {
    /// Which host.
    #[schemars(with = "Uuid")]
    pub host: HostId,
    /// The store's incarnation.
    pub incarnation: Decimal,
    /// Its revision.
    pub revision: Decimal,
}

/// How hosts speak to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransportKind {
    /// TLS 1.3, everything encrypted.
    Tls,
    /// The same handshake, then clear frames with a MAC.
    Auth,
    /// Nothing.
    Clear,
}

/// The identity in use after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityReloaded {
    /// Whose certificate it is: this host's.
    #[schemars(with = "Uuid")]
    pub host: HostId,
    /// The last second at which it is valid, in seconds since 1970.
    pub not_after: Decimal,
    /// The trust list in force.
    pub generation: Decimal,
}

/// Who this host is, and by which list it judges others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityShown {
    /// This host.
    #[schemars(with = "Uuid")]
    pub host: HostId,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER), in lower-case hex.
    pub key: String,
    /// The last second at which its certificate is valid, in seconds since 1970.
    pub not_after: Decimal,
    /// The trust list in force.
    pub generation: Decimal,
    /// That list is on this host's disk.
    pub durable: bool,
    /// How the list says that hosts speak to each other.
    pub transport: TransportKind,
    /// Hosts that are proven now, once per connection, in order of host.
    pub peers: Vec<PeerShown>,
    /// What is wrong with the list that the store has.
    pub findings: Vec<Finding>,
}

/// A connection whose peer is proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerShown {
    /// Who it is.
    #[schemars(with = "Uuid")]
    pub host: HostId,
    /// How it is spoken to.
    pub mode: TransportKind,
    /// The last second at which the certificate that it showed is valid, in seconds since 1970.
    pub not_after: Decimal,
    /// The authority that signed it: SHA-256 of its public key, in lower-case hex.
    pub by: String,
    /// It called us; else we called it.
    pub called: bool,
}

/// A peer was refused, or has refused this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerRefused {
    /// Its address.
    pub address: String,
    /// Who it is, or says that it is.
    #[schemars(with = "Option<Uuid>")]
    pub host: Option<HostId>,
    /// A code of docs/errors.md.
    pub code: String,
    /// A sentence for a person.
    pub reason: String,
    /// The facts of the sentence: both times, where a clock decided.
    pub facts: Facts,
    /// How many refusals before this one were not told of, because there were too many.
    pub unsaid: u32,
}

/// Another trust list is in force, and durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrustChanged {
    /// Its generation.
    pub generation: Decimal,
}

/// How the connection to another host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Under way.
    Connecting,
    /// Both sides have said hello.
    Connected,
    /// The host answers, its daemon doesn't listen.
    Refused,
    /// Nothing answers.
    Silent,
    /// The other side is of another cluster, host or version.
    Mismatch,
}

/// The connection to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkInfo {
    /// The other host.
    #[schemars(with = "Uuid")]
    pub host: HostId,
    /// Its address and port.
    pub address: String,
    /// How it is.
    pub state: LinkState,
    /// For how long, in milliseconds.
    pub since_ms: Decimal,
    /// What was wrong, as a sentence.
    pub reason: Option<String>,
    /// The sentence's code of docs/errors.md.
    pub code: Option<String>,
}

/// One finding about a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// A code of docs/errors.md.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
    /// The facts of the sentence.
    pub facts: Facts,
}

/// Everything this host knows of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its record as last read from the store, or null.
    pub record: Option<RecordJson>,
    /// Its session here.
    pub session: Option<SessionStatus>,
    /// Its replicas here.
    pub replicas: Vec<ReplicaInfo>,
    /// The pools of those replicas.
    pub pools: Vec<PoolInfo>,
    /// The links to its members' hosts.
    pub links: Vec<LinkInfo>,
    /// The store.
    pub store: StoreStatus,
    /// What follows from all that, the gravest first.
    pub findings: Vec<Finding>,
}

/// The links of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkList {
    /// In order of host.
    pub links: Vec<LinkInfo>,
}

/// What a client that sent `events` is told, in order. A client that doesn't read is dropped, and asks anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", content = "data")]
#[schemars(rename = "DaemonEvent")]
pub enum Event {
    /// A session changed its phase, epoch, members or resync, or its scrub began or ended.
    #[serde(rename = "session.changed")]
    Session(SessionStatus),
    /// A pool changed its state.
    #[serde(rename = "pool.changed")]
    Pool(PoolInfo),
    /// The store was lost or came back.
    #[serde(rename = "store.changed")]
    Store(StoreStatus),
    /// Another trust list is in force: a host was added or revoked, or an authority changed.
    #[serde(rename = "trust.changed")]
    Trust(TrustChanged),
    /// A peer was refused, or has refused this host.
    #[serde(rename = "peer.refused")]
    PeerRefused(PeerRefused),
}
