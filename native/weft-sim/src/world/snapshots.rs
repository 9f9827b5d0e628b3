//! Snapshots of the world: asked for, deleted, their keys in the store, what janitors and a repair make of them.

use weft_proto::images::{ImageState, Place};
use weft_proto::record::Snaps;

use super::media::Content;
use super::*;
use crate::changed::{changed, expected};
use crate::snap_keys::{self, Key};

/// What a session's attempts may have brought into their images, and what somebody was told of.
#[derive(Default)]
pub(super) struct Barriers {
    next: u128,
    /// Asked for, and not told of; asked for again by the same id.
    asked: Vec<SnapId>,
    /// For each attempt, what each half block may have held when its first PREPARE was sent.
    allowed: BTreeMap<(SnapId, u64), Vec<Vec<Value>>>,
    /// What somebody was told of, and has not been deleted since: its content, where it could be read.
    reported: BTreeMap<SnapId, Vec<Option<Content>>>,
}

/// What a block that had this may have once the volume is taken back to that.
fn kinds_of(value: Value) -> Vec<Value> {
    if [ABSENT, ZERO].contains(&value) { vec![ABSENT, ZERO] } else { vec![value] }
}

/// A block of an image; none if it can't be read.
type Image = Vec<Option<Content>>;

impl World {
    pub(super) fn snapshot_faults(&mut self) {
        let plan = self.plan.clone();
        let dice = |w: &mut World, weight: u64| weight > 0 && w.rng.below(1000) < weight;
        if dice(self, plan.snapshot) {
            let again = self.rng.chance(40);
            let id = match self.barriers.asked.last() {
                Some(id) if again => *id,
                _ => {
                    self.barriers.next += 1;
                    SnapId(self.barriers.next)
                }
            };
            if !self.barriers.asked.contains(&id) {
                self.barriers.asked.push(id);
            }
            self.note(|_| format!("snapshot {} is asked for", id.0));
            self.for_owner(|m, now| m.snapshot(now, id, vec![id.0 as u8]));
        }
        if dice(self, plan.delete_snapshot) && !self.store.keys.is_empty() {
            let at = self.rng.index(self.store.keys.len());
            let id = *self.store.keys.keys().nth(at).expect("so many");
            self.note(|_| format!("snapshot {} is to go", id.0));
            self.for_owner(|m, now| m.delete_snapshot(now, id));
        }
        if dice(self, plan.revert)
            && let Some(id) = self.any_readable()
        {
            self.note(|_| format!("the volume shall be as it was in snapshot {}", id.0));
            self.caretake(Task::Revert(id));
        }
        if dice(self, plan.janitor) {
            for rep in 0..self.reps.len() {
                self.janitor(rep);
            }
        }
    }

    /// A snapshot that somebody was told of, and all of which could be read; of another size only now and then.
    fn any_readable(&mut self) -> Option<SnapId> {
        let any_size = self.rng.chance(10);
        let fits = |image: &Image| any_size || image.len() as u64 * BLOCK == self.store.record.size;
        let whole = |image: &Image| fits(image) && image.iter().all(Option::is_some);
        let whole = self.barriers.reported.iter().filter(|(_, image)| whole(image));
        let ids: Vec<SnapId> = whole.map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[self.rng.index(ids.len())])
    }

    /// The record says that the volume is taken back to this snapshot: from now on it may hold what that has, until somebody is
    /// told that it does. What is nothing there is a hole of either kind.
    pub(super) fn revert_marked(&mut self, id: SnapId) {
        self.note(|_| format!("store: the volume is taken back to snapshot {}", id.0));
        let Some(content) = self.barriers.reported.get(&id) else { return };
        let halves: Vec<Value> = content.iter().flatten().flat_map(|content| content.0).collect();
        for (half, value) in (0..).zip(halves) {
            for value in kinds_of(value) {
                self.oracle.write_called(half, value, self.now);
            }
        }
        // What an owner of before answers now may be what was there before, and is the same value.
        let owner = self.owner_session();
        for (_, s) in self.sessions.iter_mut().enumerate().filter(|(n, _)| Some(*n) != owner) {
            s.guests.clear();
            s.stale_answers = true;
        }
    }

    /// If the record says that the volume is taken back to a snapshot: have these replicas each block of that?
    pub(super) fn revert_can_end(&self, counts: impl Fn(Id) -> bool) -> bool {
        let Some(marker) = &self.store.record.reverting else { return true };
        let named = |rep: &Id| self.store.record.replica(self.reps[*rep].rid).is_some();
        let there = |rep: &Id| !self.reps[*rep].is_gone() && !self.reps[*rep].put_back;
        let reps = (0..self.reps.len()).filter(|rep| counts(*rep) && named(rep) && there(rep));
        let images: Vec<Image> =
            reps.filter_map(|rep| self.image(rep, marker.snap, marker.attempt).ok()).collect();
        let blocks = usize::try_from(self.store.record.size / BLOCK).expect("a small volume");
        (0..blocks).all(|block| images.iter().any(|image| image.get(block).is_some_and(Option::is_some)))
    }

    /// R30: the record does not say so any more. Even if the store is lost now nobody sees anything else again.
    pub(super) fn judge_reverted(&mut self, id: SnapId) {
        let Some(content) = self.barriers.reported.get(&id).filter(|_| !self.store.rolled_back) else {
            return;
        };
        let halves: Vec<Value> = content.iter().flatten().flat_map(|content| content.0).collect();
        let members: Vec<Rid> = self.store.record.in_sync().map(|e| e.rid).collect();
        let holders: Vec<Id> = members.iter().filter_map(|rid| self.rep_of(*rid)).collect();
        for (half, value) in (0..).zip(halves) {
            let (block, side) = (half as usize / 2, half as usize % 2);
            for rep in holders.iter().filter(|rep| !self.reps[**rep].stored.media.is_bad(block)) {
                let here = self.reps[*rep].stored.media.content(block).0[side];
                if !kinds_of(value).contains(&here) {
                    let (rid, name) = (self.reps[*rep].rid, self.oracle.name(half));
                    return self.fail(format!(
                        "R30: {name} of {rid} is {here}, and the volume was taken back to snapshot {} with {value}",
                        id.0
                    ));
                }
                self.oracle.write_acked(half, here, self.now);
            }
        }
    }

    /// weftd reads the keys for a session that has opened.
    pub(super) fn read_keys(&mut self, session: Id) {
        let host = self.sessions[session].host;
        if self.sees_store(host) != Some(true) {
            if self.sessions[session].machine.is_some() {
                self.at(300 * MS, Event::Keys { session });
            }
            return;
        }
        let known = snap_keys::known(&self.store.keys);
        let now = self.clock(host);
        if let Some(m) = &mut self.sessions[session].machine {
            m.know_snapshots(now, known);
            self.drain_session(session);
        }
    }

    /// The change of a key in the transaction that changed the record.
    pub(super) fn change_key(&mut self, change: SnapChange) {
        let id = change.id();
        self.note(|_| format!("store: {}", told(&change)));
        if matches!(change, SnapChange::Deleting { .. }) {
            self.barriers.reported.remove(&id);
        }
        let changed = snap_keys::change(&mut self.store.keys, change, vec![id.0 as u8]);
        let agreed = changed.and_then(|()| snap_keys::agree(&self.store.keys, &self.store.record.snaps));
        if let Err(what) = agreed {
            self.fail(what);
        }
    }

    /// A replica's daemon looks for images that are of no use (R15; docs/model.md, findings 10 and 23).
    fn janitor(&mut self, rep: Id) {
        let (host, rid) = (self.reps[rep].host, self.reps[rep].rid);
        if !self.reps[rep].is_serving() || self.sees_store(host) != Some(true) {
            return;
        }
        let record = &self.store.record;
        let useless = |image: &&weft_proto::images::Image| {
            let named = self.store.keys.get(&image.id).is_some_and(|key| key.taken.attempt == image.attempt);
            // Here every replica has told its log before a repair is done.
            let old = image.incarnation < self.store.incarnation || image.epoch < record.epoch;
            image.state == ImageState::Prepared
                && image.incarnation <= self.store.incarnation
                && old
                && !named
        };
        let images = self.reps[rep].stored.durable.images.iter();
        let useless: Vec<(SnapId, u64)> = images.filter(useless).map(|i| (i.id, i.attempt)).collect();
        let now = self.clock(host);
        for (id, attempt) in useless {
            self.note(|_| format!("{rid} removes what attempt {attempt} at snapshot {} has left", id.0));
            if let Some(m) = &mut self.reps[rep].machine {
                m.drop_image(now, id, attempt);
            }
            self.drain_replica(rep);
        }
    }

    pub(super) fn repair_keys(&mut self) -> Snaps {
        let telling = self.reps.iter().filter(|r| !r.is_gone() && !r.put_back);
        let told = telling.map(|r| (r.rid, &r.stored.durable.images));
        let snaps = snap_keys::repair(&mut self.store.keys, told);
        for (id, _) in self.store.keys.iter().filter(|(_, key)| key.deleting) {
            self.barriers.reported.remove(id);
        }
        snaps
    }

    // ---- the judge

    /// The first PREPARE of an attempt is sent: what is completed now is in it, what is called later is not.
    pub(super) fn note_barrier(&mut self, ask: &Ask<HeapPayload>) {
        let Ask::SnapPrepare { id, attempt, .. } = ask else { return };
        let (now, halves) = (self.now, 2 * self.blocks() as u64);
        let oracle = &self.oracle;
        let all = || (0..halves).map(|half| oracle.allowed(half, now)).collect();
        self.barriers.allowed.entry((*id, *attempt)).or_insert_with(all);
    }

    /// What a replica has of a snapshot: an error if it has it not, or not as its log says.
    fn image(&self, rep: Id, id: SnapId, attempt: u64) -> Result<Image, String> {
        let stored = &self.reps[rep].stored;
        let rid = self.reps[rep].rid;
        let images = &stored.durable.images;
        let Some(image) = images.get(id).filter(|image| image.attempt == attempt) else {
            return Err(format!("I21: {rid} has not the image of snapshot {}, attempt {attempt}", id.0));
        };
        let content = |block: usize| {
            let region = (block as u64 * BLOCK) >> image.region_shift;
            let found = match images.place(id, region as u32) {
                Some(Place::Head) => Some((stored.media.content(block), stored.media.is_bad(block))),
                Some(Place::Absent) => Some((Content::default(), false)),
                Some(Place::Image { image, heir }) => stored.media.image_content(image, heir, block),
                None => None,
            };
            match found {
                Some((content, bad)) => Ok((!bad).then_some(content)),
                None => Err(format!("R28: {rid} has lost block {block} of snapshot {}", id.0)),
            }
        };
        (0..(image.size / BLOCK) as usize).map(content).collect()
    }

    /// The copies that a snapshot's key lists, as far as they can be relied on.
    fn holders(&self, key: &Key) -> Vec<Id> {
        let members = key.taken.members.iter().filter(|rid| self.store.record.replica(**rid).is_some());
        let reps = members.filter_map(|rid| self.rep_of(*rid));
        reps.filter(|rep| !self.reps[*rep].is_gone() && !self.reps[*rep].put_back).collect()
    }

    /// I21: somebody is told of a snapshot.
    pub(super) fn judge_taken(&mut self, id: SnapId) {
        self.barriers.asked.retain(|asked| *asked != id);
        let Some(key) = self.store.keys.get(&id).filter(|key| !key.deleting && !self.store.rolled_back)
        else {
            return;
        };
        let key = key.clone();
        self.counts.snapshots += 1;
        let mut seen: Image = vec![None; (key.taken.size / BLOCK) as usize];
        for rep in self.holders(&key) {
            let rid = self.reps[rep].rid;
            let image = match self.image(rep, id, key.taken.attempt) {
                Ok(image) => image,
                Err(what) => return self.fail(what),
            };
            for (block, seen) in seen.iter_mut().enumerate() {
                let here = image.get(block).copied().flatten();
                if let (Some(here), Some(there)) = (here, *seen)
                    && here != there
                {
                    return self.fail(format!(
                        "I21: block {block} of snapshot {} is {:?} at {rid} and {:?} elsewhere",
                        id.0, here.0, there.0
                    ));
                }
                *seen = seen.or(here);
            }
        }
        let allowed = self.barriers.allowed.get(&(id, key.taken.attempt));
        let Some(allowed) = allowed else {
            return self.fail(format!("snapshot {} had no barrier", id.0));
        };
        for (half, allowed) in allowed.iter().enumerate() {
            let value = seen.get(half / 2).copied().flatten().map(|content| content.0[half % 2]);
            if let Some(value) = value.filter(|value| !allowed.contains(value)) {
                let name = self.oracle.name(half as u64);
                let what = format!(
                    "I21: {name} of snapshot {} is {value}; at its barrier it was one of {allowed:?}",
                    id.0
                );
                return self.fail(what);
            }
        }
        self.barriers.reported.entry(id).or_insert(seen);
        self.judge_reported();
    }

    /// What was told of is there, and as it was.
    pub(super) fn judge_reported(&mut self) {
        if self.store.rolled_back {
            return;
        }
        let reported = std::mem::take(&mut self.barriers.reported);
        let wrong = reported.iter().find_map(|(id, content)| self.is_wrong(*id, content));
        self.barriers.reported = reported;
        if let Some(what) = wrong {
            self.fail(what);
        }
    }

    fn is_wrong(&self, id: SnapId, content: &Image) -> Option<String> {
        let Some(key) = self.store.keys.get(&id) else {
            let ready = |r: &Rep| {
                let has = r.stored.durable.images.get(id).is_some_and(|i| i.state == ImageState::Ready);
                has && !r.is_gone() && !r.put_back
            };
            let kept = self.reps.iter().any(ready);
            return kept.then(|| format!("R27: snapshot {} was told of and is not in the store", id.0));
        };
        for rep in self.holders(key) {
            let image = match self.image(rep, id, key.taken.attempt) {
                Ok(image) => image,
                Err(what) => return Some(what),
            };
            let differs = image.iter().zip(content).position(|(now, then)| match (now, then) {
                (Some(now), Some(then)) => now != then,
                _ => false,
            });
            if let Some(what) = self.tells_changed_wrong(rep, id) {
                return Some(what);
            }
            if let Some(block) = differs {
                let (rid, now, then) = (self.reps[rep].rid, image[block], content[block]);
                return Some(format!(
                    "I21: block {block} of snapshot {} at {rid} is {now:?}, and was {then:?}",
                    id.0
                ));
            }
        }
        None
    }

    /// R29: between the newest snapshot and any other one a copy that took both says what has changed, neither more nor
    /// less; unless it can't read something of that.
    fn tells_changed_wrong(&self, rep: Id, since: SnapId) -> Option<String> {
        let (stored, rid) = (&self.reps[rep].stored, self.reps[rep].rid);
        let ready = |id: SnapId| stored.durable.images.get(id).filter(|i| i.state == ImageState::Ready);
        let newest = stored.durable.images.iter().rev().find(|i| i.state == ImageState::Ready)?;
        let (of, since) = (newest, ready(since)?);
        let content = |image: &weft_proto::images::Image| {
            let found = self.image(rep, image.id, image.attempt).ok()?.into_iter();
            let read = |content: Content| match content.0 {
                [ABSENT, ABSENT] => Content::whole(ZERO),
                _ => content,
            };
            found.map(|content| content.map(read)).collect::<Option<Vec<Content>>>()
        };
        let mut media = stored.media.clone();
        let pool = self.reps[rep].pool;
        let told =
            changed(pool, &stored.durable, self.broken, (of.id, of.size), since.id, |action| match action {
                Action::Disk { op, .. } => media.run(op),
                Action::Image { op: op @ (ImageOp::Look { .. } | ImageOp::Kept { .. }), .. } => {
                    media.run_image(op)
                }
                _ => Err(DiskError::Io),
            });
        // What can't be read is refused, where it has to be read.
        let (Some(a), Some(b)) = (content(of), content(since)) else { return None };
        let expected = expected(&a, &b, &Content::whole(ZERO));
        let names = (of.id.0, since.id.0);
        (told != Ok(expected.clone())).then(|| {
            format!(
                "R29: {rid} says of snapshot {} since {}: {told:?}, that is {expected:?}",
                names.0, names.1
            )
        })
    }

    /// At the end: nothing is half done, and nothing is left of attempts that came to nothing.
    pub(super) fn judge_leftovers(&mut self) -> Result<(), String> {
        if self.plan.snapshot == 0 {
            return Ok(());
        }
        let limit = self.now + 60_000 * MS;
        self.until(limit, "a snapshot is not brought to its end", |w| {
            let away = |rid: Rid| {
                let rep = w.rep_of(rid).map(|rep| &w.reps[rep]);
                let there = w.store.record.replica(rid).is_some_and(|e| e.state == ReplicaState::InSync);
                !there || rep.is_none_or(|r| r.is_gone() || r.put_back)
            };
            let waits = |key: &Key| key.taken.members.iter().any(|rid| away(*rid));
            w.store.keys.values().all(|key| waits(key) || key.logged && !key.deleting)
        })?;
        for _ in 0..3 {
            for rep in 0..self.reps.len() {
                self.janitor(rep);
            }
            let later = self.now + 2000 * MS;
            self.run_until(|w| w.now > later)?;
        }
        self.judge_reported();
        let mut left = None;
        for r in self
            .reps
            .iter()
            .filter(|r| r.is_serving() && !r.put_back && self.store.record.replica(r.rid).is_some())
        {
            for image in r.stored.durable.images.iter() {
                let named =
                    self.store.keys.get(&image.id).is_some_and(|key| key.taken.attempt == image.attempt);
                if !named && image.epoch < self.store.record.epoch {
                    left = Some(format!("{} keeps an image of snapshot {} for nobody", r.rid, image.id.0));
                }
            }
        }
        if let Some(what) = left {
            self.fail(what);
        }
        match self.violation.take() {
            Some(what) => Err(self.report(&what)),
            None => Ok(()),
        }
    }
}

fn told(change: &SnapChange) -> String {
    let what = match change {
        SnapChange::Taken(taken) => {
            return format!(
                "snapshot {} at {}, attempt {}, {}",
                taken.id.0,
                taken.generation,
                taken.attempt,
                names(&taken.members)
            );
        }
        SnapChange::Logged { .. } => "is logged",
        SnapChange::Deleting { .. } => "is being deleted",
        SnapChange::Gone { .. } => "is gone",
        SnapChange::Destroyed { .. } => "loses its data",
        SnapChange::Emptied { .. } => "has no data any more",
        SnapChange::Changed { .. } => "changed",
        SnapChange::Added { rid, .. } => return format!("snapshot {} is at {rid}, too", change.id().0),
    };
    format!("snapshot {} {what}", change.id().0)
}
