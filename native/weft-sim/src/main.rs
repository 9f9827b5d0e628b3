//! `weft-sim [--seed S] [--seeds N] [--scenario NUMBER|all] [--mutation NAME|all [--control]] [--json FILE] [--verbose]`

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use weft_proto::mutants::Mutation;
use weft_sim::{Run, run_seed, scenarios};

/// Seeds within which a broken rule must be found.
const MUTATION_BUDGET: u64 = 3000;

#[derive(Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    scenario: Option<String>,
    mutation: Option<String>,
    json: Option<String>,
    verbose: bool,
    control: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            eprintln!(
                "weft-sim: {what}\nusage: weft-sim [--seed S] [--seeds N] [--scenario NUMBER|all] [--mutation NAME|all [--control]] [--json FILE] [--verbose]"
            );
            return ExitCode::from(1);
        }
    };
    // A violated assertion is a finding, not a crash: it is printed with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let (lines, failed) = match options.mutation.as_deref() {
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
            eprintln!("weft-sim: --mutation needs a build with the feature `mutants`");
            return ExitCode::from(1);
        }
        Some(name) => match mutations(name) {
            Ok(list) if options.control => sweep(&options, Some(list[0].0)),
            Ok(list) => gate(&options, &list),
            Err(what) => {
                eprintln!("weft-sim: {what}");
                return ExitCode::from(1);
            }
        },
    };
    if let Some(file) = &options.json {
        let seconds = started.elapsed().as_secs_f64();
        let mut json = lines;
        json["seconds"] = serde_json::json!(seconds);
        let written = std::fs::File::create(file).and_then(|mut f| writeln!(f, "{json:#}"));
        if let Err(e) = written {
            eprintln!("weft-sim: {file}: {e}");
            return ExitCode::from(1);
        }
    }
    if failed { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

/// Correct rules, many seeds; `lean`: under the plans that are to show one broken rule.
fn sweep(options: &Options, lean: Option<Mutation>) -> (serde_json::Value, bool) {
    let first = options.seed.unwrap_or(1);
    let seeds = options.seeds.unwrap_or(if options.seed.is_some() { 1 } else { 300 });
    let started = Instant::now();
    let (mut violations, mut sum) = (Vec::new(), [0u64; 6]);
    for seed in first..first.saturating_add(seeds) {
        match run_seed(seed, Run { lean, broken: false, verbose: options.verbose }) {
            Ok(c) => {
                let counts = [c.opens, c.demotions, c.admissions, c.fenced, c.acks, c.reads];
                for (total, n) in sum.iter_mut().zip(counts) {
                    *total += n;
                }
            }
            Err(_) => {
                // Again, with the history.
                let what =
                    run_seed(seed, Run { lean, broken: false, verbose: true }).err().unwrap_or_default();
                println!("seed {seed}: {what}\nreplay: npm run sim -- --seed {seed} --verbose");
                violations
                    .push(serde_json::json!({"seed": seed, "what": what.lines().next().unwrap_or_default()}));
                if violations.len() >= 5 {
                    break;
                }
            }
        }
    }
    let [opens, demotions, admissions, fenced, acks, reads] = sum;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds, {} violations, {seconds:.1} s: {opens} opens, {demotions} demotions, {admissions} admissions, {fenced} fenced sessions, {acks} blocks acknowledged, {reads} read",
        violations.len()
    );
    let failed = !violations.is_empty();
    (serde_json::json!({"seeds": seeds, "violations": violations}), failed)
}

/// Each broken rule must be found.
fn gate(options: &Options, list: &[(Mutation, &'static str)]) -> (serde_json::Value, bool) {
    let budget = options.seeds.unwrap_or(MUTATION_BUDGET);
    let first = options.seed.unwrap_or(1);
    let mut rows = Vec::new();
    let mut missed = 0;
    for (mutation, name) in list {
        let verdict = weft_sim::gate::judge(*mutation, first, budget);
        missed += usize::from(!verdict.is_good());
        for alarm in &verdict.false_alarms {
            println!("{name}: fails with the rule in force, too: {alarm}");
        }
        match &verdict.found {
            Some(f) => println!("{name}: caught after {} runs, by {}: {}", f.runs, f.by, f.what),
            None => println!("{name}: NOT caught"),
        }
        let (runs, by) = verdict.found.as_ref().map_or((budget, ""), |f| (f.runs, &f.by));
        rows.push(serde_json::json!({"name": name, "caught": verdict.found.is_some(), "seeds": runs, "by": by, "false_alarms": verdict.false_alarms.len()}));
    }
    println!("{} of {} broken rules caught", list.len() - missed, list.len());
    (serde_json::json!({"mutations": rows}), missed > 0)
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
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("\"{text}\" is not a number"));
        match arg.as_str() {
            "--seed" => options.seed = Some(number(value()?)?),
            "--seeds" => options.seeds = Some(number(value()?)?),
            "--scenario" => options.scenario = Some(value()?),
            "--mutation" => options.mutation = Some(value()?),
            "--json" => options.json = Some(value()?),
            "--verbose" => options.verbose = true,
            "--control" => options.control = true,
            _ => return Err(format!("unknown option \"{arg}\"")),
        }
    }
    Ok(options)
}
