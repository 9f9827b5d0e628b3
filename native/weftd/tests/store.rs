//! The store's thread against a real etcd.

mod support;

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use support::pki::{Authority, Pki, host_name};
use support::{Etcd, PATIENCE, free_port, mailbox, memory_dir};
use tempfile::TempDir;
use weft_proto::ids::{ClusterId, Nonce, Revision};
use weft_proto::message::Watermark;
use weftd::mail::Mail;
use weftd::state::StateDir;
use weftd::store::{
    Beside, CALL_DEADLINE, Entry, Expected, ReadError, Snapshot, StoreCredentials, StoreHandle, StoreReply,
    StoreRequest, StoreToken, SwapOutcome, Was, WatchEvent, spawn,
};

const CLUSTER: ClusterId = ClusterId(0x77);

/// Passes everything on until `marker` goes by; from then on nothing comes back.
struct Relay {
    url: String,
}

impl Relay {
    fn start(port: u16, marker: &'static [u8]) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let deaf = Arc::new(AtomicBool::new(false));
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = TcpStream::connect(("127.0.0.1", port)).expect("etcd listens");
                let (mut from, mut to) =
                    (client.try_clone().expect("cloned"), server.try_clone().expect("cloned"));
                let heard = deaf.clone();
                std::thread::spawn(move || {
                    pass(&mut from, &mut to, |bytes| {
                        if bytes.windows(marker.len()).any(|w| w == marker) {
                            heard.store(true, Ordering::SeqCst);
                        }
                        true
                    });
                });
                let (mut from, mut to, deaf) = (server, client, deaf.clone());
                std::thread::spawn(move || pass(&mut from, &mut to, |_| !deaf.load(Ordering::SeqCst)));
            }
        });
        Relay { url }
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, mut look: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0u8; 65536];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if look(&buffer[..n]) && to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// A host with its store's thread.
struct Host {
    store: StoreHandle,
    mail: Receiver<Mail>,
    state: Arc<StateDir>,
    next: u64,
    /// Replies that came while another one was awaited.
    early: RefCell<Vec<StoreReply>>,
    _dir: Option<TempDir>,
}

impl Host {
    fn new(endpoints: &[&str]) -> Host {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = Arc::new(StateDir::open(dir.path()).expect("free"));
        let (mailbox, mail) = mailbox();
        let store = spawn(state.clone(), mailbox).expect("a thread");
        let host = Host { store, mail, state, next: 0, early: RefCell::default(), _dir: Some(dir) };
        host.connect(endpoints);
        host
    }

    /// The first reply that `pick` takes.
    fn reply<T>(&self, mut pick: impl FnMut(&StoreReply) -> Option<T>) -> T {
        let mut early = self.early.borrow_mut();
        if let Some((i, found)) = early.iter().enumerate().find_map(|(i, reply)| Some((i, pick(reply)?))) {
            early.remove(i);
            return found;
        }
        loop {
            match self.mail.recv_timeout(PATIENCE).expect("a reply in time") {
                Mail::Store(reply) => match pick(&reply) {
                    Some(found) => return found,
                    None => early.push(reply),
                },
                other => panic!("{other:?}"),
            }
        }
    }

    fn connect(&self, endpoints: &[&str]) {
        let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
        self.store.send(StoreRequest::Connect { cluster: CLUSTER, endpoints });
    }

    fn show(&self, credentials: Option<StoreCredentials>) {
        self.store.send(StoreRequest::Credentials(credentials));
        self.store.send(StoreRequest::Confirm(true));
    }

    fn token(&mut self) -> StoreToken {
        self.next += 1;
        StoreToken(self.next)
    }

    /// Tried until its outcome is known: a busy machine may need more than 300 ms.
    fn swap(&mut self, key: &str, expected: Option<Expected>, value: &str) -> SwapOutcome {
        until_known(|| self.swap_once(key, expected.clone(), value))
    }

    fn swap_once(&mut self, key: &str, expected: Option<Expected>, value: &str) -> SwapOutcome {
        self.swap_with(key, expected, value, Vec::new())
    }

    fn swap_with(
        &mut self,
        key: &str,
        expected: Option<Expected>,
        value: &str,
        beside: Vec<Beside>,
    ) -> SwapOutcome {
        let token = self.token();
        let value = Some(value.as_bytes().to_vec());
        self.store.send(StoreRequest::Swap { token, key: key.to_owned(), expected, value, beside });
        self.swapped(token)
    }

    fn swapped(&self, token: StoreToken) -> SwapOutcome {
        self.reply(|reply| match reply {
            StoreReply::Swapped { token: t, outcome } if *t == token => Some(outcome.clone()),
            _ => None,
        })
    }

    /// Tried until the store answers.
    fn read(&mut self, keys: &[&str]) -> Result<Snapshot, ReadError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read_once(keys) {
                Err(ReadError::Away(why)) => assert!(Instant::now() < until, "{why}"),
                result => return result,
            }
        }
    }

    fn read_once(&mut self, keys: &[&str]) -> Result<Snapshot, ReadError> {
        let token = self.token();
        self.store.send(StoreRequest::Read { token, keys: keys.iter().map(|k| (*k).to_owned()).collect() });
        self.reply(|reply| match reply {
            StoreReply::Read { token: t, result } if *t == token => Some(result.clone()),
            _ => None,
        })
    }

    fn watched(&self, token: StoreToken) -> WatchEvent {
        self.reply(|reply| match reply {
            StoreReply::Watched { token: t, event } if *t == token => Some(event.clone()),
            _ => None,
        })
    }

    fn found_cluster(&mut self, incarnation: u64) {
        done(until_known(|| {
            let token = self.token();
            self.store.send(StoreRequest::SetIncarnation { token, incarnation });
            self.swapped(token)
        }));
    }
}

fn until_known(mut swap: impl FnMut() -> SwapOutcome) -> SwapOutcome {
    let until = Instant::now() + PATIENCE;
    loop {
        match swap() {
            SwapOutcome::Unknown(why) | SwapOutcome::Away(why) => assert!(Instant::now() < until, "{why}"),
            outcome => return outcome,
        }
    }
}

fn was(revision: Revision, value: &str) -> Option<Expected> {
    Some(Expected { revision, was: Was::Value(value.as_bytes().to_vec()) })
}

fn done(outcome: SwapOutcome) -> Revision {
    match outcome {
        SwapOutcome::Done { revision } => revision,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: SwapOutcome) -> Option<Entry> {
    match outcome {
        SwapOutcome::Failed { current } => current,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_swap_compares_the_revision_and_a_failed_one_shows_what_is_there() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    let first = done(host.swap("/k", None, "a"));
    let second = done(host.swap("/k", was(first, "a"), "b"));
    let current = failed(host.swap("/k", was(first, "a"), "c")).expect("there");
    assert_eq!((current.value.as_slice(), current.revision), (b"b".as_slice(), second));
    assert_eq!(failed(host.swap("/k", None, "d")).expect("there").revision, second, "it exists");
    assert_eq!(failed(host.swap("/none", was(first, "a"), "e")), None, "it does not");
}

#[test]
fn keys_beside_a_swap_change_with_it_or_not_at_all() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    let beside = |value: Option<&str>| {
        vec![Beside { key: "/s".to_owned(), value: value.map(|v| v.as_bytes().to_vec()) }]
    };
    let mut with = |expected: Option<Expected>, value: &str, at: Option<&str>| {
        let outcome = until_known(|| host.swap_with("/k", expected.clone(), value, beside(at)));
        let seen = host.read(&["/s"]).expect("believed").entries.remove(0);
        (outcome, seen.map(|entry| String::from_utf8(entry.value).expect("text")))
    };
    let (first, there) = with(None, "a", Some("1"));
    let first = done(first);
    assert_eq!(there.as_deref(), Some("1"));
    // Whatever it holds: the one that is compared has not changed.
    let (second, there) = with(was(first, "a"), "b", Some("2"));
    let second = done(second);
    assert_eq!(there.as_deref(), Some("2"));
    let (stale, there) = with(was(first, "a"), "c", None);
    assert_eq!(failed(stale).map(|entry| entry.revision), Some(second));
    assert_eq!(there.as_deref(), Some("2"), "nothing of a swap that failed");
    let (third, there) = with(was(second, "b"), "c", None);
    assert!(done(third) > second && there.is_none());
}

#[test]
fn a_key_is_held_until_it_is_released_or_its_process_is_gone() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    let token = host.token();
    host.store.send(StoreRequest::Hold { token, key: "/h".to_owned(), value: b"1".to_vec() });
    host.reply(|reply| matches!(reply, StoreReply::Held { token: t } if *t == token).then_some(()));
    let keys = etcd.etcdctl().args(["lease", "list"]).output().expect("etcdctl is installed");
    assert!(String::from_utf8_lossy(&keys.stdout).contains("found 1 leases"), "it ends with its process");
    let watch = host.token();
    host.store.send(StoreRequest::Watch { token: watch, key: "/h".to_owned(), prefix: false });
    let there = |event| matches!(event, WatchEvent::Now(entries) if entries.len() == 1);
    assert!(there(host.watched(watch)));
    host.store.send(StoreRequest::Release { token });
    assert_eq!(host.watched(watch), WatchEvent::Deleted("/h".to_owned()));
}

#[test]
fn a_swap_that_was_applied_by_a_lost_try_is_recognised_as_ours() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    let first = done(host.swap("/k", None, "nonce 1"));
    assert_eq!(done(host.swap("/k", None, "nonce 1")), first);
    for _ in 0..2 {
        done(until_known(|| {
            let token = host.token();
            let delete = StoreRequest::Swap {
                token,
                key: "/k".to_owned(),
                expected: was(first, "nonce 1"),
                value: None,
                beside: Vec::new(),
            };
            host.store.send(delete);
            host.swapped(token)
        }));
    }
}

#[test]
fn a_read_raises_the_watermark_durably_and_an_older_store_is_refused() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    assert!(
        matches!(host.read(&["/k"]), Err(ReadError::RolledBack(_))),
        "nobody made a cluster in this store"
    );
    host.found_cluster(1);
    let revision = done(host.swap("/k", None, "a"));
    let snapshot = host.read(&["/k", "/none"]).expect("read");
    assert_eq!(snapshot.entries.len(), 2);
    assert_eq!(snapshot.entries[0].as_ref().map(|e| e.revision), Some(revision));
    assert_eq!(snapshot.entries[1], None);
    let mark = Watermark { cluster: CLUSTER, incarnation: 1, revision: revision.0 };
    assert_eq!(snapshot.watermark, mark);
    assert_eq!(host.state.read_watermark().expect("readable"), Some(mark));

    // The store's data is lost, or the host is pointed at another one of the same cluster.
    let younger = Etcd::start();
    host.connect(&[&younger.url]);
    assert!(matches!(host.read(&["/k"]), Err(ReadError::RolledBack(_))), "no identity");
    host.found_cluster(1);
    assert!(matches!(host.read(&["/k"]), Err(ReadError::RolledBack(_))), "lower revision");
    host.found_cluster(2);
    let repaired = host.read(&["/k"]).expect("repair raised the incarnation");
    assert_eq!(repaired.watermark.incarnation, 2);
    assert!(repaired.watermark.revision < 10);
}

#[test]
fn a_watermark_that_a_repair_raises_counts() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    host.read(&[]).expect("read");
    let higher = Watermark { cluster: CLUSTER, incarnation: 1, revision: 1 << 40 };
    host.store.send(StoreRequest::Raise(higher));
    assert!(matches!(host.read(&[]), Err(ReadError::RolledBack(_))));
    assert_eq!(host.state.read_watermark().expect("readable"), Some(higher));
}

#[test]
fn the_next_endpoint_is_asked_when_one_refuses_or_is_silent() {
    let etcd = Etcd::start();
    // Accepts (the kernel does) and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let silent = format!("http://{}", silent.local_addr().expect("bound"));
    let refused = format!("http://127.0.0.1:{}", free_port());
    let mut host = Host::new(&[&silent, &refused, &etcd.url]);
    host.found_cluster(1);
    // From now on the one that answered is asked first.
    let start = Instant::now();
    host.read(&["/k"]).expect("read");
    assert!(start.elapsed() < CALL_DEADLINE, "{:?}", start.elapsed());
}

#[test]
fn with_nobody_answering_a_swap_is_not_sent_and_a_read_says_that_the_store_is_away() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let silent = format!("http://{}", silent.local_addr().expect("bound"));
    let mut host = Host::new(&[&silent]);
    assert!(matches!(host.swap_once("/k", None, "a"), SwapOutcome::Away(_)));
    assert!(matches!(host.read_once(&["/k"]), Err(ReadError::Away(_))));
    host.connect(&[]);
    assert!(matches!(host.read_once(&["/k"]), Err(ReadError::Away(_))));
}

/// A swap reaches the store and is applied, its answer is lost, as is every later one: not failed, but unknown.
/// When the store answers again, the same swap is found done (protocol.md R14).
#[test]
fn a_swap_whose_answer_is_lost_is_unknown_and_settled_by_its_value() {
    let etcd = Etcd::start();
    let relay = Relay::start(etcd.port(), b"the lost answer");
    let mut host = Host::new(&[&relay.url]);
    host.found_cluster(1);
    let first = done(host.swap("/k", None, "a"));
    assert!(matches!(host.swap_once("/k", was(first, "a"), "the lost answer"), SwapOutcome::Unknown(_)));
    assert!(matches!(host.swap_once("/k", was(first, "a"), "another"), SwapOutcome::Away(_)));
    host.connect(&[&etcd.url]);
    let second = done(host.swap("/k", was(first, "a"), "the lost answer"));
    assert!(second > first);
    assert_eq!(failed(host.swap("/k", was(first, "a"), "another")).expect("there").revision, second);
}

#[test]
fn a_store_that_went_back_is_not_written_to() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    let higher = Watermark { cluster: CLUSTER, incarnation: 1, revision: 1 << 40 };
    host.store.send(StoreRequest::Raise(higher));
    assert!(matches!(host.swap("/k", None, "a"), SwapOutcome::RolledBack(_)));
}

/// The store is restored from a backup and goes on: its revisions are counted anew, so the revision that a host
/// compares is there again, on a value of another history. The revision alone would let the swap through.
#[test]
fn a_swap_is_not_applied_to_another_history_that_has_the_same_revision() {
    let (ours, restored) = (Etcd::start(), Etcd::start());
    let mut host = Host::new(&[&ours.url]);
    host.found_cluster(1);
    let nonce = |n: u8| format!(r#"{{"nonce":"00000000-0000-4000-8000-0000000000{n:02}"}}"#);
    let read = done(host.swap("/k", None, &nonce(1)));
    let also = done(host.swap("/j", None, &nonce(1)));

    // Another host's writes to the restored store come to the same revisions.
    let mut other = Host::new(&[&restored.url]);
    other.found_cluster(1);
    assert_eq!(done(other.swap("/k", None, &nonce(2))), read, "the plot needs the same revision");
    assert_eq!(done(other.swap("/j", None, &nonce(1))), also);
    host.connect(&[&restored.url]);
    assert!(matches!(host.swap("/k", was(read, &nonce(1)), &nonce(3)), SwapOutcome::RolledBack(_)));
    let by_nonce = |n: u128, revision| {
        let nonce = Nonce(0x0000_0000_0000_4000_8000_0000_0000_0000 + n);
        Some(Expected { revision, was: Was::Nonce(nonce) })
    };
    assert!(matches!(host.swap("/k", by_nonce(1, read), &nonce(3)), SwapOutcome::RolledBack(_)));
    let there = host.read(&["/k"]).expect("read").entries.remove(0).expect("there");
    assert_eq!((there.value, there.revision), (nonce(2).into_bytes(), read), "nothing was written over it");
    // What both histories agree on may be swapped.
    let third = done(host.swap("/j", by_nonce(1, also), &nonce(4)));
    assert!(third > also);
    assert_eq!(failed(host.swap("/j", by_nonce(1, also), &nonce(5))).expect("there").revision, third);
}

/// A restored store is marked with incarnation 0 until it is repaired: also a host that has seen no store yet (a new
/// one, or one whose state directory is new) must not believe it.
#[test]
fn a_store_that_was_restored_and_not_repaired_is_believed_by_nobody() {
    let etcd = Etcd::start();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(0);
    assert!(matches!(host.read(&["/k"]), Err(ReadError::RolledBack(_))));
    assert!(matches!(host.swap("/k", None, "a"), SwapOutcome::RolledBack(_)));
    assert_eq!(host.state.read_watermark().expect("readable"), None);
    host.found_cluster(1);
    done(host.swap("/k", None, "a"));
}

#[test]
fn a_watch_begins_with_the_present_and_goes_on_after_the_store_was_away() {
    let data = memory_dir();
    let etcd = Etcd::start_in(data.path(), free_port());
    let port = etcd.port();
    let mut host = Host::new(&[&etcd.url]);
    host.found_cluster(1);
    let first = done(host.swap("/p/a", None, "1"));
    let token = host.token();
    host.store.send(StoreRequest::Watch { token, key: "/p/".to_owned(), prefix: true });
    let entries = loop {
        match host.watched(token) {
            WatchEvent::Cut => {}
            WatchEvent::Now(entries) => break entries,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(entries.len(), 1);
    done(host.swap("/p/a", was(first, "1"), "2"));
    match host.watched(token) {
        WatchEvent::Put(entry) => assert_eq!(entry.value, b"2"),
        other => panic!("{other:?}"),
    }
    drop(etcd);
    assert_eq!(host.watched(token), WatchEvent::Cut);
    let _etcd = Etcd::start_in(data.path(), port);
    let entries = loop {
        match host.watched(token) {
            WatchEvent::Cut => {}
            WatchEvent::Now(entries) => break entries,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(entries.iter().map(|e| e.value.as_slice()).collect::<Vec<_>>(), [b"2"]);
    host.store.send(StoreRequest::Unwatch { token });
    done(host.swap("/p/b", None, "3"));
    host.read(&[]).expect("read");
    let told = |reply: &StoreReply| matches!(reply, StoreReply::Watched { event: WatchEvent::Put(_), .. });
    assert!(!host.early.borrow().iter().any(told), "nobody watches");
}

/// Only a valid certificate of the cluster's authority is served, only a member of the store's authority is believed,
/// and whoever has a certificate says nothing in clear. Which certificate is shown may change at any time.
#[test]
fn a_store_with_tls_serves_who_shows_a_certificate_of_this_cluster() {
    let pki = Pki::new();
    let etcd = Etcd::start_tls(&pki);
    let mut host = Host::new(&[&etcd.url]);
    host.show(Some(pki.credentials(&pki.hosts)));
    host.found_cluster(1);
    let revision = done(host.swap("/k", None, "a"));

    let stranger = Authority::new("hosts");
    let mut other_store = pki.credentials(&pki.hosts);
    other_store.authorities = stranger.pem().into_bytes();
    for (what, shown) in [
        ("another authority's certificate", Some(pki.credentials(&stranger))),
        ("an expired one", Some(pki.shown(pki.hosts.issue_expired(vec![host_name()])))),
        ("a store of another authority", Some(other_store)),
        ("no certificate", None),
    ] {
        host.show(shown);
        assert!(matches!(host.read_once(&["/k"]), Err(ReadError::Away(_))), "{what}: read");
        let swap = host.swap_once("/k", was(revision, "a"), what);
        assert!(matches!(swap, SwapOutcome::Away(_)), "{what}: {swap:?}");
    }
    host.show(Some(pki.credentials(&pki.hosts)));
    let snapshot = host.read(&["/k"]).expect("served again");
    assert_eq!(snapshot.watermark.revision, revision.0, "nobody of them has left a trace");

    let clear = Etcd::start();
    host.connect(&[&clear.url]);
    let Err(ReadError::Away(why)) = host.read_once(&[]) else { panic!("said in clear") };
    assert!(why.contains("https://"), "{why}");
}

/// Who shows the right certificate may be a member that was revoked while this host was off: before the agent has heard the
/// others, and after it has lost them, nothing of it is read, written, or raises the watermark.
#[test]
fn with_credentials_a_store_is_asked_only_while_it_is_confirmed() {
    let pki = Pki::new();
    let etcd = Etcd::start_tls(&pki);
    let mut host = Host::new(&[&etcd.url]);
    host.show(Some(pki.credentials(&pki.hosts)));
    host.found_cluster(1);
    let revision = done(host.swap("/k", None, "a"));
    let token = host.token();
    host.store.send(StoreRequest::Watch { token, key: "/k".to_owned(), prefix: false });
    assert!(matches!(host.watched(token), WatchEvent::Now(_)));

    host.store.send(StoreRequest::Confirm(false));
    let Err(ReadError::Away(why)) = host.read_once(&["/k"]) else { panic!("it was read") };
    assert!(why.contains("the agent"), "{why}");
    assert!(matches!(host.swap_once("/k", was(revision, "a"), "b"), SwapOutcome::Away(_)));
    while host.watched(token) != WatchEvent::Cut {}

    host.store.send(StoreRequest::Confirm(true));
    assert_eq!(
        host.watched(token),
        WatchEvent::Now(host.read(&["/k"]).expect("read").entries.remove(0).into_iter().collect())
    );
    assert!(done(host.swap("/k", was(revision, "a"), "b")) > revision);
}

/// A renewed certificate gets a connection of its own for the watch; that is no cut, and no change is missed.
#[test]
fn a_watch_goes_on_while_the_certificate_is_renewed() {
    let pki = Pki::new();
    let etcd = Etcd::start_tls(&pki);
    let mut host = Host::new(&[&etcd.url]);
    let first = pki.credentials(&pki.hosts);
    host.show(Some(first.clone()));
    host.found_cluster(1);
    let mut revision = done(host.swap("/p/k", None, "0"));
    let token = host.token();
    host.store.send(StoreRequest::Watch { token, key: "/p/".to_owned(), prefix: true });
    let mut cuts = 0;
    let mut next = |host: &Host| loop {
        match host.watched(token) {
            // A busy machine may need more than 300 ms for a connection.
            WatchEvent::Cut => cuts += 1,
            WatchEvent::Now(entries) => break (true, entries.into_iter().next_back().expect("there").value),
            WatchEvent::Put(entry) => break (false, entry.value),
            WatchEvent::Deleted(key) => panic!("{key}"),
        }
    };
    let text = |turn: u64| turn.to_string().into_bytes();
    assert_eq!(next(&host), (true, text(0)));
    for turn in 1..=5 {
        host.show(Some(if turn == 3 { first.clone() } else { pki.credentials(&pki.hosts) }));
        assert_eq!(next(&host), (true, text(turn - 1)), "opened anew");
        revision = done(host.swap("/p/k", was(revision, &(turn - 1).to_string()), &turn.to_string()));
        assert_eq!(next(&host), (false, text(turn)));
    }
    assert!(cuts < 5, "a renewal is no cut");
    assert_eq!(
        format!("{:?}", StoreRequest::Credentials(Some(first))),
        "Credentials(Some(StoreCredentials))"
    );
}
