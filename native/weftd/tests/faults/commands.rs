//! The control socket: names, sizes and JSON that make no sense.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use super::support::host::{Cluster, SIZE, assert_same, close, copy, make_volume, nbd, open, random_file};

/// Parameters that no method may take, with the code that says so.
fn nonsense(volume: &str, pool: &str) -> Vec<(&'static str, Value, &'static str)> {
    let nobody = "00000000-0000-4000-8000-00000000dead";
    let replica = |size: &str, shift: Value, rid: Value| json!({ "volume": nobody, "rid": rid, "pool": pool, "size": size, "region_shift": shift });
    let session = |volume: &str, path: Value| {
        json!({ "volume": volume, "mode": "closed", "export": { "nbd": { "path": path } }, "caretaker": false,
            "old_stopped": false })
    };
    let limited = |limits: Value| {
        json!({ "volume": volume, "mode": "closed", "export": null, "caretaker": false, "old_stopped": false,
            "limits": limits })
    };
    let limit = |volume: &str, limits: Value| json!({ "volume": volume, "limits": limits });
    let policy = |volume: &str, copies: u8, min_isr: u8| json!({ "volume": volume, "copies": copies, "min_isr": min_isr, "spread": "host" });
    let configure = |address: &str| json!({ "cluster": nobody, "host": nobody, "name": "x", "address": address, "endpoints": [] });
    vec![
        ("volume.make", json!({}), "E-ARG-01"),
        ("", json!({}), "E-ARG-01"),
        ("why", json!([]), "E-ARG-02"),
        ("why", json!({ "volume": "../../etc/passwd" }), "E-ARG-02"),
        ("why", json!({ "volume": volume.replace('-', "") + "00" }), "E-ARG-02"),
        ("why", json!({ "volume": { "$ne": null } }), "E-ARG-02"),
        ("replica.create", replica("0", json!(20), json!(1)), "E-ARG-02"),
        ("replica.create", replica("4097", json!(20), json!(1)), "E-ARG-02"),
        ("replica.create", replica("-4096", json!(20), json!(1)), "E-ARG-02"),
        ("replica.create", replica("1e9", json!(20), json!(1)), "E-ARG-02"),
        ("replica.create", replica("18446744073709551616", json!(20), json!(1)), "E-ARG-02"),
        ("replica.create", replica("18446744073709547520", json!(20), json!(1)), "E-ARG-02"),
        ("replica.create", replica("8388608", json!(0), json!(1)), "E-ARG-02"),
        ("replica.create", replica("8388608", json!(63), json!(1)), "E-ARG-02"),
        ("replica.create", replica("8388608", json!(255), json!(1)), "E-ARG-02"),
        ("replica.create", replica("8388608", json!(20), json!(-1)), "E-ARG-02"),
        ("replica.create", replica("8388608", json!(20), json!(1.5)), "E-ARG-02"),
        ("replica.create", replica("8388608", json!(20), json!(4_294_967_296_u64)), "E-ARG-02"),
        (
            "replica.create",
            json!({ "volume": nobody, "rid": 1, "pool": nobody, "size": "4096", "region_shift": 20 }),
            "E-ARG-01",
        ),
        ("replica.trash", json!({ "volume": nobody, "rid": 1, "pool": nobody }), "E-ARG-01"),
        (
            "replica.add",
            json!({ "volume": volume, "rid": u32::MAX, "node": nobody, "pool": nobody }),
            "E-ARG-02",
        ),
        ("replica.add", json!({ "volume": nobody, "rid": 1, "node": nobody, "pool": nobody }), "E-VOL-13"),
        ("replica.remove", json!({ "volume": nobody, "rid": 1 }), "E-VOL-13"),
        ("volume.policy", policy(nobody, 1, 1), "E-VOL-13"),
        ("volume.policy", policy(volume, 0, 0), "E-ARG-02"),
        ("volume.policy", policy(volume, 1, 2), "E-ARG-02"),
        ("volume.policy", policy(volume, 9, 1), "E-ARG-02"),
        ("volume.policy", policy(volume, 2, 2), "E-REPL-03"),
        (
            "volume.policy",
            json!({ "volume": volume, "copies": 1, "min_isr": 1, "spread": "x".repeat(5000) }),
            "E-ARG-02",
        ),
        ("pool.create", json!({ "path": "relative/path" }), "E-ARG-02"),
        ("pool.create", json!({ "path": "/nul\u{0}byte" }), "E-POOL-01"),
        ("pool.create", json!({ "path": format!("/tmp/{}", "x".repeat(5000)) }), "E-ARG-02"),
        ("pool.create", json!({ "path": "/proc/weft" }), "E-POOL-01"),
        ("pool.create", json!({ "path": "/dev/null" }), "E-POOL-01"),
        ("pool.create", json!({ "path": "/usr" }), "E-POOL-02"),
        ("pool.remove", json!({ "pool": nobody }), "E-ARG-01"),
        ("volume.create", json!({ "record": {} }), "E-ARG-02"),
        ("volume.create", json!({ "record": { "min_reader": 9 } }), "E-ARG-02"),
        ("volume.create", json!({ "record": "x".repeat(1 << 20) }), "E-ARG-02"),
        ("volume.delete", json!({ "volume": nobody }), "E-ARG-01"),
        ("session.open", session(nobody, Value::Null), "E-ARG-01"),
        ("session.open", session(volume, json!("relative.sock")), "E-ARG-02"),
        ("session.open", session(volume, json!(format!("/tmp/{}", "x".repeat(200)))), "E-ARG-02"),
        ("session.open", session(volume, json!("/tmp/nul\u{0}byte")), "E-ARG-02"),
        ("session.open", json!({ "volume": volume, "mode": "theft" }), "E-ARG-02"),
        ("session.open", limited(json!({ "iops": 0, "bps": null, "burst_s": 1 })), "E-ARG-02"),
        ("session.open", limited(json!({ "iops": 1.5, "bps": null, "burst_s": 1 })), "E-ARG-02"),
        ("session.limit", limit(volume, json!({ "iops": null, "bps": null, "burst_s": 1 })), "E-ARG-02"),
        ("session.limit", limit(volume, json!({ "iops": -1, "bps": null, "burst_s": 1 })), "E-ARG-02"),
        ("session.limit", limit(volume, json!({ "iops": null, "bps": "4095", "burst_s": 1 })), "E-ARG-02"),
        (
            "session.limit",
            limit(volume, json!({ "iops": null, "bps": "18446744073709551616", "burst_s": 1 })),
            "E-ARG-02",
        ),
        ("session.limit", limit(volume, json!({ "iops": null, "bps": 1e9, "burst_s": 1 })), "E-ARG-02"),
        ("session.limit", limit(volume, json!({ "iops": 5, "bps": null, "burst_s": 61 })), "E-ARG-02"),
        (
            "session.limit",
            limit(volume, json!({ "iops": 5, "bps": null, "burst_s": 1, "burst": 1 })),
            "E-ARG-02",
        ),
        ("session.limit", limit(volume, json!("none")), "E-ARG-02"),
        ("session.limit", limit(nobody, Value::Null), "E-VOL-13"),
        ("session.close", json!({ "volume": nobody, "abandon": false }), "E-VOL-13"),
        ("session.show", json!({ "volume": nobody }), "E-VOL-13"),
        ("configure", configure("not an address"), "E-ARG-02"),
        ("configure", configure("10.0.0.1"), "E-HOST-04"),
        ("store.repair_apply", json!({ "records": [{}], "incarnation": "1" }), "E-ARG-02"),
    ]
}

/// A guest is served all the while: each refusal has its code, and nothing else comes of it.
#[test]
fn nonsense_at_the_control_socket_is_refused_with_its_code() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));

    let before = host.ask("pool.list", json!({}))["pools"].clone();
    let mut client = host.client();
    for (method, params, code) in nonsense(&volume, &host.pool) {
        let shown: String = params.to_string().chars().take(200).collect();
        let error = client.ask(method, params).map_or_else(|error| error, |done| json!({ "done": done }));
        assert_eq!(error["code"], code, "{method} {shown}: {error}\n{}", host.log());
        let sentence = error["message"].as_str().unwrap_or_default();
        assert!(!sentence.is_empty() && sentence.len() < 1000, "{method} {shown}: {sentence:?}");
    }
    let after = host.ask("pool.list", json!({}))["pools"].clone();
    assert_eq!(after.as_array().map(Vec::len), before.as_array().map(Vec::len), "no pool was made");
    assert_eq!(host.ask("replica.list", json!({}))["replicas"].as_array().map(Vec::len), Some(1));
    host.assert_alive();
    assert_same(&cluster, &host, &socket, &volume, &file);
    close(&host, &volume);
}

/// A number above the record's next one is what an agent gives when a try before it got no further than the disk.
#[test]
fn a_replica_is_added_with_a_number_above_the_records_next_one() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(|host| host.make_pool());
    let [first, second] = &hosts;
    let volume = make_volume(&[first]);
    let made = json!({ "volume": volume, "rid": 7, "pool": second.pool, "size": SIZE.to_string(), "region_shift": 20 });
    second.ask("replica.create", made);
    open(first, &volume, "closed").expect("opens");
    first.ask("replica.add", json!({ "volume": volume, "rid": 7, "node": second.id, "pool": second.pool }));
    first.ask_until("session.show", &json!({ "volume": volume }), |s| s["members"][1]["state"] == "INSYNC");
    let record = cluster.get(&format!("/weft/v1/vol/{volume}/state"));
    assert_eq!((&record["next_rid"], &record["replicas"][1]["rid"]), (&json!(8), &json!(7)));
    let lower = json!({ "volume": volume, "rid": 5, "node": second.id, "pool": second.pool });
    assert!(first.try_ask("replica.add", lower).is_err(), "a number below the next one was given out before");
    close(first, &volume);
}

/// `configure` after the agent has written `host.json`: what only the file says stays, and counts.
#[test]
fn configure_keeps_what_only_the_host_file_says() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    host.kill();
    let path = host.home.join("state/host.json");
    let boot_id = host.home.join("boot_id");
    std::fs::write(&boot_id, "00000000-0000-4000-8000-00000000b007\n").expect("written");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    std::fs::remove_file(&path).expect("removed");
    host.start();
    file["bootIdFile"] = json!(boot_id);
    file["later"] = json!({ "kept": true });
    std::fs::write(&path, file.to_string()).expect("written");
    let told = json!({ "cluster": cluster.id, "host": host.id, "name": "renamed", "address": host.address,
        "endpoints": [cluster.etcd.url] });
    host.ask("configure", told);
    host.await_pool();
    let kept: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    file["name"] = json!("renamed");
    assert_eq!(kept, file);
    let pool = cluster.get(&format!("/weft/v1/pool/{}", host.pool));
    assert_eq!(pool["boot_id"], "00000000-0000-4000-8000-00000000b007", "the file's, not the kernel's");
}

/// 10,000 commands from a client that reads no answer, then JSON as deep as a line is long.
#[test]
fn a_client_that_floods_the_control_socket_costs_little_memory() {
    let cluster = Cluster::start();
    let host = cluster.host(1);
    let before = host.resident();
    let mut flood = host.client();
    flood.stream.set_nonblocking(true).expect("set");
    let line = b"{\"id\":1,\"method\":\"link.list\",\"params\":{}}\n";
    let mut sent = 0;
    while sent < 10_000 && flood.stream.write(line).is_ok_and(|n| n == line.len()) {
        sent += 1;
    }
    assert!(sent > 64, "the socket takes some: {sent}");
    let mut deep = host.client();
    let nested = format!("{{\"id\":1,\"method\":\"why\",\"params\":{}", "[".repeat(1 << 20));
    let _ = deep.stream.write_all(nested.as_bytes());
    let _ = deep.stream.write_all(b"\n");
    let mut answer = [0; 512];
    let len = deep.stream.read(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
    assert!(answer.contains("E-ARG-02"), "{answer}");
    host.assert_alive();
    let grown = host.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
}
