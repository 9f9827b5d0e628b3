//! A few threads for system calls that may block: open, create, fallocate, punch, fsync of a directory, rename.
//!
//! Must always hold:
//! * each job's result arrives once, through [`Workers::poll`], after a wake of the owner's driver;
//! * the threads keep the descriptor they were given (the pool's lock) until their last call has ended, so that
//!   nobody takes the pool over under a call in progress (protocol.md R13);
//! * a job that panics takes its owner's thread with it: a bug is not an I/O error.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::driver::{Fd, Waker};

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// Who does the jobs.
enum Doers<T> {
    Threads(Sender<Job<T>>),
    /// Whoever asks, at once.
    Asker(Sender<thread::Result<T>>, Waker),
}

/// The threads, and the results on their way back.
pub struct Workers<T> {
    doers: Doers<T>,
    done: Receiver<thread::Result<T>>,
    /// Jobs whose result was not taken yet.
    pending: usize,
}

impl<T: Send + 'static> Workers<T> {
    /// Starts `threads` threads that hold `keep` open and wake `waker` with each result. With no threads each job is
    /// done within [`Workers::run`]: for tests, whose jobs then come in the same order each time.
    pub fn start(threads: usize, name: &str, keep: &Fd, waker: &Waker) -> io::Result<Workers<T>> {
        let (jobs, queue) = channel::<Job<T>>();
        let (results, done) = channel();
        if threads == 0 {
            return Ok(Workers { doers: Doers::Asker(results, waker.clone()), done, pending: 0 });
        }
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let (queue, results) = (Arc::clone(&queue), results.clone());
            let (keep, waker) = (Fd::clone(keep), waker.clone());
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                let _keep = keep;
                loop {
                    let job = queue.lock().map(|q| q.recv());
                    let Ok(Ok(job)) = job else { return };
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                    if results.send(result).is_err() {
                        return;
                    }
                    waker.wake();
                }
            })?;
        }
        Ok(Workers { doers: Doers::Threads(jobs), done, pending: 0 })
    }

    /// Queues a job; jobs start in order but may end in any.
    pub fn run(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        self.pending += 1;
        match &self.doers {
            Doers::Threads(jobs) => {
                jobs.send(Box::new(job)).expect("the threads live as long as their owner");
            }
            Doers::Asker(results, waker) => {
                results.send(Ok(job())).expect("the other end is ours");
                waker.wake();
            }
        }
    }

    /// The next result, if there is one. To be drained before the next [`Driver::wait`](crate::driver::Driver::wait): many
    /// results may share a wake.
    pub fn poll(&mut self) -> Option<T> {
        let result = self.done.try_recv().ok()?;
        self.pending -= 1;
        Some(result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Jobs whose result was not taken yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;
    use crate::driver::{Driver, auto};

    #[test]
    fn results_come_back_through_the_waker() {
        let mut driver = auto().expect("a driver");
        let keep: Fd = Arc::new(File::open("/dev/null").expect("opened").into());
        let mut workers = Workers::start(2, "test", &keep, &driver.waker()).expect("started");
        for i in 0..10 {
            workers.run(move || i);
        }
        let mut got = Vec::new();
        while got.len() < 10 {
            while let Some(result) = workers.poll() {
                got.push(result);
            }
            if got.len() < 10 {
                driver.wait(Some(core::time::Duration::from_secs(10)), &mut Vec::new()).expect("wait");
            }
        }
        got.sort_unstable();
        assert_eq!((got, workers.pending()), ((0..10).collect::<Vec<_>>(), 0));
        drop(workers);
    }
}
