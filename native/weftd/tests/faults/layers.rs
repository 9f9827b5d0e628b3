//! A layer and the volume below it, on whole daemons: the end of a storage migration (docs/model.md R34, docs/adr/0027).

use std::io::{Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use super::guests::Guest;
use super::reverts::caretaker;
use super::support::host::{Cluster, Host, SIZE, close, make_volume, open};

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
/// As a write past the end is.
const ENOSPC: u32 = 28;
const SECTOR: usize = 512;

/// A guest's disk, and what it should have on it.
struct Disk {
    guest: Guest,
    bytes: Vec<u8>,
}

impl Disk {
    fn new(socket: &Path, bytes: Vec<u8>) -> Disk {
        Disk { guest: Guest::connect(socket), bytes }
    }

    fn ask(&mut self, command: u16, at: usize, len: usize, data: &[u8]) -> u32 {
        self.guest.send(command, 1, at as u64, u32::try_from(len).expect("short"));
        self.guest.0.write_all(data).expect("sent");
        self.guest.reply().1
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        assert_eq!(self.ask(WRITE, at, data.len(), data), 0);
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, command: u16, at: usize, len: usize) {
        assert_eq!(self.ask(command, at, len, &[]), 0);
        self.bytes[at..at + len].fill(0);
    }

    /// It has just that.
    fn assert(&mut self) {
        for (number, wanted) in self.bytes.chunks(1 << 20).enumerate() {
            self.guest.send(READ, 2, (number << 20) as u64, u32::try_from(wanted.len()).expect("short"));
            assert_eq!(self.guest.reply(), (2, 0));
            let mut read = vec![0; wanted.len()];
            self.guest.0.read_exact(&mut read).expect("read");
            let differs = read.iter().zip(wanted).position(|(a, b)| a != b);
            assert_eq!(differs, None, "in MiB {number}");
        }
    }
}

fn lay(host: &Host, from: &str, onto: &str) -> Result<Value, Value> {
    host.try_ask("session.lay", json!({ "from": from, "onto": onto }))
}

/// What a guest writes while its disk is copied, by sectors: pieces of blocks that nobody had written, over each other, over whole
/// blocks, trimmed and zeroed. Laid over the copy it is what the guest's disk was, to the sector; also when the daemon was
/// killed over it, and where a copy was away.
#[test]
fn what_was_written_in_a_layer_lies_over_the_volume_below_by_sectors() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    for host in &mut hosts {
        host.make_pool();
    }
    let (from, onto) = (make_volume(&[&hosts[0], &hosts[1]]), make_volume(&[&hosts[0], &hosts[1]]));
    let ask = json!({ "volume": from });
    for host in &hosts {
        host.ask("volume.layer", ask.clone());
    }
    let record = |volume: &str| cluster.get(&format!("/weft/v1/vol/{volume}/state"));
    assert_eq!((&record(&from)["fmt"], &record(&from)["min_reader"]), (&json!(4), &json!(4)));

    // Below: data in every other 64 KiB.
    let socket = open(&hosts[0], &onto, "closed").expect("opens");
    let len = usize::try_from(SIZE).expect("small");
    let mut below = Disk::new(&socket, vec![0; len]);
    for at in (0..len).step_by(128 << 10) {
        below.write(at, &vec![u8::try_from(1 + at / (128 << 10) % 200).expect("a byte"); 64 << 10]);
    }
    // Over it: the same writes go to the layer, and to what the guest's disk is.
    let socket = open(&hosts[0], &from, "closed").expect("opens");
    let mut layer = Disk::new(&socket, vec![0; len]);
    let mut wanted = below.bytes.clone();
    for (at, size, byte) in [
        (512, 512, 11),             // one sector of an absent block
        (1536, 512, 12),            // another of the same
        (4096, 4096, 13),           // a whole block
        (5 * 512 + 4096, 512, 14),  // over that
        (8192 - 512, 1024, 15),     // across two blocks
        (300 << 10, 200 << 10, 16), // far across the window of what is read at once
        (1 << 20, 100, 0),          // refused: no whole sector
        ((2 << 20) + 512, 512, 0),  // zeroes are data
        (len - 512, 512, 17),       // the last sector
        ((3 << 20) + 7 * 512, 512, 0xff),
    ] {
        let data = vec![byte; size];
        if size % SECTOR == 0 {
            layer.write(at, &data);
            wanted[at..at + size].copy_from_slice(&data);
        } else {
            assert_eq!(layer.ask(WRITE, at, size, &data), ENOSPC);
        }
    }
    for (command, at, size) in [
        (TRIM, 1 << 20, 1 << 20),
        (WRITE_ZEROES, (4 << 20) + 3 * 512, 10 * 512),
        (TRIM, (5 << 20) + 512, 512),
    ] {
        layer.zero(command, at, size);
        wanted[at..at + size].fill(0);
    }
    // Where nobody has written a guest reads zeroes, as of any volume.
    layer.assert();
    let attached = lay(&hosts[0], &from, &onto).expect_err("guests have them");
    assert_eq!(attached["code"], "E-VOL-12");
    drop((layer, below));
    for volume in [&from, &onto] {
        close(&hosts[0], volume);
    }
    assert_eq!(lay(&hosts[0], &from, &onto).expect_err("not open")["code"], "E-VOL-13");
    let late = hosts[0].try_ask("volume.layer", json!({ "volume": onto })).expect_err("it was opened");
    assert_eq!(late["code"], "E-VOL-23");

    for volume in [&from, &onto] {
        caretaker(&hosts[0], volume);
    }
    assert_eq!(lay(&hosts[0], &from, &from).expect_err("itself")["code"], "E-ARG-02");
    assert_eq!(lay(&hosts[0], &onto, &from).expect_err("no layer")["code"], "E-VOL-23");
    // Begun, and cut at once by whoever ends its session; then by a kill; then one copy is away.
    let mut other = hosts[0].client();
    let cut = std::thread::scope(|scope| {
        let (from, onto) = (&from, &onto);
        let laid = scope.spawn(move || other.ask("session.lay", json!({ "from": from, "onto": onto })));
        hosts[0].ask("session.close", json!({ "volume": from, "abandon": true }));
        laid.join().expect("answered")
    });
    assert!(
        cut.is_ok()
            || ["E-VOL-22", "E-VOL-13"]
                .contains(&cut.as_ref().expect_err("cut")["code"].as_str().expect("a code")),
        "{cut:?}"
    );
    caretaker(&hosts[0], &from);
    let mut other = hosts[0].client();
    std::thread::scope(|scope| {
        let (from, onto) = (&from, &onto);
        let laid = scope.spawn(move || other.ask("session.lay", json!({ "from": from, "onto": onto })));
        hosts[0].kill();
        drop(laid.join());
    });
    hosts[0].start();
    hosts[0].await_pool();
    hosts[1].kill();
    for volume in [&from, &onto] {
        caretaker(&hosts[0], volume);
    }
    let laid = lay(&hosts[0], &from, &onto).expect("laid over");
    assert!(
        laid["zero_bytes"].as_str().expect("text").parse::<u64>().expect("a number") >= 1 << 20,
        "{laid}"
    );
    for volume in [&from, &onto] {
        close(&hosts[0], volume);
    }
    let socket = open(&hosts[0], &onto, "closed").expect("opens");
    Disk::new(&socket, wanted).assert();
}
