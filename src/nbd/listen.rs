//! Where clients connect: Unix sockets and TCP ports.
//!
//! Owns the listening sockets and the files of the Unix ones. A Unix socket belongs to its owner alone from its first
//! moment (0600). The file of a server that died is taken over; one behind which somebody listens never is, nor
//! anything that is no socket. Starters of one directory take turns by a lock on it, so that none removes what another
//! has just made.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::datastore::take_lock;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// `host:port`; port 0 is any that is free.
    Tcp(String),
}

impl std::str::FromStr for Listen {
    type Err = String;

    /// Reads `unix:/path` or `tcp:host:port`.
    fn from_str(text: &str) -> Result<Listen, String> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Listen::Unix(path.into())),
            Some(("tcp", address))
                if address
                    .rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) =>
            {
                Ok(Listen::Tcp(address.to_owned()))
            }
            _ => Err("expected unix:/path or tcp:host:port, such as tcp:127.0.0.1:10809".to_owned()),
        }
    }
}

/// Where a server listens in fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl Address {
    /// The URI by which clients such as `nbdinfo` and `qemu-img` find an export; `tls` where they use TLS.
    pub fn uri(&self, export: &str, tls: bool) -> String {
        let s = if tls { "s" } else { "" };
        let name = escape(export.as_bytes());
        match self {
            Address::Unix(path) => {
                use std::os::unix::ffi::OsStrExt;
                format!("nbd{s}+unix:///{name}?socket={}", escape(path.as_os_str().as_bytes()))
            }
            Address::Tcp(address) => format!("nbd{s}://{address}/{name}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

fn escape(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(byte);
    bytes.iter().map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Socket {
    /// Listens.
    ///
    /// # Errors
    /// `Refused` where somebody else does, or the path is taken by something that is no socket; `Invalid` for an
    /// address that cannot be; `NotFound`, `Denied`, `Io`.
    pub(crate) fn open(listen: &Listen) -> Result<Socket> {
        let socket = match listen {
            Listen::Tcp(address) => {
                let bound = TcpListener::bind(address.as_str()).map_err(|e| match e.kind() {
                    io::ErrorKind::AddrInUse => {
                        Error::with_source(ErrorKind::Refused, format!("listen on tcp:{address}"), e)
                    }
                    io::ErrorKind::InvalidInput => {
                        Error::with_source(ErrorKind::Invalid, format!("listen on tcp:{address}"), e)
                    }
                    _ => Error::io(format!("listen on tcp:{address}"), e),
                })?;
                bound.set_nonblocking(true).io_context(|| format!("listen on tcp:{address}"))?;
                Socket::Tcp(bound)
            }
            Listen::Unix(path) => {
                let (listener, file) =
                    listen_unix(path).map_err(|e| e.while_doing(format!("listen on unix:{}", path.display())))?;
                Socket::Unix(listener, file)
            }
        };
        Ok(socket)
    }

    /// Where it listens in fact.
    pub(super) fn address(&self) -> Result<Address> {
        match self {
            Socket::Tcp(listener) => Ok(Address::Tcp(listener.local_addr().io_context(|| "ask for the TCP port")?)),
            Socket::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }
}

/// The file of a Unix socket; removed on drop, if it is still the one that was made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && self.id == identity(&self.path) {
            // Left behind, it is taken over by the next server.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

fn listen_unix(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let dir = path.parent().ok_or_else(|| Error::new(ErrorKind::Invalid, "the path names no file"))?;
    let dir = File::open(dir).io_context(|| format!("open {}", dir.display()))?;
    // Waits for half a second, then goes on without: the lock only keeps starters apart that come at the same time.
    let _turn = take_lock(dir, FlockOperation::NonBlockingLockExclusive);
    remove_stale(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).io_context(|| "socket")?;
    // Before it has a name, so that there is no moment in which others can connect.
    rustix::fs::fchmod(&socket, 0o600.into()).io_context(|| "set the mode of the socket")?;
    let address = SocketAddrUnix::new(path).map_err(|e| {
        Error::with_source(ErrorKind::Invalid, "the path is too long for a socket (107 bytes)", io::Error::from(e))
    })?;
    rustix::net::bind(&socket, &address).io_context(|| "bind")?;
    let file = SocketFile { path: path.to_owned(), id: identity(path) };
    // Both before anybody can have connected.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .io_context(|| "set the mode of the socket")?;
    rustix::net::listen(socket.as_fd(), BACKLOG).io_context(|| "listen")?;
    Ok((UnixListener::from(socket), file))
}

/// Removes the socket of a server that is gone.
fn remove_stale(path: &Path) -> Result<()> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look for a socket of before", e)),
    };
    if !meta.file_type().is_socket() {
        return Err(Error::new(ErrorKind::Refused, "there is something at that path that is no socket"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {
            std::fs::remove_file(path).io_context(|| "remove the socket of a server that is gone")
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::with_source(ErrorKind::Refused, "whether somebody listens there is not known", e)),
        Ok(stream) => {
            tracing::debug!("descriptor {} reached a server", stream.as_raw_fd());
            Err(Error::new(ErrorKind::Refused, "another server listens there"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told_as_clients_take_them() {
        assert_eq!("unix:/run/x".parse(), Ok(Listen::Unix("/run/x".into())));
        assert_eq!("tcp:[::1]:10809".parse(), Ok(Listen::Tcp("[::1]:10809".to_owned())));
        for bad in ["", "/run/x", "unix:run/x", "tcp:10809", "tcp::10809", "tcp:host:99999", "udp:host:1"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
        let unix = Address::Unix("/run/a b".into());
        assert_eq!(unix.uri("vm 1/disk", false), "nbd+unix:///vm%201/disk?socket=/run/a%20b");
        let tcp = Address::Tcp("127.0.0.1:10809".parse().unwrap());
        assert_eq!(tcp.uri("d", true), "nbds://127.0.0.1:10809/d");
        assert_eq!((unix.to_string().as_str(), tcp.to_string().as_str()), ("unix:/run/a b", "tcp:127.0.0.1:10809"));
    }

    #[test]
    fn a_socket_is_for_its_owner_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = Socket::open(&Listen::Unix(path.clone())).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listen = Listen::Unix(path.clone());
        // Its file stays when a listener is closed without care, as by a kill.
        drop(UnixListener::bind(&path).unwrap());
        let first = Socket::open(&listen).unwrap();
        let refused = Socket::open(&listen).unwrap_err();
        assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("another server"), "{refused}");
        UnixStream::connect(&path).unwrap();
        // Another took its place meanwhile: that one stays.
        std::fs::remove_file(&path).unwrap();
        let second = Socket::open(&listen).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::open(&listen).unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_port_that_is_taken_is_refused() {
        let first = Socket::open(&Listen::Tcp("127.0.0.1:0".to_owned())).unwrap();
        let Address::Tcp(address) = first.address().unwrap() else { panic!("not TCP") };
        let refused = Socket::open(&Listen::Tcp(address.to_string())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
    }
}
