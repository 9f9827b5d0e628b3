//! The driver over epoll and libaio, for kernels without io_uring (dom0's 4.19).
//!
//! Sockets are tried at once and then wait for an edge of epoll; disk requests go to the kernel in batches by
//! io_submit and announce their end through an eventfd. Nothing here needs a kernel newer than 4.18 (aio
//! fdatasync; RWF_DSYNC in aio came with 4.13).
//!
//! Must always hold:
//! * buffers and descriptors of a disk request stay in place until its event was seen;
//! * a socket op waits in a queue only after the kernel said "not ready", so that no edge is missed.
//!
//! A file opened without O_DIRECT is read and written inside io_submit, which then blocks: pools open their files
//! with O_DIRECT wherever the file system can.
//!
//! Why `unsafe`: libaio's system calls have no safe wrapper; the kernel is handed addresses of buffers that the
//! slab entry owns.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::Instant;

use weft_proto::payload::Payload;

use super::slab::Slab;
use super::{
    Completion, Driver, DriverConfig, DriverKind, Errno, Fd, Op, Outcome, Spin, Waker, checked, gather_bufs,
    gather_parts, message, recv_window, signed,
};

/// The kernel's `struct iocb`, little-endian layout.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// The kernel's `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;

#[cfg(target_endian = "big")]
compile_error!("struct iocb has another order of fields on big-endian machines");

/// epoll's names for our own eventfds; sockets carry their descriptor's number.
const WAKE: u64 = u64::MAX;
const DISK: u64 = u64::MAX - 1;

struct Entry {
    token: u64,
    op: Op,
    /// In the kernel as a disk request.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers in `iovecs` lead to the op's own buffers, which move to another thread together with it.
unsafe impl Send for Entry {}

/// A descriptor that epoll watches, with the ops that wait for it.
struct Watched {
    /// Tells a closed and reused descriptor number from the one that was registered.
    fd: Weak<OwnedFd>,
    readers: VecDeque<u64>,
    writers: VecDeque<u64>,
}

/// See the module.
pub struct AioDriver {
    epoll: OwnedFd,
    context: libc::c_ulong,
    disk_event: OwnedFd,
    waker: Waker,
    entries: Slab<Entry>,
    watched: HashMap<RawFd, Watched>,
    /// Disk requests that the kernel has not seen yet.
    disk_queue: VecDeque<u64>,
    in_kernel: usize,
    in_kernel_max: usize,
    /// Ops that ended without waiting.
    ready: Vec<Completion>,
    locks: Vec<Fd>,
    spin: Spin,
}

impl fmt::Debug for AioDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AioDriver(in_flight={})", self.in_flight())
    }
}

impl AioDriver {
    /// Sets up epoll and a libaio context; fails when the host's `fs.aio-max-nr` is used up.
    pub fn new(config: DriverConfig) -> io::Result<AioDriver> {
        let entries = config.entries.clamp(8, 4096);
        // SAFETY: no memory is passed.
        let epoll = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        // SAFETY: no memory is passed.
        let event = checked(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let disk_event = unsafe { OwnedFd::from_raw_fd(event) };
        let waker = Waker::new()?;
        watch(&epoll, disk_event.as_raw_fd(), libc::EPOLLIN as u32, DISK)?;
        watch(&epoll, waker.raw_fd(), libc::EPOLLIN as u32, WAKE)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is writable and zero, as io_setup wants it.
        if unsafe { libc::syscall(libc::SYS_io_setup, libc::c_long::from(entries), &raw mut context) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(AioDriver {
            epoll,
            context,
            disk_event,
            waker,
            entries: Slab::new(),
            watched: HashMap::new(),
            disk_queue: VecDeque::new(),
            in_kernel: 0,
            in_kernel_max: entries as usize,
            ready: Vec::new(),
            locks: Vec::new(),
            spin: Spin::new(config.spin),
        })
    }

    /// Hands queued disk requests to the kernel.
    fn submit_disk(&mut self) {
        while self.in_kernel < self.in_kernel_max && !self.disk_queue.is_empty() {
            let batch = self.disk_queue.len().min(self.in_kernel_max - self.in_kernel);
            let mut iocbs: Vec<Iocb> = Vec::with_capacity(batch);
            for key in self.disk_queue.iter().take(batch) {
                let entry = self.entries.get_mut(*key).expect("a queued request has its entry");
                let mut iocb = prepare(entry);
                iocb.data = *key;
                iocb.flags = IOCB_FLAG_RESFD;
                iocb.resfd = unsigned(self.disk_event.as_raw_fd());
                iocbs.push(iocb);
            }
            let mut pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(core::ptr::from_mut).collect();
            // SAFETY: the pointers lead to `batch` live iocbs, which the kernel copies in this call; the buffers
            // that they name are owned by the slab entries until the events were seen.
            let taken = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, pointers.len(), pointers.as_mut_ptr())
            };
            match usize::try_from(taken) {
                Ok(taken) => {
                    self.disk_queue.drain(..taken);
                    self.in_kernel += taken;
                    if taken == 0 {
                        return;
                    }
                }
                Err(_) => {
                    let errno = Errno::from(io::Error::last_os_error());
                    if errno.0 == libc::EAGAIN && self.in_kernel > 0 {
                        return; // full: the next completion makes room
                    }
                    if errno.0 == libc::EINTR {
                        continue;
                    }
                    // It speaks of the first request only.
                    if let Some(key) = self.disk_queue.pop_front() {
                        self.finish(key, Err(errno));
                    }
                }
            }
        }
    }

    /// Takes the events of disk requests.
    fn reap_disk(&mut self) {
        let mut events = [IoEvent::default(); 64];
        while self.in_kernel > 0 {
            let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let room = events.len();
            // SAFETY: `events` has room for as many events as we say; the time-out is readable.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    0 as libc::c_long,
                    room,
                    events.as_mut_ptr(),
                    &raw mut now,
                )
            };
            let count = usize::try_from(count).unwrap_or(0);
            self.in_kernel -= count;
            for event in &events[..count] {
                let result = match usize::try_from(event.res) {
                    Ok(bytes) => Ok(bytes),
                    Err(_) => Err(Errno(i32::try_from(-event.res).unwrap_or(libc::EIO))),
                };
                let Some(entry) = self.entries.get_mut(event.data) else { continue };
                let done = matches!(entry.op, Op::Fdatasync { .. });
                self.finish(event.data, result.map(|n| if done { Outcome::Done } else { Outcome::Bytes(n) }));
            }
            if count < room {
                return;
            }
        }
    }

    fn finish(&mut self, key: u64, result: Result<Outcome, Errno>) {
        if let Some(entry) = self.entries.remove(key) {
            self.ready.push(Completion { token: entry.token, op: entry.op, result });
        }
    }

    /// Tries a socket op; queues it behind `fd`'s readiness if that has to come first.
    fn start_socket_op(&mut self, token: u64, op: Op) {
        let (fd, writes) = socket_of(&op);
        let fd = fd.clone();
        let number = fd.as_raw_fd();
        let known = self.watched.get(&number).filter(|w| core::ptr::eq(w.fd.as_ptr(), Arc::as_ptr(&fd)));
        let in_line = known.is_some_and(|w| !if writes { &w.writers } else { &w.readers }.is_empty());
        let is_known = known.is_some();
        let key = self.entries.insert(Entry { token, op, iovecs: Vec::new() });
        if !in_line && self.attempt(key) {
            return;
        }
        if !is_known {
            let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
            let name = u64::from(unsigned(number));
            match watch(&self.epoll, number, events, name) {
                // Another handle of the same socket is already watched: its edges serve us too.
                Ok(()) | Err(Errno(libc::EEXIST)) => {}
                Err(errno) => return self.finish(key, Err(errno)),
            }
            // An older descriptor of this number is closed, or has no op waiting: an op would hold it open.
            let fresh =
                Watched { fd: Arc::downgrade(&fd), readers: VecDeque::new(), writers: VecDeque::new() };
            if let Some(old) = self.watched.insert(number, fresh) {
                let watched = self.watched.get_mut(&number).expect("just inserted");
                watched.readers = old.readers;
                watched.writers = old.writers;
            }
        }
        let watched = self.watched.get_mut(&number).expect("known or just inserted");
        if writes { &mut watched.writers } else { &mut watched.readers }.push_back(key);
    }

    /// True when the op has ended; false when the kernel says "not ready".
    fn attempt(&mut self, key: u64) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return true };
        let result = attempt_now(&mut entry.op);
        if matches!(result, Err(Errno(libc::EAGAIN))) {
            return false;
        }
        self.finish(key, result);
        true
    }

    /// An edge of epoll: tries the ops that wait for it, in order.
    fn on_ready(&mut self, number: RawFd, events: u32) {
        let broken = events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
        for writes in [false, true] {
            let wanted = if writes { libc::EPOLLOUT } else { libc::EPOLLIN | libc::EPOLLRDHUP } as u32;
            if events & wanted == 0 && !broken {
                continue;
            }
            loop {
                let Some(watched) = self.watched.get_mut(&number) else { return };
                let queue = if writes { &mut watched.writers } else { &mut watched.readers };
                let Some(key) = queue.front().copied() else { break };
                if !self.attempt(key) {
                    break;
                }
                if let Some(watched) = self.watched.get_mut(&number) {
                    if writes { &mut watched.writers } else { &mut watched.readers }.pop_front();
                }
            }
        }
    }

    fn cancel(&mut self, token: u64, target: u64) {
        let key = self.entries.iter().find(|(_, e)| e.token == target).map(|(key, _)| key);
        let in_queue = |queue: &VecDeque<u64>| key.is_some_and(|key| queue.contains(&key));
        let result = match key {
            None => Err(Errno(libc::ENOENT)),
            Some(key) if in_queue(&self.disk_queue) => {
                self.disk_queue.retain(|k| *k != key);
                Ok(key)
            }
            Some(key) => {
                let mut found = false;
                for watched in self.watched.values_mut() {
                    for queue in [&mut watched.readers, &mut watched.writers] {
                        let before = queue.len();
                        queue.retain(|k| *k != key);
                        found |= queue.len() < before;
                    }
                }
                // The kernel's io_cancel knows no disk request.
                if found { Ok(key) } else { Err(Errno(libc::EALREADY)) }
            }
        };
        if let Ok(key) = result {
            self.finish(key, Err(Errno(libc::ECANCELED)));
        }
        let result = result.map(|_| Outcome::Done);
        self.ready.push(Completion { token, op: Op::Cancel { target }, result });
    }

    /// One look at epoll; true if the waker fired.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // Rounded up: waking before a timer is due would spin.
        let ms = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        // SAFETY: `events` has room for 64 events.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 64, ms) };
        let count = match checked(count) {
            Ok(count) => usize::try_from(count).expect("not negative"),
            Err(Errno(libc::EINTR)) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut woken = false;
        for event in &events[..count] {
            let (name, bits) = (event.u64, event.events);
            match name {
                WAKE => {
                    self.waker.clear();
                    woken = true;
                }
                DISK => {
                    let mut ended = [0u8; 8];
                    // SAFETY: eight writable bytes. Emptied before the events are taken, so none is missed.
                    unsafe {
                        libc::read(self.disk_event.as_raw_fd(), ended.as_mut_ptr().cast(), ended.len());
                    }
                    self.reap_disk();
                }
                number => self.on_ready(RawFd::try_from(number).expect("a descriptor's number"), bits),
            }
        }
        Ok(woken)
    }
}

fn watch(epoll: &OwnedFd, fd: RawFd, events: u32, name: u64) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: name };
    // SAFETY: `event` is readable during the call.
    checked(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
    Ok(())
}

/// The kernel's form of a disk request.
fn prepare(entry: &mut Entry) -> Iocb {
    match &mut entry.op {
        Op::ReadAt { file, offset, buf } => Iocb {
            opcode: IOCB_CMD_PREAD,
            file: unsigned(file.as_raw_fd()),
            buf: buf.as_mut_ptr() as u64,
            nbytes: buf.len() as u64,
            offset: signed(*offset),
            ..Iocb::default()
        },
        Op::WriteAt { file, offset, bufs, durable } => {
            entry.iovecs = gather_bufs(bufs);
            Iocb {
                opcode: IOCB_CMD_PWRITEV,
                file: unsigned(file.as_raw_fd()),
                buf: entry.iovecs.as_ptr() as u64,
                nbytes: entry.iovecs.len() as u64,
                offset: signed(*offset),
                rw_flags: if *durable { libc::RWF_DSYNC } else { 0 },
                ..Iocb::default()
            }
        }
        Op::Fdatasync { file } => {
            Iocb { opcode: IOCB_CMD_FDSYNC, file: unsigned(file.as_raw_fd()), ..Iocb::default() }
        }
        other => unreachable!("{other:?} is no disk request"),
    }
}

/// The descriptor that a socket op waits for, and whether it waits to write.
fn socket_of(op: &Op) -> (&Fd, bool) {
    match op {
        Op::Accept { listener } => (listener, false),
        Op::Recv { socket, .. } => (socket, false),
        Op::PollRead { fd } => (fd, false),
        Op::Send { socket, .. } => (socket, true),
        Op::PollWrite { fd } => (fd, true),
        other => unreachable!("{other:?} is no socket op"),
    }
}

/// Does a socket op without waiting; `EAGAIN` when it would have to.
fn attempt_now(op: &mut Op) -> Result<Outcome, Errno> {
    loop {
        let result = match op {
            Op::Accept { listener } => {
                let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                // SAFETY: no address is asked for.
                checked(unsafe {
                    libc::accept4(listener.as_raw_fd(), core::ptr::null_mut(), core::ptr::null_mut(), flags)
                })
                // SAFETY: the descriptor is new and nobody else's.
                .map(|fd| Outcome::Accepted(unsafe { OwnedFd::from_raw_fd(fd) }))
            }
            Op::Recv { socket, buf, start, len } => {
                let (address, len) = recv_window(buf, *start, *len);
                // SAFETY: `address` leads to `len` writable bytes.
                bytes(unsafe { libc::recv(socket.as_raw_fd(), address.cast(), len, libc::MSG_DONTWAIT) })
            }
            Op::Send { socket, parts, skip } => {
                let iovecs = gather_parts(parts, *skip);
                let message = message(&iovecs);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: the header's gather list and the parts it names live during the call.
                bytes(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
            }
            Op::PollRead { fd } => poll_now(fd, libc::POLLIN),
            Op::PollWrite { fd } => poll_now(fd, libc::POLLOUT),
            other => unreachable!("{other:?} is no socket op"),
        };
        if !matches!(result, Err(Errno(libc::EINTR))) {
            return result;
        }
    }
}

fn poll_now(fd: &Fd, events: i16) -> Result<Outcome, Errno> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one writable pollfd; does not wait.
    let ready = checked(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    if ready == 0 { Err(Errno(libc::EAGAIN)) } else { Ok(Outcome::Ready) }
}

fn bytes(result: isize) -> Result<Outcome, Errno> {
    usize::try_from(result).map(Outcome::Bytes).map_err(|_| io::Error::last_os_error().into())
}

/// A descriptor's number as the kernel's structures hold it.
fn unsigned(fd: RawFd) -> u32 {
    u32::try_from(fd).expect("an open descriptor's number is not negative")
}

impl Driver for AioDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Libaio
    }

    fn submit(&mut self, token: u64, op: Op) {
        match op {
            Op::ReadAt { .. } | Op::WriteAt { .. } | Op::Fdatasync { .. } => {
                let key = self.entries.insert(Entry { token, op, iovecs: Vec::new() });
                self.disk_queue.push_back(key);
            }
            Op::Cancel { target } => self.cancel(token, target),
            op => self.start_socket_op(token, op),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        self.submit_disk();
        let timeout = if self.ready.is_empty() { timeout } else { Some(Duration::ZERO) };
        let budget = self.spin.budget(self.entries.len(), timeout);
        let mut found = false;
        if !budget.is_zero() {
            let start = Instant::now();
            while !found && start.elapsed() < budget {
                found = self.poll(Some(Duration::ZERO))? || !self.ready.is_empty();
                core::hint::spin_loop();
            }
            self.spin.learn(found);
        }
        if !found {
            self.poll(timeout)?;
        }
        // Room that completions made.
        self.submit_disk();
        out.append(&mut self.ready);
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn in_flight(&self) -> usize {
        self.entries.len() + self.ready.len()
    }

    fn hold_lock(&mut self, lock: Fd) -> io::Result<()> {
        self.locks.push(lock);
        Ok(())
    }

    fn release_lock(&mut self, lock: &Fd) -> io::Result<()> {
        self.locks.retain(|held| !Arc::ptr_eq(held, lock));
        Ok(())
    }
}

impl Drop for AioDriver {
    fn drop(&mut self) {
        // SAFETY: the context is ours. io_destroy waits until the kernel has ended every request, so that the
        // entries' buffers, which are dropped after this, are nobody's.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
