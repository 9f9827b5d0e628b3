//! Taking a volume back to a snapshot in place (R30; docs/model.md, `revert` and finding 27).
//!
//! ```text
//! asked ─▶ Looking ──every member has said what it has──▶ swap: marked (epoch + 1), who has no image is STALE
//!                                                              │  an owner that opens a marked volume begins here, too
//! Looking ─▶ Choosing ─▶ Copying ─▶ Sealing ◀──────────────────┘
//!             what has    from an    │
//!             changed     image      └─▶ swap: the marker is off (epoch + 1) ──all have promised──▶ told
//! ```
//!
//! What is brought back goes to every member as an ordinary write does: preserved (R28), stamped (R6), the same bytes for
//! all of them. It comes from one replica's image, compared by hash first, so that only blocks that differ are written; what
//! one image can't give comes from another, also of a replica that is not in sync: images don't grow stale.
//!
//! Must always hold:
//! * nothing is written that was not there when the record says that it is being taken back, durably at every member; and
//!   until it says so no more, no guest's request is carried out (reads neither), no member joins, the size stays, and the
//!   snapshot is not deleted;
//! * what is brought back is what members in sync that took the snapshot themselves have changed since, at every member in
//!   sync; if none of them took it, everything;
//! * nothing is sealed before all of that is at every member in sync: a member that lacks what another one has got, and is
//!   taken out, has a base below it (R7);
//! * the marker comes off when it is sealed;
//! * whoever asked is told when every one of them holds the record without it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::copy::Damaged;
use super::peer::Purpose;
use super::snaps::SnapState;
use super::store::Intent;
use super::{Change, Event, Phase, Session};
use crate::block_set::BlockSet;
use crate::ids::{Generation, Instant, Rid, SnapId};
use crate::images::ImageState;
use crate::message::{Ask, ImageView};
use crate::mutants::Mutation;
use crate::payload::{BLOCK, Payload};
use crate::record::{Record, Reverting};

/// How long a revert is tried to be begun for.
const PATIENCE_MS: u64 = 20_000;
/// Between two words about how far it is.
const TELL_MS: u64 = 1000;
/// Until images are asked again for what none of them could give.
const AGAIN_MS: u64 = 10_000;
/// Pieces under way at once: no guest waits for any of them by itself.
const PIECES_MAX: usize = 16;
/// Why a member is taken out: what a person reads in the record.
const WITHOUT_IMAGE: &str = "has no image of the snapshot that the volume is taken back to";

/// A revert within a session: answers of another one don't count for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RevertId(pub u64);

/// Why a volume is not taken back. Nothing was changed, unless another snapshot takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevertFailure {
    /// A guest has the volume: only a caretaker's session takes it back.
    Attached,
    /// Its head is deleted.
    HeadDeleted,
    /// There is no such snapshot, or it is not there for good, or it goes.
    NoSnapshot,
    /// The snapshot has another size.
    Size {
        /// The snapshot's, in bytes.
        snapshot: u64,
    },
    /// Fewer members in sync than min_isr, or none, have its image.
    TooFew {
        /// How many have.
        have: usize,
    },
    /// The volume waited for this, longer than a revert is tried to be begun for.
    Waits(String),
    /// The volume is being closed.
    Closing,
    /// It was begun, and is over: the volume is being taken back to another snapshot.
    Replaced,
}

/// A revert at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevertView {
    /// To which snapshot.
    pub snap: SnapId,
    /// Bytes that have to be compared; none while it is not known which.
    pub total: Option<u64>,
    /// Those of them that are as they were then.
    pub done: u64,
    /// What it waits for, if it can't go on.
    pub waits: Option<String>,
}

/// The revert that is to be begun, or that the record says is under way.
#[derive(Debug)]
pub(super) struct Revert {
    id: RevertId,
    snap: SnapId,
    marked: bool,
    /// What members have of it; none: nothing that is of use.
    views: BTreeMap<Rid, Option<ImageView>>,
    /// Who was asked for that, or for its stamps.
    sent: Vec<Rid>,
    /// Nobody is asked before this.
    hold: Option<Instant>,
    stage: Stage,
    written: u64,
    /// When to say how far it is.
    tell_at: Instant,
    /// A block that no member's image could give, and when they are asked again.
    lost: Option<(u64, Instant)>,
}

#[derive(Debug)]
enum Stage {
    Looking,
    /// Who has told which regions it has changed since, all of them; and those.
    Choosing {
        told: Vec<Rid>,
        regions: BTreeSet<u32>,
    },
    Copying {
        todo: BlockSet,
        total: u64,
    },
    /// Everything is there. It is sealed up to this generation.
    Sealing {
        wanted: Generation,
        total: u64,
    },
}

impl Revert {
    fn new(id: RevertId, snap: SnapId, marked: bool, tell_at: Instant) -> Revert {
        Revert {
            id,
            snap,
            marked,
            views: BTreeMap::new(),
            sent: Vec::new(),
            hold: None,
            stage: Stage::Looking,
            written: 0,
            tell_at,
            lost: None,
        }
    }

    fn has_image(&self, rid: Rid) -> bool {
        self.views.get(&rid).is_some_and(Option::is_some)
    }

    /// R29, R30: what its stamps say counts for all. Those of one that got its image from others say nothing of that (docs/model.md,
    /// finding 27).
    fn took(&self, rid: Rid) -> bool {
        self.views.get(&rid).copied().flatten().is_some_and(|view| !view.copied)
    }
}

impl<P: Payload> Session<P> {
    /// The marker of the record.
    pub(super) fn marker(&self) -> Option<&Reverting> {
        let reverting = self.record.as_ref().and_then(|record| record.reverting.as_ref());
        // Under a broken rule only this session knows of it.
        reverting.or(self.unmarked.as_ref())
    }

    /// Do requests of guests wait until the volume is what it was?
    pub(super) fn revert_holds(&self) -> bool {
        self.marker().is_some() && !self.config.broken.is(Mutation::RevertServesFirst)
    }

    /// Is a revert to be begun, or under way? Then the volume's members and its size stay as they are.
    pub(super) fn reverts(&self) -> bool {
        self.marker().is_some() || matches!(self.change.front(), Some(Change::Revert { .. }))
    }

    /// No member joins: it would miss what comes back meanwhile. While the volume is opened with too few members nothing does,
    /// and one that replaces a lost one may (R23).
    pub(super) fn revert_bars_joins(&self) -> bool {
        self.reverts()
            && (matches!(self.phase, Phase::Serving | Phase::Closing(_)) || !self.pieces.is_empty())
    }

    /// Is this snapshot needed for a revert that is not known to be over?
    pub(super) fn reverts_to(&self, id: SnapId) -> bool {
        self.marker().is_some_and(|marker| marker.snap == id)
            || self.reverted.as_ref().is_some_and(|(of, _)| *of == id)
    }

    pub(super) fn revert_asked(&mut self, now: Instant, id: SnapId) {
        self.change.push_back(Change::Revert { id, until: now.after_ms(PATIENCE_MS) });
    }

    /// Carries on what was asked for first, or what the record says.
    pub(super) fn drive_revert(&mut self, now: Instant) {
        // Who asks for what is under way is told of it with the others.
        while let (Some(Change::Revert { id, .. }), Some(marker)) = (self.change.front(), self.marker())
            && *id == marker.snap
        {
            self.change.pop_front();
        }
        let (snap, marked) = match (self.change.front(), self.marker()) {
            (Some(Change::Revert { id, .. }), _) => (*id, false),
            (_, Some(marker)) => (marker.snap, true),
            (_, None) => return self.revert = None,
        };
        if self.revert.as_ref().is_none_or(|r| (r.snap, r.marked) != (snap, marked)) {
            let id = RevertId(self.fresh_id());
            self.revert = Some(Revert::new(id, snap, marked, now));
            self.damaged.clear();
        }
        self.tell_reverting(now);
        if !matches!(self.phase, Phase::Serving) || !marked && !self.snaps.are_told() {
            return;
        }
        self.look_for_images(now);
        if !marked || !self.all_looked() || !self.dirty.is_empty() {
            return;
        }
        match self.revert.as_ref().map(|revert| &revert.stage) {
            Some(Stage::Looking) => {
                self.set_revert_stage(Stage::Choosing { told: Vec::new(), regions: BTreeSet::new() });
            }
            Some(Stage::Choosing { .. }) => self.choose_regions(now),
            Some(Stage::Copying { .. }) => self.bring_back(now),
            Some(Stage::Sealing { .. }) | None => {}
        }
    }

    fn set_revert_stage(&mut self, stage: Stage) {
        if let Some(revert) = &mut self.revert {
            revert.stage = stage;
            self.progressed = true;
        }
    }

    // ---- who has it

    /// Has something come back that may not be at every member yet?
    pub(super) fn brings_back(&self) -> bool {
        let whole = |revert: &Revert| revert.marked && matches!(revert.stage, Stage::Sealing { .. });
        let served = matches!(self.phase, Phase::Serving);
        served && self.marker().is_some() && !self.revert.as_ref().is_some_and(whole)
    }

    /// May it be asked for what its image has? That takes no promise.
    pub(super) fn gives_image(&self, rid: Rid) -> bool {
        self.peers.get(&rid).is_some_and(|peer| peer.is_attached() && peer.bad.is_none())
    }

    /// Asks the members in sync; once the record is marked the other replicas as well.
    fn look_for_images(&mut self, now: Instant) {
        let members = self.in_sync();
        let Some(revert) = &self.revert else { return };
        if revert.hold.is_some_and(|at| now < at) {
            return;
        }
        let (id, snap, marked) = (revert.id, revert.snap, revert.marked);
        let to_ask = |rid: &Rid| {
            let asks =
                if members.contains(rid) { self.obeys(*rid) } else { marked && self.gives_image(*rid) };
            !revert.views.contains_key(rid) && !revert.sent.contains(rid) && asks
        };
        for rid in self.peers.keys().copied().filter(to_ask).collect::<Vec<Rid>>() {
            if let Some(revert) = &mut self.revert {
                revert.sent.push(rid);
            }
            self.send(now, rid, Purpose::RevertLook(id), Ask::Images { from: snap });
        }
    }

    /// A member has told which images it has, from the snapshot's on.
    pub(super) fn revert_looked(&mut self, id: RevertId, rid: Rid, views: &[ImageView]) {
        let Some(revert) = self.revert.as_ref().filter(|revert| revert.id == id) else { return };
        let snap = revert.snap;
        let attempt = match self.marker().filter(|marker| marker.snap == snap) {
            Some(marker) => Some(marker.attempt),
            None => self.snaps.known(snap).map(|(_, attempt, _)| attempt),
        };
        let is = |view: &&ImageView| {
            view.id == snap && Some(view.attempt) == attempt && view.state == ImageState::Ready
        };
        let view = views.first().filter(is).copied();
        if let Some(revert) = &mut self.revert {
            revert.sent.retain(|r| *r != rid);
            revert.views.insert(rid, view);
        }
        self.progressed = true;
    }

    /// A member's image is not there after all.
    pub(super) fn revert_without(&mut self, rid: Rid) {
        if let Some(revert) = &mut self.revert {
            revert.views.insert(rid, None);
        }
    }

    /// A question was not answered, or was refused: it is asked again, after `hold`.
    pub(super) fn revert_unsent(&mut self, id: RevertId, rid: Rid, hold: Option<Instant>) {
        if let Some(revert) = self.revert.as_mut().filter(|revert| revert.id == id) {
            revert.sent.retain(|r| *r != rid);
            revert.hold = revert.hold.max(hold);
        }
    }

    fn all_looked(&self) -> bool {
        let views = self.revert.as_ref().map(|revert| &revert.views);
        views.is_some_and(|views| self.in_sync().iter().all(|rid| views.contains_key(rid)))
    }

    // ---- the beginning

    /// The swap that marks the record, for the revert that was asked for first, if it is due. True if something was done.
    pub(super) fn propose_revert(&mut self, now: Instant, id: SnapId, until: Instant) -> bool {
        match self.judge_revert(id) {
            Ok(Some(intent)) => self.propose(now, intent),
            Ok(None) if self.join.is_some() => {
                self.abandon_join("the volume is being taken back to a snapshot");
                return self.join.is_none();
            }
            Ok(None) if now < until => return false,
            Ok(None) => {
                let late = self
                    .in_sync()
                    .into_iter()
                    .find(|rid| self.revert.as_ref().is_none_or(|revert| !revert.views.contains_key(rid)));
                let why = match (late, &self.paused) {
                    (_, Some(reason)) => reason.clone(),
                    (Some(rid), None) => format!("{rid}"),
                    (None, None) => "what is under way".to_string(),
                };
                self.revert_refused(RevertFailure::Waits(why));
            }
            Err(why) => self.revert_refused(why),
        }
        true
    }

    fn revert_refused(&mut self, why: RevertFailure) {
        if let Some(Change::Revert { id, .. }) = self.change.pop_front() {
            self.events.push_back(Event::Reverted { id, outcome: Err(why) });
        }
        self.progressed = true;
    }

    /// May it be begun? None: not yet.
    fn judge_revert(&self, id: SnapId) -> Result<Option<Intent>, RevertFailure> {
        if !matches!(self.phase, Phase::Serving) {
            return Err(RevertFailure::Closing);
        }
        if !self.config.caretaker {
            return Err(RevertFailure::Attached);
        }
        if self.is_headless() {
            return Err(RevertFailure::HeadDeleted);
        }
        if !self.snaps.are_told() {
            return Ok(None);
        }
        let Some((SnapState::Logged, attempt, generation)) = self.snaps.known(id) else {
            return Err(RevertFailure::NoSnapshot);
        };
        if !self.snaps.has_data(id) {
            return Err(RevertFailure::NoSnapshot);
        }
        let looked = self.revert.as_ref().filter(|r| (r.snap, r.marked) == (id, false));
        let Some(revert) = looked.filter(|_| self.all_looked()) else { return Ok(None) };
        let (record, members) = (self.rec(), self.in_sync());
        let sizes = revert.views.values().flatten().map(|view| view.size);
        if let Some(snapshot) = sizes.filter(|size| *size != record.size).min() {
            return Err(RevertFailure::Size { snapshot });
        }
        let (with, without): (Vec<Rid>, Vec<Rid>) =
            members.into_iter().partition(|rid| revert.has_image(*rid));
        if with.len() < usize::from(record.policy.min_isr).max(1) {
            return Err(RevertFailure::TooFew { have: with.len() });
        }
        let quiet = self.is_drained() && self.pieces.is_empty() && self.dirty.is_empty();
        let settled = self.attempts.is_empty() && !self.steal_wait && self.join.is_none();
        if !quiet || !settled || self.growing.is_some() || self.telling.is_some() {
            return Ok(None);
        }
        let (since, unknown) = (String::new(), BTreeMap::new());
        let reverting = Reverting { snap: id, generation, attempt, since, unknown };
        Ok(Some(Intent::Mark { reverting, without, base: self.sealed, reason: WITHOUT_IMAGE.to_string() }))
    }

    /// What the record says of a revert has changed with a swap.
    pub(super) fn revert_adopted(&mut self, before: Option<&Record>, intent: Option<&Intent>) {
        if let Some(Intent::Mark { reverting, .. }) = intent
            && self.config.broken.is(Mutation::RevertUnmarked)
        {
            self.unmarked = Some(reverting.clone());
        }
        let over = matches!(intent, Some(Intent::Unmark)).then(|| self.unmarked.take()).flatten();
        let was = before.and_then(|record| record.reverting.clone()).or(over);
        let Some(was) = was else { return };
        match self.marker().map(|marker| marker.snap) {
            None => {
                let written = self.revert.take().map_or(0, |revert| revert.written);
                self.reverted = Some((was.snap, written));
                self.progressed = true;
            }
            Some(is) if is != was.snap => {
                let outcome = Err(RevertFailure::Replaced);
                self.events.push_back(Event::Reverted { id: was.snap, outcome });
            }
            Some(_) => {}
        }
    }

    // ---- what has changed

    /// Asks each member that took the snapshot itself what it has changed since.
    fn choose_regions(&mut self, now: Instant) {
        let (members, epoch_ok) = (self.in_sync(), self.everyone_obeys());
        let Some(above) = self.marker().map(|marker| marker.generation) else { return };
        let Some(revert) = &mut self.revert else { return };
        if !epoch_ok || revert.hold.is_some_and(|at| now < at) {
            return;
        }
        let id = revert.id;
        let took: Vec<Rid> = members.into_iter().filter(|rid| revert.took(*rid)).collect();
        let Stage::Choosing { told, regions } = &revert.stage else { return };
        if took.iter().all(|rid| told.contains(rid)) {
            let regions = (!took.is_empty()).then(|| regions.clone());
            return self.begin_copying(regions);
        }
        let asked = |rid: &Rid| told.contains(rid) || revert.sent.contains(rid);
        let to_ask: Vec<Rid> = took.into_iter().filter(|rid| !asked(rid)).collect();
        for rid in to_ask.into_iter().filter(|rid| self.obeys(*rid)).collect::<Vec<Rid>>() {
            if let Some(revert) = &mut self.revert {
                revert.sent.push(rid);
            }
            self.send(now, rid, Purpose::RevertStamps(id), Ask::Stamps { above, from_region: 0 });
        }
    }

    pub(super) fn revert_stamps(
        &mut self,
        now: Instant,
        id: RevertId,
        rid: Rid,
        stamps: &[(u32, Generation)],
        next: Option<u32>,
    ) {
        let Some(above) = self.marker().map(|marker| marker.generation) else { return };
        let Some(revert) = self.revert.as_mut().filter(|revert| revert.id == id) else { return };
        let Stage::Choosing { told, regions } = &mut revert.stage else { return };
        regions.extend(stamps.iter().filter(|(_, stamp)| *stamp > above).map(|(region, _)| *region));
        match next {
            Some(from_region) => {
                self.send(now, rid, Purpose::RevertStamps(id), Ask::Stamps { above, from_region });
            }
            None => {
                told.push(rid);
                revert.sent.retain(|r| *r != rid);
                self.progressed = true;
            }
        }
    }

    /// `regions`: those that have changed; none: nobody knows.
    fn begin_copying(&mut self, regions: Option<BTreeSet<u32>>) {
        let (shift, size) = (self.rec().region_shift, self.rec().size);
        let mut todo = BlockSet::default();
        match regions {
            None => todo.insert(0, size),
            Some(regions) => {
                for begin in regions.into_iter().map(|region| u64::from(region) << shift) {
                    if begin < size {
                        todo.insert(begin, (begin + (1 << shift)).min(size) - begin);
                    }
                }
            }
        }
        let total = todo.bytes();
        self.set_revert_stage(Stage::Copying { todo, total });
    }

    // ---- bringing it back

    fn bring_back(&mut self, now: Instant) {
        let members = self.in_sync();
        let still = self.join.is_none() && self.steal_wait_over(now);
        if now < self.copy_hold || !members.iter().all(|rid| self.obeys(*rid)) || !still {
            return;
        }
        let Some(revert) = &self.revert else { return };
        let Stage::Copying { todo, total } = &revert.stage else { return };
        let (snap, total) = (revert.snap, *total);
        if todo.is_empty() && self.pieces.is_empty() {
            let open = self.bitmaps.contains_key(&self.generation()) || self.stamped;
            let wanted = if open { self.generation() } else { self.sealed };
            self.roll_now |= open;
            return self.set_revert_stage(Stage::Sealing { wanted, total });
        }
        let gives = |rid: &Rid| revert.has_image(*rid) && self.gives_image(*rid);
        let mut sources: Vec<Rid> = self.peers.keys().copied().filter(gives).collect();
        sources.sort_by_key(|rid| {
            let here = self.rec().replica(*rid).is_some_and(|entry| entry.node == self.config.host);
            let damaged = self.damaged.get(rid).map_or(0, Damaged::bytes);
            (self.hangs(*rid), !members.contains(rid), damaged, !here)
        });
        let (mut from, mut lost) = (0, None);
        while self.pieces.len() < PIECES_MAX {
            let Some(Revert { stage: Stage::Copying { todo, .. }, .. }) = &self.revert else { return };
            let Some(range) = self.free_run(todo, from) else { break };
            if let Err(block) = self.start_image_piece(now, range, snap, &sources, members.clone()) {
                lost = lost.or(Some(block));
                from = block + BLOCK;
            }
        }
        let Some(revert) = &mut self.revert else { return };
        let again = revert.lost.map_or(now.after_ms(AGAIN_MS), |(_, at)| at);
        revert.lost = lost.map(|block| (block, again));
        if lost.is_some() && self.pieces.is_empty() && now >= again {
            revert.lost = None;
            self.damaged.clear();
        }
    }

    /// A range is at every member as the snapshot has it.
    pub(super) fn brought_back(&mut self, start: u64, end: u64, written: u64) {
        if let Some(revert) = &mut self.revert
            && let Stage::Copying { todo, .. } = &mut revert.stage
        {
            todo.remove(start, end - start);
            revert.written += written;
        }
    }

    // ---- the end

    /// The swap that takes the marker off, once all is brought back and sealed.
    pub(super) fn propose_unmark(&mut self, now: Instant) -> bool {
        let Some(revert) = self.revert.as_ref().filter(|revert| revert.marked) else { return false };
        let Stage::Sealing { wanted, .. } = &revert.stage else { return false };
        let sealed = self.sealed >= *wanted && self.seal_next.is_none();
        if !sealed || !self.everyone_obeys() || !matches!(self.phase, Phase::Serving) {
            return false;
        }
        self.propose(now, Intent::Unmark);
        true
    }

    /// R25: whoever asked is told once no loss of the store can bring the marker back.
    pub(super) fn tell_reverted(&mut self) {
        if self.reverted.is_some()
            && (self.everyone_obeys() || self.config.broken.is(Mutation::RevertToldAtSwap))
        {
            let (id, written) = self.reverted.take().expect("looked at a moment ago");
            self.events.push_back(Event::Reverted { id, outcome: Ok(written) });
            self.look_at_snaps();
            self.progressed = true;
        }
    }

    // ---- how it stands

    fn tell_reverting(&mut self, now: Instant) {
        let Some(view) = self.revert_view() else { return };
        if let Some(revert) = self.revert.as_mut().filter(|revert| revert.marked && now >= revert.tell_at) {
            revert.tell_at = now.after_ms(TELL_MS);
            let RevertView { snap: id, done, total, .. } = view;
            self.events.push_back(Event::Reverting { id, done, total });
        }
    }

    pub(super) fn revert_view(&self) -> Option<RevertView> {
        let snap = self.marker()?.snap;
        let of = self.revert.as_ref().filter(|revert| revert.marked && revert.snap == snap);
        let (total, done) = match of.map(|revert| &revert.stage) {
            Some(Stage::Copying { todo, total }) => (Some(*total), total.saturating_sub(todo.bytes())),
            Some(Stage::Sealing { total, .. }) => (Some(*total), *total),
            _ => (None, 0),
        };
        let holders = of.is_some_and(|revert| self.peers.keys().any(|rid| revert.has_image(*rid)));
        let late = self.in_sync().into_iter().find(|rid| !self.obeys(*rid));
        let waits = match (&self.paused, late) {
            (Some(reason), _) => Some(reason.clone()),
            (None, Some(rid)) => Some(format!("waits for {rid}")),
            (None, None) if of.is_some() && self.all_looked() && !holders => {
                Some("no copy that can be reached has the snapshot".to_string())
            }
            (None, None) => of
                .and_then(|revert| revert.lost)
                .map(|(at, _)| format!("no copy can give what the snapshot has at byte {at}")),
        };
        Some(RevertView { snap, total, done, waits })
    }

    /// Why guests wait, if they wait for this.
    pub(super) fn revert_reason(&self) -> Option<String> {
        let view = self.revert_view()?;
        let what = format!("takes the volume back to snapshot {}", view.snap);
        Some(match view.waits {
            Some(waits) if waits.starts_with("waits") => format!("{what}, and {waits}"),
            Some(waits) => format!("{what}, and waits: {waits}"),
            None => what,
        })
    }
}
