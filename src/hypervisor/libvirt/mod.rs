//! The driver for libvirt: `virsh` as a process, XML in and out.
//!
//! ```text
//! definition of the protected site -> platform: what runs here -> fit: disks, networks, identities -> virsh define
//! virsh event -> watch: guests that were started, stopped or halted
//! running guest -> copy: its disks move onto exports, and back
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `xml` | a tree that keeps what it does not know |
//! | `definition`, `platform`, `cpu`, `fit`, `export` | what definitions mean, and how one is made to fit; pure |
//! | `virsh` | one call: bounds, errors |
//! | `driver` | what Freshet asks of a hypervisor |
//! | `take_in`, `copy` | VMs that are there already: their disks onto exports and back, off or running |
//! | `whereabouts` | where the disks of VMs are |
//! | `fresh` | the definition that travels, made anew of what is there now; pure |
//! | `watch`, `trouble` | what happens to VMs by other hands, and what is wrong with them |
//! | `reconnect` | QEMU's clients, told to connect again where libvirt cannot tell them |
//!
//! Invariants: no call touches the bytes of a disk, or removes one; a guest starts afresh, never from saved memory, since
//! its disks may have changed hands; a VM that is another's is never changed.

mod copy;
mod cpu;
mod definition;
mod driver;
mod export;
mod fit;
mod fresh;
mod platform;
mod reconnect;
mod take_in;
mod trouble;
mod virsh;
mod watch;
mod whereabouts;
mod xml;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::restarts::Restarts;
use crate::error::{Error, ErrorKind, Result};
pub use definition::LIBVIRT_XML;
use virsh::Virsh;

/// Longest URI.
const MAX_URI: usize = 4096;

/// Which libvirt, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtSettings {
    /// Its URI, such as `qemu:///system`.
    pub uri: String,
    /// Time after which a call is ended; 1 s to 1 h.
    pub limit: Duration,
    /// Time between two looks whether a guest is off; 10 ms to 1 min.
    pub poll: Duration,
    /// Directory of the sockets of this appliance's exports: VMs without a disk on one of these are left alone.
    pub exports: PathBuf,
    /// Directory of the disks that hand addresses to guests, which QEMU's user must be let into.
    pub seeds: PathBuf,
}

/// A hypervisor that libvirt drives. See the module.
#[derive(Debug, Clone)]
pub struct LibvirtDriver {
    virsh: Virsh,
    /// Clients are replaced by one at a time: by whoever starts a guest, or by whoever sees it started.
    replacing: Arc<Mutex<()>>,
    /// The last look at all VMs.
    seen: Arc<Mutex<trouble::Seen>>,
    /// Guests that start anew by themselves.
    restarts: Arc<std::sync::Mutex<Restarts>>,
}

impl LibvirtDriver {
    /// A driver with these settings. Nothing is run yet.
    ///
    /// # Errors
    /// `Invalid` where a setting is out of its bounds.
    pub fn new(settings: LibvirtSettings) -> Result<LibvirtDriver> {
        let bad = |why: String| Err(Error::new(ErrorKind::Invalid, format!("hypervisor libvirt: {why}")));
        let uri = &settings.uri;
        if uri.is_empty() || uri.len() > MAX_URI || uri.starts_with('-') || uri.chars().any(char::is_control) {
            return bad("uri must be one of libvirt's, such as qemu:///system".to_owned());
        }
        let within = |time: Duration, least: Duration, most: Duration| (least..=most).contains(&time);
        if !within(settings.limit, Duration::from_secs(1), Duration::from_secs(3600)) {
            return bad(format!("limit is {:?}, must be 1 s to 1 h", settings.limit));
        }
        if !within(settings.poll, Duration::from_millis(10), Duration::from_secs(60)) {
            return bad(format!("poll is {:?}, must be 10 ms to 1 min", settings.poll));
        }
        let virsh = Virsh { settings };
        Ok(LibvirtDriver { virsh, replacing: Arc::default(), seen: Arc::default(), restarts: Arc::default() })
    }

    /// Whether libvirt runs on this host: then its processes and bridges can be seen here.
    fn is_local(&self) -> bool {
        let uri = self.virsh.settings.uri.as_str();
        let host = uri.split_once("://").map_or("", |(_, rest)| rest);
        host.is_empty() || host.starts_with('/')
    }
}
