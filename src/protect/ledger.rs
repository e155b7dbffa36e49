//! The ledger: the map of what was accepted, and the manifests cut from it.
//!
//! Owns the domain's map at the protected site, and when a manifest is due. Invariants: the map is laid over in chain
//! order by accepted segments only; a manifest is accepted like a segment before it counts. What waits to be laid over
//! is bounded by the channel; while a manifest is written nothing is laid over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{RwLock, mpsc};

use super::backlog::Sealed;
use super::health::Health;
use crate::capture::{Halt, checkpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::map::PointMap;
use crate::store::DomainWriter;

/// Accepted segments that may wait.
pub(crate) const MAX_WAITING: usize = 256;
/// Wait after a manifest could not be written.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Ledger {
    pub(crate) writer: Arc<DomainWriter>,
    pub(crate) map: Arc<RwLock<PointMap>>,
    pub(crate) health: Arc<Health>,
    /// Bytes of segments after which a manifest is due.
    pub(crate) manifest_every: u64,
    pub(crate) halt: Halt,
}

impl Ledger {
    /// Lays over the map what is accepted, until there is no more; then writes the last manifest, if `last` says so.
    /// Answers how many manifests were written.
    ///
    /// # Errors
    /// `Fenced`; `Damaged` or `Internal` where the chain is broken.
    pub(crate) async fn run(self, mut accepted: mpsc::Receiver<Sealed>) -> Result<u64> {
        let (mut written, mut rest) = (0, tokio::time::Instant::now());
        while let Some(sealed) = accepted.recv().await {
            let index = sealed.index.as_ref().ok_or_else(|| {
                Error::new(ErrorKind::Internal, format!("segment {} came without its index", sealed.header.id()))
            })?;
            let mut map = self.map.write().await;
            map.apply(index, sealed.header.index_digest, sealed.header.total_len)?;
            let due = checkpoint::is_due(&map, self.manifest_every);
            drop(map);
            // Written between bursts where that can be had: a manifest is one thing, an hour of them another.
            if due && tokio::time::Instant::now() >= rest {
                match self.checkpoint().await {
                    Ok(()) => written += 1,
                    Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                    Err(error) => {
                        self.health.store_fails(&error);
                        rest = tokio::time::Instant::now() + PAUSE;
                    }
                }
            }
        }
        let map = self.map.read().await;
        let behind = map.segments_since_manifest() > 0;
        drop(map);
        if behind && self.health.is_sound() {
            self.checkpoint().await?;
            written += 1;
        }
        Ok(written)
    }

    async fn checkpoint(&self) -> Result<()> {
        let manifest = {
            let map = self.map.read().await;
            let points = map.points_since_manifest().to_vec();
            let written = checkpoint::write(&self.writer.view().await, &map, points, &self.halt).await?;
            self.writer.accept_up_to(written.at).await?;
            written.manifest
        };
        *self.map.write().await = PointMap::of_manifest(manifest);
        Ok(())
    }
}
