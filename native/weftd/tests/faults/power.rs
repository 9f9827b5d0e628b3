//! Pools on a disk that loses what was not flushed when the power goes, and on one in which a write is stuck.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use weft_checker::nbd::{self, Command, REPLY_HEAD};
use weft_checker::stamp::{self, Value};
use weft_faultfs::control::{self, Command as Fault};
use weft_faultfs::faults::What;
use weft_faultfs::mount::Mounted;

use super::support::PATIENCE;
use super::support::host::{
    Cluster, Host, assert_same, close, copy, examine_dir, make_volume, nbd as url, open, random_file,
};

const BLOCK: u64 = 4096;
const RUN: u64 = 1;
/// Blocks that are written over and over.
const BLOCKS: u64 = 96;

/// A host whose pool lies on a disk with faults on command.
struct Plot {
    host: Host,
    disk: Mounted,
    volume: String,
    cluster: Cluster,
}

impl Plot {
    fn start(number: u8) -> Plot {
        let cluster = Cluster::start();
        let mut host = cluster.host(number);
        host.kill();
        host.boot = Some(1);
        for name in ["disk", "pool"] {
            std::fs::create_dir(host.home.join(name)).expect("made");
        }
        let disk = Mounted::new(&host.home.join("disk"), &host.home.join("pool"));
        let disk = disk.expect("mounted: these tests run as root, with /dev/fuse");
        host.start();
        host.make_pool();
        let volume = make_volume(&[&host]);
        Plot { host, disk, volume, cluster }
    }

    fn fault(&self, fault: Fault) {
        control::obey(self.disk.shared(), fault).expect("obeyed");
    }

    /// Opens the volume and connects to it.
    fn guest(&self, mode: &str) -> Guest {
        let socket: PathBuf = open(&self.host, &self.volume, mode).expect("opens");
        let path = socket.to_str().expect("UTF-8");
        let (stream, _) = nbd::connect(path, &self.volume, 2 * PATIENCE).expect("connected");
        Guest { stream }
    }
}

struct Guest {
    stream: std::os::unix::net::UnixStream,
}

impl Guest {
    /// Sends a write of a stamp.
    fn send(&mut self, block: u64, id: u64) {
        use std::io::Write as _;
        let mut bytes = vec![0; 4096];
        stamp::fill(&mut bytes, block, RUN, id);
        let head = nbd::request(Command::Write, false, id, block * BLOCK, 4096);
        self.stream.write_all(&[head.as_slice(), &bytes].concat()).expect("sent");
    }

    /// The next write that was acknowledged; none when one failed or the connection ended.
    fn acknowledged(&mut self) -> Option<u64> {
        use std::io::Read as _;
        let mut head = [0; REPLY_HEAD];
        self.stream.read_exact(&mut head).ok()?;
        match nbd::reply(&head).ok()? {
            (0, id) => Some(id),
            _ => None,
        }
    }
}

fn until(what: &str, mut good: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_acknowledged_survives_power_cuts_and_the_pool_is_sound() {
    // The guest has eight writes under way when the power goes. Which of the volatile blocks, sizes and names the disk
    // keeps is another mixture each time: none, some, all.
    for number in [1, 2] {
        let mut plot = Plot::start(number);
        let mut acknowledged = vec![0; 96];
        let mut sent = acknowledged.clone();
        let mut id = 0;
        for (cut, keep) in [(1, 0), (2, 50), (3, 100), (4, 0)] {
            let mut guest = plot.guest(if cut == 1 { "closed" } else { "steal" });
            let mut under_way = std::collections::VecDeque::new();
            let mut answers = 0;
            loop {
                while under_way.len() < 8 {
                    id += 1;
                    // No block twice at once: its last acknowledged write is then the one that has to be there.
                    let block = id * 7 % BLOCKS;
                    guest.send(block, id);
                    sent[usize::try_from(block).expect("small")] = id;
                    under_way.push_back(id);
                }
                let Some(answer) = guest.acknowledged() else { break };
                acknowledged[usize::try_from(answer * 7 % BLOCKS).expect("small")] = answer;
                under_way.retain(|other| *other != answer);
                answers += 1;
                if answers == 150 {
                    plot.fault(Fault::PowerCut { keep, seed: cut });
                    plot.host.process.as_mut().expect("it runs").kill().expect("killed");
                }
            }
            assert!(answers >= 150, "the plot needs writes: {answers}\n{}", plot.host.log());
            plot.host.kill();
            plot.fault(Fault::PowerOn);
            let found = examine_dir(&plot.host.home.join("pool"));
            assert!(found.is_empty(), "cut {cut}, keep {keep}: {found}");
            plot.host.boot = Some(cut + 1);
            plot.host.start();
            plot.host.await_pool();
            let mut reader = plot.guest("steal");
            let read = nbd::read_blocks(&mut reader.stream, 0, BLOCKS).expect("read");
            for (block, value) in read.into_iter().enumerate() {
                let (least, most) = (acknowledged[block], sent[block]);
                let good = match value {
                    Value::Zero => least == 0,
                    Value::Stamp { run: RUN, id } => (least..=most).contains(&id),
                    _ => false,
                };
                assert!(good, "block {block}, cut {cut}: {value}, acknowledged {least}, sent {most}");
                // An unanswered write that is there now stays.
                if let Value::Stamp { id, .. } = value {
                    acknowledged[block] = id;
                }
            }
        }
        assert!(plot.cluster.get("/weft/v1/store")["incarnation"] == "1");
    }
}

/// P7: a drive calls durable what is in its cache. What it loses with the power is found by checksum, block by block,
/// where its log tells the truth, and by what the host keeps of the log where that lies too; either way the other copy
/// serves.
#[test]
fn what_a_lying_drive_lost_is_found_and_served_by_the_other_copy() {
    let mut plot = Plot::start(1);
    let mut other = plot.cluster.host(2);
    other.make_pool();
    plot.volume = make_volume(&[&plot.host, &other]);
    let volume = plot.volume.clone();
    let [first, second] = ["a", "b"].map(|name| random_file(&plot.cluster, name));
    let written = |plot: &Plot, file: &std::path::Path| {
        let socket = open(&plot.host, &volume, "closed").expect("opens");
        copy(file.to_str().expect("UTF-8"), &url(&socket, &volume));
        close(&plot.host, &volume);
    };
    let rebooted = |plot: &mut Plot, boot: u64| {
        let cut = control::obey(plot.disk.shared(), Fault::PowerCut { keep: 0, seed: 1 }).expect("cut");
        assert!(cut["dropped"]["blocks"].as_u64().is_some_and(|n| n > 100), "the plot needs a lie: {cut}");
        plot.host.kill();
        plot.fault(Fault::PowerOn);
        plot.host.boot = Some(boot);
        plot.host.start();
        plot.host.pool_until(|p| p["state"] == "quarantined" || p["state"] == "serving")
    };

    // The volume was closed in order: every block is sealed, and both copies count as in sync.
    written(&plot, &first);
    plot.fault(Fault::Lie { path: Some("*/seg-*".to_owned()) });
    written(&plot, &second);
    assert_eq!(rebooted(&mut plot, 2)["state"], "serving");
    let socket = open(&plot.host, &volume, "closed").expect("opens");
    // Nobody has read any of it: a scrub finds what is lost, and brings it back from the other copy.
    plot.host.ask("scrub.start", json!({ "volume": volume, "rate": null }));
    let done = |s: &serde_json::Value| s["scrub"]["state"] == "done";
    let session = plot.host.ask_until("session.show", &json!({ "volume": volume }), done);
    let count = |name: &str| session["scrub"][name].as_str().and_then(|text| text.parse::<u64>().ok());
    assert!(count("rotten").is_some_and(|n| n > 100), "{session}\n{}", plot.host.log());
    assert_eq!((count("repaired"), count("divergent"), count("lost")), (count("rotten"), Some(0), Some(0)));
    assert_eq!(
        session["scrub"]["members"].as_array().map(|all| (all.len(), all[0]["rid"].clone())),
        Some((1, json!(0)))
    );
    assert_eq!(session["members"][0]["state"], "INSYNC", "only what is lost is not believed: {session}");
    assert_same(&plot.cluster, &plot.host, &socket, &volume, &second);
    let again = plot.host.ask("session.show", json!({ "volume": volume }));
    assert_eq!(again["figures"]["rotten_blocks"], session["scrub"]["rotten"], "a guest meets nothing of it");
    close(&plot.host, &volume);

    // What the host keeps of the log is some seconds old at times: the second time it is surely of after the lie.
    plot.fault(Fault::Lie { path: None });
    let kept = || std::fs::read(plot.host.home.join("state/pool-logs.json")).unwrap_or_default();
    for _ in 0..2 {
        let before = kept();
        until("what is kept of the log grows", || {
            written(&plot, &first);
            kept() != before
        });
    }
    let pool = rebooted(&mut plot, 3);
    assert_eq!(pool["state"], "quarantined", "{pool}\n{}", plot.host.log());
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("log")), "{pool}");
    let socket = open(&other, &volume, "closed").expect("opens without the first copy");
    assert_same(&plot.cluster, &other, &socket, &volume, &first);
    close(&other, &volume);
}

#[test]
fn a_new_daemon_waits_for_the_stuck_write_of_the_killed_one() {
    // N3: killed with a write stuck in the disk, restarted at once. The new one says that it waits for the pool's lock;
    // the stuck write lands before anything newer does.
    let mut plot = Plot::start(1);
    let mut guest = plot.guest("closed");
    guest.send(5, 1);
    assert_eq!(guest.acknowledged(), Some(1));
    plot.fault(Fault::Stall { what: What::Write, ms: None, count: None, path: Some("*/seg-*".to_owned()) });
    guest.send(5, 2);
    until("the plot needs a write that is stuck", || plot.disk.shared().faults.counts().1 > 0);
    let mut killed = plot.host.process.take().expect("it runs");
    killed.kill().expect("killed");
    let gone = || killed.try_wait().expect("our child").is_some();
    until("the process is gone, its write is not", gone);
    plot.host.start();
    let info = plot.host.pool_until(|p| p["state"] != "starting");
    assert_eq!(info["state"], "waiting_lock", "{info}\n{}", plot.host.log());
    assert!(info["reason"].as_str().is_some_and(|r| r.contains("lock")), "{info}");
    plot.fault(Fault::Heal);
    plot.host.await_pool();
    let mut guest = plot.guest("steal");
    let stuck = nbd::read_blocks(&mut guest.stream, 5, 1).expect("read");
    guest.send(5, 3);
    assert_eq!(guest.acknowledged(), Some(3));
    let after = nbd::read_blocks(&mut guest.stream, 5, 1).expect("read");
    let stamp = |id| vec![Value::Stamp { run: RUN, id }];
    assert!(stuck == stamp(1) || stuck == stamp(2), "{stuck:?}");
    assert_eq!(after, stamp(3));
    plot.host.ask("session.list", json!({}));
}
