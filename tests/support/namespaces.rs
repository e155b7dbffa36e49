//! Networks of a test's own: kernel network namespaces that are known to nobody by name, and gone when nobody holds them.
//!
//! Each is kept by an open descriptor alone, so that nothing is left behind whatever becomes of the test. Needs root and
//! `ip` of iproute2, as CI has them. Threads and processes that are started within one stay in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::skipped;

/// One network.
pub(crate) struct Namespace {
    handle: File,
}

/// Whether networks can be made here; if not that is said, or a failure where they have to be.
pub(crate) fn can_be_made(test: &str) -> bool {
    if Command::new("ip").arg("-V").output().is_err() {
        skipped(test, "ip of iproute2 is not installed");
        return false;
    }
    let made = Namespace::new();
    if let Err(error) = &made {
        skipped(test, &format!("a network namespace of its own needs root: {error}"));
    }
    made.is_ok()
}

impl Namespace {
    /// A new one, with nothing in it but a loopback interface that is up.
    pub(crate) fn new() -> io::Result<Namespace> {
        let enter = || {
            // SAFETY: changes which network this thread sees, and nothing in memory.
            match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
                0 => File::open("/proc/thread-self/ns/net"),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let handle = std::thread::scope(|scope| scope.spawn(enter).join().unwrap())?;
        let made = Namespace { handle };
        made.ip(&["link", "set", "lo", "up"]);
        Ok(made)
    }

    /// Does `work` on a thread that is in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        match std::thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `ip` in it, which has to end well.
    pub(crate) fn ip(&self, args: &[&str]) {
        let ran = self.within(|| Command::new("ip").args(args).stdin(Stdio::null()).output().unwrap());
        assert!(ran.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    /// Lays a cable to `other`: interface `name` here with address `here`, and `up` there with address `there`.
    pub(crate) fn cable(&self, other: &Namespace, name: &str, here: &str, there: &str) {
        let to = format!("/proc/{}/fd/{}", std::process::id(), other.handle.as_raw_fd());
        self.ip(&["link", "add", "name", name, "type", "veth", "peer", "name", "up", "netns", &to]);
        for (at, interface, address) in [(self, name, here), (other, "up", there)] {
            at.ip(&["address", "add", address, "dev", interface]);
            at.ip(&["link", "set", "dev", interface, "up"]);
        }
    }
}
