//! `weft-model`: runs a model of the replication protocol and prints the shortest counter-example, if there is one.
//!
//! Must always hold: exit code 0 says "nothing found", 1 "a counter-example", 2 "the command line is wrong".

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use weft_model::cases::{Case, Setup, all, named};
use weft_model::core::{LateSwaps, Rollback};
use weft_model::explore::{Outcome, Report, Walks};

const USAGE: &str = "\
usage: weft-model [--model core|lease] [--mutation NAME | --case NAME] [options]
       weft-model --list

  --mutation NAME   break one rule; takes the bounds under which its counter-example is found, unless given
  --case NAME       a named case with its bounds; every model has some (--list shows them)
  --states N        stop the search after N states (that of the case, or 2000000)
  --walks N         random walks instead of a search; with --length STEPS (160) and --seed S (1)
  --json            one JSON object instead of text

bounds: --replicas R --sessions C --writes W --epochs E --in-sync BITS (as 011: r1 and r0)
core:   --blocks B --min-isr M --cached yes|no --losses N --late never|admissions|all --best-effort yes|no
        --rescue yes|no --rescue-open yes|no --fine-bitmap yes|no --rollback never|this-volume|every-host|lost
        --adds yes|no --ack-changes N --resume-fill yes|no --renew yes|no --force yes|no --damage yes|no
lease:  --lease TICKS --drift yes|no --reconfigure yes|no --closes yes|no --assertions yes|no
        --heartbeats yes|no --handover yes|no --strict yes|no";

struct Command {
    setup: Setup,
    case: Option<&'static Case>,
    states: usize,
    walks: Option<Walks>,
    json: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--list") {
        for case in all() {
            println!("{:<36} {:<9} {}", case.name, case.setup.model(), case.rule);
        }
        return ExitCode::SUCCESS;
    }
    let command = match parse(&arguments) {
        Ok(command) => command,
        Err(problem) => {
            eprintln!("weft-model: {problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let begin = Instant::now();
    let report = run(&command);
    let seconds = begin.elapsed().as_secs_f64();
    if command.json {
        println!("{}", as_json(&command, &report, seconds));
    } else {
        print_text(&command, &report, seconds);
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn run(command: &Command) -> Report {
    match command.walks {
        None => match command.case {
            Some(case) => Case { setup: command.setup, ..*case }.run(command.states),
            None => command.setup.search(command.states),
        },
        Some(walks) => command.setup.walk(walks),
    }
}

fn parse(arguments: &[String]) -> Result<Command, String> {
    let mut options = Vec::new();
    let mut json = false;
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        if name == "--json" {
            json = true;
            continue;
        }
        let value = rest.next().ok_or_else(|| format!("{name} wants a value"))?;
        options.push((name.as_str(), value.as_str()));
    }
    let of = |wanted: &str| options.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let mut setup = base_setup(of("--model"), of("--mutation"), of("--case"))?;
    let case = of("--mutation").or(of("--case")).and_then(named);
    let mut states = case.map_or(2_000_000, |case| case.max_states);
    let (mut walks, mut length, mut seed) = (None, 160, 1);
    for (name, value) in &options {
        match *name {
            "--model" | "--mutation" | "--case" => {}
            "--states" => states = number(name, value, usize::MAX)?,
            "--walks" => walks = Some(number(name, value, u64::MAX)?),
            "--length" => length = number(name, value, usize::MAX)?,
            "--seed" => seed = number(name, value, u64::MAX)?,
            _ => set(&mut setup, name, value)?,
        }
    }
    let walks = walks.map(|count| Walks { count, length, seed });
    Ok(Command { setup, case, states, walks, json })
}

fn base_setup(model: Option<&str>, mutation: Option<&str>, case: Option<&str>) -> Result<Setup, String> {
    let setup = match (mutation.or(case), model) {
        (Some(name), _) => {
            let case =
                named(name).ok_or_else(|| format!("no mutation or case is called {name}; see --list"))?;
            case.setup
        }
        (None, None | Some("core")) => Setup::Core(weft_model::core::Config::default()),
        (None, Some("lease")) => Setup::Lease(weft_model::lease::Config::default()),
        (None, Some(other)) => {
            return Err(format!(
                "{other}: bounds can be given to core and lease; the other models run by --case"
            ));
        }
    };
    if let Some(model) = model
        && model != setup.model()
    {
        return Err(format!("that mutation belongs to the model {}", setup.model()));
    }
    Ok(setup)
}

fn number<T: TryFrom<u64> + PartialOrd>(name: &str, value: &str, most: T) -> Result<T, String> {
    let bad = || format!("{name} wants a number in range, not {value}");
    let parsed = value.parse::<u64>().map_err(|_| bad())?;
    T::try_from(parsed).ok().filter(|n| *n <= most).ok_or_else(bad)
}

fn flag(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        other => Err(format!("{name} wants yes or no, not {other}")),
    }
}

fn bits(name: &str, value: &str) -> Result<u8, String> {
    u8::from_str_radix(value, 2)
        .ok()
        .filter(|bits| (1..8).contains(bits))
        .ok_or_else(|| format!("{name} wants bits such as 011, not {value}"))
}

fn set(setup: &mut Setup, name: &str, value: &str) -> Result<(), String> {
    match setup {
        Setup::Core(config) => match name {
            "--replicas" => config.replicas = number(name, value, 3)?,
            "--sessions" => config.sessions = number(name, value, 3)?,
            "--blocks" => config.blocks = number(name, value, 2)?,
            "--writes" => config.writes = number(name, value, 6)?,
            "--epochs" => config.max_epoch = number(name, value, 18)?,
            "--in-sync" => config.in_sync = bits(name, value)?,
            "--min-isr" => config.min_isr = number(name, value, 3)?,
            "--cached" => config.cached = flag(name, value)?,
            "--losses" => config.cache_losses = number(name, value, 9)?,
            "--best-effort" => config.best_effort = flag(name, value)?,
            "--rescue" => config.rescue = flag(name, value)?,
            "--ack-changes" => config.ack_changes = number(name, value, 9)?,
            "--resume-fill" => config.resume_fill = flag(name, value)?,
            "--renew" => config.renew = flag(name, value)?,
            "--adds" => config.adds = flag(name, value)?,
            "--force" => config.force = flag(name, value)?,
            "--damage" => config.damage = flag(name, value)?,
            "--rescue-open" => config.rescue_open = flag(name, value)?,
            "--fine-bitmap" => config.fine_bitmap = flag(name, value)?,
            "--late" => {
                config.late_swaps = match value {
                    "never" => LateSwaps::Never,
                    "admissions" => LateSwaps::Admissions,
                    "all" => LateSwaps::All,
                    other => return Err(format!("--late wants never, admissions or all, not {other}")),
                }
            }
            "--rollback" => {
                config.rollback = match value {
                    "never" => Rollback::Never,
                    "this-volume" => Rollback::HostsKnowThisVolume,
                    "every-host" => Rollback::EveryHostKnows,
                    "lost" => Rollback::Lost,
                    other => {
                        return Err(format!(
                            "--rollback: never, this-volume, every-host or lost, not {other}"
                        ));
                    }
                }
            }
            _ => return Err(format!("the model core has no option {name}")),
        },
        Setup::Lease(config) => match name {
            "--replicas" => config.replicas = number(name, value, 3)?,
            "--sessions" => config.sessions = number(name, value, 3)?,
            "--writes" => config.writes = number(name, value, 200)?,
            "--epochs" => config.max_epoch = number(name, value, 200)?,
            "--in-sync" => config.in_sync = bits(name, value)?,
            "--lease" => config.lease = number(name, value, 100)?,
            "--drift" => config.drift = flag(name, value)?,
            "--reconfigure" => config.reconfigure = flag(name, value)?,
            "--closes" => config.closes = flag(name, value)?,
            "--assertions" => config.assertions = flag(name, value)?,
            "--handover" => config.handover = flag(name, value)?,
            "--heartbeats" => config.heartbeats = flag(name, value)?,
            "--strict" => config.strict = flag(name, value)?,
            _ => return Err(format!("the model lease has no option {name}")),
        },
        other => {
            let model = other.model();
            return Err(format!("the bounds of the model {model} are those of its cases, it has no {name}"));
        }
    }
    setup.check()
}

fn print_text(command: &Command, report: &Report, seconds: f64) {
    let seen = if command.walks.is_some() { "steps of random walks" } else { "states" };
    match &report.outcome {
        Outcome::Exhausted => {
            println!("clean: all {} states, {seconds:.1} s; {}", report.visited, report.counts)
        }
        Outcome::Bounded => {
            println!(
                "nothing found in {} {seen}, {seconds:.1} s (bounded); {}",
                report.visited, report.counts
            );
        }
        Outcome::Violated { violation, trace } => {
            println!("BROKEN: {}", violation.promise);
            for (number, line) in trace.iter().enumerate() {
                println!("{:>3}  {:<56} {}", number + 1, line.step, line.state);
            }
            println!("  =>  {}", violation.observation);
            println!("{} steps, {} {seen}, {seconds:.1} s", trace.len(), report.visited);
        }
    }
}

fn as_json(command: &Command, report: &Report, seconds: f64) -> String {
    let (outcome, promise, trace): (_, _, &[_]) = match &report.outcome {
        Outcome::Exhausted => ("exhausted", None, &[]),
        Outcome::Bounded => ("bounded", None, &[]),
        Outcome::Violated { violation, trace } => ("violated", Some(violation), trace),
    };
    let lines: Vec<String> = trace
        .iter()
        .map(|l| format!("{{\"step\":{},\"state\":{}}}", quoted(&l.step), quoted(&l.state)))
        .collect();
    format!(
        "{{\"model\":\"{}\",\"outcome\":\"{outcome}\",\"promise\":{},\"observation\":{},\"steps\":{},\
         \"visited\":{},\"seconds\":{seconds:.3},\"trace\":[{}]}}",
        command.setup.model(),
        promise.map_or("null".into(), |v| quoted(v.promise)),
        promise.map_or("null".into(), |v| quoted(&v.observation)),
        report.trace_len().map_or("null".into(), |n| n.to_string()),
        report.visited,
        lines.join(",")
    )
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
