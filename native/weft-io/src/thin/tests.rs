//! LVM played by a table and sparse files: what each command that fails, or is killed, leaves behind.

use core::sync::atomic::AtomicU64;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_proto::ids::{Rid, VolumeId};

use super::*;
use crate::testing::TempDir;

const VG: &str = "weft-1";
const CHUNK: u64 = 64 << 10;
const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x77), rid: Rid(2) };

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It fails and has done nothing.
    Fails,
    /// It did what it was told, and says that it failed.
    Lies,
    /// It did what it was told, was killed, and left the volumes suspended.
    Killed,
}

#[derive(Debug, Default)]
struct World {
    volumes: BTreeMap<String, Volume>,
    /// Of commands that change something, in order.
    log: Vec<String>,
    fate: Option<(usize, Fate)>,
    status: String,
}

/// A host's LVM, which outlives those who use it.
#[derive(Clone, Debug)]
pub(crate) struct Played {
    dir: PathBuf,
    world: Arc<Mutex<World>>,
}

impl Played {
    pub(crate) fn new(dir: &Path) -> Played {
        fs::create_dir_all(dir).expect("made");
        let played = Played { dir: dir.to_owned(), world: Arc::default() };
        let pool = Volume { chunk: CHUNK, ..played.made(DATA, 1 << 30, &[]) };
        played.world().volumes.insert(DATA.to_owned(), pool);
        played.world().status =
            "0 2097152 thin-pool 1 100/1000 4000/16384 - rw no_discard_passdown error_if_no_space - 256"
                .to_owned();
        played
    }

    /// So many blocks of metadata and chunks of data are taken.
    pub(crate) fn fills(&self, metadata: u64, data: u64) {
        self.world().status = format!(
            "0 2097152 thin-pool 1 {metadata}/1000 {data}/16384 - rw no_discard_passdown error_if_no_space - 256"
        );
    }

    /// From now on the command after so many fails, whatever it is.
    pub(crate) fn fails(&self, after: usize) {
        let mut world = self.world();
        world.fate = Some((world.log.len() + after, Fate::Fails));
    }

    /// Those that are active.
    pub(crate) fn active(&self) -> Vec<String> {
        let world = self.world();
        world
            .volumes
            .values()
            .filter(|v| v.number.is_some() && v.name != DATA)
            .map(|v| v.name.clone())
            .collect()
    }

    /// As after a boot.
    pub(crate) fn boots(&self) {
        self.world().volumes.values_mut().for_each(|volume| volume.number = None);
    }

    /// Tags that are left.
    pub(crate) fn tags(&self) -> usize {
        self.world().volumes.values().map(|volume| volume.tags.len()).sum()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("nobody panicked")
    }

    fn made(&self, name: &str, size: u64, tags: &[&str]) -> Volume {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Volume {
            name: name.to_owned(),
            uuid: format!("{number:064}"),
            size,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            number: Some((254, 0)),
            suspended: false,
            chunk: 0,
            zeroes: true,
            refuses: true,
            skipped: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn set_len(&self, name: &str, len: u64) {
        let file = fs::File::options().write(true).create(true).truncate(false).open(self.path(name));
        file.and_then(|file| file.set_len(len)).expect("a sparse file");
    }

    pub(crate) fn start(&self, pool: &PoolDir) -> Result<ThinStore, Unfit> {
        ThinStore::start(Box::new(self.clone()), VG, &pool.files, &pool.root, &pool.replicas, &pool.trash)
    }

    /// Names of replicas' volumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        self.world().volumes.keys().filter(|name| *name != DATA).cloned().collect()
    }

    /// Bytes that a volume has.
    pub(crate) fn used(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).expect("its file").blocks() * 512
    }

    fn change(&self, verb: &str, args: &[&str], fate: Option<Fate>) -> Result<(), Failed> {
        let option = |name: &str| args.iter().position(|arg| *arg == name).map(|at| args[at + 1]);
        let last = *args.last().expect("arguments");
        let bytes = |text: &str| text.strip_suffix('b').expect("bytes").parse::<u64>().expect("a number");
        let name = last.strip_prefix("weft-1/").unwrap_or(last);
        let refused = |why: &str| Failed { what: why.to_owned(), errno: Errno(libc::EIO), killed: false };
        let mut world = self.world();
        let refreshes = args.contains(&"--refresh");
        if !refreshes && world.volumes.values().any(|volume| volume.suspended) {
            panic!("{verb} while volumes are suspended: it would hang");
        }
        match verb {
            "lvcreate" if args.contains(&"--snapshot") => {
                let origin = world.volumes.get(name).ok_or_else(|| refused("no such volume"))?.clone();
                let (copy, skip) = (option("--name").expect("a name"), option("--setactivationskip"));
                if world.volumes.contains_key(copy) {
                    return Err(refused("it is there already"));
                }
                let mut volume = self.made(copy, origin.size, &[option("--addtag").expect("a tag")]);
                volume.skipped = skip == Some("y");
                volume.number = volume.number.filter(|_| !volume.skipped);
                // Holes stay holes: what was copied is what counts as shared.
                let status = std::process::Command::new("cp")
                    .args([
                        "--sparse=always".as_ref(),
                        self.path(name).as_os_str(),
                        self.path(copy).as_os_str(),
                    ])
                    .status();
                assert!(status.expect("cp").success());
                world.volumes.insert(copy.to_owned(), volume);
            }
            "lvcreate" => {
                let name = option("--name").expect("a name");
                assert_eq!((last, option("--thinpool"), option("--type")), (VG, Some(DATA), Some("thin")));
                let size = bytes(option("--virtualsize").expect("a size"));
                let volume = self.made(name, size, &[option("--addtag").expect("a tag")]);
                self.set_len(name, size);
                assert!(world.volumes.insert(name.to_owned(), volume).is_none(), "{name} is there already");
            }
            "lvremove" => {
                world.volumes.remove(name).ok_or_else(|| refused("no such volume"))?;
                fs::remove_file(self.path(name)).expect("its file");
            }
            "vgchange" => {
                assert_eq!(args, ["--activate", "y", VG]);
                for volume in world.volumes.values_mut().filter(|volume| !volume.skipped) {
                    volume.number = Some((254, 0));
                }
            }
            "lvextend" => {
                let size = bytes(option("--size").expect("a size"));
                let volume = world.volumes.get_mut(name).ok_or_else(|| refused("no such volume"))?;
                assert!(size > volume.size, "lvextend fails where nothing is to be done");
                volume.size = size;
                // One that is killed does not get as far as to the device.
                if fate != Some(Fate::Killed) {
                    self.set_len(name, size);
                }
            }
            "lvchange" => {
                let volume = world.volumes.get_mut(name).ok_or_else(|| refused("no such volume"))?;
                volume.tags.extend(option("--addtag").map(str::to_owned));
                volume.tags.retain(|tag| Some(tag.as_str()) != option("--deltag"));
                if refreshes && name != DATA {
                    self.set_len(name, volume.size);
                }
                volume.suspended &= !refreshes;
                volume.refuses |= option("--errorwhenfull") == Some("y");
                let activates = option("--activate").is_some();
                assert!(!activates || !volume.skipped || args.contains(&"--ignoreactivationskip"), "{name}");
                volume.number = activates.then_some((254, 0)).or(volume.number);
            }
            other => panic!("lvm {other}"),
        }
        Ok(())
    }
}

impl System for Played {
    fn lvm(&self, verb: &str, args: &[&str]) -> Result<String, Failed> {
        if verb == "lvs" {
            return Ok(json_of(self.world().volumes.values()));
        }
        let fate = {
            let mut world = self.world();
            let number = world.log.len();
            world.log.push(format!("{verb} {}", args.join(" ")));
            world.fate.filter(|(at, _)| *at == number).map(|(_, fate)| fate)
        };
        if fate != Some(Fate::Fails) {
            self.change(verb, args, fate)?;
        }
        let Some(fate) = fate else { return Ok(String::new()) };
        let killed = fate == Fate::Killed;
        self.world().volumes.values_mut().for_each(|volume| volume.suspended |= killed && verb != "lvextend");
        Err(Failed { what: format!("{verb}: {fate:?}"), errno: Errno(libc::EIO), killed })
    }

    fn status(&self) -> Result<String, Failed> {
        let names = self.volumes();
        let layer = if names.is_empty() { "" } else { "-tpool" };
        let mut said = String::from("other-data-tpool: 0 8 thin-pool Fail\nweft--1-meta: 0 8 linear \n");
        for name in names {
            let sectors = self.used(&name) / 512;
            said += &format!("weft--1-{}: 0 8 thin {sectors} 77\n", name.replace('-', "--"));
        }
        Ok(said + &format!("weft--1-data{layer}: {}\nweft--1-data: 0 8 linear \n", self.world().status))
    }

    fn device(&self, volume: &Volume) -> Result<Fd, Errno> {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.path(&volume.name))?;
        Ok(Arc::new(file.into()))
    }
}

/// As lvs 2.03.16 writes it.
fn json_of<'a>(volumes: impl Iterator<Item = &'a Volume>) -> String {
    let rows: Vec<String> = volumes
        .map(|v| {
            let (vg, lv) = v.uuid.split_at(32);
            let (major, minor) = v.number.map_or((-1, -1), |(a, b)| (i64::from(a), i64::from(b)));
            format!(
                r#"{{"lv_name":"{}", "lv_uuid":"{lv}", "vg_uuid":"{vg}", "lv_size":"{}", "lv_tags":"{}", "lv_kernel_major":"{major}", "lv_kernel_minor":"{minor}", "lv_active":"{}", "lv_suspended":"{}", "chunk_size":"{}", "zero":"{}", "lv_when_full":"{}", "lv_skip_activation":"{}"}}"#,
                v.name,
                v.size,
                v.tags.join(","),
                if v.number.is_some() { "active" } else { "" },
                if v.suspended { "suspended" } else { "" },
                v.chunk,
                if v.zeroes { "zero" } else { "" },
                if v.refuses { "error" } else { "queue" },
                if v.skipped { "skip activation" } else { "" },
            )
        })
        .collect();
    format!(r#"{{ "report": [ {{ "lv": [ {} ] }} ] }}"#, rows.join(",\n"))
}

use crate::pool_dir::PoolDir;

fn pool(dir: &TempDir) -> PoolDir {
    let path = dir.path().join("pool");
    PoolDir::create(&path, 4096, b"x").expect("made")
}

/// What happens to a replica, each step as often as it takes.
const STEPS: usize = 10;
const IMAGE: SnapId = SnapId(0x51);
const CLONE: ReplicaKey = ReplicaKey { volume: VolumeId(0x88), rid: Rid(0) };

fn open(store: &ThinStore, pool: &PoolDir) -> Result<Home, Errno> {
    store.open(&pool.files, &pool.replicas, KEY, 2 * SEGMENT_BYTES, &|_| true).map(|(home, _)| home)
}

fn step(number: usize, store: &ThinStore, pool: &PoolDir) -> Result<(), Errno> {
    let (files, replicas, trash) = (&pool.files, &pool.replicas, &pool.trash);
    let name = format!("{}.7", replica_name(KEY));
    match number {
        0 => store.create(files, replicas, KEY, 4096, None),
        // Two segments: it has to be extended.
        1 => open(store, pool).and_then(|home| store.extend(&home, 5 * SEGMENT_BYTES)),
        // Another attempt begins with nothing.
        2 => Store::drop_image(store, files, &pool.root, (KEY, IMAGE))
            .and_then(|()| Store::make_image(store, files, &pool.root, (KEY, IMAGE), 4096))
            .and_then(|()| {
                let home = open(store, pool)?;
                Store::take_image(store, files, &pool.root, &home, (KEY, IMAGE), &[1].into())
            }),
        3 => Store::begin_clone(store, files, (&pool.root, replicas), (KEY, IMAGE, CLONE), 4096)
            .and_then(|()| Store::publish_clone(store, files, replicas, CLONE, &[7])),
        4 => Store::drop_image(store, files, &pool.root, (KEY, IMAGE)),
        5 => match pool_dir::trash_replica(files, replicas, trash, CLONE, 8) {
            Ok(()) | Err(Errno(libc::ENOENT)) => {
                store.empty_trash(files, trash, &format!("{}.8", replica_name(CLONE)))
            }
            failed => failed,
        },
        6 => pool_dir::trash_replica(files, replicas, trash, KEY, 7),
        7 => pool_dir::restore_replica(files, replicas, trash, &name),
        8 => pool_dir::trash_replica(files, replicas, trash, KEY, 7),
        _ => store.empty_trash(files, trash, &name),
    }
}

/// Every volume has its directory, every directory its volume, and nothing is half done.
fn assert_settled(played: &Played, pool: &PoolDir, what: &str) {
    let mut named = Vec::new();
    for parent in [&pool.replicas, &pool.trash] {
        for name in names(parent).expect("listed") {
            assert!(!name.ends_with(".tmp"), "{what}: {name}");
            let dir = open_at(parent, &name, libc::O_RDONLY | libc::O_DIRECTORY).expect("opened");
            named.push(read_name(&dir).expect("named"));
        }
    }
    let store = played.start(pool).expect("starts");
    let images = store.named_by_images().expect("listed");
    // Room for one that was not taken has the name alone.
    let taken =
        images.into_iter().map(|(volume, _)| volume).filter(|volume| played.volumes().contains(volume));
    named.extend(taken);
    named.sort();
    assert_eq!(played.volumes(), named, "{what}");
    for volume in played.world().volumes.values() {
        assert_eq!((&volume.tags, volume.suspended), (&Vec::new(), false), "{what}: {}", volume.name);
    }
}

/// Each command of a replica's life fails, lies or is killed in turn. The step it belonged to fails or not; who starts then
/// finds nothing half done, and the replica's life goes on from where it is, with the same process or another one.
#[test]
fn whatever_command_fails_the_next_start_settles_it_and_life_goes_on() {
    let mut commands = 0;
    for (fate, restarts) in
        [Fate::Fails, Fate::Lies, Fate::Killed].into_iter().flat_map(|fate| [(fate, true), (fate, false)])
    {
        for at in 0.. {
            let what = format!("command {at} {fate:?}, restarts: {restarts}");
            let dir = TempDir::on_disk();
            let (played, pool) = (Played::new(&dir.path().join("lvm")), pool(&dir));
            let mut store = played.start(&pool).expect("starts");
            played.world().fate = Some((at, fate));
            for number in 0..STEPS {
                let mut result = step(number, &store, &pool);
                let met = played.world().log.len() > at;
                if met && restarts {
                    // What a process leaves that is gone.
                    for name in names(&pool.replicas).expect("listed") {
                        if name.ends_with(".tmp") {
                            pool.files.remove_tree(&pool.replicas, &name).expect("removed");
                        }
                    }
                    store = played.start(&pool).unwrap_or_else(|unfit| panic!("{what}: {unfit:?}"));
                    assert_settled(&played, &pool, &what);
                }
                if result.is_err() {
                    assert!(met, "{what}: step {number} {result:?}");
                    result = step(number, &store, &pool);
                }
                // Done before it said that it failed.
                let done = matches!(result, Err(Errno(libc::EEXIST | libc::ENOENT)))
                    && matches!(number, 0 | 3 | 5 | 9);
                assert!(result.is_ok() || done, "{what}: step {number} {result:?}");
            }
            if !restarts {
                store.space(0, 0).expect("looked");
                assert_settled(&played, &pool, &what);
            }
            assert_eq!(played.volumes(), Vec::<String>::new(), "{what}: {:?}", played.world().log);
            if played.world().log.len() <= at {
                commands = at;
                break;
            }
        }
    }
    // Create, its tag, two extensions; a snapshot; another one, which is a clone; each of the three has a tag, and goes.
    assert_eq!(commands, 12);
}

#[test]
fn a_tag_of_the_trash_removes_nothing_that_was_restored_or_came_again() {
    let dir = TempDir::on_disk();
    let (played, pool) = (Played::new(&dir.path().join("lvm")), pool(&dir));
    let store = played.start(&pool).expect("starts");
    for number in [0, 1, 6] {
        step(number, &store, &pool).expect("done");
    }
    let [volume] = played.volumes().try_into().expect("one");
    // Emptying got as far as to the tag.
    let entry = format!("{}.7", replica_name(KEY));
    let tag = || {
        played.change("lvchange", &["--addtag", &format!("{REMOVE}{entry}"), &format!("{VG}/{volume}")], None)
    };
    tag().expect("tagged");
    step(7, &store, &pool).expect("restored");
    played.start(&pool).expect("starts");
    assert_settled(&played, &pool, "restored");
    tag().expect("tagged");
    pool_dir::trash_replica(&pool.files, &pool.replicas, &pool.trash, KEY, 8).expect("in the trash again");
    played.start(&pool).expect("starts");
    assert_settled(&played, &pool, "another entry");
    assert_eq!(played.volumes(), [volume]);
    assert_eq!(names(&pool.trash).expect("listed").len(), 1);
}

#[test]
fn volumes_without_a_tag_stay_whoever_made_them() {
    let dir = TempDir::on_disk();
    let (played, pool) = (Played::new(&dir.path().join("lvm")), pool(&dir));
    for (name, tags) in [("r-lost", &["other"][..]), ("mine", &[])] {
        played.world().volumes.insert(name.to_owned(), played.made(name, 1 << 20, tags));
    }
    // One that was being made goes.
    played.world().volumes.insert("r-half".to_owned(), played.made("r-half", 1 << 20, &[CREATE]));
    played.set_len("r-half", 1 << 20);
    played.start(&pool).expect("starts");
    assert_eq!(played.volumes(), ["mine", "r-lost"]);
}

#[test]
fn a_directory_that_cannot_be_read_stops_the_start_and_removes_nothing() {
    let dir = TempDir::on_disk();
    let (played, pool) = (Played::new(&dir.path().join("lvm")), pool(&dir));
    let store = played.start(&pool).expect("starts");
    step(0, &store, &pool).expect("made");
    let [volume] = played.volumes().try_into().expect("one");
    let path = format!("{VG}/{volume}");
    played.change("lvchange", &["--addtag", CREATE, &path], None).expect("tagged");
    let name = pool.path().join("replicas").join(replica_name(KEY)).join(NAME);
    fs::write(name, "-rf").expect("written");
    assert_eq!(played.start(&pool).expect_err("refused"), Unfit(Errno(libc::EUCLEAN).to_string()));
    assert_eq!(played.volumes(), [volume]);
}

#[test]
fn an_unfit_vg_is_refused_and_a_pool_that_waits_when_full_is_mended() {
    let dir = TempDir::on_disk();
    let (played, pool) = (Played::new(&dir.path().join("lvm")), pool(&dir));
    let change = |edit: fn(&mut Volume)| edit(played.world().volumes.get_mut(DATA).expect("there"));
    change(|data| data.refuses = false);
    played.start(&pool).expect("starts");
    assert!(played.world().volumes[DATA].refuses);
    change(|data| data.number = None);
    played.start(&pool).expect("starts");
    assert!(played.world().volumes[DATA].number.is_some(), "active");
    change(|data| data.zeroes = false);
    assert!(played.start(&pool).expect_err("refused").0.contains("does not zero new chunks"));
    change(|data| (data.zeroes, data.chunk) = (true, 1 << 20));
    assert!(played.start(&pool).expect_err("refused").0.contains("not of 64 KiB"));
    played.world().volumes.clear();
    assert!(played.start(&pool).expect_err("refused").0.contains("no thin pool"));
}

#[test]
fn what_lvm_says_is_read_with_hyphens_tags_and_numbers() {
    let said = r#"{ "report": [ { "lv": [
        {"lv_name":"data", "lv_uuid":"xYTfbx-yIr0-argu-PMEC-Crbg-zheD-m5ahuC", "vg_uuid":"16DO44-eLUe-mh9o-xDHZ-VF1A-pX5T-3QkRYY", "lv_size":"314572800", "lv_tags":"", "lv_kernel_major":"254", "lv_kernel_minor":"3", "lv_active":"active", "lv_suspended":"", "chunk_size":"65536", "zero":"zero", "lv_when_full":"error", "lv_skip_activation":""},
        {"lv_name":"r-1", "lv_uuid":"5FW2Ce-tKkC-p1zG-WQil-uyEn-Ky5M-xgPWLi", "vg_uuid":"16DO44-eLUe-mh9o-xDHZ-VF1A-pX5T-3QkRYY", "lv_size":"209715200", "lv_tags":"a,weft.busy=create", "lv_kernel_major":"-1", "lv_kernel_minor":"-1", "lv_active":"", "lv_suspended":"", "chunk_size":"0", "zero":"zero", "lv_when_full":"", "lv_skip_activation":"skip activation"}
    ] } ] }"#;
    let volumes = parse_volumes(said).expect("understood");
    assert_eq!(volumes[0].uuid, "16DO44eLUemh9oxDHZVF1ApX5T3QkRYYxYTfbxyIr0arguPMECCrbgzheDm5ahuC");
    assert_eq!((volumes[0].chunk, volumes[0].number, volumes[0].tags.len()), (65536, Some((254, 3)), 0));
    assert_eq!((volumes[1].size, volumes[1].number, volumes[1].skipped), (209_715_200, None, true));
    assert!(!volumes[0].skipped);
    assert_eq!(volumes[1].tags, ["a", CREATE]);
    for broken in ["", "{}", r#"{"report":[{"lv":[{"lv_name":"x"}]}]}"#] {
        assert_eq!(parse_volumes(broken), None, "{broken}");
    }
}

#[test]
fn the_lesser_of_data_and_metadata_is_what_is_left() {
    let total = 16384 * CHUNK;
    let of = |words: &str| parse_space(&format!("0 2097152 thin-pool 1 {words} - 256"), CHUNK);
    assert_eq!(of("100/1000 4096/16384 - rw discard_passdown error_if_no_space"), Ok((total / 4 * 3, total)));
    assert_eq!(of("990/1000 4096/16384 - rw discard_passdown error_if_no_space"), Ok((total / 100, total)));
    assert_eq!(of("1/1000 16384/16384 - out_of_data_space x y"), Ok((0, total)));
    assert_eq!(of("1/1000 1/16384 - ro x y"), Err(Errno(libc::EROFS)));
    assert_eq!(parse_space("0 2097152 thin-pool Fail", CHUNK), Err(Errno(libc::EIO)));
    assert_eq!(parse_space("0 2097152 linear ", CHUNK), Err(Errno(libc::ENODEV)));
}
