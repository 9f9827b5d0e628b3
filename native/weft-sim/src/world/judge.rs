//! What must hold over the global state (protocol.md 4.21).

use super::*;

impl World {
    /// Cached mode: when every in-sync cache is gone, unflushed writes may legally be.
    /// `opened`: a session has just become the owner.
    pub(super) fn era(&mut self, opened: bool) {
        let members: Vec<Id> = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid)).collect();
        let all_lossy = members.iter().all(|r| self.reps[*r].stored.lossy);
        // Members that were taken up after such a loss go on as lossy ones until the next seal. One more loss before it
        // may cost what they had since, and whoever opens then takes any of them for its source (R8).
        let lost_more = members.iter().any(|r| self.reps[*r].cache_went);
        if !self.plan.cached || !all_lossy || !(opened || lost_more) {
            return;
        }
        for member in &members {
            self.reps[*member].cache_went = false;
        }
        let held = self.held();
        self.note(|_| "every in-sync cache is lost".into());
        if let Err(what) = self.oracle.new_era(&held, &self.held_before, self.now) {
            self.fail(what);
        }
        for s in &mut self.sessions {
            // What was called before and is answered later belongs to no era.
            s.guests.retain(|_, asked| !matches!(asked, Asked::Write { .. }));
            s.stale_answers = true;
        }
    }

    /// What the in-sync members hold, per block.
    pub(super) fn held(&self) -> BTreeMap<u64, Vec<Value>> {
        let members: Vec<Id> = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid)).collect();
        let values = |block| members.iter().map(|r| self.reps[*r].stored.disk.value(block)).collect();
        (0..SIZE / BLOCK).map(|block| (block, values(block))).collect()
    }

    /// I6: what is acknowledged is at every member that is in sync by the record, on stable media.
    pub(super) fn check_i6(&mut self, session: Id, block: u64, value: Value) {
        let Some(m) = &self.sessions[session].machine else { return };
        let record = &self.store.record;
        if record.owner.is_none_or(|o| o.session != m.id()) || self.store.rolled_back {
            return;
        }
        let missing = record.in_sync().map(|e| e.rid).find(|rid| {
            self.rep_of(*rid).is_some_and(|rep| {
                let r = &self.reps[rep];
                let trusted = !r.lost && (!r.stored.lossy || !self.plan.cached);
                trusted && r.stored.disk.value(block) != value
            })
        });
        if let Some(rid) = missing {
            self.fail(format!(
                "I6: block {block} was acknowledged with value {value}, {rid} is in sync and does not have it"
            ));
        }
    }

    /// After a clean close all in-sync copies hold the same, by value, everywhere.
    pub(super) fn check_equal(&mut self) -> Result<(), String> {
        if !self.store.record.clean {
            return Ok(());
        }
        let members: Vec<Id> = self
            .store
            .record
            .in_sync()
            .filter_map(|e| self.rep_of(e.rid))
            .filter(|r| !self.reps[*r].lost)
            .collect();
        for block in 0..SIZE / BLOCK {
            let values: Vec<Value> = members.iter().map(|r| self.reps[*r].stored.disk.value(block)).collect();
            if values.windows(2).any(|p| p[0] != p[1]) {
                return Err(
                    self.report(&format!("I10: block {block} differs between sealed copies: {values:?}"))
                );
            }
        }
        Ok(())
    }
}
