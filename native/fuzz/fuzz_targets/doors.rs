//! Every target in one libFuzzer program, which is linked once: `WEFT_FUZZ_TARGET` names the one that runs.
//!
//! Beside the real ones two canaries: `canary`, which only a fuzzer that sees coverage finds, and `canary_memory`, which
//! only AddressSanitizer notices.
#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let name = std::env::var("WEFT_FUZZ_TARGET").unwrap_or_default();
    let canaries: [(&str, fn(&[u8])); 2] =
        [("canary", weft_fuzz::canary::run), ("canary_memory", read_beyond_the_end)];
    let mut all = weft_fuzz::TARGETS.iter().chain(&canaries);
    let found = all.find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("WEFT_FUZZ_TARGET is {name:?}, which is no target")).1
}

fn read_beyond_the_end(bytes: &[u8]) {
    if let [b'W', len, rest @ ..] = bytes
        && !rest.is_empty()
    {
        let copy = rest.to_vec();
        // SAFETY: none. This is the fault that the sanitizer must find when the length is a lie.
        let past = unsafe { copy.as_ptr().add(usize::from(*len)).read() };
        std::hint::black_box(past);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(chosen)(bytes));
