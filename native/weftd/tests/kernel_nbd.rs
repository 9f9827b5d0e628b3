//! Kernel nbd devices on volumes, on a real kernel (`npm run lab -- nbd`): who serves them dies, is restarted, or has lost the volume.

#[path = "support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use weft_checker::{nbd as client, stamp};
use weft_io::buffer::IoBuf;
use weft_proto::payload::Payload as _;

use support::host::{Client, Cluster, Host, SIZE, close, make_volume, open};

/// One processor of a guest whose kernel is a process does all.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const WRITERS: u64 = 4;
const ID: &str = "00000000-0000-4000-8000-00000000000d";

/// The holder of a host, on a thread of the test, until it is stopped.
struct Holder {
    socket: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    fn start(host: &Host) -> Holder {
        let run = host.home.join("run").canonicalize().expect("it is there");
        let socket = run.join("holder.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let until = async {
                let _ = stopped.await;
            };
            let served = weft_holder::control::serve(&run, until);
            tokio::task::LocalSet::new().block_on(&runtime, served).expect("served");
        });
        Holder { socket, stop: Some(stop), thread: Some(thread) }
    }

    /// Nothing is done with the devices: the kernel has them.
    fn stop(&mut self) {
        drop(self.stop.take());
        self.thread.take().expect("it runs").join().expect("no panic");
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::yield_now();
        };
        let reader = std::io::BufReader::new(stream.try_clone().expect("cloned"));
        Client { stream, reader, next: 0 }.ask(method, params)
    }

    fn make(&self, host: &Host, volume: &str) -> String {
        let session = host.ask("session.show", json!({ "volume": volume }))["session"].clone();
        let wanted =
            json!({ "id": ID, "volume": volume, "session": session, "snapshot": null, "writable": true });
        let made = self.ask("device.open", wanted.clone()).expect("made");
        assert_eq!(self.ask("device.open", wanted).expect("asked again"), made);
        made["device"].as_str().expect("a path").to_owned()
    }

    fn until(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let list = self.ask("device.list", json!({})).expect("a list");
            if good(&list["devices"][0]) {
                return list["devices"][0].clone();
            }
            assert!(Instant::now() < until, "{what}: {list}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn disk(path: &str) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).expect(path)
}

fn stamped(block: u64, id: u64) -> IoBuf {
    let mut data = IoBuf::zeroed(BLOCK);
    stamp::fill(data.bytes_mut(), block, 1, id);
    data
}

fn write(disk: &OwnedFd, block: u64, id: u64) -> rustix::io::Result<()> {
    let data = stamped(block, id);
    let written = rustix::io::pwrite(disk, data.bytes(), block * BLOCK as u64)?;
    assert_eq!(written, BLOCK);
    Ok(())
}

fn read(disk: &OwnedFd, block: u64) -> IoBuf {
    let mut data = IoBuf::zeroed(BLOCK);
    let count = rustix::io::pread(disk, data.bytes_mut(), block * BLOCK as u64).expect("read");
    assert_eq!(count, BLOCK);
    data
}

/// Guests' threads, each with blocks of its own: what each has written and was told of is what it reads, at once and in the end.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Vec<(u64, u64)>>>,
}

impl Load {
    fn start(path: &str) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |number: u64| {
            let (stop, done, path) = (stop.clone(), done.clone(), path.to_owned());
            std::thread::spawn(move || {
                let (disk, each) = (disk(&path), SIZE / BLOCK as u64 / WRITERS);
                let mut last = vec![0; usize::try_from(each).expect("small")];
                for id in 1_u64.. {
                    let at = id.wrapping_mul(0x9e37_79b9) % each;
                    let block = number * each + at;
                    write(&disk, block, id).expect("no error, whatever dies");
                    last[usize::try_from(at).expect("small")] = id;
                    assert!(read(&disk, block).bytes() == stamped(block, id).bytes(), "block {block}");
                    done.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                (0..).map(|at| number * each + at).zip(last).collect()
            })
        };
        let writers = (0..WRITERS).map(writer).collect();
        Load { stop, done, writers }
    }

    /// Until each has done some more, on average.
    fn goes_on(&self) {
        let (from, until) = (self.done.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.done.load(Ordering::Relaxed) < from + 20 * WRITERS {
            assert!(Instant::now() < until, "guests stand still");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(self) -> Vec<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.into_iter().flat_map(|writer| writer.join().expect("no error")).collect()
    }
}

/// Guests write through a device while its daemon is killed twice, stopped in order once, and killed while the holder is away, too.
/// They wait, and nothing else: no error, and each block is as it was written last.
#[test]
fn a_device_outlives_who_serves_it() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let export = open(&host, &volume, "closed").expect("opens");
    let mut holder = Holder::start(&host);
    let path = holder.make(&host, &volume);
    assert!(path.strip_prefix("/dev/nbd").is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n >= 32)), "{path}");
    let load = Load::start(&path);
    load.goes_on();
    for death in ["killed", "stopped", "killed with the holder away"] {
        if death == "stopped" {
            host.terminate();
        } else {
            host.kill();
        }
        if death == "killed with the holder away" {
            holder.stop();
        }
        host.start();
        if death == "killed with the holder away" {
            holder = Holder::start(&host);
        }
        load.goes_on();
        let told = holder.until(death, |device| device["reconnected"] != "0");
        println!("{death}: {told}");
    }
    let last = load.end();
    let told = holder.until("connected", |device| device["away_ms"].is_null());
    assert_eq!((&told["lost"], &told["device"]), (&Value::Null, &json!(path)), "{told}");
    holder.ask("device.close", json!({ "id": ID })).expect("closed");
    holder.ask("device.close", json!({ "id": ID })).expect("closed already");
    assert_eq!(holder.ask("device.list", json!({})).expect("a list"), json!({ "devices": [] }));
    let (mut stream, _) =
        client::connect(export.to_str().expect("UTF-8"), &volume, 2 * PATIENCE).expect("connected");
    let values = client::read_blocks(&mut stream, 0, SIZE / BLOCK as u64).expect("read");
    for (block, id) in last {
        let value = &values[usize::try_from(block).expect("small")];
        let good = match value {
            stamp::Value::Stamp { id: found, .. } => *found == id,
            _ => id == 0,
        };
        assert!(good, "block {block} was {id} last, and is {value:?}");
    }
    drop(stream);
    holder.stop();
}

/// A write that the daemon had and did not answer; then another host takes the volume and writes the same block. The device goes, with an error
/// for who waits, and the other host's block is what stays.
#[test]
fn a_device_is_no_more_when_another_host_has_had_the_volume() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(Host::make_pool);
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    open(&hosts[0], &volume, "closed").expect("opens");
    let mut holder = Holder::start(&hosts[0]);
    let path = holder.make(&hosts[0], &volume);
    let device = disk(&path);
    write(&device, 0, 1).expect("written");
    let pid = Pid::from_child(hosts[0].process.as_ref().expect("it runs"));
    kill_process(pid, Signal::STOP).expect("stopped");
    let waits = std::thread::spawn(move || write(&device, 0, 2));
    let until = Instant::now() + PATIENCE;
    let inflight = format!("/sys/block/{}/inflight", path.strip_prefix("/dev/").expect("a device"));
    while std::fs::read_to_string(&inflight).expect("it is there").split_whitespace().nth(1) != Some("1") {
        assert!(Instant::now() < until, "the write is not under way");
        std::thread::yield_now();
    }
    hosts[0].kill();
    let taken = open(&hosts[1], &volume, "steal").expect("takes");
    let (mut other, _) =
        client::connect(taken.to_str().expect("UTF-8"), &volume, PATIENCE).expect("connected");
    let mut block = [0; BLOCK];
    stamp::fill(&mut block, 0, 1, 3);
    use std::io::{Read as _, Write as _};
    other.write_all(&client::request(client::Command::Write, false, 9, 0, 4096)).expect("sent");
    other.write_all(&block).expect("sent");
    let mut head = [0; client::REPLY_HEAD];
    other.read_exact(&mut head).expect("an answer");
    assert_eq!(client::reply(&head).expect("a reply"), (0, 9));
    drop(other);
    close(&hosts[1], &volume);
    hosts[0].start();
    assert_eq!(waits.join().expect("no panic"), Err(Errno::IO), "{}", hosts[0].log());
    let told = holder.until("lost", |device| !device["lost"].is_null());
    assert!(told["lost"].as_str().is_some_and(|why| why.starts_with("E-VOL-21")), "{told}");
    holder.ask("device.close", json!({ "id": ID })).expect("closed");
    hosts[0].await_pool();
    let anew = open(&hosts[0], &volume, "closed").expect("opens");
    // Another ownership is another device.
    let path = holder.make(&hosts[0], &volume);
    assert!(read(&disk(&path), 0).bytes() == block, "the other host's write stays");
    drop(anew);
    holder.ask("device.close", json!({ "id": ID })).expect("closed");
    holder.stop();
}
