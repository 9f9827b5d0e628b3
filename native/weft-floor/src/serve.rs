//! A peer: takes requests from one socket and does them, many at a time.
//!
//! Threads take turns at the socket: who has read a request lets the next one read and does the disk I/O itself,
//! so a lone request changes threads nowhere.
//!
//! Must always hold: `Done` is sent only after the kernel said that the write is on stable media.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;

use rustix::fs::{Mode, OFlags};
use rustix::io::ReadWriteFlags;

use crate::frame::{HEAD_LEN, Head, MAX_DATA, Verb};

pub(crate) struct Config {
    pub(crate) listen: String,
    pub(crate) file: PathBuf,
    pub(crate) size: u64,
    pub(crate) threads: usize,
}

/// Serves connections until it is killed.
pub(crate) fn serve(config: &Config) -> io::Result<()> {
    let file = open(config)?;
    let listener = TcpListener::bind(&config.listen)?;
    println!("listening on {}", listener.local_addr()?);
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let (stream, file) = (stream?, &file);
            scope.spawn(move || {
                match serve_one(&stream, file, config) {
                    // An initiator that has measured enough just leaves.
                    Err(error) if is_hang_up(&error) => {}
                    Err(error) => eprintln!("weft-floor serve: {error}"),
                    Ok(()) => {}
                }
            });
        }
        Ok(())
    })
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Opens the file past the page cache, filled: a first write to a hole costs more than any later one.
fn open(config: &Config) -> io::Result<File> {
    if config.file.metadata().map_or(true, |found| found.len() != config.size) {
        let mut file = File::create(&config.file)?;
        let zeroes = vec![0; MAX_DATA];
        let mut left = config.size;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA);
            file.write_all(&zeroes[..piece])?;
            left -= piece as u64;
        }
        file.sync_all()?;
    }
    Ok(rustix::fs::open(&config.file, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?.into())
}

fn serve_one(stream: &TcpStream, file: &File, config: &Config) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let turns = Mutex::new(BufReader::with_capacity(256 * 1024, stream));
    let replies = Mutex::new(stream);
    std::thread::scope(|scope| {
        let worker = || {
            let mut buffer = Aligned::new();
            while let Some(head) = next(&turns, &mut buffer, config.size)? {
                let reply = execute(head, &mut buffer, file);
                let mut stream = replies.lock().expect("no thread panics");
                let data = &buffer.bytes()[..reply.data_len()];
                write_all(&mut stream, &reply.to_bytes(), data)?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..config.threads.max(1)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no thread panics"))
    })
}

/// Waits for a turn and a request; `None` at the end of the stream.
fn next(turns: &Mutex<BufReader<&TcpStream>>, buffer: &mut Aligned, size: u64) -> io::Result<Option<Head>> {
    let mut reader = turns.lock().expect("no thread panics");
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut bytes = [0; HEAD_LEN];
    reader.read_exact(&mut bytes)?;
    let head = Head::parse(&bytes).filter(|head| {
        head.offset.is_multiple_of(4096)
            && head.len.is_multiple_of(4096)
            && head.offset.checked_add(u64::from(head.len)).is_some_and(|end| end <= size)
            && matches!(head.verb, Verb::Write | Verb::Read)
    });
    let head = head.ok_or_else(|| io::Error::other("a request that makes no sense"))?;
    reader.read_exact(&mut buffer.bytes()[..head.data_len()])?;
    Ok(Some(head))
}

fn execute(head: Head, buffer: &mut Aligned, file: &File) -> Head {
    let data = &mut buffer.bytes()[..usize::try_from(head.len).unwrap_or(0)];
    let done = if head.verb == Verb::Write {
        let slices = [IoSlice::new(data)];
        rustix::io::pwritev2(file, &slices, head.offset, ReadWriteFlags::DSYNC)
            .is_ok_and(|written| written == data.len())
    } else {
        file.read_exact_at(data, head.offset).is_ok()
    };
    let len = if head.verb == Verb::Read { head.len } else { 0 };
    Head { verb: if done { Verb::Done } else { Verb::Failed }, len, ..head }
}

fn write_all(stream: &mut &TcpStream, head: &[u8], data: &[u8]) -> io::Result<()> {
    let sent = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(data)])?;
    if sent < head.len() {
        stream.write_all(&head[sent..])?;
    }
    stream.write_all(&data[sent.saturating_sub(head.len())..])
}

/// Room for the data of one request, where O_DIRECT wants it.
struct Aligned {
    room: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Aligned {
        let room = vec![0; MAX_DATA + 4096];
        let start = room.as_ptr().align_offset(4096);
        Aligned { room, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + MAX_DATA]
    }
}
