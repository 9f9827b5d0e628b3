//! Replicas that go: into the trash, back from it, and out of it for good.
//!
//! Must always hold: absence deletes nothing (R15), and what a living record names is neither trashed nor destroyed.

use super::*;

impl Pools {
    /// Asks whether a replica may go, then lets it go.
    pub fn trash_replica(&mut self, pool: PoolId, key: ReplicaKey, answer: Answer) {
        let pool = match self.serving(pool) {
            Ok(pool) => pool,
            Err(failure) => return refuse(answer, failure),
        };
        if !pool.replicas.contains_key(&key) {
            let reason = format!("no {} of volume {} in pool {}", key.rid, key.volume, pool.id);
            let _ = answer.send(Ok(json!({ "trashed": false, "reason": reason })));
            return;
        }
        if pool.trashing.contains_key(&key) {
            return refuse(answer, Failure::new(Code::CHANGING, "the replica is being looked at already"));
        }
        pool.trashing.insert(key, Trashing { answer, taken: None });
        self.out.push_back(PoolsOut::Call(PoolsCall::Trash(key)));
    }

    /// The store answered [`PoolsCall::Trash`]: decides, and takes the replica out of service in the same moment.
    pub fn handle_trash_read(&mut self, key: ReplicaKey, result: Result<Option<Entry>, ReadError>) {
        let broken = self.broken;
        let Some(pool) = self.pools.values_mut().find(|p| p.trashing.contains_key(&key)) else { return };
        let Some(trashing) = pool.trashing.remove(&key) else { return };
        let stay = |answer: Answer, reason: String| {
            let _ = answer.send(Ok(json!({ "trashed": false, "reason": reason })));
        };
        let entry = match result {
            Ok(entry) => entry,
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => {
                return refuse(trashing.answer, Failure::new(Code::STORE_AWAY, why));
            }
            Err(ReadError::RolledBack(why)) => {
                return refuse(trashing.answer, Failure::new(Code::STORE_ROLLED_BACK, why));
            }
        };
        let present = match entry.as_ref().map(record_of).transpose() {
            Ok(present) => present,
            Err(error) => return stay(trashing.answer, error.to_string()),
        };
        let Some(slot) = pool.replicas.get(&key) else {
            return stay(trashing.answer, "the replica is gone".to_owned());
        };
        if !slot.machine.is_idle() {
            return stay(trashing.answer, "the replica has requests under way".to_owned());
        }
        let kept = slot.machine.durable();
        let kept = match kept.record.is_empty() {
            true => Ok(None),
            false => Record::parse(&kept.record).map(Some),
        };
        let verdict = match kept {
            _ if present.is_none() && broken.is(Mutation::AbsenceDeletes) => Ok(()),
            Ok(_) if broken.is(Mutation::TombstoneOfThePast) => may_trash(None, present.as_ref(), key.rid),
            Ok(kept) => may_trash(kept.as_ref(), present.as_ref(), key.rid),
            Err(error) => Err(format!("the record that the replica keeps: {error}")),
        };
        if let Err(reason) = verdict {
            return stay(trashing.answer, reason);
        }
        let Some(slot) = pool.replicas.remove(&key) else { return };
        // What the log holds of it must be in its checkpoint: the log forgets, the trash does not.
        let (side, bytes) = pool.encode_last_checkpoint(&slot);
        pool.trashing.insert(key, Trashing { answer: trashing.answer, taken: Some(slot) });
        pool.submit(
            Purpose::TrashCheckpoint(key),
            PoolOp::WriteCheckpoint { replica: key, slot: slot_of(side), bytes },
        );
    }

    /// What is in the trash of every serving pool.
    pub fn list_trash(&mut self, answer: Answer) {
        self.begin_trash(TrashKind::Tell, Some(answer));
    }

    /// Takes a volume's replicas out of the trash.
    pub fn restore_trash(&mut self, volume: VolumeId, answer: Answer) {
        self.begin_trash(TrashKind::Restore(volume), Some(answer));
    }

    /// Removes what is in the trash for good: one volume's replicas, or all.
    pub fn empty_trash(&mut self, volume: Option<VolumeId>, answer: Answer) {
        if self.rolled_back {
            let message = "the store has gone back: the trash may hold the only copies";
            return refuse(answer, Failure::new(Code::STORE_ROLLED_BACK, message));
        }
        self.begin_trash(TrashKind::Empty(volume), Some(answer));
    }

    pub(super) fn begin_trash(&mut self, kind: TrashKind, answer: Option<Answer>) {
        let id = self.next_job;
        self.next_job += 1;
        let mut waiting = 0;
        let about = |pool: PoolId| !matches!(kind, TrashKind::Room(one) if one != pool);
        for pool in self.pools.values_mut().filter(|p| p.phase == Phase::Serving && about(p.id)) {
            pool.submit(Purpose::ListTrash { job: id }, PoolOp::ListTrash);
            waiting += 1;
        }
        let entries = Vec::new();
        let job = TrashJob { kind, answer, waiting, entries, done: Vec::new(), error: None, acting: false };
        self.trash_jobs.insert(id, job);
        self.drive_trash(id);
    }

    pub(super) fn drive_trash(&mut self, id: u64) {
        let Some(job) = self.trash_jobs.get_mut(&id).filter(|j| j.waiting == 0) else { return };
        if !job.acting {
            job.acting = true;
            let now = unix_seconds();
            job.entries.retain(|(_, entry)| job.kind.concerns(entry, now));
            if let TrashKind::Room(id) = job.kind {
                room::choose(&self.pools, id, &mut job.entries);
            }
            match job.kind {
                TrashKind::Tell => {}
                TrashKind::Restore(_) => {
                    for (pool, entry) in &job.entries {
                        let Some(pool) = self.pools.get_mut(pool) else { continue };
                        let (name, key) = (entry.name.clone(), entry.replica);
                        pool.submit(Purpose::RestoreTrash { job: id, key }, PoolOp::RestoreTrash { name });
                        job.waiting += 1;
                    }
                }
                TrashKind::Empty(_) | TrashKind::Expire | TrashKind::Room(_) => {
                    let volumes: BTreeSet<VolumeId> =
                        job.entries.iter().map(|(_, entry)| entry.replica.volume).collect();
                    for volume in volumes {
                        self.out.push_back(PoolsOut::Call(PoolsCall::Emptying { job: id, volume }));
                        job.waiting += 1;
                    }
                }
            }
            if job.waiting > 0 {
                return;
            }
        }
        let Some(job) = self.trash_jobs.remove(&id) else { return };
        if let TrashKind::Room(pool) = job.kind {
            self.room_made(pool, !job.entries.is_empty());
        }
        let Some(answer) = job.answer else { return };
        if let Some(error) = job.error {
            return refuse(answer, error);
        }
        let result = match job.kind {
            TrashKind::Tell => {
                let item = |(pool, entry): &(PoolId, TrashEntry)| TrashItem {
                    volume: entry.replica.volume,
                    rid: entry.replica.rid,
                    pool: *pool,
                    since: Decimal(entry.since_s),
                };
                let mut items: Vec<TrashItem> = job.entries.iter().map(item).collect();
                items.sort_by_key(|i| (i.volume, i.rid));
                json!({ "items": items })
            }
            TrashKind::Restore(_) => json!({ "rids": job.done }),
            TrashKind::Empty(_) | TrashKind::Expire | TrashKind::Room(_) => {
                json!({ "removed": job.done.len() })
            }
        };
        let _ = answer.send(Ok(result));
    }

    /// The store answered [`PoolsCall::Emptying`]: destroys what the volume's record does not need.
    pub fn handle_emptying_read(
        &mut self,
        id: u64,
        volume: VolumeId,
        result: &Result<Option<Entry>, ReadError>,
    ) {
        let Some(job) = self.trash_jobs.get_mut(&id) else { return };
        job.waiting -= 1;
        let by = match job.kind {
            TrashKind::Empty(_) => EmptiedBy::Operator,
            TrashKind::Room(_) => EmptiedBy::Room,
            TrashKind::Expire | TrashKind::Tell | TrashKind::Restore(_) => EmptiedBy::Age,
        };
        let record = match result {
            Ok(entry) => entry.as_ref().map(record_of).transpose().map_err(|error| {
                Failure::new(code_of(&error), format!("the record of volume {volume}: {error}"))
            }),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => {
                Err(Failure::new(Code::STORE_AWAY, why.clone()))
            }
            Err(ReadError::RolledBack(why)) => Err(Failure::new(Code::STORE_ROLLED_BACK, why.clone())),
        };
        for (pool, entry) in job.entries.iter().filter(|(_, entry)| entry.replica.volume == volume) {
            let Some(pool) = self.pools.get_mut(pool) else { continue };
            let (name, rid) = (entry.name.clone(), entry.replica.rid);
            let verdict = record.as_ref().map_err(Clone::clone).and_then(|record| {
                may_empty(record.as_ref(), rid, by).map_err(|why| {
                    Failure::new(
                        Code::STILL_NAMED,
                        format!("{rid} of volume {volume} stays in the trash: {why}"),
                    )
                    .with("volume", volume.to_string())
                    .with("rid", rid.0)
                })
            });
            match verdict {
                Ok(()) => {
                    tracing::info!(pool = %pool.id, name, "removed from the trash for good");
                    pool.submit(Purpose::EmptyTrash { job: id, rid }, PoolOp::EmptyTrash { name });
                    job.waiting += 1;
                }
                Err(failure) => {
                    tracing::info!(pool = %pool.id, name, why = failure.message, "kept in the trash");
                    if by == EmptiedBy::Room {
                        pool.keep_in_trash(name);
                    }
                    job.error = Some(failure);
                }
            }
        }
        self.drive_trash(id);
    }
}

impl Pool {
    pub(super) fn put_back(&mut self, key: ReplicaKey, error: &PoolError) {
        if let Some(Trashing { answer, taken }) = self.trashing.remove(&key) {
            if let Some(slot) = taken {
                self.replicas.insert(key, slot);
            }
            refuse(answer, disk_failure(error));
        }
    }
}
