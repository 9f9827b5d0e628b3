//! What a run looks like: topology and fault weights, drawn from the seed (swarm testing: each seed its own).

use weft_proto::mutants::Mutation;

use crate::rng::Rng;

/// The shape of one run. Weights are chances in 1000 per fault opportunity.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Hosts; sessions run on any of them.
    pub hosts: usize,
    /// Replicas in the record at the start, one a host from host 0 on.
    pub copies: usize,
    /// Fewest in-sync members under which writes complete.
    pub min_isr: u8,
    /// Replicas on further hosts that may be added.
    pub spares: usize,
    /// Acknowledge from caches.
    pub cached: bool,
    /// How long faults go on, in ms of simulated time.
    pub fault_ms: u64,
    /// Mean ms between fault opportunities.
    pub fault_every_ms: u64,
    /// Guest requests under way at once.
    pub queue_depth: usize,
    /// Mean ms between guest requests.
    pub guest_every_ms: u64,
    /// Blocks that guests use; few, so that requests meet.
    pub blocks: u64,
    /// Kill and restart a replica's process.
    pub kill_replica: u64,
    /// Power off a replica's host.
    pub power_off: u64,
    /// Kill the owner's process.
    pub kill_owner: u64,
    /// Steal from a living owner.
    pub steal: u64,
    /// Close in order and open elsewhere.
    pub close: u64,
    /// Stop a host for a while.
    pub pause_host: u64,
    /// Cut a link, in one or both directions.
    pub cut: u64,
    /// Chance in 100 that a store call goes wrong.
    pub store_fault: u64,
    /// The store is away for a while.
    pub store_outage: u64,
    /// Ask for a spare replica.
    pub add_replica: u64,
    /// Ask for the removal of a replica.
    pub remove_replica: u64,
    /// The store is restored from a backup, and repaired later.
    pub rollback: u64,
    /// A replica's disk stalls for a while.
    pub stall_disk: u64,
    /// A replica's disk is lost for good.
    pub lose_disk: u64,
    /// Chance in 100 that a request stays unread in a socket's buffer for up to 3 s.
    pub stuck: u64,
    /// Intervals of an epoch before a new one is asked for (R21): few in some runs.
    pub renew_interval: u32,
    /// Every host has read the store since the backup that it is put back to.
    pub all_hosts_know: bool,
}

impl Plan {
    /// A plan of this seed's own.
    #[must_use]
    pub fn draw(rng: &mut Rng, mutation: Option<Mutation>) -> Plan {
        let copies = 1 + rng.index(3);
        let hosts = (copies + 1 + rng.index(2)).min(5);
        let mut on = |chance: u64, weight: u64| if rng.chance(chance) { weight } else { 0 };
        let mut plan = Plan {
            hosts,
            copies,
            min_isr: 1,
            spares: 0,
            cached: false,
            fault_ms: 12_000,
            fault_every_ms: 250,
            queue_depth: 4,
            guest_every_ms: 8,
            blocks: 24,
            kill_replica: on(70, 120),
            power_off: on(40, 60),
            kill_owner: on(60, 60),
            steal: on(50, 60),
            close: on(40, 50),
            pause_host: on(50, 60),
            cut: on(60, 120),
            store_fault: on(50, 15),
            store_outage: on(30, 30),
            add_replica: on(40, 60),
            remove_replica: on(30, 30),
            rollback: 0,
            stall_disk: on(40, 60),
            lose_disk: 0,
            stuck: 1,
            renew_interval: 1 << 23,
            all_hosts_know: true,
        };
        plan.cached = rng.chance(30);
        plan.spares = if hosts > copies { rng.index(hosts - copies + 1) } else { 0 };
        plan.queue_depth = 1 + rng.index(8);
        plan.guest_every_ms = 1 + rng.below(30);
        plan.blocks = 2 + rng.below(46);
        plan.fault_every_ms = 60 + rng.below(500);
        if copies > 1 && rng.chance(30) {
            plan.min_isr = 2;
        }
        if rng.chance(20) {
            plan.renew_interval = 3;
        }
        plan.rollback = if rng.chance(6) && !plan.cached { 60 } else { 0 };
        if let Some(mutation) = mutation {
            plan.lean_towards(mutation);
        }
        plan
    }

    /// Faults that a broken rule needs to be seen; the seed still draws everything else.
    fn lean_towards(&mut self, mutation: Mutation) {
        self.copies = self.copies.max(2);
        self.hosts = self.hosts.max(self.copies + 1);
        self.blocks = self.blocks.min(8);
        self.guest_every_ms = self.guest_every_ms.min(6);
        match mutation {
            Mutation::TrustLossy
            | Mutation::SealWithoutFlush
            | Mutation::OutliveCaches
            | Mutation::LossySource => {
                self.cached = true;
                if mutation == Mutation::LossySource {
                    self.min_isr = 2;
                }
                self.power_off = 150;
                self.kill_owner = self.kill_owner.max(80);
            }
            Mutation::PromiseToEpochAlone | Mutation::NoWatermark => {
                self.cached = false;
                // A promise that is bound to a session guards hosts that don't know, too.
                self.all_hosts_know = mutation == Mutation::NoWatermark;
                self.rollback = 150;
                self.steal = 150;
                self.cut = 150;
                self.kill_replica = 120;
            }
            Mutation::RereadSettles | Mutation::UnknownIsFailed | Mutation::UnknownRemovalCounts => {
                self.store_fault = 40;
                self.kill_replica = 150;
                self.kill_owner = 80;
                self.cut = 150;
            }
            Mutation::AdmitBeforePausedWrite => {
                // With caches lost and a disk gone as well, waiting for an operator is right: nothing to show.
                self.cached = false;
                self.min_isr = 2;
                self.copies = 2;
                self.hosts = 4;
                self.spares = 2;
                self.add_replica = 300;
                self.lose_disk = 150;
                self.kill_owner = 120;
                self.stuck = 15;
                self.fault_every_ms = 300;
                (self.kill_replica, self.power_off, self.cut, self.steal, self.close) = (20, 0, 0, 0, 0);
                (self.store_outage, self.stall_disk, self.pause_host, self.remove_replica) = (0, 0, 0, 0);
            }
            Mutation::ResyncWithoutUnion => {
                // A write that one member got, whose acknowledgement was lost, an owner that dies early, and few
                // other writes: any of them to the same region would stamp the source as well.
                self.copies = 2;
                self.min_isr = 1;
                self.blocks = 48;
                self.guest_every_ms = 60;
                self.kill_replica = 150;
                self.kill_owner = 150;
                self.cut = 150;
                self.fault_every_ms = self.fault_every_ms.min(250);
            }
            Mutation::IntervalsWrap => self.renew_interval = 3,
            Mutation::NoFence => {
                self.steal = 150;
                self.pause_host = 150;
                self.cut = 120;
            }
            Mutation::DropKeepsAttachment | Mutation::EarlyUnlock => {
                self.kill_replica = 150;
                self.cut = 250;
                self.stall_disk = 150;
                self.blocks = 3;
                self.queue_depth = 4;
            }
            _ => {
                self.kill_replica = 150;
                self.kill_owner = 100;
                self.cut = 120;
                self.steal = 60;
            }
        }
    }
}
