//! The state directory: its lock, `host.json`, `watermark.json`.
//!
//! Must always hold:
//! * one daemon per state directory (a restarted daemon may then take its own sessions back, protocol.md R9);
//! * a file is replaced as a whole, and durable before its content is relied on;
//! * the watermark never goes back (R11).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use weft_control::types::{Configure, Decimal};
use weft_proto::ids::{ClusterId, HostId};
use weft_proto::message::Watermark;

use crate::errors::{Code, Failure};

/// Fewest open files that a host needs: 500 volumes with their sockets, and an LRU of segments.
pub const OPEN_FILES_MIN: u64 = 4096;

/// The state directory, locked by this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for as long as the process lives.
    _lock: File,
}

/// `host.json`: who this host is. Written by the agent, or by `configure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFile {
    /// The cluster.
    pub cluster: ClusterId,
    /// This host.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Its address in the cluster.
    pub address: String,
    /// Client URLs of the store.
    pub etcd: Vec<String>,
    /// Where to read the kernel's boot id instead of /proc: several hosts on one machine reboot separately.
    #[serde(rename = "bootIdFile", default, skip_serializing_if = "Option::is_none")]
    pub boot_id_file: Option<PathBuf>,
    /// What else its writer keeps there.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl From<Configure> for HostFile {
    fn from(c: Configure) -> Self {
        let Configure { cluster, host, name, address, endpoints } = c;
        HostFile { cluster, host, name, address, etcd: endpoints, boot_id_file: None, other: BTreeMap::new() }
    }
}

#[derive(Serialize, Deserialize)]
struct WatermarkFile {
    cluster: ClusterId,
    incarnation: Decimal,
    revision: Decimal,
}

impl StateDir {
    /// Makes the directory if needed and locks it.
    pub fn open(path: &Path) -> Result<StateDir, Failure> {
        fs::create_dir_all(path).map_err(|e| file_failure("make", path, &e))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|e| file_failure("open", &lock_path, &e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            if e == rustix::io::Errno::WOULDBLOCK {
                let message = format!("another weftd uses the state directory {}", path.display());
                Failure::new(Code::STATE_LOCKED, message).with("path", path.display().to_string())
            } else {
                file_failure("lock", &lock_path, &io::Error::from(e))
            }
        })?;
        Ok(StateDir { path: path.to_owned(), _lock: lock })
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `host.json`; none before the host is part of a cluster.
    pub fn read_host(&self) -> Result<Option<HostFile>, Failure> {
        self.read_json("host.json")
    }

    /// Replaces `host.json`, durably.
    pub fn write_host(&self, host: &HostFile) -> Result<(), Failure> {
        self.write_json("host.json", host)
    }

    /// Reads the watermark; none before the first read of the store. A damaged file is refused: forgetting how far
    /// the store had advanced would let a store that went back be believed.
    pub fn read_watermark(&self) -> Result<Option<Watermark>, Failure> {
        let file: Option<WatermarkFile> = self.read_json("watermark.json")?;
        Ok(file.map(|f| Watermark {
            cluster: f.cluster,
            incarnation: f.incarnation.0,
            revision: f.revision.0,
        }))
    }

    /// Replaces the watermark, durably.
    pub fn write_watermark(&self, watermark: Watermark) -> Result<(), Failure> {
        let Watermark { cluster, incarnation, revision } = watermark;
        let file = WatermarkFile { cluster, incarnation: Decimal(incarnation), revision: Decimal(revision) };
        self.write_json("watermark.json", &file)
    }

    /// Reads a JSON file of the state directory; none if it isn't there.
    pub fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>, Failure> {
        let path = self.path.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file_failure("read", &path, &e)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| file_failure("understand", &path, &io::Error::other(e)))
    }

    /// Replaces a JSON file of the state directory: written beside, made durable, renamed, the directory made
    /// durable.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Failure> {
        let mut bytes = serde_json::to_vec_pretty(value).expect("these types are always JSON");
        bytes.push(b'\n');
        self.replace(Path::new(name), &bytes, 0o644)
    }

    /// The same with these bytes, for a path below the state directory whose parent exists.
    pub fn replace(&self, name: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
        let path = self.path.join(name);
        let mut beside = path.clone().into_os_string();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let write = || -> io::Result<()> {
            // One that a crash left behind may have another mode.
            match fs::remove_file(&beside) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(path.parent().unwrap_or(&self.path))?.sync_all()
        };
        write().map_err(|e| file_failure("write", &path, &e))
    }
}

/// The kernel's boot id: another one after each boot (protocol.md R8).
pub fn boot_id(file: Option<&Path>) -> Result<u128, Failure> {
    let path = file.unwrap_or(Path::new("/proc/sys/kernel/random/boot_id"));
    let text = fs::read_to_string(path).map_err(|e| file_failure("read", path, &e))?;
    let id: HostId = text
        .trim()
        .parse()
        .map_err(|e| file_failure("understand", path, &io::Error::other(format!("{e}"))))?;
    Ok(id.0)
}

/// Raises the limit of open files as far as allowed; refuses when that is too few.
pub fn raise_open_files() -> Result<u64, Failure> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is "no limit".
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        tracing::warn!(?current, ?maximum, "the limit of open files could not be raised");
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now < OPEN_FILES_MIN {
        let message =
            format!("the limit of open files is {now}, at least {OPEN_FILES_MIN} are needed (LimitNOFILE=)");
        return Err(Failure::new(Code::PROCESS_LIMIT, message)
            .with("limit", now)
            .with("needed", OPEN_FILES_MIN));
    }
    Ok(now)
}

fn file_failure(verb: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::STATE_FILE, format!("can't {verb} {}: {error}", path.display()))
        .with("path", path.display().to_string())
        .with("cause", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_until_the_first_has_ended() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = StateDir::open(dir.path()).expect("free");
        let refusal = StateDir::open(dir.path()).expect_err("held");
        assert_eq!(refusal.code, Code::STATE_LOCKED);
        assert!(refusal.message.contains(&dir.path().display().to_string()), "{refusal}");
        drop(first);
        StateDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn the_watermark_is_read_back_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = StateDir::open(dir.path()).expect("free");
        assert_eq!(state.read_watermark().expect("none yet"), None);
        let mark = Watermark { cluster: ClusterId(5), incarnation: 2, revision: u64::MAX };
        state.write_watermark(mark).expect("written");
        assert_eq!(state.read_watermark().expect("read"), Some(mark));
        fs::write(dir.path().join("watermark.json"), "{\"cluster\":").expect("damaged");
        assert_eq!(state.read_watermark().expect_err("damaged").code, Code::STATE_FILE);
    }

    #[test]
    fn the_host_file_of_an_agent_is_understood() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = StateDir::open(dir.path()).expect("free");
        assert_eq!(state.read_host().expect("none yet"), None);
        let text = r#"{"cluster":"00000000-0000-4000-8000-000000000001","host":"00000000-0000-4000-8000-000000000002",
            "name":"h1","since":7,"address":"10.0.0.1","etcd":["http://10.0.0.1:7402"],"bootIdFile":"/x/boot_id"}"#;
        fs::write(dir.path().join("host.json"), text).expect("written");
        let host = state.read_host().expect("read").expect("there");
        assert_eq!((host.name.as_str(), host.etcd.len()), ("h1", 1));
        assert_eq!(host.boot_id_file.as_deref(), Some(Path::new("/x/boot_id")));
        assert_eq!(host.other.get("since"), Some(&7.into()), "what this version does not know is kept");
    }

    #[test]
    fn the_boot_id_of_the_kernel_or_of_a_file_is_read() {
        assert_ne!(boot_id(None).expect("the kernel's"), 0);
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("boot_id");
        fs::write(&path, "00000000-0000-0000-0000-00000000002a\n").expect("written");
        assert_eq!(boot_id(Some(&path)).expect("ours"), 42);
        fs::write(&path, "yesterday").expect("written");
        assert_eq!(boot_id(Some(&path)).expect_err("no boot id").code, Code::STATE_FILE);
    }
}
