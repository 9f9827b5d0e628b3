//! Identifiers and counters of the protocol, each a type of its own so that they can't be swapped.
//!
//! Must always hold: an epoch and a generation never wrap (a volume that would is refused), and a generation
//! of 0 means "never written" (protocol.md 4.2).

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadId;

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a UUID: 32 hexadecimal digits, with or without hyphens")
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let v = self.0;
                write!(
                    f,
                    "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
                    v >> 96,
                    (v >> 80) & 0xffff,
                    (v >> 64) & 0xffff,
                    (v >> 48) & 0xffff,
                    v & 0xffff_ffff_ffff
                )
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_uuid(text).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn parse_uuid(text: &str) -> Result<u128, BadId> {
    let mut value = 0u128;
    let mut digits = 0;
    for c in text.bytes() {
        if c == b'-' {
            continue;
        }
        let digit = char::from(c).to_digit(16).ok_or(BadId)?;
        if digits == 32 {
            return Err(BadId);
        }
        value = (value << 4) | u128::from(digit);
        digits += 1;
    }
    if digits == 32 { Ok(value) } else { Err(BadId) }
}

uuid_id!(
    /// A volume.
    VolumeId
);
uuid_id!(
    /// One attach of one volume on one host; fresh per process and open, never reused (protocol.md R14).
    SessionId
);
uuid_id!(
    /// A pool: a place on one host where replicas live.
    PoolId
);
uuid_id!(
    /// A host, by its generated id, never by its address.
    HostId
);
uuid_id!(
    /// A cluster.
    ClusterId
);
uuid_id!(
    /// A snapshot of a volume; never used twice.
    SnapId
);
uuid_id!(
    /// Snapshots of several volumes that were taken at one moment.
    GroupId
);
uuid_id!(
    /// What stands in a layer where nobody has written (docs/model.md R34); random, and told to no guest.
    LayerMark
);
uuid_id!(
    /// Random per compare-and-swap: lets a writer recognise its own swap after an unknown outcome (R14).
    Nonce
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map($name).map_err(serde::de::Error::custom)
            }
        }
    };
}

counter!(
    /// The right to write a volume: +1 on every change of owner, in-sync set or acknowledgement mode. At most
    /// [`Epoch::MAX`].
    Epoch
);
counter!(
    /// +1 on every compare-and-swap of a volume's record; (epoch, rev) orders records.
    Rev
);
counter!(
    /// The store's own revision of a key; only equality and order matter.
    Revision
);
counter!(
    /// How often a pool was started; stored in its superblock and in the store (R10).
    PoolInc
);
counter!(
    /// Counts the attachments of sessions of one process; a replica never executes a lower one again (R1).
    Ordinal
);

impl Epoch {
    /// 40 bits: the upper part of a [`Generation`].
    pub const MAX: Epoch = Epoch((1 << 40) - 1);

    /// The epoch after this one. Panics at the end of the range: 2^40 changes of one volume don't happen, and
    /// wrapping would let an old owner write.
    #[must_use]
    pub fn next(self) -> Epoch {
        assert!(self < Epoch::MAX, "epoch {self} can't be raised");
        Epoch(self.0 + 1)
    }
}

/// `epoch(40) ‖ interval(24)`, compared as one number: the name of a piece of time. 0 = never written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// Never written.
    pub const NEVER: Generation = Generation(0);
    /// The largest interval within an epoch.
    pub const INTERVAL_MAX: u32 = (1 << 24) - 1;

    /// Joins an epoch and an interval (at most [`Generation::INTERVAL_MAX`]).
    #[must_use]
    pub fn new(epoch: Epoch, interval: u32) -> Generation {
        assert!(epoch <= Epoch::MAX && interval <= Self::INTERVAL_MAX, "generation {epoch}:{interval}");
        Generation((epoch.0 << 24) | u64::from(interval))
    }

    /// The epoch part.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> 24)
    }

    /// The interval part.
    #[must_use]
    pub fn interval(self) -> u32 {
        u32::try_from(self.0 & u64::from(Self::INTERVAL_MAX)).expect("24 bits fit")
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch(), self.interval())
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Generation {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map(Generation).map_err(serde::de::Error::custom)
    }
}

/// Number of a replica within its volume, never reused (I29).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rid(pub u32);

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl fmt::Debug for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds; only differences mean anything, and never between hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Instant(pub u64);

impl Instant {
    /// This moment plus `ms` milliseconds.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Instant {
        Instant(self.0.saturating_add(ms * 1_000_000))
    }

    /// Whole milliseconds from `earlier` to this moment; 0 if `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}
