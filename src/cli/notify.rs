//! systemd, told that an appliance serves: one datagram to the socket that a unit of `Type=notify` is given.
//!
//! It is a courtesy: where there is no such socket nothing is done, and where it does not take the word that is logged.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Variable with the socket, see sd_notify(3).
pub(super) const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// Says that the appliance serves, to whoever is in [`SOCKET_VARIABLE`].
pub(super) fn ready() {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE).filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = tell(&socket, b"READY=1") {
        tracing::warn!("systemd is not told that it serves, at {}: {error}", socket.display());
    }
}

fn tell(socket: &OsStr, word: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    // Whoever takes it does so at once; it must not hold the appliance up where nobody does.
    from.set_nonblocking(true)?;
    from.send_to_addr(word, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_comes_at_a_path_and_at_a_name_without_one_and_nobody_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("freshet-{}", uuid::Uuid::new_v4());
        let named = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let placed = UnixDatagram::bind(&path).unwrap();
        for (socket, address) in [(&placed, path.clone().into_os_string()), (&named, format!("@{name}").into())] {
            tell(&address, b"READY=1").unwrap();
            let mut word = [0; 16];
            let len = socket.recv(&mut word).unwrap();
            assert_eq!(&word[..len], b"READY=1");
        }
        assert!(tell(dir.path().join("nobody").as_os_str(), b"x").is_err());
        assert!(tell(OsStr::new(&format!("/{}", "x".repeat(300))), b"x").is_err(), "too long for an address");
    }
}
