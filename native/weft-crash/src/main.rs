//! `weft-crash [--seed S] [--seeds N] [--states N] [--workload NAME] [--flushes] [--json FILE]`

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use weft_crash::gate::{without_flushes, workloads};
use weft_crash::run::{Budget, Tally};

const USAGE: &str =
    "usage: weft-crash [--seed S] [--seeds N] [--states N] [--workload NAME] [--flushes] [--json FILE]";

#[derive(Default)]
struct Options {
    seed: u64,
    seeds: Option<u64>,
    states: Option<usize>,
    workload: String,
    flushes: bool,
    json: Option<String>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(name) = arguments.next() {
        if name == "--flushes" {
            options.flushes = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name}: {value} is no number"));
        match name.as_str() {
            "--seed" => options.seed = number()?,
            "--seeds" => options.seeds = Some(number()?),
            "--states" => options.states = Some(usize::try_from(number()?).map_err(|e| e.to_string())?),
            "--workload" => options.workload = value,
            "--json" => options.json = Some(value),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("weft-crash: {what}\n{USAGE}");
            return ExitCode::from(1);
        }
    };
    let budget = options.states.map_or(Budget::SHORT, Budget::of_states);
    let started = Instant::now();
    let (mut all, mut violations, mut missing) = (Tally::default(), Vec::new(), Vec::new());
    for seed in options.seed..options.seed + options.seeds.unwrap_or(1) {
        let outcomes = workloads(seed, &budget, &options.workload);
        for outcome in &outcomes {
            match &outcome.result {
                Ok(tally) => {
                    println!(
                        "{:32} seed {seed}: {} events, {} states judged, {} disks recovered, {} of them cut again",
                        outcome.name, tally.events, tally.judged, tally.recovered, tally.nested
                    );
                    all = all.and(*tally);
                }
                Err(what) => {
                    println!("{:32} seed {seed}: VIOLATION\n  {what}", outcome.name);
                    violations.push(what.clone());
                }
            }
        }
        if options.flushes {
            for missed in without_flushes(&outcomes) {
                match &missed.violation {
                    Some(v) => {
                        println!("without {:44} ({}): {}: {}", missed.class, missed.count, v.trace, v.what)
                    }
                    None => println!("without {:44} ({}): nothing found", missed.class, missed.count),
                }
                missing.push(serde_json::json!({
                    "flush": missed.class, "count": missed.count, "caught": missed.violation.is_some(),
                }));
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} traces, {} crash points, {} states judged, {} disks recovered, {} violations, {seconds:.1} s",
        all.traces,
        all.points,
        all.judged,
        all.recovered,
        violations.len()
    );
    if let Some(file) = &options.json {
        let json = serde_json::json!({
            "traces": all.traces, "events": all.events, "points": all.points, "states": all.judged,
            "recovered": all.recovered, "nested": all.nested, "widest": all.widest,
            "violations": violations, "flushes": missing, "seconds": seconds,
        });
        let written = std::fs::File::create(file).and_then(|mut f| writeln!(f, "{json:#}"));
        if let Err(e) = written {
            eprintln!("weft-crash: {file}: {e}");
            return ExitCode::from(1);
        }
    }
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
