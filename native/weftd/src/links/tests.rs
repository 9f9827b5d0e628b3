//! Links without a network: handshakes under way, renewal, bounds.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use weft_io::identity::{Identity, Peer, TrustCell};
use weft_io::tls::TlsConfigs;
use weft_proto::ids::{ClusterId, PoolInc, SessionId, VolumeId};
use weft_proto::message::Attach;

use super::*;

const LIST: &[u8] = include_bytes!("../../../weft-io/specimens/trust.json");
const HOST: &[u8] = include_bytes!("../../../weft-io/specimens/h1.pem");
const NOW: Instant = Instant(5_000_000_000);

fn greeting(cluster: ClusterId, host: HostId) -> Hello {
    Hello {
        wire_min: Version::OLDEST.number(),
        wire_max: Version::NEWEST.number(),
        cluster,
        host,
        process: 1,
        features: 0,
        max_frame: 1 << 20,
        slots: 64,
        heartbeat_ms: 100,
        trailer_len: 0,
        watermark: Watermark::default(),
        pools: Vec::new(),
    }
}

/// Links of the specimens' host, by whose list everything goes over TLS; and a host on that list, as it is proven.
fn links() -> (Links, Peer) {
    let identity = Identity::from_pem(HOST).expect("a specimen");
    let trust = Trust::open_first(LIST, identity.cluster()).expect("a specimen");
    assert_eq!(trust.transport, Transport::Tls);
    let chain = identity.chain();
    let wall = WallTime(identity.not_after().0 - 1);
    let peer = trust.judge(&chain, wall).expect("it is on the list");
    let cell = Arc::new(TrustCell::new(trust));
    let mut links = Links::new(greeting(identity.cluster(), HostId(1)));
    let configs = TlsConfigs::new(&identity, cell.clone());
    links.secured = Some(Secured { configs, trust: cell, not_after: WallTime(WallTime::now().0 + 86_400) });
    (links, Peer { not_after: WallTime(WallTime::now().0 + 86_400), ..peer })
}

/// A connection with that role, whose bytes nobody sees. `id` is the how manyth it is.
fn add(links: &mut Links, id: u16, role: Role) {
    let (socket, _) = UnixStream::pair().expect("a pair");
    let conn = Conn::new(Arc::new(OwnedFd::from(socket)), StreamConfig::new(TokenSpace(id)));
    let (address, number) = (IpAddr::from([127, 0, 0, 1]), u64::from(id));
    let wire = Wire {
        conn,
        role,
        number,
        address,
        is_secured: true,
        is_worn: false,
        proof: None,
        visit: None,
        version: None,
    };
    links.wires.insert(id, wire);
}

fn called() -> Role {
    Role::Called { peer: None, handles: Handles::default(), until: NOW.after_ms(1000) }
}

fn call(links: &mut Links, host: HostId, wire: u16) {
    let call = Call { wire: Some(wire), ..Call::new(NOW) };
    links.calls.insert(host, call);
    add(links, wire, Role::Caller(host));
}

/// The list has changed to TLS while two hosts were proving themselves to each other for a connection with `auth`: it
/// is replaced as soon, and ends as late, as those that were proven before.
#[test]
fn a_handshake_under_way_does_not_escape_a_change_of_the_transport() {
    for (mode, overdue) in [(Transport::Auth, true), (Transport::Tls, false)] {
        let (mut links, peer) = links();
        let host = peer.host;
        add(&mut links, 0x1001, called());
        call(&mut links, host, 0x1002);
        for id in [0x1001, 0x1002] {
            links.prove(NOW, id, Proven { peer, mode }).expect("a listed host");
        }
        links.call_agreed(NOW, 0x1002, host, Version::NEWEST);
        let cut = links.wires[&0x1001].proof.as_ref().expect("proven").cut;
        assert_eq!(cut <= NOW.after_ms(OVERDUE_MS), overdue, "{mode:?}");
        let renew = links.calls[&host].renew.expect("some day");
        assert_eq!(renew <= NOW.after_ms(CHANGE_MS), overdue, "{mode:?}");
    }
}

/// A dropped authority is treated in the same way.
#[test]
fn a_handshake_under_way_does_not_escape_an_authority_that_was_dropped() {
    let (mut links, peer) = links();
    let dropped = Peer { issuer: peer.kid, ..peer };
    add(&mut links, 0x1001, called());
    links.prove(NOW, 0x1001, Proven { peer: dropped, mode: Transport::Tls }).expect("a listed host");
    assert_eq!(links.wires[&0x1001].proof.as_ref().expect("proven").cut, NOW.after_ms(OVERDUE_MS));
}

#[test]
fn a_host_that_greets_and_leaves_is_called_ever_later() {
    let (mut links, peer) = links();
    let host = peer.host;
    call(&mut links, host, 0x1001);
    let mut now = NOW;
    let mut pauses = Vec::new();
    for up_ms in [5, 5, 5, 5, 5, 5, 5, 5, BRIEF_MS, 5, 5] {
        if let Some(call) = links.calls.get_mut(&host) {
            (call.state, call.since) = (LinkState::Connected, now);
        }
        now = now.after_ms(up_ms);
        links.end_call(now, host, LinkState::Connecting, None, false);
        let due = links.calls[&host].due.expect("called again");
        pauses.push(due.ms_since(now));
        now = due;
    }
    assert_eq!(pauses, [0, 200, 400, 800, 1600, 2000, 2000, 2000, 0, 0, 200]);
}

#[test]
fn a_connection_whose_keys_wear_out_is_followed_by_its_caller_and_asked_for_once() {
    let (mut links, peer) = links();
    let host = peer.host;
    call(&mut links, host, 0x1001);
    add(&mut links, 0x1002, called());
    links.follow_worn(NOW, 0x1002);
    assert_eq!(links.calls[&host].renew, None, "the other side made that one");
    links.follow_worn(NOW, 0x1001);
    let renew = links.calls[&host].renew.expect("soon");
    assert!(renew <= NOW.after_ms(WORN_MS));
    // It failed, and is tried again in a moment: records that come meanwhile change nothing.
    let later = NOW.after_ms(60_000);
    links.calls.get_mut(&host).expect("it is called").renew = Some(later);
    links.follow_worn(NOW, 0x1001);
    assert_eq!(links.calls[&host].renew, Some(later));
    // A certificate that ends sooner is not put off.
    add(&mut links, 0x1003, Role::Caller(host));
    let call = links.calls.get_mut(&host).expect("it is called");
    (call.wire, call.renew) = (Some(0x1003), Some(NOW));
    links.follow_worn(NOW, 0x1003);
    assert_eq!(links.calls[&host].renew, Some(NOW));
}

fn hello_of(links: &mut Links, id: u16, host: HostId) -> Result<(), Failure> {
    let hello = greeting(links.hello.cluster, host);
    links.take_frame(NOW, id, Content::Hello(hello))
}

#[test]
fn one_host_has_so_many_connections_and_loses_its_oldest() {
    let (mut links, _) = links();
    for id in 0x1001..0x1101 {
        add(&mut links, id, called());
        // One in sixteen is another host's.
        let host = HostId(if id % 16 == 0 { u128::from(id) } else { 7 });
        hello_of(&mut links, id, host).expect("let in");
    }
    let of = |host: HostId| links.wires.iter().filter(move |(_, wire)| wire.host() == Some(host));
    let left: Vec<u16> = of(HostId(7)).map(|(id, _)| *id).collect();
    assert_eq!(left, [0x10f8, 0x10f9, 0x10fa, 0x10fb, 0x10fc, 0x10fd, 0x10fe, 0x10ff]);
    assert!((0x1010..0x1101).step_by(16).all(|id| of(HostId(id)).count() == 1));
    assert!(hello_of(&mut links, 0x10ff, HostId(7)).is_err(), "HELLO twice");
}

fn attach(links: &mut Links, id: u16, handle: u32, volume: u128, session: u128) -> Result<(), Failure> {
    let ask = Ask::Attach(Attach {
        volume: VolumeId(volume),
        rid: Rid(0),
        pool: PoolId(1),
        host: HostId(7),
        session: SessionId(session),
        ordinal: Ordinal(1),
        watermark: Watermark::default(),
    });
    let request = Request { tag: 1, epoch: weft_proto::ids::Epoch(0), ask };
    links.take_frame(NOW, id, Content::Request(handle, request))
}

/// A host opens a volume again and again over one connection: nothing of the sessions before is kept, and each ends
/// before the next one is asked for. Replicas are bounded, for those who make them up.
#[test]
fn a_connection_is_attached_to_a_replica_once_and_to_so_many_replicas() {
    let (mut links, _) = links();
    add(&mut links, 0x1001, called());
    hello_of(&mut links, 0x1001, HostId(7)).expect("let in");
    while links.poll().is_some() {}
    for handle in 0..20_000 {
        attach(&mut links, 0x1001, handle, 1, u128::from(handle)).expect("attached");
        if handle > 0 {
            assert!(matches!(links.poll(), Some(LinksOut::Gone { .. })));
        }
        assert!(matches!(links.poll(), Some(LinksOut::Request { .. })));
    }
    assert_eq!(links.attachments.len(), 1);
    let most = u32::try_from(HANDLES_MAX).expect("few");
    for volume in 2..=most {
        attach(&mut links, 0x1001, 20_000 + volume, u128::from(volume), 1).expect("attached");
    }
    attach(&mut links, 0x1001, 90_000, u128::MAX, 1).expect_err("too many");
    links.drop_wire(0x1001);
    assert!(links.attachments.is_empty());
}

/// A host reads several snapshots of a volume that it has open: no one's attachment ends another's, and each ends when
/// its reader gives it up.
#[test]
fn readers_of_a_replica_are_attached_side_by_side_until_each_detaches() {
    let (mut links, _) = links();
    add(&mut links, 0x1001, called());
    hello_of(&mut links, 0x1001, HostId(7)).expect("let in");
    while links.poll().is_some() {}
    for handle in [0, READER, READER + 1] {
        attach(&mut links, 0x1001, handle, 1, u128::from(handle)).expect("attached");
        assert!(matches!(links.poll(), Some(LinksOut::Request { .. })));
    }
    attach(&mut links, 0x1001, 1, 1, 9).expect("attached");
    assert!(matches!(links.poll(), Some(LinksOut::Gone { .. })), "the session before");
    assert!(matches!(links.poll(), Some(LinksOut::Request { .. })));
    assert_eq!(links.attachments.len(), 3);
    let detach = Request { tag: 0, epoch: Epoch(0), ask: Ask::Detach };
    for left in [2, 2] {
        links.take_frame(NOW, 0x1001, Content::Request(READER, detach.clone())).expect("taken");
        assert_eq!(links.attachments.len(), left);
    }
    assert!(matches!(links.poll(), Some(LinksOut::Gone { .. })));
    assert!(links.poll().is_none());
}

#[test]
fn of_a_hosts_pools_so_many_are_remembered_and_those_it_names_always() {
    let (mut links, _) = links();
    let mut hello = greeting(links.hello.cluster, HostId(7));
    let log = |pool: u128, inc| PoolLog { pool: PoolId(pool), inc: PoolInc(inc), durable_seq: 1 };
    for round in 0..100 {
        let own = (0..100).map(|pool| log(round * 100 + pool, 1));
        hello.pools = own.chain([log(u128::MAX, 9)]).collect();
        assert_eq!(links.pool_went_back(&hello), None);
    }
    assert!(links.seen.len() <= SEEN_POOLS_MAX);
    hello.pools = vec![log(u128::MAX, 8)];
    assert!(links.pool_went_back(&hello).is_some(), "it was seen at 9");
}
