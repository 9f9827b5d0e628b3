//! The control socket's thread: one JSON object per line, to the reactor and back.
//!
//! Must always hold:
//! * whatever a client sends, or however it stops reading, other clients and the reactor don't notice;
//! * each command gets exactly one answer, in whatever order they become known;
//! * a client is bounded: in connections, in the length of a line, in commands under way, in unread bytes.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net as std_unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;
use weft_control::frame::{self, AnswerLine, LINE_MAX, parse_line};
use weft_control::methods::Command;
use weft_control::types::Event;

use crate::errors::{Code, Failure};
use crate::mail::{ControlRequest, Mail, Mailbox};

/// The longest path of a unix socket (sun_path has 108 bytes, the last one zero).
pub const SOCKET_PATH_MAX: usize = 107;
/// Clients at a time; further ones wait to be accepted.
const CLIENTS_MAX: usize = 64;
/// Commands of one client under way; then its socket is not read.
const COMMANDS_MAX: usize = 64;
/// A client that takes nothing for so long while there is something to say is dropped.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// Events that a client may be behind; then its connection is closed, and it asks anew.
const EVENTS_BEHIND_MAX: usize = 1024;

/// Where events go: to every client that asked for them.
#[derive(Clone, Debug)]
pub struct EventSender(broadcast::Sender<Arc<Event>>);

impl EventSender {
    /// Tells every client that wants to know.
    pub fn send(&self, event: Event) {
        // No receiver is no error.
        let _ = self.0.send(Arc::new(event));
    }

    /// True when somebody wants to know.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.receiver_count() > 0
    }
}

/// Makes the socket and starts the thread, which also turns SIGTERM and SIGINT into [`Mail::Stop`].
pub fn spawn(path: &Path, mailbox: Mailbox) -> Result<EventSender, Failure> {
    let listener = bind(path)?;
    let (events, _) = broadcast::channel(EVENTS_BEHIND_MAX);
    let sender = EventSender(events.clone());
    let path = path.to_owned();
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime without threads needs only an epoll descriptor");
        if let Err(error) = runtime.block_on(serve(listener, mailbox, events)) {
            tracing::error!(%error, path = %path.display(), "the control socket is not served any more");
        }
    });
    thread.map_err(|e| Failure::new(Code::PROCESS_LIMIT, format!("can't start a thread: {e}")))?;
    Ok(sender)
}

/// Listens on a unix socket that only this user may connect to. A socket that nobody listens on is a leftover and
/// is replaced; another daemon's is not.
pub fn bind(path: &Path) -> Result<std_unix::UnixListener, Failure> {
    let refuse = |why: String| {
        Failure::new(Code::SOCKET, format!("can't listen on {}: {why}", path.display()))
            .with("path", path.display().to_string())
    };
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(refuse(format!(
            "the path has {length} bytes, a unix socket's has at most {SOCKET_PATH_MAX}"
        )));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| refuse(e.to_string()))?;
    }
    match std_unix::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("another process listens on {}", path.display());
            return Err(Failure::new(Code::STATE_LOCKED, message).with("path", path.display().to_string()));
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|e| refuse(e.to_string()))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(refuse(e.to_string())),
    }
    let listener = listen_privately(path).map_err(|e| refuse(e.to_string()))?;
    listener.set_nonblocking(true).map_err(|e| refuse(e.to_string()))?;
    Ok(listener)
}

/// Bound under another name, made private, then renamed: nobody can connect in between.
fn listen_privately(path: &Path) -> io::Result<std_unix::UnixListener> {
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
    Ok(listener)
}

async fn serve(
    listener: std_unix::UnixListener,
    mailbox: Mailbox,
    events: broadcast::Sender<Arc<Event>>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let permit = clients.clone().acquire_owned();
        tokio::select! {
            _ = terminate.recv() => mailbox.send(Mail::Stop),
            _ = interrupt.recv() => mailbox.send(Mail::Stop),
            accepted = async { (permit.await, listener.accept().await) } => {
                let (permit, Ok((stream, _))) = accepted else {
                    // No descriptor is left: one becomes free when a client goes.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let client = serve_client(stream, mailbox.clone(), events.clone());
                tokio::spawn(async move {
                    client.await;
                    drop(permit);
                });
            }
        }
    }
}

async fn serve_client(stream: UnixStream, mailbox: Mailbox, events: broadcast::Sender<Arc<Event>>) {
    let (reader, writer) = stream.into_split();
    let (lines, outgoing) = mpsc::channel(COMMANDS_MAX);
    let writing = tokio::spawn(write_lines(writer, outgoing));
    read_commands(reader, &mailbox, &events, &lines).await;
    // Answers under way are still written; then the last sender is gone and the writer ends.
    drop(lines);
    let _ = writing.await;
}

async fn write_lines(mut writer: OwnedWriteHalf, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        match timeout(UNREAD_MAX, writer.write_all(&line)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Returns when the client is gone, or is to be.
async fn read_commands(
    mut reader: OwnedReadHalf,
    mailbox: &Mailbox,
    events: &broadcast::Sender<Arc<Event>>,
    lines: &mpsc::Sender<Vec<u8>>,
) {
    let under_way = Arc::new(Semaphore::new(COMMANDS_MAX));
    let (behind, mut fell_behind) = mpsc::channel::<()>(1);
    let mut told = false;
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let from = buffer.len();
        let read = tokio::select! {
            read = reader.read_buf(&mut buffer) => read,
            _ = fell_behind.recv() => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let mut start = 0;
        let mut search = from;
        while let Some(end) = buffer[search..].iter().position(|b| *b == b'\n').map(|i| search + i) {
            let line = &buffer[start..end];
            start = end + 1;
            search = start;
            if line.len() > LINE_MAX {
                let _ = lines.send(frame::too_long().to_bytes()).await;
                return;
            }
            let command = match parse_line(line) {
                Ok(command) => command,
                Err(answer) => {
                    if lines.send(answer.to_bytes()).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            if command.command == Command::Events(weft_control::types::Nothing {}) {
                let done = AnswerLine::Result { id: command.id, result: serde_json::json!({}) };
                if lines.send(done.to_bytes()).await.is_err() {
                    return;
                }
                if !told {
                    told = true;
                    tokio::spawn(forward_events(events.subscribe(), lines.clone(), behind.clone()));
                }
                continue;
            }
            let permit = under_way.clone().acquire_owned().await;
            let (answer, answered) = oneshot::channel();
            mailbox.send(Mail::Control(ControlRequest { command: command.command, answer }));
            let lines = lines.clone();
            let id = command.id;
            tokio::spawn(async move {
                let stopping = || Failure::new(Code::STOPPING, "weftd is stopping").into_body();
                let line = match answered.await.unwrap_or_else(|_| Err(stopping())) {
                    Ok(result) => AnswerLine::Result { id, result },
                    Err(error) => AnswerLine::Error { id: Some(id), error },
                };
                let _ = lines.send(line.to_bytes()).await;
                drop(permit);
            });
        }
        buffer.drain(..start);
        if buffer.len() > LINE_MAX {
            let _ = lines.send(frame::too_long().to_bytes()).await;
            return;
        }
    }
}

async fn forward_events(
    mut events: broadcast::Receiver<Arc<Event>>,
    lines: mpsc::Sender<Vec<u8>>,
    behind: mpsc::Sender<()>,
) {
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    if lines.send(frame::event_to_bytes(&event)).await.is_err() {
                        return;
                    }
                }
                Err(_) => {
                    let _ = behind.send(()).await;
                    return;
                }
            },
            () = behind.closed() => return,
        }
    }
}
