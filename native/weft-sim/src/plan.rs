//! What a run looks like: topology and fault weights, drawn from the seed (swarm testing: each seed its own).
//!
//! Must always hold: a plan that leans towards a broken rule has only the faults of [`Plan::draw`]'s first part and
//! those that [`Plan::lean_towards`] adds: what shows a rule is not buried under the rest.

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
    /// Hosts with a disk for replicas: the first so many. The others only run sessions, or vote in the store.
    pub data_hosts: usize,
    /// Hosts on which sessions open; empty: any.
    pub owners: Vec<usize>,
    /// Hosts on which the store's members run; empty: it runs elsewhere and everybody reaches it.
    pub store_members: Vec<usize>,
    /// The store's answers are late now and then, in ms; 0: never.
    pub store_slow_ms: u64,
    /// Chance in 100 that a change of the record is shown to a session that watches.
    pub watch: u64,
    /// Pools start by the rules of incarnations (R10).
    pub pool_starts: bool,
    /// A pool's directory is put back to an older image while its process is down.
    pub roll_back_pool: u64,
    /// Two hosts' disks are exchanged for a while.
    pub swap_disks: u64,
    /// Kill a host's process: its replica and its session.
    pub kill_host: u64,
    /// Stop a host in order and start it again.
    pub reboot: u64,
    /// Power off every host at once.
    pub power_off_all: u64,
    /// Chance in 1000 that a write to a disk fails.
    pub write_error: u64,
    /// Chance in 1000 that a flush or a seal fails.
    pub flush_error: u64,
    /// A disk is full for a while.
    pub full: u64,
    /// A block becomes unreadable until it is written again.
    pub latent_error: u64,
    /// A block's content changes by itself.
    pub bit_rot: u64,
    /// Chance in 1000 that a write of one block goes to another place.
    pub misdirect: u64,
    /// Damage is drawn although no other copy of the block may be left.
    pub beyond_redundancy: bool,
    /// Connections keep their order, as TCP does; else each message takes its own time, which is more than can happen.
    pub ordered: bool,
    /// Chance in 1000 that a message is sent again by the transport: 200 ms and more.
    pub loss: u64,
    /// A link is slow for a while, in one direction.
    pub slow_link: u64,
    /// Clocks run fast or slow by up to so many parts in a million (R9 allows 10,000 between two hosts).
    pub drift_ppm: u64,
    /// Chance in 100 that a guest's write covers half blocks.
    pub halves: u64,
    /// The copies are compared (scrub).
    pub scrub: u64,
    /// At the end a part of the cluster that suffices must do alone.
    pub core: bool,
    /// Blocks of the volume at the start; at most as many as a disk of the world has.
    pub size: u64,
    /// The volume grows.
    pub grow: u64,
    /// It shrinks, under a caretaker that takes it over for that.
    pub shrink: u64,
    /// A snapshot is asked for.
    pub snapshot: u64,
    /// One is deleted.
    pub delete_snapshot: u64,
    /// The volume is taken back to one, under a caretaker that takes it over for that.
    pub revert: u64,
    /// Replicas look for images that are of no use.
    pub janitor: u64,
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
            data_hosts: hosts,
            owners: Vec::new(),
            store_members: Vec::new(),
            store_slow_ms: 0,
            watch: 0,
            pool_starts: false,
            roll_back_pool: 0,
            swap_disks: 0,
            kill_host: 0,
            reboot: 0,
            power_off_all: 0,
            write_error: 0,
            flush_error: 0,
            full: 0,
            latent_error: 0,
            bit_rot: 0,
            misdirect: 0,
            beyond_redundancy: false,
            ordered: false,
            loss: 0,
            slow_link: 0,
            drift_ppm: 0,
            halves: 0,
            scrub: 0,
            core: false,
            size: 48,
            grow: 0,
            shrink: 0,
            snapshot: 0,
            delete_snapshot: 0,
            revert: 0,
            janitor: 0,
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
        match mutation {
            Some(mutation) => {
                plan.lean_towards(mutation);
                plan.data_hosts = plan.hosts;
            }
            None => {
                plan.draw_shape(rng);
                plan.draw_rest(rng);
            }
        }
        plan
    }

    /// Which hosts there are, and what runs on them.
    fn draw_shape(&mut self, rng: &mut Rng) {
        let copies = self.copies;
        match rng.below(100) {
            // A single host with a single copy and a store of one member.
            0..8 => {
                (self.hosts, self.copies, self.data_hosts, self.spares) = (1, 1, 1, 0);
                self.store_members = vec![0];
            }
            // Two hosts and a witness that only votes.
            8..28 => {
                (self.hosts, self.copies, self.data_hosts, self.spares) = (3, 2, 2, 0);
                self.owners = vec![0, 1];
                self.store_members = vec![0, 1, 2];
            }
            // Owners without a disk.
            28..45 => {
                self.data_hosts = copies + rng.index(2).min(4 - copies);
                self.hosts = (self.data_hosts + 1 + rng.index(2)).min(5);
                self.owners = (self.data_hosts..self.hosts).collect();
                self.spares = self.data_hosts - copies;
            }
            // Every host has a copy.
            45..60 => (self.hosts, self.data_hosts, self.spares) = (copies, copies, 0),
            _ => self.data_hosts = self.hosts,
        }
        self.min_isr = self.min_isr.min(self.copies as u8);
        if self.store_members.is_empty() {
            self.store_members = match (rng.below(100), self.hosts) {
                (0..35, _) => Vec::new(),
                (35..60, 5) => (0..5).collect(),
                (_, 3..) => {
                    let first = rng.index(self.hosts - 2);
                    (first..first + 3).collect()
                }
                (_, hosts) => vec![rng.index(hosts)],
            };
        }
    }

    /// The faults that no broken rule needs to be seen.
    fn draw_rest(&mut self, rng: &mut Rng) {
        let mut on = |chance: u64, weight: u64| if rng.chance(chance) { weight } else { 0 };
        self.store_slow_ms = on(20, 2000);
        self.watch = on(50, 60);
        self.pool_starts = on(60, 1) == 1;
        self.roll_back_pool = on(25, 60);
        self.swap_disks = on(15, 30);
        self.kill_host = on(50, 60);
        self.reboot = on(30, 40);
        self.power_off_all = on(20, 25);
        self.write_error = on(25, 4);
        self.flush_error = on(20, 15);
        self.full = on(20, 40);
        self.latent_error = on(30, 60);
        self.bit_rot = on(20, 40);
        self.misdirect = on(15, 3);
        self.beyond_redundancy = on(30, 1) == 1;
        self.ordered = on(50, 1) == 1;
        self.loss = on(30, 5);
        self.slow_link = on(30, 60);
        self.drift_ppm = on(50, 4900);
        self.halves = on(40, 30);
        self.scrub = on(50, 60);
        let lose_disk = on(15, 20);
        // A repair of the store without a member needs the operator's assent, and what it loses then is lost (S15).
        self.lose_disk = if self.cached || self.rollback > 0 { 0 } else { lose_disk };
        self.core = on(75, 1) == 1;
        // A pool that goes back in time is known by its incarnation.
        if !self.pool_starts {
            (self.roll_back_pool, self.swap_disks) = (0, 0);
        }
    }

    /// A volume whose size changes, in some runs.
    pub fn draw_sizes(&mut self, rng: &mut Rng) {
        if rng.chance(30) {
            self.size = 1 + rng.below(48);
            self.grow = 100;
            self.shrink = if rng.chance(60) { 60 } else { 0 };
        }
    }

    /// Snapshots, in some runs.
    pub fn draw_snapshots(&mut self, rng: &mut Rng) {
        if rng.chance(40) {
            self.snapshot = 60 + rng.below(200);
            self.delete_snapshot = if rng.chance(70) { 100 } else { 0 };
            self.revert = if rng.chance(50) { 150 } else { 0 };
            self.janitor = if rng.chance(70) { 100 } else { 0 };
        }
    }

    /// What differs from a quiet run, for people.
    #[must_use]
    pub fn line(&self) -> String {
        let list =
            |hosts: &[usize]| hosts.iter().map(|h| format!("h{}", h + 1)).collect::<Vec<_>>().join(" ");
        let mut text = format!(
            "{} hosts, {} with disks; {} copies, min_isr {}, {}, up to {} spares; owners on {}; store on {}; {} blocks, {} requests at once, one every {} ms; a fault every {} ms for {} ms; pools {}; connections {}",
            self.hosts,
            self.data_hosts,
            self.copies,
            self.min_isr,
            if self.cached { "acknowledged from caches" } else { "durable" },
            self.spares,
            if self.owners.is_empty() { "any host".into() } else { list(&self.owners) },
            if self.store_members.is_empty() { "none of them".into() } else { list(&self.store_members) },
            self.blocks,
            self.queue_depth,
            self.guest_every_ms,
            self.fault_every_ms,
            self.fault_ms,
            if self.pool_starts { "start by the store" } else { "start at once" },
            if self.ordered { "in order" } else { "out of order" },
        );
        let weights = [
            ("kill replica", self.kill_replica),
            ("power off", self.power_off),
            ("power off all", self.power_off_all),
            ("kill owner", self.kill_owner),
            ("kill host", self.kill_host),
            ("reboot", self.reboot),
            ("steal", self.steal),
            ("close", self.close),
            ("pause host", self.pause_host),
            ("cut", self.cut),
            ("slow link", self.slow_link),
            ("loss", self.loss),
            ("unread", self.stuck),
            ("store fault", self.store_fault),
            ("store outage", self.store_outage),
            ("store slow ms", self.store_slow_ms),
            ("rollback of the store", self.rollback),
            ("add replica", self.add_replica),
            ("remove replica", self.remove_replica),
            ("stall disk", self.stall_disk),
            ("lose disk", self.lose_disk),
            ("write error", self.write_error),
            ("flush error", self.flush_error),
            ("full", self.full),
            ("latent error", self.latent_error),
            ("bit rot", self.bit_rot),
            ("misdirect", self.misdirect),
            ("roll pool back", self.roll_back_pool),
            ("swap disks", self.swap_disks),
            ("drift ppm", self.drift_ppm),
            ("half blocks", self.halves),
            ("scrub", self.scrub),
            ("watch", self.watch),
            ("blocks at first", self.size % 48),
            ("grow", self.grow),
            ("shrink", self.shrink),
            ("snapshot", self.snapshot),
            ("delete snapshot", self.delete_snapshot),
            ("revert", self.revert),
            ("janitor", self.janitor),
        ];
        text.push_str("; weights:");
        for (name, weight) in weights.into_iter().filter(|(_, w)| *w > 0) {
            text.push_str(&format!(" {name} {weight},"));
        }
        text.trim_end_matches(',').to_string()
    }

    /// Faults that a broken rule needs to be seen; the seed still draws everything else.
    fn lean_towards(&mut self, mutation: Mutation) {
        self.copies = self.copies.max(2);
        self.hosts = self.hosts.max(self.copies + 1);
        self.blocks = self.blocks.min(8);
        self.guest_every_ms = self.guest_every_ms.min(6);
        match mutation {
            Mutation::OutliveCaches => {
                // Every disk loses its power at once, under load, and the owner lives on.
                self.cached = true;
                self.power_off = 450;
                self.kill_owner = 20;
                self.steal = 0;
                // Which members are in sync by a store of the past says nothing of caches.
                self.rollback = 0;
                self.fault_every_ms = self.fault_every_ms.min(300);
            }
            Mutation::TrustLossy | Mutation::SealWithoutFlush | Mutation::LossySource => {
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
            Mutation::SnapNoDrain
            | Mutation::SnapResumeEarly
            | Mutation::SnapBeforeReconcile
            | Mutation::SnapListsSilent
            | Mutation::SnapRetryUnsettled
            | Mutation::SnapDropUnsettled
            | Mutation::SnapReportAtSwap => {
                (self.snapshot, self.delete_snapshot, self.janitor) = (400, 30, 100);
                (self.store_fault, self.kill_owner, self.kill_replica, self.cut) = (30, 80, 80, 80);
                self.guest_every_ms = 2;
                self.queue_depth = 8;
                self.fault_every_ms = self.fault_every_ms.min(200);
                if mutation == Mutation::SnapReportAtSwap {
                    (self.cached, self.rollback) = (false, 150);
                }
            }
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
