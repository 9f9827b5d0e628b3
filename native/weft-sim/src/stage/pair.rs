//! Two volumes of one guest, which one process has open: two stages with one clock, whose sessions take snapshots as a
//! group, and whose swaps are applied in one transaction, as weftd does it.
//!
//! Must always hold (D19), after every step: a group stands in the store as a whole or not at all; and when somebody is
//! told of it, its images are of one moment: none has a write that began after another one was answered which the image of
//! its volume lacks.

use weft_proto::session::SnapFailure;
use weft_proto::snap_group::{GroupAction, SnapGroup};

use super::*;

/// A group is tried so long, as a single snapshot is.
const TRIED_MS: u64 = 20_000;
/// Between a guest's writes, if it is answered at once.
const THINKS_NS: u64 = 2 * MS;

/// A write of the guest: to which block, what, and when it began and was answered.
struct Wrote {
    request: RequestId,
    block: u64,
    value: Value,
    began: u64,
    ended: Option<u64>,
}

/// A transaction on its way: of which volumes, with the swap of each.
type Swaps = Vec<(usize, Who, StoreCall)>;

/// See the module.
pub struct Pair {
    stages: [Stage; 2],
    owners: [Who; 2],
    /// How many of a session's events were looked at.
    seen: [usize; 2],
    wrote: [Vec<Wrote>; 2],
    /// The guest writes to one volume after the other, each time when the last write was answered; not before then.
    chain: Option<u64>,
    group: Option<(SnapId, SnapGroup)>,
    collected: [Option<(Who, StoreCall)>; 2],
    /// Transactions on their way, and those that are held back.
    sent: Vec<(u64, Swaps)>,
    late: Vec<Swaps>,
    fates: VecDeque<Fate>,
    outcome: Option<Result<(), (usize, SnapFailure)>>,
}

fn volume(index: usize) -> VolumeId {
    VolumeId(index as u128)
}

fn index(volume: VolumeId) -> usize {
    usize::from(volume.0 != 0)
}

impl Scene {
    /// Two such volumes, both open on host `D`, where everything is done that is asked of a pair.
    #[must_use]
    pub fn pair(self, play: &Play) -> Pair {
        let stages = [self.stage(&play.of("data")), self.stage(&play.of("log"))];
        let mut pair = Pair {
            stages,
            owners: [Who(0); 2],
            seen: [0; 2],
            wrote: [Vec::new(), Vec::new()],
            chain: None,
            group: None,
            collected: [None, None],
            sent: Vec::new(),
            late: Vec::new(),
            fates: VecDeque::new(),
            outcome: None,
        };
        pair.enter(Stage::open, D);
        pair
    }
}

impl Pair {
    /// One of the volumes, and its session.
    pub fn of(&mut self, index: usize) -> (&mut Stage, Who) {
        (&mut self.stages[index], self.owners[index])
    }

    /// The same, to look at.
    #[must_use]
    pub fn look(&self, index: usize) -> (&Stage, Who) {
        (&self.stages[index], self.owners[index])
    }

    /// Both volumes get a session, which comes to serve.
    fn enter(&mut self, how: fn(&mut Stage, HostId) -> Who, host: HostId) {
        for (index, stage) in self.stages.iter_mut().enumerate() {
            (self.owners[index], self.seen[index]) = (how(stage, host), 0);
        }
        let serves = |s: &Stage, who| s.view(who).phase == "serving";
        self.run_until("both serve", |p| (0..2).all(|i| serves(&p.stages[i], p.owners[i])));
    }

    /// The process is gone with both sessions; another host steals both volumes.
    pub fn stolen_from_the_dead(&mut self, host: HostId) {
        (self.group, self.collected, self.chain) = (None, [None, None], None);
        for index in 0..2 {
            let (stage, who) = self.of(index);
            stage.vanish(who);
        }
        self.enter(Stage::steal, host);
    }

    /// Another host steals one of them.
    pub fn steal(&mut self, index: usize, host: HostId) -> Who {
        self.stages[index].steal(host)
    }

    // ---- the guest

    /// From now on, or no more, the guest writes to one volume after the other: each time when it was answered.
    pub fn chain(&mut self, on: bool) {
        self.chain = on.then_some(self.stages[0].now);
        self.write_on();
    }

    /// Answered writes of a volume.
    #[must_use]
    pub fn answered(&self, index: usize) -> usize {
        self.wrote[index].iter().filter(|wrote| wrote.ended.is_some()).count()
    }

    /// Writes a block of one volume.
    pub fn write(&mut self, index: usize, block: u64) -> RequestId {
        let (stage, who) = self.of(index);
        let began = stage.now;
        let Write { id: request, value } = stage.write(who, block);
        self.wrote[index].push(Wrote { request, block, value, began, ended: None });
        self.note_answers();
        request
    }

    /// How long the volume's guest has waited longest for a write, in milliseconds.
    #[must_use]
    pub fn longest_ms(&self, index: usize) -> u64 {
        let now = self.stages[index].now;
        let waited = self.wrote[index].iter().map(|wrote| wrote.ended.unwrap_or(now) - wrote.began);
        waited.max().unwrap_or(0) / MS
    }

    fn note_answers(&mut self) {
        for (stage, wrote) in self.stages.iter().zip(&mut self.wrote) {
            for wrote in wrote.iter_mut().filter(|wrote| wrote.ended.is_none()) {
                if stage.done(wrote.request) {
                    wrote.ended = stage.replies.get(&wrote.request).map(|(at, _)| *at);
                }
            }
        }
    }

    fn write_on(&mut self) {
        self.note_answers();
        let Some(due) = self.chain.filter(|_| self.is_idle()) else { return };
        if self.stages[0].now >= due {
            self.chain = Some(self.stages[0].now + THINKS_NS);
            let index = usize::from(self.wrote[1].len() < self.wrote[0].len());
            self.write(index, (self.wrote[index].len() % 40) as u64);
        }
    }

    fn is_idle(&self) -> bool {
        self.wrote.iter().flatten().all(|wrote| wrote.ended.is_some())
    }

    // ---- the group

    /// Asks for a snapshot of both.
    pub fn snapshot(&mut self, id: u128) {
        let until = Instant(self.stages[0].now).after_ms(TRIED_MS);
        let broken = self.stages[0].play.broken();
        self.group = Some((SnapId(id), SnapGroup::new([volume(0), volume(1)], until, broken)));
        self.outcome = None;
        self.act();
    }

    /// Asks for it and plays until it is told of.
    pub fn snapshotted(&mut self, id: u128) {
        self.snapshot(id);
        self.run_until("a group is told of", |p| p.outcome == Some(Ok(())));
    }

    /// What came of the last one that was asked for; of a failure, which volume is to blame.
    #[must_use]
    pub fn outcome(&self) -> Option<&Result<(), (usize, SnapFailure)>> {
        self.outcome.as_ref()
    }

    /// Which of the volumes have its key.
    #[must_use]
    pub fn keys(&self, id: u128) -> [bool; 2] {
        [self.stages[0].key(id).is_some(), self.stages[1].key(id).is_some()]
    }

    /// What becomes of the next transactions of groups.
    pub fn next_commits(&mut self, fates: &[Fate]) {
        self.fates.extend(fates);
    }

    /// Transactions that are held back.
    #[must_use]
    pub fn late(&self) -> usize {
        self.late.len()
    }

    /// They reach the store.
    pub fn apply_late(&mut self) {
        for swaps in std::mem::take(&mut self.late) {
            if self.replaces(&swaps).iter().all(|replaces| *replaces) {
                self.apply(swaps);
            }
        }
    }

    // ---- time

    /// Plays for so many milliseconds.
    pub fn run_for(&mut self, ms: u64) {
        let end = self.stages[0].now + ms * MS;
        while self.next().is_some_and(|at| at <= end) {
            self.step();
        }
        self.stages.iter_mut().for_each(|stage| stage.now = end);
    }

    /// Plays until this is so, as [`Stage::run_until`].
    pub fn run_until(&mut self, what: &str, done: impl Fn(&Pair) -> bool) {
        let end = self.stages[0].now + PATIENCE_MS * MS;
        while !done(self) {
            assert!(self.next().is_some_and(|at| at <= end), "awaited in vain: {what}\n{}", self.describe());
            self.step();
        }
    }

    fn next(&self) -> Option<u64> {
        let cues = self.stages.iter().filter_map(|stage| Some(stage.queue.first_key_value()?.0.0));
        let group = self.group.as_ref().and_then(|(_, group)| group.poll_timeout()).map(|at| at.0);
        let guest = self.chain.filter(|_| self.is_idle());
        cues.chain(group).chain(guest).chain(self.sent.iter().map(|(at, _)| *at)).min()
    }

    fn step(&mut self) {
        let Some(at) = self.next() else { return };
        let now = at.max(self.stages[0].now).max(self.stages[1].now);
        self.stages.iter_mut().for_each(|stage| stage.now = now);
        let is_due =
            |stage: &&mut Stage| stage.queue.first_key_value().is_some_and(|((due, _), _)| *due <= at);
        if let Some(place) = self.sent.iter().position(|(due, _)| *due <= at) {
            let (_, swaps) = self.sent.remove(place);
            self.reach_store(swaps);
        } else if let Some(stage) = self.stages.iter_mut().find(is_due) {
            stage.step();
        } else if let Some((_, group)) = &mut self.group
            && group.poll_timeout().is_some_and(|due| due.0 <= at)
        {
            group.handle_timeout(Instant(now));
        }
        self.act();
        self.write_on();
    }

    /// What weftd does for a group after anything has happened.
    fn act(&mut self) {
        let Some((id, mut group)) = self.group.take() else { return };
        let mut again = true;
        while std::mem::take(&mut again) {
            for at in 0..2 {
                let (stage, who) = (&mut self.stages[at], self.owners[at]);
                let now = Instant(stage.now);
                while let Some((from, call)) = stage.grouped.pop_front() {
                    self.collected[at] = Some((from, call));
                    group.handle_swap(volume(at));
                }
                for event in stage.acts[who.0].events.iter().skip(self.seen[at]) {
                    match event {
                        Event::SnapshotTaken { id: of, .. } if *of == id => {
                            group.handle_taken(now, volume(at))
                        }
                        Event::SnapshotFailed { id: of, why } if *of == id => {
                            group.handle_failed(now, volume(at), why.clone());
                        }
                        Event::Ended(_) => group.handle_ended(now, volume(at)),
                        _ => {}
                    }
                }
                self.seen[at] = stage.acts[who.0].events.len();
                let step = stage.acts[who.0].machine.as_ref().and_then(|m| m.snapshot_step(id));
                group.handle_step(now, volume(at), step);
            }
            while let Some(action) = group.poll_action() {
                again = true;
                self.play(id, group.until(), action);
            }
        }
        if !group.is_over() {
            self.group = Some((id, group));
        }
        let keys = self.keys(id.0);
        assert!(keys[0] == keys[1], "D19: half a group stands in the store: {keys:?}\n{}", self.describe());
    }

    fn play(&mut self, id: SnapId, until: Instant, action: GroupAction) {
        let tell = &self.stages[0].play;
        tell.tell(self.stages[0].now, format_args!("the group: {action:?}"));
        match action {
            GroupAction::Ask(of) => {
                let note = vec![id.0 as u8];
                let (stage, who) = self.of(index(of));
                stage.notes.insert(id, note.clone());
                stage.with(who, |m, now| m.snapshot_in_group(now, id, note, until));
            }
            GroupAction::Pass(of, step) => {
                let (stage, who) = self.of(index(of));
                stage.with(who, |m, now| m.pass_snapshot(now, id, step));
            }
            GroupAction::Drop(of) => {
                let (stage, who) = self.of(index(of));
                stage.with(who, |m, now| m.drop_snapshot(now, id));
            }
            GroupAction::Refuse(of) => self.answer(index(of), StoreReply::Unavailable),
            GroupAction::Commit(of) => {
                let take = |of: &VolumeId| {
                    let (who, call) = self.collected[index(*of)].take()?;
                    Some((index(*of), who, call))
                };
                let swaps: Swaps = of.iter().filter_map(take).collect();
                let at = self.stages[0].now + self.stages[0].play.store(D) / 2;
                self.sent.push((at, swaps));
            }
            GroupAction::Taken => {
                self.outcome = Some(Ok(()));
                self.judge(id);
            }
            GroupAction::Failed { volume, why } => self.outcome = Some(Err((index(volume), why))),
        }
    }

    /// Answers the swap that was taken from a session, if there is one.
    fn answer(&mut self, at: usize, reply: StoreReply) {
        if let Some((who, _)) = self.collected[at].take() {
            self.stages[at].at(0, Cue::StoreAnswer { who, reply, watermark: None });
        }
    }

    // ---- the store

    fn replaces(&self, swaps: &Swaps) -> Vec<bool> {
        let replaces = |(at, _, call): &(usize, Who, StoreCall)| match call {
            StoreCall::Swap { expect, base, .. } => self.stages[*at].replaces(*expect, *base),
            StoreCall::Get => false,
        };
        swaps.iter().map(replaces).collect()
    }

    fn apply(&mut self, swaps: Swaps) {
        for (at, _, call) in swaps {
            if let StoreCall::Swap { record, snap, .. } = call {
                self.stages[at].apply(record, snap);
            }
        }
    }

    fn reach_store(&mut self, swaps: Swaps) {
        let replaces = self.replaces(&swaps);
        let applies = replaces.iter().all(|replaces| *replaces);
        let fate = self.fates.pop_front().unwrap_or(Fate::Answered);
        self.stages[0].play.tell(
            self.stages[0].now,
            format_args!("a transaction of {} volumes: {fate:?}, {applies}", swaps.len()),
        );
        let whose: Vec<(usize, Who)> = swaps.iter().map(|(at, who, _)| (*at, *who)).collect();
        match fate {
            Fate::Answered | Fate::AppliedUnknown if applies => self.apply(swaps),
            Fate::LateUnknown => self.late.push(swaps),
            _ => {}
        }
        for ((at, who), replaces) in whose.into_iter().zip(replaces) {
            let stage = &mut self.stages[at];
            let revision = Revision(stage.revision);
            let reply = match fate {
                Fate::Answered if applies => StoreReply::Swapped { revision },
                Fate::Answered if !replaces => {
                    StoreReply::Conflict { record: stage.record.clone(), revision }
                }
                Fate::Answered | Fate::Refused => StoreReply::Unavailable,
                Fate::AppliedUnknown | Fate::LostUnknown | Fate::LateUnknown => StoreReply::Unknown,
            };
            let wait = if reply == StoreReply::Unknown { STORE_PATIENCE_NS } else { stage.play.store(D) / 2 };
            stage.at(wait, Cue::StoreAnswer { who, reply, watermark: None });
        }
    }

    // ---- the judge

    /// Each volume's image is judged by its own stage; here, that they are of one moment.
    fn judge(&self, id: SnapId) {
        let images: Vec<Vec<Value>> = (0..2).map(|at| self.image(at, id.0)).collect();
        for at in 0..2 {
            let in_image = |wrote: &&Wrote| images[at][wrote.block as usize] == wrote.value;
            let Some(last) = self.wrote[at].iter().filter(in_image).map(|wrote| wrote.began).max() else {
                continue;
            };
            // What was answered before that is in the other one's image, or something later.
            for wrote in self.wrote[1 - at].iter().filter(|w| w.ended.is_some_and(|ended| ended < last)) {
                let there = images[1 - at][wrote.block as usize];
                assert!(
                    there >= wrote.value,
                    "D19: {id} of volume {at} has a write that began at {last}; the other one's has {there} in block {}, of which {} was answered before\n{}",
                    wrote.block,
                    wrote.value,
                    self.describe()
                );
            }
        }
    }

    /// What the first listed copy of a volume has of a snapshot.
    #[must_use]
    pub fn image(&self, at: usize, id: u128) -> Vec<Value> {
        let stage = &self.stages[at];
        let rid = stage.listed(id).into_iter().next().expect("it is listed");
        let image = stage.image(rid, id).expect("it has an image");
        image.into_iter().map(|value| value.expect("whole")).collect()
    }

    fn describe(&self) -> String {
        let group = self.group.as_ref().map(|(_, group)| format!("{group:?}")).unwrap_or_default();
        format!("{group}\nvolume 0: {}\nvolume 1: {}", self.stages[0].describe(), self.stages[1].describe())
    }
}
