//! Deterministic simulation of the real protocol machines, with an oracle and a mutation gate.
//!
//! Must always hold: a seed and a commit reproduce a run exactly; a failing seed prints the one line that
//! replays it.
#![allow(clippy::cast_possible_truncation)] // Numbers of hosts and replicas are single digits here.

pub mod changed;
pub mod disk;
pub mod gate;
pub mod images;
pub mod in_order;
pub mod oracle;
pub mod plan;
pub mod rng;
pub mod scenarios;
pub mod snap_keys;
pub mod stage;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use weft_proto::mutants::{Broken, Mutation};

use crate::world::{Counts, World};

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// Draw a plan that leans towards what shows this broken rule.
    pub lean: Option<Mutation>,
    /// Break it as well; without, the run is the control.
    pub broken: bool,
    /// Keep the history.
    pub verbose: bool,
}

/// Runs one seed; the error tells what was violated, an assertion of the machines included.
pub fn run_seed(seed: u64, run: Run) -> Result<Counts, String> {
    let rule = run.lean.filter(|_| run.broken);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, run.lean, broken(rule), run.verbose);
        let outcome = world.run();
        if run.verbose && outcome.is_ok() {
            world.print_history();
        }
        outcome.map(|()| world.counts)
    }));
    outcome.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_default();
        Err(format!("an assertion failed: {what}"))
    })
}

#[cfg(feature = "mutants")]
fn broken(mutation: Option<Mutation>) -> Broken {
    Broken::rule(mutation)
}

#[cfg(not(feature = "mutants"))]
fn broken(_mutation: Option<Mutation>) -> Broken {
    Broken::default()
}
