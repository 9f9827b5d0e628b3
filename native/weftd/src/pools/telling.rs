//! What the pools of this host tell a repair of the store: which records their replicas keep (4.15).
//!
//! Must always hold: a pool whose disk may change yet, or speaks against itself, tells nothing; looking changes nothing.

use super::*;

impl Pools {
    /// Tells what the replicas keep, for a repair of the store (4.15), when pools that don't serve were read.
    pub fn tell_records(&mut self, now: Instant, answer: Answer) {
        if self.asked.is_empty() {
            // What was read for an earlier repair is as it was, but an error may be over.
            for pool in self.pools.values_mut() {
                pool.look.take_if(|look| matches!(look, Look::Done(_)));
            }
        }
        self.asked.push((answer, now.after_ms(TELL_MS)));
        self.drive_asked(now);
    }

    /// Reads what has to be read, and answers when that is done or has taken too long.
    pub(super) fn drive_asked(&mut self, now: Instant) {
        if self.asked.is_empty() {
            return;
        }
        let Some(owner) = self.owner else { return };
        let mut waits = false;
        for pool in self.pools.values_mut().filter(|p| !p.retired) {
            waits |= pool.is_being_read(owner);
        }
        for (answer, until) in std::mem::take(&mut self.asked) {
            if waits && now < until {
                self.asked.push((answer, until));
            } else {
                let _ = answer.send(Ok(json!(self.kept_records(owner))));
            }
        }
    }

    /// The records that the replicas keep, as far as they were read.
    fn kept_records(&self, owner: PoolOwner) -> KeptRecords {
        let pools = || self.pools.values().filter(|p| !p.retired);
        let mut records: Vec<KeptRecord> = pools().flat_map(Pool::kept_records).collect();
        records.sort_by_key(|r| (r.volume, r.rid));
        KeptRecords { records, pools: pools().map(|pool| pool.kept(owner)).collect() }
    }
}

impl Pool {
    /// Is the disk this pool's, and this host's?
    pub(super) fn is_own(&self, owner: PoolOwner) -> bool {
        self.disk.is_some_and(|d| d.pool == self.id && d.cluster == owner.cluster && d.host == owner.host)
    }

    /// Was it opened, and does it not serve: what it holds is on its disk only, and nobody changes it?
    fn is_at_rest(&self) -> bool {
        self.file.is_some()
            && self.log.is_none()
            && matches!(self.phase, Phase::Starting | Phase::Quarantined(_))
    }

    /// Begins to read a pool that does not serve; true while that, or what must come before it, is under way.
    fn is_being_read(&mut self, owner: PoolOwner) -> bool {
        match self.phase {
            Phase::Opening | Phase::Recovering => true,
            Phase::Starting | Phase::Quarantined(_) => {
                // Another cluster's volumes are not this one's to rebuild.
                if !self.is_at_rest() || self.disk.is_none_or(|d| d.cluster != owner.cluster) {
                    return false;
                }
                if self.look.is_none() {
                    self.look = Some(Look::Log);
                    self.submit(Purpose::Look(LookStep::Log), PoolOp::ReadLog);
                }
                !matches!(self.look, Some(Look::Done(_)))
            }
            Phase::WaitingLock | Phase::Serving | Phase::Failed(_) => false,
        }
    }

    /// An answer to what [`Pool::is_being_read`] asked for.
    pub(super) fn handle_look(&mut self, step: LookStep, result: Result<PoolAnswer, PoolError>) {
        if !self.is_at_rest() {
            // It serves by now, and tells by itself.
            self.look = None;
            return;
        }
        let next = match (self.look.take(), step, result) {
            (Some(Look::Log), LookStep::Log, Ok(PoolAnswer::Bytes(log))) => {
                self.submit(Purpose::Look(LookStep::List), PoolOp::ListReplicas);
                Look::List(log)
            }
            (Some(Look::List(log)), LookStep::List, Ok(PoolAnswer::Replicas(keys))) => {
                self.submit(Purpose::Look(LookStep::Images), PoolOp::ListImages);
                Look::Images(log, keys)
            }
            (Some(Look::Images(log, keys)), LookStep::Images, Ok(PoolAnswer::Images(images))) => {
                for (side, slot) in [(Side::A, Slot::A), (Side::B, Slot::B)] {
                    for key in &keys {
                        let op = PoolOp::ReadCheckpoint { replica: *key, slot };
                        self.submit(Purpose::Look(LookStep::Checkpoint(*key, side)), op);
                    }
                    for (key, image) in &images {
                        let op = PoolOp::ReadImage { replica: *key, image: *image, slot };
                        self.submit(Purpose::Look(LookStep::Image(*key, *image, side)), op);
                    }
                }
                let loaded = keys.into_iter().map(|key| (key, [None, None])).collect();
                Look::Files(log, loaded, images.into_iter().map(|of| (of, [None, None])).collect())
            }
            (Some(Look::Files(log, mut loaded, images)), LookStep::Checkpoint(key, side), result) => {
                if let Some(sides) = loaded.get_mut(&key) {
                    sides[side as usize] = Some(read_or_nothing(result));
                }
                Look::Files(log, loaded, images)
            }
            (Some(Look::Files(log, loaded, mut images)), LookStep::Image(key, image, side), result) => {
                if let Some(sides) = images.get_mut(&(key, image)) {
                    sides[side as usize] = Some(read_or_nothing(result));
                }
                Look::Files(log, loaded, images)
            }
            (_, _, other) => Look::Done(Err(format!("it can't be read: {}", said(&other)))),
        };
        self.look = Some(match next {
            Look::Files(log, loaded, images) if all_read(&loaded) && all_read(&images) => {
                Look::Done(self.looked(&log, &loaded, &images))
            }
            next => next,
        });
    }

    fn looked(
        &self,
        log: &IoBuf,
        loaded: &BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>,
        images: &LoadedImages,
    ) -> Result<Vec<KeptRecord>, String> {
        let read = self.read_back(loaded, images, Some(log))?;
        Ok(read
            .found
            .iter()
            .map(|(key, (_, checkpoint))| self.kept_record(*key, &checkpoint.durable))
            .collect())
    }

    fn kept_record(&self, key: ReplicaKey, durable: &Durable) -> KeptRecord {
        let record = serde_json::from_slice::<Value>(&durable.record).ok().map(RecordJson);
        let (images, gone) = kept_images(durable);
        let promised = durable.promised;
        KeptRecord { volume: key.volume, rid: key.rid, pool: self.id, promised, record, images, gone }
    }

    /// The records that its replicas keep, as far as they were read.
    fn kept_records(&self) -> Vec<KeptRecord> {
        if let Some(Look::Done(looked)) = &self.look {
            return looked.clone().unwrap_or_default();
        }
        // One whose metadata can't be read tells nothing, which is another thing than having promised nothing yet.
        let unread = |slot: &Slotted| slot.quarantined && slot.machine.durable().record.is_empty();
        let told = self.replicas.iter().filter(|(_, slot)| !unread(slot));
        told.map(|(key, slot)| self.kept_record(*key, slot.machine.durable())).collect()
    }

    /// The pool for a repair.
    fn kept(&self, owner: PoolOwner) -> KeptPool {
        let on_disk = self.start.as_ref().map_or(self.inc, |start| start.superblock().inc);
        let (tells, reason) = match (&self.phase, &self.look) {
            (_, Some(Look::Done(Err(why)))) => (false, Some(why.clone())),
            (Phase::Quarantined(why), Some(Look::Done(Ok(_)))) => (self.store_behind, Some(why.clone())),
            (_, Some(Look::Done(Ok(_)))) => (true, None),
            // What it took up when it began to serve is in memory.
            (Phase::Serving, _) => (true, None),
            (Phase::Failed(why), _) => (self.log.is_some(), Some(why.clone())),
            (Phase::Quarantined(why), _) => (false, Some(why.clone())),
            (Phase::WaitingLock, _) => (false, self.info().reason),
            (Phase::Opening | Phase::Starting | Phase::Recovering, _) => {
                (false, Some("it is still being opened or read".to_owned()))
            }
        };
        KeptPool {
            pool: self.id,
            path: self.path.display().to_string(),
            inc: self.is_own(owner).then_some(on_disk),
            served: self.served.max(if self.phase == Phase::Serving { self.inc } else { PoolInc(0) }),
            tells: tells && self.is_own(owner),
            reason,
        }
    }
}
