//! What must be there after a power cut, given what was asked and answered before, and whether it is.
//!
//! Must always hold: a state that POSIX and the protocol allow is never blamed, so each complaint is a fault of the
//! code or of this file.

use std::collections::{BTreeMap, BTreeSet};

use weft_control::types::ReplicaState;
use weft_proto::ids::{Epoch, Generation, PoolInc, Rid, SessionId, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::message::ReplicaView;
use weftd::store::Entry;

use crate::host::{Around, BLOCK, Fact, Found, Host, REGION_SHIFT};

/// Where a replica is, or is on its way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Asked for.
    Wanted,
    Here,
    Going,
    Trash,
    Coming,
    Emptying,
    Gone,
}

#[derive(Clone, Debug)]
struct Version {
    id: u64,
    tag: u64,
    generation: Generation,
    answered: bool,
    durable: bool,
    /// A power cut does not take it back any more.
    settled: bool,
}

#[derive(Clone, Debug)]
struct Expected {
    place: Place,
    promised: Epoch,
    promises: Vec<(Epoch, SessionId)>,
    sealed: Generation,
    seals: BTreeSet<Generation>,
    size: u64,
    sizes: BTreeSet<u64>,
    blocks: BTreeMap<u64, Vec<Version>>,
    flushes: BTreeMap<u64, BTreeSet<u64>>,
}

/// Everything that is known at one moment.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// The pool was made.
    pub pool: bool,
    store: Option<Entry>,
    log: u64,
    served: PoolInc,
    replicas: BTreeMap<ReplicaKey, Expected>,
}

impl Expect {
    /// What is known to the store and the host beside the disk.
    #[must_use]
    pub fn around(&self) -> Around {
        let Expect { store, log, served, .. } = self;
        Around {
            store: store.clone(),
            log: *log,
            served: *served,
            boot: 2,
            asked: 1 << 20,
            ..Around::default()
        }
    }

    /// Goes on by one fact.
    pub fn learn(&mut self, fact: &Fact) {
        let replica = |me: &mut Expect, key: &ReplicaKey, change: &mut dyn FnMut(&mut Expected)| {
            change(me.replicas.get_mut(key).expect("asked for before"));
        };
        match fact {
            Fact::Pool => self.pool = true,
            Fact::Store(entry) => self.store.clone_from(entry),
            Fact::Log(seq) => self.log = *seq,
            Fact::Served(inc) => self.served = *inc,
            Fact::Killed => {}
            Fact::CreateAsked(key, size) => {
                self.replicas.entry(*key).or_insert_with(|| Expected {
                    place: Place::Wanted,
                    promised: Epoch(0),
                    promises: Vec::new(),
                    sealed: Generation::NEVER,
                    seals: BTreeSet::from([Generation::NEVER]),
                    size: *size,
                    sizes: BTreeSet::from([*size]),
                    blocks: BTreeMap::new(),
                    flushes: BTreeMap::new(),
                });
            }
            Fact::Created(key) | Fact::Restored(key) => replica(self, key, &mut |r| r.place = Place::Here),
            Fact::TrashAsked(key) => replica(self, key, &mut |r| r.place = Place::Going),
            Fact::Trashed(key) => replica(self, key, &mut |r| r.place = Place::Trash),
            Fact::RestoreAsked(key) => replica(self, key, &mut |r| r.place = Place::Coming),
            Fact::EmptyAsked(key) => replica(self, key, &mut |r| r.place = Place::Emptying),
            Fact::Emptied(key) => replica(self, key, &mut |r| r.place = Place::Gone),
            Fact::PromiseAsked(key, epoch, session) => {
                replica(self, key, &mut |r| r.promises.push((*epoch, *session)));
            }
            Fact::Promised(key, epoch) => replica(self, key, &mut |r| r.promised = *epoch),
            Fact::WriteAsked(key, written) => replica(self, key, &mut |r| {
                for (block, tag) in (written.block..).zip(&written.tags) {
                    r.blocks.entry(block).or_default().push(Version {
                        id: written.id,
                        tag: *tag,
                        generation: written.generation,
                        answered: false,
                        durable: written.durable,
                        settled: false,
                    });
                }
            }),
            Fact::Written(key, id) => replica(self, key, &mut |r| {
                for version in r.blocks.values_mut().flatten().filter(|v| v.id == *id) {
                    version.answered = true;
                    version.settled |= version.durable;
                }
            }),
            Fact::FlushAsked(key, flush) => replica(self, key, &mut |r| {
                let answered = r.blocks.values().flatten().filter(|v| v.answered).map(|v| v.id).collect();
                r.flushes.insert(*flush, answered);
            }),
            Fact::Flushed(key, flush) => replica(self, key, &mut |r| {
                let covered = r.flushes.remove(flush).unwrap_or_default();
                for version in r.blocks.values_mut().flatten().filter(|v| covered.contains(&v.id)) {
                    version.settled = true;
                }
            }),
            Fact::SealAsked(key, generation) => replica(self, key, &mut |r| {
                r.seals.insert(*generation);
            }),
            Fact::Sealed(key, generation) => {
                replica(self, key, &mut |r| r.sealed = r.sealed.max(*generation));
            }
            Fact::GrowAsked(key, size) => replica(self, key, &mut |r| {
                r.sizes.insert(*size);
            }),
            Fact::Grown(key, size) => replica(self, key, &mut |r| r.size = *size),
            Fact::Seen(key, block, tag) => replica(self, key, &mut |r| {
                // What a guest has read in durable mode is there for good (I12).
                let Some(versions) = r.blocks.get_mut(block) else { return };
                let floor = versions.iter().rposition(|v| v.settled);
                let seen = versions
                    .iter()
                    .enumerate()
                    .position(|(i, v)| v.tag == *tag && floor.is_none_or(|f| i >= f));
                if let Some(version) = seen.map(|i| &mut versions[i]).filter(|v| v.durable) {
                    version.settled = true;
                }
            }),
        }
    }

    /// Blocks that were ever written to, as runs.
    #[must_use]
    pub fn touched(&self) -> BTreeMap<ReplicaKey, Vec<(u64, u64)>> {
        let runs = |replica: &Expected| {
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for block in replica.blocks.keys() {
                match runs.last_mut() {
                    Some((first, len)) if *first + *len == *block && *len < 16 => *len += 1,
                    _ => runs.push((*block, 1)),
                }
            }
            runs
        };
        self.replicas.iter().map(|(key, replica)| (*key, runs(replica))).collect()
    }
}

/// A replica as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenReplica {
    quarantined: bool,
    view: Option<ReplicaView>,
    stamps: BTreeMap<u32, Generation>,
    blocks: BTreeMap<u64, Found>,
    error: Option<String>,
}

/// A pool as it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Why it does not serve.
    pub error: Option<String>,
    replicas: BTreeMap<ReplicaKey, SeenReplica>,
    trash: BTreeSet<(VolumeId, Rid)>,
}

/// Looks at everything that can be seen of a pool from outside. Each replica gives a new promise on the way.
pub fn look(host: &mut Host, touched: &BTreeMap<ReplicaKey, Vec<(u64, u64)>>) -> Seen {
    let mut seen = Seen::default();
    if let Err(error) = host.serving() {
        seen.error = Some(error);
        return seen;
    }
    match host.trash_list() {
        Ok(list) => seen.trash = list.into_iter().collect(),
        Err(error) => seen.error = Some(format!("the trash can't be listed: {error}")),
    }
    for info in host.replicas() {
        let key = ReplicaKey { volume: info.volume, rid: info.rid };
        let mut replica = SeenReplica {
            quarantined: info.state == ReplicaState::Quarantined,
            view: None,
            stamps: BTreeMap::new(),
            blocks: BTreeMap::new(),
            error: None,
        };
        if !replica.quarantined
            && let Err(error) = look_at(host, key, &mut replica, touched.get(&key).map_or(&[][..], |t| t))
        {
            replica.error = Some(error);
        }
        seen.replicas.insert(key, replica);
    }
    seen
}

fn look_at(
    host: &mut Host,
    key: ReplicaKey,
    replica: &mut SeenReplica,
    touched: &[(u64, u64)],
) -> Result<(), String> {
    let view = host.attach(key)?;
    let epoch = Epoch(view.promised.0 + 1);
    let size = view.size;
    replica.view = Some(view);
    host.open(key, epoch).map_err(|e| format!("no promise: {e}"))?;
    replica.stamps = host.stamps(key).map_err(|e| format!("no stamps: {e}"))?;
    for (first, len) in touched {
        let len = (*len).min((size / BLOCK).saturating_sub(*first));
        if len == 0 {
            continue;
        }
        let found = host.read(key, *first, len).map_err(|e| format!("blocks {first}+{len}: {e}"))?;
        host.look(key, *first, len)?;
        replica.blocks.extend((*first..).zip(found));
    }
    Ok(())
}

/// The same pool, looked at again after a restart without loss: what may not have changed.
pub fn same(first: &Seen, again: &Seen) -> Result<(), String> {
    if first.error != again.error || first.trash != again.trash {
        return Err(format!("a second start finds {:?}, {:?}", again.error, again.trash));
    }
    for (key, one) in &first.replicas {
        let two = again.replicas.get(key).ok_or_else(|| format!("{}: gone at the second start", key.rid))?;
        let promised = |r: &SeenReplica| r.view.as_ref().map(|v| (v.promised, v.sealed, v.size));
        let raised = promised(one).map(|(e, s, size)| (Epoch(e.0 + 1), s, size));
        if one.quarantined != two.quarantined || one.error != two.error || raised != promised(two) {
            return Err(format!("{}: first {one:?}, then {two:?}", key.rid));
        }
        if one.stamps != two.stamps || one.blocks != two.blocks {
            return Err(format!("{}: content or stamps changed: first {one:?}, then {two:?}", key.rid));
        }
    }
    Ok(())
}

/// Is what was found allowed?
pub fn check(expect: &Expect, seen: &Seen) -> Result<(), String> {
    if let Some(error) = &seen.error {
        return Err(error.clone());
    }
    for (key, expected) in &expect.replicas {
        let trashed = seen.trash.contains(&(key.volume, key.rid));
        let found = seen.replicas.get(key);
        let whole = |found: Option<&SeenReplica>| match found {
            Some(found) => check_replica(expected, found).map_err(|e| format!("{}: {e}", key.rid)),
            None => Err(format!("{}: the replica is not in the pool", key.rid)),
        };
        match expected.place {
            Place::Here => whole(found)?,
            Place::Wanted => {
                if found.is_some() {
                    whole(found)?;
                }
            }
            Place::Going | Place::Coming => {
                if found.is_some() || !trashed {
                    whole(found)?;
                }
            }
            Place::Trash if found.is_some() || !trashed => {
                return Err(format!("{}: not in the trash", key.rid));
            }
            Place::Gone if found.is_some() || trashed => return Err(format!("{}: not gone", key.rid)),
            Place::Emptying if found.is_some() => return Err(format!("{}: back from the trash", key.rid)),
            Place::Trash | Place::Gone | Place::Emptying => {}
        }
    }
    match seen.replicas.keys().find(|key| !expect.replicas.contains_key(key)) {
        Some(key) => Err(format!("{} was never asked for", key.rid)),
        None => Ok(()),
    }
}

fn check_replica(expected: &Expected, found: &SeenReplica) -> Result<(), String> {
    if found.quarantined {
        return Err("quarantined".to_owned());
    }
    if let Some(error) = &found.error {
        return Err(error.clone());
    }
    let view = found.view.as_ref().ok_or("did not answer")?;
    // I3.
    if view.promised < expected.promised {
        return Err(format!("I3: promised {}, had answered {}", view.promised, expected.promised));
    }
    let asked = |(epoch, session): &(Epoch, SessionId)| *epoch == view.promised && *session == view.session;
    if view.promised != Epoch(0) && !expected.promises.iter().any(asked) {
        return Err(format!("promised {} to {}, which nobody asked for", view.promised, view.session));
    }
    if view.sealed < expected.sealed {
        return Err(format!("sealed {}, had answered {}", view.sealed, expected.sealed));
    }
    if !expected.seals.contains(&view.sealed) {
        return Err(format!("sealed {}, which nobody asked for", view.sealed));
    }
    // I29: what comes next is above everything that was.
    if view.newest.epoch() > view.promised {
        return Err(format!("I29: stamped {}, promised {}", view.newest, view.promised));
    }
    if view.size < expected.size || !expected.sizes.contains(&view.size) {
        return Err(format!("I18: {} bytes, had answered {}", view.size, expected.size));
    }
    for (block, versions) in expected.blocks.iter().filter(|(block, _)| (**block + 1) * BLOCK <= view.size) {
        let found_block = found.blocks.get(block).ok_or_else(|| format!("block {block} was not read"))?;
        let region = u32::try_from((block * BLOCK) >> REGION_SHIFT).expect("small volumes");
        let stamp = found.stamps.get(&region).copied().unwrap_or_default();
        check_block(versions, found_block, stamp, view.sealed).map_err(|e| format!("block {block}: {e}"))?;
    }
    Ok(())
}

fn check_block(
    versions: &[Version],
    found: &Found,
    stamp: Generation,
    sealed: Generation,
) -> Result<(), String> {
    let settled = versions.iter().rposition(|v| v.settled);
    // I9: what a seal covers is there, as the newest of it.
    let covered = versions.iter().rposition(|v| v.answered && v.generation <= sealed);
    let floor = settled.max(covered);
    let allowed = &versions[floor.unwrap_or(0)..];
    let may_be_new = floor.is_none();
    if found.sectors.iter().any(|tag| *tag != found.sectors[0]) && allowed.len() + usize::from(may_be_new) < 2
    {
        return Err(format!("torn, though nothing was under way: {:x?}", found.sectors));
    }
    for tag in &found.sectors {
        let untouched = may_be_new && *tag == 0;
        let least = allowed.iter().filter(|v| v.tag == *tag).map(|v| v.generation).min();
        match least {
            // I8.
            Some(generation) if generation > stamp && !untouched => {
                return Err(format!("I8: content of generation {generation}, stamped {stamp}"));
            }
            None if !untouched => {
                let rule = if settled < covered { "I9" } else { "lost" };
                let allowed: Vec<u64> = allowed.iter().map(|v| v.tag).collect();
                return Err(format!("{rule}: found {tag:x}, allowed {allowed:x?}, sealed {sealed}"));
            }
            _ => {}
        }
    }
    // A hole reads as zeroes, and data is never a hole.
    if found.hole.is_some() && found.sectors != [0; 8] {
        return Err("a hole with data".to_owned());
    }
    Ok(())
}
