//! Sets of replicas or blocks, as the bits of a byte.

/// A set of small numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Mask(pub(crate) u8);

impl Mask {
    pub(crate) const EMPTY: Mask = Mask(0);

    pub(crate) fn one(index: usize) -> Mask {
        Mask(1 << index)
    }

    pub(crate) fn first(count: usize) -> Mask {
        Mask(u8::MAX >> (8 - count.clamp(1, 8)))
    }

    pub(crate) fn has(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    pub(crate) fn with(self, index: usize) -> Mask {
        Mask(self.0 | (1 << index))
    }

    pub(crate) fn without(self, index: usize) -> Mask {
        Mask(self.0 & !(1 << index))
    }

    pub(crate) fn and(self, other: Mask) -> Mask {
        Mask(self.0 & other.0)
    }

    pub(crate) fn or(self, other: Mask) -> Mask {
        Mask(self.0 | other.0)
    }

    pub(crate) fn minus(self, other: Mask) -> Mask {
        Mask(self.0 & !other.0)
    }

    pub(crate) fn contains(self, other: Mask) -> bool {
        other.0 & !self.0 == 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The members in ascending order.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |index| self.has(*index))
    }
}
