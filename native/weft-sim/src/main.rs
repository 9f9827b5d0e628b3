//! `weft-sim`: runs seeds of the simulated world, or shows that it finds every broken rule.
//!
//! Must always hold:
//! * what is printed and written does not depend on the number of threads: seeds are told in their order;
//! * exit code 0: nothing found; 1: a violation, a broken rule that was not caught, or a wrong command line.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_proto::mutants::Mutation;
use weft_sim::in_order::in_order;
use weft_sim::world::Counts;
use weft_sim::{Run, run_seed, scenarios};

const USAGE: &str = "usage: weft-sim [--seed S] [--seeds N] [--seconds T] [--jobs J] [--json FILE] [--verbose]
                [--mutation NAME|all [--control]] [--scenario NUMBER|all]
  --seed S        the first seed (1); alone: this seed only
  --seeds N       how many (300; with --mutation: within so many a broken rule must be found, 3000)
  --seconds T     starts no seed after T seconds, and says how many ran
  --jobs J        threads (as many as there are processors)
  --json FILE     the outcome for programs
  --verbose       the history of each seed, also of one without a violation
  --mutation      breaks one rule of the protocol, or each in turn; --control: its plans, with the rule in force
  --scenario      plays a plot of the catalogue by its number and tells it step by step";

/// Seeds within which a broken rule must be found.
const MUTATION_BUDGET: u64 = 3000;
/// After so many a run has shown enough.
const VIOLATIONS_MAX: usize = 5;

#[derive(Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    seconds: Option<u64>,
    jobs: Option<u64>,
    mutation: Option<String>,
    scenario: Option<String>,
    json: Option<String>,
    verbose: bool,
    control: bool,
}

impl Options {
    fn first(&self) -> u64 {
        self.seed.unwrap_or(1)
    }

    fn jobs(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(available, |jobs| usize::try_from(jobs).unwrap_or(usize::MAX).min(256))
    }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => return refuse(&what),
    };
    // A violated assertion is a finding, not a crash: it is printed with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let (mut outcome, failed) = match options.mutation.as_deref() {
        None if let Some(number) = &options.scenario => {
            match scenarios::play(number, options.seed.unwrap_or(0), options.seeds.unwrap_or(1)) {
                Ok(played) => played,
                Err(what) => {
                    eprintln!("weft-sim: {what}");
                    return ExitCode::from(1);
                }
            }
        }
        None => sweep(&options, None),
        Some(_) if !cfg!(feature = "mutants") => {
            return refuse("--mutation needs a build with the feature `mutants`");
        }
        Some(name) => match mutations(name) {
            Ok(list) if options.control => sweep(&options, Some(list[0])),
            Ok(list) => gate(&options, &list),
            Err(what) => return refuse(&what),
        },
    };
    if let Some(file) = &options.json {
        outcome["seconds"] = json!(started.elapsed().as_secs_f64());
        let written = std::fs::File::create(file).and_then(|mut f| writeln!(f, "{outcome:#}"));
        if let Err(e) = written {
            eprintln!("weft-sim: {file}: {e}");
            return ExitCode::from(1);
        }
    }
    if failed { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn refuse(what: &str) -> ExitCode {
    eprintln!("weft-sim: {what}\n{USAGE}");
    ExitCode::from(1)
}

/// Correct rules, many seeds; `lean`: under the plans that are to show one broken rule.
fn sweep(options: &Options, lean: Option<(Mutation, &'static str)>) -> (Value, bool) {
    let (first, verbose) = (options.first(), options.verbose);
    let seeds = options.seeds.unwrap_or(if options.seed.is_some() { 1 } else { 300 });
    let rule = lean.map(|(mutation, _)| mutation);
    let run = Run { lean: rule, broken: false, verbose };
    let started = Instant::now();
    let until = options.seconds.map(|s| started + Duration::from_secs(s));
    let (mut ran, mut sum, mut failures) = (0u64, Counts::default(), Vec::new());
    let jobs = if verbose { 1 } else { options.jobs() };
    in_order(
        jobs,
        first,
        seeds,
        until,
        |seed| run_seed(seed, run),
        |seed, outcome| {
            ran += 1;
            match outcome {
                Ok(counts) => sum.add(&counts),
                Err(what) => {
                    // Again, with the history.
                    let told = run_seed(seed, Run { verbose: true, ..run }).err().unwrap_or(what);
                    let again =
                        lean.map_or(String::new(), |(_, name)| format!(" --mutation {name} --control"));
                    println!("seed {seed}: {told}\nreplay: npm run sim -- --seed {seed}{again} --verbose");
                    failures.push(json!({"seed": seed, "what": told.lines().next().unwrap_or_default()}));
                }
            }
            failures.len() < VIOLATIONS_MAX
        },
    );
    let seconds = started.elapsed().as_secs_f64();
    if ran < seeds {
        let why = if failures.len() < VIOLATIONS_MAX { "the time was up" } else { "that is enough" };
        println!("{ran} of {seeds} seeds were run: {why}");
    }
    println!("{ran} seeds, {} violations, {seconds:.1} s: {}", failures.len(), sum.line());
    let failed = !failures.is_empty();
    let outcome =
        json!({"first_seed": first, "seeds": ran, "violations": failures.len(), "failures": failures});
    (outcome, failed)
}

/// Each broken rule must be found, and the plays that show it be clean with the rule in force.
fn gate(options: &Options, list: &[(Mutation, &'static str)]) -> (Value, bool) {
    let (first, budget) = (options.first(), options.seeds.unwrap_or(MUTATION_BUDGET));
    let until = options.seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let (mut rows, mut all, mut failures, mut good) = (Vec::new(), 0, Vec::new(), 0usize);
    let judge = |at: u64| {
        let (mutation, name) = list[usize::try_from(at).expect("an index")];
        (name, weft_sim::gate::judge(mutation, first, budget))
    };
    in_order(options.jobs(), 0, list.len() as u64, until, judge, |_, (name, verdict)| {
        good += usize::from(verdict.is_good());
        for alarm in &verdict.false_alarms {
            println!("{name}: fails with the rule in force, too: {alarm}");
            failures.push(json!({"mutation": name, "what": alarm.to_string()}));
        }
        match &verdict.found {
            Some(f) => println!("{name}: caught after {} runs, by {}: {}", f.runs, f.by, f.what),
            None => println!("{name}: NOT caught"),
        }
        let (runs, by) = verdict.found.as_ref().map_or((budget, ""), |f| (f.runs, &f.by));
        all += runs;
        rows.push(json!({
            "name": name,
            "caught": verdict.found.is_some(),
            "seeds": runs,
            "by": by,
            "false_alarms": verdict.false_alarms.len(),
        }));
        true
    });
    if rows.len() < list.len() {
        println!("{} of {} broken rules were tried: the time was up", rows.len(), list.len());
    }
    println!("{good} of {} broken rules caught", list.len());
    let outcome = json!({
        "first_seed": first,
        "seeds": all,
        "violations": failures.len(),
        "failures": failures,
        "mutations": rows,
    });
    (outcome, good < list.len())
}

fn mutations(name: &str) -> Result<Vec<(Mutation, &'static str)>, String> {
    if name == "all" {
        return Ok(Mutation::ALL.to_vec());
    }
    let known = Mutation::ALL.iter().find(|(_, n)| *n == name);
    known.map(|m| vec![*m]).ok_or_else(|| {
        let names: Vec<&str> = Mutation::ALL.iter().map(|(_, n)| *n).collect();
        format!("no mutation \"{name}\"; there are all, {}", names.join(", "))
    })
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let mut value = || {
            let value = args.next().filter(|v| !v.starts_with("--"));
            value.ok_or_else(|| format!("{arg} needs a value"))
        };
        let number = |text: String| {
            text.parse::<u64>().map_err(|_| format!("{arg}: \"{text}\" is not a whole number"))
        };
        let counted = |text: String| match number(text)? {
            0 => Err(format!("{arg}: at least 1")),
            n => Ok(n),
        };
        match arg.as_str() {
            "--seed" => options.seed = Some(number(value()?)?),
            "--seeds" => options.seeds = Some(counted(value()?)?),
            "--seconds" => options.seconds = Some(counted(value()?)?),
            "--jobs" => options.jobs = Some(counted(value()?)?),
            "--scenario" => options.scenario = Some(value()?),
            "--mutation" => options.mutation = Some(value()?),
            "--json" => options.json = Some(value()?),
            "--verbose" => options.verbose = true,
            "--control" => options.control = true,
            _ => return Err(format!("unknown option \"{arg}\"")),
        }
    }
    if options.control && options.mutation.as_deref().is_none_or(|name| name == "all") {
        return Err("--control needs --mutation with the name of one".into());
    }
    if options.scenario.is_some() && options.mutation.is_some() {
        return Err("--scenario and --mutation exclude each other".into());
    }
    if options.seed.unwrap_or(1).checked_add(options.seeds.unwrap_or(MUTATION_BUDGET)).is_none() {
        return Err("--seed and --seeds go beyond the last seed, 2^64 - 1".into());
    }
    Ok(options)
}
