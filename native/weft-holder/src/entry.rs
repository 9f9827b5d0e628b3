//! One volume that is offered to one guest: its client, its requests, and the connection to weftd's export.
//!
//! ```text
//!             ┌──────────────── client gone ────────────────┐
//!  no client ─┴▶ connecting ─▶ linked ─▶ weftd gone ─▶ connecting …
//!                    └─ its ownership is over ─▶ lost: the client is told ESHUTDOWN, and so is each later one
//! ```
//!
//! Must always hold:
//! * the greeting waits until weftd has told the volume's size, and each client is told the one that the first was told: a
//!   tapdisk that is paused and goes on refuses another, and stays paused for good (blktap's `tapdisk_vbd_resume`);
//! * an older connection to the export has ended before requests go over a new one ([`Link::retire`]).

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use weft_export::nbd::{Connection, Ending, ExportInfo, Gather, Limits};
use weft_io::buffer::IoBuf;
use weft_proto::guest::{GuestOp, GuestReply};
use weft_proto::ids::{SessionId, SnapId, VolumeId};

use crate::held::Held;
use crate::link::{self, Link};
use crate::upstream::{Trouble, Weftd, What};
use crate::wire::{Export, Reply, Verdict};

/// What one guest may have unanswered: then its socket is not read. tapdisk's ring has 352 requests of 44 KiB.
const LIMITS: Limits = Limits { requests: 1024, bytes: 16 * 1024 * 1024 };
/// Bytes received at once.
const RECV_BYTES: usize = 256 * 1024;
/// Behind the data of a long request no more than this is read with it: the next request's data then goes where it belongs
/// at once, and is not copied.
const RECV_BEHIND: usize = 4096;
/// Data from this length on is worth that.
const RECV_APART: usize = 16 * 1024;
/// Pieces sent to a client at once.
const PARTS_MAX: usize = 64;
/// Between two attempts to reach weftd, when nothing tells that it is back.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// Before a request is asked again that weftd answered with trouble that passes.
const TROUBLE: Duration = Duration::from_secs(1);
/// Between two looks at a client whose socket nobody reads or writes.
const LOOK: Duration = Duration::from_secs(1);

thread_local! {
    /// All entries are of one thread, and none keeps bytes here across a wait.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; RECV_BYTES]);
}

/// What is offered, where, and to do what with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) id: String,
    pub(crate) listen: PathBuf,
    pub(crate) volume: VolumeId,
    /// The session that began the ownership; none: it is a snapshot's.
    pub(crate) first: Option<SessionId>,
    pub(crate) snapshot: Option<SnapId>,
    pub(crate) writable: bool,
}

/// As it looks from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) connected: bool,
    pub(crate) client_pid: Option<u32>,
    pub(crate) unanswered: usize,
    pub(crate) held_bytes: u64,
    pub(crate) away_since: Option<Instant>,
    pub(crate) waits_for: Option<String>,
    pub(crate) lost: Option<String>,
    pub(crate) paused: bool,
    pub(crate) replayed: u64,
    pub(crate) told_size: Option<u64>,
}

/// Which size the next client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// weftd's, then.
    Now,
    /// What was told before that.
    Before,
    Bytes(u64),
}

/// What is asked of an entry.
#[derive(Debug)]
pub(crate) enum Order {
    Close(oneshot::Sender<()>),
    Pause(oneshot::Sender<()>),
    Resume,
    Tell(Tell, oneshot::Sender<()>),
}

struct Client {
    stream: UnixStream,
    /// None: not greeted yet.
    connection: Option<Connection<IoBuf>>,
    sending: Option<(Gather<IoBuf>, usize)>,
}

type Connecting = Pin<Box<dyn Future<Output = Result<(Link, Export), String>>>>;

enum Upstream {
    None,
    Connecting(Connecting),
    Linked(Link),
}

/// Everything of one offer.
pub(crate) struct Entry {
    pub(crate) offer: Offer,
    pub(crate) weftd: Rc<Weftd>,
    /// weftd's socket of it, as last told.
    pub(crate) path: PathBuf,
    pub(crate) listener: UnixListener,
    /// Whose connection to the export it is.
    pub(crate) turn: Arc<Mutex<()>>,
    pub(crate) status: Rc<RefCell<Status>>,
    pub(crate) orders: mpsc::Receiver<Order>,
}

struct Running {
    entry: Entry,
    held: Held<IoBuf>,
    client: Option<Client>,
    upstream: Upstream,
    /// In bytes, as clients are told; none: the next one is told what weftd says.
    size: Option<u64>,
    /// What clients were told before that was asked for.
    size_before: Option<u64>,
    tag: u32,
    pausing: Vec<oneshot::Sender<()>>,
    /// When trouble is asked again.
    again: Option<tokio::time::Instant>,
}

enum Happened {
    Order(Option<Order>),
    Accepted(io::Result<UnixStream>),
    Client(io::Result<()>),
    Link(io::Result<()>),
    Connected(Result<(Link, Export), String>),
    Again,
}

impl Entry {
    /// Until it is closed.
    pub(crate) async fn run(self) {
        let running = Running {
            entry: self,
            held: Held::default(),
            client: None,
            upstream: Upstream::None,
            size: None,
            size_before: None,
            tag: 0,
            pausing: Vec::new(),
            again: None,
        };
        running.run().await;
    }
}

impl Running {
    async fn run(mut self) {
        loop {
            self.pump();
            self.tell();
            let Running { entry, client, upstream, again, .. } = &mut self;
            let (mut linked, mut connecting) = (None, None);
            match upstream {
                Upstream::None => {}
                Upstream::Connecting(future) => connecting = Some(future),
                Upstream::Linked(link) => linked = Some(link),
            }
            let happened = tokio::select! {
                order = entry.orders.recv() => Happened::Order(order),
                accepted = entry.listener.accept(), if client.is_none() => {
                    Happened::Accepted(accepted.map(|(stream, _)| stream))
                }
                ready = client_ready(client.as_ref()) => Happened::Client(ready),
                ready = link_ready(linked.as_deref()) => Happened::Link(ready),
                outcome = wait_for(connecting) => Happened::Connected(outcome),
                () = until(*again) => Happened::Again,
            };
            match happened {
                Happened::Order(None) => return self.close(),
                Happened::Order(Some(Order::Close(done))) => {
                    self.close();
                    let _ = done.send(());
                    return;
                }
                Happened::Order(Some(Order::Pause(done))) => {
                    self.entry.status.borrow_mut().paused = true;
                    self.pausing.push(done);
                }
                Happened::Order(Some(Order::Resume)) => {
                    self.entry.status.borrow_mut().paused = false;
                    // Who waited for it has what it asked for no more.
                    self.pausing.clear();
                }
                Happened::Order(Some(Order::Tell(tell, done))) => {
                    self.tell_size(tell);
                    let _ = done.send(());
                }
                Happened::Accepted(Ok(stream)) => self.accepted(stream),
                Happened::Accepted(Err(error)) => {
                    tracing::warn!(id = self.entry.offer.id, %error, "accept failed");
                    tokio::time::sleep(TROUBLE).await;
                }
                Happened::Client(Ok(())) => self.read_client(),
                Happened::Client(Err(_)) => self.client_gone("lost"),
                Happened::Link(Ok(())) => self.read_link(),
                Happened::Link(Err(error)) => self.link_lost(&error.to_string()),
                Happened::Connected(Ok((link, export))) => self.connected(link, export),
                Happened::Connected(Err(why)) => self.taken(why),
                Happened::Again => self.again = None,
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.entry.status.borrow().paused
    }

    fn is_lost(&self) -> bool {
        self.entry.status.borrow().lost.is_some()
    }

    /// Does what can be done without waiting.
    fn pump(&mut self) {
        self.take_requests();
        self.send_requests();
        self.send_answers();
        let over = self.client.as_ref().is_some_and(|client| {
            client.sending.is_none() && client.connection.as_ref().is_some_and(|c| c.ending().is_some())
        });
        if over {
            self.client_gone("done");
        }
        if self.client.is_some() && matches!(self.upstream, Upstream::None) && !self.is_lost() {
            self.connect();
        }
        let drained = self.held.under_way() == 0
            && !matches!(&self.upstream, Upstream::Linked(link) if link.wire.is_full());
        if self.is_paused() && drained {
            for done in self.pausing.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn take_requests(&mut self) {
        let Some(connection) = self.client.as_mut().and_then(|client| client.connection.as_mut()) else {
            return;
        };
        while let Some(request) = connection.poll_request() {
            match request.op {
                // Everything is told as data: what is allocated is weftd's to know.
                GuestOp::Kinds { len, .. } => {
                    connection.complete(request.id, GuestReply::Kinds(vec![(len, None)]));
                }
                GuestOp::Changed { .. } => unreachable!("no context of the kind is offered"),
                op => self.held.push(request.id, op),
            }
        }
    }

    fn send_requests(&mut self) {
        if self.is_paused() || self.again.is_some() {
            return;
        }
        let Upstream::Linked(link) = &mut self.upstream else { return };
        let sent = loop {
            if let Err(error) = link.flush() {
                break Err(error);
            }
            if link.wire.is_full() {
                break Ok(());
            }
            match self.held.poll() {
                Some((cookie, op)) => link.wire.push(cookie, op),
                None => break Ok(()),
            }
            // As many as there are in one go.
            while let Some((cookie, op)) = self.held.poll() {
                link.wire.push(cookie, op);
            }
        };
        if let Err(error) = sent {
            self.link_lost(&error.to_string());
        }
    }

    fn send_answers(&mut self) {
        let Some(client) = self.client.as_mut() else { return };
        let Some(connection) = client.connection.as_mut() else { return };
        let failed = loop {
            let Some((gather, sent)) = client.sending.take().or_else(|| {
                let gather = connection.poll_transmit(PARTS_MAX)?;
                Some((gather, 0))
            }) else {
                break false;
            };
            let slices: Vec<io::IoSlice<'_>> = gather.slices_from(sent).collect();
            match client.stream.try_write_vectored(&slices) {
                Ok(0) => break true,
                Ok(more) if sent + more < gather.len() => client.sending = Some((gather, sent + more)),
                Ok(_) => connection.handle_transmitted(gather),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    client.sending = Some((gather, sent));
                    break false;
                }
                Err(_) => break true,
            }
        };
        if failed {
            self.client_gone("lost");
        }
    }

    fn accepted(&mut self, stream: UnixStream) {
        if self.is_lost() {
            // As after its handshake: this disk is no more.
            return;
        }
        let pid = stream.peer_cred().ok().and_then(|cred| cred.pid()).and_then(|pid| u32::try_from(pid).ok());
        tracing::info!(id = self.entry.offer.id, pid, "client connected");
        link::widen(&stream);
        self.entry.status.borrow_mut().client_pid = pid;
        self.client = Some(Client { stream, connection: None, sending: None });
        self.tag = self.tag.wrapping_add(1);
    }

    fn tell_size(&mut self, tell: Tell) {
        match tell {
            // Asked twice, it is the same.
            Tell::Now => self.size_before = self.size.take().or(self.size_before),
            Tell::Before => self.size = self.size_before.or(self.size),
            Tell::Bytes(size) => self.size = Some(size),
        }
    }

    /// weftd has told the size: a client that waits for its greeting gets it.
    fn greet(&mut self, size: u64) {
        let Some(client) = self.client.as_mut().filter(|client| client.connection.is_none()) else { return };
        let Offer { id, writable, .. } = &self.entry.offer;
        let info = ExportInfo {
            name: id.clone(),
            aliases: vec!["tapdisk_client".to_owned()],
            description: String::new(),
            size,
            read_only: !writable,
            multi_conn: false,
            since: Vec::new(),
        };
        client.connection = Some(Connection::new(self.tag, info, LIMITS));
        self.entry.status.borrow_mut().told_size = Some(size);
    }

    fn read_client(&mut self) {
        let Some(client) = self.client.as_mut() else { return };
        let Some(connection) = client.connection.as_mut() else {
            // It speaks before it was greeted, or has gone; or nothing of the kind: readiness is only a hint.
            return match client.stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => self.client_gone("gone before its greeting"),
            };
        };
        if !connection.wants_read() {
            return;
        }
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let space = connection.space();
            let direct = space.len();
            let read = receive(&client.stream, space, scratch);
            if let Ok(len @ 1..) = read {
                connection.handle_filled(len.min(direct));
                connection.handle_bytes(&scratch[..len.saturating_sub(direct)]);
            }
            read
        });
        match read {
            Ok(0) => connection.handle_eof(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => connection.handle_eof(),
        }
        if let Some(Ending::Violation(how)) = connection.ending() {
            tracing::warn!(id = self.entry.offer.id, how, "client dropped");
        }
    }

    /// Nobody waits for its answers: they are forgotten, and never asked for again.
    fn client_gone(&mut self, how: &str) {
        let unanswered = self.held.unanswered();
        tracing::info!(id = self.entry.offer.id, how, unanswered, "client gone");
        self.client = None;
        self.held.clear();
        self.again = None;
        self.retire();
    }

    /// The connection to weftd is not used any more.
    fn retire(&mut self) {
        if let Upstream::Linked(link) = std::mem::replace(&mut self.upstream, Upstream::None) {
            tokio::task::spawn_local(link.retire());
        }
    }

    fn connect(&mut self) {
        let Entry { weftd, offer, path, turn, status, .. } = &self.entry;
        let what = match (offer.first, offer.snapshot) {
            (Some(first), _) => What::Session(offer.volume, first),
            (None, Some(id)) => What::Snapshot(offer.volume, id),
            (None, None) => unreachable!("an offer is of a session or of a snapshot"),
        };
        status.borrow_mut().away_since.get_or_insert_with(Instant::now);
        let goal = Goal { what, writable: offer.writable, at_least: self.size, path: path.clone() };
        let future = keep_connecting(weftd.clone(), goal, turn.clone(), status.clone());
        self.upstream = Upstream::Connecting(Box::pin(future));
    }

    fn connected(&mut self, link: Link, export: Export) {
        {
            let mut status = self.entry.status.borrow_mut();
            (status.away_since, status.waits_for) = (None, None);
        }
        self.upstream = Upstream::Linked(link);
        // It is at least what an earlier client was told.
        let size = *self.size.get_or_insert(export.size);
        // A client that went meanwhile asks for nothing any more.
        if self.client.as_ref().is_some_and(|client| has_hung_up(&client.stream)) {
            return self.client_gone("gone while weftd was away");
        }
        self.greet(size);
        if self.held.unanswered() > 0 {
            tracing::info!(id = self.entry.offer.id, requests = self.held.unanswered(), "weftd is back");
        }
    }

    fn read_link(&mut self) {
        let Upstream::Linked(link) = &mut self.upstream else { return };
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let Link { stream, wire, .. } = link;
            let space = wire.space();
            let direct = space.len();
            match receive(stream, space, scratch) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    let whole = wire.filled(len.min(direct));
                    let mut replies = wire.take(&scratch[..len.saturating_sub(direct)], &self.held)?;
                    if let Some(whole) = whole {
                        replies.insert(0, whole);
                    }
                    Ok(replies)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        });
        match read {
            Ok(replies) => {
                for reply in replies {
                    if !self.answered(reply) {
                        return;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(id = self.entry.offer.id, %error, "weftd breaks the protocol");
                self.held.lost();
                self.again = Some(tokio::time::Instant::now() + TROUBLE);
                self.retire();
            }
            Err(error) => self.link_lost(&error.to_string()),
        }
    }

    /// False: weftd ends this session, and what comes after this is not listened to.
    fn answered(&mut self, reply: Reply) -> bool {
        let (cookie, error) = (reply.cookie, reply.error);
        let answer = match reply.verdict() {
            Verdict::Told(answer) => answer,
            Verdict::Ends => {
                // Taken, closed, or only stopping: weftd's next word on the ownership tells.
                tracing::info!(id = self.entry.offer.id, "weftd ends the session");
                self.held.lost();
                self.retire();
                return false;
            }
            Verdict::Again => {
                tracing::warn!(id = self.entry.offer.id, error, "trouble; asked again");
                self.held.again(cookie);
                self.again = Some(tokio::time::Instant::now() + TROUBLE);
                return true;
            }
        };
        let connection = self.client.as_mut().and_then(|client| client.connection.as_mut());
        if let (Some(id), Some(connection)) = (self.held.answer(cookie), connection) {
            connection.complete(id, answer);
        }
        true
    }

    fn link_lost(&mut self, why: &str) {
        tracing::warn!(id = self.entry.offer.id, why, unanswered = self.held.unanswered(), "weftd is away");
        self.upstream = Upstream::None;
        self.held.lost();
    }

    /// Its ownership is over.
    fn taken(&mut self, why: String) {
        tracing::error!(id = self.entry.offer.id, why, unanswered = self.held.unanswered(), "lost");
        self.upstream = Upstream::None;
        self.held.clear();
        if let Some(client) = &mut self.client {
            match &mut client.connection {
                Some(connection) => connection.shutdown_fenced(),
                None => self.client = None,
            }
        }
        let mut status = self.entry.status.borrow_mut();
        (status.lost, status.away_since, status.waits_for) = (Some(why), None, None);
    }

    fn close(&mut self) {
        // A path that is gone already needs no removal.
        let _ = std::fs::remove_file(&self.entry.offer.listen);
        if self.client.is_some() {
            self.client_gone("closed");
        }
        self.retire();
    }

    fn tell(&self) {
        let mut status = self.entry.status.borrow_mut();
        status.connected = self.client.is_some();
        if !status.connected {
            (status.client_pid, status.away_since, status.waits_for) = (None, None, None);
        }
        status.unanswered = self.held.unanswered();
        status.held_bytes = self.held.bytes();
        status.replayed = self.held.replayed();
    }
}

/// What is connected to.
struct Goal {
    what: What,
    writable: bool,
    /// The size that clients know.
    at_least: Option<u64>,
    path: PathBuf,
}

/// Until there is a connection to a session of the ownership; an error says that there will be none.
async fn keep_connecting(
    weftd: Rc<Weftd>,
    goal: Goal,
    turn: Arc<Mutex<()>>,
    status: Rc<RefCell<Status>>,
) -> Result<(Link, Export), String> {
    let mut again = AGAIN_FIRST;
    loop {
        let appeared = weftd.appeared.notified();
        match try_to_connect(&weftd, &goal, &turn).await {
            Ok(linked) => return Ok(linked),
            Err(Trouble::Taken(body)) => return Err(Trouble::Taken(body).text()),
            Err(trouble) => status.borrow_mut().waits_for = Some(trouble.text()),
        }
        tokio::select! {
            () = appeared => again = AGAIN_FIRST,
            () = tokio::time::sleep(again) => again = (again * 2).min(AGAIN_MAX),
        }
    }
}

async fn try_to_connect(
    weftd: &Weftd,
    goal: &Goal,
    turn: &Arc<Mutex<()>>,
) -> Result<(Link, Export), Trouble> {
    let (path, _) = weftd.open(goal.what, Some(&goal.path)).await?;
    let turn = turn.clone().lock_owned().await;
    let away = |why: String| Trouble::Away(format!("{}: {why}", path.display()));
    let made = link::connect(&path, &goal.what.name(), turn).await;
    let (link, export) = made.map_err(|(error, _)| away(error.to_string()))?;
    if export.is_read_only() && goal.writable {
        return Err(away("the export is read-only".to_owned()));
    }
    if let Some(size) = goal.at_least.filter(|size| export.size < *size) {
        return Err(away(format!("the export has {} bytes, the guest knows {size}", export.size)));
    }
    Ok((link, export))
}

async fn client_ready(client: Option<&Client>) -> io::Result<()> {
    let Some(client) = client else { return pending().await };
    let reads = client.connection.as_ref().is_none_or(Connection::wants_read);
    let sends = client.sending.is_some();
    if !reads && !sends {
        // Its budget is full: nothing is waited for but its end.
        loop {
            tokio::time::sleep(LOOK).await;
            if has_hung_up(&client.stream) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }
    either_ready(&client.stream, reads, sends).await
}

async fn link_ready(link: Option<&Link>) -> io::Result<()> {
    let Some(link) = link else { return pending().await };
    either_ready(&link.stream, true, link.wire.is_full()).await
}

/// Until the socket can be read, or written where that is waited for.
async fn either_ready(stream: &UnixStream, reads: bool, sends: bool) -> io::Result<()> {
    poll_fn(|cx| {
        if sends && let Poll::Ready(sent) = stream.poll_write_ready(cx) {
            return Poll::Ready(sent);
        }
        if reads { stream.poll_read_ready(cx) } else { Poll::Pending }
    })
    .await
}

/// What there is, first into `space`, then into `scratch`; what was left there before does not matter.
///
/// A read that brings less than there was room for has emptied the socket: it is waited for then, and not asked once more.
fn receive(stream: &UnixStream, space: &mut [u8], scratch: &mut [u8]) -> io::Result<usize> {
    let behind = if space.len() < RECV_APART { RECV_BYTES } else { RECV_BEHIND };
    let scratch = &mut scratch[..behind];
    let room = space.len() + scratch.len();
    let read = if space.is_empty() {
        stream.try_read(scratch)
    } else {
        stream.try_read_vectored(&mut [IoSliceMut::new(space), IoSliceMut::new(scratch)])
    };
    if let Ok(len @ 1..) = read
        && len < room
    {
        // Nothing happens between the read and this: the thread that hears of sockets is this one. An end that was heard of
        // is not forgotten by it.
        let emptied: io::Result<()> =
            stream.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
        drop(emptied);
    }
    read
}

async fn wait_for(connecting: Option<&mut Connecting>) -> Result<(Link, Export), String> {
    match connecting {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().intersects(gone))
}

/// Where an entry's directory is.
pub(crate) fn parent(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}
