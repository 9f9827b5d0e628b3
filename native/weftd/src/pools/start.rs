//! What a pool's files say when it is opened, put together: superblock, checkpoints, log.
//!
//! Must always hold: files that can't have been written so are told of and quarantine the pool; nothing of them is guessed.

use super::images::FoundImages;
use super::*;

impl Pools {
    /// Goes on when all that was asked for has been read: at the pool's start with the log, later (restored from
    /// the trash) without, since what the log held of a trashed replica is in its checkpoint.
    pub(super) fn try_recover(&mut self, now: Instant, id: PoolId) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        if !all_read(&pool.loading) || !pool.loading_images.as_ref().is_some_and(all_read) {
            return;
        }
        let loaded = std::mem::take(&mut pool.loading);
        let images = pool.loading_images.replace(LoadedImages::new()).unwrap_or_default();
        let log = pool.recovering_log.take();
        let result = pool.recover(now, (loaded, images), log, self.watermark, self.owner.as_ref());
        match result {
            Ok(()) => {
                if pool.phase == Phase::Recovering {
                    pool.phase = Phase::Serving;
                    pool.space_due = now;
                    // What became too old while it was not served.
                    self.trash_due = now;
                    tracing::info!(pool = %id, inc = %pool.inc, replicas = pool.replicas.len(), "pool serves");
                }
            }
            Err(why) => pool.quarantine(why),
        }
        let keys: Vec<ReplicaKey> = pool.replicas.keys().copied().collect();
        for key in keys {
            pool.drive_replica(now, key, &mut self.out);
        }
        self.out.push_back(PoolsOut::Changed(id));
    }
}

impl Pool {
    pub(super) fn begin(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        dir: PoolDir,
        superblock: Result<Superblock, String>,
        owner: PoolOwner,
    ) {
        let superblock = match superblock {
            Ok(superblock) => superblock,
            Err(why) => return self.quarantine(why),
        };
        if superblock.pool != self.id {
            return self.quarantine(format!("its directory holds pool {}", superblock.pool));
        }
        self.disk = Some(superblock);
        if superblock.log_blocks * LOG_BLOCK as u64 != dir.wal_bytes() {
            return self.quarantine(format!(
                "its log has {} bytes, its superblock says {} blocks",
                dir.wal_bytes(),
                superblock.log_blocks
            ));
        }
        match FilePool::start(dir, PoolConfig::new(self.space), driver) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                self.phase = Phase::Failed(error.to_string());
                return;
            }
        }
        self.phase = Phase::Starting;
        self.space_due = now;
        self.inc_before = superblock.inc;
        self.inc = superblock.inc;
        if self.is_own(owner) && superblock.inc < self.served {
            // Also when the store does not know better: it may have been restored from a backup (R11).
            let why = format!(
                "the disk is at incarnation {}, this host has served it at {}: the disk was rolled back, swapped or copied",
                superblock.inc, self.served
            );
            return self.quarantine(why);
        }
        self.start = Some(PoolStart::new(superblock, owner.cluster, owner.host, Nonce(random_u128())));
    }

    /// The pool's key with a raised incarnation; what others wrote into it is kept.
    pub(super) fn store_value(&self, inc: PoolInc, intent: Nonce, owner: Option<&PoolOwner>) -> Vec<u8> {
        let present = self.stored.as_ref().and_then(|e| serde_json::from_slice::<Value>(&e.value).ok());
        let mut value = present.filter(Value::is_object).unwrap_or_else(|| json!({}));
        value["id"] = json!(self.id);
        value["node"] = json!(owner.map(|o| o.host));
        value["inc"] = json!(inc);
        value["intent"] = json!(intent);
        value["boot_id"] = json!(owner.map(|o| HostId(o.boot_id)));
        value["path"] = json!(self.path.display().to_string());
        value["kind"] = json!("dir");
        serde_json::to_vec(&value).expect("a value is always JSON")
    }

    pub(super) fn load(&mut self, key: ReplicaKey) {
        self.loading.insert(key, [None, None]);
        for (side, slot) in [(Side::A, Slot::A), (Side::B, Slot::B)] {
            self.submit(Purpose::ReadCheckpoint(key, side), PoolOp::ReadCheckpoint { replica: key, slot });
        }
    }

    pub(super) fn load_images(&mut self, images: Vec<(ReplicaKey, SnapId)>) {
        self.loading_images = Some(images.iter().map(|of| (*of, [None, None])).collect());
        for (key, image) in images {
            for (side, slot) in [(Side::A, Slot::A), (Side::B, Slot::B)] {
                let op = PoolOp::ReadImage { replica: key, image, slot };
                self.submit(Purpose::ReadImage(key, image, side), op);
            }
        }
    }

    fn recover(
        &mut self,
        now: Instant,
        (loaded, images): (BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>, LoadedImages),
        log: Option<IoBuf>,
        watermark: Watermark,
        owner: Option<&PoolOwner>,
    ) -> Result<(), String> {
        let ReadBack { found, damaged, unfinished, recovered, mut image_files, leftovers, lost } =
            self.read_back(&loaded, &images, log.as_ref())?;
        self.unfinished.extend(unfinished);
        if let (Some(ring), Some(recovered)) = (log, recovered) {
            let blocks = (ring.len() / LOG_BLOCK) as u64;
            self.log = Some(Log::new(LogPlace { pool: self.id, inc: self.inc, blocks }, &recovered));
        }
        for (key, why) in damaged {
            tracing::error!(pool = %self.id, volume = %key.volume, rid = %key.rid, why, "replica quarantined");
            let place = (Side::A, 0, self.log.as_ref().map_or(0, Log::durable_seq));
            let mut slot = self.slot(Durable::new(key.volume, key.rid, 4096, 20), place, watermark, owner);
            slot.machine.handle_quarantine();
            slot.quarantined = true;
            self.replicas.insert(key, slot);
        }
        for (key, (side, checkpoint)) in found {
            let durable = checkpoint.durable;
            let op =
                PoolOp::OpenReplica { replica: key, size: durable.size, unsealed: unsealed_ranges(&durable) };
            let place = (side, checkpoint.counter, checkpoint.log_seq);
            let mut slot = self.slot(durable, place, watermark, owner);
            slot.image_files = image_files.remove(&key).unwrap_or_default();
            for (_, image) in lost.iter().filter(|(of, _)| *of == key) {
                slot.machine.note_lost(*image);
            }
            self.replicas.insert(key, slot);
            self.submit(Purpose::Open(key), op);
            self.append_identity(now, key, owner);
        }
        for (key, image) in leftovers {
            match self.replicas.contains_key(&key) {
                true => self.drop_images(key, [image]),
                // Absence deletes nothing (R15).
                false => self.orphans.push((key, image)),
            }
        }
        self.drive_log();
        Ok(())
    }

    /// What checkpoints and the log say together; nothing is changed anywhere.
    pub(super) fn read_back(
        &self,
        loaded: &BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>,
        images: &LoadedImages,
        log: Option<&IoBuf>,
    ) -> Result<ReadBack, String> {
        let mut read = ReadBack::default();
        for (key, sides) in loaded {
            let [a, b] = [0, 1].map(|i| sides[i].as_ref().map_or(&[][..], |buf| buf.bytes()));
            match checkpoint::choose(a, b, self.id, *key) {
                Ok(chosen) => {
                    read.found.insert(*key, chosen);
                }
                // Its creation never got to the first checkpoint: nobody was told that it exists.
                Err(_) if a.iter().chain(b).all(|byte| *byte == 0) => read.unfinished.push(*key),
                Err(error) => read.damaged.push((*key, error.to_string())),
            }
        }
        let mut of_images: BTreeMap<ReplicaKey, FoundImages> = BTreeMap::new();
        for (key, (_, checkpoint)) in &mut read.found {
            let mut found = self.found_images(*key, images);
            let gone: BTreeSet<(SnapId, u64)> = checkpoint.durable.images.gone().collect();
            let (there, late): (Vec<_>, Vec<_>) =
                found.images.drain(..).partition(|image| !gone.contains(&(image.id, image.attempt)));
            for image in late {
                found.files.remove(&image.id);
                found.seqs.remove(&image.id);
            }
            checkpoint.durable.images.restore(there);
            of_images.insert(*key, found);
        }
        self.replay(&mut read, &mut of_images, log)?;
        for (key, (_, checkpoint)) in &mut read.found {
            for image in checkpoint.durable.images.lose_missing() {
                tracing::error!(pool = %self.id, volume = %key.volume, rid = %key.rid, %image, "an image's files are gone or damaged, and nobody knows what it had");
                read.lost.push((*key, image));
            }
        }
        for (key, found) in of_images {
            let Some((_, checkpoint)) = read.found.get(&key) else { continue };
            let known = &checkpoint.durable.images;
            let is_there = |id: SnapId| images.contains_key(&(key, id));
            let unknown = found
                .damaged
                .iter()
                .find(|(id, _)| known.get(**id).is_none() && !known.gone().any(|(gone, _)| gone == **id));
            // All that the log says of it is known: what it had is damage, which each look at it says, and its files are made
            // again with the next checkpoint.
            for image in known.iter().filter(|image| !is_there(image.id)) {
                tracing::error!(pool = %self.id, volume = %key.volume, rid = %key.rid, image = %image.id, "an image's files are gone");
                read.lost.push((key, image.id));
            }
            let Some((id, why)) = unknown else {
                read.image_files.insert(key, found.files);
                continue;
            };
            let why = format!("image {id}: {why}");
            read.damaged.push((key, why));
            read.found.remove(&key);
        }
        let named = |(key, id): &(ReplicaKey, SnapId)| match read.found.get(key) {
            Some((_, checkpoint)) => checkpoint.durable.images.get(*id).is_some(),
            // Nothing is known of its images.
            None => loaded.contains_key(key),
        };
        read.leftovers = images.keys().filter(|of| !named(of)).copied().collect();
        Ok(read)
    }

    /// What the log says since the checkpoints, and since the images' files.
    fn replay(
        &self,
        read: &mut ReadBack,
        of_images: &mut BTreeMap<ReplicaKey, FoundImages>,
        log: Option<&IoBuf>,
    ) -> Result<(), String> {
        let Some(ring) = log else { return Ok(()) };
        let from_seq = read.found.values().map(|(_, c)| c.log_seq + 1).min().unwrap_or(1);
        let expect = LogExpectation {
            pool: self.id,
            inc: self.inc_before,
            from_seq,
            known_durable: self.known_durable,
        };
        let recovered = recover(ring.bytes(), &expect).map_err(|damage| damage.to_string())?;
        for entry in &recovered.records {
            if let Some((_, checkpoint)) = read.found.get_mut(&entry.key)
                && entry.seq > checkpoint.log_seq
            {
                if !checkpoint.durable.admits(&entry.record) {
                    return Err(impossible(entry));
                }
                if let (LogRecord::Image { image, attempt, .. }, Some(found)) =
                    (&entry.record, of_images.get_mut(&entry.key))
                    && !found.take_in((*image, *attempt), entry.seq, checkpoint.log_seq)
                {
                    continue;
                }
                checkpoint.durable.apply(&entry.record);
            }
        }
        read.recovered = Some(recovered);
        Ok(())
    }

    /// A replica that lost its cache keeps its old identity, so that it says so after a further restart too; what
    /// is written to it from now on does not make the rest whole.
    pub(super) fn slot(
        &self,
        mut durable: Durable,
        (side, counter, log_seq): (Side, u64, u64),
        watermark: Watermark,
        owner: Option<&PoolOwner>,
    ) -> Slotted {
        let boot_id = owner.map_or(0, |o| o.boot_id);
        let lossy = durable.boot_id != 0 && durable.boot_id != boot_id && !durable.clean_stop;
        if !lossy {
            durable.apply(&LogRecord::Identity { boot_id, device_generation: 0, clean_stop: false });
        }
        let record = Record::parse(&durable.record).ok();
        let config = ReplicaConfig {
            pool: self.id,
            pool_inc: self.inc,
            watermark,
            lossy,
            cached: record.is_some_and(|r| r.policy.ack == weft_proto::record::Ack::Cached),
            takes: self.takes(),
            broken: self.broken,
        };
        let mut machine = Replica::new(config, durable);
        machine.handle_free_bytes(self.free);
        Slotted {
            machine,
            side,
            counter,
            log_seq,
            open: false,
            quarantined: false,
            image_files: BTreeMap::new(),
            listed: BTreeSet::new(),
            cleaning: 0,
        }
    }
}

/// The byte ranges of the regions stamped above what is sealed, adjoining ones joined.
fn unsealed_ranges(durable: &Durable) -> Vec<std::ops::Range<u64>> {
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for (region, _) in durable.rgm.iter().enumerate().filter(|(_, g)| **g > durable.sealed) {
        let start = (region as u64) << durable.region_shift;
        let end = (start + (1 << durable.region_shift)).min(durable.size);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}
