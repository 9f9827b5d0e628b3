//! A real etcd on loopback, and a mailbox to wait on.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod host;
pub(crate) mod line;
pub(crate) mod pki;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use pki::Pki;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use weftd::mail::{Mail, Mailbox};

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// One etcd member with an empty store; killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) url: String,
    /// Where its certificate lies.
    tls: Option<PathBuf>,
    _data: Option<TempDir>,
}

impl Etcd {
    pub(crate) fn start() -> Etcd {
        let data = memory_dir();
        let mut etcd = Etcd::start_in(data.path(), free_port());
        etcd._data = Some(data);
        etcd
    }

    /// With mutual TLS for clients and peers.
    pub(crate) fn start_tls(pki: &Pki) -> Etcd {
        let data = memory_dir();
        let mut etcd = Etcd::run(data.path(), free_port(), "https", &pki.etcd_flags(data.path()));
        etcd.tls = Some(data.path().to_owned());
        etcd._data = Some(data);
        etcd
    }

    /// `etcdctl` at this member, as one who may do everything.
    pub(crate) fn etcdctl(&self) -> Command {
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]);
        if let Some(dir) = &self.tls {
            let own = dir.join("etcd.pem");
            etcdctl.arg("--cacert").arg(dir.join("peers.pem")).arg("--cert").arg(&own).arg("--key").arg(&own);
        }
        etcdctl
    }

    /// With data of an earlier run, or at a port of its own.
    pub(crate) fn start_in(data: &Path, port: u16) -> Etcd {
        Etcd::run(data, port, "http", &[])
    }

    fn run(data: &Path, port: u16, scheme: &str, more: &[String]) -> Etcd {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let peer = format!("{scheme}://127.0.0.1:{}", free_port());
        let child = Command::new("etcd")
            .args(["--data-dir", data.join("etcd").to_str().expect("UTF-8"), "--name", "m"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}"), "--heartbeat-interval", "100"])
            .args(["--election-timeout", "500", "--log-level", "error"])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("etcd is installed");
        assert!(wait_for_port(port, &mut child), "etcd did not come up on {url}");
        Etcd { child, url, tls: None, _data: None }
    }

    /// Stopped, or going on where it was.
    pub(crate) fn halt(&self, halted: bool) {
        let signal = if halted { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).expect("signalled");
    }

    pub(crate) fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// False when the process ended instead.
fn wait_for_port(port: u16, child: &mut Child) -> bool {
    let until = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < until {
        if child.try_wait().expect("our child").is_some() {
            return false;
        }
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// A directory in memory: etcd's fsyncs then don't wait for whatever else the machine's disk does.
pub(crate) fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("temporary directory")
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port()
}

/// A mailbox that nobody needs to be woken for: the test waits on the receiver.
pub(crate) fn mailbox() -> (Mailbox, Receiver<Mail>) {
    Mailbox::new(Arc::new(|| ()))
}
