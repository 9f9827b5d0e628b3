//! Messages between a session and a replica that pass the wire's decoder, with any values in them.
//!
//! Must always hold: everything made here can be encoded; what a peer could not send is not sent.

use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Ordinal, PoolId, PoolInc, Rid, SessionId, SnapId, VolumeId,
};
use weft_proto::images::ImageState;
use weft_proto::message::{
    Answer, Ask, Attach, CHANGED_GRAIN, Extent, Hole, ImageView, Refusal, ReplicaView, Request, Response,
    Watermark,
};
use weft_proto::payload::{BLOCK, HeapPayload, Payload, block_crcs};
use weft_proto::wire::{
    EncodedFrame, HEADER_LEN, Header, MAX_STAMPS, Version, data_offset, decode_request, decode_response,
    encode_request, encode_response,
};

use crate::input::Input;

/// The refusals that a peer can send.
pub const REFUSALS: [Refusal; 15] = [
    Refusal::StaleEpoch,
    Refusal::NotAttached,
    Refusal::NoReplica,
    Refusal::MetadataRollback,
    Refusal::OutOfBounds,
    Refusal::BadCrc,
    Refusal::NoSpace,
    Refusal::IoError,
    Refusal::BitRot,
    Refusal::Quarantined,
    Refusal::Busy,
    Refusal::NoSnapshot,
    Refusal::NoSnapshots,
    Refusal::OldAttempt,
    Refusal::OldGeneration,
];

/// What the plot of a target is about: values near these are not refused at the first look.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The volume.
    pub volume: VolumeId,
    /// The pool.
    pub pool: PoolId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Bytes of the volume.
    pub size: u64,
}

/// An id near zero, mostly.
pub fn small(input: &mut Input<'_>) -> u128 {
    if input.one_in(32) { input.u128() } else { u128::from(input.u8() % 4) }
}

/// Whole blocks inside of the volume, mostly.
pub fn range(input: &mut Input<'_>, known: &Known) -> (u64, u64) {
    if input.one_in(16) {
        return (input.number(), input.number());
    }
    let blocks = known.size / BLOCK;
    let at = u64::from(input.u16()) % blocks;
    let len = 1 + u64::from(input.u8()) % 4;
    (at * BLOCK, len * BLOCK)
}

/// A store's watermark, of the known cluster mostly.
pub fn watermark(input: &mut Input<'_>, known: &Known) -> Watermark {
    let cluster = if input.one_in(16) { ClusterId(input.u128()) } else { known.cluster };
    Watermark { cluster, incarnation: input.number() % 4, revision: input.number() }
}

/// A generation of a low epoch, mostly.
pub fn generation(input: &mut Input<'_>) -> Generation {
    if input.one_in(16) {
        return Generation(input.number());
    }
    Generation::new(Epoch(u64::from(input.u8() % 16)), u32::from(input.u8() % 8))
}

/// Zero or absent.
pub fn hole(input: &mut Input<'_>) -> Hole {
    if input.flag() { Hole::Absent } else { Hole::Zero }
}

/// Blocks of one byte each, with their CRCs; sometimes with a wrong one.
pub fn blocks(input: &mut Input<'_>, most: usize) -> (Vec<u32>, HeapPayload) {
    let mut data = HeapPayload::zeroed(input.below(most + 1) * 4096);
    for block in data.bytes_mut().chunks_exact_mut(4096) {
        block[0] = input.u8();
    }
    let mut crcs = block_crcs(data.bytes());
    if let Some(crc) = crcs.first_mut()
        && input.one_in(32)
    {
        *crc ^= 1;
    }
    (crcs, data)
}

/// Anything that may be asked of a replica but a promise, whose record is the target's matter.
pub fn ask(input: &mut Input<'_>, known: &Known) -> Ask<HeapPayload> {
    match input.u8() % 20 {
        0 => Ask::Attach(attach(input, known)),
        1 => Ask::Detach,
        2 => {
            let len = usize::from(input.u8());
            let record = input.take(len).to_vec();
            Ask::Promise { record, watermark: watermark(input, known) }
        }
        3..=5 => {
            let (offset, _) = range(input, known);
            let generation = generation(input);
            let (crcs, data) = blocks(input, 4);
            Ask::Write { generation, offset, crcs, data, copy: input.flag() }
        }
        6 => {
            let (offset, len) = range(input, known);
            let (generation, kind) = (generation(input), hole(input));
            Ask::Zero { generation, offset, len, kind, keep_space: input.flag(), copy: input.flag() }
        }
        7 => {
            let (offset, len) = range(input, known);
            Ask::Read { offset, len }
        }
        8 => {
            let (offset, len) = range(input, known);
            Ask::Kinds { offset, len }
        }
        9 => Ask::Flush,
        10 => Ask::Seal { generation: generation(input) },
        11 => Ask::Stamps { above: generation(input), from_region: input.number_u32() },
        12 => {
            let (offset, len) = range(input, known);
            Ask::Hash { offset, len, key: input.array() }
        }
        14..=19 => image_ask(input, known),
        _ if input.one_in(4) => {
            let (from, len) = range(input, known);
            let len = if input.one_in(4) { input.number() } else { len };
            let from = from.min(u64::MAX - 1);
            let to = from.saturating_add(len).max(from + 1);
            Ask::Grow { generation: generation(input), from, to }
        }
        _ => Ask::Heartbeat,
    }
}

/// Anything that may be asked about an image.
fn image_ask(input: &mut Input<'_>, known: &Known) -> Ask<HeapPayload> {
    let (id, attempt) = (SnapId(small(input)), u64::from(input.u8() % 8));
    match input.u8() % 13 {
        0 | 1 => Ask::SnapMake { id, attempt },
        2..=4 => {
            let incarnation = input.number() % 4;
            Ask::SnapPrepare { id, attempt, generation: generation(input), incarnation }
        }
        5 => {
            let len = usize::from(input.u8());
            Ask::SnapReady { id, attempt, note: input.take(len).to_vec() }
        }
        6 => Ask::SnapDrop { id, attempt },
        7 if attempt >= 4 => Ask::SnapDestroy { id, attempt: attempt - 3, key: [7; 16] },
        7 => Ask::SnapDelete { id },
        8 => {
            let (offset, len) = range(input, known);
            Ask::SnapRead { id, offset, len }
        }
        9 => {
            let (offset, len) = range(input, known);
            Ask::SnapKinds { id, offset, len }
        }
        10 => {
            let (offset, len) = range(input, known);
            Ask::SnapHash { id, offset, len, key: input.array() }
        }
        11 => Ask::Images { from: id },
        _ => {
            let (offset, len) = range(input, known);
            let offset = if input.one_in(4) { offset } else { offset / CHANGED_GRAIN * CHANGED_GRAIN };
            Ask::SnapChanged { id, since: SnapId(small(input)), offset, len, key: input.array() }
        }
    }
}

/// An attach to the known replica, mostly.
pub fn attach(input: &mut Input<'_>, known: &Known) -> Attach {
    let odd = input.one_in(16);
    Attach {
        volume: if odd { VolumeId(input.u128()) } else { known.volume },
        rid: if odd { Rid(input.u32()) } else { Rid(1) },
        pool: if odd { PoolId(input.u128()) } else { known.pool },
        host: HostId(small(input)),
        session: SessionId(small(input)),
        ordinal: Ordinal(if input.one_in(16) { input.number() } else { u64::from(input.u8()) }),
        watermark: watermark(input, known),
    }
}

/// What a replica may tell of itself.
pub fn view(input: &mut Input<'_>, known: &Known) -> ReplicaView {
    ReplicaView {
        promised: epoch(input),
        session: SessionId(small(input)),
        sealed: generation(input),
        newest: generation(input),
        unsealed_regions: input.number_u32(),
        lossy: input.flag(),
        size: if input.one_in(8) { input.number() } else { known.size },
        pool_inc: PoolInc(input.number()),
        watermark: watermark(input, known),
        ordinal: Ordinal(input.number()),
    }
}

/// A low epoch, mostly.
pub fn epoch(input: &mut Input<'_>) -> Epoch {
    if input.one_in(16) { Epoch(input.number()) } else { Epoch(u64::from(input.u8() % 16)) }
}

/// Any answer.
pub fn answer(input: &mut Input<'_>, known: &Known) -> Answer<HeapPayload> {
    match input.u8() % 11 {
        0 => Answer::Done,
        1 => Answer::Attached(view(input, known)),
        2 => Answer::Promised(view(input, known)),
        3 => {
            let count = input.below(5);
            Answer::Data((0..count).map(|_| extent(input)).collect())
        }
        4 => {
            let count = input.below(5);
            let kind = |input: &mut Input<'_>| input.flag().then(|| hole(input));
            Answer::Kinds((0..count).map(|_| (run_len(input), kind(input))).collect())
        }
        5 => {
            let count = input.below(9).min(MAX_STAMPS);
            let stamps = (0..count).map(|_| (input.number_u32(), generation(input))).collect();
            Answer::Stamps { stamps, next: input.one_in(4).then(|| input.number_u32()) }
        }
        6 => {
            let count = input.below(33);
            Answer::Hashes((0..count).map(|_| [input.u8(); 16]).collect())
        }
        7 => Answer::Deleting,
        8 => {
            let count = input.below(9);
            Answer::Images((0..count).map(|_| image_view(input)).collect())
        }
        9 => {
            let count = input.below(6);
            Answer::Changed((0..count).map(|_| input.u8()).collect())
        }
        _ => Answer::Alive { oldest_io_ms: input.number_u32(), free_bytes: input.number() },
    }
}

fn image_view(input: &mut Input<'_>) -> ImageView {
    let states = [ImageState::Prepared, ImageState::Ready, ImageState::Deleting];
    ImageView {
        id: SnapId(small(input)),
        attempt: input.number(),
        generation: generation(input),
        state: *input.pick(&states),
        whole: input.flag(),
        copied: input.flag(),
        size: input.number(),
    }
}

fn run_len(input: &mut Input<'_>) -> u64 {
    let blocks = if input.one_in(16) { input.number() % (1 << 30) } else { u64::from(input.u8()) };
    blocks.max(1) * BLOCK
}

fn extent(input: &mut Input<'_>) -> Extent<HeapPayload> {
    if input.flag() {
        return Extent::Hole { len: run_len(input), kind: hole(input) };
    }
    match blocks(input, 8) {
        (crcs, data) if !crcs.is_empty() => Extent::Data { crcs, data },
        _ => Extent::Hole { len: BLOCK, kind: Hole::Zero },
    }
}

/// A request as it arrives, once it has gone over the wire.
pub fn carried_request(request: &Request<HeapPayload>) -> Request<HeapPayload> {
    let frame = encode_request(Version::V1, 7, request);
    let (header, meta, data) = received(&frame);
    let arrived = decode_request(&header, meta, data).expect("own frame");
    assert_eq!(&arrived, request, "a request changed on its way");
    arrived
}

/// A response as it arrives, once it has gone over the wire.
pub fn carried_response(response: &Response<HeapPayload>) -> Response<HeapPayload> {
    let frame = encode_response(Version::V1, 7, response);
    let (header, meta, data) = received(&frame);
    decode_response(&header, meta, data).expect("own frame")
}

/// A frame as a receiver has it.
fn received(frame: &EncodedFrame<HeapPayload>) -> (Header, &[u8], HeapPayload) {
    let head = frame.head.first_chunk::<HEADER_LEN>().expect("a header");
    let header = Header::parse(head, Version::V1).expect("own header");
    let meta = &frame.head[HEADER_LEN..HEADER_LEN + data_offset(&header)];
    (header, meta, data_of(frame))
}

/// The guest data of a frame in one piece.
#[must_use]
pub fn data_of(frame: &EncodedFrame<HeapPayload>) -> HeapPayload {
    let mut data = Vec::new();
    for part in &frame.data {
        data.extend_from_slice(part.bytes());
    }
    data.into()
}
