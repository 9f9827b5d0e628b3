//! What may come between a question to the store and what is done with its answer.
//!
//! Must always hold: a race tells by its error what should not have happened.

use weft_proto::ids::{Epoch, Rid, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::mutants::Broken;

use crate::host::{Around, Host};
use crate::run::Workspace;

const ONE: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(1) };
const SIZE: u64 = 64 << 20;

/// A race, and how it is played with a rule broken.
pub type Race = fn(&mut Workspace, Broken) -> Result<(), String>;

/// Every race by its name.
pub const ALL: &[(&str, Race)] = &[("trashed-by-nothing", absent), ("trashed-by-an-old-tombstone", reopened)];

/// Plays a race on a host with a replica that has promised.
fn play(
    work: &mut Workspace,
    broken: Broken,
    race: fn(&mut Host) -> Result<(), String>,
) -> Result<(), String> {
    let around = Around { boot: 1, broken, ..Around::default() };
    let host = Host::start(&work.disk(), &work.state(), &around, work.driver(), None, (true, 1));
    let mut host = match host {
        Ok(host) => host,
        Err(failed) => {
            work.give_back(failed.1);
            return Err(failed.0);
        }
    };
    let ready = host.serving().and_then(|()| host.create(ONE, SIZE)).and_then(|()| host.open(ONE, Epoch(1)));
    let played = ready.and_then(|()| race(&mut host));
    work.give_back(host.end().0);
    played
}

fn refused(kept: Result<(), String>, why: &str) -> Result<(), String> {
    match kept {
        Ok(()) => Err("R15: trashed".to_owned()),
        Err(said) if said.contains(why) => Ok(()),
        Err(said) => Err(format!("{why:?} was not said, but {said}")),
    }
}

/// N5: the store has no record of the volume.
pub fn absent(work: &mut Workspace, broken: Broken) -> Result<(), String> {
    play(work, broken, |host| refused(host.trash_of_nothing(ONE), "absence deletes nothing"))
}

/// N19: a tombstone was read; before the answer is there the volume is restored and opened, and written to. Nothing is
/// trashed by it (R15); by a tombstone of after that, it is.
pub fn reopened(work: &mut Workspace, broken: Broken) -> Result<(), String> {
    play(work, broken, |host| {
        // It is open when the answer comes, with nothing under way.
        let kept = host.trash_late(ONE, |host| {
            host.open(ONE, Epoch(4))?;
            host.write(ONE, 1, 3, 2);
            host.settle();
            Ok(())
        });
        refused(kept, "epoch 2, rev 2) is not above the replica's (epoch 4, rev 4")?;
        // Its promise is on its way to the log.
        let kept = host.trash_late(ONE, |host| {
            host.attach(ONE)?;
            host.ask_promise(ONE, Epoch(8));
            Ok(())
        });
        refused(kept, "under way")?;
        host.settle();
        // A write is on its way to the disk.
        let kept = host.trash_late(ONE, |host| {
            host.write(ONE, 1, 5, 1);
            Ok(())
        });
        refused(kept, "under way")?;
        host.settle();
        let read = host.read(ONE, 3, 3)?;
        if !host.trash_list()?.is_empty() || read.iter().any(|found| found.sectors[0] == 0) {
            return Err(format!("what was written is not there: {read:?}"));
        }
        host.trash(ONE)?;
        if host.trash_list()? != [(ONE.volume, ONE.rid)] || !host.replicas().is_empty() {
            return Err("it is not in the trash".to_owned());
        }
        Ok(())
    })
}
