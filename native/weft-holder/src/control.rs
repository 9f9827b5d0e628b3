//! The control socket: what is offered, asked for by the agent and by whoever starts guests' disks on this host.
//!
//! Must always hold: whatever a client of it sends, entries and other clients don't notice; each command gets one answer.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net as std_unix;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use weft_control::frame::{AnswerLine, parse_line_of, too_long};
use weft_control::holder::{
    Command, HolderEntry, HolderHello, HolderKeepSize, HolderList, HolderOpen, HolderOpened, HolderRef,
    HolderSize, HolderTellSize,
};
use weft_control::types::{Decimal, ErrorBody, Facts};
use weft_proto::ids::VolumeId;

use crate::devices::Devices;
use crate::entry::{Entry, Offer, Order, Status, Tell, parent};
use crate::upstream::{Trouble, Weftd, What};

/// The longest path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;
/// What is offered at a time: as many volumes as weftd has open, and as many snapshots.
const ENTRIES_MAX: usize = 1000;
/// Clients at a time; further ones wait to be accepted.
const CLIENTS_MAX: usize = 64;
/// Commands of one client under way; then its socket is not read.
const COMMANDS_MAX: usize = 64;
/// The longest line of a client.
const LINE_MAX: usize = 64 * 1024;
/// The longest name of an entry, in bytes.
const ID_MAX: usize = 200;

pub(crate) const E_VALUE: &str = "E-ARG-02";
const E_SOCKET: &str = "E-HOST-08";
const E_NONE: &str = "E-HOLD-01";
pub(crate) const E_IN_USE: &str = "E-HOLD-02";
pub(crate) const E_FULL: &str = "E-HOLD-03";
pub(crate) const E_AWAY: &str = "E-HOLD-04";

#[derive(Debug)]
struct Handle {
    offer: Offer,
    status: Rc<RefCell<Status>>,
    orders: mpsc::Sender<Order>,
}

/// Everything that is offered.
#[derive(Debug)]
struct Holder {
    weftd: Rc<Weftd>,
    devices: Rc<Devices>,
    entries: RefCell<BTreeMap<String, Handle>>,
    /// Names that are being opened.
    opening: RefCell<BTreeSet<String>>,
    /// One connection at a time to what has this name, also across entries: what an older one sent may not be read after it.
    turns: RefCell<BTreeMap<String, Arc<Mutex<()>>>>,
    incarnation: u64,
}

/// Serves until the future `until` ends.
pub async fn serve(run_dir: &Path, until: impl Future<Output = ()>) -> io::Result<()> {
    let listener = bind(&run_dir.join("holder.sock"))?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let weftd = Weftd::new(run_dir)?;
    let holder = Rc::new(Holder {
        devices: Devices::found(weftd.clone()),
        weftd,
        entries: RefCell::default(),
        opening: RefCell::default(),
        turns: RefCell::default(),
        incarnation: u64::from_ne_bytes(random),
    });
    tracing::info!(run_dir = %run_dir.display(), "listening");
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    tokio::pin!(until);
    loop {
        let permit = clients.clone().acquire_owned();
        tokio::select! {
            () = &mut until => return Ok(()),
            (permit, accepted) = async { (permit.await, listener.accept().await) } => {
                let (Ok(permit), Ok((stream, _))) = (permit, accepted) else {
                    // No descriptor is left: one becomes free when a client goes.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                };
                let holder = holder.clone();
                tokio::task::spawn_local(async move {
                    // A client that is gone needs no answer.
                    let _ = holder.talk(stream).await;
                    drop(permit);
                });
            }
        }
    }
}

/// Listens on a unix socket that only this user may connect to; a leftover is replaced, another process's is not.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() > SOCKET_PATH_MAX || !path.is_absolute() {
        let what = format!("{} is no absolute path of at most {SOCKET_PATH_MAX} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    if let Some(parent) = parent(path) {
        fs::create_dir_all(parent)?;
    }
    match std_unix::UnixStream::connect(path) {
        Ok(_) => {
            let what = format!("another process listens on {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound under another name, made private, then renamed: nobody can connect in between.
    let mut beside = path.as_os_str().to_owned();
    beside.push("~");
    let beside = if beside.len() > SOCKET_PATH_MAX { path.to_owned() } else { PathBuf::from(beside) };
    if beside != path && beside.exists() {
        fs::remove_file(&beside)?;
    }
    let listener = std_unix::UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    if beside != path {
        fs::rename(&beside, path)?;
    }
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

pub(crate) fn error(code: &str, message: impl Into<String>) -> ErrorBody {
    ErrorBody { code: code.to_owned(), message: message.into(), facts: Facts::new() }
}

impl Holder {
    async fn talk(self: Rc<Self>, stream: UnixStream) -> io::Result<()> {
        let (mut input, output) = stream.into_split();
        let (output, under_way) = (Rc::new(Mutex::new(output)), Arc::new(Semaphore::new(COMMANDS_MAX)));
        let mut buffer = Vec::new();
        let mut bytes = vec![0; 8192];
        loop {
            let read = input.read(&mut bytes).await?;
            if read == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&bytes[..read]);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let permit = under_way.clone().acquire_owned().await.map_err(io::Error::other)?;
                let (holder, output) = (self.clone(), output.clone());
                tokio::task::spawn_local(async move {
                    let answer = holder.answer(&line).await;
                    // A client that is gone needs none.
                    let _ = output.lock().await.write_all(&answer.to_bytes()).await;
                    drop(permit);
                });
            }
            if buffer.len() > LINE_MAX {
                return output.lock().await.write_all(&too_long().to_bytes()).await;
            }
        }
    }

    async fn answer(self: Rc<Self>, line: &[u8]) -> AnswerLine {
        match parse_line_of(line, Command::parse) {
            Err(refusal) => refusal,
            Ok((id, command)) => match self.obey(command).await {
                Ok(result) => AnswerLine::Result { id, result },
                Err(error) => AnswerLine::Error { id: Some(id), error },
            },
        }
    }

    async fn obey(self: Rc<Self>, command: Command) -> Result<Value, ErrorBody> {
        match command {
            Command::Hello(_) => Ok(json!(HolderHello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                incarnation: Decimal(self.incarnation),
            })),
            Command::Open(open) => {
                let id = open.id.clone();
                if !self.opening.borrow_mut().insert(id.clone()) {
                    return Err(error(E_IN_USE, format!("{id:?} is being opened")));
                }
                let opened = self.open(open).await;
                self.opening.borrow_mut().remove(&id);
                opened.map(|opened| json!(opened))
            }
            Command::Close(HolderRef { id }) => {
                self.close(&id).await;
                Ok(json!({}))
            }
            Command::List(_) => Ok(json!(self.list())),
            Command::OpenDevice(open) => self.devices.open(open).await.map(|opened| json!(opened)),
            Command::CloseDevice(HolderRef { id }) => self.devices.close(&id).await.map(|()| json!({})),
            Command::ListDevices(_) => Ok(json!(self.devices.list())),
            Command::Pause(HolderRef { id }) => {
                let (done, drained) = oneshot::channel();
                self.order(&id, Order::Pause(done)).await?;
                drained
                    .await
                    .map_err(|_| error(E_NONE, format!("{id:?} was closed or resumed meanwhile")))?;
                Ok(json!({}))
            }
            Command::Resume(HolderRef { id }) => {
                self.order(&id, Order::Resume).await?;
                Ok(json!({}))
            }
            Command::TellSize(HolderTellSize { id, size }) => {
                let tell = match size {
                    HolderSize::Now => Tell::Now,
                    HolderSize::Before => Tell::Before,
                };
                self.tell(&id, tell).await
            }
            Command::KeepSize(HolderKeepSize { id, bytes }) => self.tell(&id, Tell::Bytes(bytes.0)).await,
        }
    }

    async fn order(&self, id: &str, order: Order) -> Result<(), ErrorBody> {
        let none = || error(E_NONE, format!("nothing is offered as {id:?}"));
        let orders = self.entries.borrow().get(id).map(|handle| handle.orders.clone()).ok_or_else(none)?;
        orders.send(order).await.map_err(|_| none())
    }

    async fn tell(&self, id: &str, tell: Tell) -> Result<Value, ErrorBody> {
        let (done, noted) = oneshot::channel();
        self.order(id, Order::Tell(tell, done)).await?;
        noted.await.map_err(|_| error(E_NONE, format!("{id:?} was closed meanwhile")))?;
        Ok(json!({}))
    }

    async fn close(&self, id: &str) {
        let Some(handle) = self.entries.borrow_mut().remove(id) else { return };
        let (done, closed) = oneshot::channel();
        if handle.orders.send(Order::Close(done)).await.is_ok() {
            // It is gone either way.
            let _ = closed.await;
        }
    }

    async fn open(self: &Rc<Self>, open: HolderOpen) -> Result<HolderOpened, ErrorBody> {
        let what = check(&open)?;
        if self.entries.borrow().len() >= ENTRIES_MAX && !self.entries.borrow().contains_key(&open.id) {
            return Err(error(E_FULL, format!("{ENTRIES_MAX} volumes are offered, the limit")));
        }
        // weftd says of which ownership it is: that one's requests are held, and nothing else's.
        let (path, first) = self.weftd.open(what, None).await.map_err(|trouble| match trouble {
            Trouble::Taken(body) | Trouble::Refused(body) => body,
            Trouble::Away(why) => error(E_AWAY, why),
        })?;
        let HolderOpen { id, listen, volume, snapshot, writable, .. } = open;
        let offer = Offer { id: id.clone(), listen: listen.into(), volume, first, snapshot, writable };
        let known = self.entries.borrow().get(&id).map(|handle| {
            let status = handle.status.borrow();
            (handle.offer == offer && status.lost.is_none(), status.connected && status.lost.is_none())
        });
        match known {
            Some((true, _)) => return Ok(HolderOpened { first }),
            Some((false, true)) => {
                return Err(error(E_IN_USE, format!("{id:?} is offered already, and a client is connected")));
            }
            // One of an ownership that is over, or nobody's.
            Some((false, false)) => self.close(&id).await,
            None => {}
        }
        let failed =
            |e: io::Error| error(E_SOCKET, format!("can't listen on {}: {e}", offer.listen.display()));
        let listener = bind(&offer.listen).map_err(failed)?;
        let (orders, told) = mpsc::channel(16);
        let status = Rc::new(RefCell::new(Status::default()));
        let entry = Entry {
            offer: offer.clone(),
            weftd: self.weftd.clone(),
            path,
            listener,
            turn: self.turn_of(volume, snapshot.map(|id| id.to_string())),
            status: status.clone(),
            orders: told,
        };
        tokio::task::spawn_local(entry.run());
        tracing::info!(id, %volume, ?first, writable, "offered");
        self.entries.borrow_mut().insert(id, Handle { offer, status, orders });
        Ok(HolderOpened { first })
    }

    fn turn_of(&self, volume: VolumeId, snapshot: Option<String>) -> Arc<Mutex<()>> {
        let mut turns = self.turns.borrow_mut();
        // Those that nobody uses go, so that they don't pile up.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(snapshot.unwrap_or_else(|| volume.to_string())).or_default().clone()
    }

    fn list(&self) -> HolderList {
        let entries = self.entries.borrow();
        let entries = entries.values().map(|Handle { offer, status, .. }| {
            let status = status.borrow();
            HolderEntry {
                id: offer.id.clone(),
                listen: offer.listen.display().to_string(),
                volume: offer.volume,
                first: offer.first,
                snapshot: offer.snapshot,
                writable: offer.writable,
                connected: status.connected,
                client_pid: status.client_pid,
                unanswered: u32::try_from(status.unanswered).unwrap_or(u32::MAX),
                held_bytes: Decimal(status.held_bytes),
                away_ms: status.away_since.map(|since| Decimal(ms_since(since))),
                waits_for: status.waits_for.clone(),
                lost: status.lost.clone(),
                told_size: status.told_size.map(Decimal),
                paused: status.paused,
                replayed: Decimal(status.replayed),
            }
        });
        HolderList { entries: entries.collect() }
    }
}

pub(crate) fn ms_since(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn check(open: &HolderOpen) -> Result<What, ErrorBody> {
    if open.id.is_empty() || open.id.len() > ID_MAX {
        return Err(error(E_VALUE, format!("a name has 1 to {ID_MAX} bytes")));
    }
    match (open.session, open.snapshot) {
        (Some(session), None) => Ok(What::Session(open.volume, session)),
        (None, Some(id)) if !open.writable => Ok(What::Snapshot(open.volume, id)),
        (None, Some(_)) => Err(error(E_VALUE, "a snapshot is never written")),
        _ => Err(error(E_VALUE, "either a session or a snapshot is offered")),
    }
}
