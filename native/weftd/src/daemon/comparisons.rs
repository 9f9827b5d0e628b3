//! Snapshots that are compared for whoever asks what has changed between them (R29), wherever their volume is open.
//!
//! ```text
//! asked ─▶ record and both snapshots are read ─▶ a reader of its own, range by range ─▶ a bitmap of as much as was done
//! ```
//!
//! Must always hold:
//! * whoever asked is answered once;
//! * nothing is left of a comparison once it is answered, neither here nor at the copies that were asked.

use super::readers::{members_of, read_key, read_record};
use super::*;
use crate::clock::random_uuid;
use crate::snapshots::{SnapKey, no_snapshot, snap_key};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use weft_control::types::ChangedBlocks;
use weft_proto::guest::{GuestOp, GuestReply, RequestId};
use weft_proto::ids::Ordinal;
use weft_proto::message::CHANGED_GRAIN;
use weft_proto::snap_reader::ReaderConfig;

/// The most that one answer tells of: a bitmap of 32 KiB.
const ANSWER_MAX: u64 = 16 << 30;
/// What is compared at a time.
const RANGE: u64 = 64 << 20;
/// So long it goes on before what has been compared is answered.
const ENOUGH_MS: u64 = 5000;
/// So long one range may take.
const RANGE_MS: u64 = 20_000;
/// Comparisons at once: each has as many requests under way as a snapshot that is read.
const COMPARISONS_MAX: usize = 16;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Comparisons {
    all: BTreeMap<u64, Comparison>,
    next: u64,
    touched: BTreeSet<u64>,
}

/// One question.
#[derive(Debug)]
pub(super) struct Comparison {
    ask: SnapshotChanged,
    pub(super) machine: SnapReader<IoBuf>,
    /// The members as their links were last told.
    pub(super) links: BTreeMap<Rid, (HostId, PoolId, bool)>,
    /// Where it is, and where it is to end.
    at: u64,
    end: u64,
    bitmap: Vec<u8>,
    exact: bool,
    /// What has been compared is answered, once there is any.
    enough: Instant,
    /// The range that is being compared is given up.
    until: Instant,
    answer: Answer,
}

impl Comparisons {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Comparison)> {
        self.all.iter_mut().map(|(number, comparison)| (*number, comparison))
    }

    pub(super) fn take_touched(&mut self) -> Option<u64> {
        self.touched.pop_first()
    }

    pub(super) fn poll_timeout(&self) -> impl Iterator<Item = Instant> + '_ {
        self.all.values().flat_map(|of| of.machine.poll_timeout().into_iter().chain([of.until]))
    }

    /// A copy answers.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        number: u64,
        rid: Rid,
        ordinal: Ordinal,
        response: Response<IoBuf>,
    ) {
        if let Some(comparison) = self.all.get_mut(&number) {
            comparison.machine.handle_response(now, rid, ordinal, response);
            self.touched.insert(number);
        }
    }

    pub(super) fn tell_link(&mut self, now: Instant, number: u64, rid: Rid, is_up: bool) {
        if let Some(comparison) = self.all.get_mut(&number) {
            if is_up {
                comparison.machine.handle_link_up(now, rid);
            } else {
                comparison.machine.handle_link_down(now, rid);
            }
            self.touched.insert(number);
        }
    }

    pub(super) fn handle_host_down(&mut self, now: Instant, host: HostId) {
        for (number, comparison) in &mut self.all {
            for (rid, (node, _, is_up)) in &mut comparison.links {
                if *node == host && *is_up {
                    *is_up = false;
                    comparison.machine.handle_link_down(now, *rid);
                    self.touched.insert(*number);
                }
            }
        }
    }
}

impl Comparison {
    /// The next range.
    fn go_on(&mut self, now: Instant) {
        let (since, offset) = (self.ask.since, self.at);
        let len = RANGE.min(self.end - offset);
        self.until = now.after_ms(RANGE_MS);
        self.machine.submit(now, RequestId(offset), &GuestOp::Changed { since, offset, len });
    }

    /// Takes in what was found.
    fn note(&mut self, runs: &[(u64, bool)], exact: bool) {
        self.exact &= exact;
        for (len, differs) in runs {
            let stop = self.at + len;
            if *differs {
                for grain in self.at / CHANGED_GRAIN..stop.div_ceil(CHANGED_GRAIN) {
                    let bit =
                        usize::try_from(grain - self.ask.offset.0 / CHANGED_GRAIN).unwrap_or(usize::MAX);
                    if let Some(byte) = self.bitmap.get_mut(bit / 8) {
                        *byte |= 0x80 >> (bit % 8);
                    }
                }
            }
            self.at = stop;
        }
    }

    fn found(&self) -> ChangedBlocks {
        let len = self.at - self.ask.offset.0;
        let bytes = usize::try_from(len.div_ceil(8 * CHANGED_GRAIN)).unwrap_or(usize::MAX);
        ChangedBlocks {
            grain: u32::try_from(CHANGED_GRAIN).unwrap_or(u32::MAX),
            exact: self.exact,
            offset: self.ask.offset,
            len: Decimal(len),
            bitmap: STANDARD.encode(&self.bitmap[..bytes.min(self.bitmap.len())]),
        }
    }
}

impl Daemon {
    pub(super) fn compare_snapshots(&mut self, ask: SnapshotChanged, answer: Answer) {
        if !ask.offset.0.is_multiple_of(CHANGED_GRAIN) || ask.len.0 == 0 {
            let message = format!(
                "what has changed is told from a multiple of {CHANGED_GRAIN} bytes on, and of at least one"
            );
            return refuse(answer, Failure::new(Code::BAD_VALUE, message));
        }
        let token = self.call(Caller::Compare(ask, answer));
        let keys =
            vec![record_key(ask.volume), snap_key(ask.volume, ask.id), snap_key(ask.volume, ask.since)];
        self.store.send(StoreRequest::Read { token, keys });
    }

    pub(super) fn handle_compare_read(
        &mut self,
        now: Instant,
        ask: &SnapshotChanged,
        answer: Answer,
        result: Result<Snapshot, ReadError>,
    ) {
        let begun = match result {
            Ok(snapshot) => self.begin_comparing(ask, &snapshot.entries),
            Err(ReadError::RolledBack(why)) => Err(Failure::new(Code::STORE_ROLLED_BACK, why)),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => Err(Failure::new(Code::STORE_AWAY, why)),
        };
        let (config, members) = match begun {
            Ok(begun) => begun,
            Err(failure) => return refuse(answer, failure),
        };
        let (start, size) = (ask.offset.0, config.size);
        let end = size.min(start.saturating_add(ask.len.0.min(ANSWER_MAX)));
        let bytes = (end - start).div_ceil(8 * CHANGED_GRAIN);
        let mut comparison = Comparison {
            ask: *ask,
            machine: SnapReader::new(config, &members, now),
            links: BTreeMap::new(),
            at: start,
            end,
            bitmap: vec![0; usize::try_from(bytes).unwrap_or(0)],
            exact: true,
            enough: now.after_ms(ENOUGH_MS),
            until: now,
            answer,
        };
        comparison.go_on(now);
        let number = self.comparisons.next;
        self.comparisons.next += 1;
        self.comparisons.all.insert(number, comparison);
        self.comparisons.touched.insert(number);
        self.links_changed = true;
    }

    fn begin_comparing(
        &self,
        ask: &SnapshotChanged,
        entries: &[Option<store::Entry>],
    ) -> Result<(ReaderConfig, Vec<weft_proto::snap_reader::ReaderMember>), Failure> {
        let Some(host) = self.identity.as_ref().map(|identity| identity.host) else {
            return Err(not_configured());
        };
        if self.stopping.is_some() {
            return Err(Failure::new(Code::STOPPING, "weftd is stopping"));
        }
        if self.comparisons.all.len() >= COMPARISONS_MAX {
            let message = format!("{COMPARISONS_MAX} pairs of snapshots are being compared here, the limit");
            return Err(Failure::new(Code::TOO_MANY_SESSIONS, message));
        }
        let volume = ask.volume;
        let [record, key, since] = entries else { return Err(no_snapshot(volume, ask.id)) };
        let record = record.as_ref().ok_or_else(|| no_snapshot(volume, ask.id))?;
        let record = read_record(volume, record)?;
        let there = |id: SnapId, entry: &Option<store::Entry>| {
            let key = read_key(volume, id, entry.as_ref().ok_or_else(|| no_snapshot(volume, id))?)?;
            if key.is_there() { Ok(key) } else { Err(no_snapshot(volume, id)) }
        };
        let key: SnapKey = there(ask.id, key)?;
        let since = there(ask.since, since)?;
        if ask.offset.0 >= key.size.0 {
            let message = format!("snapshot {} ends at byte {}", ask.id, key.size.0);
            return Err(Failure::new(Code::BAD_VALUE, message));
        }
        let (members, others) = members_of(&record, host, &key, &[since]);
        let config = ReaderConfig {
            volume,
            snap: ask.id,
            size: key.size.0,
            host,
            session: SessionId(random_uuid()),
            watermark: self.watermark.unwrap_or_default(),
            others,
            layer: None,
        };
        Ok((config, members))
    }

    pub(super) fn drain_comparison(&mut self, now: Instant, number: u64) {
        loop {
            let Some(comparison) = self.comparisons.all.get_mut(&number) else { return };
            let volume = comparison.ask.volume;
            if let Some(transmit) = comparison.machine.poll_transmit() {
                self.route(now, Seat::Comparison(number), volume, transmit);
                continue;
            }
            let Some((_, reply)) = comparison.machine.poll_reply() else { return };
            match reply {
                GuestReply::Changed { runs, exact } => {
                    comparison.note(&runs, exact);
                    if comparison.at >= comparison.end || now >= comparison.enough {
                        return self.end_comparison(number, None);
                    }
                    comparison.go_on(now);
                }
                _ => {
                    let failure = unknown(&comparison.ask, "no copy of them can give it");
                    return self.end_comparison(number, Some(failure));
                }
            }
        }
    }

    pub(super) fn handle_comparison_timeouts(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (number, comparison) in &mut self.comparisons.all {
            if comparison.machine.poll_timeout().is_some_and(|due| now >= due) {
                comparison.machine.handle_timeout(now);
                self.comparisons.touched.insert(*number);
            }
            if now >= comparison.until {
                late.push((*number, unknown(&comparison.ask, "no copy that has them answered in time")));
            }
        }
        for (number, failure) in late {
            self.end_comparison(number, Some(failure));
        }
    }

    pub(super) fn end_comparisons(&mut self) {
        let numbers: Vec<u64> = self.comparisons.all.keys().copied().collect();
        for number in numbers {
            self.end_comparison(number, Some(Failure::new(Code::STOPPING, "weftd is stopping")));
        }
    }

    /// Answers: what has been compared, or why nothing has.
    fn end_comparison(&mut self, number: u64, failure: Option<Failure>) {
        let Some(comparison) = self.comparisons.all.remove(&number) else { return };
        for (rid, (node, ..)) in &comparison.links {
            self.detach(Seat::Comparison(number), *rid, *node);
        }
        self.links_changed = true;
        let found = comparison.found();
        match failure {
            Some(failure) if found.len.0 == 0 => refuse(comparison.answer, failure),
            _ => tell(comparison.answer, &found),
        }
    }
}

fn unknown(ask: &SnapshotChanged, why: &str) -> Failure {
    let message = format!(
        "what has changed between snapshots {} and {} of volume {} can't be told now: {why}",
        ask.since, ask.id, ask.volume
    );
    let failure = Failure::new(Code::CHANGED_UNKNOWN, message).with("volume", ask.volume.to_string());
    failure.with("snapshot", ask.id.to_string()).with("since", ask.since.to_string())
}
