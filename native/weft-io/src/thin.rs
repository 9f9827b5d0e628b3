//! Pools on LVM: each replica's segments on a thin logical volume of its own, all else in a file system on a thick one.
//!
//! ```text
//! VG weft-…   meta     thick: the pool's directory, with a file `lvm-thin` that names the VG; each replica's `lv` names its volume
//!             data     the thin pool
//!             r-…      thin, one a replica: per segment 64 MiB of data, then its 128 KiB sidecar
//!             s-…      an image's, see [`images`]
//! ```
//!
//! A segment is there if the replica's directory has a file `seg-…` of its number, which is empty: it is made when the
//! sidecar's chunks have their space.
//!
//! **Commands that fail or are killed half way.** A volume that is being made carries the tag `weft.busy=create`, from the
//! moment it is there until the replica's directory names it durably; one that goes, `weft.busy=remove:ENTRY` of the trash,
//! from before the first file goes; in the same way images go, and replicas in the making. [`ThinStore::settle`] finishes or undoes what such tags tell of: at the pool's start,
//! and after a command that failed.
//!
//! Must always hold:
//! * a volume without such a tag is never removed, nor one that a replica's directory or another entry of the trash names;
//! * a whole chunk that is zeroed gives its space back; a block that has none stays without; no byte beside the range changes;
//! * a command that takes longer than its deadline is an error, and what it left suspended goes on before the next one.

mod images;
mod system;
#[cfg(test)]
pub(crate) mod tests;

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;
use weft_proto::payload::Payload;

use crate::buffer::IoBuf;
use crate::clones;
use crate::driver::{Errno, Fd};
use crate::files::{Files, exists_at, names, open_at, unshared_clone};
use crate::images::ImageSegment;
use crate::pool_dir::{self, SegmentError, SegmentFiles, read_sidecar, replica_name};
use crate::reflink::Ability;
use crate::sidecar::{SEGMENT_BYTES, SIDECAR_BYTES};
use crate::store::{Home, Place, Store};

pub(crate) use images::read_device;
pub(crate) use system::{Failed, Lvm, System};

/// The file in a pool's directory that names its VG: `{"vg": "weft-…"}`.
pub const MARK: &str = "lvm-thin";
/// The thin pool's name.
pub const DATA: &str = "data";
/// The name of the logical volume with the pool's directory.
pub const META: &str = "meta";
/// Bytes of a segment on its volume.
pub const STRIDE: u64 = SEGMENT_BYTES + SIDECAR_BYTES as u64;

/// In a replica's directory.
const NAME: &str = "lv";
const CREATE: &str = "weft.busy=create";
const REMOVE: &str = "weft.busy=remove:";

/// Keeps the name of a replica's volume in its directory, durably but for the file's own name.
pub(crate) fn write_name(files: &Files, dir: &Fd, volume: &str) -> Result<(), Errno> {
    let file = files.create_at(dir, NAME, libc::O_RDWR)?;
    files.write_all_at(&file, volume.as_bytes(), 0)?;
    files.sync(&file)
}

fn read_name(dir: &Fd) -> Result<String, Errno> {
    let file = File::from(unshared_clone(&open_at(dir, NAME, libc::O_RDONLY)?)?);
    let mut bytes = [0; 128];
    let len = file.read_at(&mut bytes, 0)?;
    let name = core::str::from_utf8(&bytes[..len]).map_err(|_| Errno(libc::EUCLEAN))?;
    // It becomes an argument.
    let fine = (name.starts_with("r-") || name.starts_with("s-"))
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    if fine { Ok(name.to_owned()) } else { Err(Errno(libc::EUCLEAN)) }
}

/// The VG that a pool's directory names, if it lies on one.
pub(crate) fn vg_of(root: &Fd) -> Result<Option<String>, Errno> {
    let file = match open_at(root, MARK, libc::O_RDONLY) {
        Err(Errno(libc::ENOENT)) => return Ok(None),
        file => File::from(unshared_clone(&file?)?),
    };
    let mut bytes = [0; 1024];
    let len = file.read_at(&mut bytes, 0)?;
    let value: serde_json::Value = serde_json::from_slice(&bytes[..len]).map_err(|_| Errno(libc::EUCLEAN))?;
    let vg = value.get("vg").and_then(|vg| vg.as_str()).ok_or(Errno(libc::EUCLEAN))?;
    // It becomes an argument.
    let fine = vg.starts_with("weft-") && vg.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fine { Ok(Some(vg.to_owned())) } else { Err(Errno(libc::EUCLEAN)) }
}

/// Why a pool on LVM can't be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit(pub(crate) String);

impl From<Failed> for Unfit {
    fn from(failed: Failed) -> Unfit {
        Unfit(failed.what)
    }
}

impl From<Errno> for Unfit {
    fn from(errno: Errno) -> Unfit {
        Unfit(errno.to_string())
    }
}

/// A logical volume, as `lvs` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    /// Both without their hyphens, one after the other: as device-mapper has it.
    pub(crate) uuid: String,
    pub(crate) size: u64,
    pub(crate) tags: Vec<String>,
    /// Major and minor number; none if it is not active.
    pub(crate) number: Option<(u32, u32)>,
    pub(crate) suspended: bool,
    pub(crate) chunk: u64,
    /// New chunks are zeroed.
    pub(crate) zeroes: bool,
    /// A full pool refuses at once, and does not wait for a minute first.
    pub(crate) refuses: bool,
    /// Nobody activates it but who asks for just that: an image's.
    pub(crate) skipped: bool,
}

impl Volume {
    /// A part of another one.
    fn is_hidden(&self) -> bool {
        self.name.starts_with('[')
    }
}

const COLUMNS: &str = "lv_name,lv_uuid,vg_uuid,lv_size,lv_tags,lv_kernel_major,lv_kernel_minor,lv_active,lv_suspended,\
                       chunk_size,zero,lv_when_full,lv_skip_activation";

fn parse_volumes(json: &str) -> Option<Vec<Volume>> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let rows = value.get("report")?.get(0)?.get("lv")?.as_array()?;
    rows.iter()
        .map(|row| {
            let text = |name: &str| row.get(name)?.as_str();
            let number = |name: &str| text(name)?.parse().ok();
            let uuid = |name: &str| Some(text(name)?.replace('-', ""));
            let is_active = text("lv_active")? == "active";
            Some(Volume {
                name: text("lv_name")?.to_owned(),
                uuid: uuid("vg_uuid")? + &uuid("lv_uuid")?,
                size: text("lv_size")?.parse().ok()?,
                tags: text("lv_tags")?.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
                number: number("lv_kernel_major").zip(number("lv_kernel_minor")).filter(|_| is_active),
                suspended: text("lv_suspended")? == "suspended",
                chunk: text("chunk_size")?.parse().ok()?,
                zeroes: text("zero")? == "zero",
                refuses: text("lv_when_full")? == "error",
                skipped: !text("lv_skip_activation")?.is_empty(),
            })
        })
        .collect()
}

/// What is left of a thin pool, from device-mapper's status line: (free, total) bytes, the lesser of data and metadata.
fn parse_space(status: &str, chunk: u64) -> Result<(u64, u64), Errno> {
    let words: Vec<&str> = status.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "thin-pool").ok_or(Errno(libc::ENODEV))?;
    let pair = |word: Option<&&str>| -> Option<(u64, u64)> {
        let (used, total) = word?.split_once('/')?;
        Some((used.parse().ok()?, total.parse().ok().filter(|t| *t > 0)?))
    };
    // transaction, metadata, data, held root, mode; "Fail" or "Error" instead of all of them.
    let (Some(meta), Some(data)) = (pair(words.get(at + 2)), pair(words.get(at + 3))) else {
        return Err(Errno(libc::EIO));
    };
    let total = data.1.saturating_mul(chunk);
    let left =
        |(used, of): (u64, u64)| u128::from(of.saturating_sub(used)) * u128::from(total) / u128::from(of);
    let free = u64::try_from(left(data).min(left(meta))).unwrap_or(total);
    match words.get(at + 5) {
        Some(&"ro") => Err(Errno(libc::EROFS)),
        Some(&"out_of_data_space") => Ok((0, total)),
        _ => Ok((free, total)),
    }
}

/// What two blocks of metadata are worth in data, where both are full at the same moment.
fn parse_metadata_cost(status: &str, chunk: u64) -> u64 {
    let mut words = status.split_whitespace().skip_while(|word| *word != "thin-pool").skip(2);
    let mut total = || words.next()?.split_once('/')?.1.parse::<u64>().ok().filter(|total| *total > 0);
    let (Some(meta), Some(data)) = (total(), total()) else { return 0 };
    (2 * data).saturating_mul(chunk) / meta
}

/// What a thin volume takes, from its status line.
fn parse_used(status: &str) -> Option<u64> {
    let mut words = status.split_whitespace().skip_while(|word| *word != "thin");
    words.next()?;
    words.next()?.parse::<u64>().ok()?.checked_mul(512)
}

/// What failed commands have left.
#[derive(Debug, Default)]
struct Left {
    /// Something to be settled.
    unsettled: bool,
    /// A command was killed: what it had suspended still is.
    killed: bool,
    /// Volumes that directories name durably by now: their tags go when there is time.
    named: Vec<String>,
}

/// See the module.
pub(crate) struct ThinStore {
    system: Box<dyn System>,
    vg: String,
    chunk: u64,
    files: Files,
    root: Fd,
    replicas: Fd,
    trash: Fd,
    /// Images that were read.
    open: Mutex<BTreeMap<(ReplicaKey, SnapId), images::Shelf>>,
    /// Of data, what two blocks of metadata are worth.
    metadata_cost: AtomicU64,
    /// Bytes that each volume took at the last look.
    used: Mutex<BTreeMap<String, u64>>,
    /// Held while a command changes the VG.
    left: Mutex<Left>,
}

impl fmt::Debug for ThinStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThinStore({})", self.vg)
    }
}

impl ThinStore {
    /// Takes up the pool's VG: all its volumes active, nothing half made.
    pub(crate) fn start(
        system: Box<dyn System>,
        vg: &str,
        files: &Files,
        root: &Fd,
        replicas: &Fd,
        trash: &Fd,
    ) -> Result<ThinStore, Unfit> {
        let mut store = ThinStore {
            system,
            vg: vg.to_owned(),
            chunk: 0,
            files: files.clone(),
            root: root.clone(),
            open: Mutex::default(),
            metadata_cost: AtomicU64::new(0),
            replicas: replicas.clone(),
            trash: trash.clone(),
            used: Mutex::default(),
            left: Mutex::default(),
        };
        let volumes = store.volumes()?;
        let pool = volumes.iter().find(|v| v.name == DATA);
        let pool = pool.ok_or_else(|| Unfit(format!("the volume group {vg} has no thin pool \"{DATA}\"")))?;
        if !pool.zeroes {
            return Err(Unfit(format!(
                "{vg}/{DATA} does not zero new chunks: what one volume deleted another would read"
            )));
        }
        if pool.chunk < 4096 || !(SIDECAR_BYTES as u64).is_multiple_of(pool.chunk) {
            return Err(Unfit(format!("{vg}/{DATA} has chunks of {} bytes, not of 64 KiB", pool.chunk)));
        }
        store.chunk = pool.chunk;
        if !pool.refuses {
            store.lvm("lvchange", &["--errorwhenfull", "y", &format!("{vg}/{DATA}")])?;
        }
        store.recover()?;
        store.settle()?;
        // By now nothing is half made, which could not be activated.
        if store.volumes()?.iter().any(|v| v.number.is_none() && !v.is_hidden() && !v.skipped) {
            store.lvm("vgchange", &["--activate", "y", vg])?;
        }
        Ok(store)
    }

    fn lvm(&self, verb: &str, args: &[&str]) -> Result<String, Failed> {
        self.system.lvm(verb, args)
    }

    fn volumes(&self) -> Result<Vec<Volume>, Failed> {
        let args =
            ["--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", COLUMNS, &self.vg];
        let json = self.lvm("lvs", &args)?;
        parse_volumes(&json).ok_or_else(|| Failed {
            what: "lvs: what it said is not understood".to_owned(),
            errno: Errno(libc::EPROTO),
            killed: false,
        })
    }

    /// After commands that were killed: what is suspended goes on, and the thin pool is active.
    fn recover(&self) -> Result<(), Failed> {
        let volumes = self.volumes()?;
        for volume in volumes.iter().filter(|v| v.suspended && !v.is_hidden()) {
            self.lvm("lvchange", &["--refresh", &self.path(&volume.name)])?;
        }
        if volumes.iter().any(|v| v.name == DATA && v.number.is_some()) {
            return Ok(());
        }
        let data = self.path(DATA);
        if self.lvm("lvchange", &["--activate", "y", &data]).is_ok() {
            return Ok(());
        }
        // An activation that was killed leaves the pool's parts active, and the next one refuses because of that.
        for part in ["tmeta", "tdata"] {
            self.lvm("lvchange", &["--yes", "--activate", "n", &format!("{data}_{part}")])?;
        }
        self.lvm("lvchange", &["--activate", "y", &data]).map(drop)
    }

    fn volume(&self, name: &str) -> Result<Volume, Errno> {
        let found = self.volumes()?.into_iter().find(|volume| volume.name == name);
        found.ok_or(Errno(libc::ENXIO))
    }

    fn path(&self, volume: &str) -> String {
        format!("{}/{volume}", self.vg)
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command that changes something: if it fails, what it did is not known.
    fn change(&self, left: &mut Left, verb: &str, args: &[&str]) -> Result<(), Errno> {
        match self.lvm(verb, args) {
            Ok(_) => Ok(()),
            Err(failed) => {
                left.unsettled = true;
                left.killed |= failed.killed;
                Err(failed.errno)
            }
        }
    }

    /// Nothing of earlier commands is left over.
    fn tidy(&self, left: &mut Left) -> Result<(), Errno> {
        if left.killed {
            self.recover()?;
            left.killed = false;
        }
        if left.unsettled {
            self.settle()?;
            left.unsettled = false;
            left.named.clear();
        }
        Ok(())
    }

    /// Tags of what directories name durably go.
    fn untag(&self, left: &mut Left) -> Result<(), Errno> {
        while let Some(name) = left.named.last() {
            let path = self.path(name);
            self.change(left, "lvchange", &["--deltag", CREATE, &path])?;
            left.named.pop();
        }
        Ok(())
    }

    /// Which directory names which volume.
    fn named(&self) -> Result<BTreeMap<String, Where>, Errno> {
        let mut named = BTreeMap::new();
        for (parent, alive) in [(&self.trash, false), (&self.replicas, true)] {
            for name in names(parent)? {
                let dir = match open_at(parent, &name, libc::O_RDONLY | libc::O_DIRECTORY) {
                    Err(Errno(libc::ENOTDIR)) => continue,
                    dir => dir?,
                };
                match read_name(&dir) {
                    // Half removed.
                    Err(Errno(libc::ENOENT)) => {}
                    volume => {
                        let place = match (alive, name.ends_with(".tmp")) {
                            (true, true) => Where::Making(format!("replicas/{name}")),
                            (true, false) => Where::Living,
                            (false, _) => Where::Going(name),
                        };
                        named.insert(volume?, place);
                    }
                }
            }
        }
        let images = self.named_by_images()?;
        named.extend(images.into_iter().map(|(volume, entry)| (volume, Where::Going(entry))));
        Ok(named)
    }

    /// Finishes or undoes what the tags tell of.
    fn settle(&self) -> Result<(), Failed> {
        let volumes = self.volumes()?;
        if !volumes.iter().any(|volume| volume.tags.iter().any(|tag| is_busy(tag))) {
            return Ok(());
        }
        let named = self.named()?;
        for volume in &volumes {
            let place = named.get(&volume.name);
            let path = self.path(&volume.name);
            for tag in volume.tags.iter().filter(|tag| is_busy(tag)) {
                let entry = tag.strip_prefix(REMOVE);
                match (place, entry) {
                    (None, None) => {}
                    (None, Some(entry)) => self.remove_entry(entry)?,
                    (Some(Where::Going(name) | Where::Making(name)), Some(entry)) if name == entry => {
                        self.remove_entry(entry)?;
                    }
                    (Some(Where::Making(_)), None) => continue,
                    (Some(_), _) => {
                        self.lvm("lvchange", &["--deltag", tag, &path])?;
                        continue;
                    }
                }
                self.lvm("lvremove", &["--yes", &path])?;
                break;
            }
        }
        Ok(())
    }

    fn remove_entry(&self, entry: &str) -> Result<(), Errno> {
        if self.remove_image_entry(entry)? {
            return Ok(());
        }
        match pool_dir::empty_trash(&self.files, &self.trash, entry) {
            Err(Errno(libc::ENOENT)) => Ok(()),
            removed => removed,
        }
    }

    /// Bytes that a volume needs for a replica of `size` bytes.
    fn needed(size: u64) -> u64 {
        size.div_ceil(SEGMENT_BYTES).max(1).saturating_mul(STRIDE)
    }

    /// The replica's volume, as large as it has to be, and its device, which an extension that was killed may not have reached.
    fn large_enough(
        &self,
        dir: &Fd,
        size: u64,
        device: Option<&(Fd, Arc<str>)>,
    ) -> Result<(Fd, Arc<str>), Errno> {
        let volume = self.extended(dir, size)?;
        let device = match device {
            Some((device, _)) => device.clone(),
            None => self.system.device(&volume)?,
        };
        let length = || File::from(unshared_clone(&device)?).seek(SeekFrom::End(0)).map_err(Errno::from);
        if length()? < ThinStore::needed(size) {
            self.change(&mut self.lock(), "lvchange", &["--refresh", &self.path(&volume.name)])?;
            if length()? < ThinStore::needed(size) {
                return Err(Errno(libc::EIO));
            }
        }
        Ok((device, volume.name.into()))
    }

    fn extended(&self, dir: &Fd, size: u64) -> Result<Volume, Errno> {
        let name = read_name(dir)?;
        let mut left = self.lock();
        let volume = self.volume(&name)?;
        if volume.size >= ThinStore::needed(size) && volume.number.is_some() {
            return Ok(volume);
        }
        self.tidy(&mut left)?;
        if volume.number.is_none() {
            self.change(&mut left, "lvchange", &["--activate", "y", &self.path(&name)])?;
        }
        if volume.size < ThinStore::needed(size) {
            let bytes = format!("{}b", ThinStore::needed(size));
            self.change(&mut left, "lvextend", &["--size", &bytes, &self.path(&name)])?;
        }
        self.volume(&name)
    }
}

impl Store for ThinStore {
    fn is_slow(&self) -> bool {
        true
    }

    fn grain(&self) -> u64 {
        self.chunk
    }

    fn create(
        &self,
        files: &Files,
        replicas: &Fd,
        key: ReplicaKey,
        meta_bytes: u64,
        thick: Option<u64>,
    ) -> Result<(), Errno> {
        if thick.is_some() {
            return Err(Errno(libc::EOPNOTSUPP)); // a thin volume has no blocks of its own before they are written
        }
        if exists_at(replicas, &replica_name(key))? {
            return Err(Errno(libc::EEXIST));
        }
        let mut left = self.lock();
        self.tidy(&mut left)?;
        let name = fresh_name("r-", key);
        let size = format!("{}b", ThinStore::needed(0));
        let thin = ["--type", "thin", "--thinpool", DATA, "--virtualsize", &size];
        let args = [
            &["--yes", "--wipesignatures", "n", "--addtag", CREATE, "--name", &name],
            &thin[..],
            &[&self.vg],
        ];
        self.change(&mut left, "lvcreate", &args.concat())?;
        if let Err(errno) = pool_dir::create_replica(files, replicas, key, meta_bytes, Some(&name), None) {
            left.unsettled = true;
            // The first error is the one to tell.
            let _ = self.tidy(&mut left);
            return Err(errno);
        }
        // The directory names it: what is left of the making is the tag.
        let _ = self.change(&mut left, "lvchange", &["--deltag", CREATE, &self.path(&name)]);
        Ok(())
    }

    fn open(
        &self,
        files: &Files,
        replicas: &Fd,
        key: ReplicaKey,
        size: u64,
        in_doubt: &dyn Fn(u32) -> bool,
    ) -> Result<(Home, Vec<u32>), Errno> {
        let (dir, segments) = pool_dir::open_replica(files, replicas, key, in_doubt)?;
        let device = match self.large_enough(&dir, size, None) {
            // "No such replica" would be another thing.
            Err(Errno(libc::ENOENT)) => return Err(Errno(libc::ENXIO)),
            device => device?,
        };
        files.sync(&device.0)?;
        Ok((Home { dir, device: Some(device) }, segments))
    }

    fn extend(&self, home: &Home, size: u64) -> Result<(), Errno> {
        self.large_enough(&home.dir, size, home.device.as_ref()).map(drop)
    }

    fn segment(
        &self,
        files: &Files,
        home: &Home,
        number: u32,
        _direct: bool,
    ) -> Result<SegmentFiles, SegmentError> {
        let (device, _) = home.device.as_ref().ok_or(Errno(libc::ENXIO))?;
        let base = u64::from(number) * STRIDE;
        let side = base + SEGMENT_BYTES;
        let mark = format!("seg-{number:06}");
        if !exists_at(&home.dir, &mark)? {
            files.write_all_at(device, IoBuf::zeroed(SIDECAR_BYTES).bytes(), side)?;
            files.sync(device)?;
            files.create_at(&home.dir, &mark, libc::O_RDWR)?;
            files.sync(&home.dir)?;
        }
        let sidecar = read_sidecar(device, side)?;
        let [data, side] = [base, side].map(|base| Place { file: device.clone(), base });
        Ok(SegmentFiles { data, side, sidecar })
    }

    fn zero(
        &self,
        files: &Files,
        place: &Place,
        offset: u64,
        len: u64,
        keep_space: bool,
    ) -> Result<(), Errno> {
        let (start, end) = (place.base + offset, place.base + offset + len);
        if keep_space {
            return files.write_zeroes_at(&place.file, start, len);
        }
        let (lo, hi) = (start.next_multiple_of(self.chunk), end / self.chunk * self.chunk);
        let mut edges = [start..end, end..end];
        if lo < hi {
            match files.discard(&place.file, lo, hi - lo) {
                Err(Errno(libc::EOPNOTSUPP)) => {}
                done => {
                    done?;
                    edges = [start..lo, hi..end];
                }
            }
        }
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            for at in edge.clone().step_by(1 << 20) {
                let len = (edge.end - at).min(1 << 20);
                // What is zero already may have no space, and writing would take some.
                if !is_zero(&place.file, at, len)? {
                    files.write_zeroes_at(&place.file, at, len)?;
                }
            }
        }
        Ok(())
    }

    fn empty_trash(&self, files: &Files, trash: &Fd, entry: &str) -> Result<(), Errno> {
        if !pool_dir::list_trash(trash)?.iter().any(|e| e.name == entry) {
            return Err(Errno(libc::ENOENT));
        }
        let name = open_at(trash, entry, libc::O_RDONLY | libc::O_DIRECTORY).and_then(|dir| read_name(&dir));
        let mut left = self.lock();
        self.tidy(&mut left)?;
        let volume = match name {
            // Half removed.
            Err(Errno(libc::ENOENT)) => None,
            name => {
                let name = name?;
                self.volumes()?.into_iter().find(|volume| volume.name == name)
            }
        };
        let Some(volume) = volume else { return self.remove_entry(entry) };
        let path = self.path(&volume.name);
        self.change(&mut left, "lvchange", &["--addtag", &format!("{REMOVE}{entry}"), &path])?;
        if let Err(errno) = pool_dir::empty_trash(files, trash, entry) {
            left.unsettled = true;
            return Err(errno);
        }
        left.named.retain(|named| *named != volume.name);
        // The tag will see to it otherwise.
        let _ = self.change(&mut left, "lvremove", &["--yes", &path]);
        Ok(())
    }

    fn ability(&self, _of_files: Ability) -> Ability {
        Ability::Thin
    }

    fn metadata_cost(&self) -> u64 {
        self.metadata_cost.load(Ordering::Relaxed)
    }

    fn make_image(
        &self,
        files: &Files,
        root: &Fd,
        of: (ReplicaKey, SnapId),
        slot_bytes: u64,
    ) -> Result<(), Errno> {
        ThinStore::make_image(self, files, root, of, slot_bytes)
    }

    fn take_image(
        &self,
        files: &Files,
        root: &Fd,
        home: &Home,
        of: (ReplicaKey, SnapId),
        segments: &BTreeSet<u32>,
    ) -> Result<(), Errno> {
        ThinStore::take_image(self, files, root, home, of, segments)
    }

    fn image_segment(
        &self,
        root: &Fd,
        key: ReplicaKey,
        [image, _]: [Option<SnapId>; 2],
        number: u32,
        look: &mut dyn FnMut(&ImageSegment),
    ) -> Result<bool, Errno> {
        match image {
            Some(image) => ThinStore::image_segment(self, root, (key, image), number, look),
            None => Ok(false),
        }
    }

    fn drop_image(&self, files: &Files, root: &Fd, of: (ReplicaKey, SnapId)) -> Result<(), Errno> {
        ThinStore::drop_image(self, files, root, of)
    }

    fn begin_clone(
        &self,
        files: &Files,
        dirs: (&Fd, &Fd),
        of: (ReplicaKey, SnapId, ReplicaKey),
        meta_bytes: u64,
    ) -> Result<(), Errno> {
        ThinStore::begin_clone(self, files, dirs, of, meta_bytes)
    }

    fn clones_begin_whole(&self) -> bool {
        true
    }

    fn publish_clone(
        &self,
        files: &Files,
        replicas: &Fd,
        to: ReplicaKey,
        checkpoint: &[u8],
    ) -> Result<(), Errno> {
        clones::publish(files, replicas, to, checkpoint)?;
        self.clone_published(replicas, to)
    }

    fn abandon_clone(&self, files: &Files, replicas: &Fd, to: ReplicaKey) -> Result<(), Errno> {
        ThinStore::abandon_clone(self, files, replicas, to)
    }

    fn used(&self, home: &Home, _files: Option<u64>) -> Option<u64> {
        let (_, name) = home.device.as_ref()?;
        self.used.lock().unwrap_or_else(PoisonError::into_inner).get(&**name).copied()
    }

    fn space(&self, _free: u64, _total: u64) -> Result<(u64, u64), Errno> {
        if let Ok(mut left) = self.left.try_lock() {
            // Comes again with the next look.
            let _ = self.tidy(&mut left).and_then(|()| self.untag(&mut left));
        }
        let vg = self.vg.replace('-', "--");
        let status = self.system.status()?;
        let pool = format!("{vg}-{DATA}");
        let mut space = Err(Errno(libc::ENODEV));
        let mut used = BTreeMap::new();
        for (device, words) in status.lines().filter_map(|line| line.split_once(": ")) {
            // The second as long as it has no volumes.
            if device.strip_suffix("-tpool") == Some(&pool) || device == pool && words.contains(" thin-pool ")
            {
                space = parse_space(words, self.chunk);
                self.metadata_cost.store(parse_metadata_cost(words, self.chunk), Ordering::Relaxed);
            } else if let Some(name) = device.strip_prefix(&format!("{vg}-")) {
                used.extend(parse_used(words).map(|bytes| (name.replace("--", "-"), bytes)));
            }
        }
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = used;
        space
    }
}

/// Who has a volume.
#[derive(Debug)]
enum Where {
    Living,
    /// A replica in the making.
    Making(String),
    /// What a tag may say is to be removed: an entry of the trash, an image.
    Going(String),
}

fn is_busy(tag: &str) -> bool {
    tag == CREATE || tag.starts_with(REMOVE)
}

/// A name that no volume had before.
fn fresh_name(prefix: &str, key: ReplicaKey) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_micros());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}.{}-{now:x}.{count:x}", key.volume, key.rid.0)
}

fn is_zero(file: &Fd, offset: u64, len: u64) -> Result<bool, Errno> {
    let mut buf = IoBuf::scratch(usize::try_from(len).map_err(|_| Errno(libc::EFBIG))?);
    match File::from(unshared_clone(file)?).read_exact_at(buf.bytes_mut(), offset) {
        Ok(()) => Ok(buf.bytes().iter().all(|byte| *byte == 0)),
        // Not readable until it is written.
        Err(_) => Ok(false),
    }
}
