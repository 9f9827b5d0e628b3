//! Promises: an epoch and a session that a replica obeys, from the asking to the answer.
//!
//! Must always hold: what is asked changes nothing before the store was read for it; what is promised is answered when it is
//! in the log, when nothing of a lower epoch is under way, and when the regions are as large as the record's (R1, I5, R26).

use alloc::vec::Vec;

use super::{Action, AttachmentId, Party, Replica, Running, Stage, Token, Verified};
use crate::durable::Durable;
use crate::ids::{Epoch, HostId, Instant};
use crate::log::LogRecord;
use crate::message::{Answer, Refusal, Watermark};
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::{Ack, Record};

/// While the store is away, a promise goes at most this many epochs above the last one that a read has shown (R1).
pub const EPOCH_JUMP_UNVERIFIED: u64 = 16;
/// How far the promised epoch rises at once, and in each hour: more than changes and repairs can have come to while this
/// replica was away (256 repairs; a change a second for eight years). What rises further is refused until so many hours have
/// passed. Nobody can so bring a volume to the end of its range by a few writes to the store; and a replica that did not
/// follow where another one was led can follow it in the same time.
pub const RISE_AT_ONCE: u64 = 1 << 28;
/// What one epoch costs of that hour, in nanoseconds.
const RISE_NS: u64 = 3_600_000_000_000 / RISE_AT_ONCE;
/// An hour, but for some milliseconds.
const HOUR_NS: u64 = RISE_NS * RISE_AT_ONCE;
/// Promises of one host that wait for a read of the store; more are refused as busy.
const VERIFYING_MAX: usize = 4;

/// How far the promise may still rise: see [`RISE_AT_ONCE`].
#[derive(Debug, Default)]
pub(super) struct Rises {
    /// Of an hour's rise, in nanoseconds.
    used: u64,
    at: Instant,
    /// More was refused then: what has passed since counts on above an hour.
    waits: bool,
}

impl Rises {
    fn take(&mut self, now: Instant, epochs: u64) -> bool {
        let passed = now.0.saturating_sub(self.at.0);
        let left = match self.waits {
            true => (HOUR_NS - self.used).saturating_add(passed),
            false => HOUR_NS - self.used.saturating_sub(passed),
        };
        match left.checked_sub(epochs.saturating_mul(RISE_NS)) {
            Some(left) => {
                *self = Rises { used: HOUR_NS.saturating_sub(left), at: now, waits: false };
                true
            }
            None if self.waits => false,
            None => {
                *self = Rises { used: HOUR_NS - left, at: now, waits: true };
                false
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct WaitingPromise {
    pub(super) attachment: AttachmentId,
    pub(super) tag: u32,
    pub(super) epoch: Epoch,
    pub(super) party: Party,
    pub(super) record: Vec<u8>,
    pub(super) cached: bool,
    /// The record's size, and its regions'.
    pub(super) size: u64,
    pub(super) region_shift: u8,
    pub(super) watermark: Watermark,
    pub(super) started: Instant,
    pub(super) stage: PromiseStage,
}

#[derive(Debug, PartialEq)]
pub(super) enum PromiseStage {
    Logging(Token),
    Draining,
    /// The regions become as large as the record's (R26).
    Folding(Token),
}

impl<P: Payload> Replica<P> {
    /// The store answered the read that a promise asked for.
    pub fn handle_verified(&mut self, now: Instant, token: Token, shown: Verified<'_>) {
        let Some(at) = self.verifying.iter().position(|(of, _)| *of == token) else { return };
        let (_, w) = self.verifying.remove(at);
        if let Err(refusal) = self.verify(&w, shown) {
            self.reply(w.attachment, w.tag, w.started, now, Err(refusal));
            return;
        }
        if let Verified::Record(record) = shown {
            let rise = w.epoch.0.saturating_sub(self.promised.0);
            if !self.rises.take(now, rise) && !self.config.broken.is(Mutation::RiseUnbounded) {
                // Where this copy counts, its volume's record is to be repaired; a joiner waits until it may follow.
                let counts = record.in_sync().any(|entry| entry.rid == self.rid());
                let refusal = if counts { Refusal::MetadataRollback } else { Refusal::Busy };
                self.reply(w.attachment, w.tag, w.started, now, Err(refusal));
                return;
            }
            self.verified = self.verified.max(Some(w.epoch));
        } else {
            self.unverified_promises += 1;
        }
        self.accept(now, w);
    }

    /// May this promise be given, by what the store shows and by what has come meanwhile?
    fn verify(&self, w: &WaitingPromise, shown: Verified<'_>) -> Result<(), Refusal> {
        let Party { host, session } = w.party;
        match shown {
            Verified::Gone | Verified::RolledBack => return Err(Refusal::MetadataRollback),
            Verified::Away => {
                let near = |from: Epoch| w.epoch.0 <= from.0.saturating_add(EPOCH_JUMP_UNVERIFIED);
                // And to nobody who has seen less of the store than this host: that one may have gone back (R11).
                let known =
                    w.watermark >= self.config.watermark || self.config.broken.is(Mutation::PromiseBehind);
                if !self.verified.is_some_and(near) || !known {
                    return Err(Refusal::Busy);
                }
            }
            Verified::Record(record) if record.epoch < w.epoch => return Err(Refusal::MetadataRollback),
            Verified::Record(_) if self.config.broken.is(Mutation::VerifyEpochOnly) => {}
            Verified::Record(record) => {
                // An owner's next swap may be in the store before its promise to the last one is answered here.
                let owns = record.owner.is_some_and(|o| (o.node, o.session) == (host, session));
                if !owns && record.epoch > w.epoch {
                    return Err(Refusal::StaleEpoch);
                }
                if !owns {
                    return Err(Refusal::MetadataRollback);
                }
            }
        }
        if self.quarantined {
            return Err(Refusal::Quarantined);
        }
        if self.failed {
            return Err(Refusal::IoError);
        }
        self.may_promise(w.epoch, w.party, w.watermark)
    }

    pub(super) fn promise(
        &mut self,
        now: Instant,
        id: AttachmentId,
        tag: u32,
        epoch: Epoch,
        record: Vec<u8>,
        watermark: Watermark,
    ) -> Result<(), Refusal> {
        let Some(attachment) = self.attachments.get(&id) else { return Err(Refusal::NotAttached) };
        let party = attachment.party;
        let broken = self.config.broken;
        self.may_promise(epoch, party, watermark)?;
        let parsed = Record::parse(&record).map_err(|_| Refusal::OutOfBounds)?;
        let owner_matches = parsed.owner.is_some_and(|o| o.session == party.session && o.node == party.host)
            || broken.is(Mutation::AnyPromiser);
        if parsed.vol != self.volume()
            || parsed.epoch != epoch
            || !owner_matches
            || parsed.replica(self.rid()).is_none()
            || parsed.region_shift < self.durable.region_shift
        {
            return Err(Refusal::OutOfBounds);
        }
        let (cached, size, region_shift) =
            (parsed.policy.ack == Ack::Cached, parsed.size, parsed.region_shift);
        let (attachment, stage) = (id, PromiseStage::Draining);
        let w = WaitingPromise {
            attachment,
            tag,
            epoch,
            party,
            record,
            cached,
            size,
            region_shift,
            watermark,
            started: now,
            stage,
        };
        let far = self.promised.0.saturating_add(EPOCH_JUMP_UNVERIFIED) < epoch.0;
        let unread =
            if far { broken.is(Mutation::UnverifiedJump) } else { broken.is(Mutation::VerifyFarOnly) };
        if epoch <= self.promised || unread {
            self.accept(now, w);
            return Ok(());
        }
        // One of the same session, over an attachment that was lost: asked again.
        while let Some(at) = self.verifying.iter().position(|(_, old)| old.party == party) {
            let (_, old) = self.verifying.remove(at);
            self.reply(old.attachment, old.tag, old.started, now, Err(Refusal::Busy));
        }
        if self.verifying.iter().filter(|(_, other)| other.party.host == party.host).count() >= VERIFYING_MAX
        {
            return Err(Refusal::Busy);
        }
        let token = self.token();
        self.verifying.push((token, w));
        self.actions.push_back(Action::ReadStore { token });
        Ok(())
    }

    /// Is this promise none of a store that went back, none below what is promised, and none in another's name?
    fn may_promise(&self, epoch: Epoch, party: Party, watermark: Watermark) -> Result<(), Refusal> {
        let (known, broken) = (self.config.watermark, self.config.broken);
        if !broken.is(Mutation::NoWatermark)
            && (watermark.cluster != known.cluster || watermark.incarnation < known.incarnation)
        {
            return Err(Refusal::MetadataRollback);
        }
        if epoch < self.promised && !broken.is(Mutation::NoFence) {
            return Err(Refusal::StaleEpoch);
        }
        if epoch == self.promised
            && !self.is_promised_to(party)
            && !broken.is(Mutation::PromiseToEpochAlone)
            && !broken.is(Mutation::NoFence)
        {
            return Err(Refusal::MetadataRollback);
        }
        Ok(())
    }

    /// From here on it is promised.
    fn accept(&mut self, now: Instant, w: WaitingPromise) {
        if let Some(old) = self.waiting_promise.take() {
            // Superseded, or repeated after a lost connection.
            let again = old.epoch == w.epoch && old.party == w.party;
            let refusal = if again { Refusal::Busy } else { Refusal::StaleEpoch };
            self.reply(old.attachment, old.tag, old.started, now, Err(refusal));
        }
        let other = self.host.is_none_or(|host| w.party != Party { host, session: self.session });
        self.end_controls(now, other);
        self.config.cached = w.cached;
        if w.epoch > self.promised && !self.config.broken.is(Mutation::CutAfterPromise) {
            self.to_cut = None;
        }
        self.log_promise(w);
    }

    fn log_promise(&mut self, w: WaitingPromise) {
        let token = self.token();
        self.promised = self.promised.max(w.epoch);
        self.session = w.party.session;
        self.host = Some(w.party.host);
        self.promise_logged = false;
        let record =
            LogRecord::Promise { epoch: w.epoch, session: w.party.session, record: w.record.clone() };
        self.actions.push_back(Action::Log { token, record });
        self.waiting_promise = Some(WaitingPromise { stage: PromiseStage::Logging(token), ..w });
        if self.config.broken.is(Mutation::PromiseBeforeLog)
            && let Some(w) = &mut self.waiting_promise
        {
            (self.promise_logged, w.stage) = (true, PromiseStage::Draining);
            let now = w.started;
            self.settle(now);
        }
    }

    /// The log has the record of `token`; `before`: the epoch that was promised until then.
    pub(super) fn promise_record_logged(&mut self, token: Token, before: Epoch) {
        if let Some(w) = &mut self.waiting_promise
            && w.stage == PromiseStage::Logging(token)
        {
            w.stage = PromiseStage::Draining;
            self.promise_logged = true;
            // Asked again within its epoch, it says nothing new: the volume may be about to grow since.
            if w.epoch > before || self.config.broken.is(Mutation::CutOnAnyPromise) {
                self.to_cut = (self.durable.size > w.size).then_some(w.size);
            }
        }
        if let Some(w) = &mut self.waiting_promise
            && w.stage == PromiseStage::Folding(token)
        {
            w.stage = PromiseStage::Draining;
        }
    }

    /// The log has refused the record of `token`.
    pub(super) fn promise_not_logged(&mut self, now: Instant, token: Token, refusal: Refusal) {
        if let Some(w) = self.waiting_promise.take_if(|w| w.stage == PromiseStage::Folding(token)) {
            // Promised, and of no use to the session before it is asked again.
            self.reply(w.attachment, w.tag, w.started, now, Err(refusal));
        }
        if let Some(w) = self.waiting_promise.take_if(|w| w.stage == PromiseStage::Logging(token)) {
            // Not durable: the old promise stands again, and stands on disk.
            self.promised = self.durable.promised;
            self.session = self.durable.session;
            self.host = owner_host(&self.durable);
            self.promise_logged = true;
            self.reply(w.attachment, w.tag, w.started, now, Err(refusal));
        }
    }

    /// Answers a promise whose waits are over.
    pub(super) fn settle_promise(&mut self, now: Instant) {
        let draining = |w: &WaitingPromise| w.stage == PromiseStage::Draining;
        if let Some(w) = self.waiting_promise.take_if(|w| draining(w)) {
            let cuts = self.cutting.is_some() && !self.config.broken.is(Mutation::CutAfterPromise);
            // Looks at images are nobody's.
            let of = |r: &Running<P>| {
                (r.epoch < w.epoch || r.party != w.party) && !matches!(r.stage, Stage::Look(_))
            };
            let lower = self.running.values().any(of) || cuts;
            if lower
                && !self.config.broken.is(Mutation::NoFence)
                && !self.config.broken.is(Mutation::PromiseBeforeDrain)
            {
                self.waiting_promise = Some(w);
            } else if w.region_shift > self.durable.region_shift {
                // Nothing runs that counts regions as before.
                let (token, region_shift) = (self.token(), w.region_shift);
                self.actions.push_back(Action::Log { token, record: LogRecord::Fold { region_shift } });
                self.waiting_promise = Some(WaitingPromise { stage: PromiseStage::Folding(token), ..w });
            } else {
                let view = self.view(w.party);
                self.reply(w.attachment, w.tag, w.started, now, Ok(Answer::Promised(view)));
            }
        }
    }
}

/// Whom the record names under which the promise was given.
pub(super) fn owner_host(durable: &Durable) -> Option<HostId> {
    Record::parse(&durable.record).ok()?.owner.map(|owner| owner.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_rises_by_so_much_at_once_and_by_as_much_an_hour() {
        let hours = |n: u64| Instant(5).after_ms(n * 3_600_000);
        let mut rises = Rises::default();
        assert!(rises.take(hours(0), RISE_AT_ONCE));
        assert!(!rises.take(hours(0), 1) && !rises.take(hours(0), 1 << 40));
        assert!(rises.take(hours(1), RISE_AT_ONCE), "an hour later");
        // Years without a change earn nothing …
        assert!(rises.take(hours(90_000), 1));
        assert!(!rises.take(hours(90_001), RISE_AT_ONCE + 2));
        // … but who was refused gets there, in the time that it took another one, and not before.
        let mut far = Rises::default();
        assert!(!far.take(hours(10), 20 * RISE_AT_ONCE));
        assert!(!far.take(hours(28), 20 * RISE_AT_ONCE));
        assert!(far.take(hours(30), 20 * RISE_AT_ONCE) && !far.take(hours(30), RISE_AT_ONCE + 1));
        // A session that raises its volume a thousand times a second for a day is not held up.
        let mut busy = Rises::default();
        assert!((0..86_400_000).step_by(50).all(|ms| busy.take(Instant(9).after_ms(ms), 50)));
        // No number at all makes it go wrong.
        assert!(!Rises::default().take(Instant(u64::MAX), u64::MAX));
    }
}
