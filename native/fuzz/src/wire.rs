//! Frames between hosts: any bytes, and frames whose checksums are right.
//!
//! Must always hold:
//! * bytes that are taken for a message are exactly the bytes that the message would be sent as;
//! * a flipped bit outside of guest data is an error.

use weft_proto::payload::HeapPayload;
use weft_proto::wire::{
    FrameKind, HEADER_LEN, Header, Version, data_offset, decode_hello, decode_request, decode_response,
    encode_hello, encode_request, encode_response, negotiate,
};

use crate::input::Input;

const FIX_HEADER: u8 = 1;
const FIX_LENGTHS: u8 = 2;
const FIX_META: u8 = 4;
const FLIP: u8 = 8;
const HELLO: u8 = 16;

/// First byte: what is set right; then a frame.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let version = if mode & HELLO != 0 { Version::HELLO } else { Version::V1 };
    let mut head: [u8; HEADER_LEN] = input.array();
    let mut rest = input.rest().to_vec();
    if mode & FIX_LENGTHS != 0 {
        // The upper bits say how many blocks of data follow the input, which is all meta.
        let data_len = usize::from(mode >> 5) * 4096;
        set(&mut head, 8, rest.len() + data_len);
        set(&mut head, 12, rest.len());
        rest.resize(rest.len() + data_len, 0xda);
    }
    if mode & FIX_META != 0 {
        let meta_len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        let meta = rest.get(..usize::try_from(meta_len).unwrap_or(usize::MAX)).unwrap_or(&rest);
        let crc = crc32c::crc32c(meta);
        head[56..60].copy_from_slice(&crc.to_le_bytes());
    }
    if mode & FIX_HEADER != 0 {
        head[..4].copy_from_slice(b"weft");
        head[4] = version.number();
        let crc = crc32c::crc32c(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
    }
    let Some(frame) = accept(&head, &rest, version) else { return };
    if mode & FLIP != 0 {
        // Any one bit, named by the frame's own bytes.
        let bits = (HEADER_LEN + frame.meta_len) * 8;
        let bit = usize::from(u16::from_le_bytes([head[16], head[17]])) % bits;
        if bit / 8 < HEADER_LEN {
            head[bit / 8] ^= 1 << (bit % 8);
        } else {
            rest[bit / 8 - HEADER_LEN] ^= 1 << (bit % 8);
        }
        assert!(accept(&head, &rest, version).is_none(), "bit {bit} flipped, and nobody noticed");
    }
}

struct Accepted {
    meta_len: usize,
}

fn accept(head: &[u8; HEADER_LEN], rest: &[u8], version: Version) -> Option<Accepted> {
    let header = Header::parse(head, version).ok()?;
    assert_eq!(header.encode(), *head, "the header is written as it was read");
    let payload = rest.get(..header.payload_len())?;
    let (meta, data) = payload.split_at(data_offset(&header));
    let whole: Vec<u8> = [head, meta].concat();
    let data_payload = || HeapPayload::from(data.to_vec());
    match header.kind() {
        FrameKind::Hello => {
            let hello = decode_hello(&header, meta).ok()?;
            let again = encode_hello(&hello);
            let (head, meta) = again.split_first_chunk::<HEADER_LEN>().expect("a header");
            let header = Header::parse(head, Version::HELLO).expect("own header");
            assert_eq!(decode_hello(&header, meta).as_ref(), Ok(&hello));
            let agreed = negotiate(&hello, &hello);
            if let Ok(agreed) = agreed {
                assert!(agreed.slots > 0 && agreed.version >= Version::V1);
            }
        }
        FrameKind::Request => {
            let request = decode_request(&header, meta, data_payload()).ok()?;
            let again = encode_request(version, header.handle, &request);
            assert_eq!(again.head, whole, "{request:?}");
            assert_eq!(crate::messages::data_of(&again), data_payload());
        }
        FrameKind::Response => {
            let response = decode_response(&header, meta, data_payload()).ok()?;
            let again = encode_response(version, header.handle, &response);
            assert_eq!(again.head, whole, "{response:?}");
            assert_eq!(crate::messages::data_of(&again), data_payload());
        }
    }
    Some(Accepted { meta_len: meta.len() })
}

fn set(head: &mut [u8; HEADER_LEN], at: usize, value: usize) {
    let value = u32::try_from(value).unwrap_or(u32::MAX);
    head[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
