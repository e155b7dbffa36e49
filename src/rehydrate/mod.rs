//! Rehydration: a domain's disks at a site are brought up to a point.
//!
//! ```text
//! manifest + pages -> plan -> range GETs -> verify -> decode -> verify -> disks          (base: `reconcile`)
//! next segment     ->         range GETs -> verify -> replication log -> decode -> apply at a point -> disks
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `session` | what one run has open |
//! | `reconcile`, `diff`, `check` | the one primitive: fetch exactly what differs from a target map |
//! | `work`, `source`, `pipeline`, `decoder`, `tracker` | ranges in, verified bytes on the disks out, and when they count |
//! | `landing`, `follow`, `apply` | segments into the log, and from there onto the disks, point by point |
//! | `state`, `disks` | the durable hydration map; the disks' files |

mod apply;
mod check;
mod damage;
mod decoder;
mod diff;
mod disks;
mod follow;
mod landing;
mod pipeline;
mod reconcile;
mod request;
mod session;
mod source;
mod state;
mod tracker;
mod work;

pub use request::{
    DEFAULT_LOG_SIZE, DEFAULT_MEMORY, Damage, MIN_MEMORY, Mode, RehydrateReport, RehydrateRequest, RehydratedDisk,
    Target,
};
pub use work::{MAX_RANGE, Piece, PlannedFrame, RangeWork, by_frame, coalesce};

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{SegmentNo, SegmentRef};
use crate::map::PointMap;
use crate::progress::Progress;
use crate::store::{Domain, PointInfo, StorageSite};

use landing::End;
use session::Session;

/// Brings the disks of a domain to a point, and in [`Mode::Continuous`] goes on with every new one.
///
/// # Errors
/// Nothing is lost by any of them: run it again to go on. Damage is no error: see [`RehydrateReport::damage`].
pub async fn rehydrate(
    site: &StorageSite,
    request: RehydrateRequest,
    progress: Arc<Progress>,
    cancel: Cancel,
) -> Result<RehydrateReport> {
    request.validate()?;
    progress.stage("opening");
    let mut domain = Domain::open(site, &request.domain).await?;
    domain.tip().await?;
    let mode = request.mode;
    let point = choose(&domain, request.target).await?;
    let mut session = Session::open(domain, request, Arc::clone(&progress), cancel)?;
    session.bring_to(&point).await?;
    progress.applied(point.at.segment, point.time);
    if let Mode::Continuous { until } = mode {
        session.go_on(until).await?;
    }
    session.finish().await
}

async fn choose(domain: &Domain, target: Target) -> Result<PointInfo> {
    let none = |what: String| {
        let why = format!("domain {} has no {what} yet", domain.name());
        Error::new(ErrorKind::NotFound, format!("{why}: `freshet replicate` makes one"))
    };
    match target {
        Target::Newest => domain.newest_point().await?.point.ok_or_else(|| none("point".into())),
        Target::Point(n) => domain.points().await?.point(n).cloned(),
        Target::At(time) => domain.points().await?.at_or_before(time).cloned(),
    }
}

impl Session {
    /// Brings the disks to `point`: the base by comparing maps, what came after it through the log.
    async fn bring_to(&mut self, point: &PointInfo) -> Result<()> {
        let found = self.domain().manifest_at_or_before(point.at.segment).await?;
        self.notes.extend(found.warnings);
        let base = match found.manifest {
            Some(manifest) => PointMap::of_manifest(manifest),
            None => PointMap::empty(self.domain().id()),
        };
        self.take_catalogue_of(&base, point).await?;
        if !self.can_go_on_from_here(&base, point) {
            self.begin_changes()?;
            let in_doubt = std::mem::take(&mut self.in_doubt);
            self.reconciler.reconcile(&base, in_doubt).await?;
            self.tracker().state().commit()?;
        }
        self.point = Some(point.clone());
        if self.tracker().state().applied().segment < point.at.segment {
            self.progress.stage("landing and applying");
            self.follow(Some(point.at.segment)).await?;
            self.cancel.check()?;
        }
        let applied = self.tracker().state().applied();
        match applied == point.at {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Internal, format!("stopped at {applied} instead of {}", point.at))),
        }
    }

    /// Opens the disks of the state to start from: that of the base, or where the disks are already past it, their own.
    async fn take_catalogue_of(&mut self, base: &PointMap, point: &PointInfo) -> Result<()> {
        let applied = self.tracker().state().applied();
        let past_base = applied.segment > base.at().segment && applied.segment <= point.at.segment;
        if past_base && self.domain().accepts(applied) {
            let own = PointMap::load(self.domain(), applied).await?;
            return self.take_catalogue(own.catalogue(), false);
        }
        self.take_catalogue(base.catalogue(), false)
    }

    /// Whether only segments from the log are missing.
    fn can_go_on_from_here(&self, base: &PointMap, point: &PointInfo) -> bool {
        let state = self.tracker().state();
        let applied = state.applied();
        let between = applied.segment >= base.at().segment && applied.segment <= point.at.segment;
        let all_there = !state.disks().is_empty()
            && state.quarantined().is_empty()
            && state.disks().iter().all(|d| state.missing(d.disk).is_empty());
        between && self.domain().accepts(applied) && all_there && !self.in_doubt
    }

    /// Follows the domain until cancelled, or until `until` is applied.
    async fn go_on(&mut self, until: Option<SegmentNo>) -> Result<()> {
        self.progress.stage("following");
        loop {
            match self.follow(until).await {
                Ok(End::Done) => return Ok(()),
                Ok(End::Rewound) => {
                    self.note("the domain was taken over: going back to what it inherits".into());
                    self.reconciler.domain.tip().await?;
                    let newest = choose(self.domain(), Target::Newest).await?;
                    self.bring_to(&newest).await?;
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Damaged => self.bridge(e).await?,
                Err(e) => return Err(e),
            }
        }
    }

    /// A segment is lost: the next manifest bridges it. Waits for one.
    async fn bridge(&mut self, error: Error) -> Result<()> {
        self.note(format!("{error}: waiting for the next manifest to bridge it"));
        let stuck_at = self.tracker().state().applied();
        loop {
            self.cancel.check()?;
            self.reconciler.domain.tip().await?;
            let newest = choose(self.domain(), Target::Newest).await?;
            let found = self.domain().manifest_at_or_before(newest.at.segment).await?;
            if found.manifest.is_some_and(|m| m.cut.segment > stuck_at.segment) {
                return self.bring_to(&newest).await;
            }
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_secs(2)) => {}
                () = self.cancel.cancelled() => {}
            }
        }
    }

    /// The last sync, the watermark, and the report.
    async fn finish(mut self) -> Result<RehydrateReport> {
        let disks = self.reconciler.disks.all();
        let (at, ahead, quarantined) = {
            let mut state = self.tracker().state();
            state.commit()?;
            (state.target(), state.applied() != state.target(), state.quarantined().to_vec())
        };
        let point = self.point.clone().filter(|p| p.at == at);
        let point_time = point.as_ref().map(|p| p.time).unwrap_or_default();
        if quarantined.is_empty() && !ahead && at != SegmentRef::default() {
            let stamps = self.reconciler.disks.stamps()?;
            self.store_watermark(at, point_time, stamps)?;
        }
        if ahead {
            self.notes.push(format!("the disks run ahead of point {at}: rehydrate again to reach a point"));
        }
        let snapshot = self.progress.snapshot();
        let info = self.reconciler.engine.info();
        self.notes.extend(info.fallbacks.iter().cloned());
        let written = self.tracker().written();
        Ok(RehydrateReport {
            point: at,
            point_time,
            fuzzy: point.is_some_and(|p| p.fuzzy),
            logical: disks.iter().map(|d| d.size).sum(),
            live: snapshot.total,
            written,
            fetched: snapshot.moved,
            kept: snapshot.total.saturating_sub(written),
            landed_segments: self.landed_segments,
            applied_points: self.applied_points,
            seconds: self.started.elapsed().as_secs_f64(),
            plan_seconds: 0.0,
            damage: damage::name(&disks, quarantined),
            engine: format!("{:?}", info.kind),
            notes: std::mem::take(&mut self.notes),
            disks: disks
                .iter()
                .map(|d| RehydratedDisk { label: d.label.clone(), path: d.path.clone(), size: d.size })
                .collect(),
        })
    }
}
