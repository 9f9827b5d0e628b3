//! What a session shows of itself: for status, logs and scenario tests.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Figures, Phase, RevertView, ScrubView, Session};
use crate::ids::{Epoch, Generation, HostId, Rev, Rid};
use crate::payload::Payload;
use crate::record::ReplicaState;

/// A session at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionView {
    /// `opening`, `serving`, `paused`, `closing` or `ended`.
    pub phase: &'static str,
    /// Epoch of the record.
    pub epoch: Epoch,
    /// Its rev.
    pub rev: Rev,
    /// For what it waits, when it does.
    pub paused: Option<String>,
    /// Highest sealed generation.
    pub sealed: Generation,
    /// Unanswered guest requests.
    pub pending: usize,
    /// Regions that may differ between members.
    pub dirty_regions: usize,
    /// Every replica in the record.
    pub members: Vec<MemberView>,
    /// The resync under way.
    pub resync: Option<ResyncView>,
    /// The revert under way, while the record says so.
    pub revert: Option<RevertView>,
    /// The scrub under way, or the last one.
    pub scrub: Option<ScrubView>,
    /// Figures.
    pub figures: Figures,
}

/// One replica as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Its number.
    pub rid: Rid,
    /// Its host.
    pub node: HostId,
    /// Its state in the record.
    pub state: ReplicaState,
    /// One line for people.
    pub line: String,
    /// Writes acknowledged.
    pub acked: u64,
    /// Writes sent.
    pub sent: u64,
}

/// A resync at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncView {
    /// Of which replica.
    pub rid: Rid,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes still to be compared or copied.
    pub remaining: u64,
    /// Bytes that may have differed at the start.
    pub total: u64,
}

impl<P: Payload> Session<P> {
    /// The session at this moment.
    #[must_use]
    pub fn view(&self) -> SessionView {
        let members = self.record.iter().flat_map(|r| &r.replicas).map(|entry| {
            let state = match entry.state {
                ReplicaState::InSync => "in-sync",
                ReplicaState::Stale | ReplicaState::Joining if self.join_rid() == Some(entry.rid) => {
                    "joining"
                }
                ReplicaState::Stale | ReplicaState::Joining => "stale",
                ReplicaState::Removing => "removing",
                ReplicaState::Quarantined => "quarantined",
            };
            let peer = self.peers.get(&entry.rid);
            MemberView {
                rid: entry.rid,
                node: entry.node,
                state: entry.state,
                line: peer.map_or_else(|| state.to_string(), |p| p.line(state)),
                acked: peer.map_or(0, |p| p.acked),
                sent: peer.map_or(0, |p| p.sent),
            }
        });
        let phase = match self.phase {
            Phase::Ended => "ended",
            Phase::Closing(_) => "closing",
            Phase::Serving if self.paused.is_none() && !self.revert_holds() => "serving",
            Phase::Serving => "paused",
            _ if self.back.is_some() => "paused",
            _ => "opening",
        };
        let remaining = self.join_remaining();
        SessionView {
            phase,
            epoch: self.record.as_ref().map_or(Epoch(0), |r| r.epoch),
            rev: self.record.as_ref().map_or(Rev(0), |r| r.rev),
            paused: self.revert_reason().or_else(|| self.pause_reason().map(ToString::to_string)),
            sealed: self.sealed,
            pending: self.pending(),
            dirty_regions: self.dirty.len(),
            members: members.collect(),
            resync: self.join.as_ref().map(|j| ResyncView {
                rid: j.rid,
                copied: j.copied,
                remaining,
                total: j.total,
            }),
            revert: self.revert_view(),
            scrub: self.scrub_view(),
            figures: self.figures,
        }
    }
}
