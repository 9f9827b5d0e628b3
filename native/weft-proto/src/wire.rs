//! The bytes of a connection between two hosts (transport.md 1.9b, 1.10): a 64-byte header, `meta` (everything
//! of the message but guest data), then guest data, all little-endian.
//!
//! Must always hold:
//! * bytes of a peer never panic, and nothing is allocated for a frame before its header is proven sound;
//! * the header's CRC32C covers the header *and*, through `meta_crc`, the whole of `meta`: a flipped bit outside
//!   of guest data is a [`FrameError`]. Guest data is covered by the CRC per block that travels in `meta`
//!   (whoever consumes the data checks it);
//! * a field that a frame does not use is zero, and bytes after a message's last field are an error, except in
//!   HELLO, whose frame never changes: newer versions append to it and older ones ignore what they don't know;
//! * a released version's bytes never change: `specimens/wire-v1.txt`.
//!
//! ```text
//!  0 magic u32   4 version u8   5 op u8   6 status u8   7 flags u8
//!  8 payload_len u32 (meta + data)        12 meta_len u32
//! 16 tag u32                              20 handle u32
//! 24 epoch u64
//! 32 generation u64
//! 40 offset u64  (response: service time in µs)
//! 48 len u64
//! 56 meta_crc u32                         60 header_crc u32 (bytes 0..60)
//! ```
//!
//! Under `auth` a MAC of `trailer_len` bytes stands between header and `meta`; that is the connection's concern.

use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{Put, Reader, Short, as_len, len_u32};
use crate::ids::{
    ClusterId, Epoch, Generation, HostId, Ordinal, PoolId, PoolInc, Rid, SessionId, SnapId, VolumeId,
};
use crate::images::ImageState;
use crate::message::{
    Answer, Ask, Attach, CHANGED_GRAIN, CHANGED_MAX, Extent, Hole, IMAGES_PAGE, ImageView, MAX_DATA,
    NOTE_MAX, Refusal, ReplicaView, Request, Response, Watermark,
};
use crate::payload::{BLOCK, Payload};
use crate::record::RECORD_MAX;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// Most bytes of `meta` in one frame. The largest is an answer to `Kinds` of 64 MiB: 4 bytes per block.
pub const MAX_META: usize = 64 * 1024;
/// Most bytes after the header in one frame.
pub const MAX_PAYLOAD: usize = MAX_DATA_LEN + MAX_META;
/// Most bytes of one frame, without trailer.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;
/// Most stamps in one answer to `Stamps`.
pub const MAX_STAMPS: usize = 4096;
/// Most pools that a host can list in HELLO.
pub const MAX_POOLS: usize = 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"weft");
const MAX_DATA_LEN: usize = 128 * 1024;
const BLOCK_LEN: usize = 4096;
const _: () = assert!(MAX_DATA_LEN as u64 == MAX_DATA && BLOCK_LEN as u64 == BLOCK);

/// A version of this format. Two hosts use the newest that both know (N and N-1 always overlap).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(u8);

impl Version {
    /// Stands in the header of HELLO, before a version is agreed. Its frame never changes.
    pub const HELLO: Version = Version(0);
    /// The first version.
    pub const V1: Version = Version(1);
    /// The oldest version this build speaks.
    pub const OLDEST: Version = Version::V1;
    /// The newest version this build speaks.
    pub const NEWEST: Version = Version::V1;

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// The connection's first frame, both ways.
    Hello,
    /// [`decode_request`] reads it.
    Request,
    /// [`decode_response`] reads it.
    Response,
}

/// Why bytes are not a frame. All of them are the peer's (or the network's) fault, and end the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// Not a weft frame at all.
    BadMagic {
        /// What stood there.
        found: u32,
    },
    /// The header's bytes don't match its CRC.
    HeaderCrc,
    /// Not the version that this connection agreed on.
    BadVersion {
        /// The frame's.
        found: u8,
        /// The connection's.
        agreed: u8,
    },
    /// No such operation in this version.
    UnknownOp(u8),
    /// No such status in this version, or a status on a frame that has none.
    UnknownStatus(u8),
    /// A flag that this operation does not have.
    UnknownFlags(u8),
    /// A field that this operation does not use is not zero.
    UnusedField,
    /// More bytes than any frame may have.
    TooLarge {
        /// Bytes announced.
        found: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// `payload_len`, `meta_len` and the operation don't fit together, or what was received is not that long.
    BadLength,
    /// `meta` does not match its CRC.
    MetaCrc,
    /// `meta` is sound but not what this operation carries.
    BadMeta,
    /// A frame of another [`FrameKind`] than was asked for.
    WrongKind,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            FrameError::BadMagic { found } => {
                write!(f, "the peer does not speak weft: magic is {found:#010x}")
            }
            FrameError::HeaderCrc => f.write_str("frame header does not match its checksum"),
            FrameError::BadVersion { found, agreed } => {
                write!(f, "frame has wire version {found}, the connection agreed on {agreed}")
            }
            FrameError::UnknownOp(op) => write!(f, "unknown operation {op:#04x}"),
            FrameError::UnknownStatus(status) => write!(f, "unknown status {status}"),
            FrameError::UnknownFlags(flags) => write!(f, "unknown flags {flags:#04x}"),
            FrameError::UnusedField => f.write_str("a field that the operation does not use is not zero"),
            FrameError::TooLarge { found, limit } => {
                write!(f, "frame announces {found} bytes, the limit is {limit} bytes")
            }
            FrameError::BadLength => f.write_str("lengths of the frame don't fit its operation"),
            FrameError::MetaCrc => f.write_str("frame metadata does not match its checksum"),
            FrameError::BadMeta => f.write_str("frame metadata is malformed"),
            FrameError::WrongKind => f.write_str("frame of another kind than expected here"),
        }
    }
}

impl core::error::Error for FrameError {}

impl From<Short> for FrameError {
    fn from(_: Short) -> FrameError {
        FrameError::BadMeta
    }
}

/// A frame ready to be sent: `head`, then the parts of `data` in order.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedFrame<P> {
    /// Header and `meta`. A trailer (transport.md 1.10) goes in between, at [`HEADER_LEN`].
    pub head: Vec<u8>,
    /// Guest data; shares the message's buffers.
    pub data: Vec<P>,
}

impl<P: Payload> EncodedFrame<P> {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.data.iter().map(Payload::len).sum::<usize>()
    }

    /// Never: a frame has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The fixed 64 bytes before every frame. Made by [`Header::parse`], so its lengths can be trusted to be within
/// the limits and its operation to exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    op: Op,
    version: u8,
    status: u8,
    flags: u8,
    payload_len: u32,
    meta_len: u32,
    /// The request's tag; a response repeats it. 0 in HELLO.
    pub tag: u32,
    /// The attachment within the connection, chosen by the side that sends ATTACH; a response repeats it.
    pub handle: u32,
    /// The request's epoch, or the epoch that the replica has promised. 0 in HELLO.
    pub epoch: Epoch,
    generation: u64,
    offset: u64,
    len: u64,
    meta_crc: u32,
}

impl Header {
    /// Reads a header of a connection that agreed on `version` ([`Version::HELLO`] until it has).
    pub fn parse(bytes: &[u8; HEADER_LEN], version: Version) -> Result<Header, FrameError> {
        let mut r = Reader::new(bytes);
        let magic = r.u32()?;
        if magic != MAGIC {
            return Err(FrameError::BadMagic { found: magic });
        }
        if crc32c::crc32c(&bytes[..60]).to_le_bytes() != bytes[60..] {
            return Err(FrameError::HeaderCrc);
        }
        let found = r.u8()?;
        if found != version.0 {
            return Err(FrameError::BadVersion { found, agreed: version.0 });
        }
        let op_byte = r.u8()?;
        let op = Op::from_byte(op_byte).ok_or(FrameError::UnknownOp(op_byte))?;
        if (op == Op::Hello) != (version == Version::HELLO) {
            return Err(FrameError::UnknownOp(op_byte));
        }
        let header = Header {
            op,
            version: found,
            status: r.u8()?,
            flags: r.u8()?,
            payload_len: r.u32()?,
            meta_len: r.u32()?,
            tag: r.u32()?,
            handle: r.u32()?,
            epoch: Epoch(r.u64()?),
            generation: r.u64()?,
            offset: r.u64()?,
            len: r.u64()?,
            meta_crc: r.u32()?,
        };
        header.check()?;
        Ok(header)
    }

    /// The bytes, with the CRC.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.u32(MAGIC);
        out.put(&[self.version, self.op as u8, self.status, self.flags]);
        out.u32(self.payload_len);
        out.u32(self.meta_len);
        out.u32(self.tag);
        out.u32(self.handle);
        out.u64(self.epoch.0);
        out.u64(self.generation);
        out.u64(self.offset);
        out.u64(self.len);
        out.u32(self.meta_crc);
        out.u32(crc32c::crc32c(&out));
        out.try_into().expect("the fields above are 64 bytes")
    }

    /// What this frame carries.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        match self.op {
            Op::Hello => FrameKind::Hello,
            op if (op as u8) & RESPONSE != 0 => FrameKind::Response,
            _ => FrameKind::Request,
        }
    }

    /// Bytes that follow the header (and its trailer).
    #[must_use]
    pub fn payload_len(&self) -> usize {
        as_len(self.payload_len)
    }

    /// Bytes of `meta`: at most [`MAX_META`].
    #[must_use]
    pub fn meta_len(&self) -> usize {
        as_len(self.meta_len)
    }

    /// Bytes of guest data: whole blocks, at most [`MAX_DATA`].
    #[must_use]
    pub fn data_len(&self) -> usize {
        as_len(self.payload_len - self.meta_len)
    }

    /// The limits that hold for every frame of its operation, whatever its `meta` says.
    fn check(&self) -> Result<(), FrameError> {
        let limit = |found: u32, limit: usize| {
            if as_len(found) > limit {
                return Err(FrameError::TooLarge { found, limit: len_u32(limit) });
            }
            Ok(())
        };
        limit(self.payload_len, MAX_PAYLOAD)?;
        limit(self.meta_len, MAX_META)?;
        let data_len = self.payload_len.checked_sub(self.meta_len).ok_or(FrameError::BadLength)?;
        limit(data_len, MAX_DATA_LEN)?;
        let carries_data = matches!(self.op, Op::Write | Op::Data);
        if !as_len(data_len).is_multiple_of(BLOCK_LEN) || (data_len > 0 && !carries_data) {
            return Err(FrameError::BadLength);
        }
        if (self.op == Op::Refused) != (self.status != 0) {
            return Err(FrameError::UnknownStatus(self.status));
        }
        if self.flags & !self.op.flags() != 0 {
            return Err(FrameError::UnknownFlags(self.flags));
        }
        let (generation, offset, len) = self.op.fields();
        let unused = (!generation && self.generation != 0)
            || (!offset && self.offset != 0)
            || (!len && self.len != 0)
            || (self.op == Op::Hello && (self.tag != 0 || self.handle != 0 || self.epoch.0 != 0));
        if unused { Err(FrameError::UnusedField) } else { Ok(()) }
    }

    /// `meta`, if it and the data are what the header announced.
    fn proven<'a>(&self, meta: &'a [u8], data_len: usize) -> Result<Reader<'a>, FrameError> {
        if meta.len() != self.meta_len() || data_len != self.data_len() {
            return Err(FrameError::BadLength);
        }
        if crc32c::crc32c(meta) != self.meta_crc {
            return Err(FrameError::MetaCrc);
        }
        Ok(Reader::new(meta))
    }
}

/// Where guest data starts within the payload that follows the header: a receiver reads that many bytes into one
/// buffer and the rest into an aligned one of its own.
#[must_use]
pub fn data_offset(header: &Header) -> usize {
    header.meta_len()
}

/// Bit of `op` that marks a response.
const RESPONSE: u8 = 0x80;

const FLAG_COPY: u8 = 1;
const FLAG_KEEP_SPACE: u8 = 2;
const FLAG_ABSENT: u8 = 4;

/// The operation byte. An answer has the name of what it carries, not of what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Op {
    Hello = 0x01,
    Attach = 0x10,
    Detach = 0x11,
    Promise = 0x12,
    Write = 0x13,
    Zero = 0x14,
    Read = 0x15,
    Kinds = 0x16,
    Flush = 0x17,
    Seal = 0x18,
    Stamps = 0x19,
    Hash = 0x1a,
    Grow = 0x1b,
    Heartbeat = 0x1c,
    SnapMake = 0x20,
    SnapPrepare = 0x21,
    SnapReady = 0x22,
    SnapDrop = 0x23,
    SnapDelete = 0x24,
    SnapRead = 0x25,
    SnapKinds = 0x26,
    SnapHash = 0x27,
    Images = 0x28,
    SnapChanged = 0x29,
    SnapDestroy = 0x2a,
    Done = RESPONSE,
    Attached = RESPONSE | 0x01,
    Promised = RESPONSE | 0x02,
    Data = RESPONSE | 0x03,
    KindRuns = RESPONSE | 0x04,
    StampPage = RESPONSE | 0x05,
    Hashes = RESPONSE | 0x06,
    Alive = RESPONSE | 0x07,
    Deleting = RESPONSE | 0x08,
    ImageList = RESPONSE | 0x09,
    ChangedBits = RESPONSE | 0x0a,
    Refused = RESPONSE | 0x7f,
}

impl Op {
    fn from_byte(byte: u8) -> Option<Op> {
        const ALL: [Op; 37] = [
            Op::Hello,
            Op::Attach,
            Op::Detach,
            Op::Promise,
            Op::Write,
            Op::Zero,
            Op::Read,
            Op::Kinds,
            Op::Flush,
            Op::Seal,
            Op::Stamps,
            Op::Hash,
            Op::Grow,
            Op::Heartbeat,
            Op::SnapMake,
            Op::SnapPrepare,
            Op::SnapReady,
            Op::SnapDrop,
            Op::SnapDelete,
            Op::SnapRead,
            Op::SnapKinds,
            Op::SnapHash,
            Op::Images,
            Op::SnapChanged,
            Op::SnapDestroy,
            Op::Done,
            Op::Attached,
            Op::Promised,
            Op::Data,
            Op::KindRuns,
            Op::StampPage,
            Op::Hashes,
            Op::Alive,
            Op::Deleting,
            Op::ImageList,
            Op::ChangedBits,
            Op::Refused,
        ];
        ALL.into_iter().find(|op| *op as u8 == byte)
    }

    /// Flags that this operation knows.
    fn flags(self) -> u8 {
        match self {
            Op::Write => FLAG_COPY,
            Op::Zero => FLAG_COPY | FLAG_KEEP_SPACE | FLAG_ABSENT,
            _ => 0,
        }
    }

    /// Whether it uses (generation, offset, len). Every response uses offset, for its service time.
    fn fields(self) -> (bool, bool, bool) {
        match self {
            Op::Write | Op::Zero => (true, true, true),
            Op::Read
            | Op::Kinds
            | Op::Hash
            | Op::SnapRead
            | Op::SnapKinds
            | Op::SnapHash
            | Op::SnapChanged => (false, true, true),
            Op::Seal | Op::SnapPrepare => (true, false, false),
            Op::Stamps => (true, true, false),
            Op::Grow => (true, true, true),
            Op::Hello
            | Op::Attach
            | Op::Detach
            | Op::Promise
            | Op::Flush
            | Op::Heartbeat
            | Op::SnapMake
            | Op::SnapReady
            | Op::SnapDrop
            | Op::SnapDelete
            | Op::SnapDestroy
            | Op::Images => (false, false, false),
            Op::Done
            | Op::Attached
            | Op::Promised
            | Op::Data
            | Op::KindRuns
            | Op::StampPage
            | Op::Hashes
            | Op::Alive
            | Op::Deleting
            | Op::ImageList
            | Op::ChangedBits
            | Op::Refused => (false, true, false),
        }
    }
}

/// A frame while it is put together.
struct Draft {
    op: Op,
    status: u8,
    flags: u8,
    generation: u64,
    offset: u64,
    len: u64,
    meta: Vec<u8>,
}

impl Draft {
    /// With room for the header before `meta`.
    fn new(op: Op) -> Draft {
        let mut meta = Vec::with_capacity(2 * HEADER_LEN);
        meta.resize(HEADER_LEN, 0);
        Draft { op, status: 0, flags: 0, generation: 0, offset: 0, len: 0, meta }
    }

    fn finish<P: Payload>(
        self,
        version: Version,
        tag: u32,
        handle: u32,
        epoch: Epoch,
        data: Vec<P>,
    ) -> EncodedFrame<P> {
        let Draft { op, status, flags, generation, offset, len, meta: mut head } = self;
        let meta = &head[HEADER_LEN..];
        let data_len: usize = data.iter().map(Payload::len).sum();
        let header = Header {
            op,
            version: version.0,
            status,
            flags,
            payload_len: len_u32(meta.len() + data_len),
            meta_len: len_u32(meta.len()),
            tag,
            handle,
            epoch,
            generation,
            offset,
            len,
            meta_crc: crc32c::crc32c(meta),
        };
        let checked = header.check();
        assert!(checked.is_ok(), "frame {header:?} that no peer accepts: {checked:?}");
        head[..HEADER_LEN].copy_from_slice(&header.encode());
        EncodedFrame { head, data }
    }
}

/// A request as a frame. Panics on a message that no peer would accept (more than [`MAX_DATA`], CRCs that are not
/// one per block, a record above [`RECORD_MAX`]): that is a bug of the caller.
#[must_use]
pub fn encode_request<P: Payload>(version: Version, handle: u32, request: &Request<P>) -> EncodedFrame<P> {
    let mut data = Vec::new();
    let draft = match &request.ask {
        Ask::Attach(attach) => {
            let mut d = Draft::new(Op::Attach);
            d.meta.u128(attach.volume.0);
            d.meta.u32(attach.rid.0);
            d.meta.u128(attach.pool.0);
            d.meta.u128(attach.host.0);
            d.meta.u128(attach.session.0);
            d.meta.u64(attach.ordinal.0);
            put_watermark(&mut d.meta, &attach.watermark);
            d
        }
        Ask::Detach => Draft::new(Op::Detach),
        Ask::Promise { record, watermark } => {
            assert!(record.len() <= RECORD_MAX, "record of {} bytes, limit {RECORD_MAX}", record.len());
            let mut d = Draft::new(Op::Promise);
            put_watermark(&mut d.meta, watermark);
            d.meta.put(record);
            d
        }
        Ask::Write { generation, offset, crcs, data: bytes, copy } => {
            assert!(bytes.len() == crcs.len() * BLOCK_LEN, "{} CRCs for {} bytes", crcs.len(), bytes.len());
            let mut d = Draft::new(Op::Write);
            d.flags = if *copy { FLAG_COPY } else { 0 };
            d.generation = generation.0;
            d.offset = *offset;
            d.len = bytes.len() as u64;
            put_crcs(&mut d.meta, crcs);
            data.push(bytes.clone());
            d
        }
        Ask::Zero { generation, offset, len, kind, keep_space, copy } => {
            let mut d = Draft::new(Op::Zero);
            d.flags = if *copy { FLAG_COPY } else { 0 }
                | if *keep_space { FLAG_KEEP_SPACE } else { 0 }
                | if *kind == Hole::Absent { FLAG_ABSENT } else { 0 };
            d.generation = generation.0;
            (d.offset, d.len) = (*offset, *len);
            d
        }
        Ask::Read { offset, len } => ranged(Op::Read, *offset, *len),
        Ask::Kinds { offset, len } => ranged(Op::Kinds, *offset, *len),
        Ask::Flush => Draft::new(Op::Flush),
        Ask::Seal { generation } => {
            let mut d = Draft::new(Op::Seal);
            d.generation = generation.0;
            d
        }
        Ask::Stamps { above, from_region } => {
            let mut d = Draft::new(Op::Stamps);
            d.generation = above.0;
            d.offset = u64::from(*from_region);
            d
        }
        Ask::Hash { offset, len, key } => {
            let mut d = ranged(Op::Hash, *offset, *len);
            d.meta.put(key);
            d
        }
        Ask::Grow { generation, from, to } => {
            assert!(from < to, "grows from {from} to {to}");
            let mut d = ranged(Op::Grow, *from, to - from);
            d.generation = generation.0;
            d
        }
        Ask::Heartbeat => Draft::new(Op::Heartbeat),
        Ask::SnapMake { id, attempt } => attempted(Op::SnapMake, *id, *attempt),
        Ask::SnapPrepare { id, attempt, generation, incarnation } => {
            let mut d = attempted(Op::SnapPrepare, *id, *attempt);
            d.generation = generation.0;
            d.meta.u64(*incarnation);
            d
        }
        Ask::SnapReady { id, attempt, note } => {
            assert!(note.len() <= NOTE_MAX, "note of {} bytes, limit {NOTE_MAX}", note.len());
            let mut d = attempted(Op::SnapReady, *id, *attempt);
            d.meta.put(note);
            d
        }
        Ask::SnapDrop { id, attempt } => attempted(Op::SnapDrop, *id, *attempt),
        Ask::SnapDelete { id } => imaged(Draft::new(Op::SnapDelete), *id),
        Ask::SnapDestroy { id, attempt, key } => {
            let mut d = attempted(Op::SnapDestroy, *id, *attempt);
            d.meta.put(key);
            d
        }
        Ask::SnapRead { id, offset, len } => imaged(ranged(Op::SnapRead, *offset, *len), *id),
        Ask::SnapKinds { id, offset, len } => imaged(ranged(Op::SnapKinds, *offset, *len), *id),
        Ask::SnapHash { id, offset, len, key } => {
            let mut d = imaged(ranged(Op::SnapHash, *offset, *len), *id);
            d.meta.put(key);
            d
        }
        Ask::Images { from } => imaged(Draft::new(Op::Images), *from),
        Ask::SnapChanged { id, since, offset, len, key } => {
            let mut d = imaged(imaged(ranged(Op::SnapChanged, *offset, *len), *id), *since);
            d.meta.put(key);
            d
        }
    };
    draft.finish(version, request.tag, handle, request.epoch, data)
}

/// A request from its header, `meta` and data. Fails on everything that [`encode_request`] would not make; that
/// ranges fit the volume is the replica's to check.
pub fn decode_request<P: Payload>(header: &Header, meta: &[u8], data: P) -> Result<Request<P>, FrameError> {
    let mut r = header.proven(meta, data.len())?;
    let generation = Generation(header.generation);
    let (offset, len) = (header.offset, header.len);
    let copy = header.flags & FLAG_COPY != 0;
    let ask = match header.op {
        Op::Attach => Ask::Attach(Attach {
            volume: VolumeId(r.u128()?),
            rid: Rid(r.u32()?),
            pool: PoolId(r.u128()?),
            host: HostId(r.u128()?),
            session: SessionId(r.u128()?),
            ordinal: Ordinal(r.u64()?),
            watermark: watermark(&mut r)?,
        }),
        Op::Detach => Ask::Detach,
        Op::Promise => {
            let watermark = watermark(&mut r)?;
            let record = r.take(r.rest().len())?;
            if record.len() > RECORD_MAX {
                return Err(FrameError::BadMeta);
            }
            Ask::Promise { record: record.to_vec(), watermark }
        }
        Op::Write => {
            if len != header.data_len() as u64 {
                return Err(FrameError::BadLength);
            }
            let crcs = crcs(&mut r, header.data_len() / BLOCK_LEN)?;
            Ask::Write { generation, offset, crcs, data, copy }
        }
        Op::Zero => Ask::Zero {
            generation,
            offset,
            len,
            kind: if header.flags & FLAG_ABSENT != 0 { Hole::Absent } else { Hole::Zero },
            keep_space: header.flags & FLAG_KEEP_SPACE != 0,
            copy,
        },
        Op::Read => Ask::Read { offset, len },
        Op::Kinds => Ask::Kinds { offset, len },
        Op::Flush => Ask::Flush,
        Op::Seal => Ask::Seal { generation },
        Op::Stamps => Ask::Stamps {
            above: generation,
            from_region: u32::try_from(offset).map_err(|_| FrameError::UnusedField)?,
        },
        Op::Hash => Ask::Hash { offset, len, key: r.array()? },
        Op::Grow => {
            let to = offset.checked_add(len).filter(|_| len > 0).ok_or(FrameError::BadLength)?;
            Ask::Grow { generation, from: offset, to }
        }
        Op::Heartbeat => Ask::Heartbeat,
        Op::SnapMake => Ask::SnapMake { id: SnapId(r.u128()?), attempt: r.u64()? },
        Op::SnapPrepare => {
            let (id, attempt) = (SnapId(r.u128()?), r.u64()?);
            Ask::SnapPrepare { id, attempt, generation, incarnation: r.u64()? }
        }
        Op::SnapReady => {
            let (id, attempt) = (SnapId(r.u128()?), r.u64()?);
            let note = r.take(r.rest().len())?;
            if note.len() > NOTE_MAX {
                return Err(FrameError::BadMeta);
            }
            Ask::SnapReady { id, attempt, note: note.to_vec() }
        }
        Op::SnapDrop => Ask::SnapDrop { id: SnapId(r.u128()?), attempt: r.u64()? },
        Op::SnapDelete => Ask::SnapDelete { id: SnapId(r.u128()?) },
        Op::SnapDestroy => Ask::SnapDestroy { id: SnapId(r.u128()?), attempt: r.u64()?, key: r.array()? },
        Op::SnapRead => Ask::SnapRead { id: SnapId(r.u128()?), offset, len },
        Op::SnapKinds => Ask::SnapKinds { id: SnapId(r.u128()?), offset, len },
        Op::SnapHash => Ask::SnapHash { id: SnapId(r.u128()?), offset, len, key: r.array()? },
        Op::Images => Ask::Images { from: SnapId(r.u128()?) },
        Op::SnapChanged => {
            let (id, since) = (SnapId(r.u128()?), SnapId(r.u128()?));
            Ask::SnapChanged { id, since, offset, len, key: r.array()? }
        }
        Op::Hello
        | Op::Done
        | Op::Attached
        | Op::Promised
        | Op::Data
        | Op::KindRuns
        | Op::StampPage
        | Op::Hashes
        | Op::Alive
        | Op::Deleting
        | Op::ImageList
        | Op::ChangedBits
        | Op::Refused => return Err(FrameError::WrongKind),
    };
    finished(&r)?;
    Ok(Request { tag: header.tag, epoch: header.epoch, ask })
}

/// A response as a frame. Panics, like [`encode_request`], on an answer that no peer would accept.
#[must_use]
pub fn encode_response<P: Payload>(version: Version, handle: u32, response: &Response<P>) -> EncodedFrame<P> {
    let mut data = Vec::new();
    let mut draft = match &response.outcome {
        Ok(Answer::Done) => Draft::new(Op::Done),
        Ok(Answer::Attached(view)) => viewed(Op::Attached, view),
        Ok(Answer::Promised(view)) => viewed(Op::Promised, view),
        Ok(Answer::Data(extents)) => {
            let mut d = Draft::new(Op::Data);
            d.meta.u32(len_u32(extents.len()));
            for extent in extents {
                match extent {
                    Extent::Data { data, .. } => put_run(&mut d.meta, data.len() as u64, None),
                    Extent::Hole { len, kind } => put_run(&mut d.meta, *len, Some(*kind)),
                }
            }
            for extent in extents {
                if let Extent::Data { crcs, data: bytes } = extent {
                    assert!(
                        bytes.len() == crcs.len() * BLOCK_LEN,
                        "{} CRCs, {} bytes",
                        crcs.len(),
                        bytes.len()
                    );
                    put_crcs(&mut d.meta, crcs);
                    data.push(bytes.clone());
                }
            }
            d
        }
        Ok(Answer::Kinds(runs)) => {
            let mut d = Draft::new(Op::KindRuns);
            for (len, kind) in runs {
                put_run(&mut d.meta, *len, *kind);
            }
            d
        }
        Ok(Answer::Stamps { stamps, next }) => {
            assert!(stamps.len() <= MAX_STAMPS, "{} stamps in a page, limit {MAX_STAMPS}", stamps.len());
            let mut d = Draft::new(Op::StampPage);
            d.meta.u32(u32::from(next.is_some()));
            d.meta.u32(next.unwrap_or(0));
            for (region, generation) in stamps {
                d.meta.u32(*region);
                d.meta.u64(generation.0);
            }
            d
        }
        Ok(Answer::Hashes(hashes)) => {
            let mut d = Draft::new(Op::Hashes);
            for hash in hashes {
                d.meta.put(hash);
            }
            d
        }
        Ok(Answer::Alive { oldest_io_ms, free_bytes }) => {
            let mut d = Draft::new(Op::Alive);
            d.meta.u32(*oldest_io_ms);
            d.meta.u64(*free_bytes);
            d
        }
        Ok(Answer::Deleting) => Draft::new(Op::Deleting),
        Ok(Answer::Images(images)) => {
            assert!(images.len() <= IMAGES_PAGE, "{} images in an answer, limit {IMAGES_PAGE}", images.len());
            let mut d = Draft::new(Op::ImageList);
            for image in images {
                d.meta.u128(image.id.0);
                d.meta.u64(image.attempt);
                d.meta.u64(image.generation.0);
                d.meta.u64(image.size);
                let state = match image.state {
                    ImageState::Prepared => 0,
                    ImageState::Ready => 1,
                    ImageState::Deleting => 2,
                    ImageState::Destroyed => 3,
                };
                d.meta.u32(state | u32::from(image.whole) << 8 | u32::from(image.copied) << 9);
            }
            d
        }
        Ok(Answer::Changed(bits)) => {
            assert!(bits.len() <= CHANGED_BYTES, "{} bytes in a bitmap, limit {CHANGED_BYTES}", bits.len());
            let mut d = Draft::new(Op::ChangedBits);
            d.meta.put(bits);
            d
        }
        Err(refusal) => {
            let mut d = Draft::new(Op::Refused);
            d.status = status_of(*refusal);
            d
        }
    };
    draft.offset = u64::from(response.service_us);
    draft.finish(version, response.tag, handle, response.epoch, data)
}

/// A response from its header, `meta` and data. That an answer fits the request of its tag (its variant, and that
/// runs cover the range) is the session's to check: only it knows what it asked.
pub fn decode_response<P: Payload>(header: &Header, meta: &[u8], data: P) -> Result<Response<P>, FrameError> {
    let mut r = header.proven(meta, data.len())?;
    let service_us = u32::try_from(header.offset).map_err(|_| FrameError::UnusedField)?;
    let outcome = match header.op {
        Op::Done => Ok(Answer::Done),
        Op::Attached => Ok(Answer::Attached(view(&mut r)?)),
        Op::Promised => Ok(Answer::Promised(view(&mut r)?)),
        Op::Data => Ok(Answer::Data(extents(&mut r, data)?)),
        Op::KindRuns => {
            let mut runs = Vec::with_capacity(r.rest().len() / 4);
            while !r.is_done() {
                runs.push(run(&mut r)?);
            }
            Ok(Answer::Kinds(runs))
        }
        Op::StampPage => {
            let next = match (r.u32()?, r.u32()?) {
                (0, 0) => None,
                (1, region) => Some(region),
                _ => return Err(FrameError::BadMeta),
            };
            if r.rest().len() > MAX_STAMPS * 12 {
                return Err(FrameError::BadMeta);
            }
            let mut stamps = Vec::with_capacity(r.rest().len() / 12);
            while !r.is_done() {
                stamps.push((r.u32()?, Generation(r.u64()?)));
            }
            Ok(Answer::Stamps { stamps, next })
        }
        Op::Hashes => {
            let mut hashes = Vec::with_capacity(r.rest().len() / 16);
            while !r.is_done() {
                hashes.push(r.array()?);
            }
            Ok(Answer::Hashes(hashes))
        }
        Op::Alive => Ok(Answer::Alive { oldest_io_ms: r.u32()?, free_bytes: r.u64()? }),
        Op::Deleting => Ok(Answer::Deleting),
        Op::ImageList => {
            if r.rest().len() > IMAGES_PAGE * IMAGE_LEN {
                return Err(FrameError::BadMeta);
            }
            let mut images = Vec::with_capacity(r.rest().len() / IMAGE_LEN);
            while !r.is_done() {
                images.push(image_view(&mut r)?);
            }
            Ok(Answer::Images(images))
        }
        Op::ChangedBits => {
            let bits = r.take(r.rest().len())?;
            if bits.len() > CHANGED_BYTES {
                return Err(FrameError::BadMeta);
            }
            Ok(Answer::Changed(bits.to_vec()))
        }
        Op::Refused => Err(refusal_of(header.status).ok_or(FrameError::UnknownStatus(header.status))?),
        Op::Hello
        | Op::Attach
        | Op::Detach
        | Op::Promise
        | Op::Write
        | Op::Zero
        | Op::Read
        | Op::Kinds
        | Op::Flush
        | Op::Seal
        | Op::Stamps
        | Op::Hash
        | Op::Grow
        | Op::Heartbeat
        | Op::SnapMake
        | Op::SnapPrepare
        | Op::SnapReady
        | Op::SnapDrop
        | Op::SnapDelete
        | Op::SnapRead
        | Op::SnapKinds
        | Op::SnapHash
        | Op::Images
        | Op::SnapChanged
        | Op::SnapDestroy => return Err(FrameError::WrongKind),
    };
    finished(&r)?;
    Ok(Response { tag: header.tag, epoch: header.epoch, outcome, service_us })
}

fn ranged(op: Op, offset: u64, len: u64) -> Draft {
    let mut d = Draft::new(op);
    (d.offset, d.len) = (offset, len);
    d
}

fn imaged(mut d: Draft, id: SnapId) -> Draft {
    d.meta.u128(id.0);
    d
}

fn attempted(op: Op, id: SnapId, attempt: u64) -> Draft {
    let mut d = imaged(Draft::new(op), id);
    d.meta.u64(attempt);
    d
}

/// Bytes of the longest bitmap.
const CHANGED_BYTES: usize = (CHANGED_MAX / CHANGED_GRAIN / 8) as usize;

/// Bytes of one image in a list: id, attempt, generation, size, state in the lowest byte and above it a bit for "whole", one for
/// "copied".
const IMAGE_LEN: usize = 44;

fn image_view(r: &mut Reader<'_>) -> Result<ImageView, FrameError> {
    let (id, attempt, generation, size) = (SnapId(r.u128()?), r.u64()?, Generation(r.u64()?), r.u64()?);
    let word = r.u32()?;
    let state = match word & 0xff {
        0 => ImageState::Prepared,
        1 => ImageState::Ready,
        2 => ImageState::Deleting,
        3 => ImageState::Destroyed,
        _ => return Err(FrameError::BadMeta),
    };
    if word >> 10 != 0 {
        return Err(FrameError::BadMeta);
    }
    let (whole, copied) = (word & 1 << 8 != 0, word & 1 << 9 != 0);
    Ok(ImageView { id, attempt, generation, state, whole, copied, size })
}

fn finished(r: &Reader<'_>) -> Result<(), FrameError> {
    if r.is_done() { Ok(()) } else { Err(FrameError::BadMeta) }
}

fn put_crcs(meta: &mut Vec<u8>, crcs: &[u32]) {
    for crc in crcs {
        meta.u32(*crc);
    }
}

fn crcs(r: &mut Reader<'_>, blocks: usize) -> Result<Vec<u32>, FrameError> {
    let mut bytes = Reader::new(r.take(blocks * 4)?);
    let mut crcs = Vec::with_capacity(blocks);
    while !bytes.is_done() {
        crcs.push(bytes.u32()?);
    }
    Ok(crcs)
}

/// A run of blocks is 32 bits: 2 for the kind (0 data, 1 zero, 2 absent), 30 for the number of blocks.
fn put_run(meta: &mut Vec<u8>, len: u64, kind: Option<Hole>) {
    assert!(len > 0 && len.is_multiple_of(BLOCK) && len / BLOCK < 1 << 30, "run of {len} bytes");
    let blocks = u32::try_from(len / BLOCK).expect("below 2^30");
    let kind = match kind {
        None => 0,
        Some(Hole::Zero) => 1,
        Some(Hole::Absent) => 2,
    };
    meta.u32(kind << 30 | blocks);
}

fn run(r: &mut Reader<'_>) -> Result<(u64, Option<Hole>), FrameError> {
    let word = r.u32()?;
    let kind = match word >> 30 {
        0 => None,
        1 => Some(Hole::Zero),
        2 => Some(Hole::Absent),
        _ => return Err(FrameError::BadMeta),
    };
    let blocks = word & ((1 << 30) - 1);
    if blocks == 0 { Err(FrameError::BadMeta) } else { Ok((u64::from(blocks) * BLOCK, kind)) }
}

/// Number of runs, runs, CRCs of all data blocks in order.
fn extents<P: Payload>(r: &mut Reader<'_>, data: P) -> Result<Vec<Extent<P>>, FrameError> {
    let count = as_len(r.u32()?);
    let mut runs = Reader::new(r.take(count.checked_mul(4).ok_or(FrameError::BadMeta)?)?);
    let mut extents = Vec::with_capacity(count);
    let mut start = 0;
    while !runs.is_done() {
        let (len, kind) = run(&mut runs)?;
        extents.push(match kind {
            Some(kind) => Extent::Hole { len, kind },
            None => {
                let left = data.len() - start;
                let len =
                    usize::try_from(len).ok().filter(|len| *len <= left).ok_or(FrameError::BadLength)?;
                let crcs = crcs(r, len / BLOCK_LEN)?;
                let part = data.slice(start, len);
                start += len;
                Extent::Data { crcs, data: part }
            }
        });
    }
    if start == data.len() { Ok(extents) } else { Err(FrameError::BadLength) }
}

fn put_watermark(meta: &mut Vec<u8>, watermark: &Watermark) {
    meta.u128(watermark.cluster.0);
    meta.u64(watermark.incarnation);
    meta.u64(watermark.revision);
}

fn watermark(r: &mut Reader<'_>) -> Result<Watermark, Short> {
    Ok(Watermark { cluster: ClusterId(r.u128()?), incarnation: r.u64()?, revision: r.u64()? })
}

fn viewed(op: Op, view: &ReplicaView) -> Draft {
    let mut d = Draft::new(op);
    d.meta.u64(view.promised.0);
    d.meta.u128(view.session.0);
    d.meta.u64(view.sealed.0);
    d.meta.u64(view.newest.0);
    d.meta.u32(view.unsealed_regions);
    d.meta.u32(u32::from(view.lossy));
    d.meta.u64(view.size);
    d.meta.u64(view.pool_inc.0);
    put_watermark(&mut d.meta, &view.watermark);
    d.meta.u64(view.ordinal.0);
    d
}

fn view(r: &mut Reader<'_>) -> Result<ReplicaView, FrameError> {
    Ok(ReplicaView {
        promised: Epoch(r.u64()?),
        session: SessionId(r.u128()?),
        sealed: Generation(r.u64()?),
        newest: Generation(r.u64()?),
        unsealed_regions: r.u32()?,
        lossy: match r.u32()? {
            0 => false,
            1 => true,
            _ => return Err(FrameError::BadMeta),
        },
        size: r.u64()?,
        pool_inc: PoolInc(r.u64()?),
        watermark: watermark(r)?,
        ordinal: Ordinal(r.u64()?),
    })
}

fn status_of(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::StaleEpoch => 1,
        Refusal::NotAttached => 2,
        Refusal::NoReplica => 3,
        Refusal::MetadataRollback => 4,
        Refusal::OutOfBounds => 5,
        Refusal::BadCrc => 6,
        Refusal::NoSpace => 7,
        Refusal::IoError => 8,
        Refusal::BitRot => 9,
        Refusal::Quarantined => 10,
        Refusal::Busy => 11,
        Refusal::NoSnapshot => 12,
        Refusal::NoSnapshots => 13,
        Refusal::OldAttempt => 14,
        Refusal::OldGeneration => 15,
    }
}

fn refusal_of(status: u8) -> Option<Refusal> {
    Some(match status {
        1 => Refusal::StaleEpoch,
        2 => Refusal::NotAttached,
        3 => Refusal::NoReplica,
        4 => Refusal::MetadataRollback,
        5 => Refusal::OutOfBounds,
        6 => Refusal::BadCrc,
        7 => Refusal::NoSpace,
        8 => Refusal::IoError,
        9 => Refusal::BitRot,
        10 => Refusal::Quarantined,
        11 => Refusal::Busy,
        12 => Refusal::NoSnapshot,
        13 => Refusal::NoSnapshots,
        14 => Refusal::OldAttempt,
        15 => Refusal::OldGeneration,
        _ => return None,
    })
}

/// The first frame on a connection, both ways (transport.md 1.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest wire version the sender speaks.
    pub wire_min: u8,
    /// Newest wire version the sender speaks.
    pub wire_max: u8,
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sender; proven by the connection's identity once there is one.
    pub host: HostId,
    /// Random per process: tells a restarted peer from the same one on a new connection.
    pub process: u64,
    /// Optional abilities, one bit each; used are those that both have.
    pub features: u64,
    /// Largest frame the sender accepts, in bytes, without trailer.
    pub max_frame: u32,
    /// Requests the sender accepts on this connection before it has answered one.
    pub slots: u32,
    /// Time between the sender's heartbeats, in milliseconds.
    pub heartbeat_ms: u32,
    /// Bytes after each header (0, or 16 for the MAC under `auth`).
    pub trailer_len: u32,
    /// The sender's watermark (R11).
    pub watermark: Watermark,
    /// The sender's pools (R10): at most [`MAX_POOLS`].
    pub pools: Vec<PoolLog>,
}

/// How far a pool's log is known durable; its owner refuses a lower one than it has seen (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLog {
    /// Which pool.
    pub pool: PoolId,
    /// Its incarnation.
    pub inc: PoolInc,
    /// Last log sequence known durable, kept outside of the pool.
    pub durable_seq: u64,
}

/// What two HELLOs come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Version of every frame that follows.
    pub version: Version,
    /// Features that both sides have.
    pub features: u64,
    /// Most unanswered requests on this connection in either direction.
    pub slots: u32,
    /// The slower side's heartbeat period, in milliseconds.
    pub heartbeat_ms: u32,
    /// Bytes after each header.
    pub trailer_len: u32,
}

/// Why two hosts can't talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// No wire version that both speak.
    NoCommonVersion {
        /// Ours, oldest and newest.
        ours: (u8, u8),
        /// The peer's, oldest and newest.
        theirs: (u8, u8),
    },
    /// The peer belongs to another cluster.
    OtherCluster {
        /// Ours.
        ours: ClusterId,
        /// The peer's.
        theirs: ClusterId,
    },
    /// Only one side protects headers with a MAC.
    OtherTrailer {
        /// Our `trailer_len`.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// The peer can't take a frame of full size, or no request at all.
    TooSmall {
        /// The peer's largest frame, in bytes.
        max_frame: u32,
        /// The peer's slots.
        slots: u32,
    },
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HelloError::NoCommonVersion { ours, theirs } => write!(
                f,
                "peer speaks wire versions {} to {}, this host {} to {}",
                theirs.0, theirs.1, ours.0, ours.1
            ),
            HelloError::OtherCluster { ours, theirs } => {
                write!(f, "peer belongs to cluster {theirs}, this host to {ours}")
            }
            HelloError::OtherTrailer { ours, theirs } => {
                write!(f, "peer's headers have a trailer of {theirs} bytes, this host's of {ours} bytes")
            }
            HelloError::TooSmall { max_frame, slots } => {
                write!(
                    f,
                    "peer takes frames of {max_frame} bytes in {slots} slots, needed are {MAX_FRAME} in 1"
                )
            }
        }
    }
}

impl core::error::Error for HelloError {}

/// HELLO as a frame: head only.
#[must_use]
pub fn encode_hello(hello: &Hello) -> Vec<u8> {
    assert!(hello.pools.len() <= MAX_POOLS, "{} pools, limit {MAX_POOLS}", hello.pools.len());
    let mut d = Draft::new(Op::Hello);
    d.meta.put(&[hello.wire_min, hello.wire_max, 0, 0]);
    d.meta.u128(hello.cluster.0);
    d.meta.u128(hello.host.0);
    d.meta.u64(hello.process);
    d.meta.u64(hello.features);
    d.meta.u32(hello.max_frame);
    d.meta.u32(hello.slots);
    d.meta.u32(hello.heartbeat_ms);
    d.meta.u32(hello.trailer_len);
    put_watermark(&mut d.meta, &hello.watermark);
    d.meta.u32(len_u32(hello.pools.len()));
    for pool in &hello.pools {
        d.meta.u128(pool.pool.0);
        d.meta.u64(pool.inc.0);
        d.meta.u64(pool.durable_seq);
    }
    d.finish::<crate::payload::HeapPayload>(Version::HELLO, 0, 0, Epoch(0), Vec::new()).head
}

/// HELLO from a header parsed with [`Version::HELLO`] and its `meta`. Bytes after the list of pools belong to
/// newer versions and are ignored.
pub fn decode_hello(header: &Header, meta: &[u8]) -> Result<Hello, FrameError> {
    if header.op != Op::Hello {
        return Err(FrameError::WrongKind);
    }
    let mut r = header.proven(meta, 0)?;
    let (wire_min, wire_max) = (r.u8()?, r.u8()?);
    let _reserved = r.u16()?;
    if wire_min > wire_max {
        return Err(FrameError::BadMeta);
    }
    let mut hello = Hello {
        wire_min,
        wire_max,
        cluster: ClusterId(r.u128()?),
        host: HostId(r.u128()?),
        process: r.u64()?,
        features: r.u64()?,
        max_frame: r.u32()?,
        slots: r.u32()?,
        heartbeat_ms: r.u32()?,
        trailer_len: r.u32()?,
        watermark: watermark(&mut r)?,
        pools: Vec::new(),
    };
    let count = as_len(r.u32()?);
    if count > MAX_POOLS {
        return Err(FrameError::BadMeta);
    }
    for _ in 0..count {
        hello.pools.push(PoolLog { pool: PoolId(r.u128()?), inc: PoolInc(r.u64()?), durable_seq: r.u64()? });
    }
    Ok(hello)
}

/// What this host's and the peer's HELLO agree on; both sides come to the same.
pub fn negotiate(ours: &Hello, theirs: &Hello) -> Result<Agreed, HelloError> {
    if ours.cluster != theirs.cluster {
        return Err(HelloError::OtherCluster { ours: ours.cluster, theirs: theirs.cluster });
    }
    let version = ours.wire_max.min(theirs.wire_max);
    if version < ours.wire_min.max(theirs.wire_min).max(Version::V1.0) {
        return Err(HelloError::NoCommonVersion {
            ours: (ours.wire_min, ours.wire_max),
            theirs: (theirs.wire_min, theirs.wire_max),
        });
    }
    if ours.trailer_len != theirs.trailer_len {
        return Err(HelloError::OtherTrailer { ours: ours.trailer_len, theirs: theirs.trailer_len });
    }
    if as_len(theirs.max_frame) < MAX_FRAME || theirs.slots == 0 {
        return Err(HelloError::TooSmall { max_frame: theirs.max_frame, slots: theirs.slots });
    }
    Ok(Agreed {
        version: Version(version),
        features: ours.features & theirs.features,
        slots: ours.slots.min(theirs.slots),
        heartbeat_ms: ours.heartbeat_ms.max(theirs.heartbeat_ms),
        trailer_len: ours.trailer_len,
    })
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::{String, ToString};
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::hex;
    use crate::payload::{HeapPayload, block_crcs};

    /// A frame as a receiver gets it.
    fn whole(frame: &EncodedFrame<HeapPayload>) -> Vec<u8> {
        let mut bytes = frame.head.clone();
        for part in &frame.data {
            bytes.extend_from_slice(part.bytes());
        }
        bytes
    }

    fn receive(bytes: &[u8], version: Version) -> Result<(Header, &[u8], HeapPayload), FrameError> {
        let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(FrameError::BadLength)?;
        let header = Header::parse(head, version)?;
        let (meta, data) = payload.split_at_checked(data_offset(&header)).ok_or(FrameError::BadLength)?;
        Ok((header, meta, data.to_vec().into()))
    }

    fn receive_request(bytes: &[u8]) -> Result<Request<HeapPayload>, FrameError> {
        let (header, meta, data) = receive(bytes, Version::V1)?;
        decode_request(&header, meta, data)
    }

    fn receive_response(bytes: &[u8]) -> Result<Response<HeapPayload>, FrameError> {
        let (header, meta, data) = receive(bytes, Version::V1)?;
        decode_response(&header, meta, data)
    }

    fn receive_hello(bytes: &[u8]) -> Result<Hello, FrameError> {
        let (header, meta, _) = receive(bytes, Version::HELLO)?;
        decode_hello(&header, meta)
    }

    /// The same response with a buffer of its own per extent: test payloads compare by buffer and position.
    fn unshared(mut response: Response<HeapPayload>) -> Response<HeapPayload> {
        if let Ok(Answer::Data(extents)) = &mut response.outcome {
            for extent in extents {
                if let Extent::Data { data, .. } = extent {
                    *data = data.bytes().to_vec().into();
                }
            }
        }
        response
    }

    fn pattern(len: usize) -> HeapPayload {
        let mut x = 1u8;
        let bytes: Vec<u8> = (0..len)
            .map(|i| {
                x = x.wrapping_mul(5).wrapping_add(i.to_le_bytes()[0]);
                x
            })
            .collect();
        bytes.into()
    }

    fn data_extent(blocks: usize) -> Extent<HeapPayload> {
        let data = pattern(blocks * BLOCK_LEN);
        Extent::Data { crcs: block_crcs(data.bytes()), data }
    }

    fn mark() -> Watermark {
        Watermark { cluster: ClusterId(0xc1), incarnation: 2, revision: 345 }
    }

    fn some_view() -> ReplicaView {
        ReplicaView {
            promised: Epoch(7),
            session: SessionId(0x5e55),
            sealed: Generation::new(Epoch(6), 3),
            newest: Generation::new(Epoch(7), 1),
            unsealed_regions: 12,
            lossy: true,
            size: 1 << 40,
            pool_inc: PoolInc(4),
            watermark: mark(),
            ordinal: Ordinal(9),
        }
    }

    fn some_hello() -> Hello {
        Hello {
            wire_min: 1,
            wire_max: 1,
            cluster: ClusterId(0xc1),
            host: HostId(0xa0),
            process: 0x0123_4567_89ab_cdef,
            features: 5,
            max_frame: len_u32(MAX_FRAME),
            slots: 512,
            heartbeat_ms: 100,
            trailer_len: 16,
            watermark: mark(),
            pools: vec![PoolLog { pool: PoolId(0xb0), inc: PoolInc(3), durable_seq: 99 }],
        }
    }

    fn one_of_each_ask() -> Vec<(&'static str, Ask<HeapPayload>)> {
        let generation = Generation::new(Epoch(7), 2);
        let data = pattern(BLOCK_LEN);
        let id = SnapId(0x51);
        let attach = Attach {
            volume: VolumeId(0x11),
            rid: Rid(2),
            pool: PoolId(0xb0),
            host: HostId(0xa0),
            session: SessionId(0x5e55),
            ordinal: Ordinal(9),
            watermark: mark(),
        };
        vec![
            ("attach", Ask::Attach(attach)),
            ("detach", Ask::Detach),
            ("promise", Ask::Promise { record: br#"{"fmt":1}"#.to_vec(), watermark: mark() }),
            (
                "write",
                Ask::Write { generation, offset: 8192, crcs: block_crcs(data.bytes()), data, copy: true },
            ),
            (
                "zero",
                Ask::Zero {
                    generation,
                    offset: 4096,
                    len: 1 << 33,
                    kind: Hole::Absent,
                    keep_space: false,
                    copy: true,
                },
            ),
            ("read", Ask::Read { offset: 1 << 20, len: 131_072 }),
            ("kinds", Ask::Kinds { offset: 0, len: 64 << 20 }),
            ("flush", Ask::Flush),
            ("seal", Ask::Seal { generation }),
            ("stamps", Ask::Stamps { above: generation, from_region: 77 }),
            ("hash", Ask::Hash { offset: 0, len: 1 << 20, key: *b"sixteen bytes ok" }),
            ("grow", Ask::Grow { generation, from: 1 << 31, to: 1 << 41 }),
            ("heartbeat", Ask::Heartbeat),
            ("snap-make", Ask::SnapMake { id, attempt: 7 << 20 | 1 }),
            ("snap-prepare", Ask::SnapPrepare { id, attempt: 7 << 20 | 1, generation, incarnation: 3 }),
            ("snap-ready", Ask::SnapReady { id, attempt: 7 << 20 | 1, note: br#"{"name":"n"}"#.to_vec() }),
            ("snap-drop", Ask::SnapDrop { id, attempt: 7 << 20 | 2 }),
            ("snap-delete", Ask::SnapDelete { id }),
            ("snap-destroy", Ask::SnapDestroy { id, attempt: 7 << 20 | 1, key: *b"sixteen bytes ok" }),
            ("snap-read", Ask::SnapRead { id, offset: 1 << 20, len: 131_072 }),
            ("snap-kinds", Ask::SnapKinds { id, offset: 0, len: 64 << 20 }),
            ("snap-hash", Ask::SnapHash { id, offset: 0, len: 1 << 20, key: *b"sixteen bytes ok" }),
            ("images", Ask::Images { from: id }),
            (
                "snap-changed",
                Ask::SnapChanged {
                    id,
                    since: SnapId(0x50),
                    offset: 1 << 16,
                    len: CHANGED_MAX,
                    key: *b"sixteen bytes ok",
                },
            ),
        ]
    }

    fn one_of_each_outcome() -> Vec<(String, Result<Answer<HeapPayload>, Refusal>)> {
        let hole = |len, kind| Extent::Hole { len, kind };
        let read = vec![hole(8192, Hole::Absent), data_extent(1), hole(4096, Hole::Zero)];
        let mut outcomes: Vec<(String, Result<Answer<HeapPayload>, Refusal>)> = vec![
            ("done".into(), Ok(Answer::Done)),
            ("attached".into(), Ok(Answer::Attached(some_view()))),
            ("promised".into(), Ok(Answer::Promised(some_view()))),
            ("data".into(), Ok(Answer::Data(read))),
            (
                "kind-runs".into(),
                Ok(Answer::Kinds(vec![
                    (4096, None),
                    (8192, Some(Hole::Zero)),
                    (1 << 26, Some(Hole::Absent)),
                ])),
            ),
            (
                "stamp-page".into(),
                Ok(Answer::Stamps { stamps: vec![(3, Generation(9)), (70, Generation(8))], next: Some(71) }),
            ),
            ("hashes".into(), Ok(Answer::Hashes(vec![*b"0123456789abcdef", [7; 16]]))),
            ("alive".into(), Ok(Answer::Alive { oldest_io_ms: 12, free_bytes: 1 << 39 })),
            ("deleting".into(), Ok(Answer::Deleting)),
            (
                "image-list".into(),
                Ok(Answer::Images(vec![
                    ImageView {
                        id: SnapId(0x51),
                        attempt: 7 << 20 | 1,
                        generation: Generation::new(Epoch(7), 2),
                        state: ImageState::Ready,
                        whole: true,
                        copied: false,
                        size: 1 << 40,
                    },
                    ImageView {
                        id: SnapId(0x52),
                        attempt: 7 << 20 | 2,
                        generation: Generation::new(Epoch(7), 3),
                        state: ImageState::Deleting,
                        whole: false,
                        copied: false,
                        size: 1 << 41,
                    },
                ])),
            ),
        ];
        outcomes.push(("changed-bits".into(), Ok(Answer::Changed(vec![0x80, 0, 0x01]))));
        for status in 1..=15 {
            let refusal = refusal_of(status).expect("statuses are numbered without gaps");
            outcomes.push((format!("refused-{status}"), Err(refusal)));
        }
        outcomes
    }

    fn request(ask: Ask<HeapPayload>) -> Request<HeapPayload> {
        Request { tag: 0x0102_0304, epoch: Epoch(7), ask }
    }

    fn response(outcome: Result<Answer<HeapPayload>, Refusal>) -> Response<HeapPayload> {
        Response { tag: 0x0102_0304, epoch: Epoch(8), outcome, service_us: 250 }
    }

    fn specimens() -> Vec<(String, Vec<u8>)> {
        let mut frames = vec![("hello".to_string(), encode_hello(&some_hello()))];
        for (name, ask) in one_of_each_ask() {
            frames.push((name.into(), whole(&encode_request(Version::V1, 0xaa, &request(ask)))));
        }
        for (name, outcome) in one_of_each_outcome() {
            frames.push((name, whole(&encode_response(Version::V1, 0xaa, &response(outcome)))));
        }
        frames
    }

    #[test]
    fn wire_version_1_has_the_bytes_it_was_released_with() {
        // A host of the next release must understand this one's frames, so no byte may move.
        hex::assert_specimens(include_str!("../specimens/wire-v1.txt"), &specimens());
    }

    #[test]
    fn every_message_of_the_specimens_is_read_back_equal() {
        assert_eq!(receive_hello(&encode_hello(&some_hello())), Ok(some_hello()));
        for (name, ask) in one_of_each_ask() {
            let sent = request(ask);
            let bytes = whole(&encode_request(Version::V1, 5, &sent));
            assert_eq!(receive_request(&bytes).as_ref(), Ok(&sent), "{name}");
            assert_eq!(receive_response(&bytes), Err(FrameError::WrongKind), "{name}");
        }
        for (name, outcome) in one_of_each_outcome() {
            let sent = response(outcome);
            let bytes = whole(&encode_response(Version::V1, 5, &sent));
            assert_eq!(receive_response(&bytes).as_ref(), Ok(&sent), "{name}");
            assert_eq!(receive_request(&bytes), Err(FrameError::WrongKind), "{name}");
        }
    }

    #[test]
    fn header_tells_kind_handle_and_where_data_starts() {
        let (_, write) = one_of_each_ask().swap_remove(3);
        let frame = encode_request(Version::V1, 42, &request(write));
        let bytes = whole(&frame);
        assert_eq!(bytes.len(), frame.len());
        let (header, meta, data) = receive(&bytes, Version::V1).expect("own frame");
        assert_eq!((header.kind(), header.handle, header.tag), (FrameKind::Request, 42, 0x0102_0304));
        assert_eq!((meta.len(), data.len(), header.payload_len()), (4, 4096, 4100));
        assert_eq!(header.encode(), bytes[..HEADER_LEN]);
    }

    #[test]
    fn any_flipped_bit_outside_of_guest_data_is_refused() {
        // Each bit of each specimen: a header bit must fail at the header, before anything is allocated.
        for (name, bytes) in specimens() {
            let version = if name == "hello" { Version::HELLO } else { Version::V1 };
            let (header, meta, _) = receive(&bytes, version).expect("own frame");
            let kind = header.kind();
            for bit in 0..(HEADER_LEN + meta.len()) * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let parsed = receive(&bad, version);
                if bit / 8 < HEADER_LEN {
                    assert!(parsed.is_err(), "{name}: bit {bit} of the header");
                    continue;
                }
                let (header, meta, data) = parsed.expect("the header is untouched");
                let error = match kind {
                    FrameKind::Hello => decode_hello(&header, meta).err(),
                    FrameKind::Request => decode_request(&header, meta, data).err(),
                    FrameKind::Response => decode_response(&header, meta, data).err(),
                };
                assert_eq!(error, Some(FrameError::MetaCrc), "{name}: bit {bit}");
            }
        }
    }

    /// A peer that computes its CRCs correctly and still sends nonsense.
    fn forged(change: impl Fn(&mut [u8; HEADER_LEN])) -> Result<Header, FrameError> {
        let frame = encode_request::<HeapPayload>(Version::V1, 1, &request(Ask::Flush));
        let mut head: [u8; HEADER_LEN] = frame.head[..HEADER_LEN].try_into().expect("64 bytes");
        change(&mut head);
        let crc = crc32c::crc32c(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        Header::parse(&head, Version::V1)
    }

    #[test]
    fn a_header_with_a_good_checksum_is_still_not_trusted() {
        assert!(forged(|_| ()).is_ok());
        assert!(matches!(forged(|h| h[0] = b'W'), Err(FrameError::BadMagic { .. })));
        assert_eq!(forged(|h| h[4] = 2), Err(FrameError::BadVersion { found: 2, agreed: 1 }));
        assert_eq!(forged(|h| h[5] = 0x1d), Err(FrameError::UnknownOp(0x1d)));
        assert_eq!(
            forged(|h| h[5] = 0x01),
            Err(FrameError::UnknownOp(1)),
            "HELLO once the version is agreed"
        );
        assert_eq!(forged(|h| h[6] = 1), Err(FrameError::UnknownStatus(1)), "a request has no status");
        assert_eq!(forged(|h| h[7] = 1), Err(FrameError::UnknownFlags(1)), "FLUSH has no flags");
        assert_eq!(forged(|h| h[33] = 1), Err(FrameError::UnusedField), "FLUSH has no generation");
        let long = |h: &mut [u8; HEADER_LEN]| h[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let limit = len_u32(MAX_PAYLOAD);
        assert_eq!(forged(long), Err(FrameError::TooLarge { found: u32::MAX, limit }));
        assert_eq!(forged(|h| h[12] = 1), Err(FrameError::BadLength), "more meta than payload");
        assert_eq!(forged(|h| h[9] = 0x10), Err(FrameError::BadLength), "4 KiB of data on a FLUSH");
    }

    #[test]
    fn an_unknown_status_is_an_error_and_not_a_guess() {
        let frame = encode_response::<HeapPayload>(Version::V1, 1, &response(Err(Refusal::Busy)));
        let mut head: [u8; HEADER_LEN] = frame.head[..].try_into().expect("a refusal has no meta");
        head[6] = 16;
        let crc = crc32c::crc32c(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(receive_response(&head), Err(FrameError::UnknownStatus(16)));
    }

    #[test]
    fn a_read_of_holes_and_data_shares_the_received_buffer() {
        let sent =
            response(Ok(Answer::Data(vec![data_extent(2), Extent::Hole { len: 4096, kind: Hole::Zero }])));
        let bytes = whole(&encode_response(Version::V1, 1, &sent));
        assert_eq!(receive_response(&bytes).as_ref(), Ok(&sent));
        // One byte of data less or more than the runs say: refused, whatever the CRCs say.
        let (header, meta, data) = receive(&bytes, Version::V1).expect("own frame");
        let short = decode_response(&header, meta, data.slice(0, 4096));
        assert_eq!(short, Err(FrameError::BadLength));
    }

    #[test]
    fn hello_of_a_newer_release_is_understood_by_this_one() {
        let mut newer = some_hello();
        newer.wire_max = 2;
        let frame = encode_hello(&newer);
        // The newer release appended a field; header and CRCs are right.
        let mut d = Draft::new(Op::Hello);
        d.meta.put(&frame[HEADER_LEN..]);
        d.meta.u64(0xfeed);
        let longer = d.finish::<HeapPayload>(Version::HELLO, 0, 0, Epoch(0), Vec::new()).head;
        assert_eq!(receive_hello(&longer), Ok(newer.clone()));
        let agreed = negotiate(&some_hello(), &newer).expect("version 1 is common");
        assert_eq!(agreed.version, Version::V1);
    }

    #[test]
    fn two_hosts_agree_on_the_newest_common_version_and_the_stricter_limits() {
        let ours = some_hello();
        let mut theirs = Hello { slots: 64, heartbeat_ms: 200, features: 4, ..some_hello() };
        let expected =
            Agreed { version: Version::V1, features: 4, slots: 64, heartbeat_ms: 200, trailer_len: 16 };
        assert_eq!(negotiate(&ours, &theirs), Ok(expected));
        assert_eq!(negotiate(&theirs, &ours), Ok(expected));
        (theirs.wire_min, theirs.wire_max) = (2, 3);
        let error = negotiate(&ours, &theirs);
        assert_eq!(error, Err(HelloError::NoCommonVersion { ours: (1, 1), theirs: (2, 3) }));
        let other = Hello { cluster: ClusterId(0xc2), ..some_hello() };
        assert!(matches!(negotiate(&ours, &other), Err(HelloError::OtherCluster { .. })));
        let clear = Hello { trailer_len: 0, ..some_hello() };
        assert!(matches!(negotiate(&ours, &clear), Err(HelloError::OtherTrailer { .. })));
        let small = Hello { slots: 0, ..some_hello() };
        assert!(matches!(negotiate(&ours, &small), Err(HelloError::TooSmall { .. })));
    }

    fn any_watermark() -> impl Strategy<Value = Watermark> {
        (any::<u128>(), any::<u64>(), any::<u64>()).prop_map(|(cluster, incarnation, revision)| Watermark {
            cluster: ClusterId(cluster),
            incarnation,
            revision,
        })
    }

    fn any_blocks(most: usize) -> impl Strategy<Value = (Vec<u32>, HeapPayload)> {
        (0..=most, any::<u8>()).prop_map(|(blocks, byte)| {
            let data: HeapPayload = vec![byte; blocks * BLOCK_LEN].into();
            (block_crcs(data.bytes()), data)
        })
    }

    fn any_hole() -> impl Strategy<Value = Hole> {
        prop_oneof![Just(Hole::Zero), Just(Hole::Absent)]
    }

    fn any_ask() -> impl Strategy<Value = Ask<HeapPayload>> {
        let generation = || any::<u64>().prop_map(Generation);
        prop_oneof![
            (any::<[u128; 4]>(), any::<u32>(), any::<u64>(), any_watermark()).prop_map(
                |([volume, pool, host, session], rid, ordinal, watermark)| Ask::Attach(Attach {
                    volume: VolumeId(volume),
                    rid: Rid(rid),
                    pool: PoolId(pool),
                    host: HostId(host),
                    session: SessionId(session),
                    ordinal: Ordinal(ordinal),
                    watermark,
                })
            ),
            Just(Ask::Detach),
            (proptest::collection::vec(any::<u8>(), 0..RECORD_MAX), any_watermark())
                .prop_map(|(record, watermark)| Ask::Promise { record, watermark }),
            (generation(), any::<u64>(), any_blocks(32), any::<bool>()).prop_map(
                |(generation, offset, (crcs, data), copy)| Ask::Write {
                    generation,
                    offset,
                    crcs,
                    data,
                    copy
                }
            ),
            (generation(), any::<[u64; 2]>(), any_hole(), any::<bool>(), any::<bool>()).prop_map(
                |(generation, [offset, len], kind, keep_space, copy)| Ask::Zero {
                    generation,
                    offset,
                    len,
                    kind,
                    keep_space,
                    copy
                }
            ),
            any::<[u64; 2]>().prop_map(|[offset, len]| Ask::Read { offset, len }),
            any::<[u64; 2]>().prop_map(|[offset, len]| Ask::Kinds { offset, len }),
            Just(Ask::Flush),
            generation().prop_map(|generation| Ask::Seal { generation }),
            (generation(), any::<u32>()).prop_map(|(above, from_region)| Ask::Stamps { above, from_region }),
            (any::<[u64; 2]>(), any::<[u8; 16]>()).prop_map(|([offset, len], key)| Ask::Hash {
                offset,
                len,
                key
            }),
            (generation(), 0..u64::MAX, 1..u64::MAX).prop_map(|(generation, from, len)| Ask::Grow {
                generation,
                from,
                to: from.saturating_add(len),
            }),
            Just(Ask::Heartbeat),
            any_image_ask(),
        ]
    }

    fn any_image_ask() -> impl Strategy<Value = Ask<HeapPayload>> {
        let id = || any::<u128>().prop_map(SnapId);
        let ranged = || (id(), any::<[u64; 2]>());
        let note = proptest::collection::vec(any::<u8>(), 0..=NOTE_MAX);
        prop_oneof![
            (id(), any::<u64>()).prop_map(|(id, attempt)| Ask::SnapMake { id, attempt }),
            (id(), any::<[u64; 3]>()).prop_map(|(id, [attempt, generation, incarnation])| {
                Ask::SnapPrepare { id, attempt, generation: Generation(generation), incarnation }
            }),
            (id(), any::<u64>(), note).prop_map(|(id, attempt, note)| Ask::SnapReady { id, attempt, note }),
            (id(), any::<u64>()).prop_map(|(id, attempt)| Ask::SnapDrop { id, attempt }),
            id().prop_map(|id| Ask::SnapDelete { id }),
            (id(), any::<u64>(), any::<[u8; 16]>()).prop_map(|(id, attempt, key)| Ask::SnapDestroy {
                id,
                attempt,
                key
            }),
            ranged().prop_map(|(id, [offset, len])| Ask::SnapRead { id, offset, len }),
            ranged().prop_map(|(id, [offset, len])| Ask::SnapKinds { id, offset, len }),
            (ranged(), any::<[u8; 16]>()).prop_map(|((id, [offset, len]), key)| Ask::SnapHash {
                id,
                offset,
                len,
                key
            }),
            id().prop_map(|from| Ask::Images { from }),
            (ranged(), any::<u128>(), any::<[u8; 16]>()).prop_map(|((id, [offset, len]), since, key)| {
                Ask::SnapChanged { id, since: SnapId(since), offset, len, key }
            }),
        ]
    }

    fn any_image_view() -> impl Strategy<Value = ImageView> {
        let states = [ImageState::Prepared, ImageState::Ready, ImageState::Deleting, ImageState::Destroyed];
        (any::<u128>(), any::<[u64; 3]>(), 0..4usize, any::<[bool; 2]>()).prop_map(
            move |(id, [attempt, generation, size], state, [whole, copied])| ImageView {
                id: SnapId(id),
                attempt,
                generation: Generation(generation),
                state: states[state],
                whole,
                copied,
                size,
            },
        )
    }

    fn any_view() -> impl Strategy<Value = ReplicaView> {
        (any::<[u64; 6]>(), any::<u128>(), any::<u32>(), any::<bool>(), any_watermark()).prop_map(
            |(
                [promised, sealed, newest, size, pool_inc, ordinal],
                session,
                unsealed_regions,
                lossy,
                watermark,
            )| {
                ReplicaView {
                    promised: Epoch(promised),
                    session: SessionId(session),
                    sealed: Generation(sealed),
                    newest: Generation(newest),
                    unsealed_regions,
                    lossy,
                    size,
                    pool_inc: PoolInc(pool_inc),
                    watermark,
                    ordinal: Ordinal(ordinal),
                }
            },
        )
    }

    fn any_extent() -> impl Strategy<Value = Extent<HeapPayload>> {
        prop_oneof![
            any_blocks(7)
                .prop_filter("runs are not empty", |(crcs, _)| !crcs.is_empty())
                .prop_map(|(crcs, data)| Extent::Data { crcs, data }),
            (1u64..1 << 30, any_hole()).prop_map(|(blocks, kind)| Extent::Hole { len: blocks * BLOCK, kind }),
        ]
    }

    fn any_outcome() -> impl Strategy<Value = Result<Answer<HeapPayload>, Refusal>> {
        let stamp = (any::<u32>(), any::<u64>()).prop_map(|(region, g)| (region, Generation(g)));
        let kinds = (1u64..1 << 30, proptest::option::of(any_hole())).prop_map(|(b, kind)| (b * BLOCK, kind));
        prop_oneof![
            Just(Ok(Answer::Done)),
            any_view().prop_map(|view| Ok(Answer::Attached(view))),
            any_view().prop_map(|view| Ok(Answer::Promised(view))),
            proptest::collection::vec(any_extent(), 0..4).prop_map(|extents| Ok(Answer::Data(extents))),
            proptest::collection::vec(kinds, 0..100).prop_map(|runs| Ok(Answer::Kinds(runs))),
            (proptest::collection::vec(stamp, 0..100), proptest::option::of(any::<u32>()))
                .prop_map(|(stamps, next)| Ok(Answer::Stamps { stamps, next })),
            proptest::collection::vec(any::<[u8; 16]>(), 0..256).prop_map(|h| Ok(Answer::Hashes(h))),
            any::<(u32, u64)>()
                .prop_map(|(oldest_io_ms, free_bytes)| Ok(Answer::Alive { oldest_io_ms, free_bytes })),
            Just(Ok(Answer::Deleting)),
            proptest::collection::vec(any_image_view(), 0..100).prop_map(|images| Ok(Answer::Images(images))),
            proptest::collection::vec(any::<u8>(), 0..=CHANGED_BYTES)
                .prop_map(|bits| Ok(Answer::Changed(bits))),
            (1u8..=15).prop_map(|status| Err(refusal_of(status).expect("known"))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_request_is_read_back_equal(
            ask in any_ask(), tag in any::<u32>(), epoch in any::<u64>(), handle in any::<u32>(),
        ) {
            let sent = Request { tag, epoch: Epoch(epoch), ask };
            let got = receive_request(&whole(&encode_request(Version::V1, handle, &sent)));
            prop_assert_eq!(got, Ok(sent));
        }

        #[test]
        fn any_response_is_read_back_equal(
            outcome in any_outcome(), tag in any::<u32>(), epoch in any::<u64>(), service_us in any::<u32>(),
        ) {
            let sent = Response { tag, epoch: Epoch(epoch), outcome, service_us };
            let got = receive_response(&whole(&encode_response(Version::V1, 3, &sent)));
            prop_assert_eq!(got.map(unshared), Ok(sent));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(receive_request(&bytes).is_err());
            prop_assert!(receive_response(&bytes).is_err());
            prop_assert!(receive_hello(&bytes).is_err());
        }

        /// A malicious peer gets its CRCs right; then only the parser stands between it and us.
        #[test]
        fn random_meta_with_right_checksums_never_panics(
            ops in 0usize..34, meta in proptest::collection::vec(any::<u8>(), 0..300), data_blocks in 0usize..3,
            words in any::<[u64; 3]>(), status in 0u8..20, flags in 0u8..8,
        ) {
            let op = (0..=u8::MAX).filter_map(Op::from_byte).nth(ops).expect("34 operations");
            let (generation, offset, len) = op.fields();
            let carries_data = matches!(op, Op::Write | Op::Data);
            let data: HeapPayload = vec![7; if carries_data { data_blocks * BLOCK_LEN } else { 0 }].into();
            let header = Header {
                op,
                version: if op == Op::Hello { 0 } else { 1 },
                status: if op == Op::Refused { status.max(1) } else { 0 },
                flags: flags & op.flags(),
                payload_len: len_u32(meta.len() + data.len()),
                meta_len: len_u32(meta.len()),
                tag: 0,
                handle: 0,
                epoch: Epoch(0),
                generation: if generation { words[0] } else { 0 },
                offset: if offset { words[1] } else { 0 },
                len: if len { words[2] } else { 0 },
                meta_crc: crc32c::crc32c(&meta),
            };
            let version = if op == Op::Hello { Version::HELLO } else { Version::V1 };
            let header = Header::parse(&header.encode(), version).expect("a sound header");
            // Whatever is accepted is something that we could have sent.
            if let Ok(request) = decode_request(&header, &meta, data.clone()) {
                prop_assert_eq!(&encode_request(Version::V1, 0, &request).head[HEADER_LEN..], &meta[..]);
            }
            if let Ok(response) = decode_response(&header, &meta, data) {
                prop_assert_eq!(&encode_response(Version::V1, 0, &response).head[HEADER_LEN..], &meta[..]);
            }
            let _ = decode_hello(&header, &meta);
        }
    }
}
