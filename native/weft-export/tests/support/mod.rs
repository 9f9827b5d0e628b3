//! A volume in memory behind an NBD server on a unix socket: the least daemon that real clients can talk to.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use weft_export::nbd::{Connection, ExportInfo, Limits};
use weft_proto::guest::{GuestError, GuestOp, GuestReply};
use weft_proto::ids::SnapId;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{BLOCK, HeapPayload, Payload};

/// Blocks of 4 KiB, each of a kind, as a session shows them.
pub(crate) struct Memory {
    bytes: Vec<u8>,
    kinds: Vec<Option<Hole>>,
    pub(crate) writes: u64,
    pub(crate) fua_writes: u64,
    pub(crate) flushes: u64,
    pub(crate) zeroes: u64,
    pub(crate) discards: u64,
    pub(crate) kinds_asked: u64,
    /// Writes until the session loses the volume.
    pub(crate) fenced_after_writes: Option<u64>,
}

impl Memory {
    fn new(size: u64) -> Memory {
        let blocks = usize::try_from(size.div_ceil(BLOCK)).unwrap();
        Memory {
            bytes: vec![0; usize::try_from(size).unwrap()],
            kinds: vec![Some(Hole::Absent); blocks],
            writes: 0,
            fua_writes: 0,
            flushes: 0,
            zeroes: 0,
            discards: 0,
            kinds_asked: 0,
            fenced_after_writes: None,
        }
    }

    fn execute(&mut self, op: GuestOp<HeapPayload>) -> GuestReply<HeapPayload> {
        match op {
            GuestOp::Read { offset, len } => {
                let mut at = usize::try_from(offset).unwrap();
                let extents = self.runs(offset, len).into_iter().map(|(len, kind)| {
                    let start = at;
                    at += usize::try_from(len).unwrap();
                    match kind {
                        None => {
                            Extent::Data { crcs: Vec::new(), data: self.bytes[start..at].to_vec().into() }
                        }
                        Some(kind) => Extent::Hole { len, kind },
                    }
                });
                GuestReply::Data(extents.collect())
            }
            GuestOp::Kinds { offset, len } => {
                self.kinds_asked += 1;
                GuestReply::Kinds(self.runs(offset, len))
            }
            GuestOp::Changed { offset, len, .. } => {
                let runs = self.runs(offset, len).into_iter().map(|(len, kind)| (len, kind.is_none()));
                GuestReply::Changed { runs: runs.collect(), exact: true }
            }
            GuestOp::Write { offset, data, fua } => {
                self.writes += 1;
                self.fua_writes += u64::from(fua);
                if self.fenced_after_writes.is_some_and(|limit| self.writes > limit) {
                    return GuestReply::Failed(GuestError::Fenced);
                }
                let start = usize::try_from(offset).unwrap();
                self.bytes[start..start + data.len()].copy_from_slice(data.bytes());
                for block in offset / BLOCK..(offset + data.len() as u64).div_ceil(BLOCK) {
                    self.kinds[usize::try_from(block).unwrap()] = None;
                }
                GuestReply::Done
            }
            GuestOp::Flush => {
                self.flushes += 1;
                GuestReply::Done
            }
            GuestOp::Zero { offset, len, discard, .. } => {
                self.discards += u64::from(discard);
                self.zeroes += u64::from(!discard);
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                self.bytes[range].fill(0);
                for block in offset.div_ceil(BLOCK)..(offset + len) / BLOCK {
                    self.kinds[usize::try_from(block).unwrap()] = Some(Hole::Zero);
                }
                GuestReply::Done
            }
        }
    }

    fn runs(&self, offset: u64, len: u64) -> Vec<(u64, Option<Hole>)> {
        let mut runs: Vec<(u64, Option<Hole>)> = Vec::new();
        let mut at = offset;
        while at < offset + len {
            let kind = self.kinds[usize::try_from(at / BLOCK).unwrap()];
            let end = ((at / BLOCK + 1) * BLOCK).min(offset + len);
            match runs.last_mut() {
                Some((run, last)) if *last == kind => *run += end - at,
                _ => runs.push((end - at, kind)),
            }
            at = end;
        }
        runs
    }
}

/// A served volume; its directory goes with it.
pub(crate) struct Server {
    dir: PathBuf,
    pub(crate) memory: Arc<Mutex<Memory>>,
}

impl Server {
    pub(crate) fn start(name: &str, size: u64) -> Server {
        Server::start_since(name, size, Vec::new())
    }

    /// With what has changed since some snapshots: what is data.
    pub(crate) fn start_since(name: &str, size: u64, since: Vec<SnapId>) -> Server {
        let dir = std::env::temp_dir().join(format!("weft-export-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let memory = Arc::new(Mutex::new(Memory::new(size)));
        let shared = memory.clone();
        std::thread::spawn(move || {
            for (tag, stream) in (0..).zip(listener.incoming()) {
                let (Ok(stream), memory, since) = (stream, shared.clone(), since.clone()) else { return };
                let export = ExportInfo {
                    name: "vm1-root".into(),
                    aliases: Vec::new(),
                    description: "in memory".into(),
                    size,
                    read_only: false,
                    multi_conn: true,
                    since: since.clone(),
                };
                std::thread::spawn(move || serve(tag, stream, export, &memory));
            }
        });
        Server { dir, memory }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path().display())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn serve(tag: u32, mut stream: UnixStream, export: ExportInfo, memory: &Mutex<Memory>) {
    let mut connection: Connection<HeapPayload> = Connection::new(tag, export, Limits::default());
    let mut buffer = vec![0; 256 * 1024];
    loop {
        while let Some(request) = connection.poll_request() {
            let reply = memory.lock().unwrap().execute(request.op);
            let is_fenced = matches!(reply, GuestReply::Failed(GuestError::Fenced));
            connection.complete(request.id, reply);
            if is_fenced {
                connection.shutdown_fenced();
            }
        }
        while let Some(gather) = connection.poll_transmit(64) {
            let mut sent = 0;
            while sent < gather.len() {
                let slices: Vec<_> = gather.slices_from(sent).collect();
                match stream.write_vectored(&slices) {
                    Ok(len) if len > 0 => sent += len,
                    _ => {
                        connection.handle_eof();
                        break;
                    }
                }
            }
            connection.handle_transmitted(gather);
        }
        if connection.ending().is_some() {
            return;
        }
        assert!(connection.wants_read(), "everything was answered and sent");
        match stream.read(&mut buffer) {
            Ok(len) if len > 0 => connection.handle_bytes(&buffer[..len]),
            _ => connection.handle_eof(),
        }
    }
}

/// Runs a client that must be there, for at most a minute, and gives what it said.
pub(crate) fn run(program: &str, args: &[&str]) -> Outcome {
    let output = Command::new("timeout")
        .arg("60")
        .arg(program)
        .args(args)
        .current_dir(std::env::temp_dir())
        .output()
        .expect("coreutils' timeout");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.code() != Some(127), "{program} is needed for this test: {}", text(&output.stderr));
    Outcome {
        said: format!("{}{}", text(&output.stdout), text(&output.stderr)),
        success: output.status.success(),
        command: format!("{program} {}", args.join(" ")),
    }
}

pub(crate) struct Outcome {
    pub(crate) said: String,
    pub(crate) success: bool,
    command: String,
}

impl Outcome {
    /// What it said, given that it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.success, "{} failed: {}", self.command, self.said);
        self.said
    }
}

/// A file of `len` bytes that aren't all alike, with a hole in the middle.
pub(crate) fn make_file(path: &Path, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).take(len).collect();
    bytes[len / 4..len / 2].fill(0);
    std::fs::write(path, &bytes).unwrap();
    bytes
}
