//! One connection to a data port, spoken as a host speaks it, or with what it should never say.
//!
//! Must always hold: whatever the other side does ends within [`PATIENCE`]; a connection that ended says so once and
//! for all.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use weft_io::identity::{Identity, TrustCell};
use weft_io::mac::FrameMac;
use weft_io::tls::{HandshakeError, TlsConfigs, TlsCore};
use weft_proto::ids::Epoch;
use weft_proto::message::{Ask, Request, Response};
use weft_proto::payload::{HeapPayload, Payload as _};
use weft_proto::wire::{
    EncodedFrame, FrameError, FrameKind, HEADER_LEN, Header, Hello, Version, decode_hello, decode_response,
    encode_hello, encode_request,
};

/// Longer than a daemon takes to refuse, and to serve.
const PATIENCE: Duration = Duration::from_secs(3);
const TAG_LEN: usize = 16;
/// Of every attachment here: a connection has only one.
pub(crate) const HANDLE: u32 = 1;

/// Why there is nothing more to be heard.
#[derive(Debug)]
pub(crate) struct Ended(pub String);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Ended(error.to_string())
    }
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        Ended(error.to_string())
    }
}

impl From<HandshakeError> for Ended {
    fn from(error: HandshakeError) -> Self {
        Ended(error.to_string())
    }
}

/// What arrives and is not a heartbeat or the like.
pub(crate) enum Frame {
    /// The other side's first frame.
    Hello,
    /// To a request.
    Response(Response<HeapPayload>),
    /// A request of the other side's session.
    Request,
}

/// A connection whose peer is proven.
pub(crate) struct Peer {
    socket: TcpStream,
    core: TlsCore,
    mac: Option<FrameMac>,
    /// A record that is not there whole yet.
    arrived: Vec<u8>,
    /// Plaintext that is not read yet.
    heard: Vec<u8>,
    version: Version,
}

impl Peer {
    /// Connects and proves itself.
    pub(crate) fn call(to: SocketAddr, identity: &Identity, trust: &Arc<TrustCell>) -> Result<Peer, Ended> {
        let mut socket = TcpStream::connect_timeout(&to, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let configs = TlsConfigs::new(identity, trust.clone());
        let mut core = TlsCore::client(&configs)?;
        let mut arrived = Vec::new();
        loop {
            say(&mut socket, &mut core)?;
            if core.proven().is_some() {
                break;
            }
            let mut buffer = [0; 16 * 1024];
            let count = socket.read(&mut buffer)?;
            if count == 0 {
                return Err(Ended("closed in the handshake".to_owned()));
            }
            arrived.extend_from_slice(&buffer[..count]);
            while core.proven().is_none() {
                let taken = core.receive(&mut arrived)?.taken;
                if taken == 0 {
                    break;
                }
                arrived.drain(..taken);
            }
        }
        let mac = core.frame_mac();
        let mut peer =
            Peer { socket, core, mac, arrived: Vec::new(), heard: Vec::new(), version: Version::HELLO };
        peer.take(&arrived)?;
        Ok(peer)
    }

    /// A HELLO that nobody waits for.
    pub(crate) fn greet_again(&mut self, hello: &Hello) -> Result<(), Ended> {
        let frame = self.seal(encode_hello(hello));
        self.send(&frame, &[])
    }

    /// Both HELLOs; from now on requests may be made.
    pub(crate) fn greet(&mut self, hello: &Hello) -> Result<(), Ended> {
        let frame = self.seal(encode_hello(hello));
        self.send(&frame, &[])?;
        match self.next()? {
            Frame::Hello => {
                self.version = Version::NEWEST;
                Ok(())
            }
            _ => Err(Ended("a frame before HELLO".to_owned())),
        }
    }

    /// One request, and its response.
    pub(crate) fn ask(
        &mut self,
        tag: u32,
        epoch: Epoch,
        ask: Ask<HeapPayload>,
    ) -> Result<Response<HeapPayload>, Ended> {
        let (head, data) = self.request(tag, epoch, ask);
        let head = self.seal(head);
        self.send(&head, &data)?;
        self.response()
    }

    /// The bytes of a request as they stand before they are sealed: header and meta, then data.
    pub(crate) fn request(&self, tag: u32, epoch: Epoch, ask: Ask<HeapPayload>) -> (Vec<u8>, Vec<u8>) {
        let frame: EncodedFrame<HeapPayload> =
            encode_request(self.version, HANDLE, &Request { tag, epoch, ask });
        let data = frame.data.iter().flat_map(|part| part.bytes().iter().copied()).collect();
        (frame.head, data)
    }

    /// Under `auth` with its tag, which is the next one's of the connection.
    pub(crate) fn seal(&mut self, mut head: Vec<u8>) -> Vec<u8> {
        if let Some(mac) = &mut self.mac {
            // It fails only after 2^64 frames.
            let _ = mac.seal(&mut head);
        }
        head
    }

    /// Sends bytes as they are: under `tls` as plaintext of records, under `auth` on the wire.
    pub(crate) fn send(&mut self, head: &[u8], data: &[u8]) -> Result<(), Ended> {
        let bytes = self.wire(head, data);
        self.send_raw(&bytes)
    }

    /// What [`Peer::send`] would put on the wire.
    pub(crate) fn wire(&mut self, head: &[u8], data: &[u8]) -> Vec<u8> {
        if self.mac.is_some() {
            return [head, data].concat();
        }
        self.core.send(&[head, data]);
        let mut out = Vec::new();
        self.core.take_output(&mut out);
        out
    }

    /// Onto the wire.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.socket.write_all(bytes)?;
        Ok(())
    }

    /// The next response, past whatever else comes.
    pub(crate) fn response(&mut self) -> Result<Response<HeapPayload>, Ended> {
        loop {
            if let Frame::Response(response) = self.next()? {
                return Ok(response);
            }
        }
    }

    /// Whatever comes is not looked at.
    pub(crate) fn until_cut(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(1..) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn next(&mut self) -> Result<Frame, Ended> {
        let tag_len = if self.mac.is_some() { TAG_LEN } else { 0 };
        let header: [u8; HEADER_LEN] = self.exactly(HEADER_LEN)?.try_into().unwrap_or([0; HEADER_LEN]);
        let parsed = Header::parse(&header, self.version)?;
        let tag = self.exactly(tag_len)?;
        let meta = self.exactly(parsed.meta_len())?;
        let data = self.exactly(parsed.data_len())?;
        if let Some(mac) = &mut self.mac {
            mac.open(&header, &tag, &meta)
                .map_err(|_| Ended("a wrong tag from the other side".to_owned()))?;
        }
        Ok(match parsed.kind() {
            FrameKind::Hello => {
                decode_hello(&parsed, &meta)?;
                Frame::Hello
            }
            FrameKind::Response => Frame::Response(decode_response(&parsed, &meta, HeapPayload::from(data))?),
            FrameKind::Request => Frame::Request,
        })
    }

    fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Ended> {
        while self.heard.len() < count {
            let mut buffer = vec![0; 64 * 1024];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(Ended("closed".to_owned())),
                Ok(read) => self.take(&buffer[..read])?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Ended("no answer".to_owned()));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(self.heard.drain(..count).collect())
    }

    /// What arrived on the wire.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        if self.mac.is_some() {
            self.heard.extend_from_slice(bytes);
            return Ok(());
        }
        self.arrived.extend_from_slice(bytes);
        loop {
            let received = self.core.receive(&mut self.arrived)?;
            if received.taken == 0 {
                return Ok(());
            }
            self.heard.extend_from_slice(&self.arrived[received.plain]);
            self.arrived.drain(..received.taken);
        }
    }
}

fn say(socket: &mut TcpStream, core: &mut TlsCore) -> Result<(), Ended> {
    let mut out = Vec::new();
    core.take_output(&mut out);
    socket.write_all(&out)?;
    Ok(())
}
