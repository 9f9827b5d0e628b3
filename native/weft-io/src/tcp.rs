//! TCP between hosts: sockets set up the way the data path wants them, and connections of frames.
//!
//! Must always hold:
//! * every socket has TCP_NODELAY and a congestion control chosen here, not the machine's default (a request must
//!   not wait for an acknowledgement of the one before; bbr paces bursts that a storage network can take);
//! * bytes of a peer never panic: a frame that is not sound ends the connection with a [`ConnError`];
//! * nothing is allocated for a frame before its header is proven sound;
//! * under `auth` nothing of a frame is given to anybody before its MAC was found right.
//!
//! ```text
//! connection.handle_completion(c);
//! let Some(proven) = connection.poll_handshake()? else { … }      // of a secured one
//! while let Some(frame) = connection.poll_frame()? {
//!     match frame.header.kind() { … wire::decode_request(&frame.header, &frame.meta, frame.data)? … }
//! }
//! if connection.queue(wire::encode_response(..)) == Pressure::Stop { … }
//! while let Some((token, op)) = connection.poll_op() { driver.submit(token, op) }
//! ```

use core::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use weft_proto::wire::{EncodedFrame, FrameError, HEADER_LEN, Header, MAX_META, Version};

use crate::buffer::IoBuf;
use crate::driver::{Completion, Errno, Fd, Op, Part, checked};
use crate::identity::Transport;
use crate::mac::{FrameMac, MacError, TAG_LEN};
use crate::stream::{ByteStream, Pressure, StreamConfig, StreamEnd};
use crate::tls::{HandshakeError, Proven, TlsStream};

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

/// Starts to connect without waiting: submit [`Op::PollWrite`], then ask [`connected`]. `from`: the address to be seen as,
/// where it is one of this machine.
pub fn connect(address: SocketAddr, from: Option<IpAddr>) -> io::Result<Fd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = checked(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket: Fd = Arc::new(unsafe { OwnedFd::from_raw_fd(socket) });
    set_up(&socket)?;
    if let Some(from) = from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
        // Its port is chosen when it connects, as if nothing had been bound. An address that is not here (any more) is no
        // reason not to connect.
        set(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        let _ = with_raw(&socket, SocketAddr::new(from, 0), libc::bind);
    }
    match with_raw(&socket, address, libc::connect) {
        Ok(()) | Err(Errno(libc::EINPROGRESS)) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

type AddressCall = unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32;

/// Calls bind or connect with this address.
fn with_raw(socket: &Fd, address: SocketAddr, call: AddressCall) -> Result<(), Errno> {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: all-zero is a valid sockaddr_in.
            let mut raw: libc::sockaddr_in = unsafe { core::mem::zeroed() };
            raw.sin_family = FAMILY_V4;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            call_raw(socket, &raw, call)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all-zero is a valid sockaddr_in6.
            let mut raw: libc::sockaddr_in6 = unsafe { core::mem::zeroed() };
            raw.sin6_family = FAMILY_V6;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            call_raw(socket, &raw, call)
        }
    }
}

fn call_raw<A>(socket: &Fd, address: &A, call: AddressCall) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(size_of::<A>()).expect("an address is short");
    // SAFETY: `address` is a socket address of that length, and `call` is bind or connect.
    checked(unsafe { call(socket.as_raw_fd(), core::ptr::from_ref(address).cast(), len) }).map(drop)
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

/// The address at the other end of a connected socket.
pub fn peer_address(socket: &Fd) -> io::Result<IpAddr> {
    let stream = TcpStream::from(socket.try_clone()?);
    Ok(stream.peer_addr()?.ip().to_canonical())
}

/// A received frame, for [`weft_proto::wire::decode_request`] and its like.
#[derive(Debug)]
pub struct Frame {
    /// Proven sound.
    pub header: Header,
    /// Not looked at yet; under `auth` its MAC was right.
    pub meta: Vec<u8>,
    /// Guest data in an aligned buffer.
    pub data: IoBuf,
}

/// Why a connection gives no more frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnError {
    /// What came is no frame.
    Frame(FrameError),
    /// Under `auth`: nobody who shares our keys sent this, or not at this place.
    Mac(MacError),
    /// Under `auth`: instead of a frame came the end of the handshake. The peer has refused us.
    RefusedUs,
    /// TLS failed after the handshake: a record was altered, or the peer sent an alert.
    Tls(HandshakeError),
}

impl fmt::Display for ConnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnError::Frame(error) => fmt::Display::fmt(error, f),
            ConnError::Mac(error) => fmt::Display::fmt(error, f),
            ConnError::RefusedUs => f.write_str("the peer has refused this host; its log says why"),
            ConnError::Tls(error) => fmt::Display::fmt(error, f),
        }
    }
}

/// What is received next.
#[derive(Debug)]
enum Expect {
    Header,
    /// The rest of a frame of which tag and meta have to come first.
    Meta(Header),
    /// The data of a frame, in the stream's fill.
    Data(Header, Vec<u8>),
}

/// What carries the frames.
#[derive(Debug)]
enum Lower {
    Clear(ByteStream),
    Tls(Box<TlsStream>),
    /// Only while one becomes the other.
    Turning,
}

/// Either stream, which have the same surface.
macro_rules! either {
    ($lower:expr, $stream:ident => $call:expr) => {
        match $lower {
            Lower::Clear($stream) => $call,
            Lower::Tls($stream) => $call,
            Lower::Turning => unreachable!("a connection is not used while its stream is turned"),
        }
    };
}

/// Types of TLS records that may follow where a frame should begin: alert, application data.
const ALERTS: [u8; 2] = [21, 23];

/// A connection of frames: in clear, under TLS, or in clear with a MAC (`auth`). A frame that is not sound ends it.
#[derive(Debug)]
pub struct Conn {
    lower: Lower,
    /// Under `auth`: seals each head that is sent and judges each that is received.
    mac: Option<Box<FrameMac>>,
    proven: Option<Proven>,
    version: Version,
    expect: Expect,
}

impl Conn {
    /// Takes over a connected socket, which speaks [`Version::HELLO`] first, in clear.
    #[must_use]
    pub fn new(socket: Fd, config: StreamConfig) -> Conn {
        Conn::over(Lower::Clear(Conn::stream_of(socket, config)), None)
    }

    /// Takes over a stream whose handshake is not over: nothing is to be queued until [`Conn::poll_handshake`] tells
    /// who the peer is. By it the connection becomes one of TLS or of `auth`.
    #[must_use]
    pub fn secured(stream: TlsStream) -> Conn {
        Conn::over(Lower::Tls(Box::new(stream)), None)
    }

    /// Takes over a stream on which every frame has a MAC from the first byte on.
    #[must_use]
    pub fn sealed(stream: ByteStream, mac: FrameMac) -> Conn {
        Conn::over(Lower::Clear(stream), Some(Box::new(mac)))
    }

    /// A stream whose receive buffer holds a header, a tag and the longest meta.
    #[must_use]
    pub fn stream_of(socket: Fd, config: StreamConfig) -> ByteStream {
        let recv_bytes = config.recv_bytes.max(HEADER_LEN + TAG_LEN + MAX_META);
        ByteStream::new(socket, StreamConfig { recv_bytes, ..config })
    }

    fn over(lower: Lower, mac: Option<Box<FrameMac>>) -> Conn {
        Conn { lower, mac, proven: None, version: Version::HELLO, expect: Expect::Header }
    }

    /// Of a [`Conn::secured`] one: who the peer is, once it is proven, and then every time; none while the handshake goes
    /// on, and for a connection without one. After an error frames never come: let it send its alert
    /// ([`Conn::poll_op`]) until it ends by itself, or close it.
    pub fn poll_handshake(&mut self) -> Result<Option<Proven>, HandshakeError> {
        let Lower::Tls(tls) = &self.lower else { return Ok(self.proven) };
        self.proven = tls.poll_handshake()?.copied();
        let Some(proven) = self.proven else { return Ok(None) };
        if proven.mode == Transport::Auth
            && let Lower::Tls(tls) = core::mem::replace(&mut self.lower, Lower::Turning)
        {
            let (stream, mac) = tls.into_auth();
            self.lower = Lower::Clear(stream);
            self.mac = Some(Box::new(mac));
        }
        Ok(Some(proven))
    }

    /// True when the connection's keys have had half of the records they are good for: another one should follow.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        matches!(&self.lower, Lower::Tls(stream) if stream.is_worn())
    }

    /// After both HELLOs: the version of all frames from now on.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Fd {
        either!(&self.lower, stream => stream.socket())
    }

    /// Bytes queued and not yet taken by the kernel.
    #[must_use]
    pub fn queued(&self) -> usize {
        either!(&self.lower, stream => stream.queued())
    }

    /// True when less than half of the queue's limit is used: go on after [`Pressure::Stop`].
    #[must_use]
    pub fn is_writable(&self) -> bool {
        either!(&self.lower, stream => stream.is_writable())
    }

    /// Stops or resumes receiving: back-pressure towards the peer.
    pub fn pause(&mut self, paused: bool) {
        either!(&mut self.lower, stream => stream.pause(paused));
    }

    /// Ends the connection at once.
    pub fn close(&mut self) {
        either!(&mut self.lower, stream => stream.close());
    }

    /// Why the connection ended, if it has; frames that had arrived are still given.
    #[must_use]
    pub fn ended(&self) -> Option<StreamEnd> {
        either!(&self.lower, stream => stream.ended())
    }

    /// True if a driver's completion with this token is for this connection.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        either!(&self.lower, stream => stream.owns(token))
    }

    /// A driver's op of this connection has ended. Then drain [`Conn::poll_frame`], of a [`Conn::secured`] one after
    /// [`Conn::poll_handshake`].
    pub fn handle_completion(&mut self, completion: Completion) {
        either!(&mut self.lower, stream => stream.handle_completion(completion));
    }

    /// What has arrived, if it is `len` bytes or more.
    fn arrived(&mut self, len: usize) -> Option<&[u8]> {
        match &mut self.lower {
            Lower::Clear(stream) => stream.bytes().get(..len),
            Lower::Tls(stream) => {
                stream.prepare(len);
                stream.bytes().get(..len)
            }
            Lower::Turning => None,
        }
    }

    /// The next frame that has arrived whole. To be drained before [`Conn::poll_op`]. After an error the connection is
    /// closed.
    pub fn poll_frame(&mut self) -> Result<Option<Frame>, ConnError> {
        let result = self.next_frame();
        if result.is_err() {
            self.close();
        }
        match (&result, &self.lower) {
            // Nothing more comes: was it cut off, or was it altered?
            (Ok(None), Lower::Tls(stream)) if stream.is_proven() => match stream.poll_handshake() {
                Err(fault) => Err(ConnError::Tls(fault)),
                Ok(_) => Ok(None),
            },
            _ => result,
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, ConnError> {
        loop {
            match core::mem::replace(&mut self.expect, Expect::Header) {
                Expect::Header => {
                    let (version, is_sealed) = (self.version, self.mac.is_some());
                    // Under `auth` the caller is proven first, for itself: the acceptor's refusal comes as a record of
                    // TLS where a frame should be. No frame begins like that.
                    let refused =
                        self.arrived(1).is_some_and(|bytes| is_sealed && ALERTS.contains(&bytes[0]));
                    if refused {
                        return Err(ConnError::RefusedUs);
                    }
                    let Some(bytes) = self.arrived(HEADER_LEN) else { return Ok(None) };
                    let header = bytes.first_chunk().expect("as many were asked for");
                    self.expect = Expect::Meta(Header::parse(header, version).map_err(ConnError::Frame)?);
                }
                Expect::Meta(header) => {
                    let meta_at = HEADER_LEN + if self.mac.is_some() { TAG_LEN } else { 0 };
                    let head = meta_at + header.meta_len();
                    let mut mac = self.mac.take();
                    let Some(bytes) = self.arrived(head) else {
                        self.expect = Expect::Meta(header);
                        self.mac = mac;
                        return Ok(None);
                    };
                    let (start, meta) = bytes.split_at(meta_at);
                    let meta = meta.to_vec();
                    if let (Some(mac), Some((header, tag))) = (&mut mac, start.split_first_chunk()) {
                        mac.open(header, tag, &meta).map_err(ConnError::Mac)?;
                    }
                    self.mac = mac;
                    either!(&mut self.lower, stream => {
                        stream.consume(head);
                        stream.begin_fill(header.data_len());
                    });
                    self.expect = Expect::Data(header, meta);
                }
                Expect::Data(header, meta) => {
                    match either!(&mut self.lower, stream => stream.poll_filled()) {
                        Some(data) => return Ok(Some(Frame { header, meta, data })),
                        None => {
                            self.expect = Expect::Data(header, meta);
                            return Ok(None);
                        }
                    }
                }
            }
        }
    }

    /// Queues a frame; the parts of its data are shared, not copied.
    pub fn queue(&mut self, mut frame: EncodedFrame<IoBuf>) -> Pressure {
        if let Some(mac) = &mut self.mac
            && mac.seal(&mut frame.head).is_err()
        {
            // Every number was used, which no connection lives to see.
            self.close();
        }
        either!(&mut self.lower, stream => {
            let mut pressure = stream.queue(Part::Bytes(frame.head));
            for data in frame.data {
                pressure = stream.queue(Part::Buf(data));
            }
            pressure
        })
    }

    /// The next op for the driver: a receive, or a send of as many queued frames as fit into one system call.
    pub fn poll_op(&mut self) -> Option<(u64, Op)> {
        either!(&mut self.lower, stream => stream.poll_op())
    }
}

#[cfg(test)]
mod tests;
