//! Snapshots: what is asked about them and answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_proto::ids::{Epoch, Generation, GroupId, PoolId, Rid, SnapId, VolumeId};

use super::{Decimal, Export, Uuid};

/// Takes a snapshot of a volume through its session here, a guest's or a caretaker's. Answered when every copy that is in
/// sync has logged it (R27); repeated with the same identifier, it is answered as then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot: whoever asks makes it up, and never uses it again for another one.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// Its name, of which the volume has no other: 1 to 63 characters `a-z 0-9 . _ -`, the first one a letter or digit.
    pub name: String,
    /// Who asked, as people or programs call themselves: at most 128 bytes.
    pub created_by: String,
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotCreated {
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// The interval that it ends.
    #[schemars(with = "Decimal")]
    pub generation: Generation,
    /// The copies that have it.
    #[schemars(with = "Vec<u32>")]
    pub members: Vec<Rid>,
    /// When it was taken, in milliseconds since 1970.
    pub created: Decimal,
    /// How long the guest's writes were held, in milliseconds. 0 if it was there already.
    pub held_ms: Decimal,
}

/// Takes snapshots of several volumes at one moment, through their sessions, which are all here: of each volume, or of none.
/// What was answered before is in them, whichever volume it was written to, and nothing that was asked for after that answer.
/// Answered as [`SnapshotCreate`] is, and repeated with the same identifiers in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreateGroup {
    /// The group: whoever asks makes it up, and never uses it again for another one.
    #[schemars(with = "Uuid")]
    pub group: GroupId,
    /// The name of each of its snapshots.
    pub name: String,
    /// Who asked, as people or programs call themselves: at most 128 bytes.
    pub created_by: String,
    /// Of which volumes, at most 30, each once, and how the snapshot of each is called.
    pub volumes: Vec<SnapshotRef>,
}

/// One of a group of snapshots that were taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotOfGroup {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// The interval that it ends.
    #[schemars(with = "Decimal")]
    pub generation: Generation,
    /// The copies that have it.
    #[schemars(with = "Vec<u32>")]
    pub members: Vec<Rid>,
}

/// Snapshots of several volumes that were taken at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotGroup {
    /// The group.
    #[schemars(with = "Uuid")]
    pub group: GroupId,
    /// When they were taken, in milliseconds since 1970.
    pub created: Decimal,
    /// How long the guest's writes were held, at most, in milliseconds. 0 if they were there already.
    pub held_ms: Decimal,
    /// In the order in which they were asked for.
    pub snapshots: Vec<SnapshotOfGroup>,
}

/// Names a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
}

/// A protected snapshot can't be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotProtect {
    /// Of which volume; it is open here.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// From now on.
    pub protected: bool,
}

/// Gives a snapshot another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRename {
    /// Of which volume; it is open here.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// Its name from now on.
    pub name: String,
}

/// Brings a snapshot to a copy on this host that lacks it, since it was away when the snapshot was taken, or came later. Begun,
/// it goes on by itself; asked again, it is told how far it is. One at a time on a host. Why it came to nothing is told once, to
/// whoever asks next; after that it is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFetch {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// The copy's number.
    #[schemars(with = "u32")]
    pub rid: Rid,
}

/// How far a snapshot is that is brought to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FetchState {
    /// On its way.
    Running,
    /// The copy has all of it, durably.
    Done,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotFetched {
    /// On its way or there.
    pub state: FetchState,
    /// Below this byte everything is there.
    pub done_bytes: Decimal,
    /// The snapshot's size in bytes.
    pub total_bytes: Decimal,
    /// So many bytes are the same as the copy's own now, and take no room. 0 if it was there already.
    pub shared_bytes: Decimal,
}

/// Puts a copy that has all of a snapshot on its list, from which on it counts as one that has it. Done if it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotAddCopy {
    /// Of which volume; it is open here.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// The copy's number.
    #[schemars(with = "u32")]
    pub rid: Rid,
}

/// Offers a snapshot for reading on this host, wherever its volume is open. Repeated, it is answered again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOpen {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// How to offer it. A path of null is `nbd/<snapshot>.sock` in the run directory.
    pub export: Export,
}

/// A snapshot that can be read here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotOpened {
    /// The export's socket.
    pub path: String,
}

/// A snapshot that is offered for reading on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenSnapshot {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// The export's socket.
    pub path: String,
    /// Connections to it.
    pub clients: u32,
}

/// The snapshots that are offered for reading on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenSnapshotList {
    /// In order of their identifiers.
    pub snapshots: Vec<OpenSnapshot>,
}

/// What differs between two snapshots of a volume, in a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotChanged {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The snapshot, whose size it is that counts.
    #[schemars(with = "Uuid")]
    pub id: SnapId,
    /// The one that it is compared with: past its end it counts as never written.
    #[schemars(with = "Uuid")]
    pub since: SnapId,
    /// Where to begin, in bytes: a multiple of 65,536, below the snapshot's size.
    pub offset: Decimal,
    /// How much, in bytes, at least 1; the answer may be of less.
    pub len: Decimal,
}

/// What differs between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedBlocks {
    /// Bytes for each bit.
    pub grain: u32,
    /// What is told as different is; else it may only be so. What is not told as different never is.
    pub exact: bool,
    /// Where it begins, in bytes.
    pub offset: Decimal,
    /// Of how many bytes it tells: for more, it is asked again from where this ends.
    pub len: Decimal,
    /// In base64: one bit for each grain, the highest of each byte first; set: it differs.
    pub bitmap: String,
}

/// How far a copy's image of a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// Taken; whether its snapshot stands in the store was not logged yet.
    Prepared,
    /// Its snapshot stands in the store.
    Ready,
    /// It goes.
    Deleting,
    /// Its data was destroyed, or is about to go for good: hashes of it are kept.
    Destroyed,
}

/// What a copy on this host has of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageInfo {
    /// Of which volume.
    #[schemars(with = "Uuid")]
    pub volume: VolumeId,
    /// The copy's number.
    #[schemars(with = "u32")]
    pub rid: Rid,
    /// In which pool.
    #[schemars(with = "Uuid")]
    pub pool: PoolId,
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub snap: SnapId,
    /// How far it is.
    pub state: ImageState,
    /// It needs nothing of the copy any more.
    pub whole: bool,
    /// The copy got it from others, and did not take it itself.
    pub copied: bool,
    /// Its data is gone for good, and nothing but hashes of it is left.
    pub destroyed: bool,
    /// Bytes of those regions that are in files of its own: others read them elsewhere, and so does it what it lacks. Holes in
    /// them and blocks that are shared with the volume count, too; hashes of data that was destroyed don't.
    pub own_bytes: Decimal,
    /// In so many of its regions something could not be read since weftd started; 0: nothing is known of damage.
    pub damaged: Decimal,
}

/// What the copies on this host have of snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageList {
    /// In order of volume and number, the oldest first.
    pub images: Vec<ImageInfo>,
}

/// What a copy keeps beside an image so that its snapshot can be named again (protocol.md R15).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotNote {
    /// The snapshot's name when it was taken.
    pub name: String,
    /// When that was, in milliseconds since 1970.
    pub created: Decimal,
    /// Who asked.
    pub created_by: String,
    /// With which group it was taken.
    #[schemars(with = "Option<Uuid>")]
    pub group: Option<GroupId>,
}

/// An image as a repair of the store needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptImage {
    /// The snapshot.
    #[schemars(with = "Uuid")]
    pub snap: SnapId,
    /// How far it is.
    pub state: ImageState,
    /// Which attempt at it this is.
    pub attempt: Decimal,
    /// The interval that it ends.
    #[schemars(with = "Decimal")]
    pub generation: Generation,
    /// The owner's epoch when it was taken.
    #[schemars(with = "Decimal")]
    pub epoch: Epoch,
    /// The store's incarnation then.
    pub incarnation: Decimal,
    /// Size in bytes.
    pub size: Decimal,
    /// Regions were 2^region_shift bytes.
    pub region_shift: u8,
    /// Null before its snapshot was logged.
    pub note: Option<SnapshotNote>,
}

/// An image that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GoneImage {
    /// Of which snapshot.
    #[schemars(with = "Uuid")]
    pub snap: SnapId,
    /// Of which attempt at it: a later one has another image.
    pub attempt: Decimal,
}
