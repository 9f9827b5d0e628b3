//! Every legal state that a power cut leaves is recovered as promised, and would not be without the flushes.

use weft_crash::gate::{without_flushes, workloads};
use weft_crash::run::Budget;

/// A process is killed between blocking calls only: what a call had made and not synced is for the next start to sync.
const WITHIN_A_CALL: &str = "needed after a kill in the middle of a blocking call, which no workload plays";
/// A replica that lost what was made before its first checkpoint counts as unfinished and is made again; a file that
/// lost its length gets it with its first durable write.
const MADE_AGAIN: &str =
    "keeps space and length reserved (R20); without it nothing that was answered is lost";

/// Flushes without which no workload loses anything, and why they are there all the same.
const NOT_NEEDED: &[(&str, &str)] = &[
    ("fsync ., at the start", WITHIN_A_CALL),
    ("fsync pool, at the start", WITHIN_A_CALL),
    ("fsync pool/images, at the start", WITHIN_A_CALL),
    ("fsync pool/images/R, at the start", WITHIN_A_CALL),
    ("fsync pool/images/R/S.tmp/image.a", MADE_AGAIN),
    ("fsync pool/images/R/S.tmp/image.b", MADE_AGAIN),
    ("fsync pool/replicas, at the start", WITHIN_A_CALL),
    ("fsync pool/replicas/R, at the start", WITHIN_A_CALL),
    ("fsync pool/replicas/R.tmp/meta.b", MADE_AGAIN),
    (
        "fsync pool/replicas/R/crc, at the start",
        "needed for pages that a kill left unflushed and a seal finds right",
    ),
    ("fsync pool/replicas/R/meta.a, at the start", WITHIN_A_CALL),
    ("fsync pool/replicas/R/meta.b, at the start", WITHIN_A_CALL),
    ("fsync pool/replicas/R/seg", MADE_AGAIN),
    ("fsync pool/trash, at the start", WITHIN_A_CALL),
];

#[test]
fn every_power_cut_is_survived_and_every_flush_is_needed() {
    let outcomes = workloads(0, &Budget::SHORT, "");
    let violations: Vec<_> = outcomes.iter().filter_map(|o| o.result.as_ref().err()).collect();
    assert!(violations.is_empty(), "{}", violations[0]);

    let missed = without_flushes(&outcomes);
    let silent: Vec<_> = missed.iter().filter(|m| m.violation.is_none()).map(|m| m.class.as_str()).collect();
    let known: Vec<_> = NOT_NEEDED.iter().map(|(class, _)| *class).collect();
    assert_eq!(silent, known);
}
