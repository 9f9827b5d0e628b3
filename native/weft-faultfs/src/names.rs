//! Changes of names that are not durable yet, oldest first, and how they are taken back.
//!
//! Must always hold:
//! * nothing is removed from the backing store before its removal is durable: until then it lies in the side directory;
//! * changes are taken back newest first, and a change that is durable has nothing before it on the same name that isn't.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, renameat, unlinkat};

use crate::store::{Mixture, Node};

/// A name in a directory.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) dir: Arc<Node>,
    pub(crate) name: OsString,
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        Arc::ptr_eq(&self.dir, &other.dir) && self.name == other.name
    }
}

/// One change.
#[derive(Debug)]
pub(crate) enum Change {
    /// A file or directory has a new name.
    Made(Place),
    /// It was removed, and lies in the side directory.
    Gone { at: Place, aside: OsString },
    /// It moved; what was in its way lies in the side directory.
    Moved { from: Place, to: Place, aside: Option<OsString> },
}

impl Change {
    fn places(&self) -> [Option<&Place>; 2] {
        match self {
            Change::Made(at) | Change::Gone { at, .. } => [Some(at), None],
            Change::Moved { from, to, .. } => [Some(from), Some(to)],
        }
    }

    fn touches(&self, dir: &Arc<Node>) -> bool {
        self.places().into_iter().flatten().any(|p| Arc::ptr_eq(&p.dir, dir))
    }

    fn aside(&self) -> Option<&OsString> {
        match self {
            Change::Made(_) => None,
            Change::Gone { aside, .. } => Some(aside),
            Change::Moved { aside, .. } => aside.as_ref(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Names {
    side: OwnedFd,
    changes: Vec<Change>,
    next: u64,
}

impl Names {
    /// With an empty side directory.
    pub(crate) fn new(side: OwnedFd) -> Names {
        Names { side, changes: Vec::new(), next: 0 }
    }

    pub(crate) fn side(&self) -> impl AsFd + '_ {
        &self.side
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    /// A new name in the side directory.
    pub(crate) fn fresh(&mut self) -> OsString {
        self.next += 1;
        OsString::from(self.next.to_string())
    }

    pub(crate) fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// A directory was flushed: what was done in it is durable, and what that needs.
    pub(crate) fn flush(&mut self, dir: &Arc<Node>) {
        let mut durable: Vec<Change> = Vec::new();
        let mut volatile = Vec::new();
        for change in self.changes.drain(..).rev() {
            let needed = |p: &Place| durable.iter().any(|d| d.places().into_iter().flatten().any(|q| q == p));
            if change.touches(dir) || change.places().into_iter().flatten().any(needed) {
                durable.push(change);
            } else {
                volatile.push(change);
            }
        }
        volatile.reverse();
        self.changes = volatile;
        for aside in durable.iter().filter_map(Change::aside) {
            self.discard(aside);
        }
    }

    /// The power went: all but the oldest few are taken back. How many were, and how many were kept.
    pub(crate) fn restore(&mut self, mixture: &mut Mixture) -> (u64, u64) {
        let changes = std::mem::take(&mut self.changes);
        let kept = changes.iter().take_while(|_| mixture.keeps()).count();
        let mut dropped = 0;
        for (i, change) in changes.into_iter().enumerate().rev() {
            if i >= kept {
                dropped += 1;
                self.take_back(change);
            } else if let Some(aside) = change.aside() {
                self.discard(aside);
            }
        }
        (dropped, kept as u64)
    }

    /// A step that fails finds its directory gone for good: then the name is, too.
    fn take_back(&mut self, change: Change) {
        match change {
            Change::Made(at) => {
                let grave = self.fresh();
                if renameat(&at.dir.handle, &at.name, &self.side, &grave).is_ok() {
                    self.discard(&grave);
                }
            }
            Change::Gone { at, aside } => {
                let _ = renameat(&self.side, &aside, &at.dir.handle, &at.name);
            }
            Change::Moved { from, to, aside } => {
                let _ = renameat(&to.dir.handle, &to.name, &from.dir.handle, &from.name);
                if let Some(aside) = aside {
                    let _ = renameat(&self.side, &aside, &to.dir.handle, &to.name);
                }
            }
        }
    }

    /// Removes what was put aside, a directory with all that is in it.
    fn discard(&self, aside: &OsString) {
        if unlinkat(&self.side, aside, AtFlags::empty()).is_err() {
            let path = format!("/proc/self/fd/{}", self.side.as_raw_fd());
            let _ = std::fs::remove_dir_all(std::path::Path::new(&path).join(aside));
        }
    }
}
