//! Scenarios of docs/scenarios.md that need whole daemons: many volumes, kernels that differ.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::guests::Guest;
use super::support::host::{
    Cluster, Host, SIZE, assert_same, close, copy, make_volume, nbd, open, random_file,
};

const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// D5: discards and zeroes whose ends are no block's, over a kernel with io_uring and one without. Each copy reads as
/// zero where it must, and nowhere else.
#[test]
fn unaligned_discards_read_as_zero_on_every_kind_of_host() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let drivers = hosts.iter().map(|h| h.ask("hello", json!({}))["driver"].clone()).collect::<Vec<_>>();
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let mut bytes = std::fs::read(&file).expect("read");
    let mut guest = Guest::connect(&socket);
    let mib = 1 << 20;
    let ranges = [
        (TRIM, 4096, 4096),
        (TRIM, 10_001, 1),
        (TRIM, 20_480, 4095),
        (TRIM, 40_000, 30_000),
        (WRITE_ZEROES, 100_001, 8190),
        (WRITE_ZEROES, 200_000, 5000),
        (TRIM, mib - 513, 2 * mib + 1026),
        (WRITE_ZEROES, 5 * mib + 1, mib),
    ];
    for (cookie, (command, offset, len)) in (1..).zip(ranges) {
        guest.send(command, cookie, offset as u64, u32::try_from(len).expect("short"));
        assert_eq!(guest.reply(), (cookie, 0), "{offset} + {len} by {drivers:?}");
        bytes[offset..offset + len].fill(0);
    }
    drop(guest);
    std::fs::write(&file, bytes).expect("written");
    // An owner reads from its own host's copy.
    assert_same(&cluster, &hosts[0], &socket, &volume, &file);
    close(&hosts[0], &volume);
    let socket = open(&hosts[1], &volume, "closed").expect("opens");
    assert_same(&cluster, &hosts[1], &socket, &volume, &file);
    close(&hosts[1], &volume);
}

/// M19: a host falls silent under fifty volumes whose guests write. Each takes its member out by a swap of its own; no
/// guest waits for ten seconds, and all copies come back.
#[test]
fn fifty_volumes_take_a_silent_host_out_within_ten_seconds() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let volumes: Vec<String> = (0..50).map(|_| make_volume(&[&hosts[0], &hosts[1]])).collect();
    let mut guests: Vec<Guest> = volumes
        .iter()
        .map(|volume| Guest::connect(&open(&hosts[0], volume, "closed").expect("opens")))
        .collect();
    let write = |guest: &mut Guest, cookie: u64| {
        use std::io::Write as _;
        guest.send(WRITE, cookie, SIZE / 2, 4096);
        guest.0.write_all(&[7; 4096]).expect("sent");
    };
    for guest in &mut guests {
        write(guest, 1);
        assert_eq!(guest.reply(), (1, 0));
    }
    let silent = Pid::from_child(hosts[1].process.as_ref().expect("it runs"));
    kill_process(silent, Signal::STOP).expect("stopped");
    let began = Instant::now();
    for guest in &mut guests {
        write(guest, 2);
    }
    for guest in &mut guests {
        assert_eq!(guest.reply(), (2, 0));
    }
    let stall = began.elapsed();
    assert!(stall < Duration::from_secs(10), "{stall:?}");
    for volume in &volumes {
        let shown = hosts[0].ask("session.show", json!({ "volume": volume }));
        assert_eq!(shown["members"][1]["state"], "STALE", "{shown}");
        let stall_ms = shown["figures"]["stall_ms_max"].as_str().and_then(|ms| ms.parse::<u64>().ok());
        assert!(stall_ms.is_some_and(|ms| ms < 10_000), "{shown}");
    }
    kill_process(silent, Signal::CONT).expect("goes on");
    for volume in &volumes {
        hosts[0].ask_until("session.show", &json!({ "volume": volume }), |s| {
            s["members"][1]["state"] == "INSYNC"
        });
    }
}
