//! weftd, as the holder asks it: that a volume or snapshot is open, over its control socket.
//!
//! Must always hold: only what weftd says of the volume's record ends an ownership ([`Trouble::Taken`]); whatever else goes
//! wrong passes, and is asked again.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::inotify;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore};
use weft_control::frame::AnswerLine;
use weft_control::types::{
    ErrorBody, Export, NbdExport, SessionContinue, SessionOpened, SessionStatus, SnapshotOpen, SnapshotOpened,
};
use weft_proto::ids::{SessionId, SnapId, VolumeId};

/// The code of an ownership that is over (docs/errors.md).
const TAKEN: &str = "E-VOL-21";
/// weftd's answers here are short.
const ANSWER_MAX: u64 = 64 * 1024;
/// Calls at once: weftd takes 64 clients, and others have to get in.
const CALLS_MAX: usize = 16;

/// Why something can't be asked of weftd now.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Never again: somebody else has owned the volume.
    Taken(ErrorBody),
    /// weftd refuses, for now.
    Refused(ErrorBody),
    /// It isn't there, for now.
    Away(String),
}

impl Trouble {
    /// As a sentence.
    pub(crate) fn text(&self) -> String {
        match self {
            Trouble::Taken(body) | Trouble::Refused(body) => format!("{}  {}", body.code, body.message),
            Trouble::Away(why) => why.clone(),
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A session of the ownership that this one began or is.
    Session(VolumeId, SessionId),
    /// A snapshot, for reading.
    Snapshot(VolumeId, SnapId),
}

impl What {
    /// The name by which the export answers for this, and for nothing else.
    pub(crate) fn name(self) -> String {
        match self {
            What::Session(_, first) => first.to_string(),
            What::Snapshot(_, id) => id.to_string(),
        }
    }
}

/// The daemon of this host.
#[derive(Debug)]
pub(crate) struct Weftd {
    socket: PathBuf,
    calls: Semaphore,
    /// Told whenever something appears in the directory of its socket.
    pub(crate) appeared: Arc<Notify>,
}

impl Weftd {
    /// The daemon of this run directory, and the look-out for its socket.
    pub(crate) fn new(run_dir: &Path) -> io::Result<Rc<Weftd>> {
        let socket = run_dir.join("weftd.sock");
        let appeared = Arc::new(Notify::new());
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, run_dir, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
        let told = appeared.clone();
        std::thread::Builder::new().name("look-out".to_owned()).spawn(move || {
            let mut events = [0; 4096];
            loop {
                match rustix::io::read(&watch, &mut events) {
                    // What appeared does not matter: who waits tries again.
                    Ok(_) => told.notify_waiters(),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return tracing::error!(%errno, "the run directory is not watched any more"),
                }
            }
        })?;
        let weftd = Rc::new(Weftd { socket, calls: Semaphore::new(CALLS_MAX), appeared });
        Ok(weftd)
    }

    /// Has it open what is asked for, if it isn't: the export's socket, and by which session the ownership began.
    pub(crate) async fn open(
        &self,
        what: What,
        path: Option<&Path>,
    ) -> Result<(PathBuf, Option<SessionId>), Trouble> {
        let export = Export::Nbd(NbdExport { path: path.map(|path| path.display().to_string()) });
        match what {
            What::Session(volume, session) => {
                let params = SessionContinue { volume, session, export };
                let opened: SessionOpened = self.call("session.continue", json!(params)).await?;
                let path =
                    opened.path.ok_or_else(|| Trouble::Away("the session is not exported".to_owned()))?;
                Ok((path.into(), Some(opened.first)))
            }
            What::Snapshot(volume, id) => {
                let params = SnapshotOpen { volume, id, export };
                let opened: SnapshotOpened = self.call("snapshot.open", json!(params)).await?;
                Ok((opened.path.into(), None))
            }
        }
    }

    /// How many connections the export of the volume's session has.
    pub(crate) async fn clients(&self, volume: VolumeId) -> Result<u32, Trouble> {
        let shown: SessionStatus = self.call("session.show", json!({ "volume": volume })).await?;
        Ok(shown.clients)
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, params: serde_json::Value) -> Result<T, Trouble> {
        let away = |error: io::Error| Trouble::Away(format!("weftd at {}: {error}", self.socket.display()));
        let _permit = self.calls.acquire().await.map_err(|error| Trouble::Away(error.to_string()))?;
        let mut stream = UnixStream::connect(&self.socket).await.map_err(away)?;
        let line = format!("{}\n", json!({ "id": 1, "method": method, "params": params }));
        stream.write_all(line.as_bytes()).await.map_err(away)?;
        let mut answer = String::new();
        let read = BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut answer).await.map_err(away)?;
        if read == 0 || !answer.ends_with('\n') {
            return Err(away(io::ErrorKind::UnexpectedEof.into()));
        }
        let nonsense = |error: serde_json::Error| away(io::Error::new(io::ErrorKind::InvalidData, error));
        match serde_json::from_str(&answer).map_err(nonsense)? {
            AnswerLine::Result { result, .. } => serde_json::from_value(result).map_err(nonsense),
            AnswerLine::Error { error, .. } if error.code == TAKEN => Err(Trouble::Taken(error)),
            AnswerLine::Error { error, .. } => Err(Trouble::Refused(error)),
        }
    }
}
