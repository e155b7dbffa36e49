//! The socket itself: its place, its making, and who is heard on it.
//!
//! A socket is made under another name, closed to others, and then renamed, so that the name never shows one that is open to
//! everybody, and takes the place of what a killed process left. The caller holds the lock of the state directory, so
//! nobody listens on what is replaced.

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Longest path that an address of a Unix socket holds, without its end.
const MOST_PATH: usize = 107;

/// The control socket of the domain whose state directory is `dir`.
pub fn control_path(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// A listening socket; its name goes with it, unless another one has taken it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    id: (u64, u64),
}

impl Socket {
    /// Listens at `path`, for its owner only.
    pub(super) fn bind(path: &Path) -> Result<Socket> {
        let doing = || format!("listen at {}", path.display());
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(doing(), e)),
            _ => {}
        }
        let address = Address::of(&temporary)?;
        let listener = UnixListener::bind(address.path()).io_context(doing)?;
        std::fs::set_permissions(&temporary, Permissions::from_mode(0o600)).io_context(doing)?;
        let meta = std::fs::metadata(&temporary).io_context(doing)?;
        std::fs::rename(&temporary, path).io_context(doing)?;
        Ok(Socket { listener, path: path.to_owned(), id: (meta.dev(), meta.ino()) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let named = std::fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if named.is_ok_and(|named| named == self.id) {
            // What stays is replaced by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A path of a socket, by way of its directory where it is too long for an address.
struct Address {
    path: PathBuf,
    _dir: Option<File>,
}

impl Address {
    fn of(path: &Path) -> Result<Address> {
        if path.as_os_str().len() <= MOST_PATH {
            return Ok(Address { path: path.to_owned(), _dir: None });
        }
        let doing = || format!("open the directory of {}", path.display());
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(ErrorKind::Invalid, format!("{}: not a path of a socket", path.display())));
        };
        let dir = File::open(dir).io_context(doing)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Address { path, _dir: Some(dir) })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// `NotFound` where nobody listens.
pub(super) async fn connect(path: &Path) -> Result<UnixStream> {
    use std::io::ErrorKind as Io;
    let address = Address::of(path)?;
    match UnixStream::connect(address.path()).await {
        Ok(stream) => Ok(stream),
        Err(e) if matches!(e.kind(), Io::NotFound | Io::ConnectionRefused) => {
            let why = format!("no protection runs here: nobody listens at {}", path.display());
            Err(Error::with_source(ErrorKind::NotFound, why, e))
        }
        Err(e) => Err(Error::io(format!("connect to {}", path.display()), e)),
    }
}

/// Whether the process at the other end may control this one: root may, and the user that this one runs as.
///
/// # Errors
/// `Denied`, naming the user; `Io`.
pub(super) fn check_peer(stream: &UnixStream) -> Result<()> {
    let peer = stream.peer_cred().io_context(|| "ask who is at the control socket")?.uid();
    match peer == 0 || peer == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Denied, format!("user {peer} may not control this protection"))),
    }
}
