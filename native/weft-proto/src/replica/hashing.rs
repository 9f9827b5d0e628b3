//! How the data of an image is destroyed (protocol.md 4.19): it is read once more, segment by segment, and hashes of it are kept
//! beside it (see [`crate::hashes`]). Once all of them are durable the log says so, and the data goes as that of a deleted image.
//!
//! ```text
//! asked ──▶ look, 1 MiB at a time ──▶ … ──▶ keep the segment's hashes ──▶ … ──▶ doom ──▶ log ──▶ hand down ──▶ log ──▶ empty
//! ```
//!
//! Must always hold:
//! * no data goes before hashes of all of it are durable: until the log has it the image is read as ever, and serves older ones;
//! * what was kept before a restart, or for an attempt at it that did not end, means nothing: it is made again;
//! * it is one op at a time, and rests after a failure. What rots is kept as unknown: another copy may know it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::images::{segment_end, segment_of};
use super::{Action, DiskDone, DiskError, DiskOp, HASH_MAX, ImageOp, Replica, Token};
use crate::hashes::{GRAINS, Grain, KeptHashes, grains_of};
use crate::ids::SnapId;
use crate::images::{Image, ImageState, Place};
use crate::log::ReplicaKey;
use crate::message::CHANGED_GRAIN;
use crate::mutants::Mutation;
use crate::payload::Payload;

/// All that is to be done.
#[derive(Debug, Default)]
pub(super) struct HashWork {
    /// Which, of which attempt, by which key.
    wanted: BTreeMap<SnapId, (u64, [u8; 16])>,
    now: Option<Hashing>,
    resting: bool,
}

/// One image whose hashes are made.
#[derive(Debug)]
struct Hashing {
    image: SnapId,
    attempt: u64,
    key: [u8; 16],
    /// Everything before this is done, or was never written to.
    at: u64,
    /// Up to here something has rotted: which grain it is, is found one by one.
    slow_to: u64,
    /// What is known of the segment that it is in.
    segment: Option<(u32, Vec<Grain>)>,
    step: Option<(Token, Step)>,
}

/// What is at the pool.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A look, up to there, and where it was.
    Look(u64, Place),
    Keep,
}

impl HashWork {
    /// Asked for; asked again, it goes on.
    pub(super) fn want(&mut self, image: SnapId, attempt: u64, key: [u8; 16]) {
        let under_way = |of: &Hashing| (of.image, of.attempt) == (image, attempt);
        if !self.now.as_ref().is_some_and(under_way) {
            self.wanted.insert(image, (attempt, key));
        }
    }

    /// The pool's space was looked at: what has failed may work now.
    pub(super) fn wake(&mut self) {
        self.resting = false;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.now.as_ref().is_none_or(|of| of.step.is_none())
    }
}

impl<P: Payload> Replica<P> {
    /// The next step, of whichever image is to lose its data.
    pub(super) fn hash_by_itself(&mut self) {
        if self.imaging.hashing.resting {
            return;
        }
        while self.imaging.hashing.now.as_ref().is_none_or(|of| of.step.is_none()) {
            let Some(hashing) = self.imaging.hashing.now.take() else {
                let Some((image, (attempt, key))) = self.imaging.hashing.wanted.pop_first() else { return };
                if !self.imaging.doomed.contains(&image) {
                    let (at, slow_to, segment, step) = (0, 0, None, None);
                    self.imaging.hashing.now =
                        Some(Hashing { image, attempt, key, at, slow_to, segment, step });
                }
                continue;
            };
            self.hash_on(hashing);
        }
    }

    fn hash_on(&mut self, mut of: Hashing) {
        let there = |image: &&Image| (image.attempt, image.state) == (of.attempt, ImageState::Ready);
        let Some(image) = self.durable.images.get(of.image).filter(there) else { return };
        // Somebody deletes it.
        if self.imaging.doomed.contains(&of.image) {
            return;
        }
        let next = match self.config.broken.is(Mutation::DestroyUnhashed) {
            false => image.written_from(of.at),
            true => None,
        };
        let number = |at: u64| u32::try_from(segment_of(at)).expect("volumes end at 64 TiB");
        if let Some((segment, grains)) =
            of.segment.take_if(|(segment, _)| next.is_none_or(|(start, _)| number(start) != *segment))
        {
            let (pool, replica) = (self.config.pool, self.key());
            let (image, attempt, key) = (of.image, of.attempt, of.key);
            let kept = KeptHashes { pool, replica, image, attempt, segment, key, grains };
            let token = self.token();
            of.step = Some((token, Step::Keep));
            let op = ImageOp::Keep { image, segment, bytes: kept.encode() };
            self.actions.push_back(Action::Image { token, op });
            self.imaging.hashing.now = Some(of);
            return;
        }
        let Some((start, mut stop)) = next else {
            self.imaging.destroying.insert(of.image);
            self.imaging.doomed.insert(of.image);
            self.doom();
            return;
        };
        let region = |at: u64| u32::try_from(at >> image.region_shift).expect("within the image");
        let place = |at: u64| self.durable.images.place(of.image, region(at)).unwrap_or(Place::Absent);
        let piece = if start < of.slow_to { CHANGED_GRAIN } else { HASH_MAX };
        let (found, most) = (place(start), segment_end(start).min(start + piece));
        // As far as it is in one place.
        while stop < most
            && let Some((more, end)) = image.written_from(stop)
            && more == stop
            && place(more) == found
        {
            stop = end;
        }
        let stop = stop.min(most);
        let (offset, len, id) = (start, stop - start, of.image);
        of.segment.get_or_insert_with(|| (number(start), alloc::vec![Grain::Zero; GRAINS]));
        of.at = start;
        let op = DiskOp::Hash { offset, len, key: of.key };
        let token = self.token();
        of.step = Some((token, Step::Look(stop, found)));
        self.imaging.hashing.now = Some(of);
        let action = match found {
            Place::Head | Place::Absent => Action::Disk { token, op },
            Place::Image { image, heir } => Action::Image { token, op: ImageOp::Look { image, heir, op } },
        };
        debug_assert!(found != Place::Absent, "{id} was written there");
        self.actions.push_back(action);
    }

    /// The pool has done what is asked for hashes, or not. The outcome is given back if `token` is none of these.
    pub(super) fn hash_done(
        &mut self,
        token: Token,
        outcome: Result<DiskDone<P>, DiskError>,
    ) -> Result<(), Result<DiskDone<P>, DiskError>> {
        let Some(of) = &mut self.imaging.hashing.now else { return Err(outcome) };
        let Some((_, step)) = of.step.take_if(|(step, _)| *step == token) else { return Err(outcome) };
        let Step::Look(stop, found) = step else {
            // What could not be kept is made again, from the first byte on: nothing is known of a half.
            if outcome.is_err() {
                self.rest_hashing();
            }
            return Ok(());
        };
        let images = &self.durable.images;
        let shift = images.get(of.image).map_or(0, |image| image.region_shift);
        let place = |region: u64| images.place(of.image, u32::try_from(region).expect("within the image"));
        let moved = !((of.at >> shift)..=((stop - 1) >> shift)).all(|region| place(region) == Some(found));
        let grains = match outcome {
            // The head may have changed since, once this was preserved; what lay in a file lies in another one now.
            Ok(_) if moved && found == Place::Head => return Ok(()),
            Err(_) if moved => return Ok(()),
            Ok(DiskDone::Hashes(hashes)) => grains_of(&of.key, &hashes),
            Err(DiskError::BitRot) if stop - of.at > CHANGED_GRAIN => {
                of.slow_to = stop;
                return Ok(());
            }
            Err(DiskError::BitRot) => alloc::vec![Grain::Unknown],
            Ok(_) | Err(_) => {
                self.rest_hashing();
                return Ok(());
            }
        };
        if let Some((_, all)) = &mut of.segment {
            let first = usize::try_from(of.at % (1 << crate::images::SEGMENT_SHIFT) / CHANGED_GRAIN);
            let first = first.expect("within a segment");
            for (n, grain) in grains.into_iter().enumerate() {
                if let Some(place) = all.get_mut(first + n) {
                    *place = grain;
                }
            }
        }
        of.at = stop;
        Ok(())
    }

    fn rest_hashing(&mut self) {
        let work = &mut self.imaging.hashing;
        work.resting = true;
        if let Some(of) = work.now.take() {
            work.wanted.insert(of.image, (of.attempt, of.key));
        }
    }

    fn key(&self) -> ReplicaKey {
        ReplicaKey { volume: self.durable.volume, rid: self.durable.rid }
    }
}
