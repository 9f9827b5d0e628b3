//! Work on many seeds by many threads, told in the order of the seeds.
//!
//! Must always hold: what is told, and where it ends, does not depend on the number of threads (a limit of time aside).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Seeds that a thread takes at once.
const BATCH: u64 = 8;

/// Does `work` for `count` seeds from `first` on, with `jobs` threads, and tells each outcome in order until it is told
/// `false`. After `until` no batch is begun; what is told then is all seeds up to some one.
pub fn in_order<T: Send>(
    jobs: usize,
    first: u64,
    count: u64,
    until: Option<Instant>,
    work: impl Fn(u64) -> T + Sync,
    mut tell: impl FnMut(u64, T) -> bool,
) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (tx, rx) = mpsc::sync_channel::<(u64, Vec<T>)>(jobs * 64);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (tx, next, stop, work) = (tx.clone(), &next, &stop, &work);
            scope.spawn(move || {
                loop {
                    let late = until.is_some_and(|until| Instant::now() >= until);
                    if late || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let from = next.fetch_add(BATCH, Ordering::Relaxed);
                    if from >= count {
                        return;
                    }
                    let seeds = from..(from + BATCH).min(count);
                    let mut done = Vec::new();
                    for seed in seeds {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        done.push(work(first + seed));
                    }
                    if tx.send((from, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tx);
        let (mut waiting, mut at) = (BTreeMap::new(), 0);
        for (from, done) in &rx {
            waiting.insert(from, done);
            while let Some(done) = waiting.remove(&at) {
                for outcome in done {
                    if !tell(first + at, outcome) {
                        stop.store(true, Ordering::Relaxed);
                        // Threads that wait to send go on, and find that it is over.
                        for _ in rx {}
                        return;
                    }
                    at += 1;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(jobs: usize, count: u64, end: u64) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        let work = |seed: u64| {
            std::thread::yield_now();
            seed * seed
        };
        in_order(jobs, 10, count, None, work, |seed, square| {
            all.push((seed, square));
            seed != end
        });
        all
    }

    #[test]
    fn any_number_of_threads_tells_the_same_in_the_same_order() {
        let expected: Vec<(u64, u64)> = (10..110).map(|seed| (seed, seed * seed)).collect();
        for jobs in [1, 2, 7] {
            assert_eq!(told(jobs, 100, 0), expected);
            assert_eq!(told(jobs, 100_000, 42), expected[..33]);
        }
    }

    #[test]
    fn nothing_is_begun_when_the_time_is_up() {
        let mut all = 0;
        in_order(
            2,
            1,
            1000,
            Some(Instant::now()),
            |seed| seed,
            |_, _| {
                all += 1;
                true
            },
        );
        assert_eq!(all, 0);
    }
}
