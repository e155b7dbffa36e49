//! Shipping: uploads side by side, the prefix without a gap, the writer's own acceptance, then the ledger.
//!
//! ```text
//! backlog -> parallel create-if-absent, again and again -> prefix -> acceptance read -> accepted, log trimmed -> ledger
//! ```
//!
//! Owns which segments are accepted. Invariants: a segment is accepted only after it and all before it exist; nothing is
//! settled, reported or cleared before. A store that does not answer is asked for ever, with a bounded pace; only being
//! superseded, and a damaged log, end it. Limits: [`MAX_UPLOADS`] at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};

use super::age::PointAge;
use super::backlog::{Backlog, Entry, Sealed};
use super::health::Health;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Name, SegmentNo, SegmentRef, Time, VmId};
use crate::store::{DomainWriter, Settled, StorageSite, keys};

/// Uploads under way at once.
pub(crate) const MAX_UPLOADS: usize = 8;
/// First wait after the store failed, doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What has been accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shipped {
    /// The newest accepted segment.
    pub(crate) at: SegmentRef,
    /// Time of the point that it ends at.
    pub(crate) point_time: Time,
    /// VMs that it covers.
    pub(crate) covered: Arc<[VmId]>,
    /// The newest accepted point that covers each VM, of those that one does.
    pub(crate) points: HashMap<VmId, Covering>,
    /// Segments accepted in this run.
    pub(crate) segments: u64,
    /// Their bytes.
    pub(crate) stored: u64,
    /// Bytes of their frames, raw.
    pub(crate) raw: u64,
    /// Bytes that guests wrote for them.
    pub(crate) written: u64,
}

/// The newest accepted point that covers a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covering {
    pub(crate) at: SegmentNo,
    pub(crate) time: Time,
    pub(crate) age: PointAge,
}

/// See the module.
pub(crate) struct Shipper {
    pub(crate) site: StorageSite,
    pub(crate) domain: Name,
    pub(crate) writer: Arc<DomainWriter>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) health: Arc<Health>,
    pub(crate) accepted: watch::Sender<Shipped>,
    /// What was accepted, in order.
    pub(crate) ledger: mpsc::Sender<Sealed>,
}

impl Shipper {
    /// Ships until the backlog is closed and empty.
    ///
    /// # Errors
    /// `Fenced` where another writer took over; what the log says where a spilled segment cannot be read back.
    pub(crate) async fn run(self) -> Result<()> {
        let (contiguous_in, contiguous) = mpsc::channel(MAX_UPLOADS * 4);
        let uploading = self.upload_all(contiguous_in);
        let accepting = self.accept_all(contiguous);
        tokio::try_join!(uploading, accepting).map(drop)
    }

    async fn upload_all(&self, out: mpsc::Sender<Sealed>) -> Result<()> {
        let mut uploads = FuturesUnordered::new();
        let (mut apart, mut open) = (BTreeMap::<SegmentNo, Sealed>::new(), true);
        let mut next = self.accepted.borrow().at.segment.next();
        while open || !uploads.is_empty() {
            tokio::select! {
                entry = self.backlog.pop(), if open && uploads.len() < MAX_UPLOADS && apart.len() < MAX_UPLOADS * 4 => {
                    match entry {
                        Some(entry) => uploads.push(self.upload(entry)),
                        None => open = false,
                    }
                }
                Some(done) = uploads.next() => {
                    let sealed: Sealed = done?;
                    apart.insert(sealed.header.segment, sealed);
                    while let Some(sealed) = apart.remove(&next) {
                        next = next.next();
                        // The other half ends only with an error, which is what is told.
                        if out.send(sealed).await.is_err() {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores one segment, however long it takes.
    async fn upload(&self, entry: Entry) -> Result<Sealed> {
        let mut sealed = self.backlog.load(entry).await?;
        let key = keys::segment(&self.domain, sealed.header.id());
        let create = || self.site.create_settled(&key, vec![sealed.bytes.clone()]);
        match self.patiently(create).await? {
            Settled::New | Settled::Ours => {}
            Settled::Theirs => {
                let why = "holds another segment: somebody else writes in this writer's generation";
                return Err(Error::new(ErrorKind::Fenced, format!("{}: {key} {why}", self.site.url())));
            }
        }
        sealed.bytes = Default::default();
        Ok(sealed)
    }

    /// Does `work` until the store lets it; tells meanwhile what is wrong.
    async fn patiently<T, F: Future<Output = Result<T>>>(&self, work: impl Fn() -> F) -> Result<T> {
        let mut pause = MIN_PAUSE;
        loop {
            self.writer.check()?;
            match work().await {
                Ok(done) => {
                    self.health.store_answers();
                    return Ok(done);
                }
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                Err(error) => {
                    self.health.store_fails(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    async fn accept_all(&self, mut contiguous: mpsc::Receiver<Sealed>) -> Result<()> {
        let mut group = Vec::new();
        loop {
            group.clear();
            if contiguous.recv_many(&mut group, MAX_UPLOADS * 4).await == 0 {
                return Ok(());
            }
            let Some(last) = group.last().map(|sealed| sealed.header.id()) else { continue };
            self.patiently(|| self.writer.accept_up_to(last)).await?;
            for sealed in group.drain(..) {
                self.backlog.settle(&sealed.header)?;
                self.accepted.send_modify(|shipped| {
                    shipped.at = sealed.header.id();
                    shipped.point_time = sealed.point.time;
                    shipped.covered = Arc::clone(&sealed.point.vms);
                    let (at, time) = (sealed.header.segment, sealed.point.time);
                    let covering = Covering { at, time, age: PointAge::cut_at(sealed.cut) };
                    shipped.points.extend(sealed.point.vms.iter().map(|vm| (*vm, covering)));
                    shipped.segments += 1;
                    shipped.stored += sealed.header.total_len;
                    shipped.raw += sealed.raw;
                    shipped.written += sealed.written;
                });
                self.writer.report_point(sealed.header.id(), sealed.point.time);
                // The ledger ends with its own error; what is accepted stays so.
                let _ = self.ledger.send(sealed).await;
            }
        }
    }
}
