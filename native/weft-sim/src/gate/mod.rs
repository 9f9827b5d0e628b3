//! The mutation gate: a rule is broken, and the world or a plot written for it must show that.
//!
//! Must always hold: what shows a broken rule is silent with the rule in force, in the same run; else nothing was
//! shown.

mod plots;

use weft_proto::mutants::Mutation;

use crate::scenarios::{self, Plot};
use crate::stage::Play;
use crate::{Run, broken, run_seed};

/// Plays of a plot within which a broken rule must be shown; the first has the delays that the plot was written with.
const PLAYS: u64 = 4;

/// How a broken rule was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By which run: `seed 12`, or a plot's name.
    pub by: String,
    /// Runs until then.
    pub runs: u64,
    /// What was violated, in a line.
    pub what: String,
}

/// What the gate says of one broken rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How it was found, if it was.
    pub found: Option<Found>,
    /// What failed with the rule in force as well: each is a fault of the gate or of the product.
    pub false_alarms: Vec<String>,
}

/// Looks for a broken rule: by its plots if there are any, else by `budget` seeds from `first` on.
#[must_use]
pub fn judge(mutation: Mutation, first: u64, budget: u64) -> Verdict {
    let mut verdict = Verdict::default();
    let plots = plots_of(mutation);
    if plots.is_empty() {
        by_seeds(&mut verdict, mutation, first, budget);
    } else {
        by_plots(&mut verdict, mutation, &plots);
    }
    verdict
}

fn by_seeds(verdict: &mut Verdict, mutation: Mutation, first: u64, budget: u64) {
    let lean = Some(mutation);
    for seed in first..first.saturating_add(budget) {
        let Err(what) = run_seed(seed, Run { lean, broken: true, verbose: false }) else { continue };
        let control = run_seed(seed, Run { lean, broken: false, verbose: false });
        let found = Found { by: format!("seed {seed}"), runs: seed - first + 1, what: first_line(&what) };
        if verdict.take(found, control) {
            return;
        }
    }
}

fn by_plots(verdict: &mut Verdict, mutation: Mutation, plots: &[&'static Plot]) {
    let mut runs = 0;
    for plot in plots {
        for number in 0..PLAYS {
            runs += 1;
            let play = Play::breaking(number, broken(Some(mutation)));
            let Err(what) = scenarios::outcome(plot, &play) else { continue };
            let control = scenarios::outcome(plot, &Play::new(number));
            let by = format!("plot {} {}", plot.number, plot.name);
            if verdict.take(Found { by, runs, what: first_line(&what) }, control) {
                return;
            }
        }
    }
}

impl Verdict {
    /// True if the find counts, because the same run holds with the rule in force.
    fn take(&mut self, found: Found, control: Result<impl Sized, String>) -> bool {
        match control {
            Ok(_) => self.found = Some(found),
            Err(what) => self.false_alarms.push(format!("{}: {}", found.by, first_line(&what))),
        }
        self.found.is_some()
    }

    /// Is it found, and by nothing that fails anyway?
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.found.is_some() && self.false_alarms.is_empty()
    }
}

/// An assertion's text without the place that it stands at.
fn first_line(what: &str) -> String {
    let mut lines = what.lines().filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let line = if first.starts_with("panicked at") { lines.next().unwrap_or(first) } else { first };
    line.to_string()
}

fn plots_of(mutation: Mutation) -> Vec<&'static Plot> {
    let named = plots::SHOWN_BY.iter().filter(|(m, _)| *m == mutation).map(|(_, name)| *name);
    named.map(|name| plot(name).unwrap_or_else(|| panic!("no plot {name}"))).collect()
}

fn plot(name: &str) -> Option<&'static Plot> {
    let every = scenarios::ALL.iter().copied().flatten().chain(plots::OWN);
    every.into_iter().find(|plot| plot.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_the_plots_that_are_named_for_it() {
        for (_, name) in plots::SHOWN_BY {
            assert!(plot(name).is_some(), "{name}");
        }
        for own in plots::OWN {
            assert!(plots::SHOWN_BY.iter().any(|(_, name)| *name == own.name), "{} is for nothing", own.name);
        }
    }

    #[test]
    fn the_plots_of_the_gate_go_as_they_must_with_every_rule_in_force() {
        for plot in plots::OWN {
            for number in 0..PLAYS {
                scenarios::outcome(plot, &Play::new(number))
                    .unwrap_or_else(|what| panic!("{}: {what}", plot.name));
            }
        }
    }

    #[test]
    fn what_fails_in_any_case_shows_nothing() {
        let found = || Found { by: "seed 1".into(), runs: 1, what: "I6".into() };
        let mut verdict = Verdict::default();
        assert!(!verdict.take(found(), Err::<(), _>("I6 as well".into())));
        assert!(verdict.take(found(), Ok(())) && !verdict.is_good(), "{verdict:?}");
    }
}
