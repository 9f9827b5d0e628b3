//! What the agent needs of Linux and Node has no interface for, as an addon that `process.dlopen` loads.
//!
//! Must always hold:
//! - no call waits: a datagram that can't go at once is an error;
//! - nothing here keeps state, and nothing is told about secrets.

use std::os::fd::BorrowedFd;

use napi::bindgen_prelude::Buffer;
use napi_derive::napi;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with, sockopt,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, set_dumpable_behavior, setrlimit,
};

/// Who connected a unix socket, as the kernel noted it at `connect`.
#[napi(object)]
pub struct PeerCredentials {
    /// Its process, which may have ended since.
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
    // JUSTIFICATION: Node owns the socket and tells us only its number.
    // SAFETY: not negative. The caller's socket holds it open during this call, which runs on Node's one thread; of a
    // number that is none the kernel says EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let peer = sockopt::socket_peercred(fd).map_err(|errno| failed("peer credentials", errno))?;
    Ok(PeerCredentials {
        pid: peer.pid.as_raw_nonzero().get(),
        uid: peer.uid.as_raw(),
        gid: peer.gid.as_raw(),
    })
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

/// One datagram to the unix socket at this path, such as the system log's.
///
/// # Errors
/// The kernel's: nobody listens there, or the listener is behind.
#[napi]
pub fn send_datagram(path: String, data: Buffer) -> napi::Result<()> {
    let what = "datagram";
    let address = SocketAddrUnix::new(path).map_err(|errno| failed(what, errno))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .map_err(|errno| failed(what, errno))?;
    sendto(&socket, &data, SendFlags::NOSIGNAL, &address).map_err(|errno| failed(what, errno))?;
    Ok(())
}

fn failed(what: &str, errno: Errno) -> napi::Error {
    napi::Error::from_reason(format!("{what}: {errno}"))
}
