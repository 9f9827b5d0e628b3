//! The scenarios of docs/scenarios.md that the stage plays: a registry of plots, each a test and playable by its
//! number.
//!
//! ```text
//! npm run sim -- --scenario F2                 the plot, step by step
//! npm run sim -- --scenario F2 --seeds 100     a hundred plays, each with delays of its own
//! npm run sim -- --scenario all                every plot
//! ```
//!
//! Must always hold:
//! * a plot asserts its outcome itself, and plays alike whether a test or the command plays it;
//! * what exists, where else a scenario is tested and what is not built is read from docs/scenarios.md and from the
//!   `plots!` lists, nowhere else; test/scenarios-table.test.ts holds them together.

mod copies;
mod d;
mod f;
mod groups;
mod headless;
mod m;
mod n;
mod p;
mod reverts;
mod s;
mod snaps;
mod table;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use serde_json::{Value, json};

use crate::stage::Play;

pub use self::table::{Row, rows};

/// A scenario's story, written by hand.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    /// The scenario's number; several plots may tell one scenario.
    pub number: &'static str,
    /// What comes of it, as a function's name.
    pub name: &'static str,
    /// Plays it; panics where the outcome is not the expected one.
    pub run: fn(&Play),
}

/// A letter's plots, in the order of their numbers, and a test of each.
macro_rules! plots {
    ($($number:ident => $name:ident,)*) => {
        pub(super) const PLOTS: &[crate::scenarios::Plot] = &[$(crate::scenarios::Plot {
            number: stringify!($number),
            name: stringify!($name),
            run: $name,
        }),*];

        #[cfg(test)]
        mod tests {
            $(#[test]
            fn $name() {
                crate::scenarios::play_as_test(super::$name);
            })*
        }
    };
}
use plots;

/// Every plot.
pub const ALL: [&[Plot]; 11] = [
    f::PLOTS,
    m::PLOTS,
    p::PLOTS,
    s::PLOTS,
    d::PLOTS,
    snaps::PLOTS,
    copies::PLOTS,
    groups::PLOTS,
    headless::PLOTS,
    reverts::PLOTS,
    n::PLOTS,
];

/// Plays that a test makes of each plot: the written one, and some with other delays.
#[cfg(test)]
const TEST_PLAYS: u64 = 4;

#[cfg(test)]
fn play_as_test(plot: fn(&Play)) {
    for number in 0..TEST_PLAYS {
        plot(&Play::new(number));
    }
}

/// `--scenario`: plays the plots of a number, or of `all`, in `plays` variants from `first` on; prints what happened
/// and gives the report. An error says what there is instead, or where the scenario is tested.
pub fn play(asked: &str, first: u64, plays: u64) -> Result<(Value, bool), String> {
    let chosen = choose(asked)?;
    let all = asked.eq_ignore_ascii_case("all");
    let mut lines = Vec::new();
    let mut number = "";
    for plot in &chosen {
        if !all && number != plot.number {
            number = plot.number;
            let title = table::row(plot.number).map_or("", |row| row.title);
            println!("{number}  {title}");
        }
        let outcome = plays_of(plot, first, plays);
        let told = plot.name.replace('_', " ");
        match &outcome {
            Err(failed) => {
                println!("\n{}", failed.history.join("\n"));
                println!("{} FAILED: {told}\n{}", plot.number, failed.what);
                println!("replay: npm run sim -- --scenario {} --seed {}", plot.number, failed.play);
            }
            Ok(history) if !all => println!("\n{}\n{} ok: {told}", history.join("\n"), plot.number),
            Ok(_) => println!("{} ok: {told}", plot.number),
        }
        let what = outcome.err().map(|failed| failed.what);
        lines.push(json!({"number": plot.number, "name": plot.name, "ok": what.is_none(), "what": what}));
    }
    let failed = lines.iter().filter(|line| line["ok"] == false).count();
    let each = if plays == 1 { String::new() } else { format!(", each in {plays} plays") };
    println!("\n{} of {} plots went as they must{each}", chosen.len() - failed, chosen.len());
    Ok((json!({"seeds": plays, "violations": failed, "scenarios": lines}), failed > 0))
}

fn choose(asked: &str) -> Result<Vec<&'static Plot>, String> {
    let every = || ALL.iter().copied().flatten();
    if asked.eq_ignore_ascii_case("all") {
        return Ok(every().collect());
    }
    let chosen: Vec<&Plot> = every().filter(|p| p.number.eq_ignore_ascii_case(asked)).collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let mut numbers: Vec<&str> = every().map(|p| p.number).collect();
    numbers.dedup();
    let there = format!("the stage plays all, {}", numbers.join(", "));
    Err(match table::row(asked) {
        None => format!("no scenario \"{asked}\" in docs/scenarios.md; {there}"),
        Some(Row { number, title, tests, status }) if tests.is_empty() => {
            format!("{number} is not tested ({status}): {title}\n{there}")
        }
        Some(Row { number, title, tests, .. }) => {
            format!(
                "{number} is not played on the stage: {title}\nits tests: {}\n{there}",
                tests.join("\n           ")
            )
        }
    })
}

/// Plays a plot; the error says what was asserted in vain, and where.
pub(crate) fn outcome(plot: &Plot, play: &Play) -> Result<(), String> {
    caught(|| (plot.run)(play))
}

struct Failed {
    play: u64,
    what: String,
    history: Vec<String>,
}

/// The history of the first play, or what failed first.
fn plays_of(plot: &Plot, first: u64, plays: u64) -> Result<Vec<String>, Failed> {
    let mut shown = Vec::new();
    for number in first..first.saturating_add(plays.max(1)) {
        let play = Play::new(number);
        outcome(plot, &play).map_err(|what| Failed { play: number, what, history: play.history() })?;
        if number == first {
            shown = play.history();
        }
    }
    Ok(shown)
}

thread_local! {
    /// What was asserted in vain on this thread, and where, while a plot is played.
    static FAILURE: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// What a plot's assertion said and where it stands: the panic itself does not carry the place.
fn caught(plot: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let ours = FAILURE.with_borrow_mut(|failure| match failure {
                Some(what) => {
                    what.get_or_insert_with(|| panic.to_string());
                    true
                }
                None => false,
            });
            if !ours {
                before(panic);
            }
        }));
    });
    FAILURE.set(Some(None));
    let outcome = catch_unwind(AssertUnwindSafe(plot));
    let failure = FAILURE.take().flatten();
    outcome.map_err(|_| failure.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(_: &Play) {
        assert_eq!(1 + 1, 3, "arithmetic");
    }

    #[test]
    fn a_plot_that_fails_says_what_and_where() {
        let plot = Plot { number: "F0", name: "fails", run: fails };
        let failed = plays_of(&plot, 7, 2).expect_err("1 + 1 is not 3");
        assert_eq!(failed.play, 7);
        assert!(failed.what.contains("arithmetic") && failed.what.contains("mod.rs"), "{}", failed.what);
    }

    #[test]
    fn a_play_is_told_step_by_step_and_alike_each_time() {
        let plot = choose("f2").expect("there is one")[0];
        let told = |number| plays_of(plot, number, 1).map_err(|f| f.what).expect("it goes as it must");
        assert_eq!(told(0), told(0));
        assert_ne!(told(0), told(1), "other delays");
        for step in ["session 0 on host D opens", "write 64 to block 3", "r0's daemon is killed"] {
            assert!(told(0).iter().any(|line| line.ends_with(step)), "{step}\n{}", told(0).join("\n"));
        }
    }

    #[test]
    fn what_is_not_on_the_stage_is_told_apart() {
        let why = |asked| choose(asked).expect_err("not on the stage");
        assert!(
            why("Q7").starts_with("no scenario \"Q7\" in docs/scenarios.md; the stage plays all, F1, F2,")
        );
        assert!(why("m30").contains("its tests: native/weft-proto/src/log.rs::"), "{}", why("m30"));
        assert!(why("F12").starts_with("F12 is not tested (comes with handover)"), "{}", why("F12"));
    }

    #[test]
    fn each_plot_is_of_a_number_in_the_table_and_the_numbers_are_in_order() {
        let numbers: Vec<&str> = rows().map(|row| row.number).collect();
        assert_eq!(numbers.len(), 114);
        for plots in ALL {
            let places = plots.iter().map(|p| numbers.iter().position(|n| *n == p.number).expect(p.number));
            assert!(places.is_sorted(), "{:?}", plots.iter().map(|p| p.number).collect::<Vec<_>>());
        }
    }
}
