//! The data port as somebody else calls it: with any certificate or none, in clear, under TLS, or with a MAC.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned, version,
};
use weft_io::mac::{EXPORTER_LABEL, FrameMac, KEYS_LEN, TAG_LEN};
use weft_proto::wire::HEADER_LEN;
use weftd::links::DATA_PORT;

use super::PATIENCE;

/// Believes everybody: what a caller finds out is not what is tested.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// How to call.
#[derive(Clone)]
pub(crate) struct Calling {
    /// In PEM: certificates, then their key; none is shown where it is empty.
    pub(crate) pem: String,
    /// None: in clear.
    pub(crate) transport: Option<&'static str>,
    /// Other protocols than the transport's.
    pub(crate) alpn: Option<&'static [u8]>,
}

impl Calling {
    fn config(&self) -> ClientConfig {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous(provider)));
        let mut config = if self.pem.is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.pem.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).expect("a key");
            builder.with_client_auth_cert(chain.expect("PEM"), key).expect("a pair")
        };
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        let named: &[u8] = if self.transport == Some("auth") { b"weft-auth/1" } else { b"weft/1" };
        config.alpn_protocols = vec![self.alpn.unwrap_or(named).to_vec()];
        config
    }

    /// Calls a host's data port, seen as from that address. A refusal of TLS's handshake is an error; one that comes after
    /// it is found by who reads.
    pub(crate) fn call(&self, address: &str, from: Option<&str>) -> io::Result<Line> {
        let mut stream = connect(address, from)?;
        let Some(transport) = self.transport else { return Ok(Line::Clear(stream)) };
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let mut tls = ClientConnection::new(Arc::new(self.config()), name).expect("a client");
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut stream)?;
        }
        if transport == "tls" {
            return Ok(Line::Tls(Box::new(StreamOwned::new(tls, stream))));
        }
        let keys = tls.export_keying_material([0; KEYS_LEN], EXPORTER_LABEL, None).expect("keys");
        Ok(Line::Auth(stream, Box::new(FrameMac::new(&keys, true))))
    }
}

/// A connection, tried until the port is there: the kernel frees a killed daemon's a moment after the process has gone.
pub(crate) fn connect(address: &str, from: Option<&str>) -> io::Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    let to = SocketAddr::new(address.parse().expect("an address"), DATA_PORT);
    let from: Option<IpAddr> = from.map(|from| from.parse().expect("an address"));
    let stream = loop {
        let socket = weft_io::tcp::connect(to, from)?;
        let mut ready = [rustix::event::PollFd::new(&*socket, rustix::event::PollFlags::OUT)];
        rustix::event::poll(&mut ready, None)?;
        match weft_io::tcp::connected(&socket) {
            Ok(()) => break TcpStream::from(socket.try_clone()?),
            Err(errno) if Instant::now() > until => return Err(errno.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection of frames.
pub(crate) enum Line {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Auth(TcpStream, Box<FrameMac>),
}

impl Line {
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Line::Clear(stream) | Line::Auth(stream, _) => stream,
            Line::Tls(stream) => &stream.sock,
        }
    }

    /// Frames, which `auth` seals; what is none goes as it is.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Line::Clear(stream) => stream.write_all(bytes),
            Line::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Line::Auth(stream, mac) => stream.write_all(&sealed(mac, bytes)),
        }
    }

    pub(crate) fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        match self {
            Line::Clear(stream) | Line::Auth(stream, _) => stream.read_exact(into),
            Line::Tls(stream) => stream.read_exact(into),
        }
    }

    /// The next frame: header and payload. Its MAC is not looked at.
    pub(crate) fn frame(&mut self) -> io::Result<([u8; HEADER_LEN], Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.read_exact(&mut head)?;
        if matches!(self, Line::Auth(..)) {
            self.read_exact(&mut [0; TAG_LEN])?;
        }
        let len = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
        let mut payload = vec![0; usize::try_from(len).expect("short")];
        self.read_exact(&mut payload)?;
        Ok((head, payload))
    }

    /// Everything until the other side closes; false when it does not.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        let read = match self {
            Line::Clear(stream) | Line::Auth(stream, _) => stream.read_to_end(&mut rest),
            Line::Tls(stream) => stream.read_to_end(&mut rest),
        };
        !matches!(read, Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    pub(crate) fn end_of_sending(&self) {
        let _ = self.socket().shutdown(Shutdown::Write);
    }
}

/// These frames with their tags.
fn sealed(mac: &mut FrameMac, bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while rest.len() >= HEADER_LEN && rest.starts_with(b"weft") {
        let field = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes")) as usize;
        let end = (HEADER_LEN + field(8)).min(rest.len());
        let head_end = (HEADER_LEN + field(12)).min(end);
        let mut head = rest[..head_end].to_vec();
        mac.seal(&mut head).expect("one of the first");
        out.extend_from_slice(&head);
        out.extend_from_slice(&rest[head_end..end]);
        rest = &rest[end..];
    }
    out.extend_from_slice(rest);
    out
}

/// A key of nobody.
pub(crate) fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
