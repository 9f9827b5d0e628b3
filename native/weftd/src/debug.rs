//! `weftd debug dump|check PATH`: looks into a pool's directory that no daemon serves.
//!
//! Must always hold: nothing is changed, and what can't be read is said, never guessed.

use std::path::Path;

use serde_json::{Value, json};
use weft_io::pool_dir::{OpenError, PoolDir};
use weft_proto::checkpoint;
use weft_proto::durable::Durable;
use weft_proto::ids::PoolId;
use weft_proto::log::{
    LOG_BLOCK, LogExpectation, LogRecord, MAX_LOG_BLOCKS, MIN_LOG_BLOCKS, ReplicaKey, recover,
};
use weft_proto::payload::Payload as _;
use weft_proto::record::Record;

use crate::errors::{Code, Failure};
use crate::pools::{impossible, read_superblock};

/// What was found in a pool.
#[derive(Debug)]
pub struct Report {
    /// Everything that could be read.
    pub dump: Value,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
}

/// Reads a pool's directory.
pub fn examine(path: &Path) -> Result<Report, Failure> {
    let dir = PoolDir::open(path).map_err(|error| {
        let code = match error {
            OpenError::Locked => Code::STATE_LOCKED,
            _ => Code::POOL_PATH,
        };
        Failure::new(code, format!("{}: {error}", path.display())).with("path", path.display().to_string())
    })?;
    let mut problems = Vec::new();
    let superblock = match read_superblock(dir.superblock()) {
        Ok(superblock) => Some(superblock),
        Err(why) => {
            problems.push(format!("superblock: {why}"));
            None
        }
    };
    let pool = superblock.map_or(PoolId(0), |s| s.pool);
    let mut found = Vec::new();
    match dir.list() {
        Ok(keys) => {
            for key in keys {
                match read_checkpoint(&dir, pool, key) {
                    Ok(chosen) => found.push((key, chosen)),
                    Err(why) => problems.push(format!("{} of volume {}: {why}", key.rid, key.volume)),
                }
            }
        }
        Err(error) => problems.push(format!("replicas: {error}")),
    }
    let log = match dir.read_wal() {
        Ok(ring) => {
            let blocks = (ring.len() / LOG_BLOCK) as u64;
            let from_seq = found.iter().map(|(_, (_, c))| c.log_seq + 1).min().unwrap_or(1);
            let inc = superblock.map(|s| s.inc).unwrap_or_default();
            let expect = LogExpectation { pool, inc, from_seq, known_durable: 0 };
            let said = superblock.map_or(blocks, |s| s.log_blocks);
            if said != blocks {
                Err(format!("it has {blocks} blocks, the superblock says {said}"))
            } else if (MIN_LOG_BLOCKS..=MAX_LOG_BLOCKS).contains(&blocks) {
                recover(ring.bytes(), &expect).map_err(|damage| damage.to_string())
            } else {
                Err(format!("a log of {blocks} blocks, allowed are {MIN_LOG_BLOCKS} to {MAX_LOG_BLOCKS}"))
            }
        }
        Err(error) => Err(error.to_string()),
    };
    let log = match log {
        Ok(recovered) => {
            for entry in &recovered.records {
                let newer =
                    |(key, (_, c)): &&mut (ReplicaKey, Chosen)| *key == entry.key && entry.seq > c.log_seq;
                if let Some((_, (_, checkpoint))) = found.iter_mut().find(newer) {
                    if checkpoint.durable.admits(&entry.record) {
                        checkpoint.durable.apply(&entry.record);
                    } else {
                        problems.push(impossible(entry));
                    }
                }
            }
            let records = recovered.records.iter().map(|e| {
                json!({ "seq": e.seq.to_string(), "volume": e.key.volume, "rid": e.key.rid, "record": shown(&e.record) })
            });
            json!({ "next_seq": recovered.next_seq.to_string(), "truncated_tail": recovered.truncated_tail,
                "clean": recovered.clean, "records": records.collect::<Vec<_>>() })
        }
        Err(why) => {
            problems.push(format!("log: {why}"));
            Value::Null
        }
    };
    for (key, (_, checkpoint)) in &found {
        problems.extend(
            wrong_with(&checkpoint.durable).map(|why| format!("{} of volume {}: {why}", key.rid, key.volume)),
        );
    }
    let replicas = found.iter().map(|(_, (side, c))| {
        let d = &c.durable;
        json!({
            "volume": d.volume, "rid": d.rid, "size": d.size.to_string(), "region_shift": d.region_shift,
            "promised": d.promised, "session": d.session, "sealed": d.sealed.to_string(),
            "unsealed_regions": d.unsealed_regions(),
            "stamped_regions": d.rgm.iter().filter(|g| g.0 > 0).count(), "regions": d.rgm.len(),
            "clean_stop": d.clean_stop, "record": serde_json::from_slice::<Value>(&d.record).ok(),
            "checkpoint": { "file": side.file_name(), "counter": c.counter.to_string(), "log_seq": c.log_seq.to_string() },
        })
    });
    let superblock = superblock.map(|s| {
        json!({
            "pool": s.pool, "cluster": s.cluster, "host": s.host, "inc": s.inc, "intent": s.intent,
            "segment_bytes": s.segment_bytes.to_string(), "log_blocks": s.log_blocks, "created": s.created,
        })
    });
    let replicas: Vec<Value> = replicas.collect();
    Ok(Report { dump: json!({ "superblock": superblock, "log": log, "replicas": replicas }), problems })
}

type Chosen = (checkpoint::Side, checkpoint::Checkpoint);

fn read_checkpoint(dir: &PoolDir, pool: PoolId, key: ReplicaKey) -> Result<Chosen, String> {
    let [a, b] = dir.read_checkpoints(key).map_err(|e| e.to_string())?;
    checkpoint::choose(a.bytes(), b.bytes(), pool, key).map_err(|e| e.to_string())
}

/// What a replica's state can't be when every rule was kept (I3, I8).
fn wrong_with(durable: &Durable) -> Option<String> {
    let newest = durable.rgm.iter().max().copied().unwrap_or_default();
    if newest.epoch() > durable.promised {
        return Some(format!("a region is stamped {newest}, promised is epoch {}", durable.promised));
    }
    if durable.sealed.epoch() > durable.promised {
        return Some(format!("{} is sealed, promised is epoch {}", durable.sealed, durable.promised));
    }
    if durable.promised.0 == 0 {
        return None;
    }
    match Record::parse(&durable.record) {
        Err(error) => Some(format!("the record that it keeps: {error}")),
        Ok(record) if record.vol != durable.volume => {
            Some(format!("it keeps the record of volume {}", record.vol))
        }
        Ok(_) => None,
    }
}

fn shown(record: &LogRecord) -> Value {
    match record {
        LogRecord::Create { size, region_shift } => {
            json!({ "create": { "size": size.to_string(), "region_shift": region_shift } })
        }
        LogRecord::Promise { epoch, session, .. } => {
            json!({ "promise": { "epoch": epoch, "session": session } })
        }
        LogRecord::Stamp { generation, regions } => {
            json!({ "stamp": { "generation": generation.to_string(), "regions": regions } })
        }
        LogRecord::Sealed { generation } => json!({ "sealed": generation.to_string() }),
        LogRecord::Grow { size, from, generation } => {
            json!({ "grow": size.to_string(), "from": from.to_string(), "generation": generation.to_string() })
        }
        LogRecord::Fold { region_shift } => json!({ "fold": region_shift }),
        LogRecord::Cut { size } => json!({ "cut": size.to_string() }),
        LogRecord::Identity { clean_stop, .. } => json!({ "identity": { "clean_stop": clean_stop } }),
        LogRecord::Trashed => json!("trashed"),
        LogRecord::Image { image, attempt, change } => {
            json!({ "image": image.to_string(), "attempt": attempt.to_string(), "change": format!("{change:?}") })
        }
    }
}
