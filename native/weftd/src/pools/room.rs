//! Room: what is said and done about a pool whose file system fills up.
//!
//! Must always hold:
//! * who asks how full a pool is hears what its gate goes by;
//! * the trash goes before a write has to wait, oldest first, and only what nobody can ask back: copies that their
//!   volume's record does not name any more. Those of a deleted volume are its agent's to decide about.

use weft_control::types::PoolRoom;
use weft_io::file_pool::{FULL_PERCENT, Fill, GO_ON_PERCENT, LOW_PERCENT};

use super::*;

/// A look that is wanted comes so soon: many writes may be refused at once.
const LOOK_SOON_MS: u64 = 100;

/// What a pool remembers of its room.
#[derive(Debug, Default)]
pub(super) struct RoomKept {
    told: (Fill, bool),
    /// An emptying for its sake.
    job: Option<Emptying>,
    /// What stays in the trash, by its entry's name.
    kept: BTreeSet<String>,
    /// Before that there is no use in another one.
    due: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Emptying {
    UnderWay,
    Over { found: bool },
}

/// Of what is in the trash, what goes for a pool's sake: one at a time, the oldest that may.
pub(super) fn choose(pools: &BTreeMap<PoolId, Pool>, id: PoolId, entries: &mut Vec<(PoolId, TrashEntry)>) {
    let kept = pools.get(&id).map(|pool| &pool.room.kept);
    entries.retain(|(_, entry)| kept.is_some_and(|kept| !kept.contains(&entry.name)));
    entries.sort_by_key(|(_, entry)| entry.since_s);
    entries.truncate(1);
}

impl Pools {
    /// Says what has changed since the last call, and makes room where it is needed.
    pub(super) fn drive_room(&mut self, now: Instant) {
        let mut emptied = Vec::new();
        let may_empty = !self.rolled_back;
        for pool in self.pools.values_mut().filter(|p| p.phase == Phase::Serving) {
            let Some(file) = &mut pool.file else { continue };
            if file.take_wants_look() {
                pool.space_due = pool.space_due.min(now.after_ms(LOOK_SOON_MS));
            }
            let fill = file.fill();
            if let Some(Emptying::Over { found }) = pool.room.job.take_if(|job| *job != Emptying::UnderWay) {
                if found {
                    pool.space_due = now;
                    pool.room.due = now.after_ms(LOOK_SOON_MS);
                } else {
                    pool.room.kept.clear();
                    pool.room.due = now.after_ms(TRASH_LOOK_MS);
                }
            }
            let short =
                u128::from(pool.free) * 100 <= u128::from(pool.total) * u128::from(100 - GO_ON_PERCENT);
            if (fill, short) != pool.room.told {
                if fill != pool.room.told.0 {
                    pool.say_room(fill);
                }
                pool.room.told = (fill, short);
                self.out.push_back(PoolsOut::Changed(pool.id));
            }
            if may_empty && short && pool.total > 0 && pool.room.job.is_none() && now >= pool.room.due {
                pool.room.job = Some(Emptying::UnderWay);
                emptied.push(pool.id);
            }
        }
        for id in emptied {
            self.begin_trash(TrashKind::Room(id), None);
        }
    }

    /// An emptying for a pool's sake is over; `found`: the trash held something to look at.
    pub(super) fn room_made(&mut self, id: PoolId, found: bool) {
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.room.job = Some(Emptying::Over { found });
        }
    }
}

impl Pool {
    /// An entry stays in the trash, whatever the room.
    pub(super) fn keep_in_trash(&mut self, name: String) {
        self.room.kept.insert(name);
    }

    fn say_room(&self, fill: Fill) {
        let (pool, path) = (self.id, self.path.display());
        let (free, total) = (self.free, self.total);
        match fill {
            Fill::Full => tracing::error!(
                %pool, %path, free, total,
                "the pool is full ({FULL_PERCENT} %): writes that need room wait until less than {GO_ON_PERCENT} % are used"
            ),
            Fill::Low => tracing::warn!(%pool, %path, free, total, "the pool is {LOW_PERCENT} % full"),
            Fill::Plenty => tracing::info!(%pool, %path, free, total, "the pool has room again"),
        }
    }

    pub(super) fn is_thick(&self, key: ReplicaKey) -> bool {
        self.file.as_ref().is_some_and(|file| file.is_thick(key))
    }

    pub(super) fn room_info(&self) -> PoolRoom {
        match self.file.as_ref().filter(|_| self.phase == Phase::Serving).map_or(Fill::Plenty, FilePool::fill)
        {
            Fill::Plenty => PoolRoom::Plenty,
            Fill::Low => PoolRoom::Low,
            Fill::Full => PoolRoom::Full,
        }
    }
}
