//! The kernel's nbd devices, as generic netlink has them: made on a socket, given a new socket, taken away.
//!
//! Must always hold: what the kernel answers is parsed with distrust; no call waits for ever.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A device is made or taken away within it, or something is very wrong.
const PATIENCE: Duration = Duration::from_secs(20);

const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const SERVER_FLAGS: u16 = 5;
const CLIENT_FLAGS: u16 = 6;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const BACKEND: u16 = 10;
/// In SOCKETS, and in each of those.
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// The device goes when it is disconnected, and doesn't stay behind without a size.
const DESTROY_ON_DISCONNECT: u64 = 1;
/// Guests' sectors.
const BLOCK_BYTES: u64 = 512;
/// For how long requests wait for a new socket: trouble pauses a guest, it does not fail it. In seconds; a year.
const DEAD_CONN_SECONDS: u64 = 365 * 86_400;

const REQUEST_AND_ACK: u16 = 1 | 4;
const ERROR: u16 = 2;
/// Of a message, and of generic netlink's within.
const HEAD: usize = 16;
const GENERIC_HEAD: usize = 4;

/// What a device is made of.
#[derive(Clone, Debug)]
pub(crate) struct Made<'a> {
    /// In bytes.
    pub(crate) size: u64,
    /// NBD's transmission flags.
    pub(crate) flags: u16,
    /// Written into the device, and asked for at each new socket.
    pub(crate) backend: &'a str,
}

/// A device of that number; EBUSY: somebody has it.
pub(crate) fn connect(index: u32, made: &Made<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut body = Vec::new();
    attribute(&mut body, INDEX, &index.to_ne_bytes());
    attribute(&mut body, SIZE_BYTES, &made.size.to_ne_bytes());
    attribute(&mut body, BLOCK_SIZE_BYTES, &BLOCK_BYTES.to_ne_bytes());
    attribute(&mut body, SERVER_FLAGS, &u64::from(made.flags).to_ne_bytes());
    attribute(&mut body, CLIENT_FLAGS, &DESTROY_ON_DISCONNECT.to_ne_bytes());
    attribute(&mut body, DEAD_CONN_TIMEOUT, &DEAD_CONN_SECONDS.to_ne_bytes());
    attribute(&mut body, BACKEND, &text(made.backend));
    attribute(&mut body, SOCKETS, &socket_of(socket));
    ask(CONNECT, &body)
}

/// A new socket in the place of one that is dead; where none is, nothing happens, and the socket is not kept.
pub(crate) fn reconfigure(index: u32, backend: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut body = Vec::new();
    attribute(&mut body, INDEX, &index.to_ne_bytes());
    attribute(&mut body, BACKEND, &text(backend));
    attribute(&mut body, SOCKETS, &socket_of(socket));
    ask(RECONFIGURE, &body)
}

/// No device of that number any more; what waits for an answer fails.
pub(crate) fn disconnect(index: u32) -> io::Result<()> {
    let mut body = Vec::new();
    attribute(&mut body, INDEX, &index.to_ne_bytes());
    match ask(DISCONNECT, &body) {
        // It is none already.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// Whether the kernel knows of such devices.
pub(crate) fn is_there() -> io::Result<bool> {
    Ok(family(&open()?)?.is_some())
}

fn socket_of(socket: BorrowedFd<'_>) -> Vec<u8> {
    let (mut item, mut all) = (Vec::new(), Vec::new());
    attribute(&mut item, SOCK_FD, &socket.as_raw_fd().to_ne_bytes());
    attribute(&mut all, SOCK_ITEM, &item);
    all
}

fn text(of: &str) -> Vec<u8> {
    [of.as_bytes(), &[0]].concat()
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).expect("a short attribute");
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn message(kind: u16, command: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEAD + GENERIC_HEAD + body.len()).expect("a short message");
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(REQUEST_AND_ACK.to_ne_bytes());
    // Number and sender: one question a socket, and the kernel fills in the rest.
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(body);
    bytes
}

fn open() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(GENERIC),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

fn ask(command: u8, body: &[u8]) -> io::Result<()> {
    let socket = open()?;
    let family = family(&socket)?.ok_or_else(|| io::Error::from(rustix::io::Errno::NODEV))?;
    told(&socket, &message(family, command, body)).map(drop)
}

fn family(socket: &OwnedFd) -> io::Result<Option<u16>> {
    let mut body = Vec::new();
    attribute(&mut body, FAMILY_NAME, b"nbd\0");
    match told(socket, &message(CONTROL, GET_FAMILY, &body)) {
        Ok(attributes) => Ok(find_u16(&attributes, FAMILY_ID)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The attributes of what the kernel answers, until it says that it is done.
fn told(socket: &OwnedFd, question: &[u8]) -> io::Result<Vec<u8>> {
    rustix::net::send(socket, question, SendFlags::empty())?;
    let mut attributes = Vec::new();
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let (len, _) = rustix::net::recv(socket, bytes.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &bytes[..len];
        while let Some((kind, body, later)) = split(rest) {
            rest = later;
            if kind == ERROR {
                let error = body.first_chunk().map_or(-1, |number| i32::from_ne_bytes(*number));
                return match error {
                    0 => Ok(attributes),
                    number => Err(io::Error::from_raw_os_error(number.saturating_neg())),
                };
            }
            attributes.extend(body.get(GENERIC_HEAD..).unwrap_or_default());
        }
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The first message: its kind, what is in it, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEAD..len)?;
    Some((kind, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn find_u16(attributes: &[u8], wanted: u16) -> Option<u16> {
    let mut rest = attributes;
    loop {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..len)?;
        if kind == wanted {
            return value.first_chunk().map(|number| u16::from_ne_bytes(*number));
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut body = Vec::new();
        attribute(&mut body, FAMILY_NAME, b"nbd\0\0");
        attribute(&mut body, FAMILY_ID, &0x1234u16.to_ne_bytes());
        assert_eq!(body.len(), 12 + 8);
        assert_eq!(find_u16(&body, FAMILY_ID), Some(0x1234));
        assert_eq!(find_u16(&body, 77), None);
        for cut in 0..body.len() {
            // Whatever is missing, nothing is made up.
            assert!(find_u16(&body[..cut], FAMILY_ID).is_none_or(|id| id == 0x1234));
        }
    }

    #[test]
    fn messages_are_split_by_their_lengths_alone() {
        let one = message(CONTROL, GET_FAMILY, &[1, 2, 3, 4]);
        let two = [one.clone(), one.clone()].concat();
        let (kind, body, rest) = split(&two).expect("a message");
        assert_eq!((kind, body.len(), rest), (CONTROL, 8, one.as_slice()));
        assert!(split(&one[..HEAD - 1]).is_none());
        let mut long = one.clone();
        long[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(split(&long).is_none());
        let mut short = one;
        short[..4].copy_from_slice(&1u32.to_ne_bytes());
        assert!(split(&short).is_none());
    }

    #[test]
    fn a_kernel_says_whether_it_has_such_devices() {
        // Which of both is the machine's: that it is answered is what is shown.
        is_there().expect("answered");
    }
}
