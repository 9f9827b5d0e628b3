//! The record layer of TLS 1.3 behind the handshake (RFC 8446, 5), by the keys that rustls gives: sealed where it is sent
//! from, opened where it was received. Why not rustls's own: docs/adr/0019.
//!
//! A record is 23, 3, 3, length (2 bytes) ‖ sealed: content ‖ its type ‖ zeroes of padding ‖ tag. Its first five bytes are
//! the associated data, the nonce is the direction's IV with the record's number, counted from the handshake on and never
//! sent.
//!
//! Content is bytes for who reads them, or an alert, which ends the connection. Messages of a handshake end it too:
//! * *KeyUpdate*: the secret that next keys would be made from is forgotten with the handshake. A connection lives for
//!   [`RECORDS_MAX`] records each way, and is followed by another one long before ([`RECORDS_WORN`]), whose handshake has
//!   its peer judged anew;
//! * *tickets*: nobody resumes, since that would be a way around the judge.
//!
//! Must always hold:
//! * a nonce is used once: numbers only grow, and end far below where they would wrap or a key would be worn out;
//! * nothing of a record but its length is acted on before its tag was found right, and no record is taken twice, out of
//!   its order or from another connection;
//! * after a fault nothing is opened any more: who calls sees to it;
//! * what a peer sends never panics, and is looked at once.

use core::fmt;
use core::ops::Range;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::cipher::{self, Iv};
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets};

/// Records that a connection carries each way, at most. AES-GCM is good for 2^24.5 full ones of a key (RFC 8446, 5.5).
pub const RECORDS_MAX: u64 = 1 << 24;
/// From so many records on another connection should follow: 128 GiB in full ones.
pub const RECORDS_WORN: u64 = 1 << 23;

/// Header of a record.
pub(super) const RECORD_HEADER: usize = 5;
/// Content of a full record.
const RECORD_PLAIN: usize = 16 * 1024;
const TAG_LEN: usize = 16;
/// What sealing adds to a record's content: header, type, tag.
const RECORD_ADDED: usize = RECORD_HEADER + 1 + TAG_LEN;
/// Behind the header: at least type and tag, at most those and a full record's content, with padding (5.4).
const BODY: core::ops::RangeInclusive<usize> = 1 + TAG_LEN..=RECORD_PLAIN + 1 + TAG_LEN;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// An alert's first byte; it means nothing in TLS 1.3.
const FATAL: u8 = 2;

/// Bytes that `plain` bytes become as one run of records.
#[must_use]
pub fn sealed_len(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD_PLAIN) * RECORD_ADDED
}

/// What was taken of bytes that had arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Received {
    /// So many of the first bytes are done with, as soon as `plain` was read: not to be shown again. 0: more are needed.
    pub taken: usize,
    /// Where among them the plaintext is now, if there is any.
    pub plain: Range<usize>,
}

/// Why a record is not taken. The connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What the peer is told.
    pub(super) alert: Option<AlertDescription>,
    pub(super) text: String,
}

impl Fault {
    fn new(alert: AlertDescription, text: &str) -> Fault {
        Fault { alert: Some(alert), text: text.to_owned() }
    }

    fn altered() -> Fault {
        Fault::new(AlertDescription::BadRecordMac, "a record was altered, or is not the peer's next one")
    }

    fn unexpected(text: &str) -> Fault {
        Fault::new(AlertDescription::UnexpectedMessage, text)
    }
}

/// One direction's key.
struct Direction {
    key: LessSafeKey,
    iv: Iv,
    /// The next record's number.
    number: u64,
}

impl Direction {
    /// None: by a cipher that nobody here offers.
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Direction> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).ok()?;
        Some(Direction { key: LessSafeKey::new(key), iv, number })
    }

    /// The next record's nonce, which is used up.
    fn nonce(&mut self) -> Nonce {
        let nonce = cipher::Nonce::new(&self.iv, self.number);
        self.number += 1;
        Nonce::assume_unique_for_key(nonce.0)
    }

    /// Makes a record of what has its content in its place, and room around it.
    fn seal(&mut self, record: &mut [u8], kind: u8) {
        let (header, body) = record.split_at_mut(RECORD_HEADER);
        let [high, low] = u16::try_from(body.len()).expect("a record is short").to_be_bytes();
        header.copy_from_slice(&[DATA, 3, 3, high, low]);
        let (inner, tag) = body.split_at_mut(body.len() - TAG_LEN);
        inner[inner.len() - 1] = kind;
        let nonce = self.nonce();
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), inner);
        tag.copy_from_slice(sealed.expect("a record is far below a cipher's limit").as_ref());
    }
}

/// Both directions of a connection whose handshake is over.
pub(super) struct Records {
    send: Direction,
    receive: Direction,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_struct("Records")
            .field("sent", &self.send.number)
            .field("received", &self.receive.number)
            .finish_non_exhaustive()
    }
}

impl Records {
    /// None: by a cipher that nobody here offers.
    pub(super) fn new(secrets: ExtractedSecrets) -> Option<Records> {
        Some(Records { send: Direction::new(secrets.tx)?, receive: Direction::new(secrets.rx)? })
    }

    /// True from [`RECORDS_WORN`] on, either way.
    pub(super) fn is_worn(&self) -> bool {
        self.send.number.max(self.receive.number) >= RECORDS_WORN
    }

    /// Makes records of these bytes, one part after the other, in `into`, which is as long as [`sealed_len`] says. False,
    /// and nothing is done, when the key is not good for so many.
    pub(super) fn seal(&mut self, parts: &[&[u8]], into: &mut [u8]) -> bool {
        let len = parts.iter().map(|part| part.len()).sum();
        assert_eq!(into.len(), sealed_len(len), "room for {len} bytes");
        let records = into.chunks_mut(RECORD_PLAIN + RECORD_ADDED);
        let left = RECORDS_MAX.saturating_sub(self.send.number);
        if u64::try_from(records.len()).is_ok_and(|count| count > left) {
            return false;
        }
        let mut parts = parts.iter();
        let mut part: &[u8] = &[];
        for record in records {
            let end = record.len() - (1 + TAG_LEN);
            let mut room = &mut record[RECORD_HEADER..end];
            while !room.is_empty() {
                if part.is_empty() {
                    part = parts.next().expect("as long as all parts");
                    continue;
                }
                let count = part.len().min(room.len());
                let (now, later) = room.split_at_mut(count);
                now.copy_from_slice(&part[..count]);
                (part, room) = (&part[count..], later);
            }
            self.send.seal(record, DATA);
        }
        true
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, peer: &mut Records, number: u64) {
        (self.send.number, peer.receive.number) = (number, number);
    }

    /// The record of an alert, also behind the last one of data that the key is good for. No other one follows it.
    pub(super) fn alert(&mut self, what: AlertDescription) -> [u8; RECORD_ADDED + 2] {
        let mut record = [0; RECORD_ADDED + 2];
        record[RECORD_HEADER..][..2].copy_from_slice(&[FATAL, what.into()]);
        self.send.seal(&mut record, ALERT);
        record
    }

    /// Opens the first record of `bytes`, if it is there whole, where it lies.
    pub(super) fn open(&mut self, bytes: &mut [u8]) -> Result<Received, Fault> {
        let Some(len) = whole(bytes)? else { return Ok(Received::default()) };
        if self.receive.number >= RECORDS_MAX {
            return Err(Fault::unexpected("the peer sends more records than a key is good for"));
        }
        let (header, rest) = bytes.split_at_mut(RECORD_HEADER);
        let nonce = self.receive.nonce();
        let inner = self.receive.key.open_in_place(nonce, Aad::from(header), &mut rest[..len]);
        let inner = inner.map_err(|_| Fault::altered())?;
        // Behind the type is padding.
        let Some(end) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(Fault::unexpected("a record has no type"));
        };
        match (inner[end], &inner[..end]) {
            // None of data is allowed, and is one of those that a key is good for.
            (DATA, _) => {
                let plain = RECORD_HEADER..RECORD_HEADER + end;
                Ok(Received { taken: RECORD_HEADER + len, plain })
            }
            (ALERT, [_, what]) => Err(Fault { alert: None, text: told(AlertDescription::from(*what)) }),
            (HANDSHAKE, _) => Err(Fault::unexpected("the peer goes on with a handshake that is over")),
            (kind, content) => {
                let text = format!("a record of type {kind} with {} bytes", content.len());
                Err(Fault::unexpected(&text))
            }
        }
    }
}

fn told(what: AlertDescription) -> String {
    match what {
        AlertDescription::CloseNotify => "the peer closed the connection".to_owned(),
        what => Error::AlertReceived(what).to_string(),
    }
}

/// True if the first record of `bytes` can be judged: it is there whole, or it is none.
pub(super) fn is_judgeable(bytes: &[u8]) -> bool {
    !matches!(whole(bytes), Ok(None))
}

/// How long the first record is behind its header, if it is there whole.
fn whole(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else { return Ok(None) };
    let [DATA, 3, 3, high, low] = header else {
        return Err(Fault::unexpected("what came is no record of data"));
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len > *BODY.end() {
        let text = format!("a record of {len} bytes");
        return Err(Fault::new(AlertDescription::RecordOverflow, &text));
    }
    if len < *BODY.start() {
        return Err(Fault::altered());
    }
    Ok(Some(len).filter(|len| *len <= rest.len()))
}

#[cfg(test)]
mod tests;
