//! What the agent needs of Linux and Node has no interface for, as an addon that `process.dlopen` loads.
//!
//! Must always hold:
//! - no call waits: a datagram that can't go at once is an error;
//! - nothing here keeps state, and nothing is told about secrets.

use napi::bindgen_prelude::Buffer;
use napi_derive::napi;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, set_dumpable_behavior, setrlimit,
};

/// Who connected a unix socket, as the kernel noted it at `connect`.
#[napi(object)]
pub struct PeerCredentials {
    /// Its process, which may have ended since; 0 where it has no number here, being of another PID namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Of the process at the other end of a connected unix socket.
///
/// # Errors
/// The kernel's: the number is no open descriptor, or not a socket.
#[napi]
pub fn peer_credentials(fd: i32) -> napi::Result<PeerCredentials> {
    if fd < 0 {
        return Err(failed("peer credentials", Errno::BADF));
    }
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let size = size_of::<libc::ucred>();
    let mut length = libc::socklen_t::try_from(size).expect("a ucred has twelve bytes");
    let into = (&raw mut peer).cast();
    // JUSTIFICATION: rustix's type for this has no process 0 (1.1.6), and Node tells us of its socket only the number.
    // SAFETY: `into` and `length` are of a whole `ucred` that lives until the call is over. The caller's socket holds the
    // number open during this call, which runs on Node's one thread; of a number that is none the kernel says EBADF.
    let outcome = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut length) };
    if outcome != 0 {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
        return Err(failed("peer credentials", errno));
    }
    if usize::try_from(length) != Ok(size) {
        return Err(failed("peer credentials", Errno::INVAL));
    }
    Ok(PeerCredentials { pid: peer.pid, uid: peer.uid, gid: peer.gid })
}

/// From now on no core dump is written of this process or of those that it starts, and only root may look into its memory.
///
/// # Errors
/// The kernel's.
#[napi]
pub fn protect() -> napi::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|errno| failed("RLIMIT_CORE 0", errno))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| failed("PR_SET_DUMPABLE 0", errno))
}

/// Whether the kernel would write a core dump of this process, should the limit allow it.
///
/// # Errors
/// The kernel's.
#[napi]
pub fn is_dumpable() -> napi::Result<bool> {
    let behavior = dumpable_behavior().map_err(|errno| failed("PR_GET_DUMPABLE", errno))?;
    Ok(behavior != DumpableBehavior::NotDumpable)
}

/// One datagram to the unix socket at this path, such as the system log's; `@name` is an abstract one.
///
/// # Errors
/// The kernel's: nobody listens there, or the listener is behind.
#[napi]
pub fn send_datagram(path: String, data: Buffer) -> napi::Result<()> {
    let what = "datagram";
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(path),
    };
    let address = address.map_err(|errno| failed(what, errno))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .map_err(|errno| failed(what, errno))?;
    sendto(&socket, &data, SendFlags::NOSIGNAL, &address).map_err(|errno| failed(what, errno))?;
    Ok(())
}

fn failed(what: &str, errno: Errno) -> napi::Error {
    napi::Error::from_reason(format!("{what}: {errno}"))
}
