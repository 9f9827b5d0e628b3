//! A bug that was put here on purpose: who fuzzes and does not find it, finds nothing.
//!
//! Must always hold: it is deeper than chance reaches, so that only a fuzzer that sees coverage gets there.

use crate::input::Input;

/// Panics when a length, a checksum of one byte and a word come together.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.u8() != b'w' || input.u8() != b'e' || input.u8() != b'f' || input.u8() != b't' {
        return;
    }
    let len = usize::from(input.u8());
    let body = input.take(len);
    if body.len() > 3 && body[1] == body[0] ^ 0x5a && body[2] > 0x80 {
        panic!("the canary was found");
    }
}
