//! Copies of disks that left a domain while disks here followed it: where they are, and their end.
//!
//! They stand in the datastores of the domain: that of its recovery, and those that its disks here stand in. Nothing is
//! remembered of them; every look reads the directories. Invariant: one is deleted only by its identity, by an
//! administrator who says what it was called, and while no task works on the domain.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::access::Caller;
use super::appliance::Appliance;
use super::catalog::{self, Recovery};
use super::fault::{Done, Fault};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DiskId, Name};
use crate::rehydrate::{DetachedDisk, delete_detached, detached};

/// The datastore of a disk that stands where rehydrated disks of the domain do: see `rehydrate::places`.
fn datastore_of(disk: &Path, domain: &Name) -> Option<PathBuf> {
    let root = disk.parent()?.parent()?;
    (root.file_name()? == domain.key().as_str()).then(|| root.parent().map(Path::to_owned))?
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "looking for kept copies panicked", e))?
}

impl Appliance {
    /// Directories in which copies of a domain's disks may be kept.
    async fn datastores(&self, domain: &Name) -> Result<BTreeSet<PathBuf>> {
        let which = domain.clone();
        self.catalog
            .call(move |db| {
                let recovery = Recovery::find(db, &which)?;
                let mut all: BTreeSet<PathBuf> =
                    recovery.map(|recovery| recovery.plan.failover.datastore).into_iter().collect();
                for vm in catalog::protected(db, &which)? {
                    all.extend(vm.disks.iter().filter_map(|disk| datastore_of(&disk.path, &which)));
                }
                Ok(all)
            })
            .await
    }

    /// The kept copies of a domain's disks, each with its datastore, by what they were called.
    ///
    /// # Errors
    /// `Io` where a datastore cannot be read.
    pub(crate) async fn kept_copies(&self, domain: &Name) -> Result<Vec<(PathBuf, DetachedDisk)>> {
        let (datastores, which) = (self.datastores(domain).await?, domain.clone());
        if datastores.is_empty() {
            return Ok(Vec::new());
        }
        off_thread(move || {
            let mut all = Vec::new();
            for datastore in datastores {
                all.extend(detached(&datastore, &which)?.into_iter().map(|copy| (datastore.clone(), copy)));
            }
            all.sort_by(|(_, a), (_, b)| (&a.label, a.disk, &a.path).cmp(&(&b.label, b.disk, &b.path)));
            Ok(all)
        })
        .await
    }

    /// Deletes the kept copy of a disk; `confirm` is what it was called. What it was.
    ///
    /// # Errors
    /// A field that is wrong; `NotFound`; `Refused` while a task works on the domain; `Io`.
    pub(crate) async fn delete_kept_copy(
        &self,
        caller: &Caller,
        domain: &Name,
        disk: DiskId,
        confirm: &str,
    ) -> Done<DetachedDisk> {
        let _turn = self.turns.take(domain, &format!("{} deletes a kept copy", caller.name)).await?;
        self.domain(domain).await?;
        self.must_have_no_task(domain)?;
        let all = self.kept_copies(domain).await?;
        let Some((datastore, copy)) = all.iter().find(|(_, copy)| copy.disk == disk).cloned() else {
            let there: Vec<String> = all.iter().map(|(_, copy)| format!("{} ({})", copy.disk, copy.label)).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            let mut why = format!("no copy of disk {disk} of domain {domain} is kept here; there are: {there}");
            catalog::cut(&mut why, 1000);
            return Err(Error::new(ErrorKind::NotFound, why).into());
        };
        if confirm != copy.label {
            return Err(Fault::field("confirm", format!("must be what the disk was called, {}", copy.label)));
        }
        let which = domain.clone();
        off_thread(move || delete_detached(&datastore, &which, disk)).await?;
        let detail = format!("disk {} ({disk}), {} bytes in {}", copy.label, copy.held, copy.path.display());
        self.note(&caller.name, "kept copy deleted", domain.as_str(), Ok(()), &detail).await;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datastore_is_known_by_the_disks_that_stand_in_it() {
        let domain = Name::new("shop").unwrap();
        let of = |path: &str| datastore_of(Path::new(path), &domain);
        assert_eq!(of("/recovered/shop/web/root.raw"), Some(PathBuf::from("/recovered")));
        assert_eq!(of("/images/web.raw"), None);
        assert_eq!(of("/shop/web/root.raw"), Some(PathBuf::from("/")));
        assert_eq!((of("/root.raw"), of("")), (None, None));
    }
}
