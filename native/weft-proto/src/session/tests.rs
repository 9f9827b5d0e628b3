//! A session among members and a store that do what the test says: what it asks of whom, and when.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::guest::{GuestError, GuestOp, GuestReply};
use crate::ids::{ClusterId, LayerMark, PoolInc};
use crate::layer::{self, unwritten_block};
use crate::message::{Answer, Ask, Extent, Hole, Refusal, ReplicaView};
use crate::payload::{BLOCK, HeapPayload, Payload, block_crcs};
use crate::record::{Head, HeadData, Owner, ReplicaState, Snaps};

const SPECIMEN: &str = include_str!("../../specimens/record-v1.json");
const R1: Rid = Rid(1);
const R2: Rid = Rid(2);
const S: SnapId = SnapId(0x51);
const T: SnapId = SnapId(0x52);

/// What becomes of a swap.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// Its answer never comes, for now.
    Held,
    AppliedUnknown,
    LostUnknown,
}

type Pick = fn(&Ask<HeapPayload>) -> bool;
type Verdict = fn(&Ask<HeapPayload>) -> Option<Result<Answer<HeapPayload>, Refusal>>;

struct Scene {
    session: Session<HeapPayload>,
    now: Instant,
    record: Record,
    revision: u64,
    /// What each member was asked, but for heartbeats.
    asked: Vec<(Rid, Ask<HeapPayload>)>,
    /// Asks that stay unanswered, of which member.
    hold: BTreeMap<Rid, Pick>,
    held: Vec<Transmit<HeapPayload>>,
    /// What a member says instead of yes.
    says: BTreeMap<Rid, Verdict>,
    fates: VecDeque<Fate>,
    snaps: Vec<SnapChange>,
    swaps: Vec<(Record, Option<SnapChange>)>,
    events: Vec<Event>,
    done: Vec<RequestId>,
    next: u64,
}

fn mark() -> Watermark {
    Watermark { cluster: ClusterId(1), incarnation: 3, revision: 5 }
}

impl Scene {
    /// A session that serves a volume with two members in sync, and whose snapshots are `known`.
    fn serving(known: Vec<SnapKnown>) -> Scene {
        let mut scene = Scene::opened(known.len());
        scene.session.know_snapshots(scene.now, known);
        scene.drain();
        scene
    }

    /// The same, before it was told of snapshots.
    fn opened(count: usize) -> Scene {
        let scene = Scene::opening(closed_record(count), false);
        assert!(scene.session.is_serving(), "{:?}", scene.session.view());
        scene
    }

    /// A session that begins to open a volume with this record.
    fn opening(record: Record, caretaker: bool) -> Scene {
        let mut scene = Scene::asked_for(record, OpenMode::Closed, caretaker);
        scene.run(100);
        scene.asked.clear();
        scene.swaps.clear();
        scene
    }

    /// Host A was just asked for a session of this volume, and its members are there.
    fn asked_for(record: Record, mode: OpenMode, caretaker: bool) -> Scene {
        let config = SessionConfig {
            volume: record.vol,
            session: SessionId(0x5e),
            host: HostId(0xA),
            mode,
            caretaker,
            watermark: mark(),
            timing: Timing::default(),
            seed: 7,
            unix_ms_at_zero: 0,
            broken: Broken::default(),
        };
        let now = Instant(0).after_ms(1000);
        let mut scene = Scene {
            session: Session::new(config, now),
            now,
            record,
            revision: 5,
            asked: Vec::new(),
            hold: BTreeMap::new(),
            held: Vec::new(),
            says: BTreeMap::new(),
            fates: VecDeque::new(),
            snaps: Vec::new(),
            swaps: Vec::new(),
            events: Vec::new(),
            done: Vec::new(),
            next: 0,
        };
        scene.drain();
        for rid in [R1, R2] {
            scene.session.handle_link_up(scene.now, rid);
        }
        scene.drain();
        scene
    }

    fn drain(&mut self) {
        loop {
            if let Some(to) = self.session.poll_transmit() {
                self.deliver(to);
            } else if let Some(call) = self.session.poll_store() {
                self.store(call);
            } else if let Some((id, _)) = self.session.poll_reply() {
                self.done.push(id);
            } else if let Some(event) = self.session.poll_event() {
                self.events.push(event);
            } else {
                return;
            }
        }
    }

    fn deliver(&mut self, to: Transmit<HeapPayload>) {
        if to.request.ask != Ask::Heartbeat {
            self.asked.push((to.rid, to.request.ask.clone()));
        }
        if self.hold.get(&to.rid).is_some_and(|pick| pick(&to.request.ask)) {
            return self.held.push(to);
        }
        self.answer(to);
    }

    fn answer(&mut self, to: Transmit<HeapPayload>) {
        let view = || ReplicaView {
            promised: to.request.epoch,
            session: SessionId(0x5e),
            sealed: Generation::NEVER,
            newest: Generation::NEVER,
            unsealed_regions: 0,
            lossy: false,
            size: self.record.size,
            pool_inc: PoolInc(4),
            watermark: mark(),
            ordinal: to.ordinal,
        };
        let says = self.says.get(&to.rid).and_then(|says| says(&to.request.ask));
        let outcome = says.unwrap_or_else(|| {
            Ok(match &to.request.ask {
                Ask::Attach(_) => Answer::Attached(ReplicaView { promised: Epoch(0), ..view() }),
                Ask::Promise { .. } => Answer::Promised(view()),
                Ask::Stamps { .. } => Answer::Stamps { stamps: Vec::new(), next: None },
                Ask::Heartbeat => Answer::Alive { oldest_io_ms: 0, free_bytes: 1 << 30 },
                _ => Answer::Done,
            })
        });
        let response = Response { tag: to.request.tag, epoch: to.request.epoch, outcome, service_us: 1 };
        self.session.handle_response(self.now, to.rid, to.ordinal, response);
    }

    fn store(&mut self, call: StoreCall) {
        let reply = match call {
            StoreCall::Get => {
                StoreReply::Record { record: self.record.clone(), revision: Revision(self.revision) }
            }
            StoreCall::Swap { expect, base, record, snap, grouped: _ } => {
                let fate = self.fates.pop_front().unwrap_or(Fate::Answered);
                let applies = expect.0 == self.revision && base == self.record.nonce;
                self.swaps.push((record.clone(), snap.clone()));
                if applies && matches!(fate, Fate::Answered | Fate::AppliedUnknown) {
                    self.revision += 1;
                    self.record = record;
                    self.snaps.extend(snap);
                }
                match fate {
                    Fate::Held => return,
                    Fate::AppliedUnknown | Fate::LostUnknown => StoreReply::Unknown,
                    Fate::Answered if applies => StoreReply::Swapped { revision: Revision(self.revision) },
                    Fate::Answered => StoreReply::Conflict {
                        record: self.record.clone(),
                        revision: Revision(self.revision),
                    },
                }
            }
        };
        self.session.handle_store(self.now, reply, Some(mark()));
    }

    /// Plays for so many milliseconds, in steps of ten.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now.after_ms(10);
            self.session.handle_timeout(self.now);
            self.drain();
        }
    }

    fn hold(&mut self, rid: Rid, pick: Pick) {
        self.hold.insert(rid, pick);
    }

    /// What was held is answered.
    fn release(&mut self) {
        self.hold.clear();
        for to in core::mem::take(&mut self.held) {
            self.answer(to);
        }
        self.drain();
    }

    fn snapshot(&mut self, id: SnapId) {
        self.session.snapshot(self.now, id, b"{}".to_vec());
        self.drain();
    }

    fn write(&mut self, block: u64) -> RequestId {
        self.next += 1;
        let (id, data) = (RequestId(self.next), HeapPayload::zeroed(4096));
        self.session.submit(self.now, id, GuestOp::Write { offset: block * BLOCK, data, fua: false });
        self.drain();
        id
    }

    /// How often a member was asked this.
    fn count(&self, rid: Rid, pick: Pick) -> usize {
        self.asked.iter().filter(|(r, ask)| *r == rid && pick(ask)).count()
    }

    fn taken(&self, id: SnapId) -> Option<(Vec<Rid>, u64)> {
        self.events.iter().find_map(|event| match event {
            Event::SnapshotTaken { id: of, members, held_ms, .. } if *of == id => {
                Some((members.clone(), *held_ms))
            }
            _ => None,
        })
    }

    fn failed(&self, id: SnapId) -> Option<SnapFailure> {
        self.events.iter().find_map(|event| match event {
            Event::SnapshotFailed { id: of, why } if *of == id => Some(why.clone()),
            _ => None,
        })
    }

    fn prepared(&self, rid: Rid) -> Vec<(u64, Generation)> {
        let prepare = |(to, ask): &(Rid, Ask<HeapPayload>)| match ask {
            Ask::SnapPrepare { attempt, generation, .. } if *to == rid => Some((*attempt, *generation)),
            _ => None,
        };
        self.asked.iter().filter_map(prepare).collect()
    }
}

/// Two members in sync, closed.
fn closed_record(snapshots: usize) -> Record {
    let mut record = Record::parse(SPECIMEN.as_bytes()).expect("the specimen");
    record.owner = None;
    record.snaps = Snaps { count: u32::try_from(snapshots).expect("few"), ..Snaps::default() };
    record.replicas[1].state = ReplicaState::InSync;
    record
}

/// The same, of 256 MiB, its head deleted, with a snapshot.
fn headless_record(data: HeadData) -> Record {
    let mut record = closed_record(1);
    record.mark_head(Some(Head { deleted: "77".into(), data, unknown: BTreeMap::new() }));
    record
}

fn zeroes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Zero { .. })
}

fn makes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapMake { .. })
}

fn prepares(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapPrepare { .. })
}

fn readies(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapReady { .. })
}

fn drops(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapDrop { .. })
}

fn deletes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapDelete { .. })
}

fn writes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Write { .. })
}

fn seals(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Seal { .. })
}

fn known(id: SnapId, state: SnapState, members: &[Rid]) -> SnapKnown {
    let generation = Generation::new(Epoch(7), 1);
    let (members, note, data) = (members.to_vec(), b"{}".to_vec(), SnapData::Kept);
    SnapKnown { id, attempt: 9, generation, state, members, note, data }
}

/// 4.19: new writes wait from the moment on in which what has begun is awaited, until every member has its image, and not
/// for the store; whoever asked is told when every member has logged it (R27).
#[test]
fn a_snapshot_is_taken_between_two_writes_and_told_when_it_is_logged() {
    let mut scene = Scene::serving(Vec::new());
    scene.hold(R2, writes);
    let before = scene.write(5);
    scene.snapshot(S);
    scene.run(200);
    assert_eq!((scene.count(R1, makes), scene.count(R2, makes)), (1, 1));
    assert!(scene.prepared(R1).is_empty(), "a write is on its way to r2");
    let after = scene.write(6);
    assert_eq!(scene.count(R1, writes), 1, "the second one waits");
    scene.hold(R2, prepares);
    let write = scene.held.remove(0);
    scene.answer(write);
    scene.drain();
    assert_eq!(scene.done, [before]);
    assert_eq!(scene.prepared(R1), scene.prepared(R2));
    let [(attempt, generation)] = scene.prepared(R1)[..] else { panic!("{:?}", scene.asked) };
    assert!(
        scene
            .asked
            .iter()
            .any(|(_, ask)| { matches!(ask, Ask::Write { generation: of, .. } if *of <= generation) })
    );
    scene.run(100);
    assert_eq!((scene.count(R1, writes), scene.swaps.len()), (1, 0), "r2 has no image yet");
    scene.fates.push_back(Fate::Held);
    scene.hold(R1, readies);
    let prepare = scene.held.remove(0);
    scene.answer(prepare);
    scene.drain();
    assert_eq!(scene.done, [before, after], "guests go on, whatever the store does");
    let late = |(_, ask): &&(Rid, Ask<HeapPayload>)| matches!(ask, Ask::Write { generation: of, .. } if *of > generation);
    assert_eq!(scene.asked.iter().filter(late).count(), 2, "in an interval of its own");
    let (record, snap) = scene.swaps[0].clone();
    let Some(SnapChange::Taken(taken)) = snap.clone() else { panic!("{snap:?}") };
    assert_eq!((record.epoch, record.snaps.count, record.snaps.newest), (scene.record.epoch, 1, Some(S)));
    assert_eq!((taken.id, taken.attempt, taken.generation), (S, attempt, generation));
    assert_eq!((taken.epoch, taken.incarnation, taken.size), (record.epoch, 3, record.size));
    assert_eq!((taken.members, taken.region_shift), (vec![R1, R2], record.region_shift));
    // The store answers now.
    (scene.record, scene.revision) = (record, scene.revision + 1);
    let reply = StoreReply::Swapped { revision: Revision(scene.revision) };
    scene.session.handle_store(scene.now, reply, Some(mark()));
    scene.drain();
    assert_eq!((scene.count(R1, readies), scene.count(R2, readies)), (1, 1));
    assert_eq!((scene.taken(S), scene.swaps.len()), (None, 1), "r1 has not logged it");
    scene.release();
    assert_eq!(scene.swaps[1].1, Some(SnapChange::Logged { id: S }));
    let (members, held_ms) = scene.taken(S).expect("told");
    assert_eq!((members, held_ms), (vec![R1, R2], 300));
    // Asked for once more, it is told of.
    scene.events.clear();
    scene.snapshot(S);
    assert!(scene.taken(S).is_some() && scene.swaps.len() == 2);
}

/// Finding 21: a barrier ends its interval also where nothing was written, and an attempt is never named twice.
#[test]
fn every_barrier_has_an_interval_and_an_attempt_of_its_own() {
    let mut scene = Scene::serving(Vec::new());
    for id in [S, T] {
        scene.snapshot(id);
        assert!(scene.taken(id).is_some());
    }
    let [(a, g), (b, h)] = scene.prepared(R1)[..] else { panic!("two") };
    assert!(a < b && g < h, "{a} {g} {b} {h}");
    assert_eq!(a >> 20, scene.record.epoch.0, "later sessions have later names");
    assert_eq!(scene.record.snaps.count, 2);
    assert_eq!(scene.count(R1, seals), 0, "nothing was stamped");
}

/// No seal runs inside the barrier, where guests would wait for it; what was stamped is sealed after it.
#[test]
fn a_barriers_interval_is_sealed_after_it() {
    let mut scene = Scene::serving(Vec::new());
    scene.write(5);
    scene.hold(R1, prepares);
    scene.snapshot(S);
    scene.run(500);
    assert_eq!((scene.prepared(R1).len(), scene.count(R1, seals)), (1, 0));
    scene.release();
    let (_, generation) = scene.prepared(R1)[0];
    assert!(scene.asked.iter().any(|(_, ask)| *ask == Ask::Seal { generation }));
}

/// The owner that a session of host A claims to be of a volume that had this one; else why it ended.
fn claim_of(mode: OpenMode, owner: Option<Owner>, caretaker: bool) -> Result<Owner, EndReason> {
    let mut record = Record::parse(SPECIMEN.as_bytes()).expect("the specimen");
    (record.owner, record.clean) = (owner, false);
    record.replicas[1].state = ReplicaState::InSync;
    let scene = Scene::asked_for(record, mode, caretaker);
    match scene.swaps.first() {
        Some((record, _)) => Ok(record.owner.expect("a claim names its owner")),
        None => Err(scene
            .events
            .into_iter()
            .find_map(|event| match event {
                Event::Ended(reason) => Some(reason),
                _ => None,
            })
            .expect("it has claimed or ended")),
    }
}

/// R32: an ownership goes on in a guest's session that takes over exactly from an ended guest's session of the same host.
#[test]
fn an_ownership_goes_on_only_from_an_ended_guest_of_the_same_host() {
    let (dead, began) = (SessionId(0xD1ED), SessionId(0xF1257));
    let of = |node, caretaker, first| Some(Owner { node: HostId(node), session: dead, caretaker, first });
    let first_of = |mode, owner, caretaker| claim_of(mode, owner, caretaker).map(|owner| owner.first());
    let go_on = OpenMode::Continue { session: dead };
    let taken = OpenMode::Steal { old_stopped: Some(dead) };
    for mode in [go_on, taken] {
        assert_eq!(first_of(mode, of(0xA, false, None), false), Ok(dead));
        assert_eq!(first_of(mode, of(0xA, false, Some(began)), false), Ok(began), "however often");
        assert_eq!(first_of(mode, of(0xA, false, Some(began)), true), Ok(SessionId(0x5e)), "a caretaker");
        assert_eq!(
            first_of(mode, of(0xA, true, Some(began)), false),
            Ok(SessionId(0x5e)),
            "from a caretaker"
        );
    }
    let stolen = OpenMode::Steal { old_stopped: None };
    assert_eq!(first_of(stolen, of(0xB, false, Some(began)), false), Ok(SessionId(0x5e)), "a steal");
    assert_eq!(first_of(OpenMode::Closed, None, false), Ok(SessionId(0x5e)), "a volume that was closed");
    // Somebody else has had it, or has it: nothing is claimed.
    let other = Owner { node: HostId(0xA), session: SessionId(0x0123), caretaker: false, first: Some(began) };
    for owner in [None, Some(other)] {
        assert_eq!(claim_of(go_on, owner, false), Err(EndReason::Fenced { owner }));
    }
}

/// R33: what was decided to replace is replaced, and what nobody minds to lose; nothing else, also on the same host.
#[test]
fn whoever_was_to_replace_one_owner_replaces_no_other() {
    let (decided, began) = (SessionId(0xD1ED), SessionId(0xF1257));
    let of = |session, caretaker| Some(Owner { node: HostId(0xA), session, caretaker, first: Some(began) });
    let mine = SessionId(0x5e);
    for ended in [false, true] {
        let replace = OpenMode::Replace { session: decided, ended };
        let first_of = |owner| claim_of(replace, owner, false).map(|owner| owner.first());
        let first = if ended { began } else { mine };
        assert_eq!(first_of(of(decided, false)), Ok(first), "R32: of its own host, if that has ended");
        assert_eq!(first_of(None), Ok(mine), "it was closed meanwhile");
        assert_eq!(first_of(of(SessionId(0x0123), true)), Ok(mine), "a caretaker");
        let other = of(SessionId(0x0123), false).expect("an owner");
        assert_eq!(claim_of(replace, Some(other), false), Err(EndReason::Busy { owner: other }));
    }
}

#[test]
fn nothing_is_taken_or_changed_before_the_keys_were_read() {
    let mut scene = Scene::opened(1);
    scene.snapshot(S);
    scene.session.delete_snapshot(scene.now, T);
    scene.session.remove_replica(scene.now, R2);
    scene.run(1000);
    assert!(scene.asked.iter().all(|(_, ask)| !makes(ask)) && scene.swaps.is_empty());
    scene.session.know_snapshots(scene.now, vec![known(T, SnapState::Logged, &[R1])]);
    scene.drain();
    scene.run(200);
    let kinds: Vec<Option<SnapChange>> =
        scene.swaps.iter().filter_map(|(_, snap)| snap.clone().map(Some)).collect();
    assert!(kinds.contains(&Some(SnapChange::Deleting { id: T })), "{kinds:?}");
    assert!(scene.taken(S).is_some());
}

#[test]
fn a_copy_that_can_have_no_image_ends_it_before_any_guest_waits() {
    for (refusal, why) in [
        (Refusal::NoSnapshots, SnapFailure::CannotBe { rid: R2 }),
        (Refusal::NoSpace, SnapFailure::NoSpace { rid: R2 }),
    ] {
        let mut scene = Scene::serving(Vec::new());
        let verdict: Verdict = match refusal {
            Refusal::NoSpace => |ask| makes(ask).then_some(Err(Refusal::NoSpace)),
            _ => |ask| makes(ask).then_some(Err(Refusal::NoSnapshots)),
        };
        scene.says.insert(R2, verdict);
        scene.snapshot(S);
        assert_eq!(scene.failed(S), Some(why));
        assert_eq!((scene.count(R1, prepares), scene.count(R1, drops)), (0, 1), "what r1 has made goes");
        assert!(scene.swaps.is_empty() && scene.session.in_sync() == [R1, R2], "r2 serves on");
    }
}

/// H8: what holds the guests holds them for a second; then it is tried again, three times, each with a name of its own.
#[test]
fn a_member_that_does_not_take_its_image_holds_the_guests_for_a_second_at_most() {
    let mut scene = Scene::serving(Vec::new());
    scene.hold(R2, prepares);
    scene.snapshot(S);
    let write = scene.write(5);
    scene.run(900);
    assert!(!scene.done.contains(&write));
    scene.run(200);
    assert!(scene.done.contains(&write), "guests go on");
    let (first, _) = scene.prepared(R1)[0];
    let dropped = |s: &Scene, rid| {
        s.asked.iter().any(|(to, ask)| *to == rid && *ask == Ask::SnapDrop { id: S, attempt: first })
    };
    assert!(dropped(&scene, R1) && dropped(&scene, R2));
    scene.run(8000);
    let attempts: Vec<u64> = scene.prepared(R1).iter().map(|(attempt, _)| *attempt).collect();
    assert!(attempts.len() == 3 && attempts.is_sorted_by(|a, b| a < b), "{attempts:?}");
    assert_eq!(scene.failed(S), Some(SnapFailure::Silent { rid: R2 }));
    assert!(scene.swaps.is_empty());
}

/// The same where a write doesn't end.
#[test]
fn a_write_that_hangs_holds_the_guests_for_a_second_at_most() {
    let mut scene = Scene::serving(Vec::new());
    // R1 hangs too, so that nobody is taken out for it.
    scene.hold(R1, writes);
    scene.hold(R2, writes);
    scene.write(5);
    scene.snapshot(S);
    scene.run(500);
    let held = scene.write(6);
    assert_eq!(scene.count(R1, writes), 1, "it waits");
    scene.run(700);
    assert_eq!(scene.count(R1, writes), 2, "it is sent");
    assert!(scene.prepared(R1).is_empty());
    scene.release();
    assert!(scene.done.contains(&held));
    scene.run(2000);
    assert!(scene.taken(S).is_some(), "{:?}", scene.failed(S));
}

/// R14, R15: while it is not known whether the swap was applied nothing is dropped; the same swap settles it.
#[test]
fn images_stay_while_the_swaps_outcome_is_unknown() {
    let mut scene = Scene::serving(Vec::new());
    scene.fates.extend([Fate::LostUnknown, Fate::LostUnknown]);
    scene.snapshot(S);
    scene.run(150);
    assert_eq!((scene.count(R1, drops), scene.count(R1, readies)), (0, 0));
    scene.run(1000);
    assert_eq!(scene.count(R1, drops), 0);
    assert!(scene.taken(S).is_some());
    assert_eq!(scene.prepared(R1).len(), 1, "one attempt");
    // One that was applied is recognised.
    scene.fates.push_back(Fate::AppliedUnknown);
    scene.snapshot(T);
    scene.run(1000);
    assert!(scene.taken(T).is_some());
    assert_eq!((scene.count(R1, drops), scene.record.snaps.count), (0, 2));
}

/// R15: once the epoch has risen, a replica may take an image that no key names for what is left of a dead owner.
#[test]
fn a_swap_in_another_epoch_than_its_barriers_is_not_sent() {
    let mut scene = Scene::serving(Vec::new());
    scene.hold(R2, |ask| prepares(ask) || *ask == Ask::Heartbeat);
    scene.snapshot(S);
    let (first, _) = scene.prepared(R1)[0];
    // R2 is taken out in the middle of it.
    scene.run(600);
    scene.session.handle_link_down(scene.now, R2, true);
    scene.drain();
    scene.run(3000);
    assert_eq!(scene.record.in_sync().map(|e| e.rid).collect::<Vec<_>>(), [R1]);
    let (members, _) = scene.taken(S).expect("taken of r1 alone");
    assert_eq!(members, [R1]);
    assert!(scene.asked.contains(&(R1, Ask::SnapDrop { id: S, attempt: first })));
    let (second, generation) = scene.prepared(R1)[1];
    assert_eq!((generation.epoch(), second >> 20), (scene.record.epoch, scene.record.epoch.0));
}

/// R27: one that an earlier session has taken is logged by this one, and told of.
#[test]
fn what_an_earlier_session_left_is_brought_to_its_end() {
    let scene = Scene::serving(vec![
        known(S, SnapState::Taken, &[R1, R2]),
        known(T, SnapState::Deleting, &[R1, Rid(40)]),
    ]);
    assert!(scene.taken(S).is_some());
    assert_eq!((scene.count(R2, readies), scene.count(R1, deletes), scene.count(R2, deletes)), (1, 1, 0));
    assert_eq!(
        scene.snaps,
        [SnapChange::Logged { id: S }, SnapChange::Gone { id: T }],
        "r40 has left the record"
    );
    assert_eq!(scene.record.snaps.count, 1);
}

/// A listed member that was away while a snapshot was logged has to log it, too: it may be the last one some day.
#[test]
fn a_member_that_comes_back_logs_what_it_has_missed_and_is_no_holder_before() {
    let mut scene = Scene::opened(1);
    scene.hold(R2, readies);
    scene.session.know_snapshots(scene.now, vec![known(S, SnapState::Logged, &[R1, R2])]);
    scene.drain();
    scene.session.remove_replica(scene.now, R1);
    scene.run(500);
    assert!(scene.record.replica(R1).is_some(), "r2 has yet to say that it has it");
    scene.release();
    scene.run(100);
    assert!(scene.record.replica(R1).is_none());
}

/// H18: nobody else has the snapshot.
#[test]
fn the_last_copy_with_a_snapshots_image_is_not_taken_out() {
    let mut scene = Scene::serving(vec![known(S, SnapState::Logged, &[R2])]);
    scene.session.remove_replica(scene.now, R2);
    scene.run(100);
    let refused = Event::ChangeDone { rid: R2, outcome: Err(LAST_HOLDER) };
    assert!(scene.events.contains(&refused) && scene.swaps.is_empty());
    scene.session.delete_snapshot(scene.now, S);
    scene.drain();
    scene.session.remove_replica(scene.now, R2);
    scene.run(100);
    assert!(scene.events.contains(&Event::ChangeDone { rid: R2, outcome: Ok(()) }));
}

/// H19: the key says DELETING until every listed member has said that its image is gone, or has left.
#[test]
fn a_deleted_snapshots_key_goes_when_every_copy_has_removed_its_image() {
    let mut scene =
        Scene::serving(vec![known(S, SnapState::Logged, &[R1, R2]), known(T, SnapState::Logged, &[R1])]);
    scene.says.insert(R2, |ask| deletes(ask).then_some(Ok(Answer::Deleting)));
    scene.session.delete_snapshot(scene.now, S);
    scene.drain();
    scene.run(1200);
    assert_eq!(scene.snaps, [SnapChange::Deleting { id: S }]);
    assert!(scene.events.contains(&Event::SnapshotDeleting { id: S }));
    assert_eq!((scene.count(R1, deletes), scene.count(R2, deletes)), (1, 3), "asked again each 500 ms");
    scene.says.clear();
    scene.run(600);
    assert_eq!(scene.snaps.last(), Some(&SnapChange::Gone { id: S }));
    assert_eq!((scene.record.snaps.count, scene.record.snaps.newest), (1, None));
    assert!(scene.events.contains(&Event::SnapshotGone { id: S }));
    // There is none any more.
    scene.events.clear();
    scene.session.delete_snapshot(scene.now, S);
    scene.session.change_snapshot(scene.now, T);
    scene.drain();
    let gone = Event::SnapshotGone { id: S };
    assert!(scene.events.contains(&gone) && scene.events.contains(&Event::SnapshotChanged { id: T }));
}

/// R27's other half: a member that says it has no image is none that could log it, but somebody has to.
#[test]
fn a_snapshot_that_nobody_has_is_never_told_of() {
    let mut scene = Scene::serving(Vec::new());
    let without: Verdict = |ask| readies(ask).then_some(Err(Refusal::NoSnapshot));
    scene.says.insert(R1, without);
    scene.snapshot(S);
    assert!(scene.taken(S).is_some(), "r2 has it");
    scene.says.insert(R2, without);
    scene.snapshot(T);
    scene.run(21_000);
    assert_eq!(
        (scene.taken(T), scene.failed(T)),
        (None, Some(SnapFailure::Waits("a copy that has its image".to_string())))
    );
    assert_eq!(scene.session.in_sync(), [R1, R2]);
}

#[test]
fn a_close_waits_for_the_snapshot_that_has_begun_and_ends_those_that_have_not() {
    let mut scene = Scene::serving(Vec::new());
    scene.hold(R1, readies);
    scene.snapshot(S);
    scene.hold(R2, makes);
    scene.snapshot(T);
    assert!(scene.session.close(scene.now));
    scene.run(500);
    assert_eq!((scene.failed(T), scene.failed(S)), (Some(SnapFailure::Closing), None));
    assert!(!scene.session.is_ended());
    scene.release();
    scene.run(200);
    assert!(scene.taken(S).is_some());
    assert_eq!(scene.events.last(), Some(&Event::Ended(EndReason::Closed)));
    // Nobody asks a session that closes for one.
    let mut scene = Scene::serving(Vec::new());
    assert!(scene.session.close(scene.now));
    scene.snapshot(S);
    assert_eq!(scene.failed(S), Some(SnapFailure::Closing));
}

/// What waits too long is told for what; nothing of it is left.
#[test]
fn a_snapshot_is_tried_for_twenty_seconds() {
    let mut scene = Scene::serving(Vec::new());
    scene.hold(R2, makes);
    scene.snapshot(S);
    scene.snapshot(T);
    scene.run(19_900);
    assert_eq!(scene.failed(S), None);
    scene.run(200);
    assert_eq!(scene.failed(S), Some(SnapFailure::Silent { rid: R2 }));
    assert_eq!(scene.failed(T), Some(SnapFailure::Waits("an earlier snapshot".to_string())));
    assert_eq!(scene.count(R1, drops), 1);
    scene.release();
    scene.snapshot(S);
    scene.run(100);
    assert!(scene.taken(S).is_some());
}

fn adds(scene: &Scene, id: SnapId) -> Option<Result<(), NotAdded>> {
    scene.events.iter().find_map(|event| match event {
        Event::SnapshotCopyAdded { id: of, rid: R2, outcome } if *of == id => Some(*outcome),
        _ => None,
    })
}

/// 4.19: a member that got all of a snapshot later is listed once it has logged that, by one swap, and from then on counts
/// as one that has it: the other one may leave.
#[test]
fn a_member_is_listed_when_it_has_logged_what_it_got_later() {
    let mut scene = Scene::serving(vec![known(S, SnapState::Logged, &[R1])]);
    scene.hold(R2, readies);
    scene.session.add_snapshot_copy(scene.now, S, R2);
    scene.session.add_snapshot_copy(scene.now, S, R2);
    scene.drain();
    scene.run(300);
    assert_eq!((scene.count(R2, readies), scene.snaps.len(), adds(&scene, S)), (1, 0, None));
    scene.session.remove_replica(scene.now, R1);
    scene.run(100);
    assert!(scene.record.replica(R1).is_some(), "nobody else is known to have it");
    scene.release();
    assert_eq!(scene.snaps, [SnapChange::Added { id: S, rid: R2 }]);
    assert_eq!((adds(&scene, S), scene.record.snaps.count), (Some(Ok(())), 1));
    scene.session.remove_replica(scene.now, R1);
    scene.run(100);
    assert!(scene.record.replica(R1).is_none());
    // Once more: there is nothing to do.
    scene.events.clear();
    scene.session.add_snapshot_copy(scene.now, S, R2);
    scene.drain();
    assert_eq!((adds(&scene, S), scene.snaps.len(), scene.count(R2, readies)), (Some(Ok(())), 1, 1));
    // It goes at that member, too.
    scene.session.delete_snapshot(scene.now, S);
    scene.run(100);
    assert_eq!((scene.count(R2, deletes), scene.snaps.last()), (1, Some(&SnapChange::Gone { id: S })));
}

/// R14: the swap's outcome is not known; it is settled before anybody is told.
#[test]
fn a_member_is_told_to_be_listed_when_that_is_known() {
    for fate in [Fate::AppliedUnknown, Fate::LostUnknown] {
        let mut scene = Scene::serving(vec![known(S, SnapState::Logged, &[R1])]);
        scene.fates.push_back(fate);
        scene.session.add_snapshot_copy(scene.now, S, R2);
        scene.drain();
        assert_eq!(adds(&scene, S), None);
        scene.run(1000);
        assert_eq!(adds(&scene, S), Some(Ok(())));
        assert_eq!(scene.snaps, [SnapChange::Added { id: S, rid: R2 }]);
    }
}

/// Whoever can't be listed is told why, and nothing is changed.
#[test]
fn a_member_without_the_image_or_of_a_snapshot_that_goes_is_not_listed() {
    let mut scene = Scene::opened(2);
    scene.says.insert(R1, |ask| deletes(ask).then_some(Ok(Answer::Deleting)));
    let all = vec![known(S, SnapState::Logged, &[R1]), known(T, SnapState::Deleting, &[R1])];
    scene.session.know_snapshots(scene.now, all);
    scene.drain();
    scene.says.insert(R2, |ask| readies(ask).then_some(Err(Refusal::NoSnapshot)));
    for (id, why) in [(S, NotAdded::NoImage), (T, NotAdded::NoSnapshot), (SnapId(77), NotAdded::NoSnapshot)] {
        scene.session.add_snapshot_copy(scene.now, id, R2);
        scene.drain();
        assert_eq!(adds(&scene, id), Some(Err(why)), "{id}");
    }
    scene.session.add_snapshot_copy(scene.now, S, Rid(40));
    scene.drain();
    let refused = Event::SnapshotCopyAdded { id: S, rid: Rid(40), outcome: Err(NotAdded::NotInSync) };
    assert!(scene.events.contains(&refused) && scene.snaps.is_empty());
    // One that says nothing.
    scene.events.clear();
    scene.hold(R2, readies);
    scene.session.add_snapshot_copy(scene.now, S, R2);
    scene.run(9_000);
    assert_eq!(adds(&scene, S), None);
    scene.run(1_100);
    assert_eq!(adds(&scene, S), Some(Err(NotAdded::Silent)));
    assert!(scene.snaps.is_empty());
}

/// Its deletion was asked for while the member logged it: it gets no more members, and what that one has goes by R15.
#[test]
fn a_snapshot_that_is_deleted_meanwhile_gets_no_more_members() {
    let mut scene = Scene::serving(vec![known(S, SnapState::Logged, &[R1])]);
    scene.hold(R2, readies);
    scene.session.add_snapshot_copy(scene.now, S, R2);
    scene.drain();
    scene.fates.push_back(Fate::Answered);
    scene.session.delete_snapshot(scene.now, S);
    scene.release();
    scene.run(200);
    assert_eq!(adds(&scene, S), Some(Err(NotAdded::NoSnapshot)));
    assert_eq!(scene.snaps, [SnapChange::Deleting { id: S }, SnapChange::Gone { id: S }]);
}

/// R31: a guest never opens a volume whose head is deleted, and who looks after it takes no snapshot of it, changes no size and
/// brings nothing back: nobody reads or writes what it had.
#[test]
fn only_a_caretaker_opens_a_volume_whose_head_is_deleted() {
    let scene = Scene::opening(headless_record(HeadData::Kept), false);
    assert!(scene.events.contains(&Event::Ended(EndReason::HeadDeleted)), "{:?}", scene.events);
    assert!(scene.swaps.is_empty() && scene.record.owner.is_none());

    let mut scene = Scene::opening(headless_record(HeadData::Kept), true);
    scene.session.know_snapshots(scene.now, vec![known(T, SnapState::Logged, &[R1, R2])]);
    scene.drain();
    assert!(scene.session.is_serving(), "{:?}", scene.session.view());
    scene.snapshot(S);
    assert_eq!(scene.failed(S), Some(SnapFailure::HeadDeleted));
    scene.write(0);
    scene.session.resize(scene.now, 512 << 20, false);
    scene.session.revert(scene.now, T);
    scene.run(100);
    let refused = |event: &Event| {
        matches!(
            event,
            Event::Resized { outcome: Err(head::DELETED), .. }
                | Event::Reverted { outcome: Err(RevertFailure::HeadDeleted), .. }
        )
    };
    assert_eq!(scene.events.iter().filter(|event| refused(event)).count(), 2, "{:?}", scene.events);
    assert!(
        !scene.asked.iter().any(|(_, ask)| makes(ask) || writes(ask) || zeroes(ask)),
        "{:?}",
        scene.asked
    );
    // Its snapshots are looked after as ever.
    scene.session.delete_snapshot(scene.now, T);
    scene.run(1500);
    assert_eq!(scene.record.snaps.count, 0);
    assert_eq!(scene.record.head_data(), Some(HeadData::Kept));
}

/// R31: what the head has goes when every member holds the record that says so, in pieces; then the record says that it is
/// gone. Asked once more there is nothing to do.
#[test]
fn nothing_of_a_deleted_head_goes_before_every_member_knows_it() {
    let mut scene = Scene::opening(headless_record(HeadData::Kept), true);
    let epoch = scene.record.epoch;
    scene.hold(R2, |ask| matches!(ask, Ask::Promise { .. }));
    scene.session.release_head(scene.now);
    scene.run(100);
    assert_eq!((scene.record.epoch, scene.record.head_data()), (epoch.next(), Some(HeadData::Releasing)));
    assert!(scene.events.contains(&Event::HeadReleasing { outcome: Ok(()) }));
    assert_eq!((scene.count(R1, zeroes), scene.count(R2, zeroes)), (0, 0), "r2 has not heard of it");
    scene.hold(R2, zeroes);
    let promises = core::mem::take(&mut scene.held);
    promises.into_iter().for_each(|promise| scene.answer(promise));
    scene.drain();
    scene.run(100);
    assert_eq!((scene.count(R1, zeroes), scene.count(R2, zeroes)), (4, 4), "256 MiB");
    assert_eq!(scene.record.head_data(), Some(HeadData::Releasing), "r2 has not done it");
    scene.release();
    scene.run(100);
    assert_eq!(scene.record.head_data(), Some(HeadData::Released));
    assert!(scene.events.contains(&Event::HeadReleased));
    let asked = scene.asked.len();
    scene.session.release_head(scene.now);
    scene.drain();
    assert_eq!(scene.events.last(), Some(&Event::HeadReleasing { outcome: Ok(()) }));
    assert_eq!(scene.count(R1, zeroes), 4, "{:?}", &scene.asked[asked..]);
}

/// R31: a caretaker that finds it under way goes on by itself; of a volume that has its head nothing goes.
#[test]
fn who_opens_a_volume_whose_head_goes_goes_on_with_it() {
    let scene = Scene::opening(headless_record(HeadData::Releasing), true);
    assert!(scene.events.contains(&Event::HeadReleased), "{:?}", scene.events);
    assert_eq!(scene.record.head_data(), Some(HeadData::Released));

    let mut scene = Scene::opening(closed_record(1), true);
    scene.session.release_head(scene.now);
    scene.run(100);
    assert_eq!(scene.events.last(), Some(&Event::HeadReleasing { outcome: Err(head::NOT_DELETED) }));
    assert_eq!(scene.count(R1, zeroes), 0);
}

// ---- a layer (R34)

const MARK: LayerMark = LayerMark(0x5a5a_0102_0304_0506_0708_090a_0b0c_0d0e);

/// Of a read of the block, what its members have there.
fn absent(ask: &Ask<HeapPayload>) -> Option<Result<Answer<HeapPayload>, Refusal>> {
    hole(ask, Hole::Absent)
}

fn zero(ask: &Ask<HeapPayload>) -> Option<Result<Answer<HeapPayload>, Refusal>> {
    hole(ask, Hole::Zero)
}

fn hole(ask: &Ask<HeapPayload>, kind: Hole) -> Option<Result<Answer<HeapPayload>, Refusal>> {
    match ask {
        Ask::Read { len, .. } => Some(Ok(Answer::Data(vec![Extent::Hole { len: *len, kind }]))),
        _ => None,
    }
}

/// A block whose second sector was written, and nothing else of it ever.
fn half_written(ask: &Ask<HeapPayload>) -> Option<Result<Answer<HeapPayload>, Refusal>> {
    let Ask::Read { .. } = ask else { return None };
    let mut block = unwritten_block(MARK);
    block[512..1024].fill(7);
    let crcs = block_crcs(&block);
    Some(Ok(Answer::Data(vec![Extent::Data { crcs, data: block.into() }])))
}

impl Scene {
    /// One that serves a layer, all of whose members say this of its blocks.
    fn layer(says: Verdict) -> Scene {
        let mut record = closed_record(0);
        record.mark_layer(MARK);
        let mut scene = Scene::opening(record, false);
        scene.says.insert(R1, says);
        scene.says.insert(R2, says);
        scene
    }

    fn submit(&mut self, op: GuestOp<HeapPayload>) -> Vec<GuestReply<HeapPayload>> {
        self.next += 1;
        self.session.submit(self.now, RequestId(self.next), op);
        self.replies()
    }

    fn replies(&mut self) -> Vec<GuestReply<HeapPayload>> {
        let mut replies = Vec::new();
        while let Some(to) = self.session.poll_transmit() {
            self.deliver(to);
        }
        while let Some((_, reply)) = self.session.poll_reply() {
            replies.push(reply);
        }
        self.drain();
        replies
    }

    /// What the members were given to write last.
    fn written(&self) -> Vec<u8> {
        let data = self.asked.iter().rev().find_map(|(_, ask)| match ask {
            Ask::Write { data, crcs, .. } => {
                assert_eq!(block_crcs(data.bytes()), *crcs);
                Some(data.bytes().to_vec())
            }
            _ => None,
        });
        data.expect("a write")
    }
}

/// Of a block, just these bytes are written.
fn assert_written(block: &[u8], start: usize, end: usize) {
    assert_eq!(layer::written(MARK, block), core::iter::once(start..end).collect::<Vec<_>>());
}

fn sector(offset: u64, byte: u8) -> GuestOp<HeapPayload> {
    GuestOp::Write { offset, data: vec![byte; 512].into(), fua: false }
}

/// R34: guests write sectors, copies keep blocks. What a write leaves of a block that nobody had written is not zeroes, or the
/// layer would bring zeroes where the volume below has data.
#[test]
fn what_a_write_leaves_of_an_absent_block_of_a_layer_is_told_from_zeroes() {
    let mut scene = Scene::layer(absent);
    assert_eq!(scene.submit(sector(3 * BLOCK + 1024, 9)), [GuestReply::Done]);
    let mut block = unwritten_block(MARK);
    block[1024..1536].fill(9);
    assert_eq!(scene.written(), block);
    // A discard of part of a block is a write of zeroes, and those count as written.
    let part = GuestOp::Zero { offset: 512, len: 1024, discard: true, keep_space: false, fua: false };
    assert_eq!(scene.submit(part), [GuestReply::Done]);
    assert_written(&scene.written(), 512, 1536);
    // Over what was zeroed as a whole there is nothing that nobody has written.
    let mut scene = Scene::layer(zero);
    assert_eq!(scene.submit(sector(0, 9)), [GuestReply::Done]);
    assert_written(&scene.written(), 0, 4096);
    // And what stands there already stays as it is.
    let mut scene = Scene::layer(half_written);
    assert_eq!(scene.submit(sector(0, 9)), [GuestReply::Done]);
    assert_written(&scene.written(), 0, 1024);
}

/// The same of a volume that is none, of which the blocks are as they always were.
#[test]
fn a_volume_that_is_no_layer_has_zeroes_where_nobody_wrote() {
    let mut scene = Scene::opening(closed_record(0), false);
    scene.says.insert(R1, absent);
    scene.says.insert(R2, absent);
    assert_eq!(scene.submit(sector(1024, 9)), [GuestReply::Done]);
    let mut block = vec![0; 4096];
    block[1024..1536].fill(9);
    assert_eq!(scene.written(), block);
}

#[test]
fn a_guest_of_a_layer_reads_zeroes_where_nobody_wrote_and_who_lays_it_over_another_sees_what_lies_there() {
    let mut scene = Scene::layer(half_written);
    let bytes = |replies: Vec<GuestReply<HeapPayload>>| match &replies[..] {
        [GuestReply::Data(extents)] => match &extents[..] {
            [Extent::Data { data, .. }] => data.bytes().to_vec(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let mut shown = vec![0; 4096];
    shown[512..1024].fill(7);
    assert_eq!(bytes(scene.submit(GuestOp::Read { offset: 0, len: BLOCK })), shown);
    // Also from the middle of a sector on.
    let part = bytes(scene.submit(GuestOp::Read { offset: 300, len: 600 }));
    assert_eq!(part, shown[300..900]);
    scene.session.read_as_it_lies(scene.now, RequestId(99), 0, BLOCK);
    assert_written(&bytes(scene.replies()), 512, 1024);
}

#[test]
fn a_layer_takes_whole_sectors_alone() {
    let mut scene = Scene::layer(absent);
    let refused = [GuestReply::Failed(GuestError::OutOfRange)];
    assert_eq!(scene.submit(GuestOp::Write { offset: 1, data: vec![1; 512].into(), fua: false }), refused);
    assert_eq!(scene.submit(GuestOp::Write { offset: 0, data: vec![1; 100].into(), fua: false }), refused);
    let part = GuestOp::Zero { offset: 0, len: 5000, discard: false, keep_space: false, fua: false };
    assert_eq!(scene.submit(part), refused);
    assert!(!scene.asked.iter().any(|(_, ask)| writes(ask) || zeroes(ask)));
}
