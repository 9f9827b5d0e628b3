//! The MAC of frames under `auth`: clear frames, each header and meta of which is tied to the handshake and to its place
//! in the stream.
//!
//! On the wire: header ([`HEADER_LEN`] bytes) ‖ tag ([`TAG_LEN`]) ‖ meta ‖ data, from the first frame on, HELLO included.
//! The tag is that of AES-256-GCM over no plaintext (GMAC) with header ‖ meta as associated data. Its nonce is four zero
//! bytes and the frame's number as a big-endian u64: from 0, +1 a frame, counted by each side for itself and never sent.
//! Each direction has a key of its own, from the handshake's exporter ([`EXPORTER_LABEL`]).
//!
//! **What it protects.** Who is on the path but has no key of the two hosts can't inject a frame, replay, reorder, drop
//! (but the last ones), reflect or redirect one, and can't change a field of a header or a meta: requests, answers,
//! ATTACH, PROMISE and its record, checksums.
//!
//! **What it does not protect.** Guest data against somebody who alters packets: data is outside of the tag, and what ties
//! it to the meta is a CRC32C, which anybody can match. The secrecy of anything. That the connection lives: everybody on
//! the path can end it.
//!
//! Must always hold:
//! * a nonce is used once: the number never wraps, and a connection ends before it would;
//! * after one wrong tag nothing is taken any more, so that each guess costs a handshake;
//! * nobody acts on a meta before its tag was found right.

use core::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use weft_proto::wire::HEADER_LEN;

/// Bytes of a tag: the trailer of each header under `auth`.
pub const TAG_LEN: usize = 16;
/// Bytes that the exporter gives: the caller's key, then the acceptor's.
pub const KEYS_LEN: usize = 64;
/// The exporter's label; it has no context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-weft-auth-v1";

/// Why a frame was not sealed or not taken. Either ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacError {
    /// The tag is not that of this header and meta at this place.
    Wrong,
    /// Every number was used, or a frame was refused before.
    Ended,
}

impl fmt::Display for MacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MacError::Wrong => "a frame's MAC is wrong",
            MacError::Ended => "the connection's MAC has ended",
        })
    }
}

/// One direction.
struct Direction {
    key: LessSafeKey,
    /// The next frame's number; `None` when there is none any more.
    next: Option<u64>,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Direction {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("AES-256 has keys of 32 bytes");
        Direction { key: LessSafeKey::new(key), next: Some(0) }
    }

    /// The nonce of the next frame, which is used up.
    fn nonce(&mut self) -> Result<Nonce, MacError> {
        let number = self.next.ok_or(MacError::Ended)?;
        // The last number is never used: it would leave none to say that the connection has ended.
        self.next = number.checked_add(1).filter(|next| *next < u64::MAX);
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what a connection sends and judges what it receives. See the module.
pub struct FrameMac {
    send: Direction,
    receive: Direction,
    /// Header ‖ meta of what is judged: kept, so that a frame costs no allocation.
    joined: Vec<u8>,
}

impl fmt::Debug for FrameMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_struct("FrameMac")
            .field("sent", &self.send.next)
            .field("received", &self.receive.next)
            .finish_non_exhaustive()
    }
}

impl FrameMac {
    /// From the exporter's bytes, which are the same on both sides: the first half is the key of what the caller sends.
    #[must_use]
    pub fn new(keys: &[u8; KEYS_LEN], caller: bool) -> FrameMac {
        let (calling, accepting) = keys.split_at(KEYS_LEN / 2);
        let direction = |key: &[u8]| Direction::new(key.first_chunk().expect("half of the keys"));
        let (calling, accepting) = (direction(calling), direction(accepting));
        let (send, receive) = if caller { (calling, accepting) } else { (accepting, calling) };
        FrameMac { send, receive, joined: Vec::new() }
    }

    /// Puts the tag of the next frame into its head (header and meta, as [`weft_proto::wire::EncodedFrame::head`] has
    /// them), behind the header. After an error the frame must not be sent, and the connection ends.
    ///
    /// # Panics
    /// When `head` is shorter than a header: a caller's bug.
    pub fn seal(&mut self, head: &mut Vec<u8>) -> Result<(), MacError> {
        assert!(head.len() >= HEADER_LEN, "a head of {} bytes", head.len());
        let nonce = self.send.nonce()?;
        let sealed = self.send.key.seal_in_place_separate_tag(nonce, Aad::from(&head[..]), &mut []);
        // The only failure is an input beyond GCM's limit of 2^36 bytes.
        let tag = sealed.map_err(|_| MacError::Ended)?;
        head.splice(HEADER_LEN..HEADER_LEN, tag.as_ref().iter().copied());
        Ok(())
    }

    /// Judges the next frame that arrived. After an error every other one is refused as well: close the connection.
    pub fn open(&mut self, header: &[u8; HEADER_LEN], tag: &[u8], meta: &[u8]) -> Result<(), MacError> {
        let nonce = self.receive.nonce()?;
        self.joined.clear();
        self.joined.extend_from_slice(header);
        self.joined.extend_from_slice(meta);
        let right =
            tag.first_chunk::<TAG_LEN>().filter(|chunk| chunk.len() == tag.len()).is_some_and(|tag| {
                let mut tag = *tag;
                self.receive.key.open_in_place(nonce, Aad::from(&self.joined[..]), &mut tag).is_ok()
            });
        if !right {
            self.receive.next = None;
            return Err(MacError::Wrong);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> [u8; KEYS_LEN] {
        core::array::from_fn(|i| u8::try_from(i).expect("below 64") ^ 0x5c)
    }

    fn pair() -> (FrameMac, FrameMac) {
        (FrameMac::new(&keys(), true), FrameMac::new(&keys(), false))
    }

    /// Header and meta of a frame whose bytes say which one it is.
    fn head(number: u8, meta: usize) -> Vec<u8> {
        (0..HEADER_LEN + meta).map(|i| number.wrapping_mul(31).wrapping_add(i.to_le_bytes()[0])).collect()
    }

    fn sealed(mac: &mut FrameMac, number: u8, meta: usize) -> Vec<u8> {
        let mut bytes = head(number, meta);
        mac.seal(&mut bytes).expect("sealed");
        assert_eq!(bytes.len(), HEADER_LEN + TAG_LEN + meta);
        bytes
    }

    fn open(mac: &mut FrameMac, frame: &[u8]) -> Result<(), MacError> {
        let (header, rest) = frame.split_first_chunk::<HEADER_LEN>().expect("a header");
        let (tag, meta) = rest.split_at(TAG_LEN.min(rest.len()));
        mac.open(header, tag, meta)
    }

    #[test]
    fn frames_in_their_order_are_taken_in_both_directions() {
        let (mut caller, mut acceptor) = pair();
        for number in 0..100u8 {
            let meta = usize::from(number) * 7;
            let frame = sealed(&mut caller, number, meta);
            assert_eq!(frame[..HEADER_LEN], head(number, meta)[..HEADER_LEN], "the header is as it was");
            assert_eq!(frame[HEADER_LEN + TAG_LEN..], head(number, meta)[HEADER_LEN..], "and the meta");
            assert_eq!(open(&mut acceptor, &frame), Ok(()));
            let answer = sealed(&mut acceptor, number ^ 0xff, meta);
            assert_eq!(open(&mut caller, &answer), Ok(()));
        }
    }

    /// Computed by another implementation (OpenSSL 3, AES-256-GCM with empty plaintext): what is on the wire is what the
    /// module says, not merely what this file reads back.
    #[test]
    fn the_tag_is_that_of_aes_256_gcm_over_header_and_meta() {
        let (mut caller, _) = pair();
        let _ = sealed(&mut caller, 0, 3);
        let second = sealed(&mut caller, 1, 20);
        assert_eq!(second[HEADER_LEN..HEADER_LEN + TAG_LEN], TAG_OF_THE_SECOND);
    }

    const TAG_OF_THE_SECOND: [u8; TAG_LEN] =
        [0x6e, 0xb2, 0x54, 0x22, 0x83, 0x76, 0xeb, 0x99, 0x91, 0x36, 0xc8, 0x9b, 0xe9, 0xc8, 0x19, 0xb5];

    #[test]
    fn a_replayed_frame_is_wrong() {
        let (mut caller, mut acceptor) = pair();
        let frame = sealed(&mut caller, 1, 9);
        assert_eq!(open(&mut acceptor, &frame), Ok(()));
        assert_eq!(open(&mut acceptor, &frame), Err(MacError::Wrong));
    }

    #[test]
    fn reordered_and_dropped_frames_are_wrong() {
        for first in 1..4usize {
            let (mut caller, mut acceptor) = pair();
            let frames: Vec<_> = (0..4).map(|number| sealed(&mut caller, number, 9)).collect();
            assert_eq!(open(&mut acceptor, &frames[first]), Err(MacError::Wrong));
        }
    }

    #[test]
    fn a_reflected_frame_is_wrong() {
        let (mut caller, _) = pair();
        let frame = sealed(&mut caller, 1, 9);
        assert_eq!(open(&mut caller, &frame), Err(MacError::Wrong));
    }

    #[test]
    fn a_frame_of_another_connection_is_wrong() {
        let (mut caller, _) = pair();
        let mut other = keys();
        other[7] ^= 1;
        let mut acceptor = FrameMac::new(&other, false);
        assert_eq!(open(&mut acceptor, &sealed(&mut caller, 1, 9)), Err(MacError::Wrong));
    }

    #[test]
    fn a_frame_without_its_tag_is_wrong() {
        let (mut caller, mut acceptor) = pair();
        let frame = sealed(&mut caller, 1, 40);
        let (header, meta) = (frame.first_chunk().expect("a header"), &frame[HEADER_LEN + TAG_LEN..]);
        // Not there at all, and the meta's first bytes in its place.
        assert_eq!(acceptor.open(header, &[], meta), Err(MacError::Wrong));
        let (_, mut acceptor) = pair();
        assert_eq!(acceptor.open(header, &meta[..TAG_LEN], &meta[TAG_LEN..]), Err(MacError::Wrong));
        for len in [1, TAG_LEN - 1] {
            let (_, mut acceptor) = pair();
            let tag = &frame[HEADER_LEN..HEADER_LEN + len];
            assert_eq!(acceptor.open(header, tag, meta), Err(MacError::Wrong), "{len} bytes of it");
        }
        let (_, mut acceptor) = pair();
        let long = &frame[HEADER_LEN..=HEADER_LEN + TAG_LEN];
        assert_eq!(acceptor.open(header, long, meta), Err(MacError::Wrong), "more than it");
    }

    #[test]
    fn any_flipped_bit_is_wrong() {
        let (mut caller, _) = pair();
        let frame = sealed(&mut caller, 1, 24);
        for bit in 0..frame.len() * 8 {
            let (_, mut acceptor) = pair();
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut acceptor, &bad), Err(MacError::Wrong), "bit {bit}");
        }
    }

    #[test]
    fn a_byte_moved_between_header_and_meta_of_a_longer_frame_is_wrong() {
        let (mut caller, mut acceptor) = pair();
        let mut frame = sealed(&mut caller, 1, 24);
        frame.push(0);
        assert_eq!(open(&mut acceptor, &frame), Err(MacError::Wrong));
    }

    #[test]
    fn after_a_wrong_frame_the_right_one_is_refused_too() {
        let (mut caller, mut acceptor) = pair();
        let right = sealed(&mut caller, 1, 9);
        let mut wrong = right.clone();
        wrong[0] ^= 1;
        assert_eq!(open(&mut acceptor, &wrong), Err(MacError::Wrong));
        assert_eq!(open(&mut acceptor, &right), Err(MacError::Ended));
        let _ = sealed(&mut acceptor, 1, 9); // what it says itself, the peer still takes
    }

    #[test]
    fn the_number_does_not_wrap() {
        let (mut caller, mut acceptor) = pair();
        caller.send.next = Some(u64::MAX - 1);
        acceptor.receive.next = Some(u64::MAX - 1);
        let last = sealed(&mut caller, 1, 9);
        assert_eq!(open(&mut acceptor, &last), Ok(()));
        let mut beyond = head(2, 9);
        assert_eq!(caller.seal(&mut beyond), Err(MacError::Ended));
        assert_eq!(beyond, head(2, 9), "nothing is put in");
        assert_eq!(open(&mut acceptor, &last), Err(MacError::Ended));
    }

    #[test]
    fn debug_text_has_no_key() {
        let text = format!("{:?}", pair().0);
        assert_eq!(text, "FrameMac { sent: Some(0), received: Some(0), .. }");
    }

    proptest! {
        #[test]
        fn any_frame_is_taken_once_at_its_place(metas in prop::collection::vec(0..3000usize, 1..20)) {
            let (mut caller, mut acceptor) = pair();
            for (number, meta) in metas.iter().enumerate() {
                let frame = sealed(&mut caller, number.to_le_bytes()[0], *meta);
                prop_assert_eq!(open(&mut acceptor, &frame), Ok(()));
            }
        }
    }
}
