//! The time and randomness that floor 0 is given as arguments.

use rustix::time::{ClockId, clock_gettime};
use weft_proto::ids::Instant;

/// Now on `CLOCK_BOOTTIME`, which goes on while the machine sleeps: a lease must not survive a suspend
/// (protocol.md R9).
#[must_use]
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("boot time is not negative");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
    Instant(seconds * 1_000_000_000 + nanoseconds)
}

/// Seconds since 1970, for people and for the trash; never for a decision of the protocol.
#[must_use]
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since 1970 by this host's clock: for people.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Sixteen random bytes as a number. Panics when the kernel has none: no identifier could be trusted then.
#[must_use]
pub fn random_u128() -> u128 {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    u128::from_le_bytes(bytes)
}

/// A random UUID (version 4).
#[must_use]
pub fn random_uuid() -> u128 {
    (random_u128() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_uuid_says_that_it_is_random() {
        let text = weft_proto::ids::VolumeId(random_uuid()).to_string();
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}
