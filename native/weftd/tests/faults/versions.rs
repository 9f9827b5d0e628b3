//! Hosts of different versions on one wire: a cluster that is upgraded host by host.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use weft_proto::wire::{HEADER_LEN, Version};
use weftd::clock::random_u128;
use weftd::links::DATA_PORT;

use super::frames::{pass, seal};
use super::support::host::{Cluster, assert_same, close, copy, make_volume, nbd, open, random_file};

/// The versions that a host says it speaks, whatever it does speak.
type Said = Arc<Mutex<(u8, u8)>>;

/// Passes everything on to a host. In the HELLO of either side other versions stand: what that of a newer one says.
fn relay(cluster: &Cluster, target: &str, said: &Said) -> String {
    let address = format!("127.{}.251.{}", cluster.subnet, random_u128() % 250 + 1);
    let listener = TcpListener::bind((address.as_str(), DATA_PORT)).expect("a loopback address");
    let (said, target) = (said.clone(), target.to_owned());
    std::thread::spawn(move || {
        while let Ok((caller, _)) = listener.accept() {
            let Ok(called) = TcpStream::connect((target.as_str(), DATA_PORT)) else { continue };
            let versions = *said.lock().expect("whole");
            for (from, to) in [(&caller, &called), (&called, &caller)] {
                let (from, to) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
                std::thread::spawn(move || match pass_hello(&from, &to, versions) {
                    Ok(()) => pass(&from, &to, |_| ()),
                    Err(_) => {
                        let _ = to.shutdown(Shutdown::Both);
                        let _ = from.shutdown(Shutdown::Both);
                    }
                });
            }
        }
    });
    address
}

fn pass_hello(mut from: &TcpStream, mut to: &TcpStream, versions: (u8, u8)) -> std::io::Result<()> {
    let mut frame = vec![0; HEADER_LEN];
    from.read_exact(&mut frame)?;
    let len = u32::from_le_bytes(frame[8..12].try_into().expect("four bytes"));
    frame.resize(HEADER_LEN + usize::try_from(len).expect("short"), 0);
    from.read_exact(&mut frame[HEADER_LEN..])?;
    (frame[HEADER_LEN], frame[HEADER_LEN + 1]) = versions;
    seal(&mut frame);
    to.write_all(&frame)
}

/// S14: a copy comes back on a host of the next version, and is joined in the version that both speak. One that no
/// longer speaks ours is refused by name, and nothing else ends for it.
#[test]
fn a_join_between_two_versions_is_done_in_the_common_one() {
    let ours = Version::NEWEST.number();
    let said: Said = Arc::new(Mutex::new((ours, ours + 1)));
    let cluster = Cluster::start();
    let [mut keeper, mut owner] = [1, 2].map(|number| cluster.host(number));
    keeper.make_pool();
    owner.make_pool();
    cluster.say_address(&keeper.id, &relay(&cluster, &keeper.address, &said));
    let volume = make_volume(&[&owner, &keeper]);
    let [first, second] = ["a", "b"].map(|name| random_file(&cluster, name));
    let socket = open(&owner, &volume, "closed").expect("opens");
    let show = json!({ "volume": volume });
    let written = |file: &std::path::Path| copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    written(&first);
    assert_eq!(owner.ask("session.show", show.clone())["members"][1]["state"], "INSYNC");

    keeper.kill();
    written(&second);
    let session = owner.ask("session.show", show.clone());
    assert_eq!(session["members"][1]["state"], "STALE", "{session}");
    *said.lock().expect("whole") = (ours + 1, ours + 2);
    keeper.start();
    keeper.await_pool();
    let refused = owner.ask_until("why", &show, |why| why.to_string().contains("version"));
    assert!(refused.to_string().contains(&format!("{}", ours + 2)), "{refused}");
    written(&first);
    written(&second);
    let session = owner.ask("session.show", show.clone());
    assert_eq!((&session["phase"], &session["members"][1]["state"]), (&json!("serving"), &json!("STALE")));

    *said.lock().expect("whole") = (ours, ours + 1);
    owner.ask_until("session.show", &show, |s| s["members"][1]["state"] == "INSYNC");
    assert_same(&cluster, &owner, &socket, &volume, &second);
    close(&owner, &volume);
    owner.kill();
    let socket = open(&keeper, &volume, "closed").expect("opens from the copy that joined");
    assert_same(&cluster, &keeper, &socket, &volume, &second);
    close(&keeper, &volume);
}
