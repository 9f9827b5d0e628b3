//! Copies between members: of a region that may differ at open (R5), to a joiner (R4), or of what a member's image has to
//! all of them (R30). A piece is at most 128 KiB and holds its range's lock from its first request to its last answer.
//!
//! ```text
//! Hashing (source and targets) ──different──▶ Reading (source) ──▶ Writing (targets) ──▶ done
//!     └───────────equal────────────────────────────────────────────────────────────────▶ done
//! ```
//!
//! Must always hold:
//! * a failed piece gives its range back only when no request of it can still execute: each one was answered, or
//!   its attachment has ended;
//! * a piece ends with the attachment of any of its members: it counts for no other join, nor for the next attachment;
//! * holes are copied as holes, absent as absent;
//! * of what is equal a joiner is written as much as stamps its regions (`join.rs`).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::ops::{Lock, verified};
use super::peer::Purpose;
use super::{Phase, Session};
use crate::block_set::BlockSet;
use crate::ids::{Generation, Instant, Rid, SnapId};
use crate::message::{Answer, Ask, Extent, MAX_DATA};
use crate::mutants::Mutation;
use crate::payload::{BLOCK, Payload};

/// A piece of a copy within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceId(pub u64);

/// Of a member's blocks, or of its image's.
type Of = fn(PieceId) -> Purpose;

/// Pieces under way at once: enough to hide one round trip, few enough that a guest write never waits long.
pub(super) const PIECES_MAX: usize = 4;

/// What a copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// This region is equalised.
    Region(u32),
    /// A resync.
    Joiner,
    /// What the source's image has comes back, at the source itself, too.
    Image(SnapId),
}

/// What a member's image could not give, since its attachment.
#[derive(Debug, Default)]
pub(super) struct Damaged {
    /// Pieces in which there is a block that it could not give.
    ranges: BlockSet,
    /// Such blocks.
    blocks: BlockSet,
}

impl Damaged {
    /// How much it was asked for in vain, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.bytes()
    }
}

#[derive(Debug)]
pub(super) struct Piece {
    start: u64,
    end: u64,
    of: Copied,
    source: Rid,
    targets: Vec<Rid>,
    stage: Stage,
    pub(super) generation: Generation,
    /// Requests without an answer.
    open: usize,
    /// Who answered one.
    answered: Vec<Rid>,
    failed: bool,
}

impl Piece {
    /// Does it make members equal that may differ?
    pub(super) fn equalises(&self) -> bool {
        matches!(self.of, Copied::Region(_))
    }
}

#[derive(Debug)]
enum Stage {
    Hashing {
        /// Of what is copied.
        source: Vec<[u8; 16]>,
        /// Of what is there.
        hashes: BTreeMap<Rid, Vec<[u8; 16]>>,
    },
    /// `differs`: which blocks of the piece are to be written.
    Reading {
        differs: Vec<bool>,
    },
    Writing {
        written: u64,
    },
}

impl<P: Payload> Session<P> {
    /// Starts a piece on a range that nobody holds.
    fn start_piece(
        &mut self,
        now: Instant,
        range: (u64, u64),
        of: Copied,
        source: Rid,
        targets: Vec<Rid>,
        hashed: bool,
    ) {
        let (start, end) = range;
        assert!(end - start <= MAX_DATA && self.is_free(start, end), "piece {start}..{end}");
        let id = PieceId(self.fresh_id());
        self.locks.insert(start, (end, Lock::Piece(id)));
        self.stamped = true;
        let blocks = usize::try_from((end - start) / BLOCK).expect("at most 32");
        let stage = if hashed {
            Stage::Hashing { source: Vec::new(), hashes: BTreeMap::new() }
        } else {
            Stage::Reading { differs: alloc::vec![true; blocks] }
        };
        let generation = self.generation();
        let asked = if hashed { targets.clone() } else { Vec::new() };
        let open = asked.len() + 1;
        self.pieces.insert(
            id,
            Piece {
                start,
                end,
                of,
                source,
                targets,
                stage,
                generation,
                open,
                answered: Vec::new(),
                failed: false,
            },
        );
        let key = self.fresh_random().to_le_bytes();
        let (offset, len) = (start, end - start);
        let (purpose, ask) = match (of, hashed) {
            (Copied::Image(id), true) => (Purpose::Image as Of, Ask::SnapHash { id, offset, len, key }),
            (Copied::Image(id), false) => (Purpose::Image as Of, Ask::SnapRead { id, offset, len }),
            (_, true) => (Purpose::Piece as Of, Ask::Hash { offset, len, key }),
            (_, false) => (Purpose::Piece as Of, Ask::Read { offset, len }),
        };
        self.send(now, source, purpose(id), ask);
        for rid in asked {
            self.send(now, rid, Purpose::Piece(id), Ask::Hash { offset, len, key });
        }
    }

    /// A member has answered; `of_image`: of its image.
    pub(super) fn piece_answered(
        &mut self,
        now: Instant,
        id: PieceId,
        (rid, of_image): (Rid, bool),
        answer: Answer<P>,
    ) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        piece.open -= 1;
        piece.answered.push(rid);
        let (failed, start, end) = (piece.failed, piece.start, piece.end);
        if matches!((&piece.stage, &answer), (Stage::Writing { .. }, Answer::Done)) && end - start == BLOCK {
            // Also when another target is lost meanwhile, and the piece with it: this one has the block.
            self.readable_again(rid, start, end);
        }
        if failed {
            return self.piece_ended(id);
        }
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let blocks = usize::try_from((piece.end - piece.start) / BLOCK).expect("at most 32");
        match (&mut piece.stage, answer) {
            (Stage::Hashing { source, hashes }, Answer::Hashes(list)) if list.len() == blocks => {
                if of_image || rid == piece.source && !matches!(piece.of, Copied::Image(_)) {
                    *source = list;
                } else {
                    hashes.insert(rid, list);
                }
                if piece.open > 0 {
                    return;
                }
                let mut differs: Vec<bool> = (0..blocks)
                    .map(|i| hashes.values().any(|target| target.get(i) != source.get(i)))
                    .collect();
                self.figures.hashed_bytes += piece.end - piece.start;
                if piece.of == Copied::Joiner {
                    self.join_stamps_by(start, &mut differs);
                }
                let Some(piece) = self.pieces.get_mut(&id) else { return };
                if !differs.contains(&true) {
                    return self.piece_done(now, id, 0);
                }
                let (first, last) = span(&differs);
                let (offset, len) = (piece.start + first * BLOCK, (last - first) * BLOCK);
                piece.stage = Stage::Reading { differs };
                piece.open = 1;
                let (source, of) = (piece.source, piece.of);
                let asks = match of {
                    Copied::Image(_) => self.gives_image(source),
                    _ => self.obeys(source),
                };
                if !asks {
                    if let Some(piece) = self.pieces.get_mut(&id) {
                        (piece.open, piece.failed) = (0, true);
                    }
                    return self.piece_ended(id);
                }
                match of {
                    Copied::Image(snap) => {
                        self.send(now, source, Purpose::Image(id), Ask::SnapRead { id: snap, offset, len });
                    }
                    _ => self.send(now, source, Purpose::Piece(id), Ask::Read { offset, len }),
                }
            }
            (Stage::Reading { differs }, Answer::Data(extents)) => {
                let (first, last) = span(differs);
                let offset = piece.start + first * BLOCK;
                if !verified(&extents, (last - first) * BLOCK) {
                    piece.failed = true;
                    return self.piece_ended(id);
                }
                let differs = core::mem::take(differs);
                let writes = copies(&extents, offset, piece.start, &differs, piece.generation);
                let (targets, of, generation) = (piece.targets.clone(), piece.of, piece.generation);
                let written = differs.iter().filter(|d| **d).count() as u64 * BLOCK;
                piece.stage = Stage::Writing { written };
                piece.open = writes.len() * targets.len();
                if !targets.iter().all(|rid| self.obeys(*rid)) {
                    if let Some(piece) = self.pieces.get_mut(&id) {
                        (piece.open, piece.failed) = (0, true);
                    }
                    return self.piece_ended(id);
                }
                if matches!(of, Copied::Image(_)) && !self.config.broken.is(Mutation::RevertUnnoted) {
                    // A member that is away lacks it, as it lacks a guest's writes (4.13).
                    self.bitmaps.entry(generation).or_default().insert(offset, (last - first) * BLOCK);
                }
                for rid in targets {
                    for ask in &writes {
                        self.send(now, rid, Purpose::Piece(id), ask.clone());
                    }
                }
            }
            (Stage::Writing { written }, Answer::Done) => {
                let written = *written;
                let one = matches!(piece.of, Copied::Image(_));
                if piece.open == 0 || one && self.config.broken.is(Mutation::RevertClearedByOne) {
                    self.piece_done(now, id, written);
                }
            }
            _ => {
                piece.failed = true;
                self.piece_ended(id);
            }
        }
    }

    /// One request of a piece was refused, or its attachment has ended.
    pub(super) fn piece_failed(&mut self, id: PieceId, _rid: Rid) {
        if let Some(piece) = self.pieces.get_mut(&id) {
            piece.open -= 1;
            piece.failed = true;
        }
        self.piece_ended(id);
    }

    /// A member's attachment has ended, and with it every piece that it has a part in: what it said of its blocks says
    /// nothing of them when it is attached again, nor of another joiner's.
    pub(super) fn fail_pieces_of(&mut self, rid: Rid) {
        let concerned = |piece: &Piece| piece.source == rid || piece.targets.contains(&rid);
        let ids: Vec<PieceId> =
            self.pieces.iter().filter(|(_, piece)| concerned(piece)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(piece) = self.pieces.get_mut(&id) {
                piece.failed = true;
            }
            self.piece_ended(id);
        }
    }

    /// Does it read now: hashes, or the data?
    pub(super) fn piece_reads(&self, id: PieceId) -> bool {
        self.pieces.get(&id).is_some_and(|p| !matches!(p.stage, Stage::Writing { .. }))
    }

    /// A member can't give a block of the piece: found out which, it is copied from another member, and to this one.
    pub(super) fn piece_unreadable(&mut self, id: PieceId, rid: Rid, of_image: bool) {
        if let Some(piece) = self.pieces.get(&id) {
            let (start, len) = (piece.start, piece.end - piece.start);
            if piece.of == Copied::Joiner && self.join_rid() != Some(rid) {
                self.suspect_rot(start, start + len);
            }
            if of_image {
                // Another member's image is asked for all of it first: an image may lack more than a block.
                let damaged = self.damaged.entry(rid).or_default();
                damaged.ranges.insert(start, len);
                if len == BLOCK {
                    damaged.blocks.insert(start, len);
                }
            } else {
                self.singly.insert(start, len);
                if len == BLOCK {
                    self.unreadable.entry(rid).or_default().insert(start, len);
                }
            }
        }
        self.piece_failed(id, rid);
    }

    /// The range was written to a member: whatever was there before, it can give this.
    pub(super) fn readable_again(&mut self, rid: Rid, start: u64, end: u64) {
        if let Some(blocks) = self.unreadable.get_mut(&rid) {
            blocks.remove(start, end - start);
        }
    }

    /// Could this member not give the block at `start`?
    fn is_unreadable(&self, rid: Rid, start: u64) -> bool {
        self.unreadable.get(&rid).is_some_and(|blocks| blocks.contains(start))
    }

    /// Starts a piece of a range from the first of `sources` that can give it, or says which block none can give.
    pub(super) fn start_readable_piece(
        &mut self,
        now: Instant,
        range: (u64, u64),
        of: Copied,
        sources: &[Rid],
        targets: Vec<Rid>,
        hashed: bool,
    ) -> Result<(), u64> {
        let (start, end) = (range.0, self.singly_end(range));
        let source = sources.iter().copied().find(|rid| !self.is_unreadable(*rid, start));
        let Some(source) = source else { return Err(start) };
        let targets: Vec<Rid> = targets.into_iter().filter(|rid| *rid != source).collect();
        let hashed = hashed && !targets.iter().any(|rid| self.is_unreadable(*rid, start));
        self.start_piece(now, (start, end), of, source, targets, hashed);
        Ok(())
    }

    /// The same of what the image of one of `sources` has.
    pub(super) fn start_image_piece(
        &mut self,
        now: Instant,
        range: (u64, u64),
        image: SnapId,
        sources: &[Rid],
        targets: Vec<Rid>,
    ) -> Result<(), u64> {
        let (start, mut end) = (range.0, self.singly_end(range));
        let may_give = |of: fn(&Damaged) -> &BlockSet| {
            let gives = |rid: &Rid| !self.damaged.get(rid).is_some_and(|found| of(found).contains(start));
            sources.iter().copied().find(gives)
        };
        let source = may_give(|found| &found.ranges).or_else(|| {
            // Nobody could give all of a range around it: each may have lost another block.
            end = start + BLOCK;
            may_give(|found| &found.blocks)
        });
        let Some(source) = source else { return Err(start) };
        let hashed = !targets.iter().any(|rid| self.is_unreadable(*rid, start));
        self.start_piece(now, (start, end), Copied::Image(image), source, targets, hashed);
        Ok(())
    }

    /// How far a piece goes: one block where a member could not give one.
    fn singly_end(&self, (start, end): (u64, u64)) -> u64 {
        match self.singly.next_run(start, end - start) {
            Some((at, _)) if at == start => start + BLOCK,
            Some((at, _)) if at < end => at,
            _ => end,
        }
    }

    /// Gives a failed piece's range back once nothing of it can still execute.
    fn piece_ended(&mut self, id: PieceId) {
        self.copy_hold = self.next_tick;
        if self.pieces.get(&id).is_some_and(|p| p.failed && p.open == 0) {
            let piece = self.pieces.remove(&id).expect("looked at a moment ago");
            self.unlock(piece.start, Lock::Piece(id));
            self.progressed = true;
        }
    }

    fn piece_done(&mut self, now: Instant, id: PieceId, written: u64) {
        let Some(piece) = self.pieces.remove(&id) else { return };
        self.unlock(piece.start, Lock::Piece(id));
        if written > 0 {
            for rid in &piece.targets {
                self.readable_again(*rid, piece.start, piece.end);
            }
        }
        match piece.of {
            Copied::Region(region) => {
                self.figures.reconciled_bytes += written;
                self.equalised(region, piece.start, piece.end);
            }
            Copied::Joiner => self.join_copied(piece.start, piece.end, written),
            Copied::Image(_) => self.brought_back(piece.start, piece.end, written),
        }
        self.progressed = true;
        self.start_waiting(now);
    }

    /// A range of a region need not be looked at any more.
    fn equalised(&mut self, region: u32, start: u64, end: u64) {
        let done = match self.dirty.get_mut(&region) {
            Some(Some(todo)) => {
                todo.remove(start, end - start);
                todo.is_empty()
            }
            _ => false,
        };
        if done {
            self.dirty.remove(&region);
            self.roll_now |= self.dirty.is_empty();
        }
    }

    pub(super) fn obeys(&self, rid: Rid) -> bool {
        self.peers.get(&rid).is_some_and(|p| p.obeys(self.rec().epoch))
    }

    pub(super) fn hangs(&self, rid: Rid) -> bool {
        self.peers.get(&rid).is_some_and(|p| p.hung)
    }

    /// Did anybody but this member do something for the piece?
    pub(super) fn others_did(&self, id: PieceId, rid: Rid) -> bool {
        self.pieces.get(&id).is_some_and(|p| p.answered.iter().any(|other| *other != rid))
    }

    /// Does it only read, from a join's source?
    pub(super) fn only_reads_for_join(&self, id: PieceId) -> bool {
        let reads = |p: &Piece| p.of == Copied::Joiner && matches!(p.stage, Stage::Reading { .. });
        self.pieces.get(&id).is_some_and(reads)
    }

    /// Equalises regions, those that guests wait for first.
    pub(super) fn reconcile(&mut self, now: Instant) {
        if self.dirty.is_empty()
            || now < self.copy_hold
            || !matches!(self.phase, Phase::Serving | Phase::Closing(_))
        {
            return;
        }
        let members = self.in_sync();
        if members.len() == 1 {
            // One member is equal to itself (R5).
            self.dirty.clear();
            self.dirty_wanted.clear();
            self.roll_now = true;
            self.progressed = true;
            return self.start_waiting(now);
        }
        if !members.iter().all(|rid| self.obeys(*rid)) {
            return;
        }
        self.dirty_wanted.retain(|region| self.dirty.contains_key(region));
        let (shift, size) = (self.rec().region_shift, self.rec().size);
        while self.pieces.len() < PIECES_MAX {
            let begun = self.dirty.iter().find(|(_, todo)| todo.is_some()).map(|(r, _)| *r);
            let candidates = self.dirty_wanted.iter().copied().chain(begun).chain(self.dirty.keys().copied());
            let mut chosen = None;
            for region in candidates.take(8).collect::<Vec<u32>>() {
                let begin = u64::from(region) << shift;
                let end = (begin + (1 << shift)).min(size);
                let Some(todo) = self.dirty.get_mut(&region) else { continue };
                let todo = todo.get_or_insert_with(|| {
                    let mut all = BlockSet::default();
                    all.insert(begin, end - begin);
                    all
                });
                let todo = todo.clone();
                if let Some(range) = self.free_run(&todo, begin) {
                    chosen = Some((region, range));
                    break;
                }
            }
            let Some((region, range)) = chosen else { return };
            let first = self.trusted.filter(|rid| members.contains(rid)).unwrap_or(members[0]);
            let mut sources = alloc::vec![first];
            if !self.trusted_only {
                sources.extend(members.iter().filter(|rid| **rid != first));
            }
            let of = Copied::Region(region);
            let piece = self.start_readable_piece(now, range, of, &sources, members.clone(), true);
            if let Err(block) = piece {
                if self.trusted_only {
                    return;
                }
                // No member can give it, so that none will show a guest what another has not: it reads as an error
                // everywhere until it is written again.
                self.equalised(region, block, block + BLOCK);
                self.progressed = true;
            }
        }
    }

    /// The first run of `set` at or after `from` that nobody holds, at most one message long.
    pub(super) fn free_run(&self, set: &BlockSet, from: u64) -> Option<(u64, u64)> {
        let mut at = from;
        loop {
            let (start, len) = set.next_run(at, MAX_DATA)?;
            match self.first_lock(start, start + len) {
                None => return Some((start, start + len)),
                Some((held, _)) if held > start => return Some((start, held)),
                Some((_, held_end)) => at = held_end,
            }
        }
    }

    /// The first held range that overlaps.
    fn first_lock(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let before = self.locks.range(..=start).next_back().filter(|(_, (stop, _))| *stop > start);
        let first = before.or_else(|| self.locks.range(start..end).next());
        first.map(|(s, (e, _))| (*s, *e))
    }
}

/// The first different block and the one after the last.
fn span(differs: &[bool]) -> (u64, u64) {
    let first = differs.iter().position(|d| *d).unwrap_or(0);
    let last = differs.iter().rposition(|d| *d).map_or(differs.len(), |l| l + 1);
    (first as u64, last as u64)
}

/// The requests that bring the different blocks of what was read (from `offset`) to a target.
fn copies<P: Payload>(
    extents: &[Extent<P>],
    offset: u64,
    piece_start: u64,
    differs: &[bool],
    generation: Generation,
) -> Vec<Ask<P>> {
    let mut out = Vec::new();
    let mut at = offset;
    let wanted = |block: u64| {
        differs.get(usize::try_from((block - piece_start) / BLOCK).unwrap_or(usize::MAX)) == Some(&true)
    };
    for extent in extents {
        let len = match extent {
            Extent::Data { data, .. } => data.len() as u64,
            Extent::Hole { len, .. } => *len,
        };
        let end = at + len;
        let mut run = at;
        while run < end {
            if !wanted(run) {
                run += BLOCK;
                continue;
            }
            let mut stop = run + BLOCK;
            while stop < end && wanted(stop) {
                stop += BLOCK;
            }
            let usize_of = |v: u64| usize::try_from(v).expect("within one message");
            out.push(match extent {
                Extent::Data { crcs, data } => Ask::Write {
                    generation,
                    offset: run,
                    crcs: crcs[usize_of((run - at) / BLOCK)..usize_of((stop - at) / BLOCK)].to_vec(),
                    data: data.slice(usize_of(run - at), usize_of(stop - run)),
                    copy: true,
                },
                Extent::Hole { kind, .. } => Ask::Zero {
                    generation,
                    offset: run,
                    len: stop - run,
                    kind: *kind,
                    keep_space: false,
                    copy: true,
                },
            });
            run = stop;
        }
        at = end;
    }
    out
}
