//! The shipping stage: sealed segments are uploaded side by side, and what is there without a gap is accepted.
//!
//! ```text
//! shipments -> parallel create-if-absent -> prefix without a gap -> map, watch -> acceptance reads -> progress
//! ```
//!
//! Owns which segments exist. Invariants: a segment is laid over the map in chain order, after it and all before it
//! exist; progress counts only what the writer's own acceptance read let pass. Limits: at most [`MAX_UPLOADS`] at once,
//! and the memory of segments is paid for by their permits.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{RwLock, mpsc, watch};

use super::halt::Halt;
use super::worker::Shipment;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Name, SegmentNo, SegmentRef};
use crate::map::PointMap;
use crate::progress::Progress;
use crate::store::{DomainWriter, Settled, StorageSite, keys};

/// Uploads under way at once.
pub(crate) const MAX_UPLOADS: usize = 16;
/// Longest wait before it is looked whether the work was stopped.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What exists without a gap.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Prefix {
    /// The last segment.
    pub(crate) at: SegmentRef,
    /// Segments of this run.
    pub(crate) segments: u64,
    /// Their bytes.
    pub(crate) stored: u64,
    /// Bytes of images that were examined for them.
    pub(crate) examined: u64,
}

/// Uploads all shipments; tells `prefix` how far they are there, and lays them over `map`. Ends when the channel is
/// closed and all is uploaded, or with the first error.
pub(crate) async fn upload_all(
    site: &StorageSite,
    domain: &Name,
    mut shipments: mpsc::Receiver<Shipment>,
    map: &RwLock<PointMap>,
    prefix: watch::Sender<Prefix>,
    progress: &Progress,
    halt: &Halt,
) -> Result<()> {
    let (mut uploads, mut apart, mut open) = (FuturesUnordered::new(), BTreeMap::<SegmentNo, Shipment>::new(), true);
    while open || !uploads.is_empty() {
        halt.check()?;
        tokio::select! {
            shipment = shipments.recv(), if open && uploads.len() < MAX_UPLOADS => match shipment {
                Some(shipment) => uploads.push(upload(site, domain, shipment)),
                None => open = false,
            },
            Some(done) = uploads.next() => {
                let shipment: Shipment = done?;
                progress.add_moved(shipment.header.total_len);
                apart.insert(shipment.header.segment, shipment);
                advance(&mut apart, map, &prefix).await?;
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    Ok(())
}

/// Uploads one segment, and lets go of its bytes.
async fn upload(site: &StorageSite, domain: &Name, mut shipment: Shipment) -> Result<Shipment> {
    let key = keys::segment(domain, shipment.header.id());
    let bytes = std::mem::take(&mut shipment.bytes);
    match site.create_settled(&key, vec![bytes]).await? {
        Settled::New | Settled::Ours => Ok(shipment),
        Settled::Theirs => {
            let why = "holds another segment: somebody else writes in this writer's generation";
            Err(Error::new(ErrorKind::Fenced, format!("{}: {key} {why}", site.url())))
        }
    }
}

/// Takes what continues the prefix out of `apart`.
async fn advance(
    apart: &mut BTreeMap<SegmentNo, Shipment>,
    map: &RwLock<PointMap>,
    prefix: &watch::Sender<Prefix>,
) -> Result<()> {
    let mut reached = *prefix.borrow();
    while let Some(shipment) = apart.remove(&reached.at.segment.next()) {
        let header = &shipment.header;
        map.write().await.apply(&shipment.index, header.index_digest, header.total_len)?;
        reached = Prefix {
            at: header.id(),
            segments: reached.segments + 1,
            stored: reached.stored + header.total_len,
            examined: reached.examined + shipment.examined,
        };
    }
    prefix.send_replace(reached);
    Ok(())
}

/// Has everything accepted that comes to be there, until `prefix` is closed; returns what was accepted.
pub(crate) async fn accept_all(
    writer: &DomainWriter,
    mut prefix: watch::Receiver<Prefix>,
    progress: &Progress,
) -> Result<Prefix> {
    let mut accepted = *prefix.borrow_and_update();
    loop {
        let closed = prefix.changed().await.is_err();
        let reached = *prefix.borrow_and_update();
        if reached.at != accepted.at {
            writer.accept_up_to(reached.at).await?;
            progress.add_done(reached.examined - accepted.examined);
            accepted = reached;
        }
        if closed {
            return Ok(accepted);
        }
    }
}
