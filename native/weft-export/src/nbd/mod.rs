//! An NBD server's side of one connection, sans-I/O: bytes in, guest's requests out; answers in, bytes out.
//!
//! ```text
//!  socket ─ handle_bytes ─▶ Connection ─ poll_request ─▶ session
//!  socket ◀ poll_transmit ─            ◀─ complete ─────
//! ```
//!
//! Must always hold:
//! * a client can't make the server hold more than [`Limits`] plus one transfer of [`MAX_TRANSFER`] and what
//!   one call of [`Connection::handle_bytes`] brought;
//! * every request that [`Connection::poll_request`] gave is answered to the client at most once, and never
//!   with success after [`Connection::shutdown_fenced`];
//! * how the stream is cut into calls changes nothing.
//!
//! ```text
//!  client flags ─▶ options ─EXPORT_NAME, GO─▶ requests ─DISC─▶ answers what is open ─▶ ended
//!        └──────────┴──── nonsense ────────────┴─────────────────────────────────────▶ ended
//! ```

use std::collections::VecDeque;

use weft_proto::guest::{GuestError, GuestOp, GuestReply, RequestId};
use weft_proto::ids::SnapId;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::Payload;

mod negotiation;
mod outbox;
#[cfg(test)]
mod tests;
mod wire;

pub use outbox::{Gather, Part};

use negotiation::{Agreed, Context, Next};
use outbox::Outbox;
use wire::{
    Errno, OPTION_HEAD_LEN, REQUEST_HEAD_LEN, Reader, RequestHead, chunk, command, command_flag, state,
};

/// The longest read or write, in bytes; told to clients as the maximum block size.
pub const MAX_TRANSFER: u32 = 32 * 1024 * 1024;
/// The longest range whose block status is told at once; NBD allows shorter answers than asked.
const MAX_STATUS: u32 = 64 * 1024 * 1024;
/// Longer options are refused unread.
const MAX_OPTION: u32 = 64 * 1024;
/// An option that claims to be longer than this is no option.
const MAX_SKIPPED_OPTION: u32 = MAX_TRANSFER;
/// Unsent bytes at which a client that haggles without listening is not read any more.
const HAGGLING_BACKLOG: usize = 64 * 1024;
/// What a request without data counts in the budget.
const REQUEST_CHARGE: usize = 64;
/// Zeroes are sent from one shared buffer of this size.
const ZEROES: usize = 64 * 1024;

/// What is offered to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Told to clients that list. The empty name always means this export, too.
    pub name: String,
    /// Further names that clients may ask for, such as tapdisk's fixed `tapdisk_client`.
    pub aliases: Vec<String>,
    /// For people; may be empty.
    pub description: String,
    /// In bytes.
    pub size: u64,
    /// Changes are refused (EPERM).
    pub read_only: bool,
    /// True if a flush on one connection covers the writes of all: so it is when one session serves them all.
    pub multi_conn: bool,
    /// Of a snapshot's export: others with which it can be compared. Each is a metadata context.
    pub since: Vec<SnapId>,
}

impl ExportInfo {
    fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty()
            || name == self.name.as_bytes()
            || self.aliases.iter().any(|alias| name == alias.as_bytes())
    }
}

/// What one connection may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests not yet answered; at most 65,536.
    pub requests: usize,
    /// Bytes of unanswered writes, of reads under way and of replies not yet sent.
    pub bytes: usize,
}

impl Default for Limits {
    /// 1,024 requests and 64 MiB.
    fn default() -> Self {
        Limits { requests: 1024, bytes: 64 * 1024 * 1024 }
    }
}

/// A request for the session.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestRequest<P> {
    /// For [`Connection::complete`]. Unique among the unanswered requests of connections with distinct tags.
    pub id: RequestId,
    /// What is asked. Ranges lie inside of the volume, are not empty and need not be aligned.
    pub op: GuestOp<P>,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The client said goodbye and all its requests were answered.
    Disconnected,
    /// The client gave up during the handshake.
    Aborted,
    /// The stream ended without a goodbye.
    Lost,
    /// The session lost the volume; the client was told ESHUTDOWN.
    Fenced,
    /// The client broke the protocol in a way that has no answer; the sentence says how.
    Violation(&'static str),
}

/// What the next bytes of the stream are.
#[derive(Debug)]
enum Expect<P> {
    ClientFlags,
    OptionHead,
    OptionData { code: u32, len: usize },
    OptionSkip { code: u32, left: usize },
    RequestHead,
    WriteData { head: RequestHead, data: P, filled: usize },
    WriteSkip { head: RequestHead, left: usize, error: Errno, sentence: &'static str },
    Nothing,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Write,
    Plain,
    Read {
        offset: u64,
        len: u64,
        unfragmented: bool,
    },
    /// Of one after the other of the contexts that were agreed on; this is the one with that index.
    Status {
        offset: u64,
        len: u64,
        one: bool,
        nth: usize,
    },
}

/// A request read from the stream, not yet given to the session.
#[derive(Debug)]
struct Waiting<P> {
    cookie: u64,
    shape: Shape,
    op: GuestOp<P>,
    charge: usize,
}

/// A place for a request that the session has.
#[derive(Debug)]
struct Slot {
    /// Counts the uses of this place, so that an answer that comes twice is noticed.
    round: u16,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    cookie: u64,
    shape: Shape,
    charge: usize,
}

/// One client's connection.
///
/// After any method that takes `&mut self`, drain [`poll_request`](Self::poll_request) and
/// [`poll_transmit`](Self::poll_transmit), then look at [`ending`](Self::ending).
#[derive(Debug)]
pub struct Connection<P> {
    tag: u32,
    export: ExportInfo,
    limits: Limits,
    agreed: Agreed,
    expect: Expect<P>,
    /// Bytes of a head or option that came incomplete.
    partial: Vec<u8>,
    waiting: VecDeque<Waiting<P>>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    open_count: usize,
    waiting_charge: usize,
    open_charge: usize,
    out: Outbox<P>,
    zeroes: Option<P>,
    fenced: bool,
    /// Nobody reads what is sent any more.
    deaf: bool,
    ending: Option<Ending>,
}

impl<P: Payload> Connection<P> {
    /// A fresh connection, its greeting ready to be sent. `tag` tells the connections of one session apart: it
    /// is the upper half of every [`RequestId`].
    #[must_use]
    pub fn new(tag: u32, export: ExportInfo, limits: Limits) -> Self {
        assert!((1..=1 << 16).contains(&limits.requests), "limit of {} requests", limits.requests);
        let mut out = Outbox::new();
        out.push_head(&wire::INIT_MAGIC.to_be_bytes());
        out.push_head(&wire::OPTION_MAGIC.to_be_bytes());
        out.push_head(&(wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes());
        Connection {
            tag,
            export,
            limits,
            agreed: Agreed::default(),
            expect: Expect::ClientFlags,
            partial: Vec::new(),
            waiting: VecDeque::new(),
            slots: Vec::new(),
            free: Vec::new(),
            open_count: 0,
            waiting_charge: 0,
            open_charge: 0,
            out,
            zeroes: None,
            fenced: false,
            deaf: false,
            ending: None,
        }
    }

    /// True while the stream should be read: the budget has room and the connection is not over.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        if self.ending.is_some_and(|ending| ending != Ending::Fenced) {
            return false;
        }
        if !self.is_transmitting() {
            return self.out.held() < HAGGLING_BACKLOG;
        }
        self.held_requests() < self.limits.requests && self.held_bytes() < self.limits.bytes
    }

    /// Requests read and not yet answered.
    #[must_use]
    pub fn held_requests(&self) -> usize {
        self.waiting.len() + self.open_count
    }

    /// Bytes of the budget in use.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.waiting_charge + self.open_charge + self.out.held()
    }

    /// True once the handshake is over: the client may do I/O.
    #[must_use]
    pub fn is_transmitting(&self) -> bool {
        matches!(self.expect, Expect::RequestHead | Expect::WriteData { .. } | Expect::WriteSkip { .. })
    }

    /// Set when the connection is over and nothing is left to send: close the socket.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.ending.filter(|ending| match ending {
            Ending::Lost | Ending::Violation(_) => true,
            Ending::Disconnected | Ending::Aborted | Ending::Fenced => {
                self.held_requests() == 0 && (self.deaf || self.out.held() == 0)
            }
        })
    }

    /// The volume's size changed. Bounds are checked against the new size from now on; NBD has no way to tell
    /// a connected client, which sees it when it connects anew.
    pub fn set_size(&mut self, size: u64) {
        self.export.size = size;
    }

    /// The session lost the volume: everything open is answered ESHUTDOWN, and everything that still arrives
    /// until those answers are sent; then the connection ends. Late calls of `complete` change nothing.
    pub fn shutdown_fenced(&mut self) {
        if self.fenced {
            return;
        }
        self.fenced = true;
        for waiting in core::mem::take(&mut self.waiting) {
            self.waiting_charge -= waiting.charge;
            self.fail(waiting.cookie, waiting.shape, Errno::Shutdown, FENCED);
        }
        for index in 0..self.slots.len() {
            if let Some(open) = self.slots[index].open.take() {
                self.open_charge -= open.charge;
                self.open_count -= 1;
                self.fail(open.cookie, open.shape, Errno::Shutdown, FENCED);
            }
        }
        self.ending.get_or_insert(Ending::Fenced);
    }

    /// The stream ended or broke. What the session still has may complete or not: nobody is there to be told.
    /// After a goodbye, requests that are not yet with the session are still done.
    pub fn handle_eof(&mut self) {
        self.deaf = true;
        self.out.clear();
        if self.ending != Some(Ending::Disconnected) {
            self.end_now(Ending::Lost);
        }
    }

    /// Bytes from the client, in order; all are taken. Guest data is copied into a private buffer here.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        let mut input = bytes;
        while !input.is_empty() {
            match &mut self.expect {
                Expect::Nothing => return,
                Expect::ClientFlags => {
                    if let Some(flags) = take_whole::<4>(&mut self.partial, &mut input) {
                        self.on_client_flags(u32::from_be_bytes(flags));
                    }
                }
                Expect::OptionHead => {
                    if let Some(head) = take_whole::<OPTION_HEAD_LEN>(&mut self.partial, &mut input) {
                        self.on_option_head(head);
                    }
                }
                Expect::OptionData { code, len } => {
                    let (code, len) = (*code, *len);
                    let taken = input.len().min(len - self.partial.len());
                    self.partial.extend_from_slice(&input[..taken]);
                    input = &input[taken..];
                    if self.partial.len() == len {
                        let data = core::mem::take(&mut self.partial);
                        self.on_option(code, &data);
                    }
                }
                Expect::OptionSkip { code, left } => {
                    let taken = input.len().min(*left);
                    *left -= taken;
                    input = &input[taken..];
                    if *left == 0 {
                        negotiation::refuse_too_big(*code, &mut self.out);
                        self.expect = Expect::OptionHead;
                    }
                }
                Expect::RequestHead => {
                    if let Some(head) = take_whole::<REQUEST_HEAD_LEN>(&mut self.partial, &mut input) {
                        self.on_request(RequestHead::parse(&head));
                    }
                }
                Expect::WriteData { data, filled, .. } => {
                    let taken = input.len().min(data.len() - *filled);
                    data.bytes_mut()[*filled..*filled + taken].copy_from_slice(&input[..taken]);
                    input = &input[taken..];
                    self.handle_filled(taken);
                }
                Expect::WriteSkip { head, left, error, sentence } => {
                    let taken = input.len().min(*left);
                    *left -= taken;
                    input = &input[taken..];
                    if *left == 0 {
                        let (cookie, error, sentence) = (head.cookie, *error, *sentence);
                        self.expect = Expect::RequestHead;
                        self.fail(cookie, Shape::Write, error, sentence);
                    }
                }
            }
        }
    }

    /// Where the rest of a write's data may be put at once, so that it is copied once less; empty while none is expected.
    /// What was put there is told by [`handle_filled`](Self::handle_filled).
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.expect {
            Expect::WriteData { data, filled, .. } => &mut data.bytes_mut()[*filled..],
            _ => &mut [],
        }
    }

    /// So many bytes of the client are in [`space`](Self::space): as if they had come by
    /// [`handle_bytes`](Self::handle_bytes). Panics if there are more than it has room for: a caller's bug.
    pub fn handle_filled(&mut self, len: usize) {
        let Expect::WriteData { data, filled, .. } = &mut self.expect else {
            assert!(len == 0, "{len} bytes put where none are expected");
            return;
        };
        *filled += len;
        assert!(*filled <= data.len(), "{filled} bytes put where {} are", data.len());
        if *filled == data.len() {
            self.on_write_received();
        }
    }

    /// The next request for the session, when the budget has room for its answer.
    pub fn poll_request(&mut self) -> Option<GuestRequest<P>> {
        let waiting = self.waiting.front()?;
        if self.open_count >= self.limits.requests {
            return None;
        }
        // Reads are charged for the data they'll bring; only a lone request may exceed the budget.
        let others = self.open_charge + self.out.held();
        if others > 0 && others + waiting.charge > self.limits.bytes {
            return None;
        }
        let waiting = self.waiting.pop_front()?;
        self.waiting_charge -= waiting.charge;
        let open = Open { cookie: waiting.cookie, shape: waiting.shape, charge: waiting.charge };
        Some(GuestRequest { id: self.open(open), op: waiting.op })
    }

    /// The session's answer to a request. Of no effect if the client is gone or was already told that the
    /// session is fenced. Panics if the id was never given out or is answered twice: a bug of the caller.
    pub fn complete(&mut self, id: RequestId, reply: GuestReply<P>) {
        let Some(open) = self.close_slot(id) else { return };
        match (open.shape, reply) {
            (shape, GuestReply::Failed(error)) => {
                let (errno, sentence) = explain(error, shape);
                self.fail(open.cookie, shape, errno, sentence);
            }
            (Shape::Write | Shape::Plain, GuestReply::Done) => self.push_simple(open.cookie, 0),
            (Shape::Read { offset, len, unfragmented }, GuestReply::Data(extents)) => {
                self.push_data(open.cookie, offset, len, unfragmented, extents);
            }
            (shape @ Shape::Status { .. }, GuestReply::Kinds(runs)) => {
                // Zeroed space may still be allocated; what was never written is not.
                let status = |kind: Option<Hole>| match kind {
                    None => 0,
                    Some(Hole::Zero) => state::ZERO,
                    Some(Hole::Absent) => state::ZERO | state::HOLE,
                };
                let runs = runs.into_iter().map(|(len, kind)| (len, status(kind)));
                self.push_status(open.cookie, shape, runs);
            }
            (shape @ Shape::Status { .. }, GuestReply::Changed { runs, .. }) => {
                let status = |differs: bool| if differs { state::CHANGED } else { 0 };
                let runs = runs.into_iter().map(|(len, differs)| (len, status(differs)));
                self.push_status(open.cookie, shape, runs);
            }
            (shape, reply) => panic!("{reply:?} does not answer {shape:?}"),
        }
    }

    /// The next bytes to send, at most `max_parts` pieces; hand the list back when all of it was sent.
    pub fn poll_transmit(&mut self, max_parts: usize) -> Option<Gather<P>> {
        self.out.poll(max_parts)
    }

    /// A list of [`poll_transmit`](Self::poll_transmit) was sent: its bytes leave the budget.
    pub fn handle_transmitted(&mut self, gather: Gather<P>) {
        self.out.give_back(gather);
    }

    fn on_client_flags(&mut self, flags: u32) {
        // NBD: "If the server receives an unknown flag, it MUST close the session".
        if flags & !(wire::CLIENT_FIXED_NEWSTYLE | wire::CLIENT_NO_ZEROES) != 0 {
            return self.end_now(Ending::Violation("unknown handshake flags"));
        }
        self.agreed.no_zeroes = flags & wire::CLIENT_NO_ZEROES != 0;
        self.expect = Expect::OptionHead;
    }

    fn on_option_head(&mut self, head: [u8; OPTION_HEAD_LEN]) {
        let mut reader = Reader(&head);
        let (Some(magic), Some(code), Some(len)) = (reader.u64(), reader.u32(), reader.u32()) else {
            unreachable!("a head of {OPTION_HEAD_LEN} bytes");
        };
        if magic != wire::OPTION_MAGIC {
            return self.end_now(Ending::Violation("an option without its magic number"));
        }
        if len > MAX_SKIPPED_OPTION || (len > MAX_OPTION && code == wire::option::EXPORT_NAME) {
            return self.end_now(Ending::Violation("an option too long to be one"));
        }
        let len_bytes = to_usize(len);
        if len > MAX_OPTION {
            self.expect = Expect::OptionSkip { code, left: len_bytes };
        } else if len == 0 {
            self.on_option(code, &[]);
        } else {
            self.expect = Expect::OptionData { code, len: len_bytes };
        }
    }

    fn on_option(&mut self, code: u32, data: &[u8]) {
        self.expect = Expect::OptionHead;
        match negotiation::handle_option(
            code,
            data,
            &self.export,
            self.fenced,
            &mut self.agreed,
            &mut self.out,
        ) {
            Next::Option => {}
            Next::Transmission => self.expect = Expect::RequestHead,
            Next::End(ending @ Ending::Violation(_)) => self.end_now(ending),
            Next::End(ending) => {
                self.expect = Expect::Nothing;
                self.ending = Some(ending);
            }
        }
    }

    fn on_request(&mut self, head: RequestHead) {
        if head.magic != wire::REQUEST_MAGIC {
            return self.end_now(Ending::Violation("a request without its magic number"));
        }
        if head.command == command::DISCONNECT {
            self.expect = Expect::Nothing;
            if self.ending.is_none() {
                self.ending = Some(Ending::Disconnected);
            }
            return;
        }
        let checked = self.check(&head);
        if head.command == command::WRITE && head.len > 0 {
            // The data follows in any case and must be taken from the stream.
            self.expect = match checked {
                Ok(_) => Expect::WriteData { head, data: P::zeroed(to_usize(head.len)), filled: 0 },
                Err((error, sentence)) => {
                    Expect::WriteSkip { head, left: to_usize(head.len), error, sentence }
                }
            };
            return;
        }
        match checked {
            Err((error, sentence)) => self.fail(head.cookie, shape_of(&head), error, sentence),
            Ok(()) => self.enqueue(&head, None),
        }
    }

    fn on_write_received(&mut self) {
        let expect = core::mem::replace(&mut self.expect, Expect::RequestHead);
        let Expect::WriteData { head, data, .. } = expect else {
            unreachable!("only called for a write");
        };
        if self.fenced {
            self.fail(head.cookie, Shape::Write, Errno::Shutdown, FENCED);
        } else {
            self.enqueue(&head, Some(data));
        }
    }

    /// May the session be asked this? If not, what the client is told.
    fn check(&self, head: &RequestHead) -> Result<(), (Errno, &'static str)> {
        if self.fenced {
            return Err((Errno::Shutdown, FENCED));
        }
        // NBD allows FUA on every command; where nothing is changed it means nothing.
        let mut flags = command_flag::FUA;
        match head.command {
            command::READ if self.agreed.structured => flags |= command_flag::DF,
            command::READ | command::WRITE | command::FLUSH | command::TRIM => {}
            command::WRITE_ZEROES => flags |= command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => flags |= command_flag::REQ_ONE,
            _ => return Err((Errno::Invalid, "unknown command")),
        }
        if head.flags & !flags != 0 {
            return Err((Errno::Invalid, "this flag was not offered for this command"));
        }
        if head.command == command::FLUSH {
            let fits = head.offset == 0 && head.len == 0;
            return fits.then_some(()).ok_or((Errno::Invalid, "a flush has neither offset nor length"));
        }
        let changes = matches!(head.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && self.export.read_only {
            return Err((Errno::NotPermitted, "the export is read-only"));
        }
        if head.command == command::BLOCK_STATUS && self.agreed.contexts.is_empty() {
            return Err((Errno::Invalid, "no metadata context was agreed on"));
        }
        if head.len == 0 {
            return Err((Errno::Invalid, "the length is zero"));
        }
        if matches!(head.command, command::READ | command::WRITE) && head.len > MAX_TRANSFER {
            let unfragmented = head.flags & command_flag::DF != 0;
            let error = if unfragmented { Errno::Overflow } else { Errno::Invalid };
            return Err((error, "longer than the maximum block size, 32 MiB"));
        }
        if head.offset.checked_add(u64::from(head.len)).is_none_or(|end| end > self.export.size) {
            return Err((out_of_range(shape_of(head)), "past the end of the volume"));
        }
        // A zeroing that keeps the space may have to write it all, and then it isn't fast.
        let slow = command_flag::FAST_ZERO | command_flag::NO_HOLE;
        if head.flags & slow == slow {
            return Err((Errno::NotSupported, "zeroes that keep their space are not sure to be fast"));
        }
        Ok(())
    }

    fn enqueue(&mut self, head: &RequestHead, data: Option<P>) {
        let (offset, len) = (head.offset, u64::from(head.len));
        let fua = head.flags & command_flag::FUA != 0;
        let mut shape = shape_of(head);
        let mut bytes = 0;
        let op = match (head.command, data) {
            (command::WRITE, Some(data)) => {
                bytes = data.len();
                GuestOp::Write { offset, data, fua }
            }
            (command::READ, None) => {
                bytes = to_usize(head.len);
                GuestOp::Read { offset, len }
            }
            (command::FLUSH, None) => GuestOp::Flush,
            (command::TRIM, None) => GuestOp::Zero { offset, len, discard: true, keep_space: false, fua },
            (command::WRITE_ZEROES, None) => {
                let keep_space = head.flags & command_flag::NO_HOLE != 0;
                GuestOp::Zero { offset, len, discard: false, keep_space, fua }
            }
            (command::BLOCK_STATUS, None) => {
                let len = u64::from(head.len.min(MAX_STATUS));
                let one = head.flags & command_flag::REQ_ONE != 0;
                shape = Shape::Status { offset, len, one, nth: 0 };
                bytes = status_bytes(len);
                status_op(self.agreed.contexts[0], offset, len)
            }
            (command, _) => unreachable!("command {command} was checked"),
        };
        let charge = REQUEST_CHARGE + bytes;
        self.waiting_charge += charge;
        self.waiting.push_back(Waiting { cookie: head.cookie, shape, op, charge });
    }

    /// Ends without answers to what is open: nobody may be told anything.
    fn end_now(&mut self, ending: Ending) {
        self.ending = Some(ending);
        self.expect = Expect::Nothing;
        self.deaf = true;
        self.waiting.clear();
        self.waiting_charge = 0;
        self.out.clear();
    }

    fn open(&mut self, open: Open) -> RequestId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { round: 0, open: None });
            u16::try_from(self.slots.len() - 1).expect("at most 65,536 requests")
        });
        let slot = &mut self.slots[usize::from(index)];
        slot.round = slot.round.wrapping_add(1);
        slot.open = Some(open);
        self.open_count += 1;
        self.open_charge += open.charge;
        RequestId((u64::from(self.tag) << 32) | (u64::from(slot.round) << 16) | u64::from(index))
    }

    /// Frees a request's place. `None` if its client needs no answer any more.
    fn close_slot(&mut self, id: RequestId) -> Option<Open> {
        let [tag @ .., r1, r0, i1, i0] = id.0.to_be_bytes();
        let (round, index) = (u16::from_be_bytes([r1, r0]), u16::from_be_bytes([i1, i0]));
        assert!(u32::from_be_bytes(tag) == self.tag, "{id:?} is of another connection than {}", self.tag);
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.round == round);
        let Some(slot) = slot else { panic!("{id:?} is not open on connection {}", self.tag) };
        let Some(open) = slot.open.take() else {
            assert!(self.fenced, "{id:?} was answered twice");
            return None;
        };
        self.free.push(index);
        self.open_count -= 1;
        self.open_charge -= open.charge;
        (!self.deaf).then_some(open)
    }

    fn fail(&mut self, cookie: u64, shape: Shape, error: Errno, sentence: &str) {
        if self.deaf {
            return;
        }
        let has_chunks = matches!(shape, Shape::Read { .. } | Shape::Status { .. });
        if !(has_chunks && self.agreed.structured) {
            return self.push_simple(cookie, error as u32);
        }
        let sentence_len = u16::try_from(sentence.len()).expect("sentences of ours are short");
        self.push_chunk(cookie, chunk::ERROR, true, 6 + u32::from(sentence_len));
        self.out.push_head(&(error as u32).to_be_bytes());
        self.out.push_head(&sentence_len.to_be_bytes());
        self.out.push_head(sentence.as_bytes());
    }

    fn push_simple(&mut self, cookie: u64, error: u32) {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&error.to_be_bytes());
        head[8..].copy_from_slice(&cookie.to_be_bytes());
        self.out.push_head(&head);
    }

    fn push_chunk(&mut self, cookie: u64, kind: u16, last: bool, len: u32) {
        let mut head = [0; 20];
        head[..4].copy_from_slice(&wire::STRUCTURED_REPLY_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&(if last { chunk::FLAG_DONE } else { 0 }).to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        head[16..].copy_from_slice(&len.to_be_bytes());
        self.out.push_head(&head);
    }

    fn push_data(&mut self, cookie: u64, offset: u64, len: u64, unfragmented: bool, extents: Vec<Extent<P>>) {
        let found: u64 = extents.iter().map(extent_len).sum();
        assert!(found == len, "a read of {len} bytes was answered with {found}");
        if !self.agreed.structured {
            self.push_simple(cookie, 0);
            return self.push_bytes(extents);
        }
        let holes = extents.iter().filter(|extent| matches!(extent, Extent::Hole { .. })).count();
        if holes == 0 || (unfragmented && holes < extents.len()) {
            // NBD: "If the area being read contains both data and a hole, the server MUST use
            // NBD_REPLY_TYPE_OFFSET_DATA with the zeroes explicitly present."
            self.push_chunk(cookie, chunk::OFFSET_DATA, true, to_u32(len + 8));
            self.out.push_head(&offset.to_be_bytes());
            return self.push_bytes(extents);
        }
        // One chunk for each run of data or of holes.
        let mut at = offset;
        let mut extents = extents.into_iter().filter(|extent| extent_len(extent) > 0).peekable();
        while let Some(first) = extents.next() {
            let is_hole = matches!(first, Extent::Hole { .. });
            let mut run = vec![first];
            while let Some(next) = extents.next_if(|extent| matches!(extent, Extent::Hole { .. }) == is_hole)
            {
                run.push(next);
            }
            let run_len: u64 = run.iter().map(extent_len).sum();
            let last = extents.peek().is_none();
            if is_hole {
                self.push_chunk(cookie, chunk::OFFSET_HOLE, last, 12);
                self.out.push_head(&at.to_be_bytes());
                self.out.push_head(&to_u32(run_len).to_be_bytes());
            } else {
                self.push_chunk(cookie, chunk::OFFSET_DATA, last, to_u32(run_len + 8));
                self.out.push_head(&at.to_be_bytes());
                self.push_bytes(run);
            }
            at += run_len;
        }
    }

    fn push_bytes(&mut self, extents: Vec<Extent<P>>) {
        for extent in extents {
            match extent {
                Extent::Data { data, .. } => self.out.push_data(data),
                Extent::Hole { len, .. } => {
                    let zeroes = self.zeroes.get_or_insert_with(|| P::zeroed(ZEROES));
                    let mut left = usize::try_from(len).expect("at most one transfer");
                    while left > 0 {
                        let piece = left.min(ZEROES);
                        self.out.push_data(zeroes.slice(0, piece));
                        left -= piece;
                    }
                }
            }
        }
    }

    /// What one context tells, and then the question for the next one: a client gets all of them in one reply.
    fn push_status(&mut self, cookie: u64, shape: Shape, runs: impl Iterator<Item = (u64, u32)>) {
        let Shape::Status { offset, len, one, nth } = shape else { return };
        let mut found = 0;
        let mut merged: Vec<(u64, u32)> = Vec::new();
        for (len, status) in runs.filter(|(len, _)| *len > 0) {
            found += len;
            match merged.last_mut() {
                Some((merged_len, last)) if *last == status => *merged_len += len,
                _ => merged.push((len, status)),
            }
        }
        assert!(found == len, "a question of {len} bytes was answered with {found}");
        if one {
            merged.truncate(1);
        }
        let (context, next) = (self.agreed.contexts[nth], self.agreed.contexts.get(nth + 1).copied());
        let count = u32::try_from(merged.len()).expect("at most 64 MiB");
        self.push_chunk(cookie, chunk::BLOCK_STATUS, next.is_none(), 4 + 8 * count);
        self.out.push_head(&context.id.to_be_bytes());
        for (len, status) in merged {
            self.out.push_head(&to_u32(len).to_be_bytes());
            self.out.push_head(&status.to_be_bytes());
        }
        if let Some(next) = next {
            let shape = Shape::Status { offset, len, one, nth: nth + 1 };
            let charge = REQUEST_CHARGE + status_bytes(len);
            self.waiting_charge += charge;
            let op = status_op(next, offset, len);
            self.waiting.push_front(Waiting { cookie, shape, op, charge });
        }
    }
}

fn status_op<P>(context: Context, offset: u64, len: u64) -> GuestOp<P> {
    match context.since {
        None => GuestOp::Kinds { offset, len },
        Some(since) => GuestOp::Changed { since, offset, len },
    }
}

/// Eight bytes for each block, at worst.
fn status_bytes(len: u64) -> usize {
    usize::try_from(len / 512).expect("at most 64 MiB")
}

const FENCED: &str = "this session no longer owns the volume";

/// Takes `N` bytes that may come in pieces.
fn take_whole<const N: usize>(partial: &mut Vec<u8>, input: &mut &[u8]) -> Option<[u8; N]> {
    if partial.is_empty()
        && let Some((whole, rest)) = input.split_first_chunk::<N>()
    {
        *input = rest;
        return Some(*whole);
    }
    let taken = input.len().min(N - partial.len());
    partial.extend_from_slice(&input[..taken]);
    *input = &input[taken..];
    let whole = <[u8; N]>::try_from(partial.as_slice()).ok()?;
    partial.clear();
    Some(whole)
}

fn shape_of(head: &RequestHead) -> Shape {
    let len = u64::from(head.len);
    match head.command {
        command::WRITE | command::WRITE_ZEROES => Shape::Write,
        command::READ => {
            Shape::Read { offset: head.offset, len, unfragmented: head.flags & command_flag::DF != 0 }
        }
        command::BLOCK_STATUS => {
            let one = head.flags & command_flag::REQ_ONE != 0;
            Shape::Status { offset: head.offset, len, one, nth: 0 }
        }
        _ => Shape::Plain,
    }
}

/// NBD: "The server SHOULD return NBD_ENOSPC if it receives a write request including one or more sectors
/// beyond the size of the device ... SHOULD return NBD_EINVAL if it receives a read or trim request ...".
fn out_of_range(shape: Shape) -> Errno {
    if matches!(shape, Shape::Write) { Errno::NoSpace } else { Errno::Invalid }
}

fn explain(error: GuestError, shape: Shape) -> (Errno, &'static str) {
    match error {
        GuestError::OutOfRange => (out_of_range(shape), "past the end of the volume"),
        GuestError::Fenced => (Errno::Shutdown, FENCED),
        GuestError::Unreadable => (Errno::Io, "no replica has a readable copy of a block"),
        GuestError::Waiting => (Errno::Io, "the volume waits for its replicas"),
    }
}

fn extent_len<P: Payload>(extent: &Extent<P>) -> u64 {
    match extent {
        Extent::Data { data, .. } => data.len() as u64,
        Extent::Hole { len, .. } => *len,
    }
}

fn to_usize(len: u32) -> usize {
    usize::try_from(len).expect("32 bits fit")
}

/// For lengths of one transfer or one status answer.
fn to_u32(len: u64) -> u32 {
    u32::try_from(len).expect("at most 64 MiB")
}
