//! What is wanted of a volume (protocol.md 4.2): copies, min_isr and spread, changed while it is attached.
//!
//! Must always hold:
//! * a change raises the epoch (R25): no write completes under it before every in-sync member holds the record that says
//!   so, so that a repair of the store can't bring back a lower min_isr than the one under which writes completed;
//! * min_isr is not raised above the number of members in sync: that would hold the guests' writes.

use alloc::string::String;

use super::store::Intent;
use super::{Event, Session};
use crate::ids::Instant;
use crate::payload::Payload;
use crate::record::Policy;

/// What [`Session::set_policy`] changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyChange {
    /// Wanted copies, 1 to 8.
    pub copies: u8,
    /// Fewest in-sync members under which writes complete, 1 to `copies`.
    pub min_isr: u8,
    /// What copies must not share.
    pub spread: String,
}

impl PolicyChange {
    /// How writes are acknowledged, and what a guest sees while it waits, stay.
    pub(super) fn put_into(&self, policy: &mut Policy) {
        (policy.copies, policy.min_isr) = (self.copies, self.min_isr);
        policy.spread.clone_from(&self.spread);
    }
}

/// Why a change can't be, in words that `weftd` tells apart.
pub const TOO_FEW_IN_SYNC: &str = "fewer copies are in sync than writes would need";

impl<P: Payload> Session<P> {
    /// The swap of the policy that was asked for first.
    pub(super) fn propose_policy(&mut self, now: Instant, wanted: &PolicyChange) {
        match self.judge_policy(wanted) {
            Ok(true) => self.propose(now, Intent::Policy(wanted.clone())),
            Ok(false) => self.policy_done(Ok(())),
            Err(why) => self.policy_done(Err(why)),
        }
    }

    pub(super) fn policy_done(&mut self, outcome: Result<(), &'static str>) {
        self.change.pop_front();
        self.events.push_back(Event::PolicySet { outcome });
    }

    /// Is there anything to change?
    fn judge_policy(&self, wanted: &PolicyChange) -> Result<bool, &'static str> {
        let mut record = self.rec().clone();
        let policy = &record.policy;
        if (policy.copies, policy.min_isr, &policy.spread) == (wanted.copies, wanted.min_isr, &wanted.spread)
        {
            return Ok(false);
        }
        let raised = wanted.min_isr > policy.min_isr;
        wanted.put_into(&mut record.policy);
        if record.check().is_err() {
            return Err("no policy that a volume can have");
        }
        if raised && self.in_sync().len() < usize::from(wanted.min_isr) {
            return Err(TOO_FEW_IN_SYNC);
        }
        Ok(true)
    }
}
