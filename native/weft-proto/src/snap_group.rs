//! A snapshot of several volumes at one moment (protocol.md 4.19): what their sessions, which are all in one process, wait
//! for from each other.
//!
//! ```text
//! Reaching Ready ──▶ Reaching Still ──▶ Reaching Imaged ──▶ Collecting ──▶ Sent ──▶ over
//!  members make room  writes are held,   members take their   each proposes   one transaction, each
//!  guests go on       none is under way  images               its swap        has its snapshot logged
//!       ▲                  │                   │                   │            │
//!       └─ 1 s, 3 times ───┴── one fails: all are dropped (D19) ───┴────────────┘ surely not applied
//! ```
//!
//! Must always hold:
//! * no volume has an image taken before all have stopped, and none goes on before all have their images: a write that
//!   began after another one had been answered, in whichever volume, is in no image without it
//!   (`weft-model`, cases snapshot-group and snapshot-group-goes-on);
//! * the swaps of all are made in one transaction, once, and not before there are all of them;
//! * what fails in one volume is dropped in all (D19).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString;

use crate::ids::{Instant, VolumeId};
use crate::mutants::{Broken, Mutation};
use crate::session::SnapFailure;

/// Attempts at one group.
const TRIES_MAX: u32 = 3;
/// Before the next one.
const AGAIN_MS: u64 = 1000;
/// How long a swap waits for those of the others.
const COLLECT_MS: u64 = 1000;
/// Sessions say themselves what they have waited for; this long after it they were silent.
const GRACE_MS: u64 = 1500;

/// How far a volume of a group is. It goes on from each of them when all volumes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupStep {
    /// Its copies have room for an image, and nothing is in the way of a barrier. Guests go on.
    Ready,
    /// New writes wait, and none is under way.
    Still,
    /// Every in-sync copy has its image; writes still wait.
    Imaged,
}

/// What is to be done for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupAction {
    /// Ask the volume's session for its snapshot: [`Session::snapshot_in_group`](crate::session::Session::snapshot_in_group).
    Ask(VolumeId),
    /// Tell it that all are there: [`Session::pass_snapshot`](crate::session::Session::pass_snapshot).
    Pass(VolumeId, GroupStep),
    /// It comes to nothing: [`Session::drop_snapshot`](crate::session::Session::drop_snapshot).
    Drop(VolumeId),
    /// Answer the swap that this volume's session has sent with `Unavailable`.
    Refuse(VolumeId),
    /// Apply the swaps of these, in one transaction, and answer each.
    Commit(alloc::vec::Vec<VolumeId>),
    /// It is there: every volume's snapshot was told of.
    Taken,
    /// It is not there. It may come to be there all the same, as a whole, if the store did not answer.
    Failed {
        /// Which volume is to blame.
        volume: VolumeId,
        /// Why.
        why: SnapFailure,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Asked again then.
    Resting {
        at: Instant,
    },
    Reaching(GroupStep),
    Collecting {
        since: Instant,
    },
    Sent,
    Over,
}

#[derive(Debug, Default)]
struct Member {
    step: Option<GroupStep>,
    /// Its swap is here, and was not sent.
    collected: bool,
    taken: bool,
    failed: Option<SnapFailure>,
}

/// See the module.
#[derive(Debug)]
pub struct SnapGroup {
    broken: Broken,
    until: Instant,
    tries: u32,
    stage: Stage,
    members: BTreeMap<VolumeId, Member>,
    actions: VecDeque<GroupAction>,
}

impl SnapGroup {
    /// A group of these volumes, tried until then; each one's session is to be asked with the same time.
    #[must_use]
    pub fn new(volumes: impl IntoIterator<Item = VolumeId>, until: Instant, broken: Broken) -> SnapGroup {
        let members = volumes.into_iter().map(|volume| (volume, Member::default())).collect();
        let stage = Stage::Reaching(GroupStep::Ready);
        let mut group = SnapGroup { broken, until, tries: 0, stage, members, actions: VecDeque::new() };
        group.begin();
        group
    }

    /// Until when it is tried.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Is it over?
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    // ---- what happened

    /// Where a volume's session stands, after whatever has happened to it.
    pub fn handle_step(&mut self, now: Instant, volume: VolumeId, step: Option<GroupStep>) {
        let each = self.broken.is(Mutation::GroupGoesOn);
        let Stage::Reaching(_) = self.stage else { return };
        let Some(member) = self.members.get_mut(&volume) else { return };
        let before = core::mem::replace(&mut member.step, step);
        if let (true, Some(step)) = (each && step > before, step) {
            self.actions.push_back(GroupAction::Pass(volume, step));
        }
        let Stage::Reaching(wanted) = self.stage else { return };
        if self.members.values().any(|member| !member.taken && member.step < Some(wanted)) {
            return;
        }
        if !each {
            self.actions.extend(self.members.keys().map(|volume| GroupAction::Pass(*volume, wanted)));
        }
        self.stage = match wanted {
            GroupStep::Ready => Stage::Reaching(GroupStep::Still),
            GroupStep::Still => Stage::Reaching(GroupStep::Imaged),
            GroupStep::Imaged => Stage::Collecting { since: now },
        };
    }

    /// A volume's session has sent its swap. It is kept until [`GroupAction::Commit`] or [`GroupAction::Refuse`].
    pub fn handle_swap(&mut self, volume: VolumeId) {
        let awaited = match self.stage {
            Stage::Collecting { .. } => true,
            Stage::Reaching(_) => self.broken.is(Mutation::GroupGoesOn),
            _ => false,
        };
        let Some(member) = self.members.get_mut(&volume).filter(|_| awaited) else {
            // Of an attempt that was dropped meanwhile.
            return self.actions.push_back(GroupAction::Refuse(volume));
        };
        if self.broken.is(Mutation::GroupTwoSwaps) {
            member.collected = true;
            self.actions.push_back(GroupAction::Commit(alloc::vec![volume]));
        } else {
            member.collected = true;
        }
        if self.members.values().all(|member| member.collected) {
            if !self.broken.is(Mutation::GroupTwoSwaps) {
                self.actions.push_back(GroupAction::Commit(self.members.keys().copied().collect()));
            }
            self.members.values_mut().for_each(|member| member.collected = false);
            self.stage = Stage::Sent;
        }
    }

    /// A volume's snapshot is there.
    pub fn handle_taken(&mut self, now: Instant, volume: VolumeId) {
        if let Some(member) = self.members.get_mut(&volume) {
            member.taken = true;
        }
        if !self.is_over() && self.members.values().all(|member| member.taken) {
            self.stage = Stage::Over;
            self.actions.push_back(GroupAction::Taken);
        }
        self.judge_sent(now);
    }

    /// There is none of this volume.
    pub fn handle_failed(&mut self, now: Instant, volume: VolumeId, why: SnapFailure) {
        match self.stage {
            Stage::Reaching(_) if self.broken.is(Mutation::GroupWithoutOne) => {
                self.members.remove(&volume);
            }
            Stage::Reaching(_) | Stage::Collecting { .. } => self.drop_all(now, volume, why),
            Stage::Sent => {
                if let Some(member) = self.members.get_mut(&volume) {
                    member.failed = Some(why);
                }
                self.judge_sent(now);
            }
            Stage::Resting { .. } | Stage::Over => {}
        }
    }

    /// A volume's session has ended.
    pub fn handle_ended(&mut self, now: Instant, volume: VolumeId) {
        match self.stage {
            Stage::Sent if self.members.get(&volume).is_none_or(|member| member.taken) => {}
            Stage::Over => {}
            Stage::Sent => self.fail(volume, SnapFailure::Closing),
            _ => {
                self.drop_all(now, volume, SnapFailure::Closing);
            }
        }
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        let late = self.members.iter().find(|(_, member)| !member.taken && !member.collected);
        let volume = late.map(|(volume, _)| *volume).unwrap_or_default();
        let store = SnapFailure::Waits("the store".to_string());
        match self.stage {
            Stage::Resting { .. } => self.begin(),
            Stage::Reaching(_) | Stage::Collecting { .. } => self.drop_all(now, volume, store),
            Stage::Sent => self.fail(volume, store),
            Stage::Over => {}
        }
    }

    // ---- what to do next

    /// When [`SnapGroup::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Resting { at } => Some(at),
            Stage::Collecting { since } => Some(since.after_ms(COLLECT_MS)),
            Stage::Reaching(_) | Stage::Sent => Some(self.until.after_ms(GRACE_MS)),
            Stage::Over => None,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<GroupAction> {
        self.actions.pop_front()
    }

    // ---- parts

    fn begin(&mut self) {
        self.tries += 1;
        self.stage = Stage::Reaching(GroupStep::Ready);
        self.members.values_mut().for_each(|member| *member = Member::default());
        self.actions.extend(self.members.keys().map(|volume| GroupAction::Ask(*volume)));
    }

    /// D19: nothing of this attempt stays.
    fn drop_all(&mut self, now: Instant, blamed: VolumeId, why: SnapFailure) {
        for (volume, member) in &mut self.members {
            self.actions.push_back(GroupAction::Drop(*volume));
            if core::mem::take(&mut member.collected) {
                self.actions.push_back(GroupAction::Refuse(*volume));
            }
        }
        self.again_or_fail(now, blamed, why);
    }

    /// The transaction was made, or not: every session finds out which, all the same.
    fn judge_sent(&mut self, now: Instant) {
        let all = || self.members.iter();
        if self.stage != Stage::Sent || all().any(|(_, member)| !member.taken && member.failed.is_none()) {
            return;
        }
        let Some((volume, why)) = all().find_map(|(volume, member)| Some((*volume, member.failed.clone()?)))
        else {
            return;
        };
        if all().any(|(_, member)| member.taken) {
            self.fail(volume, why);
        } else {
            self.again_or_fail(now, volume, why);
        }
    }

    fn again_or_fail(&mut self, now: Instant, volume: VolumeId, why: SnapFailure) {
        let passes = matches!(why, SnapFailure::Waits(_) | SnapFailure::Silent { .. });
        let at = now.after_ms(AGAIN_MS);
        if passes && self.tries < TRIES_MAX && at < self.until {
            self.stage = Stage::Resting { at };
        } else {
            self.fail(volume, why);
        }
    }

    fn fail(&mut self, volume: VolumeId, why: SnapFailure) {
        self.stage = Stage::Over;
        self.actions.push_back(GroupAction::Failed { volume, why });
    }
}
