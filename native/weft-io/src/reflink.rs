//! Files that share blocks: what XFS offers for snapshots, asked of the kernel by ioctl.
//!
//! Must always hold:
//! * nothing here runs on a reactor's thread: a clone walks the extents of its range under the inode's lock, tens of
//!   microseconds each, and waits for direct I/O of both files;
//! * a clone is durable when its *target* was flushed after it.

use core::fmt;
use std::os::fd::AsRawFd;

use crate::driver::{Errno, Fd, checked};
use crate::pool_dir::FileSystem;

/// Whether volumes with a copy in a pool can have snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Files share blocks: tried at the pool's start.
    Reflink,
    /// The pool takes snapshots of its replicas' volumes.
    Thin,
    /// They can't; why.
    None(NoSnapshots),
}

/// Why volumes with a copy in a pool can't have snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSnapshots {
    /// Only XFS is known to share blocks as weft needs it.
    FileSystem(FileSystem),
    /// This XFS was made without.
    XfsWithout,
    /// The pool takes snapshots itself, and has no place for what others took.
    OthersOnThin,
}

impl fmt::Display for NoSnapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoSnapshots::FileSystem(kind) => {
                write!(
                    f,
                    "the pool lies on {kind}, and only on XFS can files share blocks as snapshots need it"
                )
            }
            NoSnapshots::OthersOnThin => f.write_str(
                "the pool lies on LVM's thin volumes, which have no place for snapshots that other copies took",
            ),
            NoSnapshots::XfsWithout => f.write_str(
                "the pool's XFS was made without shared blocks (mkfs.xfs -m reflink=1 makes one with them)",
            ),
        }
    }
}

/// Makes a range of a file share the blocks of a range of another one (or the same). Offsets and length are whole
/// blocks.
pub(crate) fn clone_range(
    from: &Fd,
    from_offset: u64,
    len: u64,
    to: &Fd,
    to_offset: u64,
) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: from_offset,
        src_length: len,
        dest_offset: to_offset,
    };
    // SAFETY: the request reads one `file_clone_range`, which lives during the call.
    checked(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) }).map(drop)
}

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;
/// 64-bit words of `struct fiemap` before its extents, and of one of those.
const FIEMAP_HEAD: usize = 4;
const FIEMAP_EXTENT: usize = 7;
const FEW_EXTENTS: u32 = 32;

/// Has a range of a file so few extents, 32 at most, that a clone of it takes no time worth speaking of?
pub(crate) fn few_extents(file: &Fd, offset: u64, len: u64) -> Result<bool, Errno> {
    let asked = FEW_EXTENTS + 1;
    // start, length, flags and mapped extents, extent count and padding; then the extents.
    let mut map = [0u64; FIEMAP_HEAD + (FEW_EXTENTS as usize + 1) * FIEMAP_EXTENT];
    (map[0], map[1]) = (offset, len);
    let mut count = [0; 8];
    count[..4].copy_from_slice(&asked.to_ne_bytes());
    map[3] = u64::from_ne_bytes(count);
    // SAFETY: the request reads and writes a `fiemap` with room for `asked` extents, all of it within `map`, which lives
    // during the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, map.as_mut_ptr()) })?;
    let bytes = map[2].to_ne_bytes();
    let mapped = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    Ok(mapped < asked)
}

/// What the kernel says to a clone where there are none.
pub(crate) fn is_unsupported(errno: Errno) -> bool {
    matches!(errno.0, libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS | libc::EXDEV)
}
