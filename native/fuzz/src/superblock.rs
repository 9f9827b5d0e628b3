//! The pool's superblock, and the start that it decides.
//!
//! Must always hold:
//! * what is accepted is written back as it was read;
//! * a pool serves only an incarnation that the store took from this very start, or from an earlier swap with its
//!   nonce, and only while disk and store name the same one.

use weft_proto::ids::{ClusterId, HostId, Nonce, PoolId, PoolInc};
use weft_proto::superblock::{
    COUNTS_END, PoolAction, PoolStart, SEGMENT_BYTES, SUPERBLOCK_LEN, StoredPool, Superblock,
    SuperblockError, SwapOutcome, choose,
};

use crate::input::Input;

const CLUSTER: ClusterId = ClusterId(0xc1);
const HOST: HostId = HostId(0xa0);

/// Two copies, then what the store says.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [a, b] = [copy(&mut input), copy(&mut input)];
    for bytes in [&a, &b] {
        if let Ok(superblock) = Superblock::decode(bytes) {
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }
    }
    let Ok((_, superblock)) = choose(&a, &b) else { return };
    start(&mut input, superblock);
}

fn copy(input: &mut Input<'_>) -> Vec<u8> {
    let mode = input.u8();
    let mut bytes = vec![0; SUPERBLOCK_LEN];
    match mode % 4 {
        0 => {
            let len = usize::from(input.u16());
            return input.take(len).to_vec();
        }
        1 => {
            let head = input.take(128);
            bytes[8..8 + head.len()].copy_from_slice(head);
        }
        _ => {
            let superblock = Superblock {
                pool: PoolId(u128::from(mode >> 7)),
                cluster: if input.one_in(16) { ClusterId(input.u128()) } else { CLUSTER },
                host: if input.one_in(16) { HostId(input.u128()) } else { HOST },
                inc: PoolInc(input.number() % (u64::MAX / 2)),
                intent: input.flag().then(|| Nonce(u128::from(input.u8() % 4))),
                segment_bytes: SEGMENT_BYTES,
                log_blocks: 64 + input.number() % 4096,
                created: input.number(),
                counter: input.number() % (u64::MAX / 2),
            };
            bytes = superblock.encode();
            if input.one_in(8) {
                bytes[8 + input.below(112)] ^= input.u8();
            }
        }
    }
    if !input.one_in(16) {
        bytes[..4].copy_from_slice(b"wsup");
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

fn start(input: &mut Input<'_>, superblock: Superblock) {
    let fresh = Nonce(u128::from(input.u8() % 4) + 0x100);
    let mut start = PoolStart::new(superblock, CLUSTER, HOST, fresh);
    let mut key = stored(input, superblock.inc);
    let mut late: Vec<StoredPool> = Vec::new();
    let mut seen = None;
    for _ in 0..64 {
        match start.action() {
            PoolAction::ReadStore => {
                // Whatever was under way may have been applied meanwhile; or somebody wrote something.
                if input.one_in(4) && !late.is_empty() {
                    let index = input.below(late.len());
                    key = Some(late.remove(index));
                }
                if input.one_in(8) {
                    key = stored(input, superblock.inc);
                }
                seen = key;
                start.handle_store(key);
            }
            PoolAction::WriteSuperblock(written) => {
                // At the end of its range it is written once more and refused from then on.
                let has_room = written.inc.0 < COUNTS_END && written.counter < COUNTS_END;
                let expected = if has_room { Ok(written) } else { Err(SuperblockError::Malformed) };
                assert_eq!(Superblock::decode(&written.encode()), expected);
                assert!(written.inc >= superblock.inc && written.counter > superblock.counter);
                start.handle_written();
            }
            PoolAction::Swap { inc, intent } => {
                let value = StoredPool { host: HOST, inc, intent: Some(intent) };
                match input.u8() % 4 {
                    0 => {
                        late.push(value);
                        start.handle_swap(SwapOutcome::Unknown);
                    }
                    1 => start.handle_swap(SwapOutcome::Lost),
                    _ if key == seen => {
                        (key, seen) = (Some(value), Some(value));
                        start.handle_swap(SwapOutcome::Done);
                    }
                    _ => start.handle_swap(SwapOutcome::Lost),
                }
            }
            PoolAction::Serve(inc) => {
                assert_eq!(
                    seen.map(|s| (s.inc, s.host)),
                    Some((inc, HOST)),
                    "served what the store does not name"
                );
                assert!(inc > superblock.inc, "served at an incarnation that was served before");
                return;
            }
            PoolAction::Quarantine(why) => {
                assert!(!why.to_string().is_empty());
                return;
            }
        }
    }
}

fn stored(input: &mut Input<'_>, disk: PoolInc) -> Option<StoredPool> {
    if input.one_in(8) {
        return None;
    }
    let inc = match input.u8() % 4 {
        0 => input.number(),
        1 => disk.0.saturating_add(1),
        _ => disk.0,
    };
    let host = if input.one_in(16) { HostId(input.u128()) } else { HOST };
    let intent = input.flag().then(|| Nonce(u128::from(input.u8() % 4)));
    Some(StoredPool { host, inc: PoolInc(inc), intent })
}
