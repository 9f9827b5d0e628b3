//! The program against a stock NBD server (Debian: nbdkit), one that is honest, one that forgets, one that is tampered
//! with: the checker believes the first and finds the others out.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

struct Server(Child);

impl Server {
    fn start(socket: &Path, plugin: &[&str]) -> Server {
        let _ = std::fs::remove_file(socket);
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(socket)
            // A file's reads and writes may meet within a page: one request at a time, over all connections.
            .args(["--filter", "noparallel"])
            .args(plugin)
            .arg("serialize=all-requests")
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < deadline, "nbdkit does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Run {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Run {
    fn start(socket: &Path, history: &Path, more: &[&str]) -> Run {
        let mut process = Command::new(env!("CARGO_BIN_EXE_weft-checker"))
            .args(["run", "--blocks", "64", "--depth", "8", "--seed", "5", "--until-stdin-closes"])
            .arg("--socket")
            .arg(socket)
            .arg("--history")
            .arg(history)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let (orders, answers) = (process.stdin.take(), process.stdout.take());
        let mut run =
            Run { process, orders: orders.expect("piped"), answers: BufReader::new(answers.expect("piped")) };
        assert_eq!(run.answer()["blocks"], 64);
        run
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    fn ask(&mut self, order: Value) -> Value {
        self.orders.write_all(format!("{order}\n").as_bytes()).expect("asked");
        self.answer()
    }

    /// Until so many writes more were acknowledged.
    fn writes(&mut self, more: u64) {
        let writes = |v: &Value| v["total"]["writes"].as_u64().expect("a number");
        let before = writes(&self.ask(json!({ "op": "figures" })));
        let deadline = Instant::now() + Duration::from_secs(20);
        while writes(&self.ask(json!({ "op": "figures" }))) < before + more {
            assert!(Instant::now() < deadline, "no writes");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) -> (Value, Option<i32>) {
        let end = self.ask(json!({ "op": "stop" }));
        (end, self.process.wait().expect("ended").code())
    }
}

fn verify(history: &Path, last: Option<&Path>) -> (Value, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-checker"));
    command.arg("verify").arg("--history").arg(history);
    if let Some(socket) = last {
        command.arg("--final").arg("--socket").arg(socket);
    }
    let output = command.output().expect("ran");
    (serde_json::from_slice(&output.stdout).unwrap_or(Value::Null), output.status.code())
}

fn paths() -> (TempDir, PathBuf, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = |name| dir.path().join(name);
    let (socket, history, disk) = (path("nbd"), path("history"), path("disk"));
    File::create(&disk).and_then(|f| f.set_len(1 << 20)).expect("made");
    (dir, socket, history, disk)
}

#[test]
fn an_honest_server_is_believed_and_figures_are_told() {
    let (_dir, socket, history, _) = paths();
    let _server = Server::start(&socket, &["memory", "1M"]);
    let mut run = Run::start(&socket, &history, &[]);
    run.writes(200);
    let mark = run.ask(json!({ "op": "mark", "name": "pause" }));
    assert_eq!((&mark["window"]["name"], &mark["name"]), (&json!("start"), &json!("pause")));
    assert_eq!(run.ask(json!({ "op": "pause" })), json!({ "op": "pause", "outstanding": 0 }));
    std::thread::sleep(Duration::from_millis(300));
    let silence = run.ask(json!({ "op": "figures" }))["window"]["silence_ms"].as_f64();
    assert!(silence.expect("a number") < 250.0, "a commanded pause is no stall");
    run.ask(json!({ "op": "resume" }));
    run.writes(50);
    assert_eq!(run.ask(json!({ "op": "nonsense" }))["op"], "error");
    let (end, status) = run.end();
    assert_eq!((end["windows"].as_array().map(Vec::len), status), (Some(2), Some(0)));
    assert_eq!((&end["errors"], &end["unknown"]), (&json!(0), &json!(0)));
    assert!(end["p50_ms"].as_f64() <= end["max_ms"].as_f64() && end["zeroes"].as_u64() > Some(0), "{end}");
    let (verdict, status) = verify(&history, Some(&socket));
    assert_eq!((&verdict["lost_acks"], &verdict["nonlinear"], status), (&json!(0), &json!(0), Some(0)));
    // A second run on what the first one left.
    let second = history.with_extension("2");
    let mut run = Run::start(&socket, &second, &[]);
    run.writes(50);
    run.end();
    assert_eq!(verify(&second, Some(&socket)).1, Some(0));
}

#[test]
fn a_server_that_dies_and_remembers_is_believed_and_the_time_without_it_is_a_stall() {
    let (_dir, socket, history, disk) = paths();
    let plugin = ["file", disk.to_str().expect("UTF-8")];
    let server = Server::start(&socket, &plugin);
    let mut run = Run::start(&socket, &history, &["--reconnect"]);
    run.writes(100);
    run.ask(json!({ "op": "mark", "name": "fault" }));
    drop(server);
    std::thread::sleep(Duration::from_millis(200));
    let other = socket.with_extension("other");
    let server = Server::start(&other, &plugin);
    assert_eq!(run.ask(json!({ "op": "socket", "path": other }))["path"], json!(other));
    run.writes(100);
    let window = run.ask(json!({ "op": "mark", "name": "healed" }))["window"].clone();
    assert!(window["stall_ms"].as_f64() >= Some(200.0), "{window}");
    assert!(window["lost_connections"].as_u64() >= Some(1), "{window}");
    let (_, status) = run.end();
    assert_eq!(status, Some(0));
    let (verdict, status) = verify(&history, Some(&other));
    assert_eq!(status, Some(0), "{verdict}");
    drop(server);
}

#[test]
fn a_server_that_forgets_is_found_out() {
    let (_dir, socket, history, _) = paths();
    let server = Server::start(&socket, &["memory", "1M"]);
    let mut run = Run::start(&socket, &history, &["--reconnect"]);
    run.writes(300);
    drop(server);
    let _server = Server::start(&socket, &["memory", "1M"]);
    run.writes(5);
    run.end();
    let (verdict, status) = verify(&history, None);
    assert_eq!(status, Some(1));
    assert!(verdict["nonlinear"].as_u64() > Some(10) && verdict["lost_acks"].as_u64() > Some(0), "{verdict}");
    assert!(verdict["blocks"][0]["what"].as_str().is_some_and(|w| w.contains("read zeroes")), "{verdict}");
}

#[test]
fn what_was_tampered_with_is_found_by_the_last_reads() {
    let (_dir, socket, history, disk) = paths();
    let server = Server::start(&socket, &["file", disk.to_str().expect("UTF-8")]);
    let mut run = Run::start(&socket, &history, &[]);
    run.writes(300);
    run.end();
    drop(server);
    let file = File::options().read(true).write(true).open(&disk).expect("opened");
    let mut block = vec![0; 4096];
    // The first block that holds a stamp has lost a sector; the next one holds what belongs to the first.
    let stamped = (0..64).find(|n| {
        file.read_exact_at(&mut block, n * 4096).expect("read");
        block.starts_with(b"weftchk1")
    });
    let at = stamped.expect("a block that was written") * 4096;
    file.write_all_at(&[0; 512], at + 512).expect("written");
    file.write_all_at(&block, at + 4096).expect("written");
    let _server = Server::start(&socket, &["file", disk.to_str().expect("UTF-8")]);
    assert_eq!(verify(&history, None).1, Some(0), "the history itself is good");
    let (verdict, status) = verify(&history, Some(&socket));
    assert_eq!((&verdict["torn"], &verdict["nonlinear"], status), (&json!(1), &json!(2), Some(1)));
    let what = verdict["blocks"].to_string();
    assert!(what.contains("torn: sectors") && what.contains("misplaced: write"), "{what}");
}

#[test]
fn without_reconnecting_a_lost_connection_ends_the_run_with_a_whole_history() {
    let (_dir, socket, history, disk) = paths();
    let server = Server::start(&socket, &["file", disk.to_str().expect("UTF-8")]);
    let mut run = Run::start(&socket, &history, &[]);
    run.writes(50);
    drop(server);
    let end = run.answer();
    assert_eq!((&end["op"], &end["connection_lost"]), (&json!("end"), &json!(true)));
    assert_eq!(run.process.wait().expect("ended").code(), Some(3));
    assert_eq!(verify(&history, None).1, Some(0));
    // What was not ended in order is refused.
    let text = std::fs::read_to_string(&history).expect("read");
    let cut = text.trim_end().rsplit_once('\n').expect("lines").0;
    std::fs::write(&history, cut).expect("written");
    assert_eq!(verify(&history, None), (Value::Null, Some(2)));
}
