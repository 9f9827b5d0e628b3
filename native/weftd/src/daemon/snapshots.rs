//! Commands about snapshots, and what the store says of them.
//!
//! Must always hold: an image is removed because a read of the store shows that no snapshot can be made of it any more,
//! and never because something is absent there (R15).

use super::*;
use crate::pools::Unlogged;
use crate::snapshots::{SnapKey, open_on, readers_prefix, snaps_prefix};
use crate::store::Entry;

/// Between two looks for images that nobody needs.
const JANITOR_MS: u64 = 60_000;
/// So long after a repair of the store whoever was away has told what it has logged (docs/model.md, finding 23).
const TOLD_MS: u64 = 24 * 3_600_000;

impl Daemon {
    /// A session here is wished to do something about its volume's snapshots.
    pub(super) fn wish(&mut self, now: Instant, volume: VolumeId, wish: Wish, answer: Answer) {
        if let Some((slot, answer)) = self.open_slot(volume, answer) {
            slot.snapshots.handle_wish(now, &mut slot.machine, wish, answer);
            self.touched.insert(volume);
        }
    }

    /// One is to be deleted, or its data destroyed. Who has it open is looked up before.
    pub(super) fn give_up_snapshot(&mut self, wanted: SnapshotRef, stays: bool, answer: Answer) {
        let Some((_, answer)) = self.open_slot(wanted.volume, answer) else { return };
        let token = self.call(Caller::Readers(wanted, stays, answer));
        self.store.send(StoreRequest::List { token, prefix: readers_prefix(wanted.id) });
    }

    pub(super) fn handle_readers_read(
        &mut self,
        now: Instant,
        (wanted, stays): (SnapshotRef, bool),
        answer: Answer,
        result: Result<Snapshot, ReadError>,
    ) {
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(ReadError::RolledBack(why)) => {
                return refuse(answer, Failure::new(Code::STORE_ROLLED_BACK, why));
            }
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => {
                return refuse(answer, Failure::new(Code::STORE_AWAY, why));
            }
        };
        let prefix = readers_prefix(wanted.id);
        let host = |entry: &Entry| Some(entry.key.strip_prefix(&prefix)?.to_owned());
        let hosts: Vec<String> = snapshot.entries.iter().flatten().filter_map(host).collect();
        if !hosts.is_empty() {
            return refuse(answer, open_on(wanted.volume, wanted, &hosts));
        }
        let wish = if stays { Wish::Destroy(wanted.id) } else { Wish::Delete(wanted.id) };
        self.wish(now, wanted.volume, wish, answer);
    }

    /// A session has opened: which snapshots its volume has is known to nobody else.
    pub(super) fn read_snapshots(&mut self, now: Instant, volume: VolumeId) {
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        let session = slot.machine.id();
        if slot.machine.record().is_some_and(|record| record.snaps.count == 0) {
            // The keys change with the record alone.
            return slot.snapshots.handle_read(now, &mut slot.machine, &[]);
        }
        let token = self.call(Caller::Snaps(volume, session));
        self.store.send(StoreRequest::List { token, prefix: snaps_prefix(volume) });
    }

    pub(super) fn handle_snapshots_read(
        &mut self,
        now: Instant,
        volume: VolumeId,
        session: SessionId,
        result: Result<Snapshot, ReadError>,
    ) {
        let Some(slot) = self.session(volume, session) else { return };
        match result {
            Ok(snapshot) => {
                let entries: Vec<Entry> = snapshot.entries.into_iter().flatten().collect();
                slot.snapshots.handle_read(now, &mut slot.machine, &entries);
            }
            Err(error) => {
                tracing::debug!(%volume, ?error, "the keys of the snapshots wait for the store");
                slot.snapshots.handle_away(now);
            }
        }
        self.touched.insert(volume);
    }

    // ---- time

    pub(super) fn snapshots_timeout(&self) -> impl Iterator<Item = Instant> + '_ {
        let readers = self.readers.values().flat_map(Reader::poll_timeout);
        let others = self.comparisons.poll_timeout().chain(self.fetches.poll_timeout());
        readers.chain(others).chain([self.janitor_due])
    }

    pub(super) fn handle_snapshot_timeouts(&mut self, now: Instant) {
        let due = |(volume, slot): (&VolumeId, &mut Slot)| slot.snapshots.take_due(now).then_some(*volume);
        let due: Vec<VolumeId> = self.sessions.iter_mut().filter_map(due).collect();
        for volume in due {
            self.read_snapshots(now, volume);
        }
        self.handle_reader_timeouts(now);
        self.handle_comparison_timeouts(now);
        self.handle_fetch_timeouts(now);
        if now >= self.janitor_due {
            self.janitor_due = now.after_ms(JANITOR_MS);
            for volume in self.pools.volumes_with_unlogged_images() {
                let token = self.call(Caller::Janitor(volume));
                // The record and the keys of its snapshots, at one moment.
                self.store.send(StoreRequest::List { token, prefix: format!("/weft/v1/vol/{volume}/s") });
            }
        }
    }

    /// Removes images of attempts that came to nothing, and of which that is known: a younger record does not name them.
    pub(super) fn handle_janitor_read(
        &mut self,
        now: Instant,
        volume: VolumeId,
        result: Result<Snapshot, ReadError>,
    ) {
        let Ok(Snapshot { watermark, entries }) = result else { return };
        let (state, snaps) = (record_key(volume), snaps_prefix(volume));
        let entries: Vec<Entry> = entries.into_iter().flatten().collect();
        let Some(Ok(record)) = entries.iter().find(|entry| entry.key == state).map(record_of) else { return };
        let mut named = BTreeSet::new();
        for entry in entries.iter().filter(|entry| entry.key.starts_with(&snaps)) {
            // What can't be understood may name anything.
            let Ok(key) = SnapKey::of(entry) else { return };
            named.insert((key.id, key.attempt.0));
            let members: Vec<Rid> = key.members.iter().map(|member| member.rid).collect();
            self.pools.note_listed(volume, key.id, &members);
        }
        let (incarnation, since) = self.incarnation_since;
        let all_told = incarnation == watermark.incarnation && now.ms_since(since) >= TOLD_MS;
        self.pools.drop_unlogged(now, volume, |image: &Unlogged| {
            !named.contains(&(image.id, image.attempt))
                && image.epoch < record.epoch
                // One that was logged READY goes only where nothing of the store can have been lost since it was taken.
                && (image.incarnation == watermark.incarnation || all_told && !image.ready)
        });
    }
}
