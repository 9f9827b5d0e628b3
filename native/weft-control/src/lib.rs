//! The control socket of `weftd`: the types of every method, answer and event, one JSON object per line.
//!
//! From these types the binary `weft-control-generate` writes `schema.json` (the API page) and
//! `src/core/wire/daemon.gen.ts` (the types of TypeScript); both are committed, and a test says so when they
//! are not fresh. The generator is ours, and in Rust, because it then stands in one test with the types that
//! it reads: a mistake in either fails `cargo test` without Node.
//!
//! Must always hold:
//! * identifiers are UUID strings and 64-bit numbers are decimal strings (JSON's numbers end at 2^53);
//! * every field is present, `null` means none; an unknown parameter is refused, not ignored;
//! * parsing bytes of a client never panics and always names what was wrong.
#![forbid(unsafe_code)]

pub mod frame;
pub mod holder;
pub mod methods;
pub mod schema;
pub mod types;
pub mod typescript;
