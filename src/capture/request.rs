//! What a replication is asked to do: whose disks, how, within which limits.
//!
//! Plain data with one validation step; no I/O.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::datastore::EngineKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VmShape;
use crate::ids::Name;

/// Smallest memory budget in bytes.
pub const MIN_MEMORY: u64 = 96 << 20;
/// Memory budget unless told otherwise, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// Bytes of segments after which a new manifest is cut, unless told otherwise.
pub const DEFAULT_MANIFEST_EVERY: u64 = 64 << 20;
/// Stored bytes at which a segment is cut, unless told otherwise.
pub const DEFAULT_SEGMENT_BYTES: u64 = 16 << 20;
/// zstd level unless told otherwise: on file system data level 1 packs nearly as well as higher ones, several times
/// faster.
pub const DEFAULT_LEVEL: i32 = 1;

/// A VM and its disks.
#[derive(Debug, Clone)]
pub struct VmSource {
    /// Its name, unique in the domain; the VM of that name is replicated further, or joins.
    pub name: Name,
    /// Its disks, at least one.
    pub disks: Vec<DiskSource>,
    /// Its definition; where there is none, the one in the domain's catalogue stays.
    pub definition: Option<VmDefinition>,
}

/// A disk and the image that holds it.
#[derive(Debug, Clone)]
pub struct DiskSource {
    /// Its name, unique in the VM.
    pub name: Name,
    /// A raw image file or a block device; symbolic links are followed.
    pub path: PathBuf,
    /// Bytes that it must have; `None` for as many as it has.
    pub size: Option<u64>,
}

/// What a VM is made of besides its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDefinition {
    /// What `text` is written in, such as `libvirt-xml`.
    pub kind: String,
    /// As its hypervisor wrote it.
    pub text: String,
    /// The normal form.
    pub shape: VmShape,
}

/// What to replicate, and how.
#[derive(Debug, Clone)]
pub struct ReplicateRequest {
    /// Domain; made where there is none of that name.
    pub domain: Name,
    /// Name of this site, which owns the domain or takes it over.
    pub site: Name,
    /// VMs whose disks are read; all of them become one point.
    pub vms: Vec<VmSource>,
    /// Take the domain over from the site that owns it.
    pub take_ownership: bool,
    /// Read images that are open for writing elsewhere, or changed while they were read; the point is marked fuzzy.
    pub allow_fuzzy: bool,
    /// Accept an image that is smaller than it was at the last point: what lay past its end is dropped.
    pub allow_shrink: bool,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Threads that compare and compress; 0 is one for each processor. Fewer run where the memory budget says so.
    pub workers: usize,
    /// Budget in bytes for all buffers.
    pub memory: u64,
    /// Bytes of segments after which a new manifest is cut; 0 is at every point.
    pub manifest_every: u64,
    /// Stored bytes at which a segment is cut, 64 KiB to 64 MiB.
    pub segment_bytes: u64,
    /// Disk engine.
    pub engine: EngineKind,
    /// Where the times of points come from. It may jump: points stay in order.
    pub clock: Arc<dyn Clock>,
}

impl ReplicateRequest {
    /// A request with default settings.
    pub fn new(domain: Name, site: Name, vms: Vec<VmSource>) -> ReplicateRequest {
        ReplicateRequest {
            domain,
            site,
            vms,
            take_ownership: false,
            allow_fuzzy: false,
            allow_shrink: false,
            level: DEFAULT_LEVEL,
            workers: 0,
            memory: DEFAULT_MEMORY,
            manifest_every: DEFAULT_MANIFEST_EVERY,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            engine: EngineKind::Auto,
            clock: Arc::new(SystemClock),
        }
    }

    /// Checks the settings against their bounds, and that no VM or disk is named twice.
    ///
    /// # Errors
    /// `Invalid`, naming the first thing that is wrong.
    pub fn validate(&self) -> Result<()> {
        let bounds = [
            ("zstd level", i64::from(self.level), 1, 19),
            ("memory budget in bytes", clamp(self.memory), clamp(MIN_MEMORY), i64::MAX),
            ("segment length in bytes", clamp(self.segment_bytes), 64 << 10, 64 << 20),
            ("number of workers", clamp(self.workers as u64), 0, 1024),
            ("number of VMs", clamp(self.vms.len() as u64), 1, 100_000),
        ];
        for (what, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                let most = if most == i64::MAX { String::new() } else { format!(" and at most {most}") };
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{what} is {value}, must be at least {least}{most}"),
                ));
            }
        }
        for (i, vm) in self.vms.iter().enumerate() {
            if vm.disks.is_empty() {
                return Err(Error::new(ErrorKind::Invalid, format!("VM {} has no disk: name at least one", vm.name)));
            }
            if self.vms[..i].iter().any(|other| other.name == vm.name) {
                return Err(Error::new(ErrorKind::Invalid, format!("VM {} is named twice", vm.name)));
            }
            for (j, disk) in vm.disks.iter().enumerate() {
                if vm.disks[..j].iter().any(|other| other.name == disk.name) {
                    let why = format!("disk {} of VM {} is named twice", disk.name, vm.name);
                    return Err(Error::new(ErrorKind::Invalid, why));
                }
            }
        }
        Ok(())
    }
}

fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{name, vm};
    use super::*;

    fn check(vms: Vec<VmSource>, change: impl FnOnce(&mut ReplicateRequest)) -> String {
        let mut request = ReplicateRequest::new(name("d"), name("here"), vms);
        change(&mut request);
        request.validate().err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn settings_out_of_bounds_and_doubles_are_named() {
        let good = || vec![vm("a", &["root", "data"]), vm("b", &["root"])];
        assert_eq!(check(good(), |_| ()), "");
        assert!(check(good(), |r| r.memory = 1 << 20).contains("memory budget"));
        assert!(check(good(), |r| r.level = 0).contains("level is 0"));
        assert!(check(good(), |r| r.level = 20).contains("at most 19"));
        assert!(check(good(), |r| r.segment_bytes = 1).contains("segment length"));
        assert!(check(vec![], |_| ()).contains("number of VMs"));
        assert!(check(vec![vm("a", &[])], |_| ()).contains("VM a has no disk"));
        assert!(check(vec![vm("a", &["x"]), vm("a", &["y"])], |_| ()).contains("VM a is named twice"));
        assert!(check(vec![vm("a", &["x", "x"])], |_| ()).contains("disk x of VM a is named twice"));
    }
}
