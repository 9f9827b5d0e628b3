//! Buffers for disk and network I/O: 4 KiB-aligned, counted, cheap to clone and slice, recycled.
//!
//! Must always hold:
//! * the bytes of a buffer never change while a second [`IoBuf`] shares them (protocol.md R12);
//! * every byte of an allocation is initialised from the moment it exists;
//! * a thread keeps at most [`KEPT_BYTES_PER_CLASS`] of unused memory for each size class.
//!
//! Why `unsafe` here: O_DIRECT wants memory aligned to 4 KiB, which neither `Vec` nor `Arc` can promise, and an
//! allocation per request would be the largest single cost of a small write. Runs under Miri.

use core::cell::RefCell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use weft_proto::payload::Payload;

/// Alignment of every allocation: what O_DIRECT wants from any disk with 4 KiB sectors or smaller.
pub const ALIGN: usize = 4096;

/// Size classes are the powers of two from 4 KiB to 1 MiB; larger buffers are not recycled.
const CLASSES: usize = 9;

/// Unused memory that one thread keeps for each size class: 16 buffers of 128 KiB, or 512 of 4 KiB. All classes
/// together are 18 MiB a thread.
pub const KEPT_BYTES_PER_CLASS: usize = 2 * 1024 * 1024;

/// One allocation and the number of [`IoBuf`]s that share it.
struct Block {
    refs: AtomicUsize,
    data: NonNull<u8>,
    /// A multiple of [`ALIGN`].
    capacity: usize,
}

impl Block {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("a buffer's size is far below isize::MAX")
    }

    /// A fresh block with one reference.
    fn allocate(capacity: usize) -> NonNull<Block> {
        let layout = Block::layout(capacity);
        // SAFETY: `capacity` is at least ALIGN (see `capacity_for`), so the layout is not of size zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(raw) else { handle_alloc_error(layout) };
        NonNull::from(Box::leak(Box::new(Block { refs: AtomicUsize::new(1), data, capacity })))
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// `block` came from [`Block::allocate`] and nobody uses it any more.
    unsafe fn free(block: NonNull<Block>) {
        // SAFETY: by the contract this is the only pointer to the leaked box.
        let block = unsafe { Box::from_raw(block.as_ptr()) };
        // SAFETY: `data` was allocated with exactly this layout.
        unsafe { dealloc(block.data.as_ptr(), Block::layout(block.capacity)) };
    }
}

/// The unused blocks of one thread, by size class.
struct FreeList([Vec<NonNull<Block>>; CLASSES]);

impl Drop for FreeList {
    fn drop(&mut self) {
        for block in self.0.iter_mut().flat_map(|class| class.drain(..)) {
            // SAFETY: a block in the free list has no IoBuf.
            unsafe { Block::free(block) };
        }
    }
}

thread_local! {
    static FREE: RefCell<FreeList> = const { RefCell::new(FreeList([const { Vec::new() }; CLASSES])) };
}

/// The allocation's size for `len` bytes, and its class if it is recycled.
fn capacity_for(len: usize) -> (usize, Option<usize>) {
    let capacity = len.max(ALIGN).next_power_of_two();
    let class = (capacity / ALIGN).trailing_zeros() as usize;
    if class < CLASSES { (capacity, Some(class)) } else { (len.next_multiple_of(ALIGN), None) }
}

/// A counted view of aligned bytes. Clones and slices share the memory; [`Payload::bytes_mut`] copies it first
/// when it is shared.
pub struct IoBuf {
    block: NonNull<Block>,
    start: usize,
    len: usize,
}

// SAFETY: the block is reached through shared references only, except by `bytes_mut` when the count is one;
// the count is atomic, and the memory is plain bytes.
unsafe impl Send for IoBuf {}
// SAFETY: as above.
unsafe impl Sync for IoBuf {}

impl IoBuf {
    /// A buffer of `len` bytes whose content is unspecified (zero, or left from an earlier use in this process):
    /// for callers that overwrite all of it.
    #[must_use]
    pub fn scratch(len: usize) -> IoBuf {
        let (capacity, class) = capacity_for(len);
        let kept = class.and_then(|c| FREE.try_with(|f| f.borrow_mut().0[c].pop()).ok().flatten());
        let block = match kept {
            Some(block) => {
                // SAFETY: a block in the free list is alive and nobody else refers to it.
                unsafe { block.as_ref() }.refs.store(1, Ordering::Relaxed);
                block
            }
            None => Block::allocate(capacity),
        };
        IoBuf { block, start: 0, len }
    }

    /// An aligned copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> IoBuf {
        let mut buf = IoBuf::scratch(bytes.len());
        buf.bytes_mut().copy_from_slice(bytes);
        buf
    }

    /// True when the first byte lies on a 4 KiB boundary, as O_DIRECT wants it.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        self.start.is_multiple_of(ALIGN)
    }

    /// True when no other buffer shares the memory, so that [`Payload::bytes_mut`] doesn't copy.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        self.block().refs.load(Ordering::Acquire) == 1
    }

    /// Keeps only the first `len` bytes. Panics when there are fewer: a caller's bug.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncate to {len} of {}", self.len);
        self.len = len;
    }

    /// The address of the first byte, for the kernel.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        // SAFETY: `start` is at most the capacity.
        unsafe { self.block().data.as_ptr().add(self.start) }
    }

    /// The address of the first byte, for the kernel to write to; a shared buffer is copied first.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes_mut().as_mut_ptr()
    }

    fn block(&self) -> &Block {
        // SAFETY: an IoBuf holds one count of its block, so it is alive.
        unsafe { self.block.as_ref() }
    }
}

impl Payload for IoBuf {
    fn zeroed(len: usize) -> Self {
        let mut buf = IoBuf::scratch(len);
        buf.bytes_mut().fill(0);
        buf
    }

    fn len(&self) -> usize {
        self.len
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: start + len is within the allocation, all of it is initialised, and nobody writes while this
        // IoBuf counts (bytes_mut wants it to be the only one, through `&mut`).
        unsafe { core::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        if !self.is_unique() {
            *self = IoBuf::copy_of(self.bytes());
        }
        // SAFETY: within the allocation and initialised, as in `bytes`; this is the only IoBuf of the block, and
        // it is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.block().data.as_ptr().add(self.start), self.len) }
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "slice {start}+{len} of {}", self.len);
        let mut part = self.clone();
        part.start += start;
        part.len = len;
        part
    }
}

impl Clone for IoBuf {
    fn clone(&self) -> Self {
        let before = self.block().refs.fetch_add(1, Ordering::Relaxed);
        assert!(before < usize::MAX / 2, "{before} references to one buffer");
        IoBuf { block: self.block, start: self.start, len: self.len }
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        if self.block().refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        let capacity = self.block().capacity;
        let block = self.block;
        let kept = match capacity_for(capacity).1 {
            Some(class) => FREE.try_with(|free| {
                let class = &mut free.borrow_mut().0[class];
                let room = class.len() < KEPT_BYTES_PER_CLASS / capacity;
                if room {
                    class.push(block);
                }
                room
            }),
            None => Ok(false),
        };
        if kept != Ok(true) {
            // SAFETY: the count was one and is now zero: nobody else uses the block.
            unsafe { Block::free(block) };
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

impl PartialEq for IoBuf {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for IoBuf {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_is_copied_before_it_changes() {
        let mut a = IoBuf::zeroed(8192);
        let b = a.clone();
        a.bytes_mut()[0] = 1;
        assert_eq!((a.bytes()[0], b.bytes()[0]), (1, 0));
        assert!(b.is_unique() && a.is_unique());
        let mut half = b.slice(4096, 4096);
        half.bytes_mut().fill(7);
        assert_eq!(b.bytes()[4096], 0);
        assert_eq!((half.len(), half.bytes()[4095]), (4096, 7));
    }

    #[test]
    fn every_buffer_and_every_block_slice_is_aligned() {
        for len in [0, 1, 4096, 5000, 128 * 1024, 3 * 1024 * 1024 + 1] {
            let buf = IoBuf::zeroed(len);
            assert_eq!((buf.as_ptr() as usize % ALIGN, buf.len()), (0, len));
            assert!(
                buf.bytes().first().is_none_or(|b| *b == 0) && buf.bytes().last().is_none_or(|b| *b == 0)
            );
        }
        let buf = IoBuf::zeroed(16384);
        assert!(buf.slice(4096, 4096).is_aligned() && !buf.slice(64, 4096).is_aligned());
    }

    #[test]
    fn a_recycled_buffer_is_zeroed_when_zeroes_are_asked_for() {
        // Bytes of one guest must not appear in the buffer of another.
        let mut a = IoBuf::scratch(4096);
        a.bytes_mut().fill(0xaa);
        let address = a.as_ptr();
        drop(a);
        let b = IoBuf::zeroed(4000);
        assert_eq!(b.as_ptr(), address, "the free list gives the last one back");
        assert!(b.bytes().iter().all(|b| *b == 0));
    }

    #[test]
    fn the_free_list_is_bounded() {
        let count = KEPT_BYTES_PER_CLASS / (1 << 20) + 2;
        let many: Vec<IoBuf> = (0..count).map(|_| IoBuf::scratch(1 << 20)).collect();
        drop(many);
        let kept = FREE.with(|f| f.borrow().0[CLASSES - 1].len());
        assert_eq!(kept, KEPT_BYTES_PER_CLASS >> 20);
    }

    #[test]
    fn a_buffer_may_be_dropped_by_another_thread() {
        let buf = IoBuf::copy_of(&[5; 4096]);
        let view = buf.slice(0, 10);
        std::thread::spawn(move || assert_eq!(view.bytes(), [5; 10])).join().expect("no panic");
        assert!(buf.is_unique());
        std::thread::spawn(move || drop(buf)).join().expect("no panic");
    }

    #[test]
    #[should_panic(expected = "slice 4096+1 of 4096")]
    fn a_slice_beyond_the_end_is_a_bug() {
        let _ = IoBuf::zeroed(4096).slice(4096, 1);
    }
}
