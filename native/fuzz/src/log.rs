//! The pool's metadata log: rings that no log wrote, and logs that crashed anywhere.
//!
//! Must always hold:
//! * no ring panics its reader, and a log goes on from whatever was recovered;
//! * after any crash everything that was called durable is there, in order, and beyond it either nothing or the whole
//!   batch that was in flight;
//! * a ring that was damaged is refused, or the damage was where nothing is needed.

use weft_proto::durable::Durable;
use weft_proto::ids::{Epoch, Generation, PoolId, PoolInc, Rid, SessionId, VolumeId};
use weft_proto::log::{
    LOG_BLOCK, Log, LogExpectation, LogPlace, LogRecord, LogWrite, Recovered, ReplicaKey, recover,
};

use crate::input::Input;

const BLOCKS: u64 = 64;
const POOL: PoolId = PoolId(0xb0);
const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(2) };
const HEADER: usize = 64;

/// First byte: forged blocks, or a log's life.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.flag() { forged(&mut input) } else { life(&mut input) }
}

// ---- rings that no log wrote

fn forged(input: &mut Input<'_>) {
    let mut ring = vec![0; usize::try_from(BLOCKS).expect("small") * LOG_BLOCK];
    let expect = LogExpectation {
        pool: POOL,
        inc: PoolInc(u64::from(input.u8() % 4)),
        from_seq: 1 + input.number() % (u64::MAX / 2),
        known_durable: input.number() % (u64::MAX / 2),
    };
    let (mut seq, mut durable, mut first) = (expect.from_seq, expect.from_seq - 1, 1);
    while !input.is_done() {
        if input.one_in(16) {
            // A block of anything.
            let at = input.below(64) * LOG_BLOCK;
            let junk = input.take(64);
            ring[at..at + junk.len()].copy_from_slice(junk);
            continue;
        }
        let count = 1 + input.u8() % 4;
        if input.one_in(4) {
            (durable, first) = (input.number(), input.number());
        }
        if input.one_in(4) {
            seq = input.number();
        }
        for index in 0..count {
            let position = usize::try_from(seq % BLOCKS).expect("small");
            let block = &mut ring[position * LOG_BLOCK..][..LOG_BLOCK];
            forge(input, block, [seq, durable, first], [index, count]);
            seq = seq.wrapping_add(1);
        }
        durable = seq.wrapping_sub(1);
    }
    let Ok(recovered) = recover(&ring, &expect) else { return };
    // As a starting pool takes the records in, from a checkpoint that is older than all of them.
    let mut replica = Durable::new(KEY.volume, KEY.rid, 1 << 20, 16);
    for entry in &recovered.records {
        if replica.admits(&entry.record) {
            let (promised, size) = (replica.promised, replica.size);
            replica.apply(&entry.record);
            assert!(replica.promised >= promised, "I3: a promise went back");
            let cut = matches!(entry.record, LogRecord::Cut { .. });
            assert!(replica.size >= size || cut, "smaller, and it was not cut");
        }
    }
    assert!(u64::from(replica.unsealed_regions()) <= replica.rgm.len() as u64);
    // And goes on.
    let place = LogPlace { pool: POOL, inc: PoolInc(9), blocks: BLOCKS };
    let mut log = Log::new(place, &recovered);
    for _ in 0..3 {
        let _ = log.append(KEY, &LogRecord::Sealed { generation: Generation(1) });
        while let Some(write) = log.poll_write() {
            log.handle_written(write.batch, Ok(()));
        }
    }
    log.trim_to(log.durable_seq());
}

/// A block with the right checksum.
fn forge(input: &mut Input<'_>, block: &mut [u8], seqs: [u64; 3], [index, count]: [u8; 2]) {
    let [seq, durable, first] = seqs;
    let odd = input.one_in(32);
    let mut payload = Vec::new();
    while payload.len() < 600 && !input.one_in(3) {
        let mut entry = vec![if odd { input.u8() } else { 1 + input.u8() % 7 }];
        entry.extend_from_slice(&KEY.volume.0.to_le_bytes());
        entry.extend_from_slice(&KEY.rid.0.to_le_bytes());
        for _ in 0..input.below(4) {
            entry.extend_from_slice(&input.number().to_le_bytes());
        }
        let tail = input.below(10);
        entry.extend_from_slice(input.take(tail));
        if input.one_in(16) {
            entry = vec![255];
        }
        let len = if odd { input.number_u32() } else { u32::try_from(entry.len()).expect("short") };
        payload.extend_from_slice(&len.to_le_bytes());
        payload.extend_from_slice(&entry);
        if input.is_done() {
            break;
        }
    }
    let len = if odd { input.u16() } else { u16::try_from(payload.len()).expect("short") };
    block.fill(0);
    block[8..16].copy_from_slice(&seq.to_le_bytes());
    let pool = if odd && input.flag() { PoolId(input.u128()) } else { POOL };
    block[16..32].copy_from_slice(&pool.0.to_le_bytes());
    let inc = if odd { input.number() } else { 0 };
    block[32..40].copy_from_slice(&inc.to_le_bytes());
    block[40..48].copy_from_slice(&durable.to_le_bytes());
    block[48..56].copy_from_slice(&first.to_le_bytes());
    let version = if odd { u16::from(input.u8() % 3) } else { 1 };
    for (at, value) in [(56, u16::from(index)), (58, u16::from(count)), (60, len), (62, version)] {
        block[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    block[HEADER..HEADER + payload.len()].copy_from_slice(&payload);
    block[..4].copy_from_slice(b"wlog");
    let crc = crc32c::crc32c(&block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

// ---- a log's life

/// A pool's disk and what its process believes of it.
struct Life {
    ring: Vec<u8>,
    /// The ring before, for blocks that come back.
    old: Vec<u8>,
    log: Log,
    inc: u64,
    /// What the last checkpoint includes.
    checkpoint_seq: u64,
    checkpoint_id: u64,
    /// Ids of records are 1, 2, 3 …; these are the last one appended, with its token, and the last one durable.
    appended: Vec<(u64, u64)>,
    next_id: u64,
    durable_id: u64,
    /// Writes that the disk has and did not confirm.
    in_flight: Vec<LogWrite>,
}

fn life(input: &mut Input<'_>) {
    let ring = vec![0; usize::try_from(BLOCKS).expect("small") * LOG_BLOCK];
    let expect = LogExpectation { pool: POOL, inc: PoolInc(0), from_seq: 1, known_durable: 0 };
    let recovered = recover(&ring, &expect).expect("an empty ring");
    let mut life = Life {
        old: ring.clone(),
        ring,
        log: Log::new(LogPlace { pool: POOL, inc: PoolInc(1), blocks: BLOCKS }, &recovered),
        inc: 1,
        checkpoint_seq: 0,
        checkpoint_id: 0,
        appended: Vec::new(),
        next_id: 1,
        durable_id: 0,
        in_flight: Vec::new(),
    };
    let mut restarts = 0;
    while !input.is_done() && restarts < 6 {
        match input.u8() % 16 {
            0..=6 => life.append(input),
            7..=9 => life.write(),
            10..=12 => life.confirm(),
            13 => life.checkpoint(),
            _ => {
                restarts += 1;
                life.crash(input);
            }
        }
    }
    life.damage(input);
}

impl Life {
    fn append(&mut self, input: &mut Input<'_>) {
        let id = self.next_id;
        // Every record carries its id, and is short or long.
        let record = match input.u8() % 4 {
            0 => {
                let record = vec![input.u8(); usize::from(input.u16()) % 8192];
                LogRecord::Promise { epoch: Epoch(id), session: SessionId(1), record }
            }
            1 => LogRecord::Stamp {
                generation: Generation(id),
                regions: (0..u32::from(input.u16()) % 4000).collect(),
            },
            2 => LogRecord::Grow { size: id, from: id / 2, generation: Generation(id) },
            _ => LogRecord::Sealed { generation: Generation(id) },
        };
        if let Ok(token) = self.log.append(KEY, &record) {
            self.appended.push((token.0, id));
            self.next_id += 1;
        }
    }

    fn write(&mut self) {
        while let Some(write) = self.log.poll_write() {
            self.in_flight.push(write);
        }
    }

    fn confirm(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let write = self.in_flight.remove(0);
        put(&mut self.ring, &mut self.old, &write, &mut |_, _| LOG_BLOCK);
        self.log.handle_written(write.batch, Ok(()));
        if let Some(token) = self.log.poll_durable() {
            let durable = self.appended.iter().filter(|(t, _)| *t <= token.0).map(|(_, id)| *id).max();
            self.durable_id = self.durable_id.max(durable.unwrap_or(0));
            self.appended.retain(|(t, _)| *t > token.0);
        }
    }

    fn checkpoint(&mut self) {
        self.checkpoint_seq = self.log.durable_seq();
        self.checkpoint_id = self.durable_id;
        self.log.trim_to(self.checkpoint_seq);
    }

    fn expectation(&self) -> LogExpectation {
        LogExpectation {
            pool: POOL,
            inc: PoolInc(self.inc),
            from_seq: self.checkpoint_seq + 1,
            known_durable: self.log.durable_seq(),
        }
    }

    /// Ids beyond the checkpoint; they must follow it without a gap.
    fn ids(&self, recovered: &Recovered) -> Vec<u64> {
        let beyond = recovered.records.iter().filter(|r| r.seq > self.checkpoint_seq);
        let ids: Vec<u64> = beyond.map(|r| id_of(&r.record)).collect();
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(*id, self.checkpoint_id + 1 + at as u64, "a record is missing, or out of order");
        }
        ids
    }

    /// The power goes: of what was not confirmed each block is there, torn or not there.
    fn crash(&mut self, input: &mut Input<'_>) {
        let (mut whole, mut scratch) = (self.ring.clone(), self.old.clone());
        for write in &self.in_flight {
            put(&mut whole, &mut scratch, write, &mut |_, _| LOG_BLOCK);
        }
        let expect = self.expectation();
        let all = recover(&whole, &expect).expect("everything reached the disk");
        let all = self.ids(&all);
        for write in core::mem::take(&mut self.in_flight) {
            put(&mut self.ring, &mut self.old, &write, &mut |_, _| match input.u8() % 4 {
                0 => 0,
                1 => usize::from(input.u16()) % LOG_BLOCK,
                _ => LOG_BLOCK,
            });
        }
        let recovered = recover(&self.ring, &expect).expect("a crash is no damage");
        let found = self.ids(&recovered);
        let durable = self.durable_id - self.checkpoint_id;
        assert!(
            found.len() as u64 == durable || found == all,
            "{} records of {durable} durable ones and {} in all",
            found.len(),
            all.len()
        );
        self.durable_id = self.checkpoint_id + found.len() as u64;
        self.next_id = self.durable_id + 1;
        self.appended.clear();
        self.inc += 1;
        self.log = Log::new(LogPlace { pool: POOL, inc: PoolInc(self.inc), blocks: BLOCKS }, &recovered);
    }

    /// Bit rot, a block that is gone, one that is as it was before, one that stands elsewhere.
    fn damage(&mut self, input: &mut Input<'_>) {
        let expect = self.expectation();
        let at = input.below(64) * LOG_BLOCK;
        match input.u8() % 4 {
            0 => self.ring[at + input.below(LOG_BLOCK)] ^= 1 << (input.u8() % 8),
            1 => self.ring[at..at + LOG_BLOCK].fill(0),
            2 => self.ring[at..at + LOG_BLOCK].copy_from_slice(&self.old[at..at + LOG_BLOCK]),
            _ => {
                let from = input.below(64) * LOG_BLOCK;
                self.ring.copy_within(from..from + LOG_BLOCK, at);
            }
        }
        let Ok(recovered) = recover(&self.ring, &expect) else { return };
        let found = self.ids(&recovered).len() as u64;
        assert_eq!(found, self.durable_id - self.checkpoint_id, "damage took durable records away");
    }
}

fn id_of(record: &LogRecord) -> u64 {
    match record {
        LogRecord::Promise { epoch, .. } => epoch.0,
        LogRecord::Stamp { generation, .. } | LogRecord::Sealed { generation } => generation.0,
        LogRecord::Grow { size, .. } => *size,
        other => panic!("{other:?} was never appended"),
    }
}

/// Writes as much of each block as `kept` says; what stood there goes to `old`.
fn put(ring: &mut [u8], old: &mut [u8], write: &LogWrite, kept: &mut dyn FnMut(u64, usize) -> usize) {
    let start = usize::try_from(write.position_blocks).expect("small") * LOG_BLOCK;
    for (index, block) in write.bytes.chunks_exact(LOG_BLOCK).enumerate() {
        let at = start + index * LOG_BLOCK;
        let kept = kept(write.batch, index);
        old[at..at + LOG_BLOCK].copy_from_slice(&ring[at..at + LOG_BLOCK]);
        ring[at..at + kept].copy_from_slice(&block[..kept]);
    }
}
