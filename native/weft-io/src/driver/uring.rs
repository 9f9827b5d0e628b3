//! The driver over io_uring: batched submission, one system call for submit and wait.
//!
//! Must always hold:
//! * buffers, gather lists and descriptors of an op stay in place until its completion was seen;
//! * the locks given to [`Driver::hold_lock`] are registered in the ring, so that they outlive the process until
//!   its last request has ended (protocol.md R13).
//!
//! Why `unsafe`: the kernel is handed addresses; the slab entry that owns what they point to lives until the
//! completion.

use core::time::Duration;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};
use weft_proto::payload::Payload;

use super::slab::Slab;
use super::{
    Completion, Driver, DriverConfig, DriverKind, Errno, Fd, Op, Outcome, Spin, Waker, gather_bufs,
    gather_parts, message, recv_window,
};

/// Completion key of the waker's poll.
const WAKE: u64 = u64::MAX;
/// A key that no op ever has.
const NOBODY: u64 = u64::MAX - 1;
/// Places for lock files: pools of one reactor thread.
const LOCKS: usize = 64;

/// Gather list and header of an op, at addresses that don't move.
struct Gather {
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
}

// SAFETY: the pointers inside lead to the op's own buffers, which move to another thread together with it.
unsafe impl Send for Gather {}

struct Entry {
    token: u64,
    op: Op,
    gather: Option<Box<Gather>>,
    /// The kernel answered "not ready" although we did not ask for that (nonblocking descriptors, older kernels):
    /// the op waits in a poll and is then tried again.
    polling: bool,
    cancelled: bool,
    /// Was cancelled before the kernel saw it; a request that does nothing stands for it.
    unsent: bool,
    /// For a Cancel: key of the op to end.
    victim: u64,
}

impl Entry {
    fn new(token: u64, op: Op, victim: u64) -> Entry {
        Entry { token, op, gather: None, polling: false, cancelled: false, unsent: false, victim }
    }
}

/// See the module.
pub struct UringDriver {
    ring: IoUring,
    entries: Slab<Entry>,
    /// Ops that found the submission queue full.
    backlog: VecDeque<u64>,
    waker: Waker,
    waker_armed: bool,
    woken: bool,
    locks: Vec<Option<Fd>>,
    spin: Spin,
}

impl fmt::Debug for UringDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringDriver(in_flight={})", self.entries.len())
    }
}

impl UringDriver {
    /// Sets up a ring; fails where the kernel has none, forbids it, or is older than 5.15's features.
    pub fn new(config: DriverConfig) -> io::Result<UringDriver> {
        let entries = config.entries.next_power_of_two().clamp(8, 4096);
        let cq = entries * 8;
        // COOP_TASKRUN (5.19) spares an interrupt a completion; 5.15 refuses it.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_cqsize(cq)
            .dontfork()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_cqsize(cq).dontfork().build(entries))?;
        let params = ring.params();
        if !(params.is_feature_ext_arg() && params.is_feature_nodrop() && params.is_feature_submit_stable()) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        // Empty places now, so that holding a lock later needs no pause of the ring.
        ring.submitter().register_files(&[-1; LOCKS])?;
        Ok(UringDriver {
            ring,
            entries: Slab::new(),
            backlog: VecDeque::new(),
            waker: Waker::new()?,
            waker_armed: false,
            woken: false,
            locks: vec![None; LOCKS],
            spin: Spin::new(config.spin),
        })
    }

    /// Puts an entry into the submission queue, handing that to the kernel when it is full.
    fn push(&mut self, key: u64) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.cancelled {
            entry.unsent = true;
            // Cancelled before the kernel knew of it: let the kernel see a request that ends at once.
            let nop = opcode::Nop::new().build().user_data(key);
            if !self.push_sqe(&nop) {
                self.backlog.push_back(key);
            }
            return;
        }
        let sqe = prepare(entry).user_data(key);
        if !self.push_sqe(&sqe) {
            self.backlog.push_back(key);
        }
    }

    fn push_sqe(&mut self, sqe: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: the slab entry owns everything the request points to until its completion is seen.
            if unsafe { self.ring.submission().push(sqe) }.is_ok() {
                return true;
            }
            // A failure (completion queue full, no memory) leaves the request in our backlog.
            if self.ring.submit().is_err() {
                return false;
            }
        }
        false
    }

    fn push_waiting(&mut self) {
        if !self.waker_armed {
            let poll = opcode::PollAdd::new(types::Fd(self.waker.raw_fd()), libc::POLLIN as u32);
            self.waker_armed = self.push_sqe(&poll.build().user_data(WAKE));
        }
        for _ in 0..self.backlog.len() {
            if let Some(key) = self.backlog.pop_front() {
                let before = self.backlog.len();
                self.push(key);
                if self.backlog.len() > before {
                    break;
                }
            }
        }
    }

    /// Takes what has completed; true if there was something for the caller, or the waker fired.
    fn reap(&mut self, out: &mut Vec<Completion>) -> bool {
        let before = out.len();
        loop {
            let Some((key, result)) = self.ring.completion().next().map(|c| (c.user_data(), c.result()))
            else {
                break;
            };
            if key == WAKE {
                self.waker.clear();
                self.waker_armed = false;
                self.woken = true;
                continue;
            }
            let Some(entry) = self.entries.get_mut(key) else { continue };
            let was_polling = core::mem::replace(&mut entry.polling, false);
            let not_ready = result == -libc::EAGAIN
                && matches!(entry.op, Op::Accept { .. } | Op::Recv { .. } | Op::Send { .. });
            if core::mem::take(&mut entry.unsent) {
                self.complete(key, -libc::ECANCELED, out);
                continue;
            }
            if not_ready || (was_polling && result >= 0) {
                if !entry.cancelled {
                    entry.polling = not_ready;
                    self.push(key);
                    continue;
                }
                self.complete(key, -libc::ECANCELED, out);
                continue;
            }
            self.complete(key, result, out);
        }
        out.len() > before || core::mem::take(&mut self.woken)
    }

    fn complete(&mut self, key: u64, result: i32, out: &mut Vec<Completion>) {
        let Some(entry) = self.entries.remove(key) else { return };
        let result = match usize::try_from(result) {
            Err(_) => Err(Errno(-result)),
            Ok(count) => Ok(match &entry.op {
                Op::Recv { .. } | Op::Send { .. } | Op::ReadAt { .. } | Op::WriteAt { .. } => {
                    Outcome::Bytes(count)
                }
                // SAFETY: the kernel has just made this descriptor for us.
                Op::Accept { .. } => Outcome::Accepted(unsafe { OwnedFd::from_raw_fd(result) }),
                Op::PollRead { .. } | Op::PollWrite { .. } => Outcome::Ready,
                Op::Fdatasync { .. } | Op::Cancel { .. } => Outcome::Done,
            }),
        };
        out.push(Completion { token: entry.token, op: entry.op, result });
    }

    /// One system call: submit, and wait for a completion if `timeout` is not zero.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let result = match timeout {
            Some(Duration::ZERO) => self.ring.submit(),
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let spec = types::Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&spec))
            }
        };
        match result {
            Ok(_) => Ok(()),
            // Time is up; a signal came; completions must be taken first; memory is short: all end this wait only.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}

/// The kernel's form of an op. Addresses point into `entry`'s buffers.
fn prepare(entry: &mut Entry) -> squeue::Entry {
    let fd = |fd: &Fd| types::Fd(fd.as_raw_fd());
    if entry.polling {
        let (socket, events) = match &entry.op {
            Op::Accept { listener } => (listener, libc::POLLIN),
            Op::Recv { socket, .. } => (socket, libc::POLLIN),
            Op::Send { socket, .. } => (socket, libc::POLLOUT),
            other => unreachable!("{other:?} never waits in a poll"),
        };
        return opcode::PollAdd::new(fd(socket), events as u32).build();
    }
    match &mut entry.op {
        Op::Accept { listener } => {
            opcode::Accept::new(fd(listener), core::ptr::null_mut(), core::ptr::null_mut())
                .flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
                .build()
        }
        Op::Recv { socket, buf, start, len } => {
            let (address, len) = recv_window(buf, *start, *len);
            opcode::Recv::new(fd(socket), address, length(len)).build()
        }
        Op::Send { socket, parts, skip } => {
            let iovecs = gather_parts(parts, *skip);
            let mut gather = Box::new(Gather { message: message(&iovecs), iovecs });
            gather.message.msg_iov = gather.iovecs.as_mut_ptr();
            let address: *const libc::msghdr = &gather.message;
            entry.gather = Some(gather);
            opcode::SendMsg::new(fd(socket), address).flags(libc::MSG_NOSIGNAL as u32).build()
        }
        Op::ReadAt { file, offset, buf } => {
            let len = length(buf.len());
            opcode::Read::new(fd(file), buf.as_mut_ptr(), len).offset(*offset).build()
        }
        Op::WriteAt { file, offset, bufs, durable } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            if let [buf] = &bufs[..] {
                return opcode::Write::new(fd(file), buf.as_ptr(), length(buf.len()))
                    .offset(*offset)
                    .rw_flags(flags)
                    .build();
            }
            let iovecs = gather_bufs(bufs);
            let gather = Box::new(Gather { message: message(&iovecs), iovecs });
            let (address, count) = (gather.iovecs.as_ptr(), length(gather.iovecs.len()));
            entry.gather = Some(gather);
            opcode::Writev::new(fd(file), address, count).offset(*offset).rw_flags(flags).build()
        }
        Op::Fdatasync { file } => opcode::Fsync::new(fd(file)).flags(types::FsyncFlags::DATASYNC).build(),
        Op::PollRead { fd: target } => opcode::PollAdd::new(fd(target), libc::POLLIN as u32).build(),
        Op::PollWrite { fd: target } => opcode::PollAdd::new(fd(target), libc::POLLOUT as u32).build(),
        Op::Cancel { .. } => opcode::AsyncCancel::new(entry.victim).build(),
    }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("buffers are below 4 GiB")
}

impl Driver for UringDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::IoUring
    }

    fn submit(&mut self, token: u64, op: Op) {
        if let Op::Cancel { target } = op {
            return self.submit_cancel(token, target);
        }
        let key = self.entries.insert(Entry::new(token, op, NOBODY));
        self.push(key);
    }

    fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        self.push_waiting();
        if self.reap(out) {
            return self.enter(Some(Duration::ZERO));
        }
        let budget = self.spin.budget(self.entries.len(), timeout);
        if !budget.is_zero() {
            let start = Instant::now();
            while start.elapsed() < budget {
                self.enter(Some(Duration::ZERO))?;
                if self.reap(out) {
                    self.spin.learn(true);
                    return Ok(());
                }
                core::hint::spin_loop();
            }
            self.spin.learn(false);
        }
        self.enter(timeout)?;
        self.reap(out);
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn in_flight(&self) -> usize {
        self.entries.len()
    }

    fn hold_lock(&mut self, lock: Fd) -> io::Result<()> {
        let place = self
            .locks
            .iter()
            .position(Option::is_none)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        let raw = lock.as_raw_fd();
        self.ring.submitter().register_files_update(length(place), &[raw])?;
        self.locks[place] = Some(lock);
        Ok(())
    }

    fn release_lock(&mut self, lock: &Fd) -> io::Result<()> {
        let Some(place) = self.locks.iter().position(|l| l.as_ref().is_some_and(|l| Arc::ptr_eq(l, lock)))
        else {
            return Ok(());
        };
        self.ring.submitter().register_files_update(length(place), &[-1])?;
        self.locks[place] = None;
        Ok(())
    }
}

impl UringDriver {
    fn submit_cancel(&mut self, token: u64, target: u64) {
        let key = self
            .entries
            .iter()
            .find(|(_, e)| e.token == target && !e.cancelled && !matches!(e.op, Op::Cancel { .. }))
            .map(|(key, _)| key);
        if let Some(entry) = key.and_then(|key| self.entries.get_mut(key)) {
            entry.cancelled = true;
        }
        // An unknown target is looked for by the kernel too, in vain: one path for the answer.
        let own = self.entries.insert(Entry::new(token, Op::Cancel { target }, key.unwrap_or(NOBODY)));
        self.push(own);
    }
}

impl Drop for UringDriver {
    /// The kernel may still write into the buffers: asks it to stop, and waits until it has let go of all.
    fn drop(&mut self) {
        let keys: Vec<u64> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.cancelled = true;
            }
            self.push_sqe(&opcode::AsyncCancel::new(key).build().user_data(NOBODY));
        }
        // What never reached the kernel ends here.
        while let Some(key) = self.backlog.pop_front() {
            self.entries.remove(key);
        }
        let mut ended = Vec::new();
        while self.entries.len() > 0 {
            if self.enter(Some(Duration::from_secs(1))).is_err() {
                // No way to learn when the kernel is done: memory that it may write to is never given back.
                core::mem::forget(core::mem::replace(&mut self.entries, Slab::new()));
                return;
            }
            self.reap(&mut ended);
        }
    }
}
