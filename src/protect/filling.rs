//! Disks that a hypervisor is copying a running guest onto: what they hold is no moment of the guest yet.
//!
//! Cheap to clone; all clones are one list. Owns which disks these are, for as long as this process runs; who copies keeps
//! that durably. Invariant: no point covers a VM with a disk in the list.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::Name;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Filling {
    disks: Arc<Mutex<BTreeSet<(Name, Name)>>>,
}

impl Filling {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Name, Name)>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy onto a disk of a VM begins.
    pub fn begin(&self, vm: &Name, disk: &Name) {
        self.lock().insert((vm.clone(), disk.clone()));
    }

    /// All copies onto disks of a VM have ended.
    pub fn end(&self, vm: &Name) {
        self.lock().retain(|(of, _)| of != vm);
    }

    /// Whether a disk is in the list.
    pub(crate) fn has(&self, vm: &Name, disk: &Name) -> bool {
        self.lock().contains(&(vm.clone(), disk.clone()))
    }
}
