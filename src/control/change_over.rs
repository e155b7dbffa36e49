//! What has to be so before a running guest's disks change over from one place to another.
//!
//! Owns that moment, for both ways. Invariants: that disks may have changed over, and in which run of the guest, is durable
//! before the first one does; of
//! a guest that goes back, a last point is cut before, and none covers it from then on: what it writes to a disk that is
//! back is captured no more, while its other disks still are.

use std::sync::Arc;

use async_trait::async_trait;

use super::appliance::Appliance;
use super::catalog::Moving;
use super::moves::{Direction, ShownMove};
use crate::capture::VmSource;
use crate::error::Result;
use crate::format::PointFlags;
use crate::hypervisor::{DiskCopy, MoveWatcher};
use crate::ids::Name;

/// See the module.
pub(super) struct ChangeOver<'a> {
    pub(super) app: &'a Arc<Appliance>,
    pub(super) domain: &'a Name,
    pub(super) vm: &'a VmSource,
    pub(super) direction: Direction,
    pub(super) shown: &'a ShownMove<'a>,
}

#[async_trait]
impl MoveWatcher for ChangeOver<'_> {
    fn copies(&self, copies: &[DiskCopy]) {
        self.shown.copies(self.app.now(), copies);
    }

    async fn pivoting(&self) -> Result<()> {
        let (domain, vm) = (self.domain.clone(), self.vm.name.clone());
        let guests = self.app.world.hypervisor_here();
        let found = match guests.guest_disks() {
            Some(guests) => guests.look(&vm).await?,
            None => None,
        };
        let run = found.map(|found| found.run).unwrap_or_default();
        self.app.catalog.call(move |db| Moving::pivot(db, &domain, &vm, &run)).await?;
        let hosted = self.app.hosting.get(self.domain);
        if let (Direction::Back, Some(hosted)) = (self.direction, hosted) {
            if let Err(error) = hosted.cut_after(async |_| (PointFlags::default(), ())).await {
                // It is an older one then that covers it last.
                tracing::warn!(vm = %self.vm.name, "no last point of it is cut: {error}");
            }
            self.vm.disks.iter().for_each(|disk| hosted.filling().begin(&self.vm.name, &disk.name));
        }
        Ok(())
    }
}
