//! Limits of a volume, as its guests feel them: what they get, what a change does, and that nothing waits for a limit but
//! them.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::guests::Guest;
use super::support::host::{Cluster, Host, close, make_volume, nbd, open};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const ESHUTDOWN: u32 = 108;
const BLOCK: u32 = 4096;

fn limit(host: &Host, volume: &str, limits: &Value) {
    assert_eq!(host.ask("session.limit", json!({ "volume": volume, "limits": limits })), json!({}));
    assert_eq!(show(host, volume)["limits"], *limits);
}

fn show(host: &Host, volume: &str) -> Value {
    host.ask("session.show", json!({ "volume": volume }))
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// One request a second.
fn slowest() -> Value {
    json!({ "iops": 1, "bps": null, "burst_s": 0 })
}

/// Writes of one block each, to blocks `from..to`, named by their blocks.
fn write_blocks(guest: &mut Guest, blocks: std::ops::Range<u64>) {
    for block in blocks {
        guest.send(WRITE, block, block * u64::from(BLOCK), BLOCK);
        guest.0.write_all(&content(block)).expect("sent");
    }
}

fn content(block: u64) -> Vec<u8> {
    block.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn assert_written(socket: &Path, blocks: std::ops::Range<u64>) {
    let mut guest = Guest::connect(socket);
    for block in blocks {
        guest.send(READ, block, block * u64::from(BLOCK), BLOCK);
        assert_eq!(guest.reply(), (block, 0));
        let mut data = vec![0; BLOCK as usize];
        guest.0.read_exact(&mut data).expect("data");
        assert!(data == content(block), "block {block}");
    }
}

/// A volume that a guest has written to: one write was answered, of all others only one a second goes on.
struct Waiting {
    volume: String,
    guest: Guest,
}

const WRITES: u64 = 200;

impl Waiting {
    fn begin(host: &Host, replicas: &[&Host]) -> Waiting {
        let volume = make_volume(replicas);
        let socket = open(host, &volume, "closed").expect("opens");
        limit(host, &volume, &slowest());
        let mut guest = Guest::connect(&socket);
        write_blocks(&mut guest, 0..WRITES);
        assert_eq!(guest.reply(), (0, 0), "the first one goes at once");
        // All have come; two or three more may have gone in the meantime.
        host.ask_until("session.show", &json!({ "volume": volume }), |s| {
            let answered = s["figures"]["writes"].as_str().and_then(|writes| writes.parse::<u64>().ok());
            let held = s["held"].as_u64().zip(answered);
            held.is_some_and(|(held, answered)| held + answered == WRITES && held >= WRITES - 20)
        });
        Waiting { volume, guest }
    }

    /// The errors that the writes were answered with, all that still come.
    fn answers(&mut self) -> Vec<u32> {
        (1..WRITES).map(|_| self.guest.reply().1).collect()
    }
}

/// What fio got within the time that it needed.
fn fio(socket: &Path, volume: &str, options: &[&str]) -> (Value, f64) {
    let begun = Instant::now();
    let output = Command::new("fio")
        .args([
            "--name=f",
            "--ioengine=nbd",
            &format!("--uri={}", nbd(socket, volume)),
            "--output-format=json",
        ])
        .args(["--size=8m", "--time_based", "--runtime=4", "--randrepeat=0"])
        .args(options)
        .output()
        .expect("fio is installed");
    let seconds = begun.elapsed().as_secs_f64();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let json = text.get(text.find('{').expect("JSON")..).expect("JSON");
    let told: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {text}"));
    (told["jobs"][0].clone(), seconds)
}

#[test]
fn a_guest_gets_what_its_limit_gives_and_not_more() {
    let cluster = Cluster::start();
    for number in [1, 2] {
        let mut host = cluster.host(number);
        host.make_pool();
        let volume = make_volume(&[&host]);
        let ask = json!({ "volume": volume, "mode": "closed", "export": { "nbd": { "path": null } },
            "caretaker": false, "old_stopped": false, "limits": { "iops": 250, "bps": null, "burst_s": 1 } });
        let opened = host.ask("session.open", ask);
        let socket = Path::new(opened["path"].as_str().expect("a path")).to_owned();
        let bytes = json!({ "iops": null, "bps": (4 << 20).to_string(), "burst_s": 1 });
        for (change, options, unit, rate) in [
            (None, ["--rw=randrw", "--bs=4k", "--iodepth=16"], "total_ios", 250.0),
            (Some(bytes), ["--rw=randrw", "--bs=64k", "--iodepth=8"], "io_bytes", f64::from(4 << 20)),
        ] {
            if let Some(change) = change {
                limit(&host, &volume, &change);
            }
            let before = show(&host, &volume)["figures"]["waits"].clone();
            let (told, seconds) = fio(&socket, &volume, &options);
            let (reads, writes) = (&told["read"], &told["write"]);
            let got = reads[unit].as_f64().expect("a number") + writes[unit].as_f64().expect("a number");
            assert!(got <= rate * seconds + rate, "{got} in {seconds} s: {told}");
            // By its own clock, which stands still while it connects: the rate, and one burst.
            let ran = told["job_runtime"].as_f64().expect("a number") / 1000.0;
            let share = rate * ran + rate;
            assert!(got >= 0.9 * share, "{got} of {share} in {ran} s: {told}");
            let waits = show(&host, &volume)["figures"]["waits"].clone();
            for (side, ours) in [(reads, "reads"), (writes, "writes")] {
                let more = self::number(&waits[ours]["count"]) - self::number(&before[ours]["count"]);
                assert_eq!(Some(more), side["total_ios"].as_u64(), "{ours} are counted as fio counts them");
            }
        }
        close(&host, &volume);
    }
}

#[test]
fn a_flush_does_not_wait_for_a_limit_and_a_change_counts_at_once() {
    let cluster = Cluster::start();
    for number in [1, 2] {
        let mut host = cluster.host(number);
        host.make_pool();
        let Waiting { volume, mut guest } = Waiting::begin(&host, &[&host]);
        guest.send(FLUSH, 1_000_000, 0, 0);
        let mut answered = 0;
        loop {
            match guest.reply() {
                (1_000_000, error) => break assert_eq!(error, 0),
                (_, error) => assert_eq!(error, 0),
            }
            answered += 1;
        }
        assert!(answered < WRITES / 2, "the flush passed them");
        // Two more: all others wait for more than a second.
        for more in 1..WRITES - answered {
            assert_eq!(guest.reply().1, 0);
            if more == 2 {
                limit(&host, &volume, &Value::Null);
            }
        }
        let status = show(&host, &volume);
        assert_eq!(status["held"], 0);
        let waits = &status["figures"]["waits"];
        let limited = self::number(&waits["limited"]["count"]);
        assert!((WRITES / 2..WRITES).contains(&limited), "{limited} waited");
        let sum = |name: &str| self::number(&waits[name]["sum_us"]);
        assert!(sum("limited") > 1_000_000 * limited / 2 && sum("writes") > sum("limited"), "{waits}");
        assert!(sum("stalls") < sum("limited") / 2, "a limit is no stall: {waits}");
        close(&host, &volume);
        host.assert_alive();
    }
}

/// The guest has its answers when the detach has: of 200 seconds of writes none is waited for, and none is dropped.
#[test]
fn a_detach_does_not_wait_for_a_limit_and_drops_nothing() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let mut waiting = Waiting::begin(&host, &[&host]);
    close(&host, &waiting.volume);
    assert!(waiting.answers().iter().all(|error| *error == 0), "what was asked for was done");
    let socket = open(&host, &waiting.volume, "closed").expect("opens");
    assert_written(&socket, 0..WRITES);

    let mut waiting = Waiting::begin(&host, &[&host]);
    let closed = host.ask("session.close", json!({ "volume": waiting.volume, "abandon": true }));
    let errors = waiting.answers();
    let lost = errors.iter().filter(|error| **error == ESHUTDOWN).count() as u64;
    assert_eq!(closed["lost_writes"], lost, "what waited for the limit is lost, too");
    assert!(lost > WRITES / 2 && errors.iter().all(|error| [0, ESHUTDOWN].contains(error)), "{errors:?}");
}

#[test]
fn a_take_over_does_not_wait_for_a_limit() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(Host::make_pool);
    let [old, new] = &hosts;
    let mut waiting = Waiting::begin(old, &[old, new]);
    let socket = open(new, &waiting.volume, "steal").expect("opens");
    let errors = waiting.answers();
    let fenced = errors.iter().filter(|error| **error == ESHUTDOWN).count() as u64;
    assert!(fenced > WRITES / 2, "{errors:?}");
    assert_written(&socket, 0..1);
    assert_eq!(show(new, &waiting.volume)["limits"], Value::Null, "limits are told to each session");
    close(new, &waiting.volume);
}

#[test]
fn a_daemon_that_is_told_to_stop_does_not_wait_for_a_limit() {
    let cluster = Cluster::start();
    let mut host = cluster.host(2);
    host.make_pool();
    let mut waiting = Waiting::begin(&host, &[&host]);
    host.terminate();
    assert!(waiting.answers().iter().all(|error| *error == 0), "drained, as without a limit\n{}", host.log());
    assert!(!host.log().contains("not everything has ended in time"), "{}", host.log());
    host.start();
    host.await_pool();
    let socket = open(&host, &waiting.volume, "closed").expect("opens");
    assert_written(&socket, 0..WRITES);
    close(&host, &waiting.volume);
}

/// One that vanishes has asked for nothing more; one that says goodbye has what it asked for.
#[test]
fn a_guest_that_leaves_takes_along_what_waits_for_it() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let Waiting { volume, guest } = Waiting::begin(&host, &[&host]);
    drop(guest);
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["held"] == 0 && s["clients"] == 0);
    let socket = host.home.join(format!("run/nbd/{volume}.sock"));
    let mut guest = Guest::connect(&socket);
    write_blocks(&mut guest, 500..510);
    guest.send(DISCONNECT, 0, 0, 0);
    drop(guest);
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["held"].as_u64() > Some(5));
    limit(&host, &volume, &Value::Null);
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["held"] == 0 && s["clients"] == 0);
    assert_written(&socket, 500..510);
    close(&host, &volume);
}

/// A member that hangs is a stall of its volume's guests.
#[test]
fn a_member_that_hangs_stalls_guests_and_is_counted() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(Host::make_pool);
    let [owner, member] = &hosts;
    let volume = make_volume(&[owner, member]);
    let socket = open(owner, &volume, "closed").expect("opens");
    let mut guest = Guest::connect(&socket);
    write_blocks(&mut guest, 0..1);
    assert_eq!(guest.reply(), (0, 0));
    let quiet = show(owner, &volume);
    assert_eq!(quiet["figures"]["waits"]["writes"]["count"], "1");
    let pid = Pid::from_child(member.process.as_ref().expect("it runs"));
    kill_process(pid, Signal::STOP).expect("stopped");
    write_blocks(&mut guest, 1..4);
    owner.ask_until("session.show", &json!({ "volume": volume }), |s| {
        number(&s["figures"]["waits"]["gap_ms_max"]) >= 300
    });
    for _ in 1..4 {
        assert_eq!(guest.reply().1, 0, "the member is taken out");
    }
    kill_process(pid, Signal::CONT).expect("goes on");
    let waits = show(owner, &volume)["figures"]["waits"].clone();
    assert!(number(&waits["stalls"]["count"]) >= 3, "{waits}");
    assert!(
        waits["stalls"]["le_us"]
            .as_array()
            .is_some_and(|le| le.iter().any(|us| us.as_u64() > Some(1_000_000)))
    );
    assert!(number(&waits["gap_ms_max"]) >= 1000 && number(&waits["limited"]["count"]) == 0, "{waits}");
    close(owner, &volume);
}
