//! The methods of the control socket: name, parameters, answer.
//!
//! Must always hold: a method's name never changes; the list here is the only one.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::types as t;

/// Why a method and its parameters are no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadCommand {
    /// No method of that name; `near` is the closest one.
    NoMethod {
        /// What was asked for.
        method: String,
        /// The closest name.
        near: &'static str,
    },
    /// The parameters are not the method's.
    Params {
        /// The method.
        method: &'static str,
        /// What is wrong with them, and where.
        wrong: String,
    },
}

/// One method: what ties its name, parameters and answer together.
pub trait Method {
    /// Its name.
    const NAME: &'static str;
    /// What it takes.
    type Params: Serialize + DeserializeOwned + schemars::JsonSchema;
    /// What it answers.
    type Answer: Serialize + DeserializeOwned + schemars::JsonSchema;
}

/// The methods of one socket: a `Command` of each, and what ties each to its answer.
macro_rules! methods {
    ($($(#[doc = $doc:literal])+ $name:literal $variant:ident($params:ty) -> $answer:ty;)+) => {
        /// A command of a client, parsed.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Command {
            $($(#[doc = $doc])+ $variant($params),)+
        }

        impl Command {
            /// Every method's name, in the order of this file.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The command's method.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Command::$variant(_) => $name,)+ }
            }

            /// Finds the method and parses its parameters; absent parameters are `{}`.
            pub fn parse(method: &str, params: Option<Value>) -> Result<Command, BadCommand> {
                let params = params.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
                match method {
                    $($name => $crate::methods::parse_params($name, params).map(Command::$variant),)+
                    _ => Err(BadCommand::NoMethod { method: method.chars().take(64).collect(), near: $crate::methods::nearest(Self::NAMES, method) }),
                }
            }
        }

        /// The methods as types, to tie an answer to its command.
        pub mod method {
            use super::*;
            $(
                $(#[doc = $doc])+
                #[derive(Clone, Copy, Debug)]
                pub struct $variant;
                impl Method for $variant {
                    const NAME: &'static str = $name;
                    type Params = $params;
                    type Answer = $answer;
                }
            )+
        }

        /// Calls `visit` with each method's name, sentence and the schemas of its parameters and answer.
        pub(crate) fn each_method(
            generator: &mut schemars::SchemaGenerator,
            mut visit: impl FnMut(&'static str, String, schemars::Schema, schemars::Schema),
        ) {
            $(
                let params = generator.subschema_for::<$params>();
                let answer = generator.subschema_for::<$answer>();
                visit($name, [$($doc),+].map(str::trim).join(" "), params, answer);
            )+
        }
    };
}

pub(crate) use methods;

methods! {
    /// Who answers.
    "hello" Hello(t::Nothing) -> t::Hello;
    /// Makes the daemon part of a cluster; idempotent.
    "configure" Configure(t::Configure) -> t::Nothing;
    /// Tells where the store is now.
    "store.endpoints" StoreEndpoints(t::Endpoints) -> t::Nothing;
    /// Whether the store may be asked: a daemon that proves who it is asks nothing before it hears so.
    "store.confirm" StoreConfirm(t::StoreConfirm) -> t::Nothing;
    /// How the store looks from here.
    "store.show" StoreShow(t::Nothing) -> t::StoreStatus;
    /// Reads the identity directory again, after a renewal: from now on that certificate is shown.
    "identity.reload" IdentityReload(t::Nothing) -> t::IdentityReloaded;
    /// Who this host is, and by which list it judges others.
    "identity.show" IdentityShow(t::Nothing) -> t::IdentityShown;
    /// Writes rebuilt records to a store that was lost or restored (protocol.md R11).
    "store.repair_apply" StoreRepairApply(t::StoreRepair) -> t::StoreRepaired;
    /// Makes a pool in an empty or new directory.
    "pool.create" PoolCreate(t::PoolPath) -> t::PoolInfo;
    /// The pools of this host.
    "pool.list" PoolList(t::Nothing) -> t::PoolList;
    /// Forgets a pool; refused while replicas live there.
    "pool.remove" PoolRemove(t::PoolRef) -> t::Nothing;
    /// Makes a replica durable; idempotent.
    "replica.create" ReplicaCreate(t::ReplicaCreate) -> t::Nothing;
    /// Moves a replica to the trash if the store says so (protocol.md R15).
    "replica.trash" ReplicaTrash(t::ReplicaRef) -> t::Trashed;
    /// The replicas of this host.
    "replica.list" ReplicaList(t::Nothing) -> t::ReplicaList;
    /// The records that the replicas of this host keep.
    "replica.records" ReplicaRecords(t::Nothing) -> t::KeptRecords;
    /// Names a new copy in the volume's record and joins it.
    "replica.add" ReplicaAdd(t::ReplicaAdd) -> t::Nothing;
    /// Takes a copy out of the volume's record.
    "replica.remove" ReplicaRemove(t::ReplicaRemove) -> t::Nothing;
    /// The replicas in the trash of this host.
    "trash.list" TrashList(t::Nothing) -> t::TrashList;
    /// Takes a volume's replicas out of the trash of this host.
    "trash.restore" TrashRestore(t::VolumeRef) -> t::TrashRestored;
    /// Removes replicas in the trash for good.
    "trash.empty" TrashEmpty(t::TrashEmpty) -> t::TrashEmptied;
    /// Makes a volume's record; idempotent by its `created_by`.
    "volume.create" VolumeCreate(t::VolumeCreate) -> t::Nothing;
    /// Marks a volume deleted, or its head alone, if nobody owns it.
    "volume.delete" VolumeDelete(t::VolumeDelete) -> t::Nothing;
    /// Takes the mark away again; not of a head of which something is gone.
    "volume.restore" VolumeRestore(t::VolumeRef) -> t::Nothing;
    /// Makes a layer of a volume that nobody has opened yet: what is written to it, by sectors, is to be laid over another one.
    "volume.layer" VolumeLayer(t::VolumeRef) -> t::Nothing;
    /// Takes the ownership of a volume from a host that was revoked; done nothing if it has none.
    "volume.fence" VolumeFence(t::VolumeFence) -> t::VolumeFenced;
    /// Changes the size of a volume that is open here.
    "volume.resize" VolumeResize(t::VolumeResize) -> t::VolumeResized;
    /// Takes a volume that is open here, by a caretaker, back to one of its snapshots.
    "volume.revert" VolumeRevert(t::VolumeRevert) -> t::VolumeReverted;
    /// Gives back what only the deleted head of a volume has that is open here; answers when the record says that it goes.
    "volume.release" VolumeRelease(t::VolumeRef) -> t::Nothing;
    /// Changes what is wanted of a volume that is open here.
    "volume.policy" VolumePolicy(t::VolumePolicy) -> t::Nothing;
    /// Opens a volume here.
    "session.open" SessionOpen(t::SessionOpen) -> t::SessionOpened;
    /// Opens a volume here again after the process that had it open has ended, if nobody else has owned it since; whoever
    /// asks keeps its guest's requests meanwhile.
    "session.continue" SessionContinue(t::SessionContinue) -> t::SessionOpened;
    /// Closes a volume here.
    "session.close" SessionClose(t::SessionClose) -> t::SessionClosed;
    /// Lays what is written in a layer over another volume, both open here without a guest; answers when it is durable. Cut, or
    /// asked again, it is to be done from its beginning.
    "session.lay" SessionLay(t::SessionLay) -> t::SessionLaid;
    /// Changes how much the guests of a volume that is open here may ask for.
    "session.limit" SessionLimit(t::SessionLimit) -> t::Nothing;
    /// The sessions of this host.
    "session.list" SessionList(t::Nothing) -> t::SessionList;
    /// One session.
    "session.show" SessionShow(t::VolumeRef) -> t::SessionStatus;
    /// Compares the copies of a volume that is open here, and mends what one of them can't give; of one that is being
    /// scrubbed the rate changes.
    "scrub.start" ScrubStart(t::ScrubStart) -> t::Nothing;
    /// Ends the scrub of a volume that is open here, if there is one.
    "scrub.stop" ScrubStop(t::VolumeRef) -> t::Nothing;
    /// Takes a snapshot of a volume that is open here.
    "snapshot.create" SnapshotCreate(t::SnapshotCreate) -> t::SnapshotCreated;
    /// Takes snapshots of several volumes that are open here, at one moment, or none.
    "snapshot.create_group" SnapshotCreateGroup(t::SnapshotCreateGroup) -> t::SnapshotGroup;
    /// Deletes a snapshot of a volume that is open here: from then on nobody sees it, and what its images hold goes.
    "snapshot.delete" SnapshotDelete(t::SnapshotRef) -> t::Nothing;
    /// Destroys the data of a snapshot of a volume that is open here: from then on nobody reads it, its copies keep hashes of
    /// what it held, each as soon as it is there, and what has changed since it, or until it, is still told.
    "snapshot.destroy_data" SnapshotDestroyData(t::SnapshotRef) -> t::Nothing;
    /// Protects a snapshot of a volume that is open here from being deleted, or doesn't any more.
    "snapshot.protect" SnapshotProtect(t::SnapshotProtect) -> t::Nothing;
    /// Gives a snapshot of a volume that is open here another name.
    "snapshot.rename" SnapshotRename(t::SnapshotRename) -> t::Nothing;
    /// Brings a snapshot to a copy on this host that lacks it, or tells how far that is.
    "snapshot.fetch" SnapshotFetch(t::SnapshotFetch) -> t::SnapshotFetched;
    /// Lists a copy with a snapshot, of a volume that is open here, that it has got all of.
    "snapshot.add_copy" SnapshotAddCopy(t::SnapshotAddCopy) -> t::Nothing;
    /// Offers a snapshot for reading here.
    "snapshot.open" SnapshotOpen(t::SnapshotOpen) -> t::SnapshotOpened;
    /// Ends that; done nothing if it is not offered.
    "snapshot.close" SnapshotClose(t::SnapshotRef) -> t::Nothing;
    /// The snapshots that are offered for reading here.
    "snapshot.open_list" SnapshotOpenList(t::Nothing) -> t::OpenSnapshotList;
    /// What differs between two snapshots of a volume, wherever that is open.
    "snapshot.changed" SnapshotChanged(t::SnapshotChanged) -> t::ChangedBlocks;
    /// The images that copies on this host have of snapshots.
    "image.list" ImageList(t::Nothing) -> t::ImageList;
    /// The connections to other hosts.
    "link.list" LinkList(t::Nothing) -> t::LinkList;
    /// Everything this host knows of a volume.
    "why" Why(t::VolumeRef) -> t::Why;
    /// From now on this connection is told events.
    "events" Events(t::Nothing) -> t::Nothing;
}

pub(crate) fn parse_params<P: for<'de> Deserialize<'de>>(
    method: &'static str,
    params: Value,
) -> Result<P, BadCommand> {
    if !params.is_object() {
        return Err(BadCommand::Params { method, wrong: "expected an object".to_owned() });
    }
    serde_json::from_value(params).map_err(|e| BadCommand::Params { method, wrong: e.to_string() })
}

/// The method whose name takes the fewest edits.
pub(crate) fn nearest(names: &[&'static str], method: &str) -> &'static str {
    let method: Vec<char> = method.chars().take(64).collect();
    names.iter().copied().min_by_key(|name| edits(&method, name)).expect("there are methods")
}

/// Levenshtein's distance.
fn edits(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, cb) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, ca) in a.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(*ca != cb)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Endpoints, Nothing};
    use serde_json::json;

    #[test]
    fn a_command_is_parsed_by_its_method() {
        let command =
            Command::parse("store.endpoints", Some(json!({"endpoints": ["http://127.0.0.1:7402"]})));
        let want = Endpoints { endpoints: vec!["http://127.0.0.1:7402".to_owned()] };
        assert_eq!(command, Ok(Command::StoreEndpoints(want)));
    }

    #[test]
    fn absent_parameters_are_none() {
        assert_eq!(Command::parse("hello", None), Ok(Command::Hello(Nothing {})));
    }

    #[test]
    fn an_unknown_method_names_the_nearest() {
        let bad = Command::parse("sesion.open", None).expect_err("no such method");
        assert_eq!(bad, BadCommand::NoMethod { method: "sesion.open".to_owned(), near: "session.open" });
    }

    #[test]
    fn an_unknown_or_missing_parameter_is_refused_by_name() {
        let volume = "00000000-0000-0000-0000-000000000001";
        for (params, word) in [
            (json!({"volume": volume, "abandn": true}), "abandn"),
            (json!({"volume": volume}), "abandon"),
            (json!({"volume": "disk1", "abandon": false}), "UUID"),
            (json!([volume, false]), "object"),
        ] {
            match Command::parse("session.close", Some(params)) {
                Err(BadCommand::Params { method: "session.close", wrong }) => {
                    assert!(wrong.contains(word), "{wrong:?} names {word:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names = Command::NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Command::NAMES.len());
    }
}
