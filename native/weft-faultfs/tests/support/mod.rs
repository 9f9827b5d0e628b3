//! A mount of a test's own.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The program over an empty directory; ends when dropped.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    process: Child,
}

impl Rig {
    pub(crate) fn start() -> Rig {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["backing", "mount"] {
            std::fs::create_dir(dir.path().join(name)).expect("made");
        }
        let mut process = Command::new(env!("CARGO_BIN_EXE_weft-faultfs"))
            .arg("--backing")
            .arg(dir.path().join("backing"))
            .arg("--mount")
            .arg(dir.path().join("mount"))
            .arg("--control")
            .arg(dir.path().join("control"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert!(line.contains("\"ready\":true"), "it does not mount; these tests run as root: {line:?}");
        Rig { dir, process }
    }

    /// Of something below the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mount").join(name)
    }

    pub(crate) fn create(&self, name: &str) -> File {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(name))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn sync_dir(&self, name: &str) {
        File::open(self.path(name)).and_then(|dir| dir.sync_all()).expect("flushed");
    }

    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).expect("listed");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    pub(crate) fn try_ask(&self, command: Value) -> Value {
        let mut stream = UnixStream::connect(self.dir.path().join("control")).expect("connected");
        stream.write_all(format!("{command}\n").as_bytes()).expect("asked");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("answered");
        serde_json::from_str(&line).expect("JSON")
    }

    pub(crate) fn ask(&self, command: Value) -> Value {
        let answer = self.try_ask(command.clone());
        assert_eq!(answer["ok"], true, "{command}: {answer}");
        answer
    }

    /// Cuts the power as `how` says and gives it back.
    pub(crate) fn power_cycle(&self, mut how: Value) -> Value {
        how["op"] = "power_cut".into();
        let cut = self.ask(how);
        self.ask(serde_json::json!({ "op": "power_on" }));
        cut
    }

    /// Waits until the figures are so.
    pub(crate) fn until(&self, good: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let stats = self.ask(serde_json::json!({ "op": "stats" }));
            if good(&stats) {
                return;
            }
            assert!(Instant::now() < deadline, "{stats}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.process),
            rustix::process::Signal::TERM,
        );
        let _ = self.process.wait();
    }
}

/// A block full of one byte.
pub(crate) fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}
