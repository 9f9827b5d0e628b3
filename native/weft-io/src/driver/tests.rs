//! One suite for both drivers.

use core::time::Duration;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use weft_proto::payload::Payload;

use super::*;
use crate::testing::TempDir;

fn fd(of: impl Into<OwnedFd>) -> Fd {
    Arc::new(of.into())
}

/// Waits for `count` completions, sorted by token.
fn collect(driver: &mut impl Driver, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    while out.len() < count {
        driver.wait(Some(Duration::from_secs(10)), &mut out).expect("wait");
    }
    out.sort_by_key(|c| c.token);
    out
}

fn bytes_of(completion: &Completion) -> usize {
    match completion.result {
        Ok(Outcome::Bytes(n)) => n,
        ref other => panic!("expected bytes, got {other:?}"),
    }
}

fn direct_file(dir: &TempDir) -> Fd {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(dir.path().join("file"))
        .expect("a direct file on the disk here");
    fd(file)
}

fn disk_data_comes_back(driver: &mut impl Driver) {
    let dir = TempDir::on_disk();
    let file = direct_file(&dir);
    let (a, b) = (IoBuf::copy_of(&[1; 8192]), IoBuf::copy_of(&[2; 4096]));
    let both = Op::WriteAt { file: file.clone(), offset: 4096, bufs: vec![a, b], durable: true };
    driver.submit(1, both);
    assert_eq!(bytes_of(&collect(driver, 1)[0]), 12288);
    driver.submit(2, Op::Fdatasync { file: file.clone() });
    driver.submit(3, Op::ReadAt { file: file.clone(), offset: 0, buf: IoBuf::scratch(16384) });
    // Beyond the end: short, not an error.
    driver.submit(4, Op::ReadAt { file: file.clone(), offset: 1 << 20, buf: IoBuf::scratch(4096) });
    let done = collect(driver, 3);
    assert!(matches!(done[0].result, Ok(Outcome::Done)));
    let Op::ReadAt { buf, .. } = &done[1].op else { panic!("the op comes back") };
    assert_eq!((bytes_of(&done[1]), bytes_of(&done[2])), (16384, 0));
    assert!(buf.bytes()[..4096].iter().all(|b| *b == 0));
    assert!(buf.bytes()[4096..12288].iter().all(|b| *b == 1));
    assert!(buf.bytes()[12288..].iter().all(|b| *b == 2));
    assert_eq!(driver.in_flight(), 0);
}

fn a_shared_buffer_is_not_read_into(driver: &mut impl Driver) {
    let dir = TempDir::on_disk();
    fs::write(dir.path().join("file"), [7; 4096]).expect("written");
    let mine = IoBuf::zeroed(4096);
    driver.submit(1, Op::ReadAt { file: direct_file(&dir), offset: 0, buf: mine.clone() });
    let done = collect(driver, 1);
    let Op::ReadAt { buf, .. } = &done[0].op else { panic!("the op comes back") };
    assert_eq!((mine.bytes()[0], buf.bytes()[0]), (0, 7));
}

fn an_error_gives_the_buffers_back(driver: &mut impl Driver) {
    let read_only = fd(File::open("/dev/null").expect("/dev/null"));
    let dir = TempDir::on_disk();
    fs::write(dir.path().join("file"), [7; 4096]).expect("written");
    let file = fd(File::open(dir.path().join("file")).expect("opened read-only"));
    let buf = IoBuf::copy_of(&[9; 4096]);
    driver.submit(1, Op::WriteAt { file, offset: 0, bufs: vec![buf], durable: false });
    driver.submit(2, Op::Recv { socket: read_only, buf: IoBuf::scratch(64), start: 0, len: 64 });
    let done = collect(driver, 2);
    assert_eq!(done[0].result.as_ref().err(), Some(&Errno(libc::EBADF)));
    let Op::WriteAt { bufs, .. } = &done[0].op else { panic!("the op comes back") };
    assert_eq!(bufs[0].bytes(), [9; 4096]);
    assert_eq!(done[1].result.as_ref().err(), Some(&Errno(libc::ENOTSOCK)));
}

fn more_ops_than_slots_all_complete(driver: &mut impl Driver) {
    let dir = TempDir::on_disk();
    let file = direct_file(&dir);
    for i in 0..100u64 {
        let bufs = vec![IoBuf::copy_of(&[u8::try_from(i).expect("small"); 4096])];
        driver.submit(i, Op::WriteAt { file: file.clone(), offset: i * 4096, bufs, durable: false });
    }
    assert_eq!(driver.in_flight(), 100);
    assert!(collect(driver, 100).iter().all(|c| bytes_of(c) == 4096));
    for i in 0..100u64 {
        driver.submit(i, Op::ReadAt { file: file.clone(), offset: i * 4096, buf: IoBuf::scratch(4096) });
    }
    for (i, done) in collect(driver, 100).into_iter().enumerate() {
        let Op::ReadAt { buf, .. } = done.op else { panic!("the op comes back") };
        assert!(buf.bytes().iter().all(|b| usize::from(*b) == i));
    }
}

fn accept_receive_and_send(driver: &mut impl Driver) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    let address = listener.local_addr().expect("address");
    driver.submit(1, Op::Accept { listener: fd(listener) });
    let mut out = Vec::new();
    driver.wait(Some(Duration::ZERO), &mut out).expect("wait");
    assert!(out.is_empty(), "nobody called yet");
    let mut peer = TcpStream::connect(address).expect("connect");
    let Completion { result: Ok(Outcome::Accepted(socket)), .. } = collect(driver, 1).remove(0) else {
        panic!("not accepted")
    };
    let socket = fd(socket);
    // SAFETY: no memory is passed.
    let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
    assert!(flags & libc::O_NONBLOCK != 0);

    // Waits until there is something, then takes what there is, at the place asked for.
    driver.submit(2, Op::Recv { socket: socket.clone(), buf: IoBuf::zeroed(4096), start: 100, len: 1000 });
    driver.wait(Some(Duration::from_millis(1)), &mut out).expect("wait");
    assert!(out.is_empty());
    peer.write_all(b"hello").expect("sent");
    let done = collect(driver, 1).remove(0);
    let Op::Recv { buf, .. } = &done.op else { panic!("the op comes back") };
    assert_eq!((bytes_of(&done), &buf.bytes()[99..106]), (5, &b"\0hello\0"[..]));

    let parts = vec![
        Part::Bytes(b"0123".to_vec()),
        Part::Bytes(Vec::new()),
        Part::Buf(IoBuf::copy_of(b"456789").slice(1, 5)),
    ];
    driver.submit(3, Op::Send { socket: socket.clone(), parts, skip: 2 });
    assert_eq!(bytes_of(&collect(driver, 1)[0]), 7);
    let mut got = [0; 7];
    peer.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"2356789");

    driver.submit(4, Op::Recv { socket, buf: IoBuf::zeroed(64), start: 0, len: 64 });
    drop(peer);
    assert_eq!(bytes_of(&collect(driver, 1)[0]), 0, "the end of the stream");
}

fn a_full_socket_waits_until_it_is_read(driver: &mut impl Driver) {
    let (mine, mut theirs) = UnixStream::pair().expect("pair");
    mine.set_nonblocking(true).expect("nonblocking");
    let mine = fd(mine);
    let total = 1 << 20;
    let (mut sent, mut out) = (0, Vec::new());
    loop {
        let parts = vec![Part::Buf(IoBuf::zeroed(total))];
        driver.submit(1, Op::Send { socket: mine.clone(), parts, skip: 0 });
        driver.wait(Some(Duration::from_millis(20)), &mut out).expect("wait");
        let Some(done) = out.pop() else { break };
        sent += bytes_of(&done);
    }
    driver.submit(2, Op::PollWrite { fd: mine.clone() });
    driver.wait(Some(Duration::from_millis(1)), &mut out).expect("wait");
    assert!(out.is_empty() && driver.in_flight() == 2);
    theirs.set_nonblocking(true).expect("nonblocking");
    let mut done = Vec::new();
    // The send may fill the socket again before the poll looks at it: whoever reads on sees both.
    while done.len() < 2 {
        while theirs.read(&mut vec![0; sent]).is_ok() {}
        driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
    }
    done.sort_by_key(|c| c.token);
    assert!(bytes_of(&done[0]) > 0);
    assert!(matches!(done[1].result, Ok(Outcome::Ready)));
}

fn polls_answer_when_ready(driver: &mut impl Driver) {
    let (mine, mut theirs) = UnixStream::pair().expect("pair");
    mine.set_nonblocking(true).expect("nonblocking");
    let mine = fd(mine);
    driver.submit(1, Op::PollWrite { fd: mine.clone() });
    assert!(matches!(collect(driver, 1)[0].result, Ok(Outcome::Ready)));
    for round in 0..3u8 {
        driver.submit(2, Op::PollRead { fd: mine.clone() });
        theirs.write_all(&[round]).expect("sent");
        assert!(matches!(collect(driver, 1)[0].result, Ok(Outcome::Ready)));
        driver.submit(3, Op::Recv { socket: mine.clone(), buf: IoBuf::zeroed(8), start: 0, len: 8 });
        assert_eq!(bytes_of(&collect(driver, 1)[0]), 1);
    }
    // A number of a closed descriptor, used again: the new one is another socket.
    let number = mine.as_raw_fd();
    driver.submit(4, Op::PollRead { fd: mine });
    drop(theirs);
    assert_eq!(collect(driver, 1).len(), 1);
    let (mine, mut theirs) = UnixStream::pair().expect("pair");
    mine.set_nonblocking(true).expect("nonblocking");
    assert!(mine.as_raw_fd() == number || theirs.as_raw_fd() == number, "numbers are reused at once");
    let (mine, other) = (fd(mine), theirs.try_clone().expect("cloned"));
    other.set_nonblocking(true).expect("nonblocking");
    let other = fd(other);
    driver.submit(5, Op::Recv { socket: mine.clone(), buf: IoBuf::zeroed(8), start: 0, len: 8 });
    driver.submit(6, Op::Recv { socket: other, buf: IoBuf::zeroed(8), start: 0, len: 8 });
    driver.submit(7, Op::Send { socket: mine, parts: vec![Part::Bytes(vec![1, 2])], skip: 0 });
    theirs.write_all(&[1]).expect("sent");
    let done = collect(driver, 3);
    assert_eq!((bytes_of(&done[0]), bytes_of(&done[1])), (1, 2));
}

fn a_waiting_op_can_be_cancelled(driver: &mut impl Driver) {
    let (mine, _theirs) = UnixStream::pair().expect("pair");
    mine.set_nonblocking(true).expect("nonblocking");
    let mine = fd(mine);
    driver.submit(1, Op::Recv { socket: mine.clone(), buf: IoBuf::zeroed(64), start: 0, len: 64 });
    driver.submit(2, Op::PollRead { fd: mine });
    let mut out = Vec::new();
    driver.wait(Some(Duration::from_millis(1)), &mut out).expect("wait");
    assert!(out.is_empty());
    driver.submit(10, Op::Cancel { target: 1 });
    driver.submit(11, Op::Cancel { target: 2 });
    driver.submit(12, Op::Cancel { target: 77 });
    let done = collect(driver, 5);
    assert!(done[0].result.as_ref().is_err_and(|e| e.is_cancelled()));
    assert!(done[1].result.as_ref().is_err_and(|e| e.is_cancelled()));
    assert!(matches!(done[2].result, Ok(Outcome::Done)) && matches!(done[3].result, Ok(Outcome::Done)));
    assert_eq!(done[4].result.as_ref().err(), Some(&Errno(libc::ENOENT)));
}

fn a_waker_ends_a_wait_from_another_thread(driver: &mut impl Driver) {
    for _ in 0..3 {
        let waker = driver.waker();
        let thread = std::thread::spawn(move || {
            waker.wake();
            waker.wake();
        });
        // Ends only by the waker; a wake between two waits isn't lost.
        driver.wait(None, &mut Vec::new()).expect("wait");
        thread.join().expect("no panic");
        driver.wait(Some(Duration::ZERO), &mut Vec::new()).expect("wait");
    }
}

fn a_timeout_ends_a_wait(driver: &mut impl Driver) {
    let start = std::time::Instant::now();
    let mut out = Vec::new();
    driver.wait(Some(Duration::from_millis(20)), &mut out).expect("wait");
    assert!(out.is_empty() && start.elapsed() >= Duration::from_millis(20));
}

fn dropping_a_driver_ends_what_is_in_flight(mut driver: impl Driver) {
    let dir = TempDir::on_disk();
    let file = direct_file(&dir);
    let (mine, _theirs) = UnixStream::pair().expect("pair");
    mine.set_nonblocking(true).expect("nonblocking");
    driver.submit(1, Op::Recv { socket: fd(mine), buf: IoBuf::zeroed(4096), start: 0, len: 64 });
    for i in 0..50 {
        let bufs = vec![IoBuf::zeroed(65536)];
        driver.submit(2, Op::WriteAt { file: file.clone(), offset: i * 65536, bufs, durable: false });
    }
    driver.wait(Some(Duration::ZERO), &mut Vec::new()).expect("wait");
    drop(driver);
    assert_eq!(Arc::strong_count(&file), 1);
}

/// protocol.md R13: with io_uring the lock must live as long as the ring, whoever else closes it.
fn a_held_lock_outlives_its_descriptor(driver: &mut impl Driver) {
    let dir = TempDir::on_disk();
    let path = dir.path().join("lock");
    let locked = |file: &File| {
        // SAFETY: no memory is passed.
        unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
    };
    let lock = File::create(&path).expect("created");
    assert!(locked(&lock));
    let lock = fd(lock);
    driver.hold_lock(lock.clone()).expect("held");
    let again = File::open(&path).expect("opened");
    assert!(!locked(&again));
    driver.release_lock(&lock).expect("released");
    assert!(!locked(&again), "the caller still has it");
    drop(lock);
    // The kernel gives a registered file back in its own time: `flock` without LOCK_NB waits for that.
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::flock(again.as_raw_fd(), libc::LOCK_EX) }, 0);
}

macro_rules! both_drivers {
    ($($test:ident),* $(,)?) => {
        mod io_uring {
            use super::*;
            $(#[test] fn $test() { super::$test(&mut UringDriver::new(small()).expect("io_uring")); })*
            #[test]
            fn dropping_a_driver_ends_what_is_in_flight() {
                super::dropping_a_driver_ends_what_is_in_flight(UringDriver::new(small()).expect("io_uring"));
            }
            #[test]
            fn spinning_finds_the_same() {
                let spin = Duration::from_micros(50);
                let mut driver = UringDriver::new(DriverConfig { spin, ..small() }).expect("io_uring");
                super::disk_data_comes_back(&mut driver);
                super::accept_receive_and_send(&mut driver);
            }
        }
        mod libaio {
            use super::*;
            $(#[test] fn $test() { super::$test(&mut AioDriver::new(small()).expect("libaio")); })*
            #[test]
            fn dropping_a_driver_ends_what_is_in_flight() {
                super::dropping_a_driver_ends_what_is_in_flight(AioDriver::new(small()).expect("libaio"));
            }
            #[test]
            fn spinning_finds_the_same() {
                let spin = Duration::from_micros(50);
                let mut driver = AioDriver::new(DriverConfig { spin, ..small() }).expect("libaio");
                super::disk_data_comes_back(&mut driver);
                super::accept_receive_and_send(&mut driver);
            }
        }
    };
}

/// Few slots, so that the suite meets full queues.
fn small() -> DriverConfig {
    DriverConfig { entries: 8, ..DriverConfig::default() }
}

both_drivers!(
    disk_data_comes_back,
    a_shared_buffer_is_not_read_into,
    an_error_gives_the_buffers_back,
    more_ops_than_slots_all_complete,
    accept_receive_and_send,
    a_full_socket_waits_until_it_is_read,
    polls_answer_when_ready,
    a_waiting_op_can_be_cancelled,
    a_waker_ends_a_wait_from_another_thread,
    a_timeout_ends_a_wait,
    a_held_lock_outlives_its_descriptor,
);

#[test]
fn auto_picks_io_uring_where_it_works() {
    assert_eq!(auto().expect("a driver").kind(), DriverKind::IoUring);
    let driver = open(Some(DriverKind::Libaio), DriverConfig::default()).expect("libaio");
    assert_eq!(driver.kind().to_string(), "libaio");
}
