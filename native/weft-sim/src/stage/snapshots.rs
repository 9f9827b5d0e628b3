//! Snapshots on the stage: their keys in the store, as weftd writes them; who asks for them; what is in their images.
//!
//! Must always hold (I21): a snapshot that somebody was told of is the same at each listed member, it is what the volume
//! could hold at the moment of its barrier, and it stays, with its key, until it is deleted; whatever becomes of the store.

use weft_proto::images::{ImageState, Place};
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::block_crcs;
use weft_proto::record::Snaps;
use weft_proto::replica::{CopyOf, CopyStep, NotCopied};
use weft_proto::session::{NotAdded, RevertFailure, SnapFailure, SnapTaken};

use super::*;
use crate::changed::{changed, expected};
use crate::disk::bytes_of;
use crate::snap_keys::{self, Key};

/// An image at a replica: each block's value, as its log and its files have it; none where the file has not what the log says.
pub type Image = Vec<Option<Value>>;

impl Stage {
    /// Asks for a snapshot.
    pub fn snapshot(&mut self, who: Who, id: u128) {
        self.play.tell(self.now, format_args!("{who} is asked for snapshot {id}"));
        let note = vec![id as u8];
        self.notes.insert(SnapId(id), note.clone());
        self.with(who, |m, now| m.snapshot(now, SnapId(id), note));
    }

    /// Asks for a snapshot and plays until it is told of.
    pub fn snapshotted(&mut self, who: Who, id: u128) {
        self.snapshot(who, id);
        self.run_until("a snapshot is told of", |s| s.is_taken(who, id));
    }

    /// Asks that one be deleted.
    pub fn delete_snapshot(&mut self, who: Who, id: u128) {
        self.play.tell(self.now, format_args!("{who} is asked to delete snapshot {id}"));
        self.with(who, |m, now| m.delete_snapshot(now, SnapId(id)));
    }

    /// A replica's image of it has lost everything that it had: nobody is judged by that.
    pub fn lose_image(&mut self, rid: Rid, id: u128) {
        self.play.tell(self.now, format_args!("the image of snapshot {id} at {rid} is lost"));
        self.judged = false;
        let drop = ImageOp::Drop { image: SnapId(id) };
        let dropped = self.rep(rid).stored.disk.run_image(&drop);
        assert!(dropped.is_ok(), "{dropped:?}");
    }

    /// Asks that the volume be taken back to one.
    pub fn revert(&mut self, who: Who, id: u128) {
        self.play.tell(self.now, format_args!("{who} is asked to take the volume back to snapshot {id}"));
        self.with(who, |m, now| m.revert(now, SnapId(id)));
    }

    /// Asks for it and plays until it is told of.
    pub fn reverted(&mut self, who: Who, id: u128) {
        let told = |s: &Stage| {
            let is =
                |e: &&Event| matches!(e, Event::Reverted { id: of, outcome: Ok(_) } if *of == SnapId(id));
            s.events(who).iter().filter(is).count()
        };
        let before = told(self);
        self.revert(who, id);
        self.run_until("a revert is told of", |s| told(s) > before);
    }

    /// Has the session told that it was taken back to it?
    #[must_use]
    pub fn is_reverted(&self, who: Who, id: u128) -> bool {
        self.told(who, |e| matches!(e, Event::Reverted { id: of, outcome: Ok(_) } if *of == SnapId(id)))
    }

    /// Why it was not, if it was not: the last answer.
    #[must_use]
    pub fn revert_failed(&self, who: Who) -> Option<RevertFailure> {
        self.events(who).iter().rev().find_map(|e| match e {
            Event::Reverted { outcome, .. } => Some(outcome.clone().err()),
            _ => None,
        })?
    }

    /// The snapshot that the record says the volume is being taken back to.
    #[must_use]
    pub fn reverting(&self) -> Option<u128> {
        self.record.reverting.as_ref().map(|reverting| reverting.snap.0)
    }

    /// Asks that the data of one be destroyed.
    pub fn destroy_snapshot(&mut self, who: Who, id: u128) {
        self.play.tell(self.now, format_args!("{who} is asked to destroy the data of snapshot {id}"));
        self.with(who, |m, now| m.destroy_snapshot(now, SnapId(id)));
    }

    pub(super) fn with(&mut self, who: Who, what: impl FnOnce(&mut Session<HeapPayload>, Instant)) {
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            what(m, now);
        }
        self.drain(who);
    }

    /// Has the session told of it?
    #[must_use]
    pub fn is_taken(&self, who: Who, id: u128) -> bool {
        self.told(who, |e| matches!(e, Event::SnapshotTaken { id: of, .. } if *of == SnapId(id)))
    }

    /// Has it told that its key is gone?
    #[must_use]
    pub fn is_gone(&self, who: Who, id: u128) -> bool {
        self.told(who, |e| *e == Event::SnapshotGone { id: SnapId(id) })
    }

    /// Is its data gone, by its key, and at each listed member?
    #[must_use]
    pub fn is_emptied(&self, id: u128) -> bool {
        self.key(id).is_some_and(|key| {
            key.data == weft_proto::session::SnapData::Gone
                && key.taken.members.iter().all(|rid| {
                    let stored = &self.reps[rid].stored;
                    let image = stored.durable.images.get(SnapId(id));
                    image.is_none_or(|image| image.state == ImageState::Destroyed)
                })
        })
    }

    /// Why it failed, if it did.
    #[must_use]
    pub fn snapshot_failed(&self, who: Who, id: u128) -> Option<SnapFailure> {
        self.events(who).iter().find_map(|e| match e {
            Event::SnapshotFailed { id: of, why } if *of == SnapId(id) => Some(why.clone()),
            _ => None,
        })
    }

    /// Its key in the store.
    #[must_use]
    pub fn key(&self, id: u128) -> Option<&Key> {
        self.keys.get(&SnapId(id))
    }

    /// The members that have its image, by the store.
    #[must_use]
    pub fn listed(&self, id: u128) -> Vec<Rid> {
        self.key(id).map(|key| key.taken.members.clone()).unwrap_or_default()
    }

    /// What a replica has of it.
    #[must_use]
    pub fn image(&self, rid: Rid, id: u128) -> Option<Image> {
        let stored = &self.reps[&rid].stored;
        let image = stored.durable.images.get(SnapId(id))?;
        let value = |block: u64| {
            let region = (block * BLOCK) >> image.region_shift;
            match stored.durable.images.place(SnapId(id), region as u32)? {
                Place::Head => Some(stored.disk.value(block)),
                Place::Absent => Some(ABSENT),
                Place::Image { image, heir } => stored.disk.images().look(image, heir, block),
            }
        };
        Some((0..image.size / BLOCK).map(value).collect())
    }

    /// A stage of a volume that is made of a snapshot: each listed member has made its own copy of it, and the record begins as
    /// weftd is given it.
    #[must_use]
    pub fn clone_of(&mut self, id: u128) -> Stage {
        let taken = self.keys[&SnapId(id)].taken.clone();
        let mut copies = Vec::new();
        for rid in taken.members.iter().copied() {
            let to = ReplicaKey { volume: VOLUME, rid };
            let machine = self.rep(rid).machine.as_mut().expect("it is served");
            let durable = machine.clone_out(SnapId(id), to).expect("it has the image");
            self.drain_replica(rid);
            let is_done = |s: &Stage| s.reps[&rid].machine.as_ref().is_some_and(|m| m.clones().is_empty());
            self.run_until("everything is shared", is_done);
            let machine = self.rep(rid).machine.as_mut().expect("it is served");
            assert_eq!(machine.poll_cloned(), Some((to, Ok(()))));
            copies.push((rid, durable, self.rep(rid).stored.disk.take_clone(to)));
        }
        let mut stage = Stage::new(self.scene, &self.play);
        let record = &mut stage.record;
        (record.epoch, record.closed_gen, record.clean) = (Epoch(taken.epoch.0 + 1), taken.generation, true);
        record.replicas.retain(|entry| taken.members.contains(&entry.rid));
        stage.reps.retain(|rid, _| taken.members.contains(rid));
        stage.next_value = self.next_value;
        for (rid, durable, disk) in copies {
            for block in (0..durable.size / BLOCK).filter(|block| disk.value(*block) != ABSENT) {
                stage.oracle.write_called(block, disk.value(block), stage.now);
                stage.oracle.write_acked(block, disk.value(block), stage.now);
            }
            stage.kill(rid);
            (stage.rep(rid).stored.durable, stage.rep(rid).stored.disk) = (durable, disk);
            stage.start(rid);
        }
        stage
    }

    /// How many images it has, of whatever attempts, and how many directories of them.
    #[must_use]
    pub fn images(&self, rid: Rid) -> (usize, usize) {
        let stored = &self.reps[&rid].stored;
        (stored.durable.images.len(), stored.disk.images().iter().count())
    }

    /// Begins to bring a snapshot to a replica that lacks it, as weftd does.
    pub fn begin_copy(&mut self, rid: Rid, id: u128) {
        let taken = self.keys[&SnapId(id)].taken.clone();
        let SnapTaken { id, attempt, generation, epoch, incarnation, size, region_shift, .. } = taken;
        let of = CopyOf { id, attempt, generation, epoch, incarnation, size, region_shift };
        self.copy_step(rid, id, CopyStep::Begun, |machine| machine.begin_copy(of).expect("it can be begun"));
    }

    /// Puts there what another replica has of it, in its first regions.
    pub fn fill_copy(&mut self, rid: Rid, from: Rid, id: u128, regions: usize) {
        let content = self.image(from, id).expect("the source has it");
        let shift =
            self.reps[&from].stored.durable.images.get(SnapId(id)).map_or(16, |image| image.region_shift);
        let blocks = (1 << shift) / BLOCK as usize;
        for (n, region) in content.chunks(blocks).enumerate().take(regions) {
            let values: Vec<Value> =
                region.iter().map(|value| value.expect("the source's is whole")).collect();
            if values.iter().all(|value| *value == ABSENT) {
                continue;
            }
            let extent = |value: &Value| match *value {
                ABSENT => Extent::Hole { len: BLOCK, kind: Hole::Absent },
                ZERO => Extent::Hole { len: BLOCK, kind: Hole::Zero },
                value => {
                    let data = bytes_of(&[value]);
                    Extent::Data { crcs: block_crcs(data.bytes()), data }
                }
            };
            let extents = values.iter().map(extent).collect();
            let (id, offset) = (SnapId(id), (n * blocks) as u64 * BLOCK);
            let filled = self.copied(rid, id, |machine| machine.fill_copy(id, offset, extents));
            assert!(matches!(filled, CopyStep::Filled { .. }), "{filled:?}");
        }
    }

    /// All of a snapshot is brought to a replica.
    pub fn bring(&mut self, rid: Rid, from: Rid, id: u128) {
        self.play.tell(self.now, format_args!("{rid} is brought snapshot {id}"));
        self.begin_copy(rid, id);
        self.fill_copy(rid, from, id, usize::MAX);
        let id = SnapId(id);
        self.copy_step(rid, id, CopyStep::Whole, |machine| machine.finish_copy(id));
    }

    /// What was begun is given up.
    pub fn give_up_copy(&mut self, rid: Rid, id: u128) {
        let id = SnapId(id);
        let failed = CopyStep::Failed(NotCopied::Ended);
        self.copy_step(rid, id, failed, |machine| machine.give_up_copy(id));
    }

    fn copy_step(
        &mut self,
        rid: Rid,
        id: SnapId,
        expected: CopyStep,
        what: impl FnOnce(&mut Replica<HeapPayload>),
    ) {
        let step = self.copied(rid, id, what);
        assert_eq!(step, expected, "{id} at {rid}");
    }

    fn copied(&mut self, rid: Rid, id: SnapId, what: impl FnOnce(&mut Replica<HeapPayload>)) -> CopyStep {
        what(self.rep(rid).machine.as_mut().expect("it is served"));
        self.drain_replica(rid);
        for _ in 0..1000 {
            let machine = self.rep(rid).machine.as_mut().expect("it is served");
            if let Some((of, step)) = machine.poll_copied() {
                assert_eq!(of, id);
                return step;
            }
            self.run_for(1);
        }
        panic!("{rid} says nothing of {id}\n{}", self.describe());
    }

    /// Asks that a replica be listed with a snapshot that it has got.
    pub fn add_copy(&mut self, who: Who, id: u128, rid: Rid) {
        self.play.tell(self.now, format_args!("{who} is asked to list {rid} with snapshot {id}"));
        self.with(who, |m, now| m.add_snapshot_copy(now, SnapId(id), rid));
    }

    /// What came of that.
    #[must_use]
    pub fn copy_added(&self, who: Who, id: u128, rid: Rid) -> Option<Result<(), NotAdded>> {
        self.events(who).iter().find_map(|event| match event {
            Event::SnapshotCopyAdded { id: of, rid: at, outcome } if (*of, *at) == (SnapId(id), rid) => {
                Some(*outcome)
            }
            _ => None,
        })
    }

    // ---- the store

    pub(super) fn change_key(&mut self, change: SnapChange) {
        let id = change.id();
        self.play.tell(self.now, format_args!("the store: {change:?}"));
        let note = self.notes.get(&id).cloned().unwrap_or_default();
        if matches!(change, SnapChange::Deleting { .. }) {
            self.reported.remove(&id);
            self.destroyed.remove(&id);
        }
        // From now on nobody reads it.
        if matches!(change, SnapChange::Destroyed { .. })
            && let Some(content) = self.reported.remove(&id)
        {
            self.destroyed.insert(id, content);
        }
        let changed = snap_keys::change(&mut self.keys, change, note);
        let agreed = changed.and_then(|()| snap_keys::agree(&self.keys, &self.record.snaps));
        agreed.unwrap_or_else(|what| panic!("{what}\n{}", self.describe()));
    }

    /// What weftd tells a session that has opened, and what whoever is told of a snapshot may rely on.
    pub(super) fn handle_snapshot_event(&mut self, who: Who, event: &Event) {
        match event {
            Event::Opened { .. } => {
                let known = snap_keys::known(&self.keys);
                let now = self.clock(self.acts[who.0].host);
                if let Some(m) = &mut self.acts[who.0].machine {
                    m.know_snapshots(now, known);
                }
            }
            Event::SnapshotTaken { id, .. } if self.judged => self.judge_taken(*id),
            _ => {}
        }
    }

    pub(super) fn repair_keys(&mut self) -> Snaps {
        let answering = self.reps.iter().filter(|(_, r)| r.machine.is_some());
        snap_keys::repair(&mut self.keys, answering.map(|(rid, r)| (*rid, &r.stored.durable.images)))
    }

    /// The store is lost: nothing of it is left but what replicas keep.
    pub fn lose_store(&mut self) {
        self.play.tell(self.now, "the store is lost with everything in it");
        self.keys.clear();
        self.judged = false;
    }

    /// A replica's daemon looks for images that are of no use (R15, docs/model.md findings 10 and 23).
    pub fn janitor(&mut self, rid: Rid) {
        let host = self.reps[&rid].host;
        self.see(host, mark(self.incarnation, self.revision));
        let useless: Vec<(SnapId, u64)> = self.reps[&rid]
            .stored
            .durable
            .images
            .iter()
            .filter(|image| {
                let named = self.keys.get(&image.id).is_some_and(|key| key.taken.attempt == image.attempt);
                (image.state == ImageState::Prepared || !image.took())
                    && image.incarnation == self.incarnation
                    && image.epoch < self.record.epoch
                    && !named
            })
            .map(|image| (image.id, image.attempt))
            .collect();
        for (id, attempt) in useless {
            self.play.tell(self.now, format_args!("{rid} removes what attempt {attempt} has left"));
            let now = self.clock(host);
            if let Some(m) = &mut self.rep(rid).machine
                && !m.drop_image(now, id, attempt)
            {
                m.drop_copied(now, id, attempt);
            }
            self.drain_replica(rid);
        }
    }

    // ---- the judge

    /// The first PREPARE of an attempt is sent: what is completed now is in it, what is submitted later is not.
    pub(super) fn note_barrier(&mut self, ask: &Ask<HeapPayload>) {
        let Ask::SnapPrepare { id, attempt, .. } = ask else { return };
        let (now, blocks) = (self.now, self.record.size / BLOCK);
        let oracle = &self.oracle;
        let all = || (0..blocks).map(|block| oracle.allowed(block, now)).collect();
        self.barriers.entry((*id, *attempt)).or_insert_with(all);
    }

    /// I21, when somebody is told.
    fn judge_taken(&mut self, id: SnapId) {
        let Some(key) = self.keys.get(&id).cloned() else {
            panic!("{id} is told of and has no key\n{}", self.describe());
        };
        let mut first: Option<(Rid, Vec<Value>)> = None;
        for rid in key.taken.members.iter().copied().filter(|rid| !self.reps[rid].lost) {
            let content = self.whole_image(rid, id, key.taken.attempt);
            match &first {
                Some((other, theirs)) => {
                    assert_eq!(&content, theirs, "{id} at {rid} and {other}\n{}", self.describe())
                }
                None => first = Some((rid, content)),
            }
        }
        let (rid, content) = first.unwrap_or_else(|| panic!("nobody has {id}\n{}", self.describe()));
        let allowed = &self.barriers[&(id, key.taken.attempt)];
        for (block, (value, allowed)) in content.iter().zip(allowed).enumerate() {
            assert!(
                allowed.contains(value),
                "I21: block {block} of {id} is {value} at {rid}, at its barrier it was one of {allowed:?}\n{}",
                self.describe()
            );
        }
        let known = self.reported.entry(id).or_insert_with(|| content.clone());
        assert_eq!(*known, content, "{id} has changed");
    }

    fn whole_image(&self, rid: Rid, id: SnapId, attempt: u64) -> Vec<Value> {
        let has = self.reps[&rid].stored.durable.images.get(id).map(|image| image.attempt);
        assert_eq!(
            has,
            Some(attempt),
            "I21: {rid} is listed with attempt {attempt} of {id}\n{}",
            self.describe()
        );
        let image = self.image(rid, id.0).expect("looked at a moment ago");
        let whole: Option<Vec<Value>> = image.iter().copied().collect();
        whole.unwrap_or_else(|| {
            panic!("R28: the image of {id} at {rid} is damaged: {image:?}\n{}", self.describe())
        })
    }

    /// Whoever was told of a snapshot finds it, as it was, until it is deleted.
    pub(super) fn judge_reported(&self) {
        for (id, content) in &self.reported {
            let Some(key) = self.keys.get(id) else {
                panic!("R27: {id} was told of and is not there\n{}", self.describe())
            };
            for rid in key
                .taken
                .members
                .iter()
                .filter(|rid| self.record.replica(**rid).is_some() && !self.reps[rid].lost)
            {
                let now = self.whole_image(*rid, *id, key.taken.attempt);
                assert_eq!(now, *content, "{id} at {rid} is not what it was\n{}", self.describe());
                self.judge_changed(*rid, *id);
            }
        }
        for (id, of) in self.destroyed.keys().flat_map(|id| self.keys.get(id).map(|key| (id, key))) {
            for rid in of.taken.members.iter().filter(|rid| !self.reps[rid].lost) {
                self.judge_changed(*rid, *id);
            }
        }
    }

    /// R29: what it says has changed between two that it took is what has.
    fn judge_changed(&self, rid: Rid, id: SnapId) {
        let read = |value: &Value| if *value == ABSENT { ZERO } else { *value };
        let content = |id: &SnapId| -> Vec<Value> {
            let held = self.reported.get(id).or_else(|| self.destroyed.get(id));
            held.expect("told of").iter().map(read).collect()
        };
        let logged = |id: &SnapId| {
            let image = self.reps[&rid].stored.durable.images.get(*id);
            image.is_some_and(|image| image.state.compares() && image.took())
        };
        let others =
            self.reported.keys().chain(self.destroyed.keys()).filter(|other| logged(other) && logged(&id));
        for since in others {
            let expected = expected(&content(&id), &content(since), &ZERO);
            let told = self.changed(rid, id.0, since.0);
            assert_eq!(told, Ok(expected), "R29: {id} since {since} at {rid}\n{}", self.describe());
        }
    }

    /// What a replica says that differs between two snapshots, for each 64 KiB.
    pub fn changed(&self, rid: Rid, id: u128, since: u128) -> Result<Vec<bool>, Refusal> {
        let stored = &self.reps[&rid].stored;
        let mut disk = stored.disk.clone();
        let size = stored.durable.images.get(SnapId(id)).map_or(BLOCK, |image| image.size);
        let of = (SnapId(id), size);
        changed(
            pool_of(self.reps[&rid].host),
            &stored.durable,
            self.play.broken(),
            of,
            SnapId(since),
            |action| match action {
                Action::Disk { op, .. } => disk.run(op),
                Action::Image { op: op @ (ImageOp::Look { .. } | ImageOp::Kept { .. }), .. } => {
                    disk.run_image(op)
                }
                _ => Err(DiskError::Io),
            },
        )
    }

    /// The same, asked for in the middle of a plot.
    pub fn snapshots_hold(&self) {
        self.judge_reported();
    }
}
