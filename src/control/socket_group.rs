//! Hypervisors that run under a user of their own, let at the sockets of their disks: a group may connect, nobody else.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Where groups are looked up.
const GROUPS: &str = "/etc/group";

/// The number of a group: its name in `/etc/group`, or the number itself.
///
/// # Errors
/// `Invalid` where there is none of that name.
pub(super) fn number_of(group: &str) -> Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let text = std::fs::read_to_string(GROUPS).io_context(|| GROUPS)?;
    let unknown = || Error::new(ErrorKind::Invalid, format!("protect.socket_group: {GROUPS} has no group {group:?}"));
    find(&text, group).ok_or_else(unknown)
}

fn find(text: &str, group: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Lets a group go through a directory, or connect to a socket.
///
/// # Errors
/// `Denied` where the process may not give it that group; what the file system says.
pub(super) fn admit(group: u32, path: &Path) -> Result<()> {
    let what = || format!("let group {group} at {}", path.display());
    let mode = if std::fs::metadata(path).io_context(what)?.is_dir() { 0o710 } else { 0o660 };
    std::os::unix::fs::chown(path, None, Some(group)).io_context(what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).io_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_and_let_in() {
        let text = "root:x:0:\nkvm:x:104:a,b\nbad\n:x:7:\n";
        assert_eq!((find(text, "kvm"), find(text, "bad"), find(text, "none")), (Some(104), None, None));
        assert_eq!(number_of("4711").unwrap(), 4711);
        assert_eq!(number_of("no such group").unwrap_err().kind(), ErrorKind::Invalid);
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getegid().as_raw();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, mode) in [(dir.path(), 0o710), (socket.as_path(), 0o660)] {
            admit(own, path).unwrap();
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert!(admit(own, &dir.path().join("none")).is_err());
    }
}
