//! The server against the clients that hypervisors and people use. They must be installed (Debian: qemu-utils,
//! libnbd-bin, nbdkit, fio); a missing one is a failure, not a skip.

mod support;

use support::{Server, make_file, run};
use weft_proto::ids::SnapId;

const MIB: u64 = 1 << 20;

#[test]
fn nbdinfo_sees_what_is_promised() {
    let server = Server::start("nbdinfo", 64 * MIB);
    let said = run("nbdinfo", &["--json", &server.uri()]).ok();
    for fact in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-size\": 67108864",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_cache\": false",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(said.contains(fact), "{fact} is missing in {said}");
    }
    let list = run("nbdinfo", &["--list", &server.uri()]).ok();
    assert!(list.contains("export=\"vm1-root\"") && list.contains("in memory"), "{list}");
    let unknown = run("nbdinfo", &[&format!("nbd+unix:///other?socket={}", server.path().display())]);
    assert!(
        !unknown.success && unknown.said.contains("opt_go: server replied with error"),
        "{}",
        unknown.said
    );
    // A client that insists on TLS is told that there is none.
    let tls = run("nbdinfo", &[&format!("nbds+unix:///?socket={}", server.path().display())]);
    assert!(!tls.success, "{}", tls.said);
}

#[test]
fn nbdinfo_maps_data_zeroes_and_absence() {
    let server = Server::start("map", 4 * MIB);
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 1M", "-c", "write -z 1M 512k", &server.uri()]).ok();
    let said = run("nbdinfo", &["--map", &server.uri()]).ok();
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(
        rows,
        [
            ["0", "1048576", "3"],
            ["1048576", "524288", "2"],
            ["1572864", "524288", "0"],
            ["2097152", "2097152", "3"]
        ],
        "{said}"
    );
}

#[test]
fn nbdinfo_and_qemu_map_what_has_changed_since_a_snapshot() {
    let since = [SnapId(0x4f), SnapId(0x50)];
    let server = Server::start_since("since", 4 * MIB, since.to_vec());
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 1M", &server.uri()]).ok();
    for (context, words) in [
        (format!("weft:changed-since:{}", since[1]), ["0", "1"]),
        (format!("qemu:dirty-bitmap:weft-since-{}", since[1]), ["clean", "dirty"]),
    ] {
        let said = run("nbdinfo", &[&format!("--map={context}"), &server.uri()]).ok();
        let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
        let [clean, dirty] = words;
        let expected =
            [("0", "1048576", clean), ("1048576", "1048576", dirty), ("2097152", "2097152", clean)];
        assert_eq!(rows.len(), 3, "{said}");
        for (row, (offset, len, word)) in rows.iter().zip(expected) {
            assert!(row[..2] == [offset, len] && row.contains(&word), "{said}");
        }
    }
    let node = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:weft-since-{}",
        server.path().display(),
        since[0]
    );
    // In such a map qemu shows what is dirty as what is no data.
    let said = run("qemu-img", &["map", "--output=json", "--image-opts", &node]).ok();
    let dirty: Vec<&str> = said.lines().filter(|line| line.contains("\"data\": false")).collect();
    assert!(dirty.len() == 1 && dirty[0].contains("\"start\": 1048576, \"length\": 1048576"), "{said}");
    let none = run("nbdinfo", &["--map=weft:changed-since:0", &server.uri()]);
    assert!(!none.success, "{}", none.said);
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let server = Server::start("qemu-io", 64 * MIB);
    let said = run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-t",
            "writeback",
            "-c",
            "write -P 0xa5 0 64k",
            "-c",
            "write -P 0x5a 12345 6789",
            "-c",
            "read -P 0xa5 0 12345",
            "-c",
            "read -P 0x5a 12345 6789",
            "-c",
            "write -f -P 3 1M 4k",
            "-c",
            "discard 0 4k",
            "-c",
            "read -P 0 0 4k",
            "-c",
            "write -z -u 1M 8k",
            "-c",
            "write -z 2M 8k",
            "-c",
            "write -P 9 8M 32M",
            "-c",
            "read -P 9 8M 32M",
            "-c",
            "flush",
            "-c",
            "read -P 0 40M 24M",
            &server.uri(),
        ],
    )
    .ok();
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    let memory = server.memory.lock().unwrap();
    assert_eq!(memory.fua_writes, 1);
    assert_eq!((memory.discards, memory.zeroes), (1, 2));
    assert!(memory.flushes >= 1);
}

#[test]
fn qemu_io_pipelines_and_every_answer_finds_its_request() {
    let server = Server::start("pipeline", 64 * MIB);
    let mut args = vec!["-f".to_string(), "raw".into()];
    for n in 0..200 {
        args.extend(["-c".into(), format!("aio_write -P {} {}k 64k", n % 255 + 1, n * 64)]);
    }
    args.extend(["-c".into(), "aio_flush".into()]);
    for n in 0..200 {
        args.extend(["-c".into(), format!("aio_read -P {} {}k 64k", n % 255 + 1, n * 64)]);
    }
    args.extend(["-c".into(), "aio_flush".into(), server.uri()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = run("qemu-io", &args).ok();
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    assert_eq!(said.matches("wrote 65536").count(), 200);
    assert_eq!(said.matches("read 65536").count(), 200);
}

#[test]
fn qemu_is_told_of_the_loss_of_the_volume() {
    let server = Server::start("fenced", 4 * MIB);
    server.memory.lock().unwrap().fenced_after_writes = Some(1);
    let outcome = run(
        "qemu-io",
        &["-f", "raw", "-t", "writeback", "-c", "write 0 4k", "-c", "write 4k 4k", &server.uri()],
    );
    assert!(outcome.said.contains("wrote 4096/4096 bytes at offset 0"), "{}", outcome.said);
    assert!(outcome.said.contains("after transport endpoint shutdown"), "{}", outcome.said);
}

#[test]
fn qemu_img_converts_both_ways_and_skips_holes() {
    let server = Server::start("convert", 16 * MIB);
    let source = server.file("source");
    make_file(&source, 16 << 20);
    let (source, uri) = (source.to_str().unwrap().to_string(), server.uri());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]).ok();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]).ok();
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).ok();
    assert!(map.contains("\"zero\": true") && map.contains("\"data\": true"), "{map}");
    let back = server.file("back");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, back.to_str().unwrap()]).ok();
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &source, back.to_str().unwrap()]).ok();
}

#[test]
fn nbdcopy_copies_over_several_connections() {
    let server = Server::start("nbdcopy", 16 * MIB);
    let (source, back) = (server.file("source"), server.file("back"));
    let bytes = make_file(&source, 16 << 20);
    let uri = server.uri();
    run("nbdcopy", &["--connections=4", "--flush", source.to_str().unwrap(), &uri]).ok();
    run("nbdcopy", &["--connections=4", &uri, back.to_str().unwrap()]).ok();
    assert!(std::fs::read(&back).unwrap() == bytes, "the copy differs");
    let memory = server.memory.lock().unwrap();
    assert!(memory.flushes >= 1 && memory.kinds_asked >= 1);
}

#[test]
fn fio_verifies_random_writes_at_depth_32() {
    let server = Server::start("fio", 32 * MIB);
    let uri = server.uri();
    let said = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randrw",
            "--bsrange=512-128k",
            "--blockalign=512",
            "--size=32M",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=64",
            "--output-format=terse",
        ],
    )
    .ok();
    assert!(!said.contains("verify:") && !said.contains("err="), "{said}");
    let memory = server.memory.lock().unwrap();
    assert!(
        memory.writes > 100 && memory.flushes > 1,
        "{} writes, {} flushes",
        memory.writes,
        memory.flushes
    );
}

#[test]
fn nbdkit_passes_the_volume_on() {
    // nbdkit's nbd plugin is a second client library user, and speaks to qemu in its own words on the other side.
    let server = Server::start("nbdkit", 8 * MIB);
    let socket = format!("socket={}", server.path().display());
    let command = "qemu-io -f raw -c 'write -P 4 1M 1M' -c 'read -P 4 1M 1M' -c 'discard 1M 64k' \
                   -c 'read -P 0 1M 64k' -c flush \"$uri\"";
    let said = run("nbdkit", &["-U", "-", "nbd", &socket, "--run", command]).ok();
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    assert!(server.memory.lock().unwrap().discards >= 1);
}
