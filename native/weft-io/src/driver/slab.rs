//! Ops in flight by number.
//!
//! Must always hold: a key of an op that has ended never names a later one in the same place.

/// Entries with stable keys: (times used ‖ place).
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, entry: T) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 ops in flight")
        });
        let (uses, slot) = &mut self.places[place as usize];
        // 16 bits: a key is below 2^48, so that whoever makes tokens of keys has 16 bits for a name of his own.
        *uses = (*uses + 1) & 0xffff;
        *slot = Some(entry);
        (u64::from(*uses) << 32) | u64::from(place)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let (uses, slot) = self.places.get_mut((key & 0xffff_ffff) as usize)?;
        if u64::from(*uses) == key >> 32 { slot.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        self.get_mut(key)?;
        let place = key & 0xffff_ffff;
        self.free.push(u32::try_from(place).expect("masked to 32 bits"));
        self.places[place as usize].1.take()
    }

    /// Keys and entries, in no particular order of age.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (0u64..).zip(&self.places).filter_map(|(place, (uses, slot))| {
            slot.as_ref().map(|entry| ((u64::from(*uses) << 32) | place, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_dies_with_its_entry() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let b = slab.insert('b');
        assert_eq!(slab.remove(a), Some('a'));
        let c = slab.insert('c');
        assert_eq!(slab.get_mut(a), None);
        assert_eq!((slab.remove(a), slab.len()), (None, 2));
        assert_eq!(slab.iter().collect::<Vec<_>>(), vec![(c, &'c'), (b, &'b')]);
    }
}
