//! LVM's commands, and the devices that they make.
//!
//! Must always hold:
//! * a command sees the pool's own devices and no configuration but ours; it asks neither udev nor a daemon;
//! * it is waited for until its deadline, then killed, and never waited for after that.

use core::fmt;
use core::time::Duration;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::{META, Unfit, Volume};
use crate::driver::{Errno, Fd, checked};

/// A command that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);
const OUTPUT_MAX: usize = 4 << 20;

/// A command did not do what it was told, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// For people.
    pub(crate) what: String,
    pub(crate) errno: Errno,
    /// It did not come to its own end.
    pub(crate) killed: bool,
}

impl From<Failed> for Errno {
    fn from(failed: Failed) -> Errno {
        failed.errno
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Failed {
        Failed { what: errno.to_string(), errno, killed: false }
    }
}

/// What a pool on LVM needs of its host.
pub(crate) trait System: Send + Sync + fmt::Debug {
    /// Runs a command of `lvm`; its output.
    fn lvm(&self, verb: &str, args: &[&str]) -> Result<String, Failed>;

    /// Device-mapper's status of all that there is, a line each: `NAME: START LENGTH TARGET …`.
    fn status(&self) -> Result<String, Failed>;

    /// Opens an active volume.
    fn device(&self, volume: &Volume) -> Result<Fd, Errno>;
}

/// The host's own LVM, for one VG.
#[derive(Debug)]
pub(crate) struct Lvm {
    config: String,
}

impl Lvm {
    /// For the VG whose volume `meta` carries the file system of this directory.
    pub(crate) fn under(dir: &Fd, vg: &str) -> Result<Lvm, Unfit> {
        let device = fs::File::from(super::unshared_clone(dir)?).metadata().map_err(Errno::from)?.dev();
        let home = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        let name = fs::read_to_string(Path::new(&home).join("dm/name")).unwrap_or_default();
        if name.trim() != format!("{}-{META}", vg.replace('-', "--")) {
            return Err(Unfit(format!("the pool is of {vg}/{META}, and lies elsewhere now")));
        }
        let below = fs::read_dir(Path::new(&home).join("slaves")).map_err(Errno::from)?;
        let below: Result<Vec<_>, _> = below.map(|entry| entry.map(|e| e.file_name())).collect();
        let below = below.map_err(Errno::from)?;
        let devices: Vec<&str> = below.iter().filter_map(|name| name.to_str()).collect();
        Ok(Lvm {
            config: config(&devices).ok_or_else(|| Unfit(format!("devices {devices:?} have odd names")))?,
        })
    }
}

/// For `--config`: nothing but these devices is looked at.
fn config(devices: &[&str]) -> Option<String> {
    let fine = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if devices.is_empty() || !devices.iter().all(fine) {
        return None;
    }
    let ours: Vec<String> = devices.iter().map(|name| format!("\"a|^/dev/{name}$|\"")).collect();
    let filter = format!("[{}, \"r|.*|\"]", ours.join(", "));
    Some(format!(
        "devices {{ filter={filter} global_filter={filter} use_devicesfile=0 obtain_device_list_from_udev=0 \
         external_device_info_source=\"none\" hints=\"none\" scan_lvs=0 }} \
         activation {{ udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }} \
         global {{ use_lvmpolld=0 notify_dbus=0 metadata_read_only=0 }} backup {{ backup=0 archive=0 }}"
    ))
}

impl System for Lvm {
    fn lvm(&self, verb: &str, args: &[&str]) -> Result<String, Failed> {
        let all = [&[verb], args, &["--config", &self.config]].concat();
        run("lvm", &all, DEADLINE)
    }

    fn status(&self) -> Result<String, Failed> {
        run("dmsetup", &["status", "--noflush"], DEADLINE)
    }

    fn device(&self, volume: &Volume) -> Result<Fd, Errno> {
        let (major, minor) = volume.number.ok_or(Errno(libc::ENXIO))?;
        let uuid = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid"))?;
        if uuid.trim() != format!("LVM-{}", volume.uuid) {
            return Err(Errno(libc::ENXIO));
        }
        let device = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(format!("/dev/dm-{minor}"))?;
        if device.metadata()?.rdev() != libc::makedev(major, minor) {
            return Err(Errno(libc::ENXIO));
        }
        Ok(Arc::new(OwnedFd::from(device)))
    }
}

/// Runs a program to its end, or for so long.
fn run(program: &str, args: &[&str], deadline: Duration) -> Result<String, Failed> {
    let what = |why: &str| format!("{program} {}: {why}", args.first().unwrap_or(&""));
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        // None.
        .env("LVM_SYSTEM_DIR", "")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|e| Failed {
        what: what(&if e.kind() == io::ErrorKind::NotFound {
            "it is not installed".to_owned()
        } else {
            e.to_string()
        }),
        errno: e.into(),
        killed: false,
    })?;
    match listen(&mut child, Instant::now() + deadline) {
        Ok([stdout, stderr]) => {
            let status = child.wait().map_err(|e| Failed {
                what: what(&e.to_string()),
                errno: e.into(),
                killed: false,
            })?;
            if status.success() {
                return Ok(stdout);
            }
            let said = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = said.char_indices().nth_back(399).map_or(said.as_str(), |(at, _)| &said[at..]);
            // One that was killed by somebody may have left as much as one that we kill.
            Err(Failed { what: what(said), errno: Errno(libc::EIO), killed: status.code().is_none() })
        }
        Err(error) => {
            if let Ok(group) = i32::try_from(child.id()) {
                // SAFETY: no memory is passed; the child was not waited for, so the number is still its own.
                unsafe { libc::kill(-group, libc::SIGKILL) };
            }
            // One that hangs in the kernel ends when that lets it.
            let _ = thread::Builder::new().name("weft-reaper".to_owned()).spawn(move || child.wait());
            Err(Failed { what: what(&error.to_string()), errno: error.into(), killed: true })
        }
    }
}

/// What a child says until it has closed both.
fn listen(child: &mut Child, end: Instant) -> io::Result<[String; 2]> {
    let mut pipes: [Box<dyn Pipe>; 2] = match (child.stdout.take(), child.stderr.take()) {
        (Some(out), Some(err)) => [Box::new(out), Box::new(err)],
        _ => return Err(io::ErrorKind::BrokenPipe.into()),
    };
    let mut said = [Vec::new(), Vec::new()];
    let mut open = [true, true];
    while open.contains(&true) {
        let left = end.saturating_duration_since(Instant::now());
        let fd = |at: usize| if open[at] { pipes[at].as_raw_fd() } else { -1 };
        let mut polled = [0, 1].map(|at| libc::pollfd { fd: fd(at), events: libc::POLLIN, revents: 0 });
        let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `polled` is two writable pollfds.
        match checked(unsafe { libc::poll(polled.as_mut_ptr(), 2, ms) }) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Err(Errno(libc::EINTR)) => continue,
            result => drop(result?),
        }
        for at in 0..2 {
            if polled[at].revents != 0 {
                let mut piece = [0; 4096];
                let len = pipes[at].read(&mut piece)?;
                open[at] = len > 0;
                let room = OUTPUT_MAX - said[at].len();
                said[at].extend_from_slice(&piece[..len.min(room)]);
            }
        }
    }
    Ok(said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

trait Pipe: Read + AsRawFd {}

impl<T: Read + AsRawFd> Pipe for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_tells_what_it_said_and_why_it_failed() {
        let sh = |script: &str, ms: u64| run("sh", &["-c", script], Duration::from_millis(ms));
        assert_eq!(sh("echo a; echo b >&2; echo c", 60_000).as_deref(), Ok("a\nc\n"));
        assert_eq!(sh("echo \"$LVM_SYSTEM_DIR|$LC_ALL|$HOME\"", 60_000).as_deref(), Ok("|C|\n"));
        let failed = sh("echo x; echo 'no  such\nVG' >&2; exit 5", 60_000).expect_err("status 5");
        assert_eq!(
            failed,
            Failed { what: "sh -c: no such VG".to_owned(), errno: Errno(libc::EIO), killed: false }
        );
        assert!(sh("kill -9 $$", 60_000).expect_err("killed").killed);
        let missing = run("no-such-program", &[], Duration::from_secs(60)).expect_err("not there");
        assert_eq!(
            (missing.what.as_str(), missing.errno.0),
            ("no-such-program : it is not installed", libc::ENOENT)
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let (ours, mut theirs) = io::pipe().map(|(ours, theirs)| (ours, Some(theirs))).expect("a pipe");
        let path = format!("/proc/{}/fd/{}", std::process::id(), theirs.as_ref().expect("open").as_raw_fd());
        let script = format!("exec 9>{path}; sleep 1000 & sleep 1000");
        let failed = run("sh", &["-c", &script], Duration::from_millis(500)).expect_err("it hangs");
        assert_eq!((failed.errno.0, failed.killed), (libc::ETIMEDOUT, true));
        // The end of the pipe comes when the last of them is gone.
        theirs.take();
        assert_eq!(io::read_to_string(ours).expect("read"), "");
    }

    #[test]
    fn only_the_pools_own_devices_are_seen() {
        let config = config(&["sdb", "nvme0n1p2"]).expect("names");
        let filter = r#"filter=["a|^/dev/sdb$|", "a|^/dev/nvme0n1p2$|", "r|.*|"]"#;
        assert_eq!(config.matches(filter).count(), 2, "{config}");
        assert_eq!(super::config(&["sd\"b"]), None);
        assert_eq!(super::config(&[]), None);
    }
}
