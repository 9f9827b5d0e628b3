//! The run: one thread that keeps requests under way, notes each of them, and obeys commands on stdin.
//!
//! Must always hold:
//! * a request's call is noted before its first byte is sent, its return after its last byte came;
//! * every write that was sent is in the history, unknown if nothing else is known;
//! * nothing here waits for the server: connections are made on another thread.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::figures::{Figures, Window, ms};
use crate::history::{Head, Line, Writer};
use crate::nbd::{self, Command, ESHUTDOWN, Export, REPLY_HEAD};
use crate::stamp::{self, Value};
use crate::{BLOCK, Rng, now_ns};

/// What a run is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tried one after the other.
    pub sockets: Vec<String>,
    /// The export's name.
    pub export: String,
    /// The first block.
    pub first_block: u64,
    /// How many.
    pub blocks: u64,
    /// Requests under way at once.
    pub depth: usize,
    /// Connections that share them.
    pub connections: usize,
    /// Where choices come from.
    pub seed: u64,
    /// The history's file.
    pub history: PathBuf,
    /// How long; until stdin ends if there is none.
    pub time: Option<Duration>,
    /// Whether a lost connection is made anew.
    pub reconnect: bool,
    /// Requests a second at most.
    pub rate: Option<u64>,
}

/// What can be asked for on stdin.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    Mark { name: String },
    Figures,
    Socket { path: String },
    Pause { ms: Option<u64> },
    Resume,
    Stop,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it was asked for.
    Done,
    /// The connection was lost and was not to be made anew.
    ConnectionLost,
}

/// First wait for a server, and longest one for the answers at the end.
const PATIENCE: Duration = Duration::from_secs(30);
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// After an error, and between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(10);
/// Largest request, in blocks.
const BLOCKS_MAX: u64 = 8;

/// A request under way.
struct Request {
    command: Command,
    block: u64,
    count: u64,
    id: u64,
    call: u64,
}

struct Connection {
    stream: UnixStream,
    unsent: VecDeque<u8>,
    received: Vec<u8>,
    requests: BTreeMap<u64, Request>,
}

/// A connection that another thread made, for the target of this number.
type Made = (u64, UnixStream, Export, String);

struct Run {
    options: Options,
    run: u64,
    start: u64,
    history: Writer,
    rng: Rng,
    next_id: u64,
    next_cookie: u64,
    export: Export,
    connections: Vec<Option<Connection>>,
    /// Places that wait for a connection to be made.
    connecting: Vec<bool>,
    /// Counts changes of the target: what was connected to an older one is of no use.
    target: Arc<AtomicU64>,
    made: (Sender<Made>, Receiver<Made>),
    total: Window,
    window: Window,
    windows: Vec<Figures>,
    last_good: u64,
    not_before: u64,
    sent: u64,
    paused: bool,
    /// A pause that was not answered yet: until when.
    pausing: Option<u64>,
    /// A socket command that was not answered yet.
    switching: Option<String>,
    stopping: Option<u64>,
    lost: bool,
}

/// Runs it; answers go to stdout.
pub fn run(options: Options) -> Result<Ending, String> {
    let until = now_ns() + ns(PATIENCE);
    let (mut stream, export, path) = loop {
        match connect_any(&options.sockets, &options.export, PATIENCE) {
            Ok(made) => break made,
            Err(e) if now_ns() > until => return Err(format!("{}: {e}", options.sockets.join(", "))),
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    let end = (options.first_block + options.blocks) * BLOCK as u64;
    if export.size < end {
        return Err(format!("the export has {} bytes, {end} were to be used", export.size));
    }
    let start = now_ns();
    let run = Rng(options.seed ^ start).number();
    let head = Head {
        weft_checker: 1,
        run: format!("{run:016x}"),
        first_block: options.first_block,
        blocks: options.blocks,
        seed: options.seed,
    };
    let said = |e: io::Error| format!("{}: {e}", options.history.display());
    let mut history = Writer::create(&options.history, &head, run).map_err(said)?;
    let values = nbd::read_blocks(&mut stream, options.first_block, options.blocks)
        .map_err(|e| format!("{path}: first reads: {e}"))?;
    history.push(&Line::Initial { block: options.first_block, values }).map_err(said)?;
    let connections = if export.multi_conn() { options.connections.max(1) } else { 1 };
    say(&json!({ "connected": path, "blocks": options.blocks, "connections": connections }));
    let start = now_ns();
    let mut run = Run {
        rng: Rng(options.seed),
        run,
        start,
        history,
        next_id: 1,
        next_cookie: 1,
        export,
        connections: (0..connections).map(|_| None).collect(),
        connecting: vec![false; connections],
        target: Arc::default(),
        made: channel(),
        total: Window::new("total", start),
        window: Window::new("start", start),
        windows: Vec::new(),
        last_good: start,
        not_before: 0,
        sent: 0,
        paused: false,
        pausing: None,
        switching: None,
        stopping: None,
        lost: false,
        options,
    };
    run.take(stream).map_err(|e| format!("{path}: {e}"))?;
    run.go().map_err(|e| format!("{}: {e}", run.options.history.display()))?;
    let ending = if run.lost { Ending::ConnectionLost } else { Ending::Done };
    let (history, path) = (run.history, run.options.history);
    history.end(now_ns()).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(ending)
}

fn connect_any(
    paths: &[String],
    export: &str,
    patience: Duration,
) -> io::Result<(UnixStream, Export, String)> {
    let mut last = io::Error::other("no socket to try");
    for path in paths {
        match nbd::connect(path, export, patience) {
            Ok((stream, export)) => return Ok((stream, export, path.clone())),
            Err(e) => last = e,
        }
    }
    Err(last)
}

impl Run {
    fn go(&mut self) -> io::Result<()> {
        let stdin = io::stdin();
        let mut stdin_open = true;
        let mut orders = Vec::new();
        let end = self.options.time.map(|t| self.start + ns(t));
        loop {
            let now = now_ns();
            if end.is_some_and(|e| now >= e) && self.stopping.is_none() {
                self.stop(now);
            }
            self.connect_missing();
            while let Ok((target, stream, export, path)) = self.made.1.try_recv() {
                if target != self.target.load(Ordering::Relaxed) {
                    continue;
                }
                self.connecting.iter_mut().filter(|c| **c).take(1).for_each(|c| *c = false);
                if self.take(stream).is_ok() {
                    self.export = export;
                    if self.switching.take().is_some() {
                        say(&json!({ "op": "socket", "path": path }));
                    }
                }
            }
            self.issue();
            self.settle(now_ns())?;
            if self.is_over(now_ns())? {
                return Ok(());
            }
            let mut fds = Vec::new();
            if stdin_open {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            let places: Vec<usize> =
                (0..self.connections.len()).filter(|i| self.connections[*i].is_some()).collect();
            for connection in self.connections.iter().flatten() {
                let out = if connection.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                fds.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN | out));
            }
            let wait = rustix::fs::Timespec { tv_sec: 0, tv_nsec: self.patience() };
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let stdin_ready = stdin_open && !fds[0].revents().is_empty();
            drop(fds);
            for place in places {
                self.serve(place)?;
            }
            if stdin_ready {
                let mut bytes = [0; 4096];
                let n = rustix::io::read(&stdin, &mut bytes)?;
                orders.extend(&bytes[..n]);
                while let Some(at) = orders.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = orders.drain(..=at).collect();
                    self.obey(&line)?;
                }
                if n == 0 {
                    stdin_open = false;
                    if self.options.time.is_none() && self.stopping.is_none() {
                        self.stop(now_ns());
                    }
                }
            }
        }
    }

    /// Nanoseconds to wait for anything: less when something is due that no descriptor tells of.
    fn patience(&self) -> i64 {
        if self.connecting.contains(&true) || self.not_before > 0 || self.options.rate.is_some() {
            2_000_000
        } else {
            50_000_000
        }
    }

    fn obey(&mut self, line: &[u8]) -> io::Result<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let order = match serde_json::from_slice(line) {
            Ok(order) => order,
            Err(e) => {
                say(&json!({ "op": "error", "error": e.to_string() }));
                return Ok(());
            }
        };
        let now = now_ns();
        match order {
            Order::Mark { name } => {
                self.history.push(&Line::Mark { at: now, name: name.clone() })?;
                let window = self.close_window(&name, now);
                say(&json!({ "op": "mark", "name": name, "at_ms": ms(now - self.start), "window": window }));
            }
            Order::Figures => {
                self.age(now);
                let outstanding = self.outstanding();
                let mut total = self.total.clone();
                total.absorb(&self.window);
                say(&json!({
                    "op": "figures",
                    "total": total.figures(self.start, now, outstanding),
                    "window": self.window.figures(self.start, now, outstanding),
                }));
            }
            Order::Socket { path } => {
                self.target.fetch_add(1, Ordering::Relaxed);
                self.options.sockets = vec![path.clone()];
                self.options.reconnect = true;
                self.connecting.fill(false);
                self.switching = Some(path);
                for place in 0..self.connections.len() {
                    self.lose(place)?;
                }
            }
            Order::Pause { ms } => {
                self.paused = true;
                self.pausing = Some(now + ms.unwrap_or(5000) * 1_000_000);
            }
            Order::Resume => {
                if self.paused {
                    self.paused = false;
                    self.last_good = now;
                }
                self.pausing = None;
                say(&json!({ "op": "resume" }));
            }
            Order::Stop => self.stop(now),
        }
        Ok(())
    }

    fn stop(&mut self, now: u64) {
        self.stopping = Some(now + ns(LAST_ANSWERS));
    }

    /// Answers commands that waited for requests to end.
    fn settle(&mut self, now: u64) -> io::Result<()> {
        if let Some(until) = self.pausing
            && (self.outstanding() == 0 || now >= until)
        {
            self.pausing = None;
            say(&json!({ "op": "pause", "outstanding": self.outstanding() }));
        }
        Ok(())
    }

    fn is_over(&mut self, now: u64) -> io::Result<bool> {
        let stopped = self.stopping.is_some_and(|until| self.outstanding() == 0 || now >= until);
        if !stopped && !self.lost {
            return Ok(false);
        }
        self.age(now);
        for place in 0..self.connections.len() {
            self.abandon(place, now)?;
        }
        self.close_window("end", now);
        let mut end = json!(self.total.figures(self.start, now, 0));
        end["op"] = "end".into();
        end["connection_lost"] = self.lost.into();
        end["windows"] = json!(self.windows);
        say(&end);
        Ok(true)
    }

    fn close_window(&mut self, next: &str, now: u64) -> Figures {
        self.age(now);
        let closed = std::mem::replace(&mut self.window, Window::new(next, now));
        let figures = closed.figures(self.start, now, self.outstanding());
        self.total.absorb(&closed);
        self.windows.push(figures.clone());
        figures
    }

    /// What lasts longer than this window has lasted so long already.
    fn age(&mut self, now: u64) {
        let oldest =
            self.connections.iter().flatten().flat_map(|c| c.requests.values()).map(|r| r.call).min();
        if let Some(call) = oldest {
            self.window.unanswered(now.saturating_sub(call));
        }
        if self.is_working() {
            self.window.silent(now.saturating_sub(self.last_good));
        }
    }

    fn is_working(&self) -> bool {
        !self.paused && self.stopping.is_none()
    }

    fn outstanding(&self) -> u64 {
        self.connections.iter().flatten().map(|c| c.requests.len() as u64).sum()
    }

    /// Makes connections that are missing, each on a thread of its own.
    fn connect_missing(&mut self) {
        for place in 0..self.connections.len() {
            if self.lost
                || self.stopping.is_some()
                || self.connections[place].is_some()
                || self.connecting[place]
            {
                continue;
            }
            self.connecting[place] = true;
            let (paths, export) = (self.options.sockets.clone(), self.options.export.clone());
            let (made, newest) = (self.made.0.clone(), Arc::clone(&self.target));
            let target = newest.load(Ordering::Relaxed);
            std::thread::spawn(move || {
                // Whoever waits for a server waits as long as it takes, or until another one is named.
                while newest.load(Ordering::Relaxed) == target {
                    if let Ok((stream, export, path)) = connect_any(&paths, &export, PATIENCE) {
                        let _ = made.send((target, stream, export, path));
                        return;
                    }
                    std::thread::sleep(PAUSE);
                }
            });
        }
    }

    /// A connection was made: it gets a free place.
    fn take(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let connection =
            Connection { stream, unsent: VecDeque::new(), received: Vec::new(), requests: BTreeMap::new() };
        if let Some(free) = self.connections.iter_mut().find(|c| c.is_none()) {
            *free = Some(connection);
        }
        Ok(())
    }

    /// Keeps as many requests under way as are wanted.
    fn issue(&mut self) {
        let now = now_ns();
        if now >= self.not_before {
            self.not_before = 0;
        }
        let due = self.options.rate.map(|r| {
            let elapsed_us = (now - self.start) / 1000;
            elapsed_us.saturating_mul(r) / 1_000_000 + 1
        });
        while self.is_working() && self.not_before == 0 && due.is_none_or(|due| self.sent < due) {
            let share = self.options.depth.div_ceil(self.connections.len());
            let free = |c: &Option<Connection>| c.as_ref().is_some_and(|c| c.requests.len() < share);
            let Some(place) = self.connections.iter().position(free) else { break };
            if self.outstanding() >= self.options.depth as u64 {
                break;
            }
            self.sent += 1;
            self.ask(place);
        }
    }

    /// Sends one request, of whatever kind chance says.
    fn ask(&mut self, place: usize) {
        let command = match self.rng.below(100) {
            0..44 => Command::Write,
            44..48 if self.export.flush() => Command::Flush,
            48..51 if self.export.trim() => Command::Trim,
            51..54 if self.export.write_zeroes() => Command::WriteZeroes,
            _ => Command::Read,
        };
        // Half of the requests meet in an eighth of the blocks.
        let (first, blocks) = (self.options.first_block, self.options.blocks);
        let range = if self.rng.below(2) == 0 { blocks.div_ceil(8) } else { blocks };
        let block = first + self.rng.below(range);
        let wanted = if self.rng.below(5) == 0 { 1 + self.rng.below(BLOCKS_MAX) } else { 1 };
        let count = wanted.min(first + blocks - block);
        let fua = command == Command::Write && self.export.fua() && self.rng.below(8) == 0;
        let (offset, len) = match command {
            Command::Flush => (0, 0),
            _ => (block * BLOCK as u64, u32::try_from(count).unwrap_or(0) * 4096),
        };
        let (id, cookie) = (self.next_id, self.next_cookie);
        self.next_cookie += 1;
        let mut data = Vec::new();
        if command == Command::Write {
            self.next_id += 1;
            data = vec![0; len as usize];
            for (bytes, number) in data.chunks_exact_mut(BLOCK).zip(block..) {
                stamp::fill(bytes, number, self.run, id);
            }
        }
        let Some(connection) = self.connections[place].as_mut() else { return };
        let call = now_ns();
        connection.requests.insert(cookie, Request { command, block, count, id, call });
        connection.unsent.extend(nbd::request(command, fua, cookie, offset, len));
        connection.unsent.extend(data);
        // What does not go now goes when the socket takes it; an error is seen when it is read.
        let _ = connection.send();
    }

    /// Sends and receives what can be.
    fn serve(&mut self, place: usize) -> io::Result<()> {
        let Some(connection) = self.connections[place].as_mut() else { return Ok(()) };
        let alive = connection.send().and_then(|()| connection.receive());
        let mut shut = false;
        // Answers that came before the end count.
        loop {
            let Some(connection) = self.connections[place].as_mut() else { return Ok(()) };
            match connection.next_answer() {
                Ok(Some((error, request, data))) => {
                    shut |= error == ESHUTDOWN;
                    self.answered(error, &request, &data)?;
                }
                Ok(None) => break,
                Err(_) => {
                    shut = true;
                    break;
                }
            }
        }
        if shut || !matches!(alive, Ok(true)) { self.lose(place) } else { Ok(()) }
    }

    fn answered(&mut self, error: u32, request: &Request, data: &[u8]) -> io::Result<()> {
        let now = now_ns();
        self.window.answered(now - request.call);
        if error != 0 {
            self.window.counts().errors += 1;
            self.not_before = now + ns(PAUSE);
            return self.unknown(request);
        }
        if self.is_working() {
            self.window.silent(now - self.last_good);
        }
        self.last_good = now;
        let counts = self.window.counts();
        let line = match request.command {
            Command::Flush => {
                counts.flushes += 1;
                return Ok(());
            }
            Command::Read => {
                counts.reads += 1;
                let values = data.chunks_exact(BLOCK).zip(request.block..);
                let values: Vec<Value> = values.map(|(b, number)| stamp::read(b, number)).collect();
                Line::Read { call: request.call, ret: now, block: request.block, values }
            }
            Command::Write => {
                counts.writes += 1;
                request.write_line(Some(now))
            }
            Command::Trim | Command::WriteZeroes => {
                counts.zeroes += 1;
                request.write_line(Some(now))
            }
        };
        self.history.push(&line)
    }

    /// Nobody knows what became of it.
    fn unknown(&mut self, request: &Request) -> io::Result<()> {
        match request.command {
            Command::Read | Command::Flush => Ok(()),
            Command::Write | Command::Trim | Command::WriteZeroes => {
                self.window.counts().unknown += 1;
                self.history.push(&request.write_line(None))
            }
        }
    }

    /// A connection ended, or is given up.
    fn lose(&mut self, place: usize) -> io::Result<()> {
        self.lost |= !self.options.reconnect;
        if self.connections[place].is_some() {
            self.window.counts().lost_connections += 1;
        }
        self.abandon(place, now_ns())
    }

    fn abandon(&mut self, place: usize, now: u64) -> io::Result<()> {
        let Some(connection) = self.connections[place].take() else { return Ok(()) };
        for request in connection.requests.values() {
            self.window.unanswered(now - request.call);
            self.unknown(request)?;
        }
        Ok(())
    }
}

impl Request {
    fn write_line(&self, ret: Option<u64>) -> Line {
        let Request { block, count, id, call, .. } = *self;
        match self.command {
            Command::Write => Line::Write { call, ret, block, count, id },
            _ => Line::Zero { call, ret, block, count },
        }
    }
}

impl Connection {
    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.as_slices().0) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes what has come; false at the end.
    fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 1 << 16];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(n) => self.received.extend(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
    }

    /// The next whole answer: its error, what it answers, and what was read.
    fn next_answer(&mut self) -> io::Result<Option<(u32, Request, Vec<u8>)>> {
        let Some(head) = self.received.first_chunk::<REPLY_HEAD>() else { return Ok(None) };
        let (error, cookie) = nbd::reply(head)?;
        let Some(request) = self.requests.get(&cookie) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing"));
        };
        let reads = error == 0 && request.command == Command::Read;
        let len = if reads { usize::try_from(request.count).unwrap_or(0) * BLOCK } else { 0 };
        if self.received.len() < REPLY_HEAD + len {
            return Ok(None);
        }
        let data = self.received[REPLY_HEAD..REPLY_HEAD + len].to_vec();
        self.received.drain(..REPLY_HEAD + len);
        Ok(self.requests.remove(&cookie).map(|request| (error, request, data)))
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn say(line: &Json) {
    // Whoever doesn't listen any more has the history.
    let _ = writeln!(io::stdout().lock(), "{line}");
}
