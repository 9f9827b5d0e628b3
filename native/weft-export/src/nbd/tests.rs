//! The server against a client made of bytes: what is said on the wire, exactly.

use proptest::prelude::*;
use weft_proto::guest::{GuestError, GuestOp, GuestReply};
use weft_proto::ids::SnapId;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{HeapPayload, Payload};

use super::wire::{INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC};
use super::{Connection, Ending, ExportInfo, GuestRequest, Limits, MAX_TRANSFER};

type Server = Connection<HeapPayload>;

const SIZE: u64 = 1 << 30;

fn info() -> ExportInfo {
    ExportInfo {
        name: "vm1-root".into(),
        aliases: vec!["tapdisk_client".into()],
        description: "two copies".into(),
        size: SIZE,
        read_only: false,
        multi_conn: true,
        since: Vec::new(),
    }
}

fn greeted(export: ExportInfo, limits: Limits) -> Server {
    let mut server = Server::new(7, export, limits);
    let mut greeting = INIT_MAGIC.to_be_bytes().to_vec();
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend([0, 3]);
    assert_eq!(sent(&mut server), greeting);
    server.handle_bytes(&3u32.to_be_bytes());
    server
}

/// A server whose client agreed on structured replies and `base:allocation`.
fn structured() -> Server {
    structured_with(info(), Limits::default())
}

fn structured_with(export: ExportInfo, limits: Limits) -> Server {
    let mut server = greeted(export, limits);
    server.handle_bytes(&option(8, &[]));
    server.handle_bytes(&option(10, &contexts("", &["base:allocation"])));
    server.handle_bytes(&option(7, &go("")));
    sent(&mut server);
    assert!(server.is_transmitting());
    server
}

/// A server whose client knows simple replies only.
fn simple() -> Server {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(1, b"tapdisk_client"));
    assert_eq!(sent(&mut server).len(), 10, "size and flags, no padding: NO_ZEROES was agreed on");
    server
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

fn go(name: &str) -> Vec<u8> {
    [string(name).as_slice(), &[0, 1, 0, 3]].concat()
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(1, flags, cookie, offset, u32::try_from(data.len()).unwrap());
    bytes.extend(data);
    bytes
}

/// Everything the server has to send, in one piece.
fn sent(server: &mut Server) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(gather) = server.poll_transmit(3) {
        assert!(gather.parts().len() <= 3);
        let mut whole = Vec::new();
        gather.slices_from(0).for_each(|slice| whole.extend_from_slice(&slice));
        assert_eq!(whole.len(), gather.len());
        let half = gather.len() / 2;
        let mut rest = Vec::new();
        gather.slices_from(half).for_each(|slice| rest.extend_from_slice(&slice));
        assert_eq!(rest, whole[half..]);
        bytes.extend(whole);
        server.handle_transmitted(gather);
    }
    bytes
}

/// (option, type, data) of each option reply.
fn option_replies(server: &mut Server) -> Vec<(u32, u32, Vec<u8>)> {
    let bytes = sent(server);
    let mut rest = bytes.as_slice();
    let mut replies = Vec::new();
    while !rest.is_empty() {
        assert_eq!(rest[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        let len = usize::try_from(number(16)).unwrap();
        replies.push((number(8), number(12), rest[20..20 + len].to_vec()));
        rest = &rest[20 + len..];
    }
    replies
}

#[derive(Debug, PartialEq)]
enum Reply {
    Simple { cookie: u64, error: u32 },
    Chunk { cookie: u64, last: bool, kind: u16, data: Vec<u8> },
}

/// Replies without simple read data.
fn replies(server: &mut Server) -> Vec<Reply> {
    let bytes = sent(server);
    let mut rest = bytes.as_slice();
    let mut replies = Vec::new();
    while !rest.is_empty() {
        let magic = u32::from_be_bytes(rest[..4].try_into().unwrap());
        if magic == super::wire::SIMPLE_REPLY_MAGIC {
            let error = u32::from_be_bytes(rest[4..8].try_into().unwrap());
            let cookie = u64::from_be_bytes(rest[8..16].try_into().unwrap());
            replies.push(Reply::Simple { cookie, error });
            rest = &rest[16..];
        } else {
            assert_eq!(magic, super::wire::STRUCTURED_REPLY_MAGIC);
            let len = usize::try_from(u32::from_be_bytes(rest[16..20].try_into().unwrap())).unwrap();
            replies.push(Reply::Chunk {
                cookie: u64::from_be_bytes(rest[8..16].try_into().unwrap()),
                last: rest[5] == 1,
                kind: u16::from_be_bytes(rest[6..8].try_into().unwrap()),
                data: rest[20..20 + len].to_vec(),
            });
            rest = &rest[20 + len..];
        }
    }
    replies
}

/// The error of the only reply, whichever form it has.
fn only_error(server: &mut Server) -> u32 {
    let mut all = replies(server);
    assert_eq!(all.len(), 1, "{all:?}");
    match all.remove(0) {
        Reply::Simple { error, .. } => error,
        Reply::Chunk { last: true, kind: 0x8001, data, .. } => {
            let sentence = usize::from(u16::from_be_bytes(data[4..6].try_into().unwrap()));
            assert_eq!(data.len(), 6 + sentence);
            u32::from_be_bytes(data[..4].try_into().unwrap())
        }
        other => panic!("{other:?} is no error"),
    }
}

fn only_request(server: &mut Server) -> GuestRequest<HeapPayload> {
    let request = server.poll_request().expect("a request");
    assert_eq!(server.poll_request(), None);
    request
}

fn data(bytes: &[u8]) -> Extent<HeapPayload> {
    Extent::Data { crcs: Vec::new(), data: bytes.to_vec().into() }
}

fn hole(len: u64) -> Extent<HeapPayload> {
    Extent::Hole { len, kind: Hole::Absent }
}

#[test]
fn a_modern_client_learns_size_flags_and_block_sizes() {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(8, &[]));
    assert_eq!(option_replies(&mut server), [(8, 1, vec![])]);
    server.handle_bytes(&option(7, &go("vm1-root")));
    let block_sizes = [&[0, 3][..], &[0, 0, 2, 0], &[0, 0, 16, 0], &MAX_TRANSFER.to_be_bytes()].concat();
    // HAS_FLAGS FLUSH FUA TRIM WRITE_ZEROES DF CAN_MULTI_CONN FAST_ZERO
    let flags = 0b1001_1110_1101u16;
    let export = [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    assert_eq!(option_replies(&mut server), [(7, 3, block_sizes), (7, 3, export), (7, 1, vec![])]);
    assert!(server.is_transmitting());
}

#[test]
fn flags_promise_only_what_is_so() {
    let export = ExportInfo { read_only: true, multi_conn: false, ..info() };
    let mut server = greeted(export, Limits::default());
    server.handle_bytes(&option(1, b""));
    // HAS_FLAGS READ_ONLY FLUSH FUA: no changes, no DF without structured replies, no MULTI_CONN.
    assert_eq!(sent(&mut server)[8..], [0, 0b1111]);
}

#[test]
fn an_old_client_gets_124_zeroes_unless_it_declines_them() {
    let mut server = Server::new(0, info(), Limits::default());
    sent(&mut server);
    server.handle_bytes(&1u32.to_be_bytes());
    server.handle_bytes(&option(1, b"vm1-root"));
    let reply = sent(&mut server);
    assert_eq!(reply.len(), 134);
    assert_eq!(reply[..8], SIZE.to_be_bytes());
    assert!(server.is_transmitting());
}

#[test]
fn information_does_not_begin_transmission() {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(6, &[string("").as_slice(), &[0, 2, 0, 1, 0, 2]].concat()));
    let found = option_replies(&mut server);
    assert_eq!(found[0], (6, 3, [&[0, 1], "vm1-root".as_bytes()].concat()));
    assert_eq!(found[1], (6, 3, [&[0, 2], "two copies".as_bytes()].concat()));
    assert_eq!(found.last(), Some(&(6, 1, vec![])));
    assert!(!server.is_transmitting());
}

#[test]
fn a_listing_names_the_export() {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(3, &[]));
    let entry = [string("vm1-root").as_slice(), b"two copies"].concat();
    assert_eq!(option_replies(&mut server), [(3, 2, entry), (3, 1, vec![])]);
}

#[test]
fn options_that_can_not_be_granted_get_their_own_error() {
    let unsupported = 0x8000_0001;
    let invalid = 0x8000_0003;
    let unknown = 0x8000_0006;
    let plot: &[(u32, Vec<u8>, u32)] = &[
        (4, vec![], unsupported),  // PEEK_EXPORT, withdrawn
        (5, vec![], unsupported),  // STARTTLS
        (11, vec![], unsupported), // EXTENDED_HEADERS
        (999, vec![1, 2, 3], unsupported),
        (3, vec![0], invalid),
        (8, vec![0], invalid),
        (7, vec![], invalid),
        (7, go("another"), unknown),
        (6, go("another"), unknown),
        (7, [string("").as_slice(), &[0, 2, 0, 3]].concat(), invalid), // one type of two
        (7, [string("").as_slice(), &[0, 0, 9]].concat(), invalid),    // a byte too many
        (7, vec![255, 255, 255, 255, 0, 0], invalid),
        (10, contexts("", &["base:allocation"]), invalid), // structured replies weren't agreed on
    ];
    for (code, data, error) in plot {
        let mut server = greeted(info(), Limits::default());
        server.handle_bytes(&option(*code, data));
        let found = option_replies(&mut server);
        assert_eq!(found.len(), 1, "option {code}");
        assert_eq!((found[0].0, found[0].1), (*code, *error), "option {code}");
        assert!(!server.is_transmitting() && server.ending().is_none());
        server.handle_bytes(&option(7, &go("")));
        assert!(server.is_transmitting(), "option {code} is survived");
    }
}

#[test]
fn an_option_too_long_to_look_at_is_skipped() {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(7, &vec![0; 70_000]));
    let found = option_replies(&mut server);
    assert_eq!((found[0].0, found[0].1), (7, 0x8000_0009));
    server.handle_bytes(&option(7, &go("")));
    assert!(server.is_transmitting());
}

#[test]
fn contexts_are_listed_by_wildcard_and_chosen_by_name() {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(8, &[]));
    option_replies(&mut server);
    for (code, queries, found) in [
        (9, &[][..], true),
        (9, &["base:"], true),
        (9, &["qemu:"], false),
        (10, &["base:"], false),
        (10, &["qemu:x", "base:allocation"], true),
    ] {
        server.handle_bytes(&option(code, &contexts("vm1-root", queries)));
        let replies = option_replies(&mut server);
        assert_eq!(replies.len(), if found { 2 } else { 1 }, "{code} {queries:?}");
        if found {
            let id = if code == 9 { 0u32 } else { 1 };
            assert_eq!(replies[0].2, [&id.to_be_bytes(), b"base:allocation".as_slice()].concat());
        }
        assert_eq!(replies.last().unwrap().1, 1);
    }
    // A later choice replaces an earlier one.
    server.handle_bytes(&option(10, &contexts("", &[])));
    server.handle_bytes(&option(7, &go("")));
    sent(&mut server);
    server.handle_bytes(&request(7, 0, 1, 0, 4096));
    assert_eq!(only_error(&mut server), 22);
}

#[test]
fn a_handshake_that_makes_no_sense_ends_the_connection() {
    let mut flags = Server::new(0, info(), Limits::default());
    flags.handle_bytes(&[0, 0, 0, 4]);
    let mut magic = greeted(info(), Limits::default());
    magic.handle_bytes(&[0; 16]);
    let mut name = greeted(info(), Limits::default());
    name.handle_bytes(&option(1, b"another"));
    let mut long = greeted(info(), Limits::default());
    long.handle_bytes(&[&OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 7, 255, 255, 255, 255]].concat());
    for mut server in [flags, magic, name, long] {
        assert!(matches!(server.ending(), Some(Ending::Violation(_))), "{server:?}");
        assert!(!server.wants_read());
        assert!(sent(&mut server).is_empty());
    }
}

#[test]
fn a_client_that_gives_up_is_told_so_first() {
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(2, &[]));
    assert_eq!(server.ending(), None);
    assert_eq!(option_replies(&mut server), [(2, 1, vec![])]);
    assert_eq!(server.ending(), Some(Ending::Aborted));
}

#[test]
fn requests_reach_the_session_as_they_were_meant() {
    let mut server = structured();
    let plot: &[(Vec<u8>, GuestOp<HeapPayload>)] = &[
        (request(0, 0, 1, 4096, 512), GuestOp::Read { offset: 4096, len: 512 }),
        (write(0, 2, 3, b"xyz"), GuestOp::Write { offset: 3, data: b"xyz".to_vec().into(), fua: false }),
        (write(1, 2, 3, b"xyz"), GuestOp::Write { offset: 3, data: b"xyz".to_vec().into(), fua: true }),
        (request(3, 0, 4, 0, 0), GuestOp::Flush),
        (
            request(4, 1, 5, 8192, 4096),
            GuestOp::Zero { offset: 8192, len: 4096, discard: true, keep_space: false, fua: true },
        ),
        (
            request(6, 0, 6, 0, 1 << 30),
            GuestOp::Zero { offset: 0, len: 1 << 30, discard: false, keep_space: false, fua: false },
        ),
        (
            request(6, 2, 7, 0, 1),
            GuestOp::Zero { offset: 0, len: 1, discard: false, keep_space: true, fua: false },
        ),
        (
            request(6, 16, 8, 0, 512),
            GuestOp::Zero { offset: 0, len: 512, discard: false, keep_space: false, fua: false },
        ),
        // Status is told for 64 MiB at most; the client asks again.
        (request(7, 8, 9, 4096, 1 << 29), GuestOp::Kinds { offset: 4096, len: 64 << 20 }),
    ];
    for (bytes, op) in plot {
        server.handle_bytes(bytes);
        let request = only_request(&mut server);
        assert_eq!(request.op, *op);
        assert_eq!(request.id.0 >> 32, 7, "the connection's tag");
    }
    assert_eq!(server.held_requests(), plot.len());
}

#[test]
fn refused_requests_get_the_protocols_errors() {
    let end = SIZE - 512;
    let plot: &[(Vec<u8>, u32, &str)] = &[
        (request(0, 0, 1, end, 513), 22, "read past the end"),
        (request(0, 0, 1, u64::MAX, 512), 22, "read around the end of numbers"),
        (write(0, 1, end, &[1; 513]), 28, "write past the end"),
        (request(6, 0, 1, SIZE, 1), 28, "zeroes past the end"),
        (request(4, 0, 1, end, 1024), 22, "trim past the end"),
        (request(7, 0, 1, end, 1024), 22, "status past the end"),
        (request(0, 0, 1, 0, 0), 22, "read of nothing"),
        (write(0, 1, 0, &[]), 22, "write of nothing"),
        (request(6, 0, 1, 0, 0), 22, "zeroes of nothing"),
        (request(7, 0, 1, 0, 0), 22, "status of nothing"),
        (request(0, 0, 1, 0, MAX_TRANSFER + 1), 22, "read too long"),
        (request(0, 4, 1, 0, MAX_TRANSFER + 1), 75, "read too long for one piece"),
        (write(0, 1, 0, &vec![1; MAX_TRANSFER as usize + 1]), 22, "write too long"),
        (request(0, 2, 1, 0, 512), 22, "flag of another command"),
        (write(4, 1, 0, &[1; 512]), 22, "flag of another command, with data"),
        (request(3, 0, 1, 1, 0), 22, "flush with an offset"),
        (request(5, 0, 1, 0, 512), 22, "cache, not offered"),
        (request(8, 0, 1, 0, 512), 22, "resize, not offered"),
        (request(77, 0, 1, 0, 0), 22, "unknown command"),
        (request(6, 18, 1, 0, 512), 95, "fast zeroes that keep their space"),
    ];
    let mut server = structured();
    for (bytes, error, name) in plot {
        server.handle_bytes(bytes);
        assert_eq!(server.poll_request(), None, "{name}");
        assert_eq!(only_error(&mut server), *error, "{name}");
    }
    server.handle_bytes(&request(3, 0, 1, 0, 0));
    assert_eq!(only_request(&mut server).op, GuestOp::Flush, "the stream is still in step");
}

#[test]
fn a_read_only_export_refuses_changes() {
    let mut server = structured_with(ExportInfo { read_only: true, ..info() }, Limits::default());
    for bytes in [write(0, 1, 0, b"x"), request(4, 0, 1, 0, 1), request(6, 0, 1, 0, 1)] {
        server.handle_bytes(&bytes);
        assert_eq!(only_error(&mut server), 1);
    }
    server.handle_bytes(&request(0, 0, 1, 0, 1));
    only_request(&mut server);
}

#[test]
fn df_needs_structured_replies() {
    let mut server = simple();
    server.handle_bytes(&request(0, 4, 1, 0, 512));
    assert_eq!(only_error(&mut server), 22);
}

#[test]
fn a_session_s_errors_are_translated() {
    let plot = [
        (GuestError::OutOfRange, 22, 28),
        (GuestError::Fenced, 108, 108),
        (GuestError::Unreadable, 5, 5),
        (GuestError::Waiting, 5, 5),
    ];
    for (error, on_read, on_write) in plot {
        let mut server = structured();
        server.handle_bytes(&request(0, 0, 1, 0, 512));
        let id = only_request(&mut server).id;
        server.complete(id, GuestReply::Failed(error));
        assert_eq!(only_error(&mut server), on_read);
        server.handle_bytes(&write(0, 1, 0, b"x"));
        let id = only_request(&mut server).id;
        server.complete(id, GuestReply::Failed(error));
        assert_eq!(only_error(&mut server), on_write);
    }
}

#[test]
fn a_read_is_answered_in_chunks_of_data_and_holes() {
    let mut server = structured();
    server.handle_bytes(&request(0, 0, 42, 1000, 25));
    let id = only_request(&mut server).id;
    let extents = vec![data(b"ab"), data(b"cde"), hole(3), hole(7), data(b"0123456789")];
    server.complete(id, GuestReply::Data(extents.clone()));
    let at = |offset: u64, rest: &[u8]| [&offset.to_be_bytes()[..], rest].concat();
    let chunk = |last, kind, data| Reply::Chunk { cookie: 42, last, kind, data };
    assert_eq!(
        replies(&mut server),
        [
            chunk(false, 1, at(1000, b"abcde")),
            chunk(false, 2, at(1005, &10u32.to_be_bytes())),
            chunk(true, 1, at(1015, b"0123456789")),
        ]
    );

    // Don't fragment: one chunk, the zeroes explicit.
    server.handle_bytes(&request(0, 4, 42, 1000, 25));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Data(extents));
    let whole = b"abcde\0\0\0\0\0\0\0\0\0\x000123456789";
    assert_eq!(replies(&mut server), [chunk(true, 1, at(1000, whole))]);

    // A hole alone is one chunk in any case.
    server.handle_bytes(&request(0, 4, 42, 1000, 25));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Data(vec![hole(25)]));
    assert_eq!(replies(&mut server), [chunk(true, 2, at(1000, &25u32.to_be_bytes()))]);
}

#[test]
fn a_simple_read_has_its_zeroes_written_out() {
    let mut server = simple();
    server.handle_bytes(&request(0, 0, 42, 0, 200_003));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Data(vec![hole(200_000), data(b"end")]));
    let reply = sent(&mut server);
    assert_eq!(reply.len(), 16 + 200_003);
    assert_eq!(reply[..16], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 42]);
    assert!(reply[16..200_016].iter().all(|byte| *byte == 0));
    assert_eq!(&reply[200_016..], b"end");
}

#[test]
fn block_status_tells_zeroed_from_never_written() {
    let mut server = structured();
    let runs = vec![(4096, None), (8192, None), (4096, Some(Hole::Zero)), (4096, Some(Hole::Absent))];
    server.handle_bytes(&request(7, 0, 5, 0, 20480));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Kinds(runs.clone()));
    let numbers = |list: &[u32]| list.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>();
    let chunk = |data| Reply::Chunk { cookie: 5, last: true, kind: 5, data };
    assert_eq!(replies(&mut server), [chunk(numbers(&[1, 12288, 0, 4096, 2, 4096, 3]))]);
    // "Only one" means one.
    server.handle_bytes(&request(7, 8, 5, 0, 20480));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Kinds(runs));
    assert_eq!(replies(&mut server), [chunk(numbers(&[1, 12288, 0]))]);
}

const SINCE: SnapId = SnapId(0x50);
const WEFT: &str = "weft:changed-since:00000000-0000-0000-0000-000000000050";
const QEMU: &str = "qemu:dirty-bitmap:weft-since-00000000-0000-0000-0000-000000000050";

fn snapshot() -> ExportInfo {
    ExportInfo { read_only: true, since: vec![SnapId(0x4f), SINCE], ..info() }
}

#[test]
fn a_snapshots_export_offers_what_has_changed_since_others() {
    let mut server = greeted(snapshot(), Limits::default());
    server.handle_bytes(&option(8, &[]));
    option_replies(&mut server);
    for (code, queries, found) in [
        (9, &[][..], 5),
        (9, &["weft:"], 2),
        (9, &["weft:changed-since:", "base:allocation"], 3),
        (9, &["qemu:"], 2),
        (9, &["qemu:dirty-bitmap:"], 2),
        (9, &["qemu:allocation-depth"], 0),
        (10, &[], 0),
        (10, &["weft:"], 0),
        (10, &[WEFT, WEFT], 1),
        (10, &[QEMU, "base:allocation", WEFT], 3),
    ] {
        server.handle_bytes(&option(code, &contexts("", queries)));
        assert_eq!(option_replies(&mut server).len(), found + 1, "{code} {queries:?}");
    }
    // A volume has none of that.
    let mut server = greeted(info(), Limits::default());
    server.handle_bytes(&option(8, &[]));
    server.handle_bytes(&option(9, &contexts("", &[WEFT])));
    assert_eq!(option_replies(&mut server).len(), 2);
}

#[test]
fn a_client_chooses_so_many_contexts_and_no_more() {
    let since: Vec<SnapId> = (0..1000).map(SnapId).collect();
    let mut server = greeted(ExportInfo { since: since.clone(), ..snapshot() }, Limits::default());
    server.handle_bytes(&option(8, &[]));
    let names: Vec<String> = since.iter().map(|snap| format!("weft:changed-since:{snap}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    server.handle_bytes(&option(10, &contexts("", &names)));
    assert_eq!(option_replies(&mut server).len(), 1 + 16 + 1);
}

#[test]
fn each_context_of_a_range_is_asked_for_and_all_are_told_in_one_reply() {
    let mut server = greeted(snapshot(), Limits::default());
    server.handle_bytes(&option(8, &[]));
    server.handle_bytes(&option(10, &contexts("", &[QEMU, WEFT, "base:allocation"])));
    let numbers: Vec<u32> = option_replies(&mut server)
        .iter()
        .filter(|(.., data)| !data.is_empty())
        .map(|(.., data)| u32::from_be_bytes(data[..4].try_into().unwrap()))
        .collect();
    assert_eq!(numbers, [1, 4, 5], "and none is another one's");
    server.handle_bytes(&option(7, &go("")));
    sent(&mut server);
    let changed = || vec![(4096, false), (8192, true), (8192, false)];
    let words = |list: &[u32]| list.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>();
    let chunk = |last, data| Reply::Chunk { cookie: 5, last, kind: 5, data };
    for (flags, runs) in [(0, &[4096, 0, 8192, 1, 8192, 0][..]), (8, &[4096, 0])] {
        server.handle_bytes(&request(7, flags, 5, 65536, 20480));
        // What comes later waits for its turn, and the budget counts one request.
        server.handle_bytes(&request(0, 0, 6, 0, 4096));
        let read = {
            let kinds = server.poll_request().expect("the first context");
            assert_eq!(kinds.op, GuestOp::Kinds { offset: 65536, len: 20480 });
            let read = server.poll_request().expect("the read");
            server.complete(kinds.id, GuestReply::Kinds(vec![(20480, None)]));
            assert_eq!(server.held_requests(), 2);
            read
        };
        for _ in 0..2 {
            let request = only_request(&mut server);
            assert_eq!(request.op, GuestOp::Changed { since: SINCE, offset: 65536, len: 20480 });
            server.complete(request.id, GuestReply::Changed { runs: changed(), exact: true });
        }
        let told = |id| words(&[&[id][..], runs].concat());
        assert_eq!(
            replies(&mut server),
            [chunk(false, words(&[1, 20480, 0])), chunk(false, told(4)), chunk(true, told(5))]
        );
        server.complete(read.id, GuestReply::Data(vec![hole(4096)]));
        sent(&mut server);
        assert_eq!(server.held_requests(), 0);
    }
    // One of them can't be told.
    server.handle_bytes(&request(7, 0, 5, 65536, 20480));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Kinds(vec![(20480, None)]));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Failed(GuestError::Unreadable));
    let all = replies(&mut server);
    assert_eq!(all[0], chunk(false, words(&[1, 20480, 0])));
    assert!(matches!(all[1], Reply::Chunk { cookie: 5, last: true, kind: 0x8001, .. }), "{all:?}");
    assert_eq!((all.len(), server.held_requests()), (2, 0));
    // Nor can any after the session has ended, or the client.
    server.handle_bytes(&request(7, 0, 5, 65536, 20480));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Kinds(vec![(20480, None)]));
    server.shutdown_fenced();
    assert_eq!((replies(&mut server).len(), server.held_requests()), (2, 0));
}

#[test]
fn a_resized_volume_takes_requests_past_its_old_end() {
    let mut server = structured();
    server.handle_bytes(&request(0, 0, 1, SIZE, 4096));
    assert_eq!(only_error(&mut server), 22);
    server.set_size(SIZE + 4096);
    server.handle_bytes(&request(0, 0, 1, SIZE, 4096));
    only_request(&mut server);
}

#[test]
fn a_size_changed_during_the_handshake_is_the_one_told() {
    let mut server = greeted(info(), Limits::default());
    server.set_size(4096);
    server.handle_bytes(&option(1, b""));
    assert_eq!(sent(&mut server)[..8], 4096u64.to_be_bytes());
}

#[test]
fn ten_thousand_pipelined_requests_stay_within_the_budget() {
    // The plot: a client that sends reads of 32 KiB and never listens, then listens.
    let limits = Limits { requests: 100, bytes: 1 << 20 };
    let mut server = structured_with(info(), limits);
    let all: Vec<u8> = (0..10_000u64).flat_map(|n| request(0, 0, n, n * 512, 32768)).collect();
    let mut stream = all.chunks(2800);
    let mut asked = Vec::new();
    let mut answered = 0;
    loop {
        while server.wants_read() {
            let Some(piece) = stream.next() else { break };
            server.handle_bytes(piece);
        }
        assert!(server.held_requests() <= 100 + 100, "{}", server.held_requests());
        while let Some(request) = server.poll_request() {
            asked.push(request.id);
        }
        assert!(server.held_bytes() <= (1 << 20) + 100 * (32768 + 64), "{}", server.held_bytes());
        assert!(asked.len() <= 32, "{} reads of 32 KiB under way in a budget of 1 MiB", asked.len());
        if asked.is_empty() {
            break;
        }
        for id in asked.drain(..) {
            server.complete(id, GuestReply::Data(vec![data(&[7; 32768])]));
        }
        assert!(server.held_requests() == 0 || server.poll_request().is_none(), "replies fill the budget");
        answered += replies(&mut server).len();
    }
    assert_eq!(answered, 10_000);
    assert!(server.wants_read());
    assert_eq!((server.held_requests(), server.held_bytes()), (0, 0));
}

#[test]
fn unanswered_writes_fill_the_budget() {
    let mut server = structured_with(info(), Limits { requests: 1000, bytes: 1 << 20 });
    let mut open = Vec::new();
    while server.wants_read() {
        server.handle_bytes(&write(0, 1, 0, &[1; 65536]));
        open.extend(server.poll_request());
    }
    assert_eq!(server.held_requests(), 16);
    server.complete(open.remove(0).id, GuestReply::Done);
    assert_eq!(replies(&mut server), [Reply::Simple { cookie: 1, error: 0 }]);
    assert!(server.wants_read());
}

#[test]
fn a_transfer_larger_than_the_budget_passes_alone() {
    let mut server = structured_with(info(), Limits { requests: 10, bytes: 4096 });
    server.handle_bytes(&request(1, 0, 1, 0, 1 << 20));
    assert!(server.wants_read(), "a write under way is read to its end");
    server.handle_bytes(&vec![9; 1 << 20]);
    assert!(!server.wants_read());
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Done);
    sent(&mut server);
    assert!(server.wants_read());
}

#[test]
fn a_client_that_haggles_without_listening_is_not_read() {
    let mut server = greeted(info(), Limits::default());
    let mut options = 0;
    while server.wants_read() {
        server.handle_bytes(&option(3, &[]));
        options += 1;
    }
    assert!(options < 2000);
    sent(&mut server);
    assert!(server.wants_read());
}

#[test]
fn a_fenced_session_answers_everything_with_eshutdown() {
    let mut server = structured();
    server.handle_bytes(&request(0, 0, 1, 0, 512));
    let with_session = only_request(&mut server).id;
    server.handle_bytes(&request(3, 0, 2, 0, 0));
    server.handle_bytes(&write(0, 3, 0, &[1; 512])[..100]);
    server.shutdown_fenced();
    assert_eq!(server.ending(), None, "the client is told first");
    assert!(server.wants_read());
    server.handle_bytes(&[1; 512 + 28 - 100]);
    server.handle_bytes(&request(7, 0, 4, 0, 512));
    server.complete(with_session, GuestReply::Data(vec![hole(512)]));
    assert_eq!(server.poll_request(), None);
    let told = replies(&mut server);
    assert_eq!(told.len(), 4);
    for reply in told {
        match reply {
            Reply::Simple { cookie, error } => assert!(error == 108 && (cookie == 2 || cookie == 3)),
            Reply::Chunk { cookie, kind, data, .. } => {
                assert!(kind == 0x8001 && data[3] == 108 && (cookie == 1 || cookie == 4));
            }
        }
    }
    assert_eq!(server.ending(), Some(Ending::Fenced));
}

#[test]
fn a_session_fenced_during_the_handshake_lets_nobody_in() {
    let mut server = greeted(info(), Limits::default());
    server.shutdown_fenced();
    server.handle_bytes(&option(7, &go("")));
    let found = option_replies(&mut server);
    assert_eq!((found[0].0, found[0].1), (7, 0x8000_0007));
    assert_eq!(server.ending(), Some(Ending::Fenced));
}

#[test]
fn a_goodbye_waits_for_open_requests() {
    let mut server = structured();
    server.handle_bytes(&write(0, 1, 0, b"x"));
    server.handle_bytes(&request(3, 0, 2, 0, 0));
    server.handle_bytes(&request(2, 0, 0, 0, 0));
    assert!(!server.wants_read());
    assert_eq!(server.ending(), None);
    while let Some(request) = server.poll_request() {
        server.complete(request.id, GuestReply::Done);
    }
    assert_eq!(replies(&mut server).len(), 2);
    assert_eq!(server.ending(), Some(Ending::Disconnected));
    server.handle_bytes(b"after the end");
    assert_eq!(server.ending(), Some(Ending::Disconnected));
}

#[test]
fn a_goodbye_followed_by_silence_still_does_the_requests() {
    let mut server = structured();
    server.handle_bytes(&write(0, 1, 0, b"x"));
    server.handle_bytes(&request(2, 0, 0, 0, 0));
    server.handle_eof();
    assert_eq!(server.ending(), None);
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Done);
    assert!(sent(&mut server).is_empty());
    assert_eq!(server.ending(), Some(Ending::Disconnected));
}

#[test]
fn a_client_lost_in_the_middle_of_a_write_leaves_nothing_behind() {
    let mut server = structured();
    server.handle_bytes(&write(0, 1, 0, b"abcd"));
    let with_session = only_request(&mut server).id;
    server.handle_bytes(&write(0, 2, 0, &[1; 4096])[..1000]);
    server.handle_eof();
    assert_eq!(server.ending(), Some(Ending::Lost));
    assert_eq!(server.poll_request(), None);
    server.complete(with_session, GuestReply::Done);
    assert!(sent(&mut server).is_empty());
    assert_eq!(server.held_bytes(), 0);
}

#[test]
fn a_request_without_magic_ends_the_connection() {
    let mut server = structured();
    server.handle_bytes(&[0; 28]);
    assert!(matches!(server.ending(), Some(Ending::Violation(_))));
}

#[test]
#[should_panic(expected = "answered twice")]
fn answering_a_fenced_connection_twice_is_allowed_but_not_a_live_one() {
    let mut server = structured();
    server.handle_bytes(&request(3, 0, 1, 0, 0));
    let id = only_request(&mut server).id;
    server.complete(id, GuestReply::Done);
    server.complete(id, GuestReply::Done);
}

/// Answers everything as a volume of zeroes does.
fn answer_all(server: &mut Server) {
    while let Some(request) = server.poll_request() {
        let reply = match request.op {
            GuestOp::Read { len, .. } => GuestReply::Data(vec![hole(len)]),
            GuestOp::Kinds { len, .. } => GuestReply::Kinds(vec![(len, None)]),
            GuestOp::Changed { len, .. } => GuestReply::Changed { runs: vec![(len, true)], exact: true },
            GuestOp::Write { data, .. } => {
                if data.bytes().first() == Some(&0) {
                    GuestReply::Failed(GuestError::Unreadable)
                } else {
                    GuestReply::Done
                }
            }
            GuestOp::Flush | GuestOp::Zero { .. } => GuestReply::Done,
        };
        server.complete(request.id, reply);
    }
}

/// What a client hears.
#[derive(Debug, PartialEq, Default)]
struct Heard {
    handshake: Vec<u8>,
    /// In order of their text: refusals overtake answers, as NBD allows.
    replies: Vec<String>,
    ending: Option<Ending>,
}

/// Plays a stream to a server, in pieces of the lengths given.
fn play(stream: &Stream, mut lengths: impl Iterator<Item = usize>) -> Heard {
    let mut server = Server::new(0, info(), Limits::default());
    let mut heard = Heard { handshake: sent(&mut server), ..Heard::default() };
    for (is_request, mut rest) in [(false, &stream.handshake[..]), (true, &stream.requests[..])] {
        let began = server.is_transmitting();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(lengths.next().unwrap_or(usize::MAX).min(rest.len()));
            rest = after;
            server.handle_bytes(piece);
            answer_all(&mut server);
            if is_request && began {
                heard.replies.extend(replies(&mut server).iter().map(|reply| format!("{reply:?}")));
            } else {
                heard.handshake.extend(sent(&mut server));
            }
        }
    }
    heard.replies.sort();
    match server.ending() {
        // How much was answered before nonsense was noticed is a matter of time.
        ending @ Some(Ending::Violation(_)) => Heard { ending, ..Heard::default() },
        ending => Heard { ending, ..heard },
    }
}

#[derive(Debug, Clone)]
struct Stream {
    handshake: Vec<u8>,
    requests: Vec<u8>,
}

/// A plausible stream: a handshake and requests, some of them wrong.
fn stream() -> impl Strategy<Value = Stream> {
    let an_option = prop_oneof![
        Just(option(8, &[])),
        Just(option(10, &contexts("", &["base:allocation"]))),
        Just(option(3, &[])),
        Just(option(6, &go("vm1-root"))),
        (2..12u32, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(code, data)| option(code, &data)),
    ];
    let a_request = (0..9u16, 0..32u16, any::<u64>(), 0..SIZE + 9000, 0..9000u32).prop_map(
        |(command, flags, cookie, offset, len)| {
            let mut bytes = request(command, flags, cookie, offset, len);
            if command == 1 {
                bytes.extend((0..len).map(|n| n.to_le_bytes()[0]));
            }
            bytes
        },
    );
    let options = prop::collection::vec(an_option, 0..6);
    let requests = prop::collection::vec(a_request, 0..12);
    (options, requests).prop_map(|(options, requests)| Stream {
        handshake: [&3u32.to_be_bytes(), &option(8, &[])[..], &options.concat(), &option(7, &go(""))]
            .concat(),
        requests: requests.concat(),
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        start in 0..3usize,
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
    ) {
        let mut server = match start {
            0 => Server::new(0, info(), Limits::default()),
            1 => greeted(info(), Limits::default()),
            _ => structured(),
        };
        for piece in pieces {
            server.handle_bytes(&piece);
            answer_all(&mut server);
            sent(&mut server);
        }
    }

    #[test]
    fn damaged_streams_are_survived(
        stream in stream(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = [stream.handshake, stream.requests].concat();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        let mut server = Server::new(0, info(), Limits::default());
        server.handle_bytes(&bytes);
        answer_all(&mut server);
        sent(&mut server);
    }

    #[test]
    fn how_the_stream_is_cut_changes_nothing(
        stream in stream(),
        lengths in prop::collection::vec(1..300usize, 1..40),
    ) {
        let whole = play(&stream, core::iter::empty());
        let cut = play(&stream, lengths.into_iter().cycle());
        prop_assert_eq!(whole, cut);
    }
}
