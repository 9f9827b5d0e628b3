//! Every case ends as its table says: broken rules are found, the unbroken models are clean within their bounds.
//!
//! A checker that finds nothing when a rule is broken would prove nothing when none is, so these tests guard the
//! checker as much as the protocol. Cases run in groups, each group one test, so that each takes seconds.

use weft_model::cases::{CASES, Case, Expected, Setup, all, named};
use weft_model::cbt;
use weft_model::claims;
use weft_model::core::{self, Core};
use weft_model::disk;
use weft_model::explore::{Outcome, Walks, walk};
use weft_model::image;
use weft_model::lease::{self, Lease};
use weft_model::liar;
use weft_model::pool;
use weft_model::register;
use weft_model::revert;
use weft_model::size;
use weft_model::snapshot;
use weft_model::trash;

/// Compares a run with its case; the text is empty when they agree.
fn verdict(case: &Case) -> String {
    let report = case.run(case.max_states);
    let found = match report.outcome {
        Outcome::Exhausted => Expected::Exhausted,
        Outcome::Bounded => Expected::Bounded,
        Outcome::Violated { ref trace, .. } => match case.expected {
            Expected::Walked(seed, _) => Expected::Walked(seed, trace.len()),
            _ => Expected::Steps(trace.len()),
        },
    };
    println!("{:<38} {:?} {} states; {}", case.name, found, report.visited, report.counts);
    if found == case.expected {
        return String::new();
    }
    format!("{}: wanted {:?}, found {:?}\n", case.name, case.expected, found)
}

fn all_as_expected(cases: &[&Case]) {
    let wrong: String = cases.iter().map(|case| verdict(case)).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

fn broken_core(heavy: bool) -> Vec<&'static Case> {
    let is_heavy = |case: &&Case| case.max_states > 1_000_000;
    let broken = |case: &&Case| matches!(case.setup, Setup::Core(config) if config.mutation.is_some());
    CASES.iter().filter(broken).filter(|case| is_heavy(case) == heavy).collect()
}

#[test]
fn every_broken_rule_with_a_short_trace_is_found() {
    all_as_expected(&broken_core(false));
}

#[test]
fn every_broken_rule_with_a_long_trace_is_found() {
    let cases: Vec<_> =
        broken_core(true).into_iter().filter(|case| case.name != "seal-without-flush").collect();
    all_as_expected(&cases);
}

#[test]
fn a_seal_without_flush_is_found_in_cached_mode() {
    all_as_expected(&[named("seal-without-flush").expect("a case")]);
}

#[test]
fn every_part_of_the_read_lease_rule_is_needed_or_known_not_to_be() {
    let light = |case: &&Case| case.max_states <= 1_500_000;
    let broken = |case: &&Case| matches!(case.setup, Setup::Lease(config) if config.mutation.is_some());
    all_as_expected(&CASES.iter().filter(broken).filter(light).collect::<Vec<_>>());
}

#[test]
fn a_lease_needs_the_members_whose_change_is_unsettled() {
    let names = ["lease-joiner-not-asked", "lease-removed-not-asked"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn a_thief_must_not_read_while_it_waits() {
    // Found by a random walk of 45 steps: the read of the second thief shows a write that nobody acknowledged, and
    // the first owner, still with its lease, returns the older value after it.
    all_as_expected(&[named("lease-reads-while-waiting").expect("a case")]);
}

#[test]
fn the_unbroken_core_is_clean_in_one_region_of_one_block() {
    all_as_expected(&["core", "core-small"].map(|name| named(name).expect("a case")));
}

#[test]
fn the_unbroken_core_is_clean_with_two_blocks_and_three_replicas() {
    let names = ["core-two-blocks", "core-three-replicas", "core-fine-bitmap"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn the_unbroken_core_is_clean_with_late_swaps_and_best_effort_writes() {
    all_as_expected(
        &["core-late", "core-best-effort", "core-cached"].map(|name| named(name).expect("a case")),
    );
}

#[test]
fn the_unbroken_core_is_clean_with_rescue_joins() {
    all_as_expected(&["core-rescue", "core-rescue-open"].map(|name| named(name).expect("a case")));
}

#[test]
fn the_unbroken_core_is_clean_with_changes_of_the_ack_mode_and_fills_that_go_on() {
    let names = ["core-ack-mode", "core-fill", "core-renew"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn the_unbroken_core_is_clean_when_the_store_is_rebuilt_a_copy_forced_or_damaged() {
    let names = ["core-rebuild", "core-force", "core-damage"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn a_restored_store_is_harmless_only_if_somebody_who_is_asked_knows() {
    all_as_expected(&["core-restored", "core-restored-unknown"].map(|name| named(name).expect("a case")));
}

#[test]
fn the_unbroken_lease_never_serves_a_stale_read() {
    let names = ["lease", "lease-small", "lease-chain", "lease-reconfigure"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn a_handover_needs_no_wait_and_loses_nothing() {
    let names = ["handover", "handover-beating", "handover-chain"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn a_revoked_host_is_fenced_by_another_without_a_stale_read() {
    let names = ["fence-by-other", "fence-by-other-handover"];
    all_as_expected(&names.map(|name| named(name).expect("a case")));
}

#[test]
fn a_host_that_lies_bricks_no_volume_and_writes_in_nobodys_session() {
    all_as_expected(&liar::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn what_hosts_tell_each_other_of_the_store_is_no_truth_and_is_not_lost() {
    all_as_expected(&claims::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn snapshots_hold_what_their_barrier_saw() {
    all_as_expected(&snapshot::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn an_image_reads_what_its_barrier_saw_whatever_becomes_of_its_neighbours() {
    all_as_expected(&image::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn a_block_that_differs_between_snapshots_is_said_to_have_changed() {
    all_as_expected(&cbt::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn a_volume_that_is_taken_back_is_whole_whoever_dies() {
    all_as_expected(&revert::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn a_register_is_linearisable_through_changes_of_its_replicas() {
    all_as_expected(&register::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn a_pool_that_was_put_back_never_serves_and_no_other_is_refused() {
    all_as_expected(&pool::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn nothing_that_a_living_volume_names_is_destroyed() {
    all_as_expected(&trash::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn a_volume_that_grows_over_what_was_cut_off_reads_zero_there() {
    all_as_expected(&size::CASES.iter().collect::<Vec<_>>());
}

#[test]
fn a_request_that_outlives_its_process_never_lands_on_newer_data() {
    all_as_expected(&disk::CASES.iter().collect::<Vec<_>>());
}

/// Walks go where the search can't: three sessions, many epochs, every feature that can be combined.
#[test]
fn long_random_walks_of_the_core_find_nothing() {
    let wide =
        core::Config { replicas: 3, sessions: 3, blocks: 2, writes: 6, max_epoch: 14, ..Default::default() };
    let late = core::LateSwaps::All;
    let configs = [
        wide,
        core::Config { late_swaps: late, best_effort: true, fine_bitmap: true, ..wide },
        core::Config { cached: true, cache_losses: 3, ..wide },
        core::Config { rescue: true, rescue_open: true, min_isr: 2, in_sync: 0b011, ..wide },
        core::Config { force: true, resume_fill: true, renew: true, damage: true, ..wide },
        core::Config { ack_changes: 4, cache_losses: 2, resume_fill: true, renew: true, ..wide },
    ];
    for (number, config) in (1u64..).zip(configs) {
        let report = walk(&Core(config), Walks { count: 4_000, length: 160, seed: number });
        println!("walks {number}: {} steps; {}", report.visited, report.counts);
        assert!(report.is_clean(), "seed {number}: {:#?}", report.outcome);
        let counts = report.counts;
        assert!(counts.writes_acked > 8_000 && counts.admitted > 500 && counts.removed > 800, "{counts}");
    }
}

#[test]
fn long_random_walks_of_the_lease_find_nothing() {
    let wide = lease::Config {
        replicas: 3,
        sessions: 3,
        writes: 6,
        max_epoch: 14,
        in_sync: 0b111,
        drift: true,
        reconfigure: true,
        ..Default::default()
    };
    let configs =
        [wide, lease::Config { in_sync: 0b011, lease: 4, ..wide }, lease::Config { handover: true, ..wide }];
    for (number, config) in (1u64..).zip(configs) {
        let report = walk(&Lease(config), Walks { count: 40_000, length: 160, seed: number });
        println!("walks {number}: {} steps; {}", report.visited, report.counts);
        assert!(report.is_clean(), "seed {number}: {:#?}", report.outcome);
        let counts = report.counts;
        assert!(counts.reads_served > 5_000 && counts.writes_acked > 5_000, "{counts}");
    }
}

#[test]
fn long_random_walks_of_the_small_models_find_nothing() {
    const BOUNDED: &[&str] = &["image-everything", "snapshot-everything"];
    for name in BOUNDED {
        let case = named(name).expect("a case");
        let report = case.setup.walk(Walks { count: 100_000, length: 60, seed: 7 });
        println!("walks of {name}: {} steps; {}", report.visited, report.counts);
        assert!(report.is_clean(), "{name}: {:#?}", report.outcome);
        assert!(report.visited > 2_000_000, "{name}: {} steps", report.visited);
    }
}

/// The walks are no decoration: in the same wide bounds they find broken rules too.
#[test]
fn random_walks_find_broken_rules() {
    let wide =
        core::Config { replicas: 3, sessions: 3, blocks: 2, writes: 6, max_epoch: 14, ..Default::default() };
    for mutation in
        [core::Mutation::NoUnion, core::Mutation::BaseCurrent, core::Mutation::JoinIgnoresInFlight]
    {
        let config = core::Config { mutation: Some(mutation), ..wide };
        let report = walk(&Core(config), Walks { count: 20_000, length: 160, seed: 21 });
        assert!(!report.is_clean(), "{mutation:?}");
    }
    let wide = lease::Config {
        sessions: 3,
        replicas: 3,
        writes: 6,
        max_epoch: 12,
        lease: 4,
        reconfigure: true,
        ..Default::default()
    };
    for mutation in
        [lease::Mutation::NoWait, lease::Mutation::LeaseAnyMember, lease::Mutation::RemovedNotInLease]
    {
        let config = lease::Config { mutation: Some(mutation), ..wide };
        let report = walk(&Lease(config), Walks { count: 60_000, length: 160, seed: 5 });
        assert!(!report.is_clean(), "{mutation:?}");
    }
}

#[test]
fn every_mutation_has_a_case() {
    for (name, mutation) in core::Mutation::ALL {
        let case = named(name).unwrap_or_else(|| panic!("{name} has no case"));
        assert!(matches!(case.setup, Setup::Core(config) if config.mutation == Some(mutation)), "{name}");
    }
    for (name, mutation) in lease::Mutation::ALL {
        let case = named(name).unwrap_or_else(|| panic!("{name} has no case"));
        assert!(matches!(case.setup, Setup::Lease(config) if config.mutation == Some(mutation)), "{name}");
    }
}

#[test]
fn every_mutation_of_the_small_models_has_a_case() {
    fn missing<M: std::fmt::Debug>(all: &[M], cases: &[Case]) -> Vec<String> {
        let named: Vec<_> = cases.iter().filter_map(|case| case.setup.mutation()).collect();
        all.iter().map(|mutation| format!("{mutation:?}")).filter(|name| !named.contains(name)).collect()
    }
    let missing = [
        missing(cbt::Mutation::ALL, cbt::CASES),
        missing(claims::Mutation::ALL, claims::CASES),
        missing(disk::Mutation::ALL, disk::CASES),
        missing(image::Mutation::ALL, image::CASES),
        missing(liar::Mutation::ALL, liar::CASES),
        missing(size::Mutation::ALL, size::CASES),
        missing(trash::Mutation::ALL, trash::CASES),
        missing(pool::Mutation::ALL, pool::CASES),
        missing(register::Mutation::ALL, register::CASES),
        missing(revert::Mutation::ALL, revert::CASES),
        missing(snapshot::Mutation::ALL, snapshot::CASES),
    ];
    assert!(missing.concat().is_empty(), "no case: {missing:?}");
}

#[test]
fn names_of_cases_are_unique() {
    for (number, case) in all().enumerate() {
        assert!(all().take(number).all(|other| other.name != case.name), "{}", case.name);
    }
}
