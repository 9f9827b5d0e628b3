//! Records by themselves: those of RFC 8448, whose bytes nobody here made, and two ends with keys of the test.

use proptest::prelude::*;
use ring::aead::Algorithm;

use super::*;

const ALGORITHMS: [&Algorithm; 3] = [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305];

fn direction(algorithm: &'static Algorithm, key: &[u8], iv: [u8; 12]) -> Direction {
    let key = UnboundKey::new(algorithm, key).expect("a key's length");
    Direction { key: LessSafeKey::new(key), iv: Iv::from(iv), number: 0 }
}

/// Two ends of a connection.
fn pair_by(algorithm: &'static Algorithm) -> [Records; 2] {
    let way = |name: u8| direction(algorithm, &[name; 32][..algorithm.key_len()], [name; 12]);
    [Records { send: way(1), receive: way(2) }, Records { send: way(2), receive: way(1) }]
}

fn pair() -> [Records; 2] {
    pair_by(&AES_128_GCM)
}

fn sealed(end: &mut Records, parts: &[&[u8]]) -> Vec<u8> {
    let mut wire = vec![0xee; sealed_len(parts.iter().map(|part| part.len()).sum())];
    assert!(end.seal(parts, &mut wire));
    wire
}

/// A record with just this inside: content, type, padding.
fn odd(end: &mut Records, inner: &[u8]) -> Vec<u8> {
    let mut record = [&[0; RECORD_HEADER], inner, &[0; TAG_LEN]].concat();
    end.send.seal(&mut record, *inner.last().expect("a type, or padding"));
    record
}

/// The plaintext of a record that is taken whole.
fn opened(end: &mut Records, record: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut bytes = record.to_vec();
    let received = end.open(&mut bytes)?;
    assert_eq!(received.taken, record.len());
    Ok(bytes[received.plain].to_vec())
}

fn alert_of(result: Result<Vec<u8>, Fault>) -> Option<AlertDescription> {
    result.expect_err("a fault").alert
}

const ALTERED: Option<AlertDescription> = Some(AlertDescription::BadRecordMac);
const UNEXPECTED: Option<AlertDescription> = Some(AlertDescription::UnexpectedMessage);
const OVERFLOW: Option<AlertDescription> = Some(AlertDescription::RecordOverflow);

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

/// RFC 8448, 3 ("Simple 1-RTT Handshake"): the application data and the last alert of both ends. The server's first
/// record is a ticket, which is left out here.
#[test]
fn the_records_of_rfc_8448() {
    let way = |key: &str, iv: &str, number: u64| {
        let iv = *hex(iv).first_chunk().expect("12 bytes");
        Direction { number, ..direction(&AES_128_GCM, &hex(key), iv) }
    };
    let client = || way(CLIENT.0, CLIENT.1, 0);
    let server = || way(SERVER.0, SERVER.1, 1);
    let mut ends =
        [Records { send: client(), receive: server() }, Records { send: server(), receive: client() }];
    let text: Vec<u8> = (0..50).collect();
    for (from, data, close) in [(0, CLIENT.2, CLIENT.3), (1, SERVER.2, SERVER.3)] {
        assert_eq!(sealed(&mut ends[from], &[&text[..20], &text[20..]]), hex(data));
        assert_eq!(odd(&mut ends[from], &[1, 0, ALERT]), hex(close));
        assert_eq!(opened(&mut ends[1 - from], &hex(data)).as_ref(), Ok(&text));
        let closed = Fault { alert: None, text: "the peer closed the connection".to_owned() };
        assert_eq!(opened(&mut ends[1 - from], &hex(close)), Err(closed));
    }
}

/// Key, IV, record of data, record of the alert.
type Trace = (&'static str, &'static str, &'static str, &'static str);

const CLIENT: Trace = (
    "17 42 2d da 59 6e d5 d9 ac d8 90 e3 c6 3f 50 51",
    "5b 78 92 3d ee 08 57 90 33 e5 23 d9",
    "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 a8 \
     a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4",
    "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3",
);

const SERVER: Trace = (
    "9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56",
    "cf 78 2b 88 dd 83 54 9a ad f1 e9 84",
    "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3 0e fa f9 \
     7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d",
    "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9",
);

#[test]
fn runs_of_any_length_are_cut_into_full_records_and_one_that_is_not() {
    for algorithm in ALGORITHMS {
        let [mut a, mut b] = pair_by(algorithm);
        for len in [0, 1, 2, 16_383, 16_384, 16_385, 32_768, 32_769, 100_000] {
            let text: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            let (first, second) = text.split_at(len / 7);
            let wire = sealed(&mut a, &[&[], first, &[], second, &[]]);
            let mut got = Vec::new();
            let mut lengths = Vec::new();
            for record in wire.chunks(sealed_len(16_384)) {
                let plain = opened(&mut b, record).expect("sound");
                lengths.push(plain.len());
                got.extend_from_slice(&plain);
            }
            assert!(got == text, "{algorithm:?}: {len}");
            let full = lengths.iter().rev().skip(1).all(|len| *len == 16_384);
            assert!(full && lengths.len() == len.div_ceil(16_384), "{lengths:?}");
        }
    }
}

#[test]
fn nothing_is_taken_before_a_record_is_there_whole() {
    let [mut a, mut b] = pair();
    let wire = sealed(&mut a, &[b"a short one"]);
    for len in 0..wire.len() {
        let mut bytes = wire[..len].to_vec();
        assert_eq!(b.open(&mut bytes), Ok(Received::default()));
        assert_eq!(bytes, wire[..len], "and it is as it was");
        assert!(!is_judgeable(&bytes));
    }
    // With the beginning of the next one behind it.
    let mut bytes = [&wire[..], &[DATA, 3, 3]].concat();
    assert!(is_judgeable(&bytes));
    let received = b.open(&mut bytes).expect("sound");
    assert_eq!((received.taken, &bytes[received.plain]), (wire.len(), &b"a short one"[..]));
    assert_eq!(bytes[wire.len()..], [DATA, 3, 3]);
}

#[test]
fn any_flipped_bit_is_a_fault() {
    let [mut a, _] = pair();
    let wire = sealed(&mut a, &[b"twenty-four bytes of it."]);
    for bit in 0..wire.len() * 8 {
        let [_, mut b] = pair();
        let mut bad = wire.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let result = b.open(&mut bad);
        // A length that is longer waits for more, or is more than a record may have.
        let longer = (3 * 8..5 * 8).contains(&bit) && result == Ok(Received::default());
        assert!(longer || result.is_err(), "bit {bit}: {result:?}");
        if longer {
            bad.resize(RECORD_HEADER + BODY.end(), 0x5a);
            assert!(b.open(&mut bad).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_replayed_reordered_dropped_or_reflected_record_is_altered() {
    let [mut a, mut b] = pair();
    let [one, two] = [b"one", b"two"].map(|text| sealed(&mut a, &[text]));
    assert!(opened(&mut b, &one).is_ok());
    assert_eq!(alert_of(opened(&mut b, &one)), ALTERED, "replayed");
    let [mut same, mut b] = pair();
    assert_eq!(alert_of(opened(&mut b, &two)), ALTERED, "reordered");
    assert_eq!(alert_of(opened(&mut same, &one)), ALTERED, "reflected");
}

#[test]
fn padding_is_no_content_and_a_record_may_be_empty() {
    let [mut a, mut b] = pair();
    for (inner, plain) in [
        (&[DATA][..], &[][..]),
        (&[DATA, 0, 0, 0], &[]),
        (&[7, DATA], &[7]),
        (&[7, 0, 0, DATA, 0], &[7, 0, 0]),
        (&[DATA, DATA, 0], &[DATA]),
    ] {
        let record = odd(&mut a, inner);
        assert_eq!(opened(&mut b, &record), Ok(plain.to_vec()), "{inner:?}");
    }
    // As long as a record may be: all content, or nothing but padding behind a type.
    let mut inner = vec![9; 16_384];
    inner.push(DATA);
    let record = odd(&mut a, &inner);
    assert_eq!(opened(&mut b, &record), Ok(vec![9; 16_384]));
    inner.fill(0);
    inner[0] = DATA;
    let record = odd(&mut a, &inner);
    assert_eq!(opened(&mut b, &record), Ok(vec![]));
    let record = odd(&mut a, &[0; 100]);
    assert_eq!(alert_of(opened(&mut b, &record)), UNEXPECTED, "no type");
}

#[test]
fn a_record_is_judged_by_its_header_as_soon_as_that_is_there() {
    let judged = |bytes: &[u8]| {
        let [_, mut b] = pair();
        assert_eq!(is_judgeable(bytes), b.open(&mut bytes.to_vec()) != Ok(Received::default()));
        b.open(&mut bytes.to_vec()).map(|received| received.taken).map_err(|fault| fault.alert)
    };
    let [high, low] = 16_401u16.to_be_bytes();
    assert_eq!(judged(&[DATA, 3, 3, high, low]), Ok(0), "a full record");
    assert_eq!(judged(&[DATA, 3, 3, high, low + 1]), Err(OVERFLOW), "one byte more");
    assert_eq!(judged(&[DATA, 3, 3, 255, 255]), Err(OVERFLOW));
    assert_eq!(judged(&[DATA, 3, 3, 0, 17]), Ok(0), "a type and a tag");
    assert_eq!(judged(&[DATA, 3, 3, 0, 16]), Err(ALTERED));
    assert_eq!(judged(&[DATA, 3, 3, 0, 0]), Err(ALTERED));
    for other in [[ALERT, 3, 3], [HANDSHAKE, 3, 3], [20, 3, 3], [0, 3, 3], [DATA, 3, 1], [DATA, 2, 3]] {
        assert_eq!(judged(&[&other[..], &[0, 20]].concat()), Err(UNEXPECTED), "{other:?}");
    }
    assert_eq!(judged(b"weft\x01"), Err(UNEXPECTED));
}

#[test]
fn what_is_no_data_ends_the_connection() {
    let judged = |inner: &[u8]| {
        let [mut a, mut b] = pair();
        let record = odd(&mut a, inner);
        opened(&mut b, &record).expect_err("no data")
    };
    let fault = judged(&[2, 20, ALERT]);
    assert_eq!((fault.alert, fault.text.contains("BadRecordMac")), (None, true), "{fault:?}");
    // Whatever its level says, and also one that nobody knows.
    assert!(judged(&[1, 49, ALERT, 0, 0]).text.contains("AccessDenied"));
    assert_eq!(judged(&[77, 200, ALERT]).alert, None);
    for (title, inner) in [
        ("an alert that is none", &[ALERT][..]),
        ("half an alert", &[2, ALERT]),
        ("two alerts", &[2, 20, 2, 20, ALERT]),
        ("KeyUpdate", &[24, 0, 0, 1, 0, HANDSHAKE]),
        ("a ticket", &[4, 0, 0, 2, 9, 9, HANDSHAKE]),
        ("an empty message", &[HANDSHAKE]),
        ("change_cipher_spec", &[1, 20]),
        ("a heartbeat", &[1, 0, 0, 24]),
        ("an unknown type", &[1, 255]),
    ] {
        assert_eq!(judged(inner).alert, UNEXPECTED, "{title}");
    }
}

#[test]
fn a_key_is_good_for_so_many_records_and_one_alert() {
    let [mut a, mut b] = pair();
    a.skip_to(&mut b, RECORDS_WORN - 1);
    assert!(!a.is_worn() && !b.is_worn());
    let record = sealed(&mut a, &[b"half"]);
    assert!(a.is_worn() && !b.is_worn());
    assert!(opened(&mut b, &record).is_ok() && b.is_worn());
    a.skip_to(&mut b, RECORDS_MAX - 1);
    let mut room = vec![0; sealed_len(16_385)];
    assert!(!a.seal(&[&[1; 16_385]], &mut room), "two records");
    assert!(room.iter().all(|byte| *byte == 0), "nothing was done");
    let record = sealed(&mut a, &[&[1; 16_384]]);
    assert_eq!(opened(&mut b, &record), Ok(vec![1; 16_384]));
    assert!(!a.seal(&[&[1]], &mut [0; 23]));
    let beyond = a.alert(AlertDescription::InternalError);
    assert_eq!(alert_of(opened(&mut b, &beyond)), UNEXPECTED, "it is not looked at any more");
    assert_eq!(b.receive.number, RECORDS_MAX);
}

#[test]
fn debug_text_has_no_key() {
    let [mut a, _] = pair();
    let _ = sealed(&mut a, &[b"one"]);
    assert_eq!(format!("{a:?}"), "Records { sent: 1, received: 0, .. }");
}

proptest! {
    #[test]
    fn what_a_peer_sends_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), honest in any::<bool>()) {
        let [mut a, mut b] = pair();
        let mut bytes = if honest && !bytes.is_empty() { odd(&mut a, &bytes) } else { bytes };
        if let Ok(received) = b.open(&mut bytes) {
            prop_assert!(received.plain.end <= received.taken && received.taken <= bytes.len());
        }
    }
}
