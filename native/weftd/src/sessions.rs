//! The sessions of this host: their machines, who waits for what of them, and how they look from outside.
//!
//! Must always hold:
//! * one session per volume at a time in this process;
//! * whoever opened, closed or changed something is answered once, also when the session ends instead;
//! * an assertion that an old session's process has ended names exactly that session (R9).

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use serde_json::json;
use weft_control::types::{
    Decimal, MemberStatus, OpenMode as AskedMode, ResyncStatus, ScrubState, ScrubStatus, ScrubbedMember,
    SessionFigures, SessionOpened, SessionPhase, SessionStatus, VolumeLimits, VolumeResized,
};
use weft_io::buffer::IoBuf;
use weft_proto::guest::{GuestOp, GuestReply, RequestId};
use weft_proto::ids::{HostId, Instant, PoolId, Rid, SessionId, VolumeId};
use weft_proto::message::{Claim, Watermark};
use weft_proto::mutants::Broken;
use weft_proto::payload::{BLOCK, Payload as _};
use weft_proto::record::{Owner, Record, ReplicaState};
use weft_proto::session::{
    EndReason, Event, OpenMode, ScrubView, Session, SessionConfig, SessionView, StoreReply as MachineReply,
    Timing, head, policy, size,
};

use crate::clock::{random_u128, random_uuid, unix_ms};
use crate::errors::{Code, Failure};
use crate::exports::Arrived;
use crate::histogram::Waits;
use crate::limiter::Limits;
use crate::mail::Answer;
use crate::pools::refuse;
use crate::records::{code_of, record_of};
use crate::reverts::{self, Reverts};
use crate::snapshots::{Snapshots, failure_of};
use crate::store::{Entry, ReadError, SwapOutcome};

/// How long an open may take before its asker is told for what it waits.
pub const OPEN_MS: u64 = 15_000;

/// Findings of rot that a session tells the log; the figures count all of them.
const ROT_TOLD_MAX: u32 = 100;

/// A session and everything around it.
#[derive(Debug)]
pub struct Slot {
    /// The machine.
    pub machine: Session<IoBuf>,
    /// No guest.
    pub caretaker: bool,
    /// Somebody keeps its guest's requests while this process is away: it is left, not closed, when this process stops.
    pub held: bool,
    /// Where to export it, once it serves.
    pub export: Option<PathBuf>,
    /// The export's socket, while there is one.
    pub path: Option<PathBuf>,
    /// Whoever asked for it, until it has opened.
    pub opening: Option<(Answer, Instant)>,
    /// Whoever asked for its end.
    pub closing: Vec<Answer>,
    /// Whoever asked for a change of its replicas.
    pub changes: BTreeMap<Rid, Vec<Answer>>,
    /// Whoever asked for another size, in order.
    pub resizes: VecDeque<Answer>,
    /// Whoever asked for another policy, in order.
    pub policies: VecDeque<Answer>,
    /// Whoever asked for the giving back of what its deleted head has, in order.
    pub releases: VecDeque<Answer>,
    /// Why it ended.
    pub ended: Option<EndReason>,
    /// The members as their links were last told: their host and pool, and whether they are up.
    pub links: BTreeMap<Rid, (HostId, PoolId, bool)>,
    /// The resync under way: of whom, since when.
    pub resync_since: Option<(Rid, Instant)>,
    /// Bytes that guests asked to read.
    pub read_bytes: u64,
    /// Bytes that guests wrote.
    pub written_bytes: u64,
    /// How much guests may ask for.
    pub limits: Option<Limits>,
    /// What guests waited for.
    pub waits: Waits,
    /// Findings of rot that the log was told.
    pub rot_told: u32,
    /// The volume's snapshots, and who wants what of them.
    pub snapshots: Snapshots,
    /// Who waits for it to be taken back to one of them.
    pub reverts: Reverts,
}

/// Which owner an open may replace.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// As the control socket has it, and with a steal the only owner to replace, if it was one (R33). A session of this host
    /// that this process doesn't know is always replaced.
    Mode(AskedMode, Option<SessionId>),
    /// One of this host and of the ownership that this session is of, which somebody holds requests for.
    Continue(SessionId),
}

/// What is asked of an open.
#[derive(Debug)]
pub struct Opening {
    /// The volume.
    pub volume: VolumeId,
    /// May an owner be replaced?
    pub mode: Asked,
    /// Where to export it.
    pub export: Option<PathBuf>,
    /// No guest.
    pub caretaker: bool,
    /// The recorded owner's process has ended.
    pub old_stopped: bool,
    /// How much guests may ask for.
    pub limits: Option<Limits>,
    /// Who asks.
    pub answer: Answer,
}

impl Slot {
    /// Begins to open; `record` is the volume's, just read. None: [`Asked::Continue`], and the ownership is over.
    pub fn open(
        opening: Opening,
        record: &Record,
        host: HostId,
        watermark: Watermark,
        now: Instant,
    ) -> Result<Slot, Answer> {
        let Opening { volume, mode, export, caretaker, old_stopped, limits, answer } = opening;
        // A session of this host that this process doesn't have is of a process that has ended: it held the lock
        // of the state directory (R9).
        let ours = record.owner.filter(|o| o.node == host).map(|o| o.session);
        let held = matches!(mode, Asked::Continue(_));
        let mode = match (mode, ours) {
            (Asked::Continue(wanted), _) => {
                let goes_on = |o: &Owner| !o.caretaker && is_of(o, wanted);
                match record.owner.filter(|o| o.node == host && goes_on(o)) {
                    Some(owner) => OpenMode::Continue { session: owner.session },
                    None => return Err(answer),
                }
            }
            // Another host may take it before the claim: then it is that one's.
            (Asked::Mode(AskedMode::Closed, _), Some(session)) => OpenMode::Replace { session, ended: true },
            (Asked::Mode(AskedMode::Closed, _), None) => OpenMode::Closed,
            (Asked::Mode(AskedMode::Steal, Some(session)), _) => {
                OpenMode::Replace { session, ended: old_stopped || ours == Some(session) }
            }
            (Asked::Mode(AskedMode::Steal, None), Some(session)) => {
                OpenMode::Steal { old_stopped: Some(session) }
            }
            (Asked::Mode(AskedMode::Steal, None), None) => {
                OpenMode::Steal { old_stopped: record.owner.filter(|_| old_stopped).map(|o| o.session) }
            }
        };
        let unix_ms = unix_ms();
        let config = SessionConfig {
            volume,
            session: SessionId(random_uuid()),
            host,
            mode,
            caretaker,
            watermark,
            timing: Timing::default(),
            seed: random_u128(),
            unix_ms_at_zero: unix_ms.saturating_sub(now.0 / 1_000_000),
            broken: Broken::default(),
        };
        Ok(Slot {
            machine: Session::new(config, now),
            caretaker,
            held,
            export,
            path: None,
            opening: Some((answer, now.after_ms(OPEN_MS))),
            closing: Vec::new(),
            changes: BTreeMap::new(),
            resizes: VecDeque::new(),
            policies: VecDeque::new(),
            releases: VecDeque::new(),
            ended: None,
            links: BTreeMap::new(),
            resync_since: None,
            read_bytes: 0,
            written_bytes: 0,
            limits,
            waits: Waits::default(),
            rot_told: 0,
            snapshots: Snapshots::default(),
            reverts: Reverts::default(),
        })
    }

    /// The session that began this one's ownership (R32); itself, before it owns the volume.
    #[must_use]
    pub fn first(&self) -> SessionId {
        let id = self.machine.id();
        let owner = self.machine.record().and_then(|record| record.owner);
        owner.filter(|owner| owner.session == id).map_or(id, |owner| owner.first())
    }

    /// Is it of the ownership that this session began or was part of?
    #[must_use]
    pub fn is_of(&self, session: SessionId) -> bool {
        !self.caretaker && (self.first() == session || self.machine.id() == session)
    }

    /// May the log be told of another rotten block? So many of a session suffice.
    pub fn may_tell_rot(&mut self) -> bool {
        self.rot_told = self.rot_told.saturating_add(1);
        self.rot_told <= ROT_TOLD_MAX
    }

    /// A guest's request.
    pub fn submit(&mut self, now: Instant, Arrived { at, request }: Arrived) {
        self.waits.begin(now, at, request.id, &request.op);
        match &request.op {
            GuestOp::Read { len, .. } => self.read_bytes += len,
            GuestOp::Write { data, .. } => self.written_bytes += data.len() as u64,
            GuestOp::Flush | GuestOp::Zero { .. } | GuestOp::Kinds { .. } | GuestOp::Changed { .. } => {}
        }
        self.machine.submit(now, request.id, request.op);
    }

    /// The next answer to a guest.
    pub fn poll_reply(&mut self, now: Instant) -> Option<(RequestId, GuestReply<IoBuf>)> {
        let (id, reply) = self.machine.poll_reply()?;
        self.waits.end(now, id, &reply);
        Some((id, reply))
    }

    /// Asks the machine for another size; whoever asked is told by [`Slot::answer_resize`].
    pub fn resize(&mut self, now: Instant, size: u64, lose: bool, answer: Answer) {
        self.resizes.push_back(answer);
        self.machine.resize(now, size, lose);
    }

    /// A resize was done, or can't be: the machine answers them in order.
    pub fn answer_resize(&mut self, asked: u64, outcome: Result<(), &'static str>) {
        let Some(answer) = self.resizes.pop_front() else { return };
        let volume = self.machine.volume();
        let has = self.machine.record().map_or(0, |record| record.size);
        match outcome {
            Ok(()) => {
                let resized = VolumeResized { size: Decimal(asked), epoch: self.machine.epoch() };
                let _ = answer.send(Ok(json!(resized)));
            }
            Err(why) => {
                let code = match why {
                    size::NO_SIZE if !asked.is_multiple_of(BLOCK) => Code::BAD_VALUE,
                    size::SHRINKS_DETACHED => Code::OPEN_ELSEWHERE,
                    size::WOULD_LOSE => Code::WOULD_LOSE,
                    size::CLOSING | size::REVERTING => Code::CHANGING,
                    head::DELETED => Code::HEAD_DELETED,
                    size::NO_ROOM => Code::NO_SPACE,
                    _ => Code::VOLUME_SIZE,
                };
                let message = format!("volume {volume} has {has} bytes and does not get {asked}: {why}");
                let failure = Failure::new(code, message).with("volume", volume.to_string());
                refuse(answer, failure.with("size", has.to_string()));
            }
        }
    }

    /// Something has become of a snapshot.
    pub fn handle_snapshot_event(&mut self, event: Event) {
        let volume = self.machine.volume();
        match event {
            Event::SnapshotTaken { id, generation, members, held_ms } => {
                tracing::info!(%volume, snapshot = %id, %generation, ?members, held_ms, "snapshot");
                self.snapshots.handle_taken(id, held_ms);
            }
            Event::SnapshotFailed { id, why } => {
                tracing::warn!(%volume, snapshot = %id, ?why, "no snapshot");
                let failure = failure_of(self.machine.record(), volume, &why);
                self.snapshots.handle_failed(id, &failure);
            }
            Event::SnapshotDeleting { id } => {
                tracing::info!(%volume, snapshot = %id, "snapshot is being deleted");
                self.snapshots.handle_deleting(id);
            }
            Event::SnapshotGone { id } => {
                tracing::info!(%volume, snapshot = %id, "snapshot gone");
                self.snapshots.handle_gone(volume, id);
            }
            Event::SnapshotDestroyed { id } => {
                tracing::info!(%volume, snapshot = %id, "the snapshot's data goes, or is gone");
                self.snapshots.handle_destroyed(id);
            }
            Event::SnapshotChanged { id } => self.snapshots.handle_changed(id),
            Event::SnapshotCopyAdded { id, rid, outcome } => {
                tracing::info!(%volume, snapshot = %id, %rid, ?outcome, "a copy that got a snapshot later");
                self.snapshots.handle_copy_added(volume, id, rid, outcome);
            }
            _ => {}
        }
    }

    /// A policy was changed, or can't be: the machine answers them in order.
    pub fn answer_policy(&mut self, outcome: Result<(), &'static str>) {
        let Some(answer) = self.policies.pop_front() else { return };
        match outcome {
            Ok(()) => {
                let _ = answer.send(Ok(json!({})));
            }
            Err(why) => {
                let code = if why == policy::TOO_FEW_IN_SYNC { Code::LAST_COPY } else { Code::BAD_VALUE };
                let volume = self.machine.volume();
                let failure = Failure::new(code, format!("volume {volume}: {why}"));
                refuse(answer, failure.with("volume", volume.to_string()));
            }
        }
    }

    /// What the deleted head has goes, or can't: the machine answers them in order.
    pub fn answer_release(&mut self, outcome: Result<(), &'static str>) {
        let Some(answer) = self.releases.pop_front() else { return };
        match outcome {
            Ok(()) => {
                let _ = answer.send(Ok(json!({})));
            }
            Err(why) => {
                let volume = self.machine.volume();
                let code = if why == head::CLOSING { Code::CHANGING } else { Code::BAD_VALUE };
                let failure = Failure::new(code, format!("volume {volume} keeps its data: {why}"));
                refuse(answer, failure.with("volume", volume.to_string()));
            }
        }
    }

    /// The answer to whoever opened it.
    #[must_use]
    pub fn opened(&self) -> SessionOpened {
        SessionOpened {
            session: self.machine.id(),
            first: self.first(),
            epoch: self.machine.epoch(),
            path: self.path.as_ref().map(|p| p.display().to_string()),
        }
    }

    /// Answers whoever waits for the session, now that it has ended.
    pub fn answer_ended(&mut self, reason: &EndReason) {
        let volume = self.machine.volume();
        if let Some((answer, _)) = self.opening.take() {
            refuse(answer, end_failure(volume, reason));
        }
        let policies = std::mem::take(&mut self.policies).into_iter();
        let others = policies.chain(std::mem::take(&mut self.releases));
        for answer in std::mem::take(&mut self.changes).into_values().flatten().chain(others) {
            refuse(answer, end_failure(volume, reason));
        }
        for answer in std::mem::take(&mut self.resizes) {
            refuse(answer, end_failure(volume, reason));
        }
        self.snapshots.handle_ended(&end_failure(volume, reason));
        self.reverts.handle_ended(&end_failure(volume, reason));
        let lost_writes = match reason {
            EndReason::Abandoned { lost_writes } => *lost_writes,
            _ => 0,
        };
        let orderly = matches!(reason, EndReason::Closed | EndReason::Abandoned { .. });
        for answer in std::mem::take(&mut self.closing) {
            if orderly {
                let _ = answer.send(Ok(json!({ "lost_writes": lost_writes })));
            } else {
                refuse(answer, end_failure(volume, reason));
            }
        }
    }

    /// As seen from outside; the export has so many clients, and has had so many, of whose requests so many wait for the
    /// limits.
    #[must_use]
    pub fn status(&self, now: Instant, (clients, clients_seen): (u32, u32), held: u32) -> SessionStatus {
        let view: SessionView = self.machine.view();
        let phase = match view.phase {
            "serving" => SessionPhase::Serving,
            "paused" => SessionPhase::Paused,
            "closing" => SessionPhase::Closing,
            "ended" => SessionPhase::Ended,
            _ => SessionPhase::Opening,
        };
        let members = view.members.iter().map(|m| MemberStatus {
            rid: m.rid,
            node: m.node,
            state: state_word(m.state).to_owned(),
            line: m.line.clone(),
            acked: Decimal(m.acked),
            sent: Decimal(m.sent),
        });
        let resync = view.resync.map(|r| ResyncStatus {
            rid: r.rid,
            copied_bytes: Decimal(r.total.saturating_sub(r.remaining)),
            total_bytes: Decimal(r.total),
            sent_bytes: Decimal(r.copied),
            age_ms: Decimal(
                self.resync_since.filter(|(rid, _)| *rid == r.rid).map_or(0, |(_, at)| now.ms_since(at)),
            ),
        });
        let ended = self.ended.as_ref().map(|reason| end_failure(self.machine.volume(), reason).message);
        SessionStatus {
            volume: self.machine.volume(),
            session: self.machine.id(),
            caretaker: self.caretaker,
            phase,
            epoch: view.epoch,
            rev: view.rev,
            paused_reason: ended.or(view.paused),
            path: self.path.as_ref().map(|p| p.display().to_string()),
            clients,
            clients_seen,
            members: members.collect(),
            resync,
            reverting: view.revert.map(reverts::status),
            limits: self.limits.map(VolumeLimits::from),
            held,
            scrub: view.scrub.map(scrub_status),
            figures: SessionFigures {
                reads: Decimal(view.figures.reads),
                writes: Decimal(view.figures.writes),
                trims: Decimal(self.waits.trims()),
                read_bytes: Decimal(self.read_bytes),
                written_bytes: Decimal(self.written_bytes),
                stall_ms_max: Decimal(view.figures.stall_ms_max),
                resynced_bytes: Decimal(view.figures.resynced_bytes),
                changed_bytes: Decimal(view.figures.changed_bytes),
                hashed_bytes: Decimal(view.figures.hashed_bytes),
                reconciled_bytes: Decimal(view.figures.reconciled_bytes),
                fenced_writes: Decimal(view.figures.fenced),
                waits: self.waits.told(now),
                scrubbed_bytes: Decimal(view.figures.scrubbed_bytes),
                rotten_blocks: Decimal(view.figures.rotten_blocks),
                repaired_blocks: Decimal(view.figures.repaired_blocks),
                divergent_blocks: Decimal(view.figures.divergent_blocks),
                lost_blocks: Decimal(view.figures.lost_blocks),
            },
        }
    }
}

fn scrub_status(scrub: ScrubView) -> ScrubStatus {
    let state = match (scrub.ended_ms, scrub.complete) {
        (None, _) => ScrubState::Running,
        (Some(_), true) => ScrubState::Done,
        (Some(_), false) => ScrubState::Stopped,
    };
    let members = scrub.members.iter().map(|(rid, rotten, repaired)| ScrubbedMember {
        rid: *rid,
        rotten: Decimal(*rotten),
        repaired: Decimal(*repaired),
    });
    ScrubStatus {
        state,
        rate: scrub.rate.map(Decimal),
        started: Decimal(scrub.began_ms),
        ended: scrub.ended_ms.map(Decimal),
        done_bytes: Decimal(scrub.done),
        total_bytes: Decimal(scrub.total),
        compared_bytes: Decimal(scrub.compared),
        rotten: Decimal(scrub.rotten),
        repaired: Decimal(scrub.repaired),
        divergent: Decimal(scrub.divergent),
        lost: Decimal(scrub.lost),
        members: members.collect(),
    }
}

/// Is this owner of the ownership that this session began, or is it that session?
fn is_of(owner: &Owner, session: SessionId) -> bool {
    owner.session == session || owner.first() == session
}

/// The ownership that somebody holds a guest's requests for is over.
#[must_use]
pub fn taken(volume: VolumeId, session: SessionId, owner: Option<Owner>) -> Failure {
    let by =
        owner.map_or_else(|| "nobody".to_owned(), |o| format!("session {} on host {}", o.session, o.node));
    let message = format!("volume {volume} is not session {session}'s any more: its owner is {by} now");
    let failure = Failure::new(Code::TAKEN, message).with("volume", volume.to_string());
    failure.with("session", session.to_string())
}

/// The record's word for a state.
fn state_word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::InSync => "INSYNC",
        ReplicaState::Stale => "STALE",
        ReplicaState::Joining => "JOINING",
        ReplicaState::Removing => "REMOVING",
        ReplicaState::Quarantined => "QUARANTINED",
    }
}

/// A session's end as an error of whoever wanted it to go on.
#[must_use]
pub fn end_failure(volume: VolumeId, reason: &EndReason) -> Failure {
    let failure = match reason {
        EndReason::Closed | EndReason::Abandoned { .. } => {
            Failure::new(Code::SESSION_ENDED, format!("the session of volume {volume} was closed"))
        }
        EndReason::Fenced { owner } => {
            let by = owner.map_or_else(|| "nobody".to_owned(), |o| format!("host {}", o.node));
            Failure::new(
                Code::SESSION_ENDED,
                format!("volume {volume} was taken over: its owner is {by} now"),
            )
        }
        EndReason::Busy { owner } => {
            Failure::new(Code::OPEN_ELSEWHERE, format!("volume {volume} is open on host {}", owner.node))
                .with("host", owner.node.to_string())
                .with("session", owner.session.to_string())
        }
        EndReason::Missing => {
            Failure::new(Code::DELETED, format!("volume {volume} does not exist, or was deleted"))
        }
        EndReason::HeadDeleted => head_deleted(volume),
        EndReason::Unusable(error) => Failure::new(code_of(error), format!("volume {volume}: {error}")),
        EndReason::MetadataRollback => Failure::new(
            Code::STORE_ROLLED_BACK,
            format!("the store shows less of volume {volume} than its replicas or this host have seen"),
        ),
        EndReason::Claimed(claim) => {
            let Claim { watermark, host, relayed } = claim;
            let who = if *relayed {
                format!("through host {host} it is said")
            } else {
                format!("host {host} says")
            };
            let message = format!(
                "{who} that the store was at incarnation {} revision {}; this host's own read shows less",
                watermark.incarnation, watermark.revision
            );
            let failure = Failure::new(Code::STORE_DOUBTED, message);
            // Who only passes on what it was told is not named as the one who says it.
            failure.with(if *relayed { "through" } else { "host" }, host.to_string())
        }
        EndReason::CachesLost => Failure::new(
            Code::DISK_FAILED,
            format!(
                "every copy of volume {volume} lost its cache while the session lived: acknowledged writes are gone"
            ),
        ),
        EndReason::Unsupported(what) => {
            Failure::new(Code::BAD_RECORD, format!("volume {volume}: {what} is not served by this software"))
        }
    };
    failure.with("volume", volume.to_string())
}

/// Of a volume that lives on in its snapshots.
#[must_use]
pub fn head_deleted(volume: VolumeId) -> Failure {
    let message = format!("volume {volume} lives on in its snapshots alone: its head is deleted");
    Failure::new(Code::HEAD_DELETED, message).with("volume", volume.to_string())
}

/// A read's answer in the words of the session's machine.
#[must_use]
pub fn read_reply(result: Result<Option<Entry>, ReadError>) -> MachineReply {
    match result {
        Ok(Some(entry)) => match record_of(&entry) {
            Ok(record) => MachineReply::Record { record, revision: entry.revision },
            Err(error) => MachineReply::Unusable(error),
        },
        Ok(None) => MachineReply::Missing,
        Err(ReadError::Away(_) | ReadError::Watermark(_)) => MachineReply::Unavailable,
        Err(ReadError::RolledBack(_)) => MachineReply::RolledBack,
    }
}

/// A swap's outcome in the words of the session's machine.
#[must_use]
pub fn swap_reply(outcome: SwapOutcome) -> MachineReply {
    match outcome {
        SwapOutcome::Done { revision } => MachineReply::Swapped { revision },
        SwapOutcome::Failed { current: Some(entry) } => match record_of(&entry) {
            Ok(record) => MachineReply::Conflict { record, revision: entry.revision },
            Err(error) => MachineReply::Unusable(error),
        },
        SwapOutcome::Failed { current: None } => MachineReply::Missing,
        SwapOutcome::Unknown(_) => MachineReply::Unknown,
        SwapOutcome::Away(_) => MachineReply::Unavailable,
        SwapOutcome::RolledBack(_) => MachineReply::RolledBack,
    }
}
