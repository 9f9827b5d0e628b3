//! Who waits for a volume that is open here to be taken back to a snapshot, and what each is answered (R30).
//!
//! Must always hold:
//! * whoever asked is answered once, also when the session ends instead;
//! * it is asked of the machine once for all who wait for the same snapshot: when the first of them is answered, nothing
//!   has been written since.

use std::collections::BTreeMap;

use serde_json::json;
use weft_control::types::{Decimal, RevertStatus, VolumeReverted};
use weft_io::buffer::IoBuf;
use weft_proto::ids::{Instant, SnapId};
use weft_proto::record::Record;
use weft_proto::session::{RevertFailure, RevertView, Session};

use crate::errors::{Code, Failure};
use crate::mail::Answer;
use crate::pools::refuse;
use crate::sessions::head_deleted;

/// See the module.
#[derive(Debug, Default)]
pub struct Reverts {
    waiting: BTreeMap<SnapId, Vec<Answer>>,
}

impl Reverts {
    /// Somebody asks for it.
    pub fn ask(&mut self, now: Instant, machine: &mut Session<IoBuf>, id: SnapId, answer: Answer) {
        let waiting = self.waiting.entry(id).or_default();
        waiting.push(answer);
        if waiting.len() == 1 {
            machine.revert(now, id);
        }
    }

    /// It was done, or can't be.
    pub fn handle(&mut self, machine: &Session<IoBuf>, id: SnapId, outcome: &Result<u64, RevertFailure>) {
        for answer in self.waiting.remove(&id).unwrap_or_default() {
            match outcome {
                Ok(bytes) => {
                    let done =
                        VolumeReverted { snapshot: id, epoch: machine.epoch(), bytes: Decimal(*bytes) };
                    let _ = answer.send(Ok(json!(done)));
                }
                Err(why) => refuse(answer, failure_of(machine, id, why)),
            }
        }
    }

    /// The session is over.
    pub fn handle_ended(&mut self, failure: &Failure) {
        for answer in std::mem::take(&mut self.waiting).into_values().flatten() {
            refuse(answer, failure.clone());
        }
    }
}

/// Is the snapshot needed until the volume has been taken back to it?
#[must_use]
pub fn needs(record: Option<&Record>, id: SnapId) -> bool {
    record.and_then(|record| record.reverting.as_ref()).is_some_and(|reverting| reverting.snap == id)
}

/// As seen from outside.
#[must_use]
pub fn status(view: RevertView) -> RevertStatus {
    RevertStatus {
        snapshot: view.snap,
        total_bytes: view.total.map(Decimal),
        done_bytes: Decimal(view.done),
        waits: view.waits,
    }
}

fn failure_of(machine: &Session<IoBuf>, id: SnapId, why: &RevertFailure) -> Failure {
    let (volume, record) = (machine.volume(), machine.record());
    let failure = match why {
        RevertFailure::Attached => {
            let host = record.and_then(|record| record.owner).map(|owner| owner.node.to_string());
            let message = format!("a guest has volume {volume}: it is taken back while nobody uses it");
            Failure::new(Code::OPEN_ELSEWHERE, message).with("host", host)
        }
        RevertFailure::HeadDeleted => head_deleted(volume),
        RevertFailure::NoSnapshot => {
            Failure::new(Code::NO_SNAPSHOT, format!("volume {volume} has no snapshot {id}, or it is going"))
        }
        RevertFailure::Size { snapshot } => {
            let size = record.map_or(0, |record| record.size);
            let message = format!("volume {volume} has {size} bytes, snapshot {id} has {snapshot}");
            let failure = Failure::new(Code::REVERT_SIZE, message).with("size", size.to_string());
            failure.with("snapshot_size", snapshot.to_string())
        }
        RevertFailure::TooFew { have } => {
            let min_isr = record.map_or(1, |record| record.policy.min_isr);
            let message = format!(
                "{have} copies of volume {volume} that are in sync have snapshot {id}, and writes need {min_isr}"
            );
            Failure::new(Code::REVERT_TOO_FEW, message).with("have", *have).with("min_isr", min_isr)
        }
        RevertFailure::Waits(what) => {
            let message = format!("volume {volume} is not taken back to snapshot {id}: it waits for {what}");
            Failure::new(Code::WAITING, message).with("reason", what.clone())
        }
        RevertFailure::Closing => {
            Failure::new(Code::CHANGING, format!("volume {volume} is being closed here"))
        }
        RevertFailure::Replaced => {
            let other = record.and_then(|record| record.reverting.as_ref()).map(|r| r.snap.to_string());
            let message = format!("volume {volume} is being taken back to another snapshot than {id}");
            Failure::new(Code::REVERT_REPLACED, message).with("other", other)
        }
    };
    failure.with("volume", volume.to_string()).with("snapshot", id.to_string())
}
