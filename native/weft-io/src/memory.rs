//! How the allocator treats memory that was freed.

/// What is freed beyond this much at the heap's end goes back to the kernel, in bytes.
const TRIM_BYTES: i32 = 64 << 20;
/// From this size on an allocation is a mapping of its own, unmapped when it is freed, in bytes.
const MAPPED_BYTES: i32 = 32 << 20;

/// Keeps freed memory for the next allocation, up to 64 MiB: for a process that moves data. glibc gives memory of this size
/// back at once, and each page of it is a fault when it is needed again: without this the owner of a volume took 45,000
/// faults a second for sequential writes under TLS. To be called once, before threads are started; elsewhere than with
/// glibc it does nothing.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (option, bytes) in [(libc::M_MMAP_THRESHOLD, MAPPED_BYTES), (libc::M_TRIM_THRESHOLD, TRIM_BYTES)] {
        // SAFETY: no memory is passed; both options take any number of bytes up to 32 MiB and 2 GiB.
        let taken = unsafe { libc::mallopt(option, bytes) };
        debug_assert_eq!(taken, 1, "glibc refuses {bytes} bytes for option {option}");
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Pages that this thread touched for the first time.
    fn faults() -> i64 {
        // SAFETY: all-zero is a valid rusage, and getrusage fills it.
        unsafe {
            let mut usage: libc::rusage = core::mem::zeroed();
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
            usage.ru_minflt
        }
    }

    #[test]
    fn freed_memory_is_used_again_without_a_fault() {
        keep_freed();
        let fill = || core::hint::black_box(vec![1u8; 8 << 20]).len();
        fill();
        let before = faults();
        for _ in 0..20 {
            fill();
        }
        let after = faults();
        // As mappings of their own they would be 20 × 2048.
        assert!(after - before < 2048, "{} faults", after - before);
    }
}
