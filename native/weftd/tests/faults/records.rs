//! The store's records: from newer software, from nobody, from another time.

use serde_json::{Value, json};

use super::support::host::{Cluster, Host, assert_same, close, copy, make_volume, nbd, open, random_file};

fn key(volume: &str) -> String {
    format!("/weft/v1/vol/{volume}/state")
}

fn opens_not(host: &Host, volume: &str, what: &str) {
    let error = open(host, volume, "closed").expect_err(what);
    assert_eq!(error["code"], "E-STORE-07", "{what}: {error}");
}

/// A cluster is upgraded host by host, and this one is the last.
#[test]
fn a_record_from_newer_software_is_refused_and_never_written_over() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let [newer, other] = [make_volume(&[&host]), make_volume(&[&host])];
    let socket = open(&host, &other, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &other));

    let mut record = cluster.get(&key(&newer));
    record["fmt"] = json!(9);
    record["min_reader"] = json!(9);
    record["mode"] = json!("something new");
    cluster.put(&key(&newer), &record);
    let error = open(&host, &newer, "closed").expect_err("newer");
    assert_eq!(error["code"], "E-STORE-13", "{error}");
    let said = error["message"].as_str().expect("a sentence");
    assert!(said.contains("reads format 9") && said.contains(&newer), "{said}");
    for method in ["volume.delete", "volume.restore"] {
        let error = host.try_ask(method, json!({ "volume": newer })).expect_err("newer");
        assert_eq!(error["code"], "E-STORE-13", "{method}: {error}");
    }
    let kept = host.ask("replica.trash", json!({ "volume": newer, "rid": 0, "pool": host.pool }));
    assert_eq!(kept["trashed"], false, "{kept}");
    host.ask("why", json!({ "volume": newer }));
    assert_eq!(cluster.get(&key(&newer)), record, "nothing was written over it");

    // Under a living session: it ends, because it can't know what the record says of its members.
    let mut record = cluster.get(&key(&other));
    record["min_reader"] = json!(9);
    cluster.put(&key(&other), &record);
    let ended = host.ask_until("session.show", &json!({ "volume": other }), |s| s["phase"] == "ended");
    assert!(ended["paused_reason"].as_str().is_some_and(|r| r.contains("reads format 9")), "{ended}");
    assert_eq!(cluster.get(&key(&other)), record);
    record["min_reader"] = json!(1);
    cluster.put(&key(&other), &record);
    let socket = open(&host, &other, "closed").expect("opens when the record is one of ours again");
    assert_same(&cluster, &host, &socket, &other, &file);
    close(&host, &other);
}

/// Whatever a key holds, opening it is refused with a sentence, and the daemon goes on.
#[test]
fn a_record_that_makes_no_sense_is_refused() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let [bad, good] = [make_volume(&[&host]), make_volume(&[&host])];
    let socket = open(&host, &good, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &good));
    let sound = cluster.get(&key(&bad));
    for text in ["", "{", "null", "[]", "42", "{}", "\u{7f}ELF", &"[".repeat(100_000), &"x".repeat(1 << 16)] {
        cluster.put_text(&key(&bad), text);
        opens_not(&host, &bad, text.get(..20).unwrap_or(text));
    }
    let huge = "9".repeat(400);
    let changes: Vec<(&str, Value)> = vec![
        ("min_reader", json!(-1)),
        ("size", json!("4097")),
        ("size", json!("18446744073709547520")),
        ("size", json!(8_388_608)),
        ("region_shift", json!(0)),
        ("region_shift", json!(255)),
        ("epoch", json!("0x1")),
        ("epoch", json!(huge)),
        ("epoch", json!("1099511627775")),
        ("epoch", json!("18446744073709551615")),
        ("rev", json!("18446744073709551615")),
        ("next_rid", json!(0)),
        ("replicas", json!([])),
        ("replicas", json!({})),
        ("replicas", json!([sound["replicas"][0], sound["replicas"][0]])),
        ("policy", json!({ "copies": 200, "min_isr": 0 })),
        ("nonce", json!("none")),
        ("owner", json!({ "node": 1 })),
        ("lineage", json!(vec![json!({}); 1000])),
        ("created_by", json!("x".repeat(9000))),
    ];
    for (field, value) in changes {
        let mut record = sound.clone();
        record[field] = value.clone();
        cluster.put(&key(&bad), &record);
        opens_not(&host, &bad, &format!("{field} {}", value.to_string().get(..30).unwrap_or_default()));
        let why = host.ask("why", json!({ "volume": bad }));
        assert_eq!(why["volume"], bad.as_str());
    }
    let repair = json!({ "records": [{ "vol": "?" }], "incarnation": "2" });
    assert_eq!(host.try_ask("store.repair_apply", repair).expect_err("no record")["code"], "E-ARG-02");
    // Another volume's record under this key would open the wrong data.
    cluster.put(&key(&bad), &cluster.get(&key(&good)));
    opens_not(&host, &bad, "another volume's");

    host.assert_alive();
    cluster.put(&key(&bad), &sound);
    open(&host, &bad, "closed").expect("opens when the record makes sense");
    close(&host, &bad);
    // What a replica keeps is put in its place by a repair.
    cluster.put_text(&key(&bad), "{");
    let kept = host.ask("replica.records", json!({}));
    let kept = kept["records"].as_array().and_then(|all| all.iter().find(|r| r["volume"] == bad.as_str()));
    let repair = json!({ "records": [kept.expect("kept")["record"]], "incarnation": "2" });
    assert_eq!(host.ask("store.repair_apply", repair), json!({ "written": 1, "kept": 0 }));
    open(&host, &bad, "closed").expect("opens when it was repaired");
    close(&host, &bad);
    assert_same(&cluster, &host, &socket, &good, &file);
    close(&host, &good);
}

/// Everything else that a daemon reads there: hosts, its pools, the store's own identity.
#[test]
fn garbage_under_the_stores_other_keys_ends_nothing_that_runs() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(|host| host.make_pool());
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let epoch = hosts[0].ask("session.show", json!({ "volume": volume }))["epoch"].clone();

    let second = format!("/weft/v1/host/{}", hosts[1].id);
    for text in ["{", "{\"address\":7}", "{\"address\":\"nowhere\"}", "[]"] {
        cluster.put_text(&second, text);
    }
    cluster.put_text("/weft/v1/host/not-a-host", "{}");
    let identity = cluster.get("/weft/v1/store");
    for text in ["{", "{\"cluster\":\"x\"}", "{\"cluster\":null,\"incarnation\":\"-1\"}"] {
        cluster.put_text("/weft/v1/store", text);
        let error =
            hosts[0].try_ask("volume.delete", json!({ "volume": volume })).expect_err("no store to believe");
        assert_eq!(error["code"], "E-STORE-02", "{text}: {error}");
    }
    assert_same(&cluster, &hosts[0], &socket, &volume, &file);
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    cluster.put("/weft/v1/store", &identity);
    let session = hosts[0].ask("session.show", json!({ "volume": volume }));
    assert_eq!((&session["epoch"], &session["phase"]), (&epoch, &json!("serving")), "nobody was taken out");

    // The pool's own entry counts at its next start.
    let pool_key = format!("/weft/v1/pool/{}", hosts[1].pool);
    let entry = cluster.get(&pool_key);
    cluster.put_text(&pool_key, "garbage");
    hosts[1].kill();
    hosts[1].start();
    let pool = hosts[1].pool_until(|p| p["state"] == "quarantined");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("can't be understood")), "{pool}");
    let ask =
        json!({ "volume": volume, "rid": 9, "pool": hosts[1].pool, "size": "4096", "region_shift": 20 });
    assert_eq!(hosts[1].try_ask("replica.create", ask).expect_err("quarantined")["code"], "E-POOL-03");
    cluster.say_address(&hosts[1].id, &hosts[1].address);
    cluster.put(&pool_key, &entry);
    hosts[1].kill();
    hosts[1].start();
    hosts[1].await_pool();
    hosts[0]
        .ask_until("session.show", &json!({ "volume": volume }), |s| s["members"][1]["state"] == "INSYNC");
    assert_same(&cluster, &hosts[0], &socket, &volume, &file);
    close(&hosts[0], &volume);
}

/// The store was restored from a backup while an owner lives. A repair reads what the replicas keep: from then on the
/// host obeys nobody of the store's past, or a promise that was on its way could make a younger record after the
/// answer (R11).
#[test]
fn a_host_that_tells_its_records_to_a_repair_obeys_no_session_of_before() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    open(&host, &volume, "closed").expect("opens");
    let before = host.ask("replica.records", json!({}));
    assert_eq!(
        host.ask("store.show", json!({}))["watermark"]["incarnation"],
        "1",
        "nothing is fenced in peace"
    );

    cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "0" }));
    let refused = host.try_ask(
        "session.open",
        json!({
            "volume": make_id(), "mode": "closed", "export": null, "caretaker": false, "old_stopped": false
        }),
    );
    assert!(refused.is_err(), "{refused:?}");
    host.ask_until("store.show", &json!({}), |s| s["rolled_back"] == true);
    let told = host.ask("replica.records", json!({}));
    assert_eq!(told["records"], before["records"], "the copy is told all the same");
    // Asked again: the incarnation that the repair was told to exceed still suffices.
    host.ask("replica.records", json!({}));
    assert_eq!(
        host.ask("store.show", json!({}))["watermark"]["incarnation"],
        "2",
        "and nobody of before is obeyed"
    );

    let incarnation = "3";
    let records: Vec<Value> =
        told["records"].as_array().expect("a list").iter().map(|r| r["record"].clone()).collect();
    host.ask("store.repair_apply", json!({ "records": records, "incarnation": incarnation }));
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["phase"] == "ended");
    open(&host, &volume, "steal").expect("opens in the repaired store");
    close(&host, &volume);
}

fn make_id() -> String {
    "00000000-0000-4000-8000-00000000aaaa".to_owned()
}
