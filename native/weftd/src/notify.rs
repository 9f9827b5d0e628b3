//! Tells systemd that the daemon serves (`sd_notify(3)`), so that what is ordered after it finds its sockets.
//!
//! Must always hold: a daemon that nobody waits for, or whose word can't be delivered, goes on all the same.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Once, when the control socket serves. `socket` is the value of `NOTIFY_SOCKET`; none: nobody waits.
pub fn ready(socket: Option<OsString>) {
    let Some(socket) = socket.filter(|name| !name.is_empty()) else { return };
    if let Err(error) = send(&socket, b"READY=1\n") {
        tracing::warn!(%error, "systemd could not be told that the daemon serves");
    }
}

/// A name that begins with `@` is an abstract one: systemd 219 has such.
fn send(socket: &OsStr, words: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(words, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both kinds of name that versions of systemd give; and nobody who listens is no reason to end.
    #[test]
    fn systemd_hears_that_the_daemon_serves() {
        let directory = std::env::temp_dir().join(format!("weftd-notify-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("notify");
        let abstract_name = format!("weftd-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{abstract_name}").into(), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ];
        for (name, listener) in listeners {
            ready(Some(name));
            let mut words = [0; 64];
            let length = listener.recv(&mut words).unwrap();
            assert_eq!(&words[..length], b"READY=1\n");
        }
        std::fs::remove_dir_all(&directory).unwrap();
        ready(Some(path.into_os_string()));
        ready(None);
    }
}
