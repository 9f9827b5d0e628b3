//! The completion driver: one per reactor thread, told what to do by [`Op`]s, answering with [`Completion`]s.
//!
//! Two implementations with one behaviour: `uring` (kernel 5.15 or later) and `aio` (epoll and libaio, for
//! the kernel 4.19 of XCP-ng's dom0). [`open`] picks; the same test-suite runs on both.
//!
//! Must always hold:
//! * every submitted op completes exactly once and hands itself back, buffers and all, also on error;
//! * an op in flight owns its descriptor and buffers, so neither is closed or reused under the kernel;
//! * dropping a driver waits for the kernel to let go of all buffers.
//!
//! The loop of a reactor thread:
//!
//! ```text
//! driver.wait(until_next_timer, &mut done)?;          // submits what was queued, then waits
//! for completion in done.drain(..) {
//!     // route by completion.token: pool.handle_completion(..), connection.handle_completion(..)
//! }
//! pool.drive(&mut driver);                            // and the connections': queue the next ops
//! ```

mod aio;
pub(crate) mod slab;
mod uring;

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use weft_proto::payload::Payload;

pub use aio::AioDriver;
pub use uring::UringDriver;

use crate::buffer::IoBuf;

/// A descriptor that ops share; closed when the last holder lets go.
pub type Fd = Arc<OwnedFd>;

/// A stretch of bytes to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Data.
    Buf(IoBuf),
    /// Headers and the like.
    Bytes(Vec<u8>),
}

impl Part {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Part::Buf(buf) => buf.bytes(),
            Part::Bytes(bytes) => bytes,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// True when there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many parts one [`Op::Send`] or [`Op::WriteAt`] passes to the kernel at most (its IOV_MAX); parts beyond
/// it make the op complete short.
pub const PARTS_MAX: usize = 1024;

/// What a driver is asked to do. It comes back unchanged in the [`Completion`], reads filled in.
#[derive(Debug)]
pub enum Op {
    /// Takes one connection; completes with [`Outcome::Accepted`]. The listener must be nonblocking.
    Accept {
        /// The listening socket.
        listener: Fd,
    },
    /// Receives at most `len` bytes into `buf` from `start` on; completes as soon as there is any. 0 bytes is
    /// the end of the stream. A shared `buf` is copied first.
    Recv {
        /// A stream socket.
        socket: Fd,
        /// Where the bytes go.
        buf: IoBuf,
        /// First byte within `buf`.
        start: usize,
        /// How many at most.
        len: usize,
    },
    /// Sends the parts in order without their first `skip` bytes, in one sendmsg; may complete short.
    Send {
        /// A stream socket.
        socket: Fd,
        /// At most [`PARTS_MAX`] after those skipped.
        parts: Vec<Part>,
        /// Bytes of `parts` that an earlier op has already sent.
        skip: usize,
    },
    /// Reads `buf.len()` bytes at an offset; short only at the end of the file.
    ReadAt {
        /// A file.
        file: Fd,
        /// In bytes; with O_DIRECT a multiple of 4096, as is the length.
        offset: u64,
        /// Where the bytes go. A shared buffer is copied first.
        buf: IoBuf,
    },
    /// Writes the buffers one after the other at an offset; may complete short when the file system is full.
    WriteAt {
        /// A file.
        file: Fd,
        /// In bytes.
        offset: u64,
        /// The data.
        bufs: Vec<IoBuf>,
        /// Data and what is needed to find it are on stable media at completion (RWF_DSYNC).
        durable: bool,
    },
    /// Makes everything written to the file durable.
    Fdatasync {
        /// A file.
        file: Fd,
    },
    /// Completes with [`Outcome::Ready`] when the descriptor has something to read, or an error or hang-up.
    PollRead {
        /// A socket, pipe, eventfd …
        fd: Fd,
    },
    /// Completes with [`Outcome::Ready`] when the descriptor can be written; after a nonblocking connect that
    /// means "connected or failed" (ask SO_ERROR).
    PollWrite {
        /// A socket, pipe …
        fd: Fd,
    },
    /// Asks to end the oldest op with this token early; that op then completes with `ECANCELED`, or normally if it
    /// was too late. Completes itself with [`Outcome::Done`], or `ENOENT`/`EALREADY` when there was nothing to
    /// cancel or it can't be stopped (disk I/O with libaio).
    Cancel {
        /// The token of the op to end.
        target: u64,
    },
}

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// No space, or a quota reached: waiting or trimming helps.
    #[must_use]
    pub fn is_no_space(self) -> bool {
        matches!(self.0, libc::ENOSPC | libc::EDQUOT)
    }

    /// The op was ended by [`Op::Cancel`].
    #[must_use]
    pub fn is_cancelled(self) -> bool {
        self.0 == libc::ECANCELED
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl core::error::Error for Errno {}

/// What an op came to.
#[derive(Debug)]
pub enum Outcome {
    /// Recv, Send, ReadAt, WriteAt: how many bytes.
    Bytes(usize),
    /// Accept: the connection, nonblocking and close-on-exec.
    Accepted(OwnedFd),
    /// PollRead, PollWrite.
    Ready,
    /// Fdatasync, Cancel.
    Done,
}

/// An op that has ended.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: u64,
    /// The op itself, handed back.
    pub op: Op,
    /// What it came to.
    pub result: Result<Outcome, Errno>,
}

/// Which implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring.
    IoUring,
    /// epoll and libaio.
    Libaio,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverKind::IoUring => "io_uring",
            DriverKind::Libaio => "libaio",
        })
    }
}

/// How a driver is set up.
#[derive(Clone, Copy, Debug)]
pub struct DriverConfig {
    /// Submission slots: ops handed to the kernel in one call, and with libaio disk requests in the kernel at
    /// once. More may be submitted; they queue.
    pub entries: u32,
    /// Look for completions for at most this long before sleeping, while ops are in flight and as long as that
    /// lately paid. Zero, the default, never spins: right whenever runnable threads may exceed cores.
    pub spin: Duration,
}

impl Default for DriverConfig {
    fn default() -> Self {
        DriverConfig { entries: 256, spin: Duration::ZERO }
    }
}

/// A completion-based I/O engine owned by one thread.
pub trait Driver {
    /// Which implementation this is.
    fn kind(&self) -> DriverKind;

    /// Queues an op; the kernel sees it at the latest at the next [`Driver::wait`]. Tokens are the caller's
    /// and need not be unique, except for [`Op::Cancel`].
    fn submit(&mut self, token: u64, op: Op);

    /// Submits what is queued, waits until something completes, a [`Waker`] fires or `timeout` passes (`None`:
    /// for ever; zero: doesn't wait), and appends what completed to `out`. May return early with nothing.
    fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()>;

    /// Ends a [`Driver::wait`] from any thread.
    fn waker(&self) -> Waker;

    /// Ops that have not completed yet.
    fn in_flight(&self) -> usize;

    /// Keeps a flocked descriptor open for as long as the kernel works on any I/O of this driver, even after
    /// kill -9 (protocol.md R13). With io_uring the ring itself must hold it, because a ring outlives its
    /// process until its last request has ended; with libaio the process does, as its end waits for them.
    fn hold_lock(&mut self, lock: Fd) -> io::Result<()>;

    /// Undoes [`Driver::hold_lock`] when all I/O that the lock protects has completed.
    fn release_lock(&mut self, lock: &Fd) -> io::Result<()>;
}

/// Opens the best driver that works here, or the one asked for.
pub fn open(kind: Option<DriverKind>, config: DriverConfig) -> io::Result<AnyDriver> {
    match kind {
        Some(DriverKind::IoUring) => UringDriver::new(config).map(AnyDriver::Uring),
        Some(DriverKind::Libaio) => AioDriver::new(config).map(AnyDriver::Aio),
        None => match UringDriver::new(config) {
            Ok(driver) => Ok(AnyDriver::Uring(driver)),
            Err(_) => AioDriver::new(config).map(AnyDriver::Aio),
        },
    }
}

/// [`open`] without preference: io_uring where the kernel has and allows it, else libaio.
pub fn auto() -> io::Result<AnyDriver> {
    open(None, DriverConfig::default())
}

/// One of the drivers, chosen at start-up.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per thread")]
pub enum AnyDriver {
    /// io_uring.
    Uring(UringDriver),
    /// epoll and libaio.
    Aio(AioDriver),
}

macro_rules! either {
    ($self:ident, $driver:ident => $body:expr) => {
        match $self {
            AnyDriver::Uring($driver) => $body,
            AnyDriver::Aio($driver) => $body,
        }
    };
}

impl Driver for AnyDriver {
    fn kind(&self) -> DriverKind {
        either!(self, d => d.kind())
    }
    fn submit(&mut self, token: u64, op: Op) {
        either!(self, d => d.submit(token, op));
    }
    fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        either!(self, d => d.wait(timeout, out))
    }
    fn waker(&self) -> Waker {
        either!(self, d => d.waker())
    }
    fn in_flight(&self) -> usize {
        either!(self, d => d.in_flight())
    }
    fn hold_lock(&mut self, lock: Fd) -> io::Result<()> {
        either!(self, d => d.hold_lock(lock))
    }
    fn release_lock(&mut self, lock: &Fd) -> io::Result<()> {
        either!(self, d => d.release_lock(lock))
    }
}

/// Ends a [`Driver::wait`] from any thread; many wakes before the driver looks are one.
#[derive(Clone, Debug)]
pub struct Waker(Arc<WakeFlag>);

#[derive(Debug)]
struct WakeFlag {
    event: OwnedFd,
    /// Set by the first wake, cleared by the driver after it emptied the eventfd: saves a system call a wake.
    pending: AtomicBool,
}

impl Waker {
    fn new() -> io::Result<Waker> {
        // SAFETY: no memory is passed.
        let fd = checked(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Waker(Arc::new(WakeFlag { event, pending: AtomicBool::new(false) })))
    }

    /// Makes the driver's current or next [`Driver::wait`] return. What the caller published before is visible
    /// to the driver's thread after that.
    pub fn wake(&self) {
        if !self.0.pending.swap(true, Ordering::AcqRel) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight readable bytes. The only possible failure is a full counter, which wakes as well.
            unsafe { libc::write(self.raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    fn raw_fd(&self) -> i32 {
        self.0.event.as_raw_fd()
    }

    /// By the driver, before its caller looks for what was published.
    fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes. The eventfd is nonblocking; "nothing there" is fine.
        unsafe { libc::read(self.raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        self.0.pending.swap(false, Ordering::AcqRel);
    }
}

/// Decides whether looking again before sleeping pays: one success outweighs seven failures.
#[derive(Debug)]
struct Spin {
    limit: Duration,
    credit: u32,
    resting: u32,
}

impl Spin {
    const CREDIT_MAX: u32 = 8;
    /// After the credit is gone, this many waits sleep at once before spinning is tried again.
    const REST: u32 = 64;

    fn new(limit: Duration) -> Spin {
        Spin { limit, credit: Spin::CREDIT_MAX, resting: 0 }
    }

    /// How long the next wait may spin; zero if not at all.
    fn budget(&mut self, in_flight: usize, timeout: Option<Duration>) -> Duration {
        if in_flight == 0 || self.limit.is_zero() {
            return Duration::ZERO;
        }
        if self.credit == 0 {
            self.resting += 1;
            if self.resting < Spin::REST {
                return Duration::ZERO;
            }
            self.resting = 0;
            self.credit = 1;
        }
        timeout.map_or(self.limit, |t| t.min(self.limit))
    }

    fn learn(&mut self, found: bool) {
        self.credit =
            if found { (self.credit + 7).min(Spin::CREDIT_MAX) } else { self.credit.saturating_sub(1) };
    }
}

/// The gather list of a Send without its first `skip` bytes.
fn gather_parts(parts: &[Part], mut skip: usize) -> Vec<libc::iovec> {
    let mut iovecs = Vec::with_capacity(parts.len().min(PARTS_MAX));
    for bytes in parts.iter().map(Part::bytes) {
        if skip >= bytes.len() {
            skip -= bytes.len();
            continue;
        }
        iovecs.push(iovec(&bytes[skip..]));
        skip = 0;
        if iovecs.len() == PARTS_MAX {
            break;
        }
    }
    iovecs
}

/// The gather list of a WriteAt.
fn gather_bufs(bufs: &[IoBuf]) -> Vec<libc::iovec> {
    bufs.iter().take(PARTS_MAX).map(|buf| iovec(buf.bytes())).collect()
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// The message header of a gather list that outlives it.
fn message(iovecs: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: null pointers, zero lengths.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len() as _;
    message
}

/// The range of a Recv, asserted: beyond the buffer the kernel would write into a stranger's memory.
fn recv_window(buf: &mut IoBuf, start: usize, len: usize) -> (*mut u8, usize) {
    assert!(start <= buf.len() && len <= buf.len() - start, "receive {start}+{len} into {}", buf.len());
    (buf.bytes_mut()[start..].as_mut_ptr(), len)
}

/// A system call's result: -1 is the thread's errno.
pub(crate) fn checked(result: i32) -> Result<i32, Errno> {
    if result < 0 { Err(io::Error::last_os_error().into()) } else { Ok(result) }
}

/// The tokens of one user of a driver (a pool, a connection): 2^48 of them under a name of 16 bits, so that the
/// reactor's loop knows whose a completion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenSpace(pub u16);

impl TokenSpace {
    /// The space that a token belongs to.
    #[must_use]
    pub fn of(token: u64) -> TokenSpace {
        TokenSpace(u16::try_from(token >> 48).expect("16 bits remain"))
    }

    /// The token of a key below 2^48.
    #[must_use]
    pub fn token(self, key: u64) -> u64 {
        assert!(key < 1 << 48, "key {key:#x} has more than 48 bits");
        (u64::from(self.0) << 48) | key
    }

    /// The key of a token.
    #[must_use]
    pub fn key(token: u64) -> u64 {
        token & ((1 << 48) - 1)
    }
}

/// A file offset as the kernel's signed type. Panics beyond 2^63: volumes end at 64 TiB.
fn signed(offset: u64) -> i64 {
    i64::try_from(offset).expect("an offset below 2^63")
}

#[cfg(test)]
mod tests;
