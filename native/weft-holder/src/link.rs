//! One connection to an export of weftd: its socket, and the right to be the only one.
//!
//! Must always hold: no connection is made to an export while an older one may still be read by weftd.

use std::io;
use std::path::Path;

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::OwnedMutexGuard;

use crate::wire::{Export, Wire, shake_hands};

/// Bytes that wait in a socket.
const SEND_BUFFER: usize = 1024 * 1024;

/// A connection on which requests may be sent.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: UnixStream,
    pub(crate) wire: Wire,
    /// As long as it is there no other connection to the export is made.
    turn: OwnedMutexGuard<()>,
}

/// Connects, and asks for the export by this name; refused where nothing of that name is.
pub(crate) async fn connect(
    path: &Path,
    name: &str,
    turn: OwnedMutexGuard<()>,
) -> Result<(Link, Export), (io::Error, OwnedMutexGuard<()>)> {
    let made = async {
        let mut stream = UnixStream::connect(path).await?;
        widen(&stream);
        let export = shake_hands(&mut stream, name).await?;
        io::Result::Ok((stream, export))
    };
    match made.await {
        Ok((stream, export)) => Ok((Link { stream, wire: Wire::default(), turn }, export)),
        Err(error) => Err((error, turn)),
    }
}

/// Lets more than the usual 208 KiB wait in a socket: then whoever sends much is woken less often.
pub(crate) fn widen(stream: &UnixStream) {
    // Without the right to it, as much as may be.
    if sockopt::set_socket_send_buffer_size_force(stream, SEND_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
    }
}

impl Link {
    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.wire.is_full() {
            let (slices, count) = self.wire.slices();
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.wire.sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Nothing more is asked here. It ends when weftd has read all that was sent and closed its side, so that nothing of it
    /// can overtake what is sent on the next connection.
    pub(crate) async fn retire(mut self) {
        if self.stream.shutdown().await.is_ok() {
            let mut rest = vec![0; 16 * 1024];
            while matches!(self.stream.read(&mut rest).await, Ok(1..)) {}
        }
        drop(self.turn);
    }
}
