//! The largest volumes: 64 TiB, sparse, on file systems of ordinary size. Whatever grows with the size and not with what
//! was written is found here: time, memory, and room in the pools.

use std::io::{Read as _, Write as _};

use serde_json::json;

use super::guests::Guest;
use super::support::host::{Cluster, Host, close, make_volume_of, open};

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const TIB: u64 = 1 << 40;
const PIECE: u32 = 64 << 10;
/// What a daemon may take, whatever the size of a volume in which little was written: twice what it takes.
const MEMORY: u64 = 128 << 20;

/// Both ends, the first and last piece of every TiB, and one in the middle of none.
fn places(size: u64) -> Vec<u64> {
    let tib = (0..size / TIB).flat_map(|n| [n * TIB, (n + 1) * TIB - u64::from(PIECE)]);
    tib.chain([size / 3 / u64::from(PIECE) * u64::from(PIECE)]).collect()
}

/// What stands at a place after so many rounds of writing.
fn content(place: u64, round: u8) -> Vec<u8> {
    let word = (place ^ u64::from(round) << 56 | 1).to_le_bytes();
    word.iter().copied().cycle().take(PIECE as usize).collect()
}

/// Writes all places with as many requests at once as there are.
fn write_all(guest: &mut Guest, places: &[u64], round: u8) {
    for place in places {
        guest.send(WRITE, *place, *place, PIECE);
        guest.0.write_all(&content(*place, round)).expect("sent");
    }
    let mut done: Vec<u64> = places.iter().map(|_| acknowledged(guest)).collect();
    done.sort_unstable();
    assert!(done.iter().eq(sorted(places).iter()));
}

fn acknowledged(guest: &mut Guest) -> u64 {
    let (cookie, error) = guest.reply();
    assert_eq!(error, 0, "request {cookie:#x} failed");
    cookie
}

fn sorted(places: &[u64]) -> Vec<u64> {
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    sorted
}

fn read(guest: &mut Guest, place: u64) -> Vec<u8> {
    guest.send(READ, place, place, PIECE);
    assert_eq!(acknowledged(guest), place);
    let mut bytes = vec![0; PIECE as usize];
    guest.0.read_exact(&mut bytes).expect("read");
    bytes
}

fn assert_all(guest: &mut Guest, places: &[u64], round: u8) {
    for place in places {
        assert!(read(guest, *place) == content(*place, round), "other bytes at {place:#x}, round {round}");
    }
}

fn assert_small(hosts: &[&Host]) {
    for host in hosts {
        let found = host.resident();
        println!("h{}: {} KiB", host.number, found >> 10);
        assert!(found <= MEMORY, "{found} bytes of memory\n{}", host.log());
    }
}

/// 1 TiB is written at both ends, grown to 64 TiB while its guest has it, written at the ends of every TiB, and read. One
/// copy is away while all that is written anew and a part is trimmed: it is brought that, and no more, and then serves alone.
#[test]
fn a_volume_of_64_tib_is_grown_into_written_everywhere_and_resynced() {
    let cluster = Cluster::start();
    let [mut first, mut second] = [1, 2].map(|number| {
        let mut host = cluster.host(number);
        host.make_pool();
        host
    });
    let volume = make_volume_of(&[&first, &second], TIB);
    let show = json!({ "volume": volume });
    let socket = open(&first, &volume, "closed").expect("opens");
    let mut guest = Guest::connect(&socket);
    write_all(&mut guest, &places(TIB), 1);
    assert_small(&[&first, &second]);

    let size = 64 * TIB;
    let grow = json!({ "volume": volume, "size": size.to_string(), "lose": false });
    assert_eq!(first.ask("volume.resize", grow)["size"], size.to_string());
    assert_eq!(cluster.get(&format!("/weft/v1/vol/{volume}/state"))["region_shift"], 26);
    assert_all(&mut guest, &places(TIB), 1);
    drop(guest);
    let mut guest = Guest::connect(&socket);
    let all = places(size);
    assert_eq!(read(&mut guest, size - u64::from(PIECE)), vec![0; PIECE as usize], "what is new is zero");
    write_all(&mut guest, &all, 2);
    assert_all(&mut guest, &all, 2);
    assert_small(&[&first, &second]);

    second.kill();
    write_all(&mut guest, &all, 3);
    first.ask_until("session.show", &show, |s| s["members"][1]["state"] == "STALE");
    let (trimmed, kept) = all.split_at(32);
    for place in trimmed {
        guest.send(TRIM, *place, *place, PIECE);
        acknowledged(&mut guest);
    }
    second.start();
    second.await_pool();
    let shown = first.ask_until("session.show", &show, |s| s["members"][1]["state"] == "INSYNC");
    let copied = shown["figures"]["resynced_bytes"].as_str().and_then(|n| n.parse::<u64>().ok());
    let least = kept.len() as u64 * u64::from(PIECE);
    assert!(copied.is_some_and(|n| (least..4 * least).contains(&n)), "{copied:?} bytes copied for {least}");
    assert_small(&[&first, &second]);
    drop(guest);
    close(&first, &volume);
    first.kill();

    let socket = open(&second, &volume, "closed").expect("opens alone");
    let mut guest = Guest::connect(&socket);
    assert_all(&mut guest, kept, 3);
    for place in trimmed {
        assert_eq!(read(&mut guest, *place), vec![0; PIECE as usize], "trimmed at {place:#x}");
    }
    assert_small(&[&second]);
    drop(guest);
    close(&second, &volume);
}
