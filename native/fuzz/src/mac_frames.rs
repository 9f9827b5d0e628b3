//! Frames under `auth` with somebody on the path who may do anything with them but has no key.
//!
//! Must always hold: taken is exactly what was sent, in its order, up to the first thing that somebody did; nothing after.

use weft_io::mac::{FrameMac, KEYS_LEN, MacError, TAG_LEN};
use weft_proto::wire::HEADER_LEN;

use crate::input::Input;

const FRAMES_MAX: usize = 32;

/// A frame as its bytes lie on the wire, without its data.
type Frame = Vec<u8>;

/// First byte: how many frames; then their bytes, then what is done to them, in the order of arrival.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let keys: [u8; KEYS_LEN] = core::array::from_fn(|i| i.to_le_bytes()[0] ^ 0x5c);
    let mut other_keys = keys;
    other_keys[7] ^= 1; // of what the caller seals with
    let (mut caller, mut acceptor) = (FrameMac::new(&keys, true), FrameMac::new(&keys, false));
    let count = 1 + input.below(FRAMES_MAX);
    let frames: Vec<Frame> = (0..count).map(|_| sealed(&mut caller, &mut input)).collect();
    let foreign = sealed(&mut FrameMac::new(&other_keys, true), &mut input);
    let answer = sealed(&mut acceptor, &mut input);

    let mut untouched = true;
    let mut arrived = 0;
    for _ in 0..=count {
        let frame = match input.u8() % 16 {
            0 => input.pick(&frames).clone(), // an old one, a later one or the right one
            1 => foreign.clone(),
            2 => answer.clone(), // reflected
            3 => altered(input.pick(&frames).clone(), &mut input),
            4 => {
                let len = HEADER_LEN + input.below(400);
                let mut made = input.take(len).to_vec();
                made.resize(made.len().max(HEADER_LEN), 0);
                made
            }
            _ => match frames.get(arrived) {
                Some(frame) => frame.clone(),
                None => break,
            },
        };
        untouched = untouched && frames.get(arrived).is_some_and(|wanted| *wanted == frame);
        let result = open(&mut acceptor, &frame);
        if untouched {
            assert_eq!(result, Ok(()), "a frame at its place");
            arrived += 1;
        } else {
            let wrong = result.expect_err("somebody's frame was taken");
            assert!(matches!(wrong, MacError::Wrong | MacError::Ended));
        }
    }
}

/// Any header and meta, sealed.
fn sealed(mac: &mut FrameMac, input: &mut Input<'_>) -> Frame {
    let mut head = input.array::<HEADER_LEN>().to_vec();
    let len = input.below(300);
    head.extend_from_slice(input.take(len));
    let before = head.clone();
    mac.seal(&mut head).expect("far from the last number");
    assert_eq!(head.len(), before.len() + TAG_LEN);
    assert_eq!(head[..HEADER_LEN], before[..HEADER_LEN]);
    assert_eq!(head[HEADER_LEN + TAG_LEN..], before[HEADER_LEN..]);
    head
}

/// A bit, a cut, more of it, or two bytes for each other.
fn altered(mut frame: Frame, input: &mut Input<'_>) -> Frame {
    let at = input.below(frame.len());
    match input.u8() % 4 {
        0 => frame[at] ^= 1 << (input.u8() % 8),
        1 => frame.truncate(at.max(HEADER_LEN)),
        2 => frame.insert(at, input.u8()),
        _ => {
            let with = input.below(frame.len());
            frame.swap(at, with);
        }
    }
    frame
}

fn open(mac: &mut FrameMac, frame: &[u8]) -> Result<(), MacError> {
    let (header, rest) = frame.split_first_chunk::<HEADER_LEN>().expect("never shorter than a header");
    let (tag, meta) = rest.split_at(TAG_LEN.min(rest.len()));
    mac.open(header, tag, meta)
}
