//! Where the file of each disk stands: at a place of its own, or in the datastore.
//!
//! A disk stands at `<datastore>/<domain>/<vm>/<disk>.raw`, each name escaped, unless the request gives it another place.
//! Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, DiskInfo, VmInfo};
use crate::ids::Name;

use super::detached;
use super::request::RehydrateRequest;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// The domain's directory in the datastore.
    root: PathBuf,
    own: BTreeMap<(Name, Name), PathBuf>,
}

impl Places {
    /// As a request has them.
    pub(super) fn of_request(request: &RehydrateRequest) -> Places {
        let own = request.placements.iter().map(|p| ((p.vm.clone(), p.disk.clone()), p.path.clone())).collect();
        Places { root: request.datastore.join(request.domain.key()), own }
    }

    /// Where a disk stands.
    ///
    /// # Errors
    /// `Damaged` where the catalogue lacks its VM, as do the others.
    pub(super) fn of(&self, catalogue: &Catalogue, disk: &DiskInfo) -> Result<PathBuf> {
        let vm = vm_of(catalogue, disk)?;
        Ok(match self.own.get(&(vm.name.clone(), disk.name.clone())) {
            Some(own) => own.clone(),
            None => self.root.join(vm.name.key()).join(format!("{}.raw", disk.name.key())),
        })
    }

    /// Whether a disk has a place of its own.
    pub(super) fn has(&self, catalogue: &Catalogue, disk: &DiskInfo) -> Result<bool> {
        Ok(self.own.contains_key(&(vm_of(catalogue, disk)?.name.clone(), disk.name.clone())))
    }

    /// Where the copy of a disk is kept once it left the domain.
    pub(super) fn kept(&self, catalogue: &Catalogue, disk: &DiskInfo) -> Result<PathBuf> {
        Ok(detached::place(&self.root, &vm_of(catalogue, disk)?.name, &disk.name, disk.id))
    }

    /// Whether a file is in the datastore, and not the operator's own.
    pub(super) fn is_in_datastore(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
    }
}

fn vm_of<'c>(catalogue: &'c Catalogue, disk: &DiskInfo) -> Result<&'c VmInfo> {
    catalogue.vm(disk.vm).ok_or_else(|| {
        Error::new(ErrorKind::Damaged, format!("disk {} belongs to a VM that the catalogue lacks", disk.id))
    })
}
