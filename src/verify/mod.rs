//! Verification: whether everything that a point needs is in the storage site, whole and in its place.
//!
//! ```text
//! ownership log -> accepted segments -> index of each: parent link, digest of the parent        (the chain)
//!               -> manifests         -> each decoded, its digest held against the chain
//! map of the point -> pages -> frames in store order -> range GETs -> verify -> decode -> verify  (the data)
//! ```
//!
//! It reads every live frame of the point once and writes nothing. It goes on after damage: what is damaged is named by
//! VM, disk and byte range, or by object. Memory is bounded by the budget of the request, whatever the size of the disks;
//! findings are counted without a limit and listed up to [`MAX_FINDINGS`].

mod chain;
mod frames;
mod report;

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Name, SegmentNo, SegmentRef};
use crate::map::PointMap;
use crate::progress::Progress;
use crate::store::{Domain, StorageSite};

use chain::Chain;
pub use report::{BadObject, BadRange, MAX_FINDINGS, VerifyReport};

/// Smallest memory budget in bytes.
pub const MIN_MEMORY: u64 = 64 << 20;
/// Memory budget unless told otherwise, in bytes.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// Domain.
    pub domain: Name,
    /// Point whose frames are read; the newest where none is named.
    pub point: Option<SegmentNo>,
    /// Structure only: no frame is read.
    pub quick: bool,
    /// Budget in bytes for what is fetched and not yet checked.
    pub memory: u64,
}

impl VerifyRequest {
    /// A request for the newest point with default settings.
    pub fn new(domain: Name) -> VerifyRequest {
        VerifyRequest { domain, point: None, quick: false, memory: DEFAULT_MEMORY }
    }
}

/// Verifies a domain at a point. Damage is no error: see [`VerifyReport::is_whole`].
///
/// # Errors
/// [`ErrorKind::NotFound`] where there is no such domain or point; [`ErrorKind::Damaged`] where the ownership log itself
/// cannot be read, since then nothing can be said of anything else; what the store says where it does not answer.
pub async fn verify(
    site: &StorageSite,
    request: VerifyRequest,
    progress: Arc<Progress>,
    cancel: Cancel,
) -> Result<VerifyReport> {
    if request.memory < MIN_MEMORY {
        let why = format!("memory budget of {} bytes: at least {MIN_MEMORY} are needed", request.memory);
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let started = std::time::Instant::now();
    let mut domain = Domain::open(site, &request.domain).await?;
    let tip = domain.tip().await?;
    let mut report = VerifyReport::new(request.quick, tip);
    progress.stage("prove the chain");
    let chain = chain::prove(&domain, tip, &mut report, &cancel).await?;
    progress.stage("read the map");
    if let Some((at, time)) = chain.point(&domain, request.point)? {
        (report.point, report.point_time) = (at, time);
        if let Some(map) = map_at(&domain, at, &chain, &mut report).await? {
            frames::check(&domain, &map, &request, &mut report, &progress, &cancel).await?;
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The map of the point. Where the chain is broken below it, the newest manifest's before it, which the report tells:
/// then that is what the data is checked against.
async fn map_at(domain: &Domain, at: SegmentRef, chain: &Chain, report: &mut VerifyReport) -> Result<Option<PointMap>> {
    let error = match PointMap::load(domain, at).await {
        Ok(map) => return Ok(Some(map)),
        Err(e) if e.kind() == ErrorKind::Damaged => e,
        Err(e) => return Err(e),
    };
    report.notes.push(format!("point {} cannot be put together: {error}", at.segment));
    report.point_lost = true;
    let Some(manifest) = chain.newest_manifest(at.segment) else {
        report.notes.push("no manifest before it can be read, so that no frame was checked".to_owned());
        return Ok(None);
    };
    report.notes.push(format!("the frames of point {} were checked instead", manifest.cut.segment));
    Ok(Some(PointMap::of_manifest(manifest.clone())))
}
