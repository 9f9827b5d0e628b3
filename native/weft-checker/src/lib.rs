//! Believes no disk: writes stamped blocks through NBD, keeps a history of what was asked and answered, and judges it.
//!
//! ```text
//! weft-checker run --socket PATH --blocks N --depth D --seed S --history FILE --seconds T
//! weft-checker verify --history FILE [--final --socket PATH]
//! ```
//!
//! Each block of 4 KiB is a register of its own. A write that was answered with an error, or not at all because its
//! connection was lost, is *unknown*: it may have taken effect, may do so at any later time, once, or never. Everything
//! else is judged by linearizability: each request took effect at one moment between its call and its return, and each
//! read saw the latest effect.
//!
//! Must always hold:
//! * no two writes of a history carry the same bytes, except those that write zeroes;
//! * times are the machine's monotonic clock: histories of one boot can be judged together;
//! * a history that is not complete is refused.

pub mod figures;
pub mod history;
pub mod judge;
pub mod load;
pub mod nbd;
pub mod stamp;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Nanoseconds since the machine started.
#[must_use]
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A small generator of numbers that look random (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n
    }
}
