//! A steady number of random 4 KiB requests, without NBD in front.
//!
//! Must always hold: the offsets are the same in every run.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, poll};
use weft_proto::payload::{HeapPayload, Payload};

use crate::fan_out::FanOut;

pub(crate) struct Config {
    pub(crate) peers: Vec<String>,
    pub(crate) is_write: bool,
    pub(crate) depth: usize,
    pub(crate) seconds: u64,
    pub(crate) size: u64,
}

/// Prints one line of JSON at its end.
pub(crate) fn run(config: &Config) -> io::Result<()> {
    let blocks = config.size / 4096;
    if blocks == 0 || config.depth == 0 {
        return Err(io::Error::other("--size is at least 4096 and --depth at least 1"));
    }
    let mut fan_out = FanOut::connect(&config.peers)?;
    let data = HeapPayload::zeroed(4096);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut began = vec![Instant::now(); config.depth];
    let mut times = Vec::new();
    let start = Instant::now();
    let length = Duration::from_secs(config.seconds);
    let mut ask = |fan_out: &mut FanOut, began: &mut [Instant], slot: usize| {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let offset = random % blocks * 4096;
        began[slot] = Instant::now();
        if config.is_write {
            fan_out.write(slot as u64, offset, &data);
        } else {
            fan_out.read(slot as u64, offset, 4096);
        }
    };
    for slot in 0..config.depth {
        ask(&mut fan_out, &mut began, slot);
    }
    while start.elapsed() < length {
        fan_out.send()?;
        let mut fds: Vec<PollFd<'_>> = fan_out.poll_fds().collect();
        poll(&mut fds, None)?;
        let ready: Vec<usize> = (0..fds.len()).filter(|n| !fds[*n].revents().is_empty()).collect();
        for peer in ready {
            fan_out.receive(peer)?;
        }
        while let Some(done) = fan_out.poll_done() {
            if !done.is_ok {
                return Err(io::Error::other("a peer could not do a request"));
            }
            let slot = usize::try_from(done.key).map_err(io::Error::other)?;
            times.push(began[slot].elapsed());
            ask(&mut fan_out, &mut began, slot);
        }
    }
    let elapsed = start.elapsed();
    times.sort_unstable();
    let micros = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e6);
    println!(
        "{{\"iops\":{:.0},\"p50_us\":{:.1},\"min_us\":{:.1}}}",
        times.len() as f64 / elapsed.as_secs_f64(),
        micros(times.get(times.len() / 2)),
        micros(times.first()),
    );
    Ok(())
}
