//! The members of a protected domain, and which of their VMs a point covers.
//!
//! Owns the list of protected disks. A VM is covered where the chain has all that was acknowledged on every one of its
//! disks: no region of them is unsynced. A VM with a disk in the catalogue that is not protected here is never covered.

use std::sync::{Arc, PoisonError, RwLock};

use super::disk::ProtectedDisk;
use super::recorder::Coverage;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Catalogue;
use crate::ids::{DiskId, VmId};

#[derive(Default)]
struct State {
    disks: Vec<Arc<ProtectedDisk>>,
    catalogue: Catalogue,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Members {
    state: RwLock<State>,
}

impl Members {
    /// The disks now.
    pub(crate) fn disks(&self) -> Vec<Arc<ProtectedDisk>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).disks.clone()
    }

    /// VMs and disks as the domain has them.
    pub(crate) fn catalogue(&self) -> Catalogue {
        self.state.read().unwrap_or_else(PoisonError::into_inner).catalogue.clone()
    }

    /// Takes other members and another catalogue at once.
    pub(crate) fn replace(&self, disks: Vec<Arc<ProtectedDisk>>, catalogue: Catalogue) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State { disks, catalogue };
    }

    /// The protected disk of this identity.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn disk(&self, id: DiskId) -> Result<Arc<ProtectedDisk>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let found = state.disks.iter().find(|d| d.index_disk().id == id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("disk {id} is not protected here")))
    }
}

impl Coverage for Members {
    fn covered(&self) -> Vec<VmId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let whole = |vm: &VmId| {
            let mut disks = state.catalogue.disks_of(*vm);
            disks.all(|disk| state.disks.iter().any(|member| member.index_disk().id == disk.id && member.is_synced()))
        };
        let vms = state.catalogue.vms.iter().map(|vm| vm.id);
        vms.filter(|vm| state.catalogue.disks_of(*vm).next().is_some() && whole(vm)).collect()
    }
}
