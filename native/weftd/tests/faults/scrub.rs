//! Bits that flip below the daemon: found by a scrub or by a guest's read, and written again from the other copy.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guests::Guest;
use super::support::PATIENCE;
use super::support::host::{
    Cluster, Host, SIZE, assert_same, close, copy, make_volume, nbd, open, random_file,
};

const WRITE: u16 = 1;
const BLOCK: u64 = 4096;

/// The file that holds a volume's first 64 MiB.
fn data_of(host: &Host, volume: &str) -> PathBuf {
    let replicas = host.pool_dir().join("replicas");
    let ours = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(volume));
    let mut entries = fs::read_dir(&replicas).expect("listed").map(|entry| entry.expect("read"));
    let entry = entries.find(ours).unwrap_or_else(|| panic!("no copy of {volume} in {replicas:?}"));
    entry.path().join("seg-000000")
}

/// A bit of a block flips on the disk.
fn flip(file: &Path, block: u64) {
    let disk = fs::File::options().read(true).write(true).open(file).expect("there");
    let (mut byte, at) = ([0], block * BLOCK + 77);
    disk.read_exact_at(&mut byte, at).expect("read");
    disk.write_all_at(&[byte[0] ^ 4], at).expect("written");
    disk.sync_all().expect("synced");
}

/// Whoever waits for this knows when the test ends, also by a failure.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no number: {value}"))
}

fn scrub(host: &Host, volume: &str, rate: Option<u64>) {
    host.ask("scrub.start", json!({ "volume": volume, "rate": rate.map(|rate| rate.to_string()) }));
}

/// Waits until the scrub has looked at everything, and gives what it says.
fn scrubbed(host: &Host, volume: &str) -> Value {
    let done = |s: &Value| s["scrub"]["state"] == "done";
    let session = host.ask_until("session.show", &json!({ "volume": volume }), done);
    assert_eq!(session["scrub"]["done_bytes"], session["scrub"]["total_bytes"], "{session}");
    session["scrub"].clone()
}

/// Two hosts with a copy each of a volume that is full of a file's bytes, closed.
struct Filled {
    cluster: Cluster,
    hosts: [Host; 2],
    volume: String,
    file: PathBuf,
    /// Where the copies lie.
    disks: [PathBuf; 2],
}

/// What is sealed has a checksum that counts after any restart: so has all of this, since it was closed.
fn filled() -> Filled {
    let cluster = Cluster::start();
    let mut hosts = [1, 2].map(|number| cluster.host(number));
    hosts.iter_mut().for_each(|host| host.make_pool());
    let [first, second] = &hosts;
    let volume = make_volume(&[first, second]);
    let socket = open(first, &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    close(first, &volume);
    let disks = [data_of(first, &volume), data_of(second, &volume)];
    Filled { cluster, hosts, volume, file, disks }
}

/// D15, D7: a guest writes one half of the volume as fast as it goes; in the other half bits flip below either daemon,
/// while scrub after scrub runs. Nothing is found that is not there, what is there is mended, the guest is never refused,
/// and the copies are the same byte for byte in the end.
#[test]
fn bits_that_flip_below_a_busy_guest_are_found_and_mended() {
    let Filled { cluster, hosts: [first, second], volume, file, disks } = filled();
    let socket = open(&first, &volume, "closed").expect("opens");
    let half = SIZE / 2;

    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut bytes = fs::read(&file).expect("read");
    let flipped = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            // Eight writes under way all the time.
            let mut guest = Guest::connect(&socket);
            let len = 64u64 << 10;
            let places = half / len;
            let mut sent = 0u64;
            let mut answered = 0u64;
            while answered < sent || !stop.load(Ordering::SeqCst) {
                while sent < answered + 8 && !stop.load(Ordering::SeqCst) {
                    let byte = u8::try_from(sent % 251).expect("a byte");
                    guest.send(WRITE, sent, sent * 7 % places * len, u32::try_from(len).expect("short"));
                    guest.0.write_all(&vec![byte; usize::try_from(len).expect("short")]).expect("sent");
                    sent += 1;
                }
                if answered < sent {
                    assert_eq!(guest.reply().1, 0, "a write was refused");
                    answered += 1;
                    written.store(answered, Ordering::SeqCst);
                }
            }
            sent
        });
        let _ended = Ended(&stop);
        let mut flipped = 0;
        for round in 0..4u64 {
            // Two beside each other, one alone, and the last block of a megabyte, on each host in turn.
            for (i, block) in [1030, 1031, 1100, 1279].into_iter().enumerate() {
                flip(&disks[(usize::try_from(round).expect("few") + i / 2) % 2], block + round * 4);
                flipped += 1;
            }
            // Once more each, until the guest has written while it went on.
            let mut left = 4;
            let until = Instant::now() + PATIENCE;
            loop {
                let before = written.load(Ordering::SeqCst);
                scrub(&first, &volume, Some(16 << 20));
                let found = scrubbed(&first, &volume);
                let counts = ["rotten", "repaired", "divergent", "lost"].map(|name| number(&found[name]));
                assert_eq!(counts, [left, left, 0, 0], "{found}\n{}", first.log());
                assert_eq!(number(&found["compared_bytes"]), SIZE, "hot ranges are left out: {found}");
                left = 0;
                if written.load(Ordering::SeqCst) >= before + 8 {
                    break;
                }
                assert!(Instant::now() < until, "the plot needs a guest that writes\n{}", first.log());
            }
        }
        stop.store(true, Ordering::SeqCst);
        let sent = guest.join().expect("the guest is served");
        let len = 64usize << 10;
        let places = usize::try_from(half).expect("fits") / len;
        for n in 0..sent {
            let place = usize::try_from(n).expect("fits") * 7 % places * len;
            bytes[place..place + len].fill(u8::try_from(n % 251).expect("a byte"));
        }
        flipped
    });

    let session = first.ask("session.show", json!({ "volume": volume }));
    let figures = &session["figures"];
    assert_eq!((number(&figures["rotten_blocks"]), number(&figures["repaired_blocks"])), (flipped, flipped));
    assert!(session["members"].as_array().is_some_and(|all| all.iter().all(|m| m["state"] == "INSYNC")));
    // Each host has counted what its own disk gave; nothing of it is left.
    let rot = [&first, &second].map(|host| {
        let pool = host.pool_until(|p| p["bit_rot_left"] == "0");
        number(&pool["bit_rot"])
    });
    assert!(rot.iter().sum::<u64>() == flipped && rot.iter().all(|n| *n > 0), "{rot:?}");
    fs::write(&file, &bytes).expect("written");
    assert_same(&cluster, &first, &socket, &volume, &file);
    close(&first, &volume);
    for disk in &disks {
        let held = fs::read(disk).expect("read");
        assert!(held[..bytes.len()] == bytes[..], "{}: another copy\n{}", disk.display(), first.log());
    }
}

/// D7: a guest meets the rot before any scrub does. It is served by the other copy, and its own is mended behind it.
/// Detached, a caretaker does the same; and one block that has rotted on both is told, and not invented.
#[test]
fn rot_that_a_guest_meets_is_mended_and_a_caretaker_finds_the_rest() {
    let Filled { cluster, hosts: [first, _second], volume, file, disks } = filled();
    let refused = |method: &str, ask: Value| first.try_ask(method, ask).expect_err("refused")["code"].clone();
    assert_eq!(refused("scrub.start", json!({ "volume": volume, "rate": null })), "E-VOL-13");
    assert_eq!(refused("scrub.stop", json!({ "volume": volume })), "E-VOL-13");

    let socket = open(&first, &volume, "closed").expect("opens");
    assert_eq!(refused("scrub.start", json!({ "volume": volume, "rate": "0" })), "E-ARG-02");
    flip(&disks[0], 300);
    assert_same(&cluster, &first, &socket, &volume, &file);
    let mended = |s: &Value| s["figures"]["repaired_blocks"] == "1";
    let session = first.ask_until("session.show", &json!({ "volume": volume }), mended);
    assert_eq!(
        (&session["scrub"], &session["figures"]["lost_blocks"]),
        (&Value::Null, &json!("0")),
        "{session}"
    );
    let pool = first.pool_until(|p| p["bit_rot"] == "1" && p["bit_rot_left"] == "0");
    assert_eq!(pool["state"], "serving");
    close(&first, &volume);

    let ask = json!({ "volume": volume, "mode": "closed", "export": null, "caretaker": true, "old_stopped": false });
    first.ask("session.open", ask);
    flip(&disks[1], 300);
    flip(&disks[0], 301);
    flip(&disks[0], 2000);
    flip(&disks[1], 2000);
    // Slowly, and stopped: what it has done stands.
    scrub(&first, &volume, Some(1));
    let started = first.ask("session.show", json!({ "volume": volume }));
    assert_eq!((&started["scrub"]["state"], &started["scrub"]["rate"]), (&json!("running"), &json!("1")));
    first.ask("scrub.stop", json!({ "volume": volume }));
    first.ask("scrub.stop", json!({ "volume": volume }));
    let stopped = first.ask("session.show", json!({ "volume": volume }));
    assert_eq!(stopped["scrub"]["state"], "stopped", "{stopped}");
    assert!(number(&stopped["scrub"]["ended"]) >= number(&stopped["scrub"]["started"]), "{stopped}");
    scrub(&first, &volume, None);
    let found = scrubbed(&first, &volume);
    assert_eq!(number(&found["lost"]), 1, "{found}");
    close(&first, &volume);
    // What was lost is what it was before, on both: with a bit that is wrong, and a checksum that says so.
    let bytes = fs::read(&file).expect("read");
    for disk in &disks {
        let held = fs::read(disk).expect("read");
        let differs =
            (0..bytes.len()).step_by(4096).filter(|at| held[*at..at + 4096] != bytes[*at..at + 4096]);
        assert_eq!(differs.collect::<Vec<_>>(), [2000 * 4096], "{}", disk.display());
    }
    let socket = open(&first, &volume, "closed").expect("opens");
    let mut guest = Guest::connect(&socket);
    guest.send(0, 1, 2000 * BLOCK, 4096);
    guest.0.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    assert_eq!(guest.reply(), (1, 5), "no copy has it: EIO, and no other bytes");
    close(&first, &volume);
}
