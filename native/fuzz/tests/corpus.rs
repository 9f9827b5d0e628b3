//! Every kept input, against every target's invariants, without a fuzzer: what was mended once stays mended.

use std::fs;
use std::path::Path;

use weft_fuzz::TARGETS;

/// Kept small, so that the tests stay fast and a clone stays light.
const FILES_MAX: usize = 200;
const BYTES_MAX: u64 = 1 << 20;

#[test]
fn every_kept_input_is_taken_without_a_finding() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut bytes = 0;
    for (name, run) in TARGETS {
        let entries = fs::read_dir(corpus.join(name)).expect("a folder of the target");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        assert!((1..=FILES_MAX).contains(&files.len()), "{name} has {} inputs", files.len());
        for file in files {
            let input = fs::read(&file).expect("a kept input");
            bytes += input.len() as u64;
            println!("{}", file.display());
            run(&input);
        }
    }
    assert!(
        bytes <= BYTES_MAX,
        "the corpus has {bytes} bytes; `npm run fuzz -- --minimise` makes it smaller"
    );
}

#[test]
fn every_target_takes_the_empty_input_and_plain_ones() {
    for (_, run) in TARGETS {
        for byte in [0, 1, 2, 0x7f, 0x80, 0xff] {
            for len in [0, 1, 2, 7, 64, 300, 5000] {
                run(&vec![byte; len]);
            }
        }
    }
}
