//! A replica's checkpoints, those of its images, and the replica that starts from one.
//!
//! Must always hold: a file is read back exactly or refused; what is accepted can be served and written again.

use weft_proto::checkpoint::{Checkpoint, ImageSlot, choose, choose_image};
use weft_proto::durable::Durable;
use weft_proto::ids::{ClusterId, HostId, PoolId, PoolInc, Rid, SessionId, SnapId, VolumeId};
use weft_proto::images::ImageForm;
use weft_proto::log::ReplicaKey;
use weft_proto::message::Watermark;
use weft_proto::mutants::Broken;
use weft_proto::payload::HeapPayload;
use weft_proto::replica::{Party, Replica, ReplicaConfig};

use crate::input::Input;

const POOL: PoolId = PoolId(0xb0);
const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(2) };
const HEAD: usize = 176;
const IMAGE: SnapId = SnapId(0x51);
const IMAGE_HEAD: usize = 144;
const OF_IMAGES: u8 = 16;

/// Two files; each as it is, or with its checksums set right.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if bytes.first().is_some_and(|mode| mode & OF_IMAGES != 0) {
        return images(&mut input);
    }
    let [a, b] = [file(&mut input), file(&mut input)];
    for bytes in [&a, &b] {
        if let Ok(checkpoint) = Checkpoint::decode(bytes, POOL, KEY) {
            let again = checkpoint.encode();
            assert_eq!(Checkpoint::decode(&again, POOL, KEY).as_ref(), Ok(&checkpoint));
        }
    }
    let Ok((side, checkpoint)) = choose(&a, &b, POOL, KEY) else { return };
    assert_ne!(side, side.other());
    let mut durable = checkpoint.durable;
    let record = weft_proto::log::LogRecord::Grow {
        size: input.number(),
        from: input.number(),
        generation: weft_proto::ids::Generation(input.number()),
    };
    if durable.admits(&record) {
        durable.apply(&record);
    }
    serve(durable);
}

fn images(input: &mut Input<'_>) {
    let [a, b] = [slot(input), slot(input)];
    for bytes in [&a, &b] {
        if let Ok(slot) = ImageSlot::decode(bytes, POOL, KEY, IMAGE) {
            let again = slot.encode();
            assert_eq!(ImageSlot::decode(&again, POOL, KEY, IMAGE).as_ref(), Ok(&slot));
        }
    }
    let Ok(Some((_, found))) = choose_image(&a, &b, POOL, KEY, IMAGE) else { return };
    let mut durable = Durable::new(KEY.volume, KEY.rid, 1 << 24, 20);
    durable.images.restore(vec![found.image]);
    for offset in [0, input.number() % (1 << 46)] {
        let _ = (durable.images.needs(offset, 1 << 20), durable.images.missing_from(offset));
        let _ = durable.images.place(IMAGE, input.number_u32());
    }
    let _ = (durable.images.is_whole(IMAGE), durable.images.hand_down());
    serve(durable);
}

fn slot(input: &mut Input<'_>) -> Vec<u8> {
    let mode = input.u8();
    let mut bytes = vec![0; 4096 * (1 + usize::from(mode >> 6))];
    let head = input.take(IMAGE_HEAD);
    bytes[..head.len()].copy_from_slice(head);
    let body = input.take(bytes.len() - IMAGE_HEAD);
    bytes[IMAGE_HEAD..IMAGE_HEAD + body.len()].copy_from_slice(body);
    if mode & 1 == 0 {
        return bytes;
    }
    bytes[..4].copy_from_slice(b"wimg");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&KEY.rid.0.to_le_bytes());
    bytes[16..32].copy_from_slice(&KEY.volume.0.to_le_bytes());
    bytes[32..48].copy_from_slice(&POOL.0.to_le_bytes());
    bytes[48..64].copy_from_slice(&IMAGE.0.to_le_bytes());
    if mode & 4 != 0 {
        // As many regions as fit.
        let regions = (bytes.len() - IMAGE_HEAD - 512) / 16 * 64;
        let shift = bytes[128].clamp(12, 31);
        bytes[128] = shift;
        bytes[112..120].copy_from_slice(&((regions as u64) << shift).to_le_bytes());
        bytes[120..124].copy_from_slice(&u32::try_from(regions).expect("few").to_le_bytes());
        bytes[126..128].fill(0);
        bytes[125] &= 1;
        bytes[129] %= 3;
    }
    let crc = crc32c::crc32c(&bytes[IMAGE_HEAD..]);
    bytes[136..140].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[8..IMAGE_HEAD]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn serve(durable: Durable) {
    let config = ReplicaConfig {
        pool: POOL,
        pool_inc: PoolInc(1),
        watermark: Watermark { cluster: ClusterId(3), incarnation: 1, revision: 1 },
        lossy: false,
        cached: false,
        takes: ImageForm::Chained,
        broken: Broken::default(),
    };
    let (size, promised) = (durable.size, durable.promised);
    let replica: Replica<HeapPayload> = Replica::new(config, durable);
    let view = replica.view(Party { host: HostId(1), session: SessionId(1) });
    assert_eq!((view.size, view.promised), (size, promised));
    assert!(!replica.line().is_empty());
}

fn file(input: &mut Input<'_>) -> Vec<u8> {
    let mode = input.u8();
    let len = if mode & 8 == 0 { 0 } else { usize::from(input.u16()) };
    if mode & 1 == 0 {
        return input.take(len).to_vec();
    }
    let mut bytes = vec![0; 12 * 1024 + 4096 * usize::from(mode >> 6)];
    let head = input.take(HEAD);
    bytes[..head.len()].copy_from_slice(head);
    let body = input.take(len.min(bytes.len() - HEAD));
    bytes[HEAD..HEAD + body.len()].copy_from_slice(body);
    bytes[..4].copy_from_slice(b"wchk");
    if mode & 2 != 0 {
        bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&KEY.rid.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&KEY.volume.0.to_le_bytes());
        bytes[32..48].copy_from_slice(&POOL.0.to_le_bytes());
    }
    if mode & 4 != 0 {
        // As many regions as fit, of the size that the head names.
        bytes[140] %= 8;
        bytes[141..144].fill(0);
        let regions = (bytes.len() - HEAD - 8192 - 24 * usize::from(bytes[140])) / 8;
        let shift = bytes[136].clamp(12, 40);
        bytes[136] = shift;
        bytes[64..72].copy_from_slice(&((regions as u64) << shift).to_le_bytes());
        bytes[128..132].copy_from_slice(&u32::try_from(regions).expect("few").to_le_bytes());
    }
    let regions = u32::from_le_bytes([bytes[128], bytes[129], bytes[130], bytes[131]]);
    let gone = usize::from(u16::from_le_bytes([bytes[140], bytes[141]]));
    let body = 8192 + 8 * usize::try_from(regions).expect("32 bits") + 24 * gone;
    let body_len = (HEAD + body).next_multiple_of(4096);
    let crc = crc32c::crc32c(bytes.get(HEAD..body_len).unwrap_or(&[]));
    bytes[168..172].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[8..HEAD]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}
