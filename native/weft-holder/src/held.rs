//! The requests of one guest that are not answered: what may be sent next, and what is sent again.
//!
//! Must always hold:
//! * a request that overlaps an earlier one, unless both only read, is not given out before that one was answered: so of
//!   those that are under way no two depend on each other's order, and they may be repeated in any;
//! * what was answered is forgotten, and never given out again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use weft_proto::guest::{GuestOp, RequestId};
use weft_proto::payload::Payload;

/// A request, named by a number that orders requests as they came.
#[derive(Debug)]
struct Request<P> {
    id: RequestId,
    op: GuestOp<P>,
    touched: Touched,
    /// How often it was given out.
    sent: u32,
}

/// All of one guest's. What comes in is compared with what there is once; whatever waits for others is looked at again
/// when one of those is answered, so that a request that overlaps nothing costs the same however many there are.
#[derive(Debug)]
pub struct Held<P> {
    requests: BTreeMap<u64, Request<P>>,
    /// Those that may go: nothing earlier that they overlap is unanswered.
    ready: BTreeSet<u64>,
    /// Those that wait for an earlier one's answer.
    waiting: BTreeSet<u64>,
    next: u64,
    bytes: u64,
    replayed: u64,
}

impl<P: Payload> Default for Held<P> {
    fn default() -> Self {
        let (requests, ready, waiting) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Held { requests, ready, waiting, next: 1, bytes: 0, replayed: 0 }
    }
}

impl<P: Payload> Held<P> {
    /// A request of the guest.
    pub fn push(&mut self, id: RequestId, op: GuestOp<P>) {
        let cookie = self.next;
        self.next += 1;
        self.bytes += bytes_of(&op);
        let range = Touched::by(&op);
        let may_go = self.requests.values().all(|earlier| !earlier.touched.conflicts(&range));
        self.requests.insert(cookie, Request { id, op, touched: range, sent: 0 });
        if may_go { &mut self.ready } else { &mut self.waiting }.insert(cookie);
    }

    /// The next one to be sent, with the number that answers it; it is under way from now on.
    pub fn poll(&mut self) -> Option<(u64, &GuestOp<P>)> {
        let cookie = self.ready.pop_first()?;
        let request = self.requests.get_mut(&cookie)?;
        request.sent = request.sent.saturating_add(1);
        self.replayed += u64::from(request.sent > 1);
        Some((cookie, &request.op))
    }

    fn is_under_way(&self, cookie: u64) -> bool {
        !self.ready.contains(&cookie) && !self.waiting.contains(&cookie)
    }

    /// One that is under way.
    #[must_use]
    pub fn op(&self, cookie: u64) -> Option<&GuestOp<P>> {
        let request = self.requests.get(&cookie)?;
        self.is_under_way(cookie).then_some(&request.op)
    }

    /// It was answered; none if it is not under way.
    pub fn answer(&mut self, cookie: u64) -> Option<RequestId> {
        if !self.is_under_way(cookie) {
            return None;
        }
        let request = self.requests.remove(&cookie)?;
        self.bytes -= bytes_of(&request.op);
        let Held { requests, ready, waiting, .. } = self;
        if !waiting.is_empty() {
            waiting.retain(|later| {
                let Some(touched) = requests.get(later).map(|request| &request.touched) else { return false };
                let waits = !touched.conflicts(&request.touched)
                    || requests.range(..later).any(|(_, earlier)| earlier.touched.conflicts(touched));
                if !waits {
                    ready.insert(*later);
                }
                waits
            });
        }
        Some(request.id)
    }

    /// It was answered with trouble that passes: it is sent again.
    pub fn again(&mut self, cookie: u64) {
        if self.requests.contains_key(&cookie) && self.is_under_way(cookie) {
            self.ready.insert(cookie);
        }
    }

    /// Whoever had them is gone: all are sent again.
    pub fn lost(&mut self) {
        let waiting = &self.waiting;
        self.ready.extend(self.requests.keys().filter(|cookie| !waiting.contains(*cookie)));
    }

    /// The guest is gone, and nobody waits for answers.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.ready.clear();
        self.waiting.clear();
        self.bytes = 0;
    }

    /// How many there are.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.requests.len()
    }

    /// Those that weftd has.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.requests.len() - self.ready.len() - self.waiting.len()
    }

    /// Bytes of their data, and of what reads ask for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many were sent once more, ever.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.replayed
    }
}

fn bytes_of<P: Payload>(op: &GuestOp<P>) -> u64 {
    match op {
        GuestOp::Read { len, .. } => *len,
        GuestOp::Write { data, .. } => data.len() as u64,
        GuestOp::Flush | GuestOp::Zero { .. } | GuestOp::Kinds { .. } | GuestOp::Changed { .. } => 0,
    }
}

/// What a request touches, and whether it changes that.
#[derive(Debug)]
struct Touched {
    range: Range<u64>,
    changes: bool,
}

impl Touched {
    fn by<P: Payload>(op: &GuestOp<P>) -> Touched {
        let range = |offset: u64, len: u64| offset..offset.saturating_add(len);
        let (range, changes) = match op {
            GuestOp::Read { offset, len }
            | GuestOp::Kinds { offset, len }
            | GuestOp::Changed { offset, len, .. } => (range(*offset, *len), false),
            GuestOp::Write { offset, data, .. } => (range(*offset, data.len() as u64), true),
            GuestOp::Zero { offset, len, .. } => (range(*offset, *len), true),
            // It speaks of what was answered before it was asked for.
            GuestOp::Flush => (0..0, false),
        };
        Touched { range, changes }
    }

    fn conflicts(&self, other: &Touched) -> bool {
        (self.changes || other.changes)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::payload::HeapPayload;

    fn write(offset: u64, len: usize, with: u8) -> GuestOp<HeapPayload> {
        let mut data = HeapPayload::zeroed(len);
        data.bytes_mut().fill(with);
        GuestOp::Write { offset, data, fua: false }
    }

    fn sent(held: &mut Held<HeapPayload>) -> Vec<u64> {
        std::iter::from_fn(|| held.poll().map(|(cookie, _)| cookie)).collect()
    }

    #[test]
    fn one_that_overlaps_waits_for_the_earlier_ones_answer() {
        let mut held = Held::default();
        held.push(RequestId(1), write(0, 8, 1));
        held.push(RequestId(2), write(4, 8, 2));
        held.push(RequestId(3), GuestOp::Read { offset: 8, len: 2 });
        held.push(RequestId(4), write(100, 8, 4));
        assert_eq!(sent(&mut held), [1, 4], "the third waits for the second");
        held.lost();
        assert_eq!(sent(&mut held), [1, 4], "again");
        assert_eq!((held.answer(2), held.answer(1)), (None, Some(RequestId(1))));
        assert_eq!(sent(&mut held), [2]);
        assert_eq!(held.answer(2), Some(RequestId(2)));
        assert_eq!(sent(&mut held), [3]);
        assert_eq!((held.unanswered(), held.under_way(), held.bytes(), held.replayed()), (2, 2, 10, 2));
        held.clear();
        assert_eq!((held.unanswered(), held.bytes()), (0, 0));
    }

    #[test]
    fn reads_don_t_wait_for_reads_and_flushes_for_nothing() {
        let mut held = Held::default();
        held.push(RequestId(1), GuestOp::Read { offset: 0, len: 8 });
        held.push(RequestId(2), GuestOp::Read { offset: 0, len: 8 });
        held.push(RequestId(3), GuestOp::Flush);
        held.push(RequestId(4), write(7, 1, 1));
        assert_eq!(sent(&mut held), [1, 2, 3]);
    }

    /// A guest writes at random; its server does what it has in any order, answers in any order, and dies with some of it
    /// done and some not. In the end each byte is as the guest wrote it last, and no read has shown what was written over
    /// before it was asked for.
    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize),
        Read(u64, usize),
        /// The server does one of what it has.
        Do(usize),
        /// It answers one that is done.
        Answer(usize),
        Die,
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..24u64, 1..8usize);
        prop_oneof![
            4 => range.clone().prop_map(|(at, len)| Step::Write(at, len)),
            2 => range.prop_map(|(at, len)| Step::Read(at, len)),
            4 => any::<usize>().prop_map(Step::Do),
            3 => any::<usize>().prop_map(Step::Answer),
            1 => Just(Step::Die),
        ]
    }

    /// The server: what it has, and what it has done of that, with what a read has found.
    #[derive(Default)]
    struct Server {
        has: Vec<(u64, GuestOp<HeapPayload>)>,
        done: Vec<(u64, Vec<u8>)>,
        disk: Vec<u8>,
    }

    impl Server {
        fn step(&mut self, which: usize) {
            if self.has.is_empty() {
                return;
            }
            let (cookie, op) = self.has.swap_remove(which % self.has.len());
            let Touched { range, changes } = Touched::by(&op);
            let range =
                usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small");
            if let GuestOp::Write { data, .. } = &op {
                self.disk[range.clone()].copy_from_slice(data.bytes());
            }
            self.done.push((cookie, if changes { Vec::new() } else { self.disk[range].to_vec() }));
        }
    }

    proptest! {
        #[test]
        fn what_is_repeated_changes_nothing(steps in prop::collection::vec(step(), 1..120)) {
            let mut held = Held::default();
            let mut server = Server { disk: vec![0; 32], ..Server::default() };
            // What each byte is by the order in which the guest asked; and what reads were to find by it.
            let mut model = vec![0u8; 32];
            let mut reads: BTreeMap<RequestId, Vec<u8>> = BTreeMap::new();
            let mut with = 0u8;
            let mut ids = 0;
            let last = [Step::Die].into_iter().chain((0..400).flat_map(|_| {
                [Step::Do(0), Step::Answer(0)]
            }));
            for step in steps.into_iter().chain(last) {
                match step {
                    Step::Write(at, len) => {
                        with = with.wrapping_add(1);
                        ids += 1;
                        let start = usize::try_from(at).expect("small");
                        model[start..start + len].fill(with);
                        held.push(RequestId(ids), write(at, len, with));
                    }
                    Step::Read(at, len) => {
                        ids += 1;
                        let start = usize::try_from(at).expect("small");
                        reads.insert(RequestId(ids), model[start..start + len].to_vec());
                        held.push(RequestId(ids), GuestOp::Read { offset: at, len: len as u64 });
                    }
                    Step::Do(which) => server.step(which),
                    Step::Answer(which) => {
                        if !server.done.is_empty() {
                            let (cookie, found) = server.done.swap_remove(which % server.done.len());
                            let id = held.answer(cookie).expect("it is under way");
                            if let Some(expected) = reads.remove(&id) {
                                prop_assert_eq!(found, expected);
                            }
                        }
                    }
                    Step::Die => {
                        server.has.clear();
                        server.done.clear();
                        held.lost();
                    }
                }
                while let Some((cookie, op)) = held.poll() {
                    server.has.push((cookie, op.clone()));
                }
            }
            prop_assert_eq!(held.unanswered(), 0);
            prop_assert_eq!(server.disk, model);
        }
    }
}
