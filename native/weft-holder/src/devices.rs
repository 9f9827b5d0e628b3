//! Kernel nbd devices on volumes: the kernel keeps a guest's requests while weftd is away, and this gives it a new socket.
//!
//! ```text
//!  tapdisk ─ aio ─▶ /dev/nbdN ─ NBD ─▶ weftd's export of the session
//!                       ▲
//!                       └ a new socket, when weftd says that the ownership is unbroken (R32); else no device any more
//! ```
//!
//! Must always hold:
//! * a device gets a new socket only of a session of its ownership ([`Weftd::open`]), which the export's name proves once more;
//! * and only when that export has no other connection: what the kernel sent on an older one is read or gone, so that nothing of it
//!   comes after what it repeats on the new one;
//! * a device whose ownership is over is disconnected: its requests fail, and are never done;
//! * the kernel alone knows which devices there are (sysfs `backend`): they outlive this process, and the next one finds them.
//!
//! Other than the holder's own clients', requests that overlap are not held back from each other: the kernel repeats what was not
//! answered, in any order, as it may do with any disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::{Mutex, Notify};
use weft_control::holder::{DeviceEntry, DeviceList, DeviceOpen, DeviceOpened};
use weft_control::types::{Decimal, ErrorBody};
use weft_proto::ids::{SessionId, SnapId, VolumeId};

use crate::control::{E_AWAY, E_FULL, E_IN_USE, E_VALUE, error, ms_since};
use crate::netlink::{self, Made};
use crate::upstream::{Trouble, Weftd, What};
use crate::wire::{Export, shake_hands};

const E_KERNEL: &str = "E-HOLD-08";
const E_REFUSED: &str = "E-HOLD-09";

/// Before all else in the name that a device has in the kernel, and the version of what follows.
const BACKEND: &str = "weft/1";
/// Those below are XAPI's helper's, which takes the first that is free of 24.
const INDEX_FIRST: u32 = 32;
const DEVICES_MAX: u32 = 1000;
/// So long a request waits, once there is a new socket, until the kernel repeats it: it looks at each after that time and again
/// (Linux: queue/io_timeout). A request that takes longer for other reasons is mentioned in its log, and nothing else.
const REPEAT_MS: u32 = 5000;
/// Between two looks at whether weftd still has each device's connection; that weftd is back is told sooner.
const LOOK: Duration = Duration::from_secs(10);
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// What a device is of, as its name in the kernel says it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Of {
    id: String,
    what: What,
    writable: bool,
}

impl Of {
    fn backend(&self) -> String {
        let Of { id, what, writable } = self;
        let access = if *writable { "w" } else { "r" };
        match what {
            What::Session(volume, first) => format!("{BACKEND}/{id}/{volume}/session/{first}/{access}"),
            What::Snapshot(volume, snapshot) => {
                format!("{BACKEND}/{id}/{volume}/snapshot/{snapshot}/{access}")
            }
        }
    }

    /// None: it is somebody else's.
    fn parse(backend: &str) -> Option<Of> {
        let rest = backend.trim_end().strip_prefix(BACKEND)?.strip_prefix('/')?;
        let [id, volume, kind, name, access] = rest.split('/').collect::<Vec<_>>().try_into().ok()?;
        let volume = VolumeId::from_str(volume).ok()?;
        let what = match kind {
            "session" => What::Session(volume, SessionId::from_str(name).ok()?),
            "snapshot" => What::Snapshot(volume, SnapId::from_str(name).ok()?),
            _ => return None,
        };
        let writable = match access {
            "w" => true,
            "r" => false,
            _ => return None,
        };
        is_id(id).then(|| Of { id: id.to_owned(), what, writable })
    }
}

/// A name that can stand in the kernel's.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[derive(Debug)]
struct State {
    /// In bytes, as the kernel knows it.
    size: u64,
    away_since: Option<Instant>,
    waits_for: Option<String>,
    lost: Option<String>,
    reconnected: u64,
}

#[derive(Debug)]
struct Device {
    of: Of,
    index: u32,
    state: RefCell<State>,
    closed: Notify,
}

impl Device {
    fn path(&self) -> String {
        format!("/dev/nbd{}", self.index)
    }

    /// What a look at it has told. True: its ownership is over.
    fn is_over(&self, looked: Result<Option<Export>, Trouble>) -> bool {
        let mut state = self.state.borrow_mut();
        match looked {
            Ok(None) => (state.away_since, state.waits_for) = (None, None),
            Ok(Some(export)) => {
                tracing::info!(id = self.of.id, "weftd is back");
                (state.away_since, state.waits_for) = (None, None);
                state.reconnected += 1;
                state.size = state.size.max(export.size);
            }
            Err(Trouble::Taken(body)) => {
                let why = Trouble::Taken(body).text();
                tracing::error!(id = self.of.id, why, "lost");
                (state.away_since, state.waits_for, state.lost) = (None, None, Some(why));
                return true;
            }
            Err(trouble) => {
                state.away_since.get_or_insert_with(Instant::now);
                state.waits_for = Some(trouble.text());
            }
        }
        false
    }
}

/// All that are there.
#[derive(Debug)]
pub(crate) struct Devices {
    weftd: Rc<Weftd>,
    devices: RefCell<BTreeMap<String, Rc<Device>>>,
    /// One is made or taken away at a time.
    turn: Mutex<()>,
    sys: PathBuf,
}

impl Devices {
    /// With those that an earlier process made.
    pub(crate) fn found(weftd: Rc<Weftd>) -> Rc<Devices> {
        let all = Devices {
            weftd,
            devices: RefCell::default(),
            turn: Mutex::default(),
            sys: PathBuf::from("/sys/block"),
        };
        let all = Rc::new(all);
        for entry in fs::read_dir(&all.sys).into_iter().flatten().flatten() {
            let Some(index) =
                entry.file_name().to_str().and_then(|name| name.strip_prefix("nbd")?.parse().ok())
            else {
                continue;
            };
            let Some(of) = fs::read_to_string(entry.path().join("backend")).ok().and_then(|b| Of::parse(&b))
            else {
                continue;
            };
            let sectors =
                fs::read_to_string(entry.path().join("size")).ok().and_then(|n| n.trim().parse().ok());
            tracing::info!(id = of.id, index, "a device that was there");
            all.keep(of, index, 512 * sectors.unwrap_or(0), true);
        }
        all
    }

    fn keep(self: &Rc<Self>, of: Of, index: u32, size: u64, look_now: bool) {
        let state = State { size, away_since: None, waits_for: None, lost: None, reconnected: 0 };
        let device = Rc::new(Device { of, index, state: RefCell::new(state), closed: Notify::new() });
        self.devices.borrow_mut().insert(device.of.id.clone(), device.clone());
        tokio::task::spawn_local(self.clone().watch(device, look_now));
    }

    pub(crate) async fn open(self: &Rc<Self>, open: DeviceOpen) -> Result<DeviceOpened, ErrorBody> {
        let DeviceOpen { id, volume, session, snapshot, writable } = open;
        if !is_id(&id) {
            return Err(error(E_VALUE, "a device's name has 1 to 64 letters, digits and hyphens"));
        }
        let what = match (session, snapshot) {
            (Some(session), None) => What::Session(volume, session),
            (None, Some(snapshot)) if !writable => What::Snapshot(volume, snapshot),
            _ => return Err(error(E_VALUE, "a device is of a session, or of a snapshot to be read")),
        };
        let _turn = self.turn.lock().await;
        let troubled = |trouble| match trouble {
            Trouble::Taken(body) | Trouble::Refused(body) => body,
            Trouble::Away(why) => error(E_AWAY, why),
        };
        let (path, first) = self.weftd.open(what, None).await.map_err(troubled)?;
        let what = first.map_or(what, |first| What::Session(volume, first));
        let of = Of { id, what, writable };
        let known = self.devices.borrow().get(&of.id).cloned();
        if let Some(known) = known {
            let is_lost = known.state.borrow().lost.is_some();
            if known.of == of && !is_lost {
                return Ok(DeviceOpened { first, device: known.path() });
            }
            if !is_lost {
                return Err(error(E_IN_USE, format!("{:?} is a device already, of something else", of.id)));
            }
            self.forget(&known);
        }
        let (stream, export) = connected(&path, &of).await.map_err(|why| error(E_AWAY, why))?;
        let size = export.size;
        let index = self.make(&of, export, stream).await?;
        tracing::info!(id = of.id, index, %volume, writable, "made a device");
        let device = format!("/dev/nbd{index}");
        self.keep(of, index, size, false);
        Ok(DeviceOpened { first, device })
    }

    async fn make(&self, of: &Of, export: Export, stream: UnixStream) -> Result<u32, ErrorBody> {
        let refused = |e: io::Error| error(E_REFUSED, format!("the kernel makes no nbd device: {e}"));
        let stream = stream.into_std().map_err(refused)?;
        // The kernel's thread waits for what it reads.
        stream.set_nonblocking(false).map_err(refused)?;
        let (backend, sys) = (of.backend(), self.sys.clone());
        let made = tokio::task::spawn_blocking(move || {
            if !netlink::is_there()? {
                // Whoever has no such module is told so below.
                let _ = std::process::Command::new("modprobe").arg("nbd").status();
            }
            let made = Made { size: export.size, flags: export.flags, backend: &backend };
            for index in INDEX_FIRST..INDEX_FIRST + DEVICES_MAX {
                // One that is there is somebody's, or was and is open still: what has that open must not meet another device.
                if sys.join(format!("nbd{index}")).exists() {
                    continue;
                }
                match netlink::connect(index, &made, stream.as_fd()) {
                    Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
                    Err(e) => return Err(e),
                    Ok(()) => return Ok(Some(index)),
                }
            }
            Ok(None)
        });
        let index = match made.await.map_err(io::Error::other).and_then(|made| made) {
            Ok(Some(index)) => index,
            Ok(None) => return Err(error(E_FULL, format!("{DEVICES_MAX} devices are there, the limit"))),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                return Err(error(E_KERNEL, "this host's kernel has no nbd module"));
            }
            Err(e) => return Err(refused(e)),
        };
        let of_device = self.sys.join(format!("nbd{index}"));
        let tuned = fs::write(of_device.join("queue/io_timeout"), REPEAT_MS.to_string());
        if fs::read_to_string(of_device.join("backend")).is_ok_and(|told| told.trim_end() == of.backend())
            && tuned.is_ok()
        {
            // Nothing is gained by ordering requests here.
            let _ = fs::write(of_device.join("queue/scheduler"), "none");
            return Ok(index);
        }
        // Before 5.14 a request that is under way when a connection ends fails, or is not repeated.
        let _ = tokio::task::spawn_blocking(move || netlink::disconnect(index)).await;
        Err(error(E_KERNEL, "this host's kernel is too old for its nbd to be used here: Linux 5.14 can"))
    }

    /// Ends a device; done nothing if there is none.
    pub(crate) async fn close(&self, id: &str) -> Result<(), ErrorBody> {
        let _turn = self.turn.lock().await;
        let Some(device) = self.devices.borrow().get(id).cloned() else { return Ok(()) };
        if device.state.borrow().lost.is_none() {
            disconnected(device.index).await.map_err(|e| {
                error(E_REFUSED, format!("the kernel does not disconnect {}: {e}", device.path()))
            })?;
        }
        self.forget(&device);
        Ok(())
    }

    fn forget(&self, device: &Device) {
        self.devices.borrow_mut().remove(&device.of.id);
        device.closed.notify_one();
    }

    pub(crate) fn list(&self) -> DeviceList {
        let devices = self.devices.borrow();
        let devices = devices.values().map(|device| {
            let state = device.state.borrow();
            let (volume, first, snapshot) = match device.of.what {
                What::Session(volume, first) => (volume, Some(first), None),
                What::Snapshot(volume, snapshot) => (volume, None, Some(snapshot)),
            };
            DeviceEntry {
                id: device.of.id.clone(),
                device: device.path(),
                volume,
                first,
                snapshot,
                writable: device.of.writable,
                size: Decimal(state.size),
                away_ms: state.away_since.map(|since| Decimal(ms_since(since))),
                waits_for: state.waits_for.clone(),
                lost: state.lost.clone(),
                reconnected: Decimal(state.reconnected),
            }
        });
        DeviceList { devices: devices.collect() }
    }

    /// Gives the device a new socket whenever it needs one, until its ownership is over.
    async fn watch(self: Rc<Self>, device: Rc<Device>, look_now: bool) {
        let mut looks = look_now;
        let mut again = AGAIN_FIRST;
        loop {
            // What appears while it looks counts, too.
            let appeared = self.weftd.appeared.notified();
            if looks {
                let looked = tokio::select! {
                    () = device.closed.notified() => return,
                    looked = self.look(&device) => looked,
                };
                if device.is_over(looked) {
                    if let Err(e) = disconnected(device.index).await {
                        tracing::error!(id = device.of.id, error = %e, "the kernel does not disconnect it");
                    }
                    return;
                }
            }
            let is_away = device.state.borrow().away_since.is_some();
            if !is_away {
                again = AGAIN_FIRST;
            }
            let wait = match device.of.what {
                _ if is_away => again,
                What::Session(..) => LOOK,
                // Nobody says who reads a snapshot: a new connection is made when weftd is new.
                What::Snapshot(..) => Duration::MAX,
            };
            tokio::select! {
                () = device.closed.notified() => return,
                () = appeared => again = AGAIN_FIRST,
                () = tokio::time::sleep(wait) => again = (again * 2).min(AGAIN_MAX),
            }
            looks = true;
        }
    }

    /// None: it has its connection. Some: it has a new one.
    async fn look(&self, device: &Device) -> Result<Option<Export>, Trouble> {
        let (path, _) = self.weftd.open(device.of.what, None).await?;
        if let What::Session(volume, _) = device.of.what
            && self.weftd.clients(volume).await? > 0
        {
            return Ok(None);
        }
        let (stream, export) = connected(&path, &device.of).await.map_err(Trouble::Away)?;
        let known = device.state.borrow().size;
        if export.size < known {
            let why = format!("the export has {} bytes, the guest knows {known}", export.size);
            return Err(Trouble::Away(why));
        }
        let stream = stream.into_std().and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        let (stream, index, backend) = (stream.map_err(away)?, device.index, device.of.backend());
        let given =
            tokio::task::spawn_blocking(move || netlink::reconfigure(index, &backend, stream.as_fd()));
        given.await.map_err(|e| away(io::Error::other(e)))?.map_err(away)?;
        Ok(Some(export))
    }
}

fn away(error: io::Error) -> Trouble {
    Trouble::Away(format!("a new connection: {error}"))
}

async fn disconnected(index: u32) -> io::Result<()> {
    tokio::task::spawn_blocking(move || netlink::disconnect(index)).await.map_err(io::Error::other)?
}

/// A connection to the export, which has said that it is of this ownership.
async fn connected(path: &Path, of: &Of) -> Result<(UnixStream, Export), String> {
    let made = async {
        let mut stream = UnixStream::connect(path).await?;
        let export = shake_hands(&mut stream, &of.what.name()).await?;
        io::Result::Ok((stream, export))
    };
    let (stream, export) = made.await.map_err(|e| format!("{}: {e}", path.display()))?;
    if export.is_read_only() && of.writable {
        return Err(format!("{}: the export is read-only", path.display()));
    }
    Ok((stream, export.read_only_if(!of.writable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_is_of_is_read_back_from_the_kernel() {
        let what = What::Session(VolumeId(0xa), SessionId(0xf1));
        let of = Of { id: "00000000-0000-0000-0000-00000000000b".to_owned(), what, writable: true };
        assert_eq!(
            of.backend(),
            "weft/1/00000000-0000-0000-0000-00000000000b/00000000-0000-0000-0000-00000000000a/session/\
             00000000-0000-0000-0000-0000000000f1/w"
        );
        assert_eq!(Of::parse(&format!("{}\n", of.backend())), Some(of.clone()));
        let read = Of { what: What::Snapshot(VolumeId(0xa), SnapId(0xc)), writable: false, ..of.clone() };
        assert_eq!(Of::parse(&read.backend()), Some(read));
        for nonsense in ["", "weft/1", "weft/2/a/b/session/c/w", "qemu", &of.backend()[..40]] {
            assert_eq!(Of::parse(nonsense), None, "{nonsense}");
        }
        assert_eq!(Of::parse(&of.backend().replace("/w", "/x")), None);
        assert_eq!(Of::parse(&format!("{}/more", of.backend())), None);
    }
}
