//! Clearing: bits of the bitmaps whose writes are part of the domain and durable on the local disk.
//!
//! Owns the pace, and the order that makes a clear bit true at the next start: first the protection record names the
//! segment, durably, then bits go that rely on it. What may be cleared at all is the bitmap's own rule.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use super::coverage::Members;
use super::health::Health;
use super::memory::SiteMemory;
use super::shipper::Shipped;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::FileStamp;
use crate::ids::{DomainId, Generation, SegmentRef};

/// Time between two rounds.
const EVERY: Duration = Duration::from_secs(1);
/// Rounds after which a quiet region is cleared.
pub(crate) const QUIET_ROUNDS: u32 = 8;

/// See the module.
pub(crate) struct Clearer {
    pub(crate) members: Arc<Members>,
    pub(crate) memory: Arc<Mutex<SiteMemory>>,
    pub(crate) shipped: watch::Receiver<Shipped>,
    pub(crate) domain: DomainId,
    pub(crate) generation: Generation,
    pub(crate) health: Arc<Health>,
}

impl Clearer {
    /// Clears round after round until `end`.
    pub(crate) async fn run(&self, end: Cancel) {
        while !end.is_cancelled() {
            tokio::select! { () = tokio::time::sleep(EVERY) => {} () = end.cancelled() => return }
            if let Err(error) = self.round().await {
                self.health.fail(&error);
                return;
            }
        }
    }

    /// One round over all disks.
    async fn round(&self) -> Result<()> {
        let shipped = self.shipped.borrow().at;
        self.remember(shipped, None).await?;
        for disk in self.members.disks() {
            let backing = Arc::clone(disk.backing());
            let sync = || async move { backing.sync_data().await.map_err(|e| Error::new(ErrorKind::Io, e.text)) };
            let cleared = disk.intent().clear_accepted(shipped.segment, sync).await;
            if let Err(error) = cleared {
                // The others' bits are still true.
                disk.report_sync_error(&error);
            }
        }
        Ok(())
    }

    /// What bits rely on from now on.
    async fn remember(&self, shipped: SegmentRef, clean: Option<Vec<FileStamp>>) -> Result<()> {
        let memory = Arc::clone(&self.memory);
        let catalogue = self.members.catalogue();
        let (domain, generation) = (self.domain, self.generation);
        let storing = tokio::task::spawn_blocking(move || {
            memory.blocking_lock().store(domain, shipped, generation, clean, catalogue)
        });
        storing.await.map_err(|e| Error::with_source(ErrorKind::Internal, "store the protection record", e))?
    }

    /// At the end, when no guest writes any more: clears all that can be.
    pub(crate) async fn clear_all(&self) -> Result<()> {
        for _ in 0..=QUIET_ROUNDS {
            self.round().await?;
        }
        Ok(())
    }

    /// The clean end: what the disks' files look like, after their last write.
    pub(crate) async fn stamp(&self, stamps: Vec<FileStamp>) -> Result<()> {
        let shipped = self.shipped.borrow().at;
        self.remember(shipped, Some(stamps)).await
    }
}
