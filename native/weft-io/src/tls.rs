//! TLS 1.3 between hosts, driven by the reactor: bytes in, bytes out, no thread and no blocking.
//!
//! [`TlsCore`] is the protocol alone, over slices; [`TlsStream`] puts it between a [`ByteStream`] and who reads frames, and
//! has the same surface. Both ends show a certificate, and [`crate::identity::Trust::judge`] decides. What comes after the
//! handshake is chosen by ALPN ([`ALPN_TLS`], [`ALPN_AUTH`]): encrypted frames, or clear ones with a
//! [`FrameMac`] that [`TlsStream::into_auth`] gives. rustls makes the handshake; the records of encrypted frames are ours.
//!
//! A caller offers its own setting first and `tls` always; an acceptor takes its own setting's or `tls`. So `auth` is spoken
//! only if both lists say so, and `clear` never begins here.
//!
//! Must always hold:
//! * nothing is sent but the handshake, and nothing received is shown, before the peer is proven;
//! * TLS 1.3 only, no resumption, no early data, a judge for each connection: a revoked peer has no way around its judge;
//! * while it lasts the handshake is fed record by record, so that what is behind it, records or clear bytes, is untouched;
//! * the keys of a connection seal [`RECORDS_MAX`] records each way at most, and it asks to be followed long before;
//! * a peer that is not proven makes us keep at most [`HANDSHAKE_MAX`] bytes.

use core::fmt;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::ring::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    Error, PeerMisbehaved, ServerConfig, ServerConnection, SignatureScheme,
};
use weft_proto::payload::Payload;
use zeroize::Zeroizing;

use crate::buffer::IoBuf;
use crate::driver::{Completion, Fd, Op, Part};
use crate::identity::{Identity, Peer, PeerRefusal, Transport, Trust, TrustCell, WallTime};
use crate::mac::{EXPORTER_LABEL, FrameMac, KEYS_LEN};
use crate::stream::{ByteStream, Pressure, StreamEnd};

mod records;

use records::{RECORD_HEADER, Records};
pub use records::{RECORDS_MAX, RECORDS_WORN, Received, sealed_len};

/// Encrypted frames follow.
pub const ALPN_TLS: &[u8] = b"weft/1";
/// Clear frames with a MAC follow.
pub const ALPN_AUTH: &[u8] = b"weft-auth/1";
/// Most bytes of a peer's side of the handshake: one is 0.8 kB with certificates as ours.
pub const HANDSHAKE_MAX: usize = 16 * 1024;
/// Decrypted bytes that wait for who reads them: a header, a trailer and the longest meta fit.
pub const PLAIN_BYTES: usize = 128 * 1024;
/// Plaintext that is encrypted at once, when nothing is on its way: bounds the ciphertext a connection holds.
const BATCH_BYTES: usize = 256 * 1024;
/// Most parts of one batch.
const BATCH_PARTS: usize = 64;

/// The longest record of any stage, behind its header.
const RECORD_MAX: usize = 16 * 1024 + 256;
/// change_cipher_spec, alert, handshake, application_data.
const RECORD_KINDS: core::ops::RangeInclusive<u8> = 20..=23;

static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ECDSA_P256_SHA256],
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, &[webpki::ring::ECDSA_P256_SHA256])],
};

/// Why there is no connection, or not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// We do not let the peer in.
    Refused(PeerRefusal),
    /// TLS failed, here or there (an alert: the peer may have refused us); mostly in rustls's words.
    Tls(String),
    /// More than a handshake can need.
    TooLong,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::Refused(refusal) => write!(f, "the peer is refused: {refusal}"),
            HandshakeError::Tls(text) => write!(f, "TLS: {text}"),
            HandshakeError::TooLong => f.write_str("the peer's handshake is too long"),
        }
    }
}

/// A peer that a handshake proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub peer: Peer,
    /// [`Transport::Tls`] or [`Transport::Auth`]: what follows.
    pub mode: Transport,
}

#[derive(Debug)]
struct Clock(fn() -> WallTime);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some((self.0)().unix())
    }
}

/// What every handshake of this host begins with: its identity and the list in force.
pub struct TlsConfigs {
    certificate: Arc<SingleCertAndKey>,
    trust: Arc<TrustCell>,
    provider: Arc<CryptoProvider>,
    clock: Arc<Clock>,
}

impl fmt::Debug for TlsConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfigs").finish_non_exhaustive()
    }
}

impl TlsConfigs {
    /// By the wall clock. A renewed identity makes new ones; the list may change underneath.
    #[must_use]
    pub fn new(identity: &Identity, trust: Arc<TrustCell>) -> TlsConfigs {
        TlsConfigs::with_clock(identity, trust, WallTime::now)
    }

    /// By another clock: for tests and fuzzers.
    #[must_use]
    pub fn with_clock(identity: &Identity, trust: Arc<TrustCell>, clock: fn() -> WallTime) -> TlsConfigs {
        let provider = CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
            signature_verification_algorithms: ALGORITHMS,
            ..default_provider()
        };
        let certificate = Arc::new(SingleCertAndKey::from(identity.certified()));
        TlsConfigs { certificate, trust, provider: Arc::new(provider), clock: Arc::new(Clock(clock)) }
    }

    fn judge(&self) -> Arc<Judge> {
        Arc::new(Judge { trust: self.trust.get(), verdict: Mutex::new(None) })
    }

    fn client(&self, judge: Arc<Judge>) -> Result<ClientConfig, Error> {
        let alpn_protocols = protocols(judge.trust.transport);
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(judge)
            .with_client_cert_resolver(self.certificate.clone() as Arc<dyn ResolvesClientCert>);
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.enable_secret_extraction = true;
        config.alpn_protocols = alpn_protocols;
        Ok(config)
    }

    fn server(&self, judge: Arc<Judge>) -> Result<ServerConfig, Error> {
        let alpn_protocols = protocols(judge.trust.transport);
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(judge)
            .with_cert_resolver(self.certificate.clone());
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.enable_secret_extraction = true;
        config.alpn_protocols = alpn_protocols;
        Ok(config)
    }
}

fn protocols(transport: Transport) -> Vec<Vec<u8>> {
    match transport {
        Transport::Auth => vec![ALPN_AUTH.to_vec(), ALPN_TLS.to_vec()],
        Transport::Tls | Transport::Clear => vec![ALPN_TLS.to_vec()],
    }
}

/// Judges the one peer of one connection, by the list that was in force when it began.
#[derive(Debug)]
struct Judge {
    trust: Arc<Trust>,
    verdict: Mutex<Option<Result<Peer, PeerRefusal>>>,
}

impl Judge {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<&[u8]> = core::iter::once(leaf).chain(rest).map(AsRef::as_ref).collect();
        let verdict = self.trust.judge(&chain, WallTime(now.as_secs()));
        let result = verdict.as_ref().map(drop).map_err(|refusal| {
            // Only which alert the peer gets.
            Error::InvalidCertificate(match refusal {
                PeerRefusal::Stranger | PeerRefusal::OtherCluster => CertificateError::UnknownIssuer,
                PeerRefusal::NotListed => CertificateError::ApplicationVerificationFailure,
                PeerRefusal::Revoked { .. } => CertificateError::Revoked,
                PeerRefusal::Expired { .. } => CertificateError::Expired,
                PeerRefusal::NotYetValid { .. } => CertificateError::NotValidYet,
                PeerRefusal::BadChain => CertificateError::BadEncoding,
            })
        });
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
        result
    }

    fn verdict(&self) -> Option<Result<Peer, PeerRefusal>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// TLS 1.2 is not spoken, so nobody asks.
fn tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme))
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, rest, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, rest, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// One end of a connection, without its socket: give it what arrived ([`TlsCore::receive`]), send what it says
/// ([`TlsCore::take_output`], after every call), and what it seals.
pub struct TlsCore {
    stage: Stage,
    judge: Arc<Judge>,
    caller: bool,
    /// Bytes of the peer's side of the handshake so far.
    received: usize,
    /// To be sent before anything else.
    out: Vec<u8>,
    proven: Option<Proven>,
    failed: Option<HandshakeError>,
}

enum Stage {
    /// Until the peer is proven; for good if it isn't.
    Handshake(Box<Connection>),
    /// Under `tls`.
    Open(Records),
    /// Under `auth`.
    Clear(Zeroizing<[u8; KEYS_LEN]>),
    /// The handshake's keys are of no use.
    Over,
}

impl fmt::Debug for TlsCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsCore")
            .field("caller", &self.caller)
            .field("proven", &self.proven)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl TlsCore {
    /// The caller's end; its first flight is ready to be taken.
    pub fn client(configs: &TlsConfigs) -> Result<TlsCore, HandshakeError> {
        let judge = configs.judge();
        let connect = || {
            // Not looked at: hosts are named by id. Without SNI it is not sent either.
            let name = ServerName::IpAddress(core::net::Ipv4Addr::LOCALHOST.into());
            ClientConnection::new(Arc::new(configs.client(judge.clone())?), name)
        };
        let tls = connect().map_err(|error| HandshakeError::Tls(error.to_string()))?;
        Ok(TlsCore::over(tls.into(), judge, true))
    }

    /// The acceptor's end.
    pub fn server(configs: &TlsConfigs) -> Result<TlsCore, HandshakeError> {
        let judge = configs.judge();
        let accept = || ServerConnection::new(Arc::new(configs.server(judge.clone())?));
        let tls = accept().map_err(|error| HandshakeError::Tls(error.to_string()))?;
        Ok(TlsCore::over(tls.into(), judge, false))
    }

    fn over(tls: Connection, judge: Arc<Judge>, caller: bool) -> TlsCore {
        let stage = Stage::Handshake(Box::new(tls));
        TlsCore { stage, judge, caller, received: 0, out: Vec::new(), proven: None, failed: None }
    }

    /// The peer, once the handshake is over.
    #[must_use]
    pub fn proven(&self) -> Option<&Proven> {
        self.proven.as_ref()
    }

    /// True when the connection's keys have had half of the records they are good for: another one should follow.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        matches!(&self.stage, Stage::Open(records) if records.is_worn())
    }

    /// Takes the first record of what arrived, and opens it where it lies; nothing when it is not there whole, or (under
    /// `auth`, proven) any more. After an error it takes nothing; an alert may be there to be sent.
    pub fn receive(&mut self, bytes: &mut [u8]) -> Result<Received, HandshakeError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let received = match &mut self.stage {
            Stage::Handshake(_) => self.handshake(bytes).map(|taken| Received { taken, plain: 0..0 }),
            Stage::Open(records) => records.open(bytes).map_err(|fault| {
                if let Some(alert) = fault.alert {
                    self.out.extend_from_slice(&records.alert(alert));
                }
                HandshakeError::Tls(fault.text)
            }),
            Stage::Clear(_) | Stage::Over => Ok(Received::default()),
        };
        received.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// The next record, if it is there whole: never a byte more.
    fn handshake(&mut self, bytes: &[u8]) -> Result<usize, HandshakeError> {
        let Some([kind, _, _, high, low]) = bytes.first_chunk::<RECORD_HEADER>() else { return Ok(0) };
        if !RECORD_KINDS.contains(kind) {
            return Err(HandshakeError::Tls("the peer does not speak TLS".to_owned()));
        }
        let len = RECORD_HEADER + usize::from(u16::from_be_bytes([*high, *low]));
        if len > RECORD_HEADER + RECORD_MAX || self.received + len > HANDSHAKE_MAX {
            return Err(HandshakeError::TooLong);
        }
        let Some(mut record) = bytes.get(..len) else { return Ok(0) };
        self.received += len;
        let Stage::Handshake(tls) = &mut self.stage else { return Ok(0) };
        while !record.is_empty() {
            let count = feed(tls, &self.judge, record)?;
            record = &record[count..];
        }
        if !tls.is_handshaking() {
            self.complete()?;
        }
        Ok(len)
    }

    /// The handshake is over: who is the peer, and what follows?
    fn complete(&mut self) -> Result<(), HandshakeError> {
        let failed = |error: Error| HandshakeError::Tls(error.to_string());
        let Stage::Handshake(tls) = &mut self.stage else { return Ok(()) };
        let mode = match tls.alpn_protocol() {
            Some(name) if name == ALPN_TLS => Transport::Tls,
            Some(name) if name == ALPN_AUTH => Transport::Auth,
            _ => return Err(HandshakeError::Tls("no protocol was agreed".to_owned())),
        };
        let peer = match self.judge.verdict() {
            Some(Ok(peer)) => peer,
            Some(Err(refusal)) => return Err(HandshakeError::Refused(refusal)),
            None => return Err(HandshakeError::Tls("the peer showed no certificate".to_owned())),
        };
        // rustls gives its keys when it has nothing left to say by them.
        drain(tls, &mut self.out);
        let Stage::Handshake(tls) = core::mem::replace(&mut self.stage, Stage::Over) else { return Ok(()) };
        self.stage = if mode == Transport::Auth {
            let keys = Zeroizing::new([0; KEYS_LEN]);
            Stage::Clear(tls.export_keying_material(keys, EXPORTER_LABEL, None).map_err(failed)?)
        } else {
            let records = Records::new(tls.dangerous_extract_secrets().map_err(failed)?);
            let unknown = || HandshakeError::Tls("a cipher that was not offered".to_owned());
            Stage::Open(records.ok_or_else(unknown)?)
        };
        self.proven = Some(Proven { peer, mode });
        Ok(())
    }

    /// Makes records of these bytes, one part after the other, in `into`, which is as long as [`sealed_len`] says. They are
    /// to be sent next, behind [`TlsCore::take_output`]. False, and nothing is done: the peer is not proven, or only for
    /// `auth`; the connection has failed, or its keys are not good for so many records ([`RECORDS_MAX`]), so that it has to
    /// end.
    ///
    /// # Panics
    /// When `into` is of another length: a caller's bug.
    #[must_use]
    pub fn seal(&mut self, parts: &[&[u8]], into: &mut [u8]) -> bool {
        match &mut self.stage {
            Stage::Open(records) if self.failed.is_none() => records.seal(parts, into),
            _ => false,
        }
    }

    /// [`TlsCore::seal`] into what [`TlsCore::take_output`] gives next.
    pub fn send(&mut self, parts: &[&[u8]]) {
        let mut sealed = vec![0; sealed_len(parts.iter().map(|part| part.len()).sum())];
        if self.seal(parts, &mut sealed) {
            self.out.append(&mut sealed);
        }
    }

    /// Appends what is to be sent to the peer: flights, records, alerts.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
        if let Stage::Handshake(tls) = &mut self.stage {
            drain(tls, out);
        }
    }

    /// Under `auth`, proven: what seals and judges the frames.
    #[must_use]
    pub fn frame_mac(&self) -> Option<FrameMac> {
        let Stage::Clear(keys) = &self.stage else { return None };
        Some(FrameMac::new(keys, self.caller))
    }
}

/// Some of a record to rustls; how much. `bytes` is not empty: it would take that for the end of the stream.
fn feed(tls: &mut Connection, judge: &Judge, mut bytes: &[u8]) -> Result<usize, HandshakeError> {
    let count = tls.read_tls(&mut bytes).map_err(|error| HandshakeError::Tls(error.to_string()))?;
    if count == 0 {
        return Err(HandshakeError::Tls("the peer closed the connection".to_owned()));
    }
    match tls.process_new_packets() {
        Ok(_) => Ok(count),
        Err(error) => Err(match (&error, judge.verdict()) {
            (Error::InvalidCertificate(_), Some(Err(refusal))) => HandshakeError::Refused(refusal),
            _ => HandshakeError::Tls(error.to_string()),
        }),
    }
}

/// Appends all that rustls has to send.
fn drain(tls: &mut Connection, out: &mut Vec<u8>) {
    while tls.wants_write() {
        let Ok(1..) = tls.write_tls(out) else { break };
    }
}

/// A piece that is received into a buffer of its own.
#[derive(Debug)]
struct Fill {
    buf: IoBuf,
    filled: usize,
}

/// The record that was opened last: its plaintext not yet read, at the beginning of the stream's bytes, and how much of
/// the record is behind it.
#[derive(Debug, Default)]
struct Opened {
    plain: usize,
    tail: usize,
}

impl Opened {
    fn new(stream: &mut ByteStream, received: &Received) -> Opened {
        let Received { taken, plain } = received;
        stream.consume(plain.start);
        let mut opened = Opened { plain: plain.len(), tail: taken - plain.end };
        opened.read(stream, &mut []);
        opened
    }

    /// As much of the plaintext as there is room for.
    fn read(&mut self, stream: &mut ByteStream, into: &mut [u8]) -> usize {
        let count = into.len().min(self.plain);
        into[..count].copy_from_slice(&stream.bytes()[..count]);
        stream.consume(count);
        self.plain -= count;
        if self.plain == 0 {
            stream.consume(core::mem::take(&mut self.tail));
        }
        count
    }
}

/// A [`ByteStream`] under TLS. The same surface, but for [`TlsStream::prepare`]: records are opened in the stream's receive
/// buffer when bytes are asked for, and those of a fill go from there straight to it.
#[derive(Debug)]
pub struct TlsStream {
    stream: ByteStream,
    core: TlsCore,
    opened: Opened,
    /// What lies between `start` and `end` was read, to be looked at in one piece: heads of frames.
    plain: IoBuf,
    start: usize,
    end: usize,
    fill: Option<Fill>,
    queue: VecDeque<Part>,
    queued: usize,
    send_bytes: usize,
    fault: Option<HandshakeError>,
}

impl TlsStream {
    /// The caller's end of a connected stream. `send_bytes` as in [`crate::stream::StreamConfig`].
    pub fn client(
        stream: ByteStream,
        configs: &TlsConfigs,
        send_bytes: usize,
    ) -> Result<TlsStream, HandshakeError> {
        Ok(TlsStream::over(stream, TlsCore::client(configs)?, send_bytes))
    }

    /// The acceptor's end of an accepted stream.
    pub fn server(
        stream: ByteStream,
        configs: &TlsConfigs,
        send_bytes: usize,
    ) -> Result<TlsStream, HandshakeError> {
        Ok(TlsStream::over(stream, TlsCore::server(configs)?, send_bytes))
    }

    fn over(stream: ByteStream, core: TlsCore, send_bytes: usize) -> TlsStream {
        let most = RECORD_HEADER + RECORD_MAX;
        assert!(stream.capacity() >= most, "a record may have {most} bytes");
        TlsStream {
            stream,
            core,
            opened: Opened::default(),
            plain: IoBuf::scratch(PLAIN_BYTES),
            start: 0,
            end: 0,
            fill: None,
            queue: VecDeque::new(),
            queued: 0,
            send_bytes,
            fault: None,
        }
    }

    /// The peer, once it is proven; the error that ended the connection, then or later. The stream ends by itself when the
    /// alert that tells the peer is sent: who won't wait for that closes it.
    pub fn poll_handshake(&self) -> Result<Option<&Proven>, HandshakeError> {
        match &self.fault {
            Some(fault) => Err(fault.clone()),
            None => Ok(self.core.proven()),
        }
    }

    /// True once the peer is proven, also after a later error.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.core.proven().is_some()
    }

    /// True when the connection's keys have had half of the records they are good for: another one should follow.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.core.is_worn()
    }

    /// Under `auth`, proven: the stream, whose next byte is the peer's first clear one, and what its frames are sealed and
    /// judged by. What TLS still had to send is queued in it.
    ///
    /// # Panics
    /// In another mode, before the proof, and when something was queued: a caller's bug.
    #[must_use]
    pub fn into_auth(mut self) -> (ByteStream, FrameMac) {
        let mac = self.core.frame_mac().expect("only a proven stream of mode Auth goes clear");
        assert!(self.queue.is_empty(), "queued before the stream went clear");
        self.flush();
        (self.stream, mac)
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Fd {
        self.stream.socket()
    }

    /// True if a driver's completion with this token is for this stream.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        self.stream.owns(token)
    }

    /// Why the stream ended, if it has. What had arrived can still be read.
    #[must_use]
    pub fn ended(&self) -> Option<StreamEnd> {
        self.stream.ended()
    }

    /// True when the stream has ended and the driver has given everything back.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.stream.is_finished()
    }

    /// Bytes queued and not yet taken by the kernel: plaintext, and ciphertext on its way.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued + self.stream.queued()
    }

    /// True when less than half of the queue's limit is used: go on after [`Pressure::Stop`].
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.queued() < self.send_bytes / 2
    }

    /// Reads until [`TlsStream::bytes`] has `len` bytes (at most [`PLAIN_BYTES`]), as far as they have arrived.
    pub fn prepare(&mut self, len: usize) {
        let len = len.min(PLAIN_BYTES);
        if self.plain.len() - self.start < len || self.start == self.end {
            self.plain.bytes_mut().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // No further: what follows a head goes to its fill.
        let until = self.start + len;
        while self.fill.is_none() && self.end < until && self.more() {
            self.end += self.opened.read(&mut self.stream, &mut self.plain.bytes_mut()[self.end..until]);
        }
    }

    /// What was prepared and not yet consumed; empty while a fill is under way.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        if self.fill.is_some() { &[] } else { &self.plain.bytes()[self.start..self.end] }
    }

    /// Done with the first `count` of [`TlsStream::bytes`]. Panics when there are fewer: a caller's bug.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.bytes().len(), "consume {count} of {}", self.bytes().len());
        self.start += count;
    }

    /// Wants the next `len` bytes in an aligned buffer of their own, told by [`TlsStream::poll_filled`].
    pub fn begin_fill(&mut self, len: usize) {
        assert!(self.fill.is_none(), "a second fill while {:?}", self.fill);
        let mut buf = IoBuf::scratch(len);
        let count = len.min(self.end - self.start);
        buf.bytes_mut()[..count].copy_from_slice(&self.plain.bytes()[self.start..self.start + count]);
        self.start += count;
        self.fill = Some(Fill { buf, filled: count });
    }

    /// The filled buffer, once it is.
    pub fn poll_filled(&mut self) -> Option<IoBuf> {
        self.fill_more();
        Some(self.fill.take_if(|fill| fill.filled == fill.buf.len())?.buf)
    }

    fn fill_more(&mut self) {
        while self.fill.as_ref().is_some_and(|fill| fill.filled < fill.buf.len()) && self.more() {
            let Some(fill) = &mut self.fill else { return };
            let room = &mut fill.buf.bytes_mut()[fill.filled..];
            fill.filled += self.opened.read(&mut self.stream, room);
        }
    }

    /// Sees to it that there is plaintext to read; false if none has arrived.
    fn more(&mut self) -> bool {
        while self.opened.plain == 0 {
            if !self.take_record() {
                return false;
            }
        }
        true
    }

    /// False when no whole record is there, or a wrong one.
    fn take_record(&mut self) -> bool {
        match self.core.receive(self.stream.bytes_mut()) {
            Ok(received) => {
                self.opened = Opened::new(&mut self.stream, &received);
                received.taken > 0
            }
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    fn fail(&mut self, error: HandshakeError) {
        if self.fault.is_none() {
            self.fault = Some(error);
            self.queue.clear();
            self.queued = 0;
            self.stream.pause(true);
            self.flush();
        }
        if self.stream.queued() == 0 {
            self.stream.close();
        }
    }

    /// Stops receiving (a receive in flight may still end), or goes on: back-pressure towards the peer.
    pub fn pause(&mut self, paused: bool) {
        self.stream.pause(paused || self.fault.is_some());
    }

    /// Queues bytes to be encrypted and sent. They wait until the peer is proven.
    pub fn queue(&mut self, part: Part) -> Pressure {
        if self.ended().is_none() && self.fault.is_none() && !part.is_empty() {
            self.queued += part.len();
            self.queue.push_back(part);
        }
        if self.queued() < self.send_bytes { Pressure::Go } else { Pressure::Stop }
    }

    /// Ends the stream from our side at once; what is queued is dropped. The ops in flight end soon.
    pub fn close(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.stream.close();
    }

    /// A driver's op of this stream has ended.
    pub fn handle_completion(&mut self, completion: Completion) {
        self.stream.handle_completion(completion);
        if let Some(fault) = self.fault.clone() {
            self.fail(fault);
        }
        while self.core.proven().is_none() && self.fault.is_none() && self.take_record() {}
    }

    /// Hands what TLS has to say to the stream, and the next batch of the queue when nothing is on its way.
    fn flush(&mut self) {
        let is_idle = self.stream.queued() == 0;
        let mut out = Vec::new();
        self.core.take_output(&mut out);
        if !out.is_empty() {
            // The limit is on the queue here.
            let _ = self.stream.queue(Part::Bytes(out));
        }
        let open = self.core.proven().is_some_and(|proven| proven.mode == Transport::Tls);
        if open && is_idle && self.fault.is_none() && !self.queue.is_empty() {
            self.seal_batch();
        }
    }

    fn seal_batch(&mut self) {
        let mut bytes = 0;
        let fits = |part: &&Part| {
            let first = bytes == 0;
            bytes += part.len();
            first || bytes <= BATCH_BYTES
        };
        let parts: Vec<&[u8]> =
            self.queue.iter().take(BATCH_PARTS).take_while(fits).map(Part::bytes).collect();
        let plain = parts.iter().map(|part| part.len()).sum();
        let mut sealed = IoBuf::scratch(sealed_len(plain));
        if self.core.seal(&parts, sealed.bytes_mut()) {
            let count = parts.len();
            self.queue.drain(..count);
            self.queued -= plain;
            let _ = self.stream.queue(Part::Buf(sealed));
        } else {
            // Its keys are worn out, and nobody has made the connection that was to follow. That is nobody's fault.
            self.close();
        }
    }

    /// The next op for the driver. Read [`TlsStream::bytes`] first.
    pub fn poll_op(&mut self) -> Option<(u64, Op)> {
        self.flush();
        // The receive buffer is away while it is received into: not while there is a record in it that can be gone on with.
        let wanted = match self.core.proven() {
            None => true,
            Some(proven) => {
                proven.mode == Transport::Tls
                    && self.opened.plain == 0
                    && !records::is_judgeable(self.stream.bytes())
            }
        };
        let receive = if wanted { self.stream.poll_recv() } else { None };
        receive.or_else(|| self.stream.poll_send())
    }
}

#[cfg(test)]
mod tests;
