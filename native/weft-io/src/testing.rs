//! What this crate's tests share.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes with its test.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// On the disk that holds the build (a real file system, with O_DIRECT).
    pub(crate) fn on_disk() -> TempDir {
        let program = std::env::current_exe().expect("the test's own path");
        TempDir::under(program.parent().expect("a directory"))
    }

    /// With a short path, for sockets.
    pub(crate) fn short() -> TempDir {
        TempDir::under(&std::env::temp_dir())
    }

    /// Below `parent`.
    pub(crate) fn under(parent: &Path) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("weft-io-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An XFS of `mib` MiB below `dir`, in a mount namespace of this test's thread and those it starts, so that nothing is
/// left behind. Has to run as root.
pub(crate) fn mounted_xfs(dir: &Path, name: &str, mib: u64, options: &[&str]) -> PathBuf {
    mounted(dir, name, mib, "mkfs.xfs", options)
}

/// The same with ext4, none of it kept for root.
pub(crate) fn mounted_ext4(dir: &Path, name: &str, mib: u64) -> PathBuf {
    mounted(dir, name, mib, "mkfs.ext4", &["-m0"])
}

fn mounted(dir: &Path, name: &str, mib: u64, mkfs: &str, options: &[&str]) -> PathBuf {
    let (image, mount) = (dir.join(format!("{name}.img")), dir.join(name));
    std::fs::create_dir(&mount).expect("made");
    File::create(&image).and_then(|f| f.set_len(mib << 20)).expect("an image");
    // SAFETY: no memory is passed; only this thread's view of the mounts changes.
    let unshared = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "this test has to run as root");
    run("mount", &["--make-rprivate".as_ref(), "/".as_ref()]);
    let mut arguments: Vec<&OsStr> = vec!["-q".as_ref()];
    arguments.extend(options.iter().map(OsStr::new));
    arguments.push(image.as_os_str());
    run(mkfs, &arguments);
    run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()]);
    mount
}

/// Takes such a file system away.
pub(crate) fn unmounted(mount: &Path) {
    run("umount", &[mount.as_os_str()]);
}

fn run(program: &str, arguments: &[&OsStr]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
