//! The control socket of `weft-holder`: its methods, parameters and answers, one JSON object per line as on weftd's.
//!
//! Must always hold: a method's name never changes; the list here is the only one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_proto::ids::{SessionId, SnapId, VolumeId};

use crate::methods::{BadCommand, Method, methods};
use crate::types::{Decimal, Nothing, Uuid};

methods! {
    /// Who answers.
    "hello" Hello(Nothing) -> HolderHello;
    /// Offers a volume or a snapshot to a guest, whose requests are held until they are answered; idempotent.
    "open" Open(HolderOpen) -> HolderOpened;
    /// Ends that: its client's connection is cut, and what is not answered is never asked again. Done nothing if it is not there.
    "close" Close(HolderRef) -> Nothing;
    /// What is offered here.
    "list" List(Nothing) -> HolderList;
    /// Sends nothing more to weftd, and answers when it has answered all it was sent.
    "pause" Pause(HolderRef) -> Nothing;
    /// Goes on after that; done nothing if it is not paused.
    "resume" Resume(HolderRef) -> Nothing;
    /// Which size the next client is told. Unless this says otherwise every client is told what the first was: a tapdisk that is
    /// paused and opens anew refuses another one.
    "tell_size" TellSize(HolderTellSize) -> Nothing;
    /// Clients are told this size from now on: what the guest knows that a holder before this one had.
    "keep_size" KeepSize(HolderKeepSize) -> Nothing;
    /// Makes a kernel nbd device on a volume or a snapshot, and gives it a new socket whenever weftd is new; idempotent.
    "device.open" OpenDevice(DeviceOpen) -> DeviceOpened;
    /// Disconnects it: what is not answered fails, and is never asked again. Done nothing if it is not there.
    "device.close" CloseDevice(HolderRef) -> Nothing;
    /// The kernel's devices that are of this.
    "device.list" ListDevices(Nothing) -> DeviceList;
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HolderHello {
    /// The holder's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Random per process: tells a restarted holder, which holds nothing, from the one before.
    pub incarnation: Decimal,
}

/// Offers what is open here to one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HolderOpen {
    /// Its name here: 1 to 200 bytes.
    pub id: String,
    /// The unix socket to offer it on, an absolute path of at most 107 bytes. The parent directory is made.
    pub listen: String,
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its session, as weftd has told of it; null for a snapshot.
    #[schemars(with = "Option<Uuid>")]
    pub session: Option<SessionId>,
    /// The snapshot; null for a volume.
    #[schemars(with = "Option<Uuid>")]
    pub snapshot: Option<SnapId>,
    /// May the guest write? Never to a snapshot.
    pub writable: bool,
}

/// It is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HolderOpened {
    /// The session that began the ownership (docs/model.md, R32); null for a snapshot.
    #[schemars(with = "Option<Uuid>")]
    pub first: Option<SessionId>,
}

/// One of what is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HolderRef {
    /// Its name.
    pub id: String,
}

/// Of which size the next client is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HolderTellSize {
    /// Its name.
    pub id: String,
    /// Which.
    pub size: HolderSize,
}

/// The size that clients are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HolderKeepSize {
    /// Its name.
    pub id: String,
    /// In bytes.
    pub bytes: Decimal,
}

/// A volume's size, as clients of an entry are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HolderSize {
    /// What weftd says when the client comes. What clients were told until now is kept aside.
    Now,
    /// What was told before that, also where a client was told another one since; done nothing where there is none.
    Before,
}

/// What is offered, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HolderEntry {
    /// Its name.
    pub id: String,
    /// Its socket.
    pub listen: String,
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The session that began the ownership; null for a snapshot.
    #[schemars(with = "Option<Uuid>")]
    pub first: Option<SessionId>,
    /// The snapshot; null for a volume.
    #[schemars(with = "Option<Uuid>")]
    pub snapshot: Option<SnapId>,
    /// May the guest write?
    pub writable: bool,
    /// Has a client its socket open?
    pub connected: bool,
    /// That client's process; null when it is gone, or can't be known.
    pub client_pid: Option<u32>,
    /// Requests of it that are not answered.
    pub unanswered: u32,
    /// Bytes of theirs.
    pub held_bytes: Decimal,
    /// For how long weftd has been away while a client was here, in milliseconds; null while it is not.
    pub away_ms: Option<Decimal>,
    /// What it waits for then, as a sentence; null while it doesn't.
    pub waits_for: Option<String>,
    /// Why its guest was told ESHUTDOWN, as a sentence; null while it was not. Close it, and open it anew.
    pub lost: Option<String>,
    /// The size that its last client was told, in bytes; null while none was told one.
    pub told_size: Option<Decimal>,
    /// Nothing is sent to weftd, as asked.
    pub paused: bool,
    /// Requests that were sent to weftd once more, since it is offered.
    pub replayed: Decimal,
}

/// What is offered here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HolderList {
    /// In order of their names.
    pub entries: Vec<HolderEntry>,
}

/// Makes a kernel nbd device on what is open here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceOpen {
    /// Its name here: 1 to 64 letters, digits and hyphens.
    pub id: String,
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// Its session, as weftd has told of it; null for a snapshot.
    #[schemars(with = "Option<Uuid>")]
    pub session: Option<SessionId>,
    /// The snapshot; null for a volume.
    #[schemars(with = "Option<Uuid>")]
    pub snapshot: Option<SnapId>,
    /// May it be written? Never a snapshot.
    pub writable: bool,
}

/// It is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceOpened {
    /// The session that began the ownership (docs/model.md, R32); null for a snapshot.
    #[schemars(with = "Option<Uuid>")]
    pub first: Option<SessionId>,
    /// Its path.
    pub device: String,
}

/// A kernel nbd device, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceEntry {
    /// Its name.
    pub id: String,
    /// Its path.
    pub device: String,
    /// The volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The session that began the ownership; null for a snapshot.
    #[schemars(with = "Option<Uuid>")]
    pub first: Option<SessionId>,
    /// The snapshot; null for a volume.
    #[schemars(with = "Option<Uuid>")]
    pub snapshot: Option<SnapId>,
    /// May it be written?
    pub writable: bool,
    /// In bytes.
    pub size: Decimal,
    /// For how long it has been without a connection to weftd, in milliseconds, as far as is known; null while it has one.
    pub away_ms: Option<Decimal>,
    /// What it waits for then, as a sentence; null while it doesn't.
    pub waits_for: Option<String>,
    /// Why it was disconnected, as a sentence; null while it was not. Close it, and open it anew.
    pub lost: Option<String>,
    /// How often it was given a new connection, since this holder runs.
    pub reconnected: Decimal,
}

/// The kernel's devices that are of this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceList {
    /// In order of their names.
    pub devices: Vec<DeviceEntry>,
}
