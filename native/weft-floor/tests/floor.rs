//! The floor as benchmarks use it: two peers, an initiator, and NBD in front (needs qemu-utils).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const SIZE: &str = "1048576";

/// A running program; ends with the test.
struct Running {
    child: Child,
    /// What it said after "listening on ".
    place: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn floor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-floor"));
    command.args(args);
    command
}

fn start(args: &[&str]) -> Running {
    let mut child = floor(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let place = line.trim_end().strip_prefix("listening on ").expect("a place").to_string();
    Running { child, place }
}

fn peers(dir: &Path) -> [Running; 2] {
    ["a", "b"].map(|name| {
        let file = dir.join(name);
        let file = file.to_str().unwrap();
        start(&["serve", "--listen", "127.0.0.1:0", "--file", file, "--size", SIZE])
    })
}

fn fresh_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn a_write_over_nbd_is_in_both_files_when_it_is_answered() {
    let dir = fresh_dir("nbd");
    let [a, b] = peers(&dir);
    let socket = std::env::temp_dir().join(format!("weft-floor-{}.sock", std::process::id()));
    let path = socket.to_str().unwrap();
    let front = start(&["nbd", "--socket", path, "--peer", &a.place, "--peer", &b.place, "--size", SIZE]);
    let commands = ["write -P 7 64k 32k", "write -P 9 0 4k", "read -P 7 64k 32k", "read -P 9 0 4k", "flush"];
    let output = Command::new("qemu-io")
        .args(["-f", "raw", "-t", "writeback"])
        .args(commands.iter().flat_map(|command| ["-c", command]))
        .arg(format!("nbd+unix:///?socket={}", front.place))
        .output()
        .expect("qemu-utils is needed for this test");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !said.contains("failed"), "{said}");
    let (file_a, file_b) = (std::fs::read(dir.join("a")).unwrap(), std::fs::read(dir.join("b")).unwrap());
    assert!(file_a == file_b && file_a[..4096] == [9; 4096] && file_a[65536..65536 + 32768] == [7; 32768]);
    std::fs::remove_file(socket).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_initiator_prints_its_figures() {
    let dir = fresh_dir("run");
    let [a, b] = peers(&dir);
    for rw in ["randwrite", "randread"] {
        let output = floor(&["run", "--peer", &a.place, "--peer", &b.place, "--rw", rw, "--depth", "4"])
            .args(["--seconds", "1", "--size", SIZE])
            .output()
            .unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(line.starts_with("{\"iops\":") && !line.contains("\"iops\":0,"), "{line}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn an_option_that_is_missing_is_named() {
    let output = floor(&["serve", "--listen", "127.0.0.1:0", "--file", "/nowhere/a"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("--size is missing"));
}
