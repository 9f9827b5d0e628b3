//! What a power cut may leave: per 4 KiB block, length and name the states it may be in, given what was written and
//! flushed before.
//!
//! What counts as durable is what POSIX and Linux promise, not what one file system happens to do:
//! * a block, and the length that it needs, by a write with RWF_DSYNC that has ended, or an fsync or fdatasync of its
//!   file that began after the write had ended;
//! * a name by an fsync of its directory that began after the call had ended; a name made durable says nothing of
//!   what the file holds, and a file made durable nothing of its name;
//! * a range that was made to share another file's blocks, by an fsync of the file that it is in, and with it the
//!   content as it was then;
//! * a rename within a directory happens or not; between directories the new name comes before the old one goes,
//!   unless an fsync of the old directory alone makes the removal durable.
//!
//! Whatever is not durable is, independently of the rest, as before, as written (any of several writes), or torn
//! between two versions at a sector's border. A block of new space that was never written reads as zeroes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::rng::mix;
use crate::trace::{Event, Node, ROOT, What};

const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;

/// A block's content; none is all zero.
#[derive(Clone, Debug, Default)]
pub struct Content {
    hash: u64,
    bytes: Option<Arc<[u8]>>,
}

impl Content {
    fn of(bytes: &[u8]) -> Content {
        assert_eq!(bytes.len(), BLOCK_LEN, "a whole block");
        if bytes.iter().all(|b| *b == 0) {
            return Content::default();
        }
        let mut hash = 1;
        for word in bytes.chunks_exact(8) {
            hash = mix(hash, u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
        Content { hash, bytes: Some(bytes.into()) }
    }

    fn to_vec(&self) -> Vec<u8> {
        self.bytes.as_ref().map_or_else(|| vec![0; BLOCK_LEN], |bytes| bytes.to_vec())
    }

    /// The first `at` bytes of one, the rest of the other.
    fn torn(head: &Content, tail: &Content, at: usize) -> Content {
        let mut bytes = tail.to_vec();
        bytes[..at].copy_from_slice(&head.to_vec()[..at]);
        Content::of(&bytes)
    }
}

/// One thing with its durable state and what was done to it since.
#[derive(Clone, Debug, Default)]
struct Line<T> {
    durable: T,
    pending: Vec<Pending<T>>,
}

#[derive(Clone, Debug)]
struct Pending<T> {
    op: u64,
    ended: Option<usize>,
    value: T,
}

impl<T: Clone> Line<T> {
    fn newest(&self) -> &T {
        self.pending.last().map_or(&self.durable, |p| &p.value)
    }

    fn settle(&mut self, last: Option<usize>) {
        if let Some(last) = last {
            self.durable = self.pending.drain(..=last).next_back().expect("not empty").value;
        }
    }

    /// What had ended before `time` is durable.
    fn sync(&mut self, time: usize) {
        self.settle(self.pending.iter().rposition(|p| p.ended.is_some_and(|ended| ended < time)));
    }

    /// This op is durable.
    fn settle_op(&mut self, op: u64) {
        self.settle(self.pending.iter().rposition(|p| p.op == op));
    }

    fn end(&mut self, op: u64, time: usize) {
        for pending in self.pending.iter_mut().filter(|p| p.op == op) {
            pending.ended = Some(time);
        }
    }

    fn kill(&mut self, dropped: &[u64], time: usize) {
        self.pending.retain(|p| p.ended.is_some() || !dropped.contains(&p.op));
        for pending in &mut self.pending {
            pending.ended.get_or_insert(time);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct FileState {
    size: Line<u64>,
    blocks: BTreeMap<u64, Line<Content>>,
}

impl FileState {
    fn lines(&mut self, mut each: impl FnMut(&mut Line<Content>)) {
        self.blocks.values_mut().for_each(&mut each);
        self.blocks.retain(|_, line| !line.pending.is_empty() || line.durable.bytes.is_some());
    }
}

/// A change of names that is not durable.
#[derive(Clone, Debug)]
struct NameOp {
    time: usize,
    change: NameChange,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add { dir: Node, name: String, node: Node },
    Drop { dir: Node, name: String, /* the Add that comes first */ after: Option<usize> },
    Move { dir: Node, from: String, to: String, node: Node },
}

impl NameChange {
    fn touches(&self) -> Vec<(Node, &str)> {
        match self {
            NameChange::Add { dir, name, .. } | NameChange::Drop { dir, name, .. } => vec![(*dir, name)],
            NameChange::Move { dir, from, to, .. } => vec![(*dir, from), (*dir, to)],
        }
    }

    fn apply(&self, names: &mut BTreeMap<(Node, String), Node>) {
        match self {
            NameChange::Add { dir, name, node } => {
                names.insert((*dir, name.clone()), *node);
            }
            NameChange::Drop { dir, name, .. } => {
                names.remove(&(*dir, name.clone()));
            }
            NameChange::Move { dir, from, to, node } => {
                names.remove(&(*dir, from.clone()));
                names.insert((*dir, to.clone()), *node);
            }
        }
    }
}

/// A disk at one moment of a trace.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    files: BTreeMap<Node, FileState>,
    names: BTreeMap<(Node, String), Node>,
    /// By time of the call, so that a number stays right when others go.
    name_ops: BTreeMap<usize, NameOp>,
    running: BTreeMap<u64, (usize, What)>,
    time: usize,
}

/// One thing that a power cut decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    what: UnitKind,
    /// Whole versions: the durable one and each later one.
    pub versions: u16,
    /// Torn states beyond those.
    pub torn: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum UnitKind {
    Name(usize),
    Size(Node),
    Block(Node, u64),
}

/// A disk as a power cut left it.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Equal disks have equal hashes.
    pub hash: u64,
    /// In an order in which they can be made; directories have no content.
    entries: Vec<(String, Option<(u64, Vec<(u64, Content)>)>)>,
}

impl Disk {
    /// A disk that holds an image, durably; `names` are the nodes of what lies there.
    #[must_use]
    pub fn of_image(image: &Image, names: &BTreeMap<(Node, String), Node>) -> Disk {
        let mut disk = Disk { names: names.clone(), ..Disk::default() };
        for (path, content) in &image.entries {
            let node = path.split('/').fold(ROOT, |dir, name| names[&(dir, name.to_owned())]);
            let Some((size, blocks)) = content else { continue };
            let line = |content: &Content| Line { durable: content.clone(), pending: Vec::new() };
            let blocks = blocks.iter().map(|(block, content)| (*block, line(content))).collect();
            let size = Line { durable: *size, pending: Vec::new() };
            disk.files.insert(node, FileState { size, blocks });
        }
        disk
    }

    /// Goes on by one event; `lost` says whether the flush of this event is to be left out.
    pub fn advance(&mut self, event: &Event, lost: bool) {
        let time = self.time;
        self.time += 1;
        match event {
            Event::Did(What::Sync { node, .. }) => {
                if !lost {
                    self.sync(*node, time);
                }
            }
            Event::Did(what) => self.begin(0, Some(time), what),
            Event::Start(op, what) => {
                self.begin(*op, None, what);
                self.running.insert(*op, (time, what.clone()));
            }
            Event::End(op) => {
                let Some((started, what)) = self.running.remove(op) else { return };
                match what {
                    What::Sync { node, .. } if !lost => self.sync(node, started),
                    What::Write { node, durable, .. } => {
                        let file = self.files.get_mut(&node).expect("written to");
                        file.size.end(*op, time);
                        file.lines(|line| line.end(*op, time));
                        if durable && !lost {
                            file.size.settle_op(*op);
                            file.size.sync(started);
                            file.lines(|line| line.settle_op(*op));
                        }
                    }
                    _ => {}
                }
            }
            Event::Kill { dropped } => {
                for file in self.files.values_mut() {
                    file.size.kill(dropped, time);
                    file.lines(|line| line.kill(dropped, time));
                }
                self.running.clear();
            }
        }
    }

    fn begin(&mut self, op: u64, ended: Option<usize>, what: &What) {
        match what {
            What::Write { node, offset, bytes, .. } => {
                let file = self.files.get_mut(node).expect("a file that was made");
                let end = offset + bytes.len() as u64;
                if end > *file.size.newest() {
                    file.size.pending.push(Pending { op, ended, value: end });
                }
                let mut at = *offset;
                while at < end {
                    let block = at / BLOCK;
                    let stop = end.min((block + 1) * BLOCK);
                    let line = file.blocks.entry(block).or_default();
                    let within = |n: u64| usize::try_from(n - block * BLOCK).expect("within a block");
                    let from = |n: u64| usize::try_from(n - offset).expect("within the write");
                    let mut content = line.newest().to_vec();
                    content[within(at)..within(stop)].copy_from_slice(&bytes[from(at)..from(stop)]);
                    let value = Content::of(&content);
                    if !line.pending.is_empty() || line.durable.hash != value.hash {
                        line.pending.push(Pending { op, ended, value });
                    }
                    at = stop;
                }
                file.lines(|_| {});
            }
            What::Truncate { node, len } | What::Allocate { node, len } => {
                let file = self.files.get_mut(node).expect("a file that was made");
                let cut = matches!(what, What::Truncate { .. });
                let size = *file.size.newest();
                if (cut && *len != size) || *len > size {
                    file.size.pending.push(Pending { op, ended, value: *len });
                }
                if cut {
                    zero(file, op, ended, len.div_ceil(BLOCK)..u64::MAX);
                }
            }
            What::Zero { node, offset, len } => {
                let file = self.files.get_mut(node).expect("a file that was made");
                zero(file, op, ended, offset / BLOCK..(offset + len) / BLOCK);
            }
            What::Clone { from, from_offset, node, offset, len } => {
                let (source, first, blocks) = (from_offset / BLOCK, offset / BLOCK, len / BLOCK);
                let shared = self.files[from].blocks.range(source..source + blocks);
                let shared: BTreeMap<u64, Content> =
                    shared.map(|(block, line)| (block - source + first, line.newest().clone())).collect();
                let file = self.files.get_mut(node).expect("a file that was made");
                if offset + len > *file.size.newest() {
                    file.size.pending.push(Pending { op, ended, value: offset + len });
                }
                for block in first..first + blocks {
                    match shared.get(&block) {
                        Some(value) => {
                            let line = file.blocks.entry(block).or_default();
                            if line.newest().hash != value.hash {
                                line.pending.push(Pending { op, ended, value: value.clone() });
                            }
                        }
                        None => zero(file, op, ended, block..block + 1),
                    }
                }
                file.lines(|_| {});
            }
            What::Make { dir, name, node, is_dir } => {
                if !is_dir {
                    self.files.insert(*node, FileState::default());
                }
                self.name(ended, NameChange::Add { dir: *dir, name: name.clone(), node: *node });
            }
            What::Rename { from_dir, from, to_dir, to, node } if from_dir == to_dir => {
                let (from, to) = (from.clone(), to.clone());
                self.name(ended, NameChange::Move { dir: *from_dir, from, to, node: *node });
            }
            What::Rename { from_dir, from, to_dir, to, node } => {
                let time = ended.expect("calls have ended");
                // Twice the time and one more keeps the two apart.
                self.name(ended, NameChange::Add { dir: *to_dir, name: to.clone(), node: *node });
                let change = NameChange::Drop { dir: *from_dir, name: from.clone(), after: Some(time * 2) };
                self.name_ops.insert(time * 2 + 1, NameOp { time, change });
            }
            What::Remove { dir, name } => {
                self.name(ended, NameChange::Drop { dir: *dir, name: name.clone(), after: None });
            }
            What::Sync { .. } => {}
        }
    }

    fn name(&mut self, ended: Option<usize>, change: NameChange) {
        let time = ended.expect("calls have ended");
        self.name_ops.insert(time * 2, NameOp { time, change });
    }

    fn sync(&mut self, node: Node, time: usize) {
        if let Some(file) = self.files.get_mut(&node) {
            file.size.sync(time);
            file.lines(|line| line.sync(time));
            return;
        }
        let of_it = |op: &NameOp| op.time < time && op.change.touches().iter().any(|(dir, _)| *dir == node);
        let settled: Vec<usize> =
            self.name_ops.iter().filter(|(_, op)| of_it(op)).map(|(at, _)| *at).collect();
        for at in settled {
            let op = self.name_ops.remove(&at).expect("just found");
            op.change.apply(&mut self.names);
        }
    }

    /// What a power cut would decide now.
    #[must_use]
    pub fn units(&self) -> Vec<Unit> {
        let mut units: Vec<Unit> =
            self.name_ops.keys().map(|at| Unit { what: UnitKind::Name(*at), versions: 2, torn: 0 }).collect();
        for (node, file) in &self.files {
            if !file.size.pending.is_empty() {
                let versions = count(file.size.pending.len()) + 1;
                units.push(Unit { what: UnitKind::Size(*node), versions, torn: 0 });
            }
            for (block, line) in file.blocks.iter().filter(|(_, line)| !line.pending.is_empty()) {
                let later = count(line.pending.len());
                let what = UnitKind::Block(*node, *block);
                units.push(Unit { what, versions: later + 1, torn: later * 2 });
            }
        }
        units
    }

    fn block(&self, node: Node, block: u64, choice: u16) -> Content {
        let line = &self.files[&node].blocks[&block];
        let version = |n: usize| match n.checked_sub(1) {
            None => &line.durable,
            Some(later) => &line.pending[later].value,
        };
        let choice = usize::from(choice);
        let versions = line.pending.len() + 1;
        if choice < versions {
            return version(choice).clone();
        }
        let (step, tail_first) = ((choice - versions) / 2, (choice - versions) % 2 == 1);
        let (old, new) = (version(step), version(step + 1));
        // Tears move with the block, so that all borders of sectors are met.
        let at = 512 * (1 + usize::try_from((block + u64::from(node)) % 7).expect("small"));
        if tail_first { Content::torn(old, new, at) } else { Content::torn(new, old, at) }
    }

    /// The disk if the power cut decides `choice` for `units`.
    #[must_use]
    pub fn image(&self, units: &[Unit], choice: &[u16]) -> Image {
        let mut chosen_names: BTreeSet<usize> = BTreeSet::new();
        let mut sizes: BTreeMap<Node, u64> = BTreeMap::new();
        let mut blocks: BTreeMap<Node, BTreeMap<u64, Content>> = BTreeMap::new();
        for (unit, choice) in units.iter().zip(choice) {
            match &unit.what {
                UnitKind::Name(at) if *choice > 0 => {
                    chosen_names.insert(*at);
                }
                UnitKind::Name(_) => {}
                UnitKind::Size(node) => {
                    let line = &self.files[node].size;
                    let size =
                        usize::from(*choice).checked_sub(1).map_or(line.durable, |n| line.pending[n].value);
                    sizes.insert(*node, size);
                }
                UnitKind::Block(node, block) => {
                    blocks.entry(*node).or_default().insert(*block, self.block(*node, *block, *choice));
                }
            }
        }
        let names = self.names_with(chosen_names);
        let mut image = Image { hash: 0, entries: Vec::new() };
        let mut open = vec![(ROOT, String::new())];
        while let Some((dir, path)) = open.pop() {
            for ((_, name), node) in names.range((dir, String::new())..(dir + 1, String::new())) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                let mut hash = path.bytes().fold(7, |hash, byte| mix(hash, u64::from(byte)));
                let Some(file) = self.files.get(node) else {
                    image.hash = mix(image.hash, hash);
                    image.entries.push((path.clone(), None));
                    open.push((*node, path));
                    continue;
                };
                let size = sizes.get(node).copied().unwrap_or(file.size.durable);
                let decided = blocks.get(node);
                let mut content = Vec::new();
                for (block, line) in &file.blocks {
                    let here = decided.and_then(|d| d.get(block)).unwrap_or(&line.durable);
                    if here.bytes.is_some() && block * BLOCK < size {
                        hash = mix(hash, mix(*block, here.hash));
                        content.push((*block, here.clone()));
                    }
                }
                image.hash = mix(image.hash, mix(hash, size));
                image.entries.push((path, Some((size, content))));
            }
        }
        image
    }

    /// The names if these changes happened, and those without which they can't have.
    fn names_with(&self, mut chosen: BTreeSet<usize>) -> BTreeMap<(Node, String), Node> {
        for (at, op) in self.name_ops.iter().rev() {
            let touches = op.change.touches();
            let later = self.name_ops.range(at + 1..).filter(|(at, _)| chosen.contains(at));
            let needed = later.clone().any(|(_, later)| {
                matches!(later.change, NameChange::Drop { after: Some(first), .. } if first == *at)
                    || later.change.touches().iter().any(|name| touches.contains(name))
            });
            if needed {
                chosen.insert(*at);
            }
        }
        let mut names = self.names.clone();
        for at in chosen {
            self.name_ops[&at].change.apply(&mut names);
        }
        names
    }

    /// Whether a name in this directory that is not durable is of something that has another name elsewhere.
    fn came_from_elsewhere(&self, dir: Node) -> bool {
        self.name_ops.values().any(|op| match &op.change {
            NameChange::Add { dir: at, node, .. } => {
                *at == dir && self.names.iter().any(|((other, _), named)| *other != dir && named == node)
            }
            _ => false,
        })
    }

    /// A file's or directory's path as it is known now, for people; the volume's and replica's names left out.
    #[must_use]
    pub fn role(&self, node: Node) -> String {
        let all: Vec<usize> = self.name_ops.keys().copied().collect();
        let names = self.names_with(all.into_iter().collect());
        let mut at = node;
        let mut path = Vec::new();
        while let Some(((dir, name), _)) = names.iter().find(|(_, n)| **n == at) {
            path.push(if name.len() > 30 {
                // A replica's name has its number behind the volume's.
                let kind = if name.trim_end_matches(".tmp").contains('.') { "R" } else { "S" };
                if name.ends_with(".tmp") { format!("{kind}.tmp") } else { kind.to_owned() }
            } else if name.starts_with("seg-") || name.starts_with("crc-") {
                name[..3].to_owned()
            } else {
                name.clone()
            });
            at = *dir;
        }
        path.reverse();
        if path.is_empty() { ".".to_owned() } else { path.join("/") }
    }
}

fn count(n: usize) -> u16 {
    u16::try_from(n).expect("a few versions")
}

fn zero(file: &mut FileState, op: u64, ended: Option<usize>, blocks: core::ops::Range<u64>) {
    for (_, line) in file.blocks.range_mut(blocks) {
        if line.newest().bytes.is_some() {
            line.pending.push(Pending { op, ended, value: Content::default() });
        }
    }
}

impl Image {
    /// Makes the disk in an empty directory.
    pub fn make(&self, root: &Path) -> io::Result<()> {
        for (path, content) in &self.entries {
            let path = root.join(path);
            let Some((size, blocks)) = content else {
                std::fs::create_dir(&path)?;
                continue;
            };
            let file = File::create(&path)?;
            for (block, content) in blocks {
                if let Some(bytes) = &content.bytes {
                    let len = bytes.len().min(usize::try_from(size - block * BLOCK).unwrap_or(usize::MAX));
                    file.write_all_at(&bytes[..len], block * BLOCK)?;
                }
            }
            file.set_len(*size)?;
        }
        Ok(())
    }

    /// Paths, for people.
    #[must_use]
    pub fn listing(&self) -> String {
        let line = |(path, content): &(String, Option<(u64, Vec<(u64, Content)>)>)| match content {
            None => format!("{path}/"),
            Some((size, blocks)) => format!("{path} ({size} bytes, {} blocks)", blocks.len()),
        };
        self.entries.iter().map(line).collect::<Vec<_>>().join(", ")
    }
}

/// The flush that ends with this event, as a class: what is made durable, and how.
#[must_use]
pub fn flush_of(disk: &Disk, event: &Event) -> Option<String> {
    match event {
        Event::Did(What::Sync { node, starting }) => {
            let role = disk.role(*node);
            let when = match *starting {
                true => ", at the start",
                false if role.ends_with("/S") && disk.came_from_elsewhere(*node) => ", of a file handed down",
                false => "",
            };
            Some(format!("fsync {role}{when}"))
        }
        Event::End(op) => match &disk.running.get(op)?.1 {
            What::Sync { node, .. } => Some(format!("fdatasync {}", disk.role(*node))),
            What::Write { node, durable: true, .. } => Some(format!("RWF_DSYNC {}", disk.role(*node))),
            _ => None,
        },
        _ => None,
    }
}
