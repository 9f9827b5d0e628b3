//! Commands: JSON lines on a unix socket, one answer for each, in order.
//!
//! Must always hold: an answer says that the command is in force.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::faults::{Effect, Rule, What};
use crate::mount::Shared;
use crate::store::Mixture;

/// What can be asked for.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Requests fail and do nothing.
    Fail {
        /// Which.
        what: What,
        /// EIO, ENOSPC, EROFS, EDQUOT or ETIMEDOUT.
        errno: String,
        /// How many; all if there is none.
        count: Option<u64>,
        /// A pattern of `*` and `?` on the path below the mount.
        path: Option<String>,
    },
    /// Requests wait, and are carried out afterwards.
    Stall {
        /// Which.
        what: What,
        /// How long; until they are healed if there is none.
        ms: Option<u64>,
        /// How many; all if there is none.
        count: Option<u64>,
        /// A pattern of `*` and `?` on the path below the mount.
        path: Option<String>,
    },
    /// Requests take so much longer.
    Slow {
        /// How much.
        ms: u64,
        /// Which; all if there is none.
        what: Option<What>,
        /// A pattern of `*` and `?` on the path below the mount.
        path: Option<String>,
    },
    /// Only so many more bytes can be allocated.
    Full {
        /// How many.
        bytes: u64,
    },
    /// Flushes are answered and do nothing, and a write's own wish to be durable is not heeded.
    Lie {
        /// A pattern of `*` and `?` on the path below the mount; all files and directories if there is none.
        path: Option<String>,
    },
    /// All of the above is taken away; what was lied about is volatile until it is flushed.
    Heal,
    /// Every request fails from now on, and what is not durable is lost.
    PowerCut {
        /// How many of a hundred volatile things are kept.
        #[serde(default)]
        keep: u8,
        /// Which of them.
        #[serde(default)]
        seed: u64,
    },
    /// Serves again, without any fault.
    PowerOn,
    /// How things are.
    Stats,
}

/// Carries a command out.
pub fn obey(shared: &Shared, command: Command) -> Result<Value, String> {
    match command {
        Command::Fail { what, errno, count, path } => {
            let effect = Effect::Fail(errno_named(&errno)?);
            shared.faults.add(Rule { what, path, count, effect });
        }
        Command::Stall { what, ms, count, path } => {
            let effect = Effect::Wait(ms.map(Duration::from_millis));
            shared.faults.add(Rule { what, path, count, effect });
        }
        Command::Slow { ms, what, path } => {
            let effect = Effect::Wait(Some(Duration::from_millis(ms)));
            shared.faults.add(Rule { what: what.unwrap_or(What::Any), path, count: None, effect });
        }
        Command::Full { bytes } => shared.store.limit_room(Some(bytes)),
        Command::Lie { path } => shared.store.lie_about(Some(path.unwrap_or_else(|| "*".to_owned()))),
        Command::Heal => heal(shared),
        Command::PowerCut { keep, seed } => {
            let (dropped, kept) = shared
                .store
                .power_cut(&mut Mixture::new(keep, seed))
                .map_err(|errno| format!("the backing store could not be put back: {errno}"))?;
            // Who was stalled finds that there is no power.
            heal(shared);
            return Ok(json!({ "ok": true, "dropped": dropped, "kept": kept }));
        }
        Command::PowerOn => {
            heal(shared);
            shared.store.power_on();
        }
        Command::Stats => return Ok(stats(shared)),
    }
    Ok(json!({ "ok": true }))
}

fn heal(shared: &Shared) {
    shared.store.limit_room(None);
    shared.store.lie_about(None);
    shared.faults.heal();
}

fn stats(shared: &Shared) -> Value {
    let (failed, stalled) = shared.faults.counts();
    let counts = &shared.counts;
    json!({
        "ok": true,
        "powered": shared.store.is_powered(),
        "requests": {
            "read": counts.read.load(Ordering::Relaxed),
            "write": counts.write.load(Ordering::Relaxed),
            "durable_write": shared.store.durable_writes(),
            "flush": counts.flush.load(Ordering::Relaxed),
            "name": counts.name.load(Ordering::Relaxed),
        },
        "failed": failed,
        "stalled_now": stalled,
        "volatile": shared.store.volatile(),
        "full": shared.store.room_left(),
    })
}

fn errno_named(name: &str) -> Result<Errno, String> {
    match name {
        "EIO" => Ok(Errno::IO),
        "ENOSPC" => Ok(Errno::NOSPC),
        "EROFS" => Ok(Errno::ROFS),
        "EDQUOT" => Ok(Errno::DQUOT),
        "ETIMEDOUT" => Ok(Errno::TIMEDOUT),
        other => Err(format!("no errno {other:?} here: EIO, ENOSPC, EROFS, EDQUOT or ETIMEDOUT")),
    }
}

/// Serves whoever connects, each on a thread of its own, as long as the process lives.
pub fn serve(listener: UnixListener, shared: Arc<Shared>) {
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                // Who goes away in the middle needs no answer.
                let _ = converse(&client, &shared);
            });
        }
    });
}

fn converse(client: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut writer = client;
    for line in BufReader::new(client).lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let done = serde_json::from_str(&line).map_err(|e| e.to_string()).and_then(|c| obey(shared, c));
        let answer = done.unwrap_or_else(|error| json!({ "ok": false, "error": error }));
        writer.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}
