//! Who a host is and whom it trusts: lists that nobody may sign, old ones, certificates that are renewed.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use serde_json::{Value, json};
use weft_io::buffer::IoBuf;
use weft_io::mac::TAG_LEN;
use weft_proto::ids::{Epoch, Ordinal, Rid, SessionId};
use weft_proto::message::{Ask, Attach, Request, Watermark};
use weft_proto::wire::{HEADER_LEN, Hello, MAX_FRAME, Version, encode_hello, encode_request};
use weftd::claims::CLAIMS_FILE;
use weftd::clock::{random_u128, unix_seconds};
use weftd::links::DATA_PORT;
use weftd::trust::{IDENTITY_DIR, TRUST_FILE, TRUST_KEY};

use super::frames::{bytes_of, pass, seal};
use super::support::PATIENCE;
use super::support::host::{
    Client, Cluster, Host, assert_same, close, copy, host_uri, make_volume, nbd, open, random_file,
    write_identity,
};
use super::support::line::{Calling, new_key};
use super::support::pki::{Authority, EARLY, EXPIRED, Pki, SOUND, Validity};

/// So long no guest may wait, whatever others do at the door. Unhindered it is some ten milliseconds, on two busy cores some hundreds.
const STALL_MS: u64 = 2000;

/// The next event of that name.
pub(crate) fn event(client: &mut Client, name: &str) -> Value {
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let mut line = String::new();
        client.reader.read_line(&mut line).unwrap_or_else(|e| panic!("{name}: {e}"));
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        if event["event"] == name {
            return event["data"].clone();
        }
        assert!(Instant::now() < until, "no {name}");
    }
}

fn shown_until(host: &Host, good: impl Fn(&Value) -> bool) -> Value {
    host.ask_until("identity.show", &json!({}), good)
}

fn code(shown: &Value) -> &Value {
    &shown["findings"][0]["code"]
}

#[test]
fn only_a_list_that_an_authority_signed_is_followed_and_it_outlives_the_process() {
    let cluster = Cluster::trusted("tls");
    let mut host = cluster.host(1);
    let file = host.home.join("state").join(IDENTITY_DIR).join(TRUST_FILE);
    let mut events = host.client();
    events.ask("events", json!({})).expect("told from now on");
    let generation = cluster.change_trust(|_| ());
    assert_eq!(event(&mut events, "trust.changed")["generation"], json!(generation.to_string()));
    // What was told of is durable.
    let kept = std::fs::read(&file).expect("kept");
    let signed = cluster.get(TRUST_KEY);
    assert_eq!(serde_json::from_slice::<Value>(&kept).expect("JSON"), signed);
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);

    let in_force = |shown: &Value| shown["generation"] == json!(generation.to_string());
    let mut later = cluster.trust.borrow().clone();
    later["generation"] = json!((generation + 1).to_string());
    let mut older = cluster.trust.borrow().clone();
    older["generation"] = json!((generation - 1).to_string());
    let mut forked = cluster.trust.borrow().clone();
    forked["transport"] = json!("clear");
    let pki = cluster.pki.as_ref().expect("identities");
    let stranger = Authority::new("hosts");
    let unsigned = json!({ "body": later.to_string(), "by": pki.hosts.kid(), "sig": "" }).to_string();
    for (what, text, expected) in [
        ("nobody's", unsigned, "E-TRUST-01"),
        ("a stranger's", stranger.sign(&later), "E-TRUST-01"),
        ("the store's own authority's", pki.store.sign(&later), "E-TRUST-01"),
        ("an older one", pki.hosts.sign(&older), "E-TRUST-02"),
        ("another one of the same generation", pki.hosts.sign(&forked), "E-TRUST-02"),
        ("no list at all", "[]".to_owned(), "E-TRUST-01"),
    ] {
        // Each is seen to be refused by itself.
        cluster.put(TRUST_KEY, &signed);
        shown_until(&host, |shown| code(shown).is_null());
        cluster.put_text(TRUST_KEY, &text);
        let shown = shown_until(&host, |shown| !code(shown).is_null());
        assert_eq!(code(&shown), expected, "{what}: {shown}");
        assert!(in_force(&shown), "{what}: {shown}");
        assert_eq!(std::fs::read(&file).expect("kept"), kept, "{what}");
    }
    cluster.delete(TRUST_KEY);
    let shown = shown_until(&host, |shown| code(shown) == "E-TRUST-02");
    assert!(in_force(&shown), "{shown}");

    // A store that was put back does not bring an old list back, also after a restart.
    host.kill();
    cluster.put_text(TRUST_KEY, &pki.hosts.sign(&older));
    host.start();
    let shown = shown_until(&host, |shown| !code(shown).is_null());
    assert!(in_force(&shown), "{shown}");
    let generation = cluster.change_trust(|_| ());
    shown_until(&host, |shown| shown["generation"] == json!(generation.to_string()) && code(shown).is_null());
    host.assert_alive();
}

#[test]
fn a_renewed_certificate_is_shown_to_the_store_and_a_damaged_one_is_not_taken() {
    let cluster = Cluster::trusted("tls");
    let host = cluster.host(1);
    let dir = host.home.join("state").join(IDENTITY_DIR);
    let pki = cluster.pki.as_ref().expect("identities");
    let name = host_uri(&cluster.id, &host.id);
    let put = |text: &str| {
        std::fs::write(dir.join("host.pem.new"), text).expect("written");
        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.join("host.pem.new"), closed).expect("mode");
        std::fs::rename(dir.join("host.pem.new"), dir.join("host.pem")).expect("renamed");
    };
    let read = || host.ask_until("store.show", &json!({}), |store| store["reachable"] == true);
    read();
    let before = shown_until(&host, |_| true);

    let renewed = pki.hosts.identity(&host.key, &name, (SOUND.0, SOUND.1 + 1000));
    put(&renewed);
    let after = host.ask("identity.reload", json!({}));
    let seconds =
        |value: &Value| value["not_after"].as_str().and_then(|s| s.parse::<u64>().ok()).expect("a number");
    assert!((990..=1020).contains(&(seconds(&after) - seconds(&before))), "{before} {after}");
    assert_eq!((&after["host"], &after["generation"]), (&json!(host.id), &before["generation"]));
    assert_eq!(shown_until(&host, |_| true)["not_after"], after["not_after"]);
    let generation = cluster.change_trust(|_| ());
    shown_until(&host, |shown| shown["generation"] == json!(generation.to_string()));

    let other = pki.hosts.identity(&host.key, &host_uri(&cluster.id, &cluster.id), SOUND);
    for (what, text) in [("half of it", &renewed[..renewed.len() / 2]), ("another host's", &other)] {
        put(text);
        let error = host.try_ask("identity.reload", json!({})).expect_err(what);
        assert_eq!(error["code"], "E-HOST-06", "{what}: {error}");
    }
    assert_eq!(shown_until(&host, |_| true)["not_after"], after["not_after"], "the one before is in use");
    // The store believes the members of its own authority, whichever the list names.
    let next = Authority::new("store");
    cluster.change_trust(|list| list["storeAuthorities"] = json!([next.entry("active")]));
    host.ask_until("store.show", &json!({}), |store| store["reachable"] == false);
    host.assert_alive();
    assert!(!host.log().contains("PRIVATE KEY"));
}

/// A host that missed how the authorities took over hears of it by a door; its agent puts the list where the daemon reads
/// it. An older one there changes nothing.
#[test]
fn a_newer_list_in_the_file_is_taken_when_the_identity_is_read_again() {
    let cluster = Cluster::trusted("tls");
    let host = cluster.host(1);
    let mut events = host.client();
    events.ask("events", json!({})).expect("told from now on");
    let pki = cluster.pki.as_ref().expect("identities");
    let took_over = Pki::new();
    let mut list = cluster.trust.borrow().clone();
    list["generation"] = json!("40");
    list["authorities"] = json!([took_over.hosts.entry("active"), pki.hosts.entry("outgoing")]);
    let pem = pki.hosts.identity(&host.key, &host_uri(&cluster.id, &host.id), SOUND);
    write_identity(&host.home, &took_over, &pem, &list);
    assert_eq!(host.ask("identity.reload", json!({}))["generation"], "40");
    assert_eq!(event(&mut events, "trust.changed")["generation"], "40");
    write_identity(&host.home, pki, &pem, &cluster.trust.borrow());
    assert_eq!(host.ask("identity.reload", json!({}))["generation"], "40");
}

/// A member that was revoked while this host was off can sign lists still, and serve them with all that the store had. Nothing
/// of that is followed before the agent has heard of the others which list is in force, and has brought that one.
#[test]
fn a_host_that_is_back_asks_no_store_before_its_agent_says_that_it_is_the_clusters() {
    let cluster = Cluster::trusted("tls");
    let mut host = cluster.host(1);
    host.make_pool();
    host.kill();
    let mark = || std::fs::read_to_string(cluster.dir.path().join("1/state/watermark.json")).expect("kept");
    let before = mark();
    let shown = cluster.change_trust(|_| ());
    host.spawn();
    let reachable = |is: bool| move |store: &Value| store["reachable"] == is;
    let asked = host.ask_until("store.show", &json!({}), |store| {
        store["last_error"].as_str().is_some_and(|e| e.contains("agent"))
    });
    assert_eq!(asked["reachable"], false);
    let refused = host.try_ask("store.confirm", json!({ "generation": shown.to_string() }));
    assert_eq!(refused.expect_err("its list is older than that")["code"], "E-TRUST-02");
    assert_eq!(host.ask("identity.show", json!({}))["generation"], (shown - 1).to_string());
    assert_ne!(host.pool_info()["state"], "serving");
    assert_eq!(mark(), before);

    let known = json!({ "generation": (shown - 1).to_string() });
    host.ask("store.confirm", known.clone());
    host.await_pool();
    let followed = |generation: u64| {
        let text = generation.to_string();
        shown_until(&host, |identity| identity["generation"] == text.as_str());
    };
    followed(shown);
    // It was cut off, and so were the others.
    host.ask("store.confirm", json!({ "generation": null }));
    host.ask_until("store.show", &json!({}), reachable(false));
    let next = cluster.change_trust(|_| ());
    host.ask("store.confirm", known);
    host.ask_until("store.show", &json!({}), reachable(true));
    followed(next);
}

#[test]
fn a_host_without_identity_says_so() {
    let cluster = Cluster::start();
    let host = cluster.host(1);
    for method in ["identity.show", "identity.reload"] {
        let error = host.try_ask(method, json!({})).expect_err("no identity");
        assert_eq!(error["code"], "E-TRUST-03", "{error}");
    }
}

/// What was signed for this host lies there: the daemon that finds only half of it does not start.
#[test]
fn half_an_identity_stops_the_start() {
    let cluster = Cluster::trusted("tls");
    let mut host = cluster.host(1);
    host.kill();
    std::fs::remove_file(host.home.join("state").join(IDENTITY_DIR).join(TRUST_FILE)).expect("removed");
    host.spawn();
    let mut process = host.process.take().expect("started");
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.try_wait().expect("our child") {
            break status;
        }
        assert!(Instant::now() < until, "it runs\n{}", host.log());
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(!status.success(), "{status}");
    assert!(host.log().contains("E-HOST-06"), "{}", host.log());
}

// ---- links

/// A volume whose only copy is on one host and whose guest is on another.
struct Stage {
    cluster: Cluster,
    keeper: Host,
    owner: Host,
    volume: String,
    socket: PathBuf,
}

impl Stage {
    fn set(transport: &str) -> Stage {
        let cluster = Cluster::trusted(transport);
        let (keeper, owner) = (cluster.host(1), cluster.host(2));
        Stage::with(cluster, keeper, owner)
    }

    fn with(cluster: Cluster, mut keeper: Host, owner: Host) -> Stage {
        keeper.make_pool();
        let volume = make_volume(&[&keeper]);
        let socket = open(&owner, &volume, "closed").expect("opens");
        Stage { cluster, keeper, owner, volume, socket }
    }

    fn pki(&self) -> &Pki {
        self.cluster.pki.as_ref().expect("identities")
    }

    /// What a host of this name would show, certified by that authority.
    fn shown(&self, by: &Authority, key: &KeyPair, host: &str, validity: Validity) -> String {
        by.identity(key, &host_uri(&self.cluster.id, host), validity)
    }

    fn hello(&self, host: &str) -> Vec<u8> {
        encode_hello(&self.greeting(host))
    }

    fn greeting(&self, host: &str) -> Hello {
        Hello {
            wire_min: Version::OLDEST.number(),
            wire_max: Version::NEWEST.number(),
            cluster: self.cluster.id.parse().expect("an id"),
            host: host.parse().expect("an id"),
            process: 1,
            features: 0,
            max_frame: u32::try_from(MAX_FRAME).expect("fits"),
            slots: 1024,
            heartbeat_ms: 100,
            trailer_len: 0,
            watermark: Watermark::default(),
            pools: Vec::new(),
        }
    }

    /// Writes and reads all of the volume.
    fn use_it(&self, name: &str) {
        let file = random_file(&self.cluster, name);
        copy(file.to_str().expect("UTF-8"), &nbd(&self.socket, &self.volume));
        assert_same(&self.cluster, &self.owner, &self.socket, &self.volume, &file);
    }

    /// The longest time that the guest waited for anything, also before what the test is about.
    fn stall_ms(&self) -> u64 {
        let session = self.owner.ask("session.show", json!({ "volume": self.volume }));
        session["figures"]["stall_ms_max"].as_str().and_then(|ms| ms.parse().ok()).expect("a number")
    }

    /// Uses the volume until `is_over`; then nothing of it may have failed.
    fn busy(&self, mut is_over: impl FnMut() -> bool) {
        let mut round = 0;
        let until = Instant::now() + 4 * PATIENCE;
        while !is_over() {
            self.use_it(if round % 2 == 0 { "a" } else { "b" });
            round += 1;
            assert!(Instant::now() < until, "it takes too long\n{}\n{}", self.owner.log(), self.keeper.log());
        }
        assert!(round > 0);
        close(&self.owner, &self.volume);
    }
}

/// How the owner and the keeper are proven to each other, as each of them says.
fn modes(stage: &Stage) -> [Vec<String>; 2] {
    [&stage.owner, &stage.keeper].map(|host| {
        let shown = host.ask("identity.show", json!({}));
        let peers = shown["peers"].as_array().expect("a list").iter();
        peers.map(|peer| format!("{} {}", peer["mode"].as_str().expect("text"), peer["called"])).collect()
    })
}

#[test]
fn guests_are_served_over_tls_and_over_auth_and_the_list_says_which() {
    let stage = Stage::set("tls");
    stage.use_it("a");
    assert_eq!(modes(&stage), [["tls false"], ["tls true"]]);
    let opened = stage.owner.log().len();
    for mode in ["auth", "tls"] {
        stage.cluster.change_trust(|list| list["transport"] = json!(mode));
        let (owner, keeper) = (format!("{mode} false"), format!("{mode} true"));
        let until = Instant::now() + Duration::from_secs(60);
        while modes(&stage) != [vec![owner.clone()], vec![keeper.clone()]] {
            assert!(Instant::now() < until, "{:?}\n{}", modes(&stage), stage.owner.log());
            stage.use_it("b");
        }
    }
    let log = stage.owner.log();
    assert!(!log[opened..].contains("paused"), "{log}");
    close(&stage.owner, &stage.volume);
}

#[test]
fn whoever_is_not_proven_is_refused_and_told_of() {
    let stage = Stage::set("tls");
    let pki = stage.pki();
    let (own, fresh) = (&stage.owner.key, new_key());
    let id = stage.owner.id.as_str();
    let other_cluster = pki.hosts.identity(own, &host_uri(&stage.keeper.id, id), SOUND);
    let mut events = stage.keeper.client();
    events.ask("events", json!({})).expect("told from now on");
    let tls = |pem: String| Calling { pem, transport: Some("tls"), alpn: None };
    let sound = stage.shown(&pki.hosts, own, id, SOUND);
    for (what, calling, code) in [
        ("no certificate", tls(String::new()), "E-NET-01"),
        ("a stranger's", tls(stage.shown(&Authority::new("hosts"), own, id, SOUND)), "E-NET-01"),
        ("the store's authority's", tls(stage.shown(&pki.store, own, id, SOUND)), "E-NET-01"),
        ("another cluster's", tls(other_cluster), "E-NET-01"),
        ("minted with a stolen authority", tls(stage.shown(&pki.hosts, &fresh, id, SOUND)), "E-NET-02"),
        ("another host's name", tls(stage.shown(&pki.hosts, own, &stage.keeper.id, SOUND)), "E-NET-02"),
        ("an expired one", tls(stage.shown(&pki.hosts, own, id, EXPIRED)), "E-NET-04"),
        ("one of tomorrow", tls(stage.shown(&pki.hosts, own, id, EARLY)), "E-NET-05"),
        ("a weaker transport", Calling { transport: Some("auth"), ..tls(sound.clone()) }, "E-NET-08"),
        ("an unknown one", Calling { alpn: Some(b"http/1.1"), ..tls(sound.clone()) }, "E-NET-08"),
        ("no TLS", Calling { transport: None, ..tls(String::new()) }, "E-NET-01"),
    ] {
        if let Ok(mut line) = calling.call(&stage.keeper.address, Some(&stage.owner.address)) {
            let _ = line.send(&stage.hello(id));
            assert!(line.frame().is_err(), "{what}: it has said hello\n{}", stage.keeper.log());
        }
        let refused = event(&mut events, "peer.refused");
        assert_eq!(
            (&refused["code"], &refused["address"]),
            (&json!(code), &json!(stage.owner.address)),
            "{what}: {refused}"
        );
        if code == "E-NET-04" || code == "E-NET-05" {
            assert!(refused["facts"]["now"].is_string() && refused["host"] == id, "{refused}");
        }
    }
    // A proven host is heard as itself alone.
    let mut line = tls(sound).call(&stage.keeper.address, Some(&stage.owner.address)).expect("proven");
    line.send(&stage.hello(&stage.keeper.id)).expect("sent");
    assert!(line.is_closed(), "{}", stage.keeper.log());
    let refused = event(&mut events, "peer.refused");
    assert_eq!((&refused["code"], &refused["host"]), (&json!("E-NET-01"), &json!(id)), "{refused}");
    stage.use_it("a");
    close(&stage.owner, &stage.volume);
}

#[test]
fn a_revoked_host_is_cut_at_once_and_refused_from_then_on() {
    for transport in ["tls", "auth"] {
        let stage = Stage::set(transport);
        stage.use_it("a");
        let mut events = stage.keeper.client();
        events.ask("events", json!({})).expect("told from now on");
        let begun = Instant::now();
        stage.cluster.revoke(&stage.owner);
        shown_until(&stage.keeper, |shown| shown["peers"] == json!([]));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let refused = event(&mut events, "peer.refused");
        assert_eq!(
            (&refused["code"], &refused["host"]),
            (&json!("E-NET-03"), &json!(stage.owner.id)),
            "{refused}"
        );
        // Also one who asks with the same certificate once more, whatever he has heard before.
        let pem = stage.shown(&stage.pki().hosts, &stage.owner.key, &stage.owner.id, SOUND);
        let calling =
            Calling { pem, transport: Some(if transport == "tls" { "tls" } else { "auth" }), alpn: None };
        if let Ok(mut line) = calling.call(&stage.keeper.address, None) {
            assert!(line.frame().is_err(), "it has said hello");
        }
        stage.keeper.assert_alive();
    }
}

/// A host's session whose copies are on the revoked one: that one is called no more.
#[test]
fn a_revoked_host_is_not_called_any_more() {
    let stage = Stage::set("tls");
    stage.cluster.revoke(&stage.keeper);
    let links =
        stage.owner.ask_until("link.list", &json!({}), |list| list["links"][0]["state"] == "mismatch");
    assert_eq!(links["links"][0]["code"], "E-NET-03", "{links}");
    shown_until(&stage.owner, |shown| shown["peers"] == json!([]));
    stage.owner.assert_alive();
}

/// Both certificates end in a few seconds, and are renewed before: the guest notices nothing.
#[test]
fn a_renewed_certificate_is_followed_by_another_connection_without_a_stall() {
    let cluster = Cluster::trusted("tls");
    let soon = (SOUND.0, 12);
    let (keeper, owner) = (cluster.host_until(1, soon), cluster.host_until(2, soon));
    let stage = Stage::with(cluster, keeper, owner);
    for host in [&stage.keeper, &stage.owner] {
        let pem = stage.shown(&stage.pki().hosts, &host.key, &host.id, SOUND);
        write_identity(&host.home, stage.pki(), &pem, &stage.cluster.trust.borrow());
        host.ask("identity.reload", json!({}));
    }
    let far = |host: &Host| {
        let shown = host.ask("identity.show", json!({}));
        let [peer] = shown["peers"].as_array().expect("a list").as_slice() else { return false };
        let end = peer["not_after"].as_str().and_then(|end| end.parse::<u64>().ok()).expect("a number");
        end > unix_seconds() + 86_400
    };
    // The first connections would have been cut by then.
    let until = Instant::now() + Duration::from_secs(14);
    stage.use_it("a");
    let calm = stage.owner.log().len();
    let followed = || stage.owner.log().matches("again=true").count();
    stage.busy(|| Instant::now() > until && followed() > 0 && far(&stage.owner));
    let (keeper, owner) = (stage.keeper.log(), stage.owner.log());
    assert!(!keeper.contains("cut:"), "{keeper}");
    assert!(!owner.contains("cut:") && !owner[calm..].contains("paused"), "{owner}");
}

/// Nobody renews: the connection ends with the certificate, and both times are told.
#[test]
fn a_connection_ends_with_its_peers_certificate() {
    let cluster = Cluster::trusted("tls");
    let (keeper, owner) = (cluster.host(1), cluster.host_until(2, (SOUND.0, 4)));
    let mut events = keeper.client();
    events.ask("events", json!({})).expect("told from now on");
    let stage = Stage::with(cluster, keeper, owner);
    let refused = loop {
        let refused = event(&mut events, "peer.refused");
        if refused["code"] == "E-NET-04" {
            break refused;
        }
    };
    assert_eq!(refused["host"], json!(stage.owner.id), "{refused}");
    let (ended, now) = (refused["facts"]["not_after"].as_str(), refused["facts"]["now"].as_str());
    assert!(ended < now && ended.is_some(), "{refused}");
    assert!(stage.keeper.log().contains(ended.expect("a time")), "{}", stage.keeper.log());
    shown_until(&stage.keeper, |shown| shown["peers"] == json!([]));
    let pem = stage.shown(&stage.pki().hosts, &stage.owner.key, &stage.owner.id, SOUND);
    write_identity(&stage.owner.home, stage.pki(), &pem, &stage.cluster.trust.borrow());
    stage.owner.ask("identity.reload", json!({}));
    stage.use_it("a");
    // A session says that it waits until the next look at its members.
    let shown = json!({ "volume": stage.volume });
    stage.owner.ask_until("session.show", &shown, |session| session["phase"] == "serving");
    close(&stage.owner, &stage.volume);
}

/// R11: a host that lies about the store is taken off the list. What it said is forgotten with it, revoked or not; and who
/// only passed it on is not named as the one who says it.
#[test]
fn what_a_host_said_of_the_store_ends_when_the_list_has_it_no_more() {
    let mut stage = Stage::set("tls");
    let liar = stage.cluster.host(3);
    let volume = make_volume(&[&stage.keeper]);
    let tell = |liar: &Host| {
        let pem = stage.shown(&stage.pki().hosts, &liar.key, &liar.id, SOUND);
        let calling = Calling { pem, transport: Some("tls"), alpn: None };
        let mut line = calling.call(&stage.keeper.address, Some(&liar.address)).expect("a host gets in");
        let mut hello = stage.greeting(&liar.id);
        hello.watermark = Watermark { cluster: hello.cluster, incarnation: 9, revision: 9 };
        line.send(&encode_hello(&hello)).expect("sent");
        stage.keeper.ask_until("store.show", &json!({}), |s| s["claims"][0]["host"] == liar.id.as_str());
        line
    };
    let line = tell(&liar);
    let refused = open(&stage.owner, &volume, "closed").expect_err("the store is doubted");
    let named = (&refused["code"], &refused["facts"]["through"], &refused["facts"]["host"]);
    assert_eq!(named, (&json!("E-TRUST-04"), &json!(stage.keeper.id), &Value::Null), "{refused}");
    let refused = open(&stage.keeper, &volume, "closed").expect_err("the store is doubted");
    assert_eq!((&refused["code"], &refused["facts"]["host"]), (&json!("E-TRUST-04"), &json!(liar.id)));
    // Removed, which is not revoked.
    stage.cluster.change_trust(|list| {
        list["hosts"].as_object_mut().expect("a map").remove(&liar.id);
    });
    stage.keeper.ask_until("store.show", &json!({}), |s| s["claims"] == json!([]));
    open(&stage.keeper, &volume, "closed").expect("opens");
    close(&stage.keeper, &volume);
    drop(line);
    // The list changed while the daemon was away.
    let kept = json!([{ "host": liar.id, "cluster": stage.cluster.id, "incarnation": "9", "revision": "9" }]);
    close(&stage.owner, &stage.volume);
    stage.keeper.kill();
    std::fs::write(stage.keeper.home.join("state").join(CLAIMS_FILE), kept.to_string()).expect("written");
    stage.keeper.start();
    stage.keeper.await_pool();
    assert_eq!(stage.keeper.ask("store.show", json!({}))["claims"], json!([]));
    open(&stage.keeper, &volume, "closed").expect("opens");
    close(&stage.keeper, &volume);
}

/// A host of the list calls again and again, keeps every connection, and on the last one attaches to as many replicas as it
/// can make up. It holds eight connections, and the guest of another host notices nothing.
#[test]
fn one_host_takes_neither_the_connections_nor_the_time_of_others() {
    let stage = Stage::set("tls");
    // Who opens while the other host does not know it yet pauses for a moment.
    let calm = stage.owner.log().len();
    let greedy = stage.cluster.host(3);
    let pem = stage.shown(&stage.pki().hosts, &greedy.key, &greedy.id, SOUND);
    let calling = Calling { pem, transport: Some("tls"), alpn: None };
    let mut lines = Vec::new();
    for _ in 0..40 {
        let mut line = calling.call(&stage.keeper.address, Some(&greedy.address)).expect("a host gets in");
        line.send(&stage.hello(&greedy.id)).expect("sent");
        line.frame().expect("HELLO");
        lines.push(line);
    }
    let held = |shown: &Value| {
        let peers = shown["peers"].as_array().expect("a list").iter();
        peers.filter(|peer| peer["host"] == greedy.id.as_str()).count() == 8
    };
    shown_until(&stage.keeper, held);
    assert!(lines[0].is_closed(), "the oldest ends");
    let mut last = lines.pop().expect("forty");
    let mut frames = Vec::new();
    for handle in 0..4096 {
        let session = if handle % 2 == 0 { SessionId(1) } else { SessionId(random_u128()) };
        let ask: Ask<IoBuf> = Ask::Attach(Attach {
            volume: stage.volume.parse().expect("an id"),
            rid: Rid(handle / 4),
            pool: stage.keeper.pool.parse().expect("an id"),
            host: greedy.id.parse().expect("an id"),
            session,
            ordinal: Ordinal(u64::MAX),
            watermark: Watermark::default(),
        });
        let request = Request { tag: handle, epoch: Epoch(0), ask };
        frames.extend(bytes_of(&encode_request(Version::V1, handle, &request)));
    }
    last.send(&frames).expect("sent");
    stage.use_it("a");
    assert!(stage.stall_ms() < STALL_MS, "{} ms", stage.stall_ms());
    let log = stage.owner.log();
    assert!(!log[calm..].contains("paused"), "{log}");
    stage.keeper.assert_alive();
    close(&stage.owner, &stage.volume);
}

/// Somebody on the path under `auth`: what he alters, repeats, leaves out or turns round ends the connection, and the
/// guest's data is what it was.
#[test]
fn altered_frames_under_auth_end_the_connection_and_change_nothing() {
    let cluster = Cluster::trusted("auth");
    let (keeper, owner) = (cluster.host(1), cluster.host(2));
    let tamperer = Tamperer::start(&cluster, &keeper.address);
    cluster.say_address(&keeper.id, &tamperer.address);
    let mut events = keeper.client();
    events.ask("events", json!({})).expect("told from now on");
    let stage = Stage::with(cluster, keeper, owner);
    let file = random_file(&stage.cluster, "a");
    for what in [Tamper::Header, Tamper::Meta, Tamper::Repeat, Tamper::LeaveOut, Tamper::TurnRound] {
        copy(file.to_str().expect("UTF-8"), &nbd(&stage.socket, &stage.volume));
        *tamperer.next.lock().expect("whole") = Some(what);
        // While a guest reads, there is always a frame to be altered, and one that comes after it.
        let is_over = AtomicBool::new(false);
        let (from, to) = (nbd(&stage.socket, &stage.volume), stage.cluster.dir.path().join("meanwhile"));
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    copy(&from, to.to_str().expect("UTF-8"));
                }
            });
            // Also when no event comes: a scope ends after its threads.
            let _ending = Ending(&is_over);
            event(&mut events, "peer.refused")
        });
        assert_eq!(
            (&refused["code"], &refused["host"]),
            (&json!("E-NET-06"), &json!(stage.owner.id)),
            "{what:?}: {refused}"
        );
        assert!(tamperer.next.lock().expect("whole").is_none(), "{what:?}");
        stage.owner.ask_until("link.list", &json!({}), |list| list["links"][0]["state"] == "connected");
        assert_same(&stage.cluster, &stage.owner, &stage.socket, &stage.volume, &file);
    }
    stage.keeper.assert_alive();
    close(&stage.owner, &stage.volume);
}

/// Says that it is over, whatever ends what it stands in.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is done once to what the owner says.
#[derive(Clone, Copy, Debug)]
enum Tamper {
    /// A bit of the header, with the checksum made right again.
    Header,
    /// A bit of what follows the tag, or of the tag where nothing does.
    Meta,
    Repeat,
    LeaveOut,
    TurnRound,
}

/// Passes everything on between the owner and the keeper, but for what it is told to do.
struct Tamperer {
    address: String,
    next: Arc<Mutex<Option<Tamper>>>,
}

impl Tamperer {
    fn start(cluster: &Cluster, target: &str) -> Tamperer {
        let address = format!("127.{}.252.{}", cluster.subnet, random_u128() % 250 + 1);
        let listener = TcpListener::bind((address.as_str(), DATA_PORT)).expect("a loopback address");
        let next: Arc<Mutex<Option<Tamper>>> = Arc::default();
        let (told, target) = (next.clone(), target.to_owned());
        std::thread::spawn(move || {
            while let Ok((owner, _)) = listener.accept() {
                let Ok(keeper) = TcpStream::connect((target.as_str(), DATA_PORT)) else { continue };
                let (back, forth) = (owner.try_clone().expect("cloned"), keeper.try_clone().expect("cloned"));
                let told = told.clone();
                std::thread::spawn(move || pass(&keeper, &back, |_| ()));
                std::thread::spawn(move || tamper(&owner, &forth, &told));
            }
        });
        Tamperer { address, next }
    }
}

fn tamper(mut from: &TcpStream, mut to: &TcpStream, told: &Mutex<Option<Tamper>>) {
    let (mut buffer, mut held) = (vec![0; 65536], Vec::new());
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..n].to_vec();
        // Where a frame begins, and it is there whole.
        let is_frame = bytes.starts_with(b"weft") && {
            let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
            HEADER_LEN + TAG_LEN + usize::try_from(len).expect("short") == n
        };
        let what = if is_frame && held.is_empty() { told.lock().expect("whole").take() } else { None };
        match what {
            None => {}
            Some(Tamper::Header) => {
                bytes[20] ^= 1;
                seal(&mut bytes[..HEADER_LEN]);
            }
            Some(Tamper::Meta) => *bytes.last_mut().expect("not empty") ^= u8::from(n < 200),
            Some(Tamper::Repeat) => bytes.extend_from_within(..),
            Some(Tamper::LeaveOut) => continue,
            Some(Tamper::TurnRound) => {
                held = bytes;
                continue;
            }
        }
        bytes.append(&mut held);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// A thousand strangers call and say nothing, others begin TLS and stop: a guest's I/O goes on, and few of them are held.
#[test]
fn a_flood_of_half_open_handshakes_does_not_stall_guests() {
    let stage = Stage::set("tls");
    stage.use_it("a");
    // Who opens while the other host does not know it yet pauses for a moment.
    let calm = stage.owner.log().len();
    let before = stage.keeper.resident();
    let is_over = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for half in [&b""[..], b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x00\x05\x01"] {
            let (address, is_over, calls) = (stage.keeper.address.as_str(), &is_over, &calls);
            scope.spawn(move || {
                let mut open = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect((address, DATA_PORT)) else {
                        continue;
                    };
                    let _ = stream.write_all(half);
                    calls.fetch_add(1, Ordering::Relaxed);
                    open.push(stream);
                    if open.len() == 400 {
                        open.clear();
                    }
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until || calls.load(Ordering::Relaxed) < 1000 {
            stage.use_it("b");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    println!("{} calls, stall {} ms", calls.load(Ordering::Relaxed), stage.stall_ms());
    assert!(stage.stall_ms() < STALL_MS, "{} ms", stage.stall_ms());
    let log = stage.owner.log();
    assert!(!log[calm..].contains("paused"), "{log}");
    let grown = stage.keeper.resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB more", grown >> 20);
    // Their own connection is found again where all of them have been.
    let id = stage.owner.id.as_str();
    let pem = stage.shown(&stage.pki().hosts, &stage.owner.key, id, SOUND);
    let calling = Calling { pem, transport: Some("tls"), alpn: None };
    let mut line = calling.call(&stage.keeper.address, Some(&stage.owner.address)).expect("a host gets in");
    line.send(&stage.hello(id)).expect("sent");
    assert!(line.frame().is_ok(), "{}", stage.keeper.log());
    stage.keeper.assert_alive();
    close(&stage.owner, &stage.volume);
}
