//! TCP between hosts: sockets set up the way the data path wants them, and connections of frames.
//!
//! Must always hold:
//! * every socket has TCP_NODELAY and a congestion control chosen here, not the machine's default (a request must
//!   not wait for an acknowledgement of the one before; bbr paces bursts that a storage network can take);
//! * bytes of a peer never panic: a frame that is not sound ends the connection with a [`FrameError`];
//! * nothing is allocated for a frame before its header is proven sound.
//!
//! ```text
//! connection.handle_completion(c);
//! while let Some(frame) = connection.poll_frame()? {
//!     match frame.header.kind() { … wire::decode_request(&frame.header, &frame.meta, frame.data)? … }
//! }
//! if connection.queue(wire::encode_response(..)) == Pressure::Stop { … }
//! while let Some((token, op)) = connection.poll_op() { driver.submit(token, op) }
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use weft_proto::wire::{EncodedFrame, FrameError, HEADER_LEN, Header, MAX_META, Version};

use crate::buffer::IoBuf;
use crate::driver::{Completion, Errno, Fd, Op, Part, checked};
use crate::stream::{ByteStream, Pressure, StreamConfig, StreamEnd};

/// Congestion controls in the order of our preference; where none is there the machine's default stays.
pub const CONGESTION: [&str; 2] = ["cubic", "reno"];

/// A peer that acknowledges nothing for this long is gone. The session's heartbeat notices much earlier (1.5 s); this
/// only ends what nobody looks after.
const USER_TIMEOUT_MS: i32 = 10_000;

/// The families as a socket address holds them.
const FAMILY_V4: libc::sa_family_t = 2;
const FAMILY_V6: libc::sa_family_t = 10;
const _: () = assert!(FAMILY_V4 as i32 == libc::AF_INET && FAMILY_V6 as i32 == libc::AF_INET6);

/// A nonblocking TCP listener, and where it listens (with port 0: which port it got).
pub fn listen(address: SocketAddr) -> io::Result<(Fd, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((Arc::new(listener.into()), address))
}

/// A nonblocking unix listener; a socket that a process left behind at the path is replaced. The path has at most 107
/// bytes. Blocks for a moment.
pub fn listen_unix(path: &Path) -> io::Result<Fd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Arc::new(listener.into()))
}

/// Starts to connect without waiting: submit [`Op::PollWrite`], then ask [`connected`].
pub fn connect(address: SocketAddr) -> io::Result<Fd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = checked(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket: Fd = Arc::new(unsafe { OwnedFd::from_raw_fd(socket) });
    set_up(&socket)?;
    let result = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: all-zero is a valid sockaddr_in.
            let mut raw: libc::sockaddr_in = unsafe { core::mem::zeroed() };
            raw.sin_family = FAMILY_V4;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            connect_raw(&socket, &raw)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all-zero is a valid sockaddr_in6.
            let mut raw: libc::sockaddr_in6 = unsafe { core::mem::zeroed() };
            raw.sin6_family = FAMILY_V6;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            connect_raw(&socket, &raw)
        }
    };
    match result {
        Ok(()) | Err(Errno(libc::EINPROGRESS)) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

fn connect_raw<A>(socket: &Fd, address: &A) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(size_of::<A>()).expect("an address is short");
    // SAFETY: `address` is a socket address of that length.
    checked(unsafe { libc::connect(socket.as_raw_fd(), core::ptr::from_ref(address).cast(), len) }).map(drop)
}

/// After the poll of [`connect`]: connected, or why not.
pub fn connected(socket: &Fd) -> Result<(), Errno> {
    let mut error: i32 = 0;
    let mut len: libc::socklen_t = 4;
    // SAFETY: `error` has the four bytes that `len` says.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut len,
        )
    })?;
    if error == 0 { Ok(()) } else { Err(Errno(error)) }
}

/// Sets a TCP socket up ([`connect`] does it; for accepted ones it is the acceptor's first act).
pub fn set_up(socket: &Fd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 5)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, USER_TIMEOUT_MS)?;
    for name in CONGESTION {
        let len = libc::socklen_t::try_from(name.len()).expect("a short name");
        // SAFETY: `name` has `len` readable bytes.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_CONGESTION,
                name.as_ptr().cast(),
                len,
            )
        };
        if result == 0 {
            break;
        }
    }
    Ok(())
}

fn set(socket: &Fd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: four readable bytes.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) })?;
    Ok(())
}

/// The congestion control that a socket has.
pub fn congestion_of(socket: &Fd) -> io::Result<String> {
    let mut name = [0u8; 16];
    let mut len: libc::socklen_t = 16;
    // SAFETY: `name` has the 16 bytes that `len` says.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// A received frame, for [`weft_proto::wire::decode_request`] and its like.
#[derive(Debug)]
pub struct Frame {
    /// Proven sound.
    pub header: Header,
    /// The MAC between header and meta; empty unless [`Conn::set_trailer_len`] was called.
    pub trailer: Vec<u8>,
    /// Not looked at yet.
    pub meta: Vec<u8>,
    /// Guest data in an aligned buffer.
    pub data: IoBuf,
}

/// What is received next.
#[derive(Debug)]
enum Expect {
    Header,
    /// The rest of a frame of which trailer and meta have to come first.
    Meta(Header),
    /// The data of a frame, in the stream's fill.
    Data(Header, Vec<u8>, Vec<u8>),
}

/// A connection of frames. A frame that is not sound ends it.
#[derive(Debug)]
pub struct Conn {
    stream: ByteStream,
    version: Version,
    trailer_len: usize,
    expect: Expect,
}

impl Conn {
    /// Takes over a connected socket, which speaks [`Version::HELLO`] first. The receive buffer must hold a header, a
    /// trailer and the longest meta.
    #[must_use]
    pub fn new(socket: Fd, config: StreamConfig) -> Conn {
        let recv_bytes = config.recv_bytes.max(HEADER_LEN + MAX_META + 64);
        let stream = ByteStream::new(socket, StreamConfig { recv_bytes, ..config });
        Conn { stream, version: Version::HELLO, trailer_len: 0, expect: Expect::Header }
    }

    /// After both HELLOs: the version of all frames from now on.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// From now on this many bytes (at most 64) follow each received header. Outgoing frames' trailers are put into
    /// [`EncodedFrame::head`] by who makes them.
    pub fn set_trailer_len(&mut self, len: usize) {
        assert!(len <= 64, "a trailer of {len} bytes");
        self.trailer_len = len;
    }

    /// The bytes underneath: socket, state, pausing.
    #[must_use]
    pub fn stream(&self) -> &ByteStream {
        &self.stream
    }

    /// Stops or resumes receiving: back-pressure towards the peer.
    pub fn pause(&mut self, paused: bool) {
        self.stream.pause(paused);
    }

    /// Ends the connection at once.
    pub fn close(&mut self) {
        self.stream.close();
    }

    /// Why the connection ended, if it has; frames that had arrived are still given.
    #[must_use]
    pub fn ended(&self) -> Option<StreamEnd> {
        self.stream.ended()
    }

    /// True if a driver's completion with this token is for this connection.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        self.stream.owns(token)
    }

    /// A driver's op of this connection has ended. Then drain [`Conn::poll_frame`].
    pub fn handle_completion(&mut self, completion: Completion) {
        self.stream.handle_completion(completion);
    }

    /// The next frame that has arrived whole. To be drained before [`Conn::poll_op`]. After an error the connection is
    /// closed.
    pub fn poll_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            match core::mem::replace(&mut self.expect, Expect::Header) {
                Expect::Header => {
                    let Some(bytes) = self.stream.bytes().first_chunk::<HEADER_LEN>() else {
                        return Ok(None);
                    };
                    match Header::parse(bytes, self.version) {
                        Ok(header) => self.expect = Expect::Meta(header),
                        Err(error) => {
                            self.stream.close();
                            return Err(error);
                        }
                    }
                }
                Expect::Meta(header) => {
                    let (trailer, meta) = (HEADER_LEN + self.trailer_len, header.meta_len());
                    let Some(bytes) = self.stream.bytes().get(HEADER_LEN..trailer + meta) else {
                        self.expect = Expect::Meta(header);
                        return Ok(None);
                    };
                    let (mac, body) = bytes.split_at(self.trailer_len);
                    let (mac, body) = (mac.to_vec(), body.to_vec());
                    self.stream.consume(trailer + meta);
                    self.stream.begin_fill(header.data_len());
                    self.expect = Expect::Data(header, mac, body);
                }
                Expect::Data(header, trailer, meta) => match self.stream.poll_filled() {
                    Some(data) => return Ok(Some(Frame { header, trailer, meta, data })),
                    None => {
                        self.expect = Expect::Data(header, trailer, meta);
                        return Ok(None);
                    }
                },
            }
        }
    }

    /// Queues a frame; the parts of its data are shared, not copied.
    pub fn queue(&mut self, frame: EncodedFrame<IoBuf>) -> Pressure {
        let mut pressure = self.stream.queue(Part::Bytes(frame.head));
        for data in frame.data {
            pressure = self.stream.queue(Part::Buf(data));
        }
        pressure
    }

    /// The next op for the driver: a receive, or a send of as many queued frames as fit into one system call.
    pub fn poll_op(&mut self) -> Option<(u64, Op)> {
        self.stream.poll_op()
    }
}

#[cfg(test)]
mod tests;
