//! What this crate's tests share.

use std::path::{Path, PathBuf};
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
