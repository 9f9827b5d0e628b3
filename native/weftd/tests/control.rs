//! The control socket's thread, with clients that behave and clients that don't.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};
use support::{PATIENCE, mailbox};
use tempfile::TempDir;
use weft_control::methods::Command;
use weft_control::types::{Decimal, Event, StoreStatus};
use weftd::control::{EventSender, SOCKET_PATH_MAX, spawn};
use weftd::errors::Code;
use weftd::mail::{ControlRequest, Mail};

struct Server {
    dir: TempDir,
    mail: Receiver<Mail>,
    events: EventSender,
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mailbox, mail) = mailbox();
        let events = spawn(&dir.path().join("weftd.sock"), mailbox).expect("a socket");
        Server { dir, mail, events }
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.dir.path().join("weftd.sock")).expect("listening");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Client { reader: BufReader::new(stream.try_clone().expect("cloned")), stream }
    }

    fn command(&self) -> ControlRequest {
        match self.mail.recv_timeout(PATIENCE).expect("a command in time") {
            Mail::Control(request) => request,
            other => panic!("{other:?}"),
        }
    }
}

struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line in time");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }
}

#[test]
fn answers_come_in_the_order_in_which_they_are_known() {
    let server = Server::start();
    let mut client = server.client();
    client.send(b"{\"id\":1,\"method\":\"hello\"}\n{\"id\":2,\"method\":\"pool.list\",\"params\":{}}\n");
    let first = server.command();
    let second = server.command();
    assert_eq!(first.command.name(), "hello");
    second.answer.send(Ok(json!({"pools": []}))).expect("wanted");
    assert_eq!(client.line(), json!({"id": 2, "result": {"pools": []}}));
    first.answer.send(Ok(json!({}))).expect("wanted");
    assert_eq!(client.line(), json!({"id": 1, "result": {}}));
}

#[test]
fn bad_lines_are_answered_and_the_connection_goes_on() {
    let server = Server::start();
    let mut client = server.client();
    client.send(b"{\n\xff\n{\"id\":1,\"method\":\"hallo\"}\n{\"id\":2,\"method\":\"why\",\"params\":{\"volume\":7}}\n");
    assert_eq!(client.line()["error"]["code"], "E-ARG-02");
    assert_eq!(client.line()["error"]["code"], "E-ARG-02");
    let unknown = client.line();
    assert_eq!((&unknown["id"], &unknown["error"]["code"]), (&json!(1), &json!("E-ARG-01")));
    assert_eq!(unknown["error"]["facts"]["near"], "hello");
    let params = client.line();
    assert_eq!((&params["id"], &params["error"]["code"]), (&json!(2), &json!("E-ARG-02")));
    client.send(b"{\"id\":3,\"method\":\"hello\"}\n");
    assert!(matches!(server.command().command, Command::Hello(_)));
}

#[test]
fn a_line_without_end_closes_its_connection_and_no_other() {
    let server = Server::start();
    let mut good = server.client();
    let mut bad = server.client();
    let chunk = vec![b'['; 1 << 20];
    for _ in 0..17 {
        // The daemon may close before it has read everything.
        if bad.stream.write_all(&chunk).is_err() {
            break;
        }
    }
    assert_eq!(bad.line()["error"]["code"], "E-ARG-02");
    good.send(b"{\"id\":9,\"method\":\"hello\"}\n");
    server.command().answer.send(Ok(json!({}))).expect("wanted");
    assert_eq!(good.line()["id"], 9);
}

#[test]
fn a_client_that_leaves_before_its_answer_disturbs_nobody() {
    let server = Server::start();
    let mut gone = server.client();
    gone.send(b"{\"id\":1,\"method\":\"hello\"}\n{\"id\":");
    let request = server.command();
    drop(gone);
    let _ = request.answer.send(Ok(json!({})));
    let mut next = server.client();
    next.send(b"{\"id\":2,\"method\":\"hello\"}\n");
    server.command().answer.send(Ok(json!({}))).expect("wanted");
    assert_eq!(next.line()["id"], 2);
}

#[test]
fn a_command_that_is_dropped_is_answered_as_stopping() {
    let server = Server::start();
    let mut client = server.client();
    client.send(b"{\"id\":1,\"method\":\"hello\"}\n");
    drop(server.command());
    assert_eq!(client.line()["error"]["code"], "E-SESS-02");
}

#[test]
fn events_reach_those_who_asked() {
    let server = Server::start();
    let mut client = server.client();
    let status = |reachable| StoreStatus {
        reachable,
        since_ms: Decimal(0),
        last_error: None,
        rolled_back: false,
        watermark: None,
        claims: Vec::new(),
    };
    server.events.send(Event::Store(status(true)));
    client.send(b"{\"id\":1,\"method\":\"events\",\"params\":{}}\n");
    assert_eq!(client.line(), json!({"id": 1, "result": {}}));
    // A command after it is a fence: the subscription is in place.
    client.send(b"{\"id\":2,\"method\":\"hello\"}\n");
    server.command().answer.send(Ok(json!({}))).expect("wanted");
    assert_eq!(client.line()["id"], 2);
    server.events.send(Event::Store(status(false)));
    let event = client.line();
    assert_eq!((&event["event"], &event["data"]["reachable"]), (&json!("store.changed"), &json!(false)));
}

#[test]
fn a_leftover_socket_is_replaced_and_a_living_one_is_not() {
    let server = Server::start();
    let path = server.dir.path().join("weftd.sock");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    let (other, _mail) = mailbox();
    assert_eq!(spawn(&path, other).expect_err("served").code, Code::STATE_LOCKED);

    let leftover = server.dir.path().join("left.sock");
    drop(UnixListener::bind(&leftover).expect("bound"));
    let (other, _mail) = mailbox();
    spawn(&leftover, other).expect("replaced");
    UnixStream::connect(&leftover).expect("listening");

    let long = server.dir.path().join("x".repeat(SOCKET_PATH_MAX));
    let (other, _mail) = mailbox();
    assert_eq!(spawn(&long, other).expect_err("too long").code, Code::SOCKET);
}
