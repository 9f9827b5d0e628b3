//! A replica that is to be trashed, and what may happen to it between the read of its tombstone and the rename.

use weft_crash::races;
use weft_crash::run::Workspace;
use weft_proto::mutants::Broken;

#[test]
fn a_tombstone_that_was_read_before_the_volume_was_opened_again_trashes_nothing() {
    races::reopened(&mut Workspace::new(), Broken::default()).expect("nothing is trashed");
}

#[test]
fn a_record_that_is_not_there_trashes_nothing() {
    races::absent(&mut Workspace::new(), Broken::default()).expect("nothing is trashed");
}
