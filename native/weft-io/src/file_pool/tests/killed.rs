//! A process that is killed while a write of it is stuck below the file system (protocol.md R13, N3). The pool lies on
//! a disk that is a file of another file system, which is frozen: its requests stay in flight until that is thawed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use super::*;

/// Tells the test's other process where the pool is.
const POOL: &str = "WEFT_IO_TEST_POOL";
const NAME: &str = "file_pool::tests::killed::a_pool_stays_locked_until_a_killed_writers_write_has_ended";

fn run(program: &str, args: &[&OsStr]) {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system in a file, mounted until dropped.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mounted(image: &Path, mount: &Path, mib: u64) -> Disk {
        fs::create_dir(mount).expect("made");
        fs::File::create(image).and_then(|f| f.set_len(mib << 20)).expect("an image");
        run("mkfs.ext4", &["-q".as_ref(), "-m0".as_ref(), image.as_os_str()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()]);
        Disk(mount.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A frozen file system: what is written to it waits until this is dropped.
struct Frozen<'a>(&'a Path);

impl Frozen<'_> {
    fn freeze(path: &Path) -> Frozen<'_> {
        run("fsfreeze", &["-f".as_ref(), path.as_os_str()]);
        Frozen(path)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0).status();
    }
}

/// The process that is killed: says when the pool serves, and when it has sent the write that will be stuck.
fn victim(path: &Path) {
    let mut rig = Rig::open(path, DriverKind::IoUring);
    rig.made(SEGMENT);
    rig.write(0, &[1]);
    println!("\nready");
    std::io::stdin().lock().read_line(&mut String::new()).expect("told to go on");
    let stuck = rig.submit(PoolOp::Disk { replica: KEY, op: write(0, &[2]) });
    rig.pool.drive(&mut rig.driver);
    rig.driver.wait(Some(Duration::from_millis(300)), &mut Vec::new()).expect("wait");
    println!("sent");
    rig.done(stuck).expect("written");
    println!("written");
}

#[test]
fn a_pool_stays_locked_until_a_killed_writers_write_has_ended() {
    // N3: the process is gone, its write is not. Whoever opens the pool next would be overtaken by it; so the pool's
    // lock is free only when the write has ended, and what is written then stays.
    if let Some(path) = std::env::var_os(POOL) {
        return victim(Path::new(&path));
    }
    let dir = TempDir::on_disk();
    // SAFETY: no memory is passed; only this thread's view of the mounts changes.
    let unshared = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "this test has to run as root");
    run("mount", &["--make-rprivate".as_ref(), "/".as_ref()]);
    let below = Disk::mounted(&dir.path().join("image"), &dir.path().join("below"), 160);
    let disk = Disk::mounted(&below.0.join("image"), &dir.path().join("disk"), 128);

    let mut process = Command::new(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env(POOL, disk.0.join("pool"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut says = BufReader::new(process.stdout.take().expect("piped")).lines().map(|l| l.expect("a line"));
    assert!(says.any(|line| line == "ready"));
    let frozen = Frozen::freeze(&below.0);
    process.stdin.take().expect("piped").write_all(b"go\n").expect("told");
    assert!(says.any(|line| line == "sent"));
    process.kill().expect("killed");
    let rest: Vec<String> = says.collect();
    assert!(rest.is_empty(), "the plot needs a write that is stuck: {rest:?}");
    // The lock only: to open the pool would be to wait for the frozen disk, too.
    let lock = fs::File::open(disk.0.join("pool/lock")).expect("opened");
    assert!(
        matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)),
        "free under a write that is not done"
    );

    drop(frozen);
    process.wait().expect("gone");
    lock.lock().expect("flocked");
    drop(lock);
    let mut rig = Rig::open(&disk.0.join("pool"), DriverKind::IoUring);
    rig.opened(SEGMENT, &[0..SEGMENT]);
    assert_eq!(rig.read(0, 1), Ok(vec![Ok(2)]), "the stuck write has landed");
    rig.write(0, &[3]);
    assert_eq!(rig.read(0, 1), Ok(vec![Ok(3)]));
    rig.kill();
}
