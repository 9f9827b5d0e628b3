//! Who a host is and whom it trusts: lists that nobody may sign, old ones, certificates that are renewed.

use std::io::BufRead as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weftd::trust::{IDENTITY_DIR, TRUST_FILE, TRUST_KEY};

use super::support::PATIENCE;
use super::support::host::{Client, Cluster, Host, host_uri};
use super::support::pki::{Authority, SOUND};

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
