//! Snapshots of the world: asked for, deleted, their keys in the store, what janitors and a repair make of them.

use weft_proto::images::{ImageState, Place};
use weft_proto::record::Snaps;
use weft_proto::session::{SnapKnown, SnapState, SnapTaken};

use super::media::Content;
use super::*;

/// A snapshot's key, as weftd writes it.
#[derive(Clone, Debug)]
pub(super) struct Key {
    taken: SnapTaken,
    logged: bool,
    deleting: bool,
}

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
        if dice(self, plan.janitor) {
            for rep in 0..self.reps.len() {
                self.janitor(rep);
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
        let known = |(id, key): (&SnapId, &Key)| SnapKnown {
            id: *id,
            attempt: key.taken.attempt,
            generation: key.taken.generation,
            state: match (key.deleting, key.logged) {
                (true, _) => SnapState::Deleting,
                (false, true) => SnapState::Logged,
                (false, false) => SnapState::Taken,
            },
            members: key.taken.members.clone(),
            note: vec![id.0 as u8],
        };
        let known = self.store.keys.iter().map(known).collect();
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
        let known = self.store.keys.get_mut(&id);
        match (change, known) {
            (SnapChange::Taken(taken), None) => {
                self.store.keys.insert(id, Key { taken, logged: false, deleting: false });
            }
            (SnapChange::Logged { .. }, Some(key)) => key.logged = true,
            (SnapChange::Deleting { .. }, Some(key)) => {
                key.deleting = true;
                self.barriers.reported.remove(&id);
            }
            (SnapChange::Gone { .. }, Some(key)) if key.deleting => drop(self.store.keys.remove(&id)),
            (SnapChange::Changed { .. }, Some(_)) => {}
            (change, _) => return self.fail(format!("a key that is not so is changed: {change:?}")),
        }
        let snaps = &self.store.record.snaps;
        let newest = snaps.newest.is_none_or(|id| self.store.keys.contains_key(&id));
        if snaps.count as usize != self.store.keys.len() || !newest {
            self.fail(format!("the record says {snaps:?}, there are {} keys", self.store.keys.len()));
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

    /// `weft store repair`: keys are made for what replicas have logged READY; being gone beats that.
    pub(super) fn repair_keys(&mut self) -> Snaps {
        let telling = |r: &&Rep| !r.is_gone() && !r.put_back;
        let mut keys = std::mem::take(&mut self.store.keys);
        for r in self.reps.iter().filter(telling) {
            for image in r.stored.durable.images.iter().filter(|i| i.state != ImageState::Prepared) {
                let taken = SnapTaken {
                    id: image.id,
                    attempt: image.attempt,
                    generation: image.generation,
                    epoch: image.epoch,
                    incarnation: image.incarnation,
                    size: image.size,
                    region_shift: image.region_shift,
                    members: Vec::new(),
                };
                let key = keys.entry(image.id).or_insert(Key { taken, logged: true, deleting: false });
                key.deleting |= image.state == ImageState::Deleting;
                key.logged |= image.state == ImageState::Ready;
                if !key.taken.members.contains(&r.rid) {
                    key.taken.members.push(r.rid);
                }
            }
        }
        for r in self.reps.iter().filter(telling) {
            for (id, attempt) in r.stored.durable.images.gone() {
                if let Some(key) = keys.get_mut(&id).filter(|key| key.taken.attempt <= attempt) {
                    key.deleting = true;
                }
            }
        }
        for (id, key) in &keys {
            if key.deleting {
                self.barriers.reported.remove(id);
            }
        }
        let newest = keys.values().max_by_key(|key| (key.taken.generation, key.taken.attempt));
        let snaps =
            Snaps { count: keys.len() as u32, newest: newest.map(|key| key.taken.id), ..Snaps::default() };
        self.store.keys = keys;
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
        SnapChange::Changed { .. } => "changed",
    };
    format!("snapshot {} {what}", change.id().0)
}
