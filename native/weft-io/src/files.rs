//! The one door through which a pool changes names, lengths and content outside of a driver's ops, so that a test can
//! note each change and ask what a crash in between would leave.
//!
//! Must always hold:
//! * a call that fails has changed nothing that its caller relies on;
//! * nothing of a pool is made, renamed, cut, punched or synced around this door;
//! * without a [`Journal`] the door costs nothing but a look at an `Option`.

use core::fmt;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use weft_proto::payload::Payload;

use crate::buffer::IoBuf;
use crate::driver::{Errno, Fd, checked};
use crate::reflink::{clone_range, is_unsupported};

/// One change, as a [`Journal`] hears of it.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A file is opened, and made if it is not there.
    Create {
        /// In this directory.
        dir: &'a Fd,
        /// Under this name.
        name: &'a str,
    },
    /// A directory is made.
    MakeDir {
        /// In this directory.
        dir: &'a Fd,
        /// Under this name.
        name: &'a str,
    },
    /// A name becomes another one.
    Rename {
        /// From this directory.
        from_dir: &'a Fd,
        /// This name.
        from: &'a str,
        /// To this directory.
        to_dir: &'a Fd,
        /// That name.
        to: &'a str,
    },
    /// A file or an empty directory goes.
    Remove {
        /// From this directory.
        dir: &'a Fd,
        /// This name.
        name: &'a str,
    },
    /// Bytes are written, not durably.
    Write {
        /// To this file.
        file: &'a Fd,
        /// From this byte on.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A file gets this length.
    Truncate {
        /// The file.
        file: &'a Fd,
        /// Its new length.
        len: u64,
    },
    /// Space is taken for the first `len` bytes, which changes no content; a shorter file gets this length.
    Allocate {
        /// The file.
        file: &'a Fd,
        /// How many bytes.
        len: u64,
    },
    /// A range reads as zero from now on.
    Zero {
        /// Of this file.
        file: &'a Fd,
        /// From this byte on.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// A range reads as a range of another file does now.
    Clone {
        /// That file.
        from: &'a Fd,
        /// From this byte on.
        from_offset: u64,
        /// This file.
        to: &'a Fd,
        /// From this byte on.
        to_offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// A file's content and length, or a directory's names, become durable.
    Sync {
        /// The file or directory.
        file: &'a Fd,
    },
}

/// Hears of every change before and after it is made.
pub trait Journal: Send + Sync + fmt::Debug {
    /// From now on the change may be on the disk. The number is told back.
    fn starts(&self, change: &Change<'_>) -> u64;
    /// The call has ended; `made` is the file or directory that a `Create` opened or a `MakeDir` made.
    fn ended(&self, number: u64, done: bool, made: Option<&Fd>);
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Files(Option<Arc<dyn Journal>>);

impl Files {
    /// The door with a journal. A pool behind it makes its blocking calls one after the other on the reactor's own
    /// thread, so that what is noted is the same each time.
    #[must_use]
    pub fn recorded(journal: Arc<dyn Journal>) -> Files {
        Files(Some(journal))
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    fn noted<T, E>(&self, change: &Change<'_>, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let Some(journal) = &self.0 else { return call() };
        let number = journal.starts(change);
        let result = call();
        journal.ended(number, result.is_ok(), None);
        result
    }

    fn noted_made(&self, change: &Change<'_>, call: impl FnOnce() -> Result<Fd, Errno>) -> Result<Fd, Errno> {
        let Some(journal) = &self.0 else { return call() };
        let number = journal.starts(change);
        let result = call();
        journal.ended(number, result.is_ok(), result.as_ref().ok());
        result
    }

    /// Opens a file, and makes it if it is not there.
    pub(crate) fn create_at(&self, dir: &Fd, name: &str, flags: i32) -> Result<Fd, Errno> {
        self.noted_made(&Change::Create { dir, name }, || open_at(dir, name, flags | libc::O_CREAT))
    }

    /// Makes a directory and opens it.
    pub(crate) fn make_dir_at(&self, dir: &Fd, name: &str) -> Result<Fd, Errno> {
        self.noted_made(&Change::MakeDir { dir, name }, || {
            let c_name = c_name(name.as_ref())?;
            // SAFETY: the name is a C string that lives during the call.
            checked(unsafe { libc::mkdirat(dir.as_raw_fd(), c_name.as_ptr(), 0o700) })?;
            open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY)
        })
    }

    /// Makes a directory with all that is missing above it, each durable in the one above. Fine if it is there.
    pub(crate) fn make_dirs(&self, path: &Path) -> Result<(), Errno> {
        if path.is_dir() {
            return Ok(());
        }
        let name = path.file_name().and_then(OsStr::to_str).ok_or(Errno(libc::EINVAL))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.make_dirs(parent)?;
        let parent = open_path(parent)?;
        match self.make_dir_at(&parent, name) {
            Err(Errno(libc::EEXIST)) => {}
            made => drop(made?),
        }
        self.sync(&parent)
    }

    pub(crate) fn rename_at(&self, from_dir: &Fd, from: &str, to_dir: &Fd, to: &str) -> Result<(), Errno> {
        self.noted(&Change::Rename { from_dir, from, to_dir, to }, || {
            let (from, to) = (c_name(from.as_ref())?, c_name(to.as_ref())?);
            // SAFETY: both names are C strings that live during the call.
            checked(unsafe {
                libc::renameat(from_dir.as_raw_fd(), from.as_ptr(), to_dir.as_raw_fd(), to.as_ptr())
            })
            .map(drop)
        })
    }

    pub(crate) fn remove_file_at(&self, dir: &Fd, name: &str) -> Result<(), Errno> {
        self.remove_at(dir, name, 0)
    }

    fn remove_at(&self, dir: &Fd, name: &str, flags: i32) -> Result<(), Errno> {
        self.noted(&Change::Remove { dir, name }, || {
            let c_name = c_name(name.as_ref())?;
            // SAFETY: the name is a C string that lives during the call.
            checked(unsafe { libc::unlinkat(dir.as_raw_fd(), c_name.as_ptr(), flags) }).map(drop)
        })
    }

    /// Removes a directory below `dir` with all that is in it; fine if there is none.
    pub(crate) fn remove_tree(&self, dir: &Fd, name: &str) -> Result<(), Errno> {
        let inner = match open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY) {
            Err(Errno(libc::ENOENT)) => return Ok(()),
            Err(Errno(libc::ENOTDIR)) => return self.remove_at(dir, name, 0),
            opened => opened?,
        };
        for name in names(&inner)? {
            match self.remove_at(&inner, &name, 0) {
                Err(Errno(libc::EISDIR)) => self.remove_tree(&inner, &name)?,
                removed => removed?,
            }
        }
        self.remove_at(dir, name, libc::AT_REMOVEDIR)
    }

    pub(crate) fn write_all_at(&self, file: &Fd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        self.noted(&Change::Write { file, offset, bytes }, || {
            Ok(File::from(unshared_clone(file)?).write_all_at(bytes, offset)?)
        })
    }

    /// Empties a file and writes zeroes over its new length, durably.
    pub(crate) fn write_zeroes(&self, file: &Fd, len: u64) -> Result<(), Errno> {
        self.truncate(file, 0)?;
        self.allocate(file, len)?;
        let zeroes = IoBuf::zeroed(1 << 20);
        let mut at = 0;
        while at < len {
            let piece = usize::try_from(len - at).unwrap_or(usize::MAX).min(zeroes.len());
            self.write_all_at(file, &zeroes.bytes()[..piece], at)?;
            at += piece as u64;
        }
        self.sync(file)
    }

    pub(crate) fn truncate(&self, file: &Fd, len: u64) -> Result<(), Errno> {
        self.noted(&Change::Truncate { file, len }, || Ok(File::from(unshared_clone(file)?).set_len(len)?))
    }

    /// Allocates space, where the file system can.
    pub(crate) fn allocate(&self, file: &Fd, len: u64) -> Result<(), Errno> {
        self.noted(&Change::Allocate { file, len }, || match fallocate(file, 0, 0, len) {
            Err(Errno(libc::EOPNOTSUPP)) => Ok(()),
            other => other,
        })
    }

    /// Gives blocks to a range within a file, whose content stays. An error where the file system can't.
    pub(crate) fn reserve(&self, file: &Fd, offset: u64, len: u64) -> Result<(), Errno> {
        fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// Makes a range of a file a hole, or zeroes in its place if it is to keep its space.
    pub(crate) fn zero(&self, file: &Fd, offset: u64, len: u64, keep_space: bool) -> Result<(), Errno> {
        let mode = if keep_space { libc::FALLOC_FL_ZERO_RANGE } else { libc::FALLOC_FL_PUNCH_HOLE };
        self.noted(&Change::Zero { file, offset, len }, || {
            match fallocate(file, mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) {
                Err(Errno(libc::EOPNOTSUPP)) => write_zeroes_at(file, offset, len),
                other => other,
            }
        })
    }

    /// Writes zeroes over a range, which keeps or gets its space.
    pub(crate) fn write_zeroes_at(&self, file: &Fd, offset: u64, len: u64) -> Result<(), Errno> {
        self.noted(&Change::Zero { file, offset, len }, || write_zeroes_at(file, offset, len))
    }

    /// Gives a range of a device back, which reads as zero then; of a file, it becomes a hole. `EOPNOTSUPP` if it can't.
    pub(crate) fn discard(&self, file: &Fd, offset: u64, len: u64) -> Result<(), Errno> {
        self.noted(&Change::Zero { file, offset, len }, || {
            let range = [offset, len];
            // SAFETY: the request reads two 64-bit numbers, which live during the call.
            match checked(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) }) {
                Err(Errno(libc::ENOTTY)) => {
                    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
                }
                other => other.map(drop),
            }
        })
    }

    /// Makes a range of a file share the blocks of a range of another one. Behind a journal it is copied where the file
    /// system can't: what a journal hears of is the same.
    pub(crate) fn clone_range(
        &self,
        from: &Fd,
        from_offset: u64,
        len: u64,
        to: &Fd,
        to_offset: u64,
    ) -> Result<(), Errno> {
        self.noted(&Change::Clone { from, from_offset, to, to_offset, len }, || {
            match clone_range(from, from_offset, len, to, to_offset) {
                Err(errno) if self.is_recorded() && is_unsupported(errno) => {
                    let (from, to) = (File::from(unshared_clone(from)?), File::from(unshared_clone(to)?));
                    let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno(libc::EFBIG))?];
                    from.read_exact_at(&mut bytes, from_offset)?;
                    Ok(to.write_all_at(&bytes, to_offset)?)
                }
                other => other,
            }
        })
    }

    /// Makes a file's content and length, or a directory's names, durable.
    pub(crate) fn sync(&self, file: &Fd) -> Result<(), Errno> {
        self.noted(&Change::Sync { file }, || Ok(File::from(unshared_clone(file)?).sync_all()?))
    }
}

/// `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

fn write_zeroes_at(file: &Fd, offset: u64, len: u64) -> Result<(), Errno> {
    let file = File::from(unshared_clone(file)?);
    let zeroes = IoBuf::zeroed(1 << 20);
    let mut at = offset;
    while at < offset + len {
        let left = usize::try_from(offset + len - at).unwrap_or(usize::MAX);
        let piece = left.min(zeroes.len());
        file.write_all_at(&zeroes.bytes()[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

fn c_name(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno(libc::EINVAL))
}

/// Opens a directory by its path.
pub(crate) fn open_path(path: &Path) -> Result<Fd, Errno> {
    let name = c_name(path.as_os_str())?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `name` is a C string that lives during the call.
    owned(unsafe { libc::openat(libc::AT_FDCWD, name.as_ptr(), flags) })
}

/// Opens what is there.
pub(crate) fn open_at(dir: &Fd, name: &str, flags: i32) -> Result<Fd, Errno> {
    let name = c_name(name.as_ref())?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `name` is a C string that lives during the call.
    owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600) })
}

fn owned(result: i32) -> Result<Fd, Errno> {
    // SAFETY: a descriptor that open has just made is nobody else's.
    checked(result).map(|fd| Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A second descriptor of the same open file, for std's functions.
pub(crate) fn unshared_clone(fd: &Fd) -> Result<OwnedFd, Errno> {
    Ok(fd.try_clone()?)
}

pub(crate) fn exists_at(dir: &Fd, name: &str) -> Result<bool, Errno> {
    match open_at(dir, name, libc::O_PATH) {
        Ok(_) => Ok(true),
        Err(Errno(libc::ENOENT)) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The names in a directory that are valid UTF-8; ours all are.
pub(crate) fn names(dir: &Fd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn fallocate(file: &Fd, mode: i32, offset: u64, len: u64) -> Result<(), Errno> {
    let signed = |n: u64| i64::try_from(n).map_err(|_| Errno(libc::EFBIG));
    // SAFETY: no memory is passed.
    checked(unsafe { libc::fallocate(file.as_raw_fd(), mode, signed(offset)?, signed(len)?) }).map(drop)
}
