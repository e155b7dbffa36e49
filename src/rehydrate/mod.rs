//! Rehydration: a domain's disks at a site are brought up to a point.
//!
//! ```text
//! manifest + pages -> plan -> range GETs -> verify -> decode -> verify -> disks          (base: `reconcile`)
//! next segment     ->         range GETs -> verify -> replication log -> decode -> apply at a point -> disks
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `session`, `budget` | what one run has open; how its memory is divided |
//! | `reconcile`, `diff`, `check` | the one primitive: fetch exactly what differs from a target map |
//! | `work`, `source`, `pipeline`, `decoder`, `tracker` | ranges in, verified bytes on the disks out, and when they count |
//! | `landing`, `follow`, `apply` | segments into the log, and from there onto the disks, point by point |
//! | `state`, `disks` | the durable hydration map; the disks' files |

mod apply;
mod budget;
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

pub use budget::COMMIT_BYTES;
pub use request::{
    DEFAULT_LOG_SIZE, DEFAULT_MEMORY, Damage, MIN_MEMORY, Mode, RehydrateReport, RehydrateRequest, RehydratedDisk,
    Target, UncoveredVm,
};
pub use work::{MAX_RANGE, Piece, PlannedFrame, RangeWork, by_frame, coalesce};

use std::sync::Arc;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VmInfo;
use crate::ids::{SegmentNo, SegmentRef};
use crate::map::PointMap;
use crate::progress::Progress;
use crate::store::{Domain, FoundManifest, PointInfo, StorageSite};

pub use landing::Landing;
use landing::{End, Goal};
use session::Session;

/// Most take-overs during one run, beyond which it is no use to go back once more.
const MAX_REWINDS: usize = 16;
/// Time between looks for a manifest beyond a lost segment.
const BRIDGE_POLL: Duration = Duration::from_secs(2);

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
    let (mode, target) = (request.mode, request.target);
    let look = async {
        let mut domain = Domain::open(site, &request.domain).await?;
        domain.tip().await?;
        let choice = choose(&domain, target).await?;
        Ok((domain, choice))
    };
    let (domain, Choice { point, passed_over, base }) = cancel.or_stop(look).await?;
    let mut session = Session::open(domain, request, progress, cancel)?;
    session.passed_over = passed_over;
    session.base = base;
    let point = match session.remember() {
        true if !matches!(target, Target::Point(_)) => session.choose_again(target).await?,
        _ => point,
    };
    match mode {
        Mode::AsNeeded => session.reach(target, point).await?,
        Mode::Continuous { until } => session.go_on(point, until).await?,
    }
    session.finish().await
}

/// A point that was chosen, and what could not be read beside it.
struct Choice {
    point: PointInfo,
    /// Each may hide a point that would have been chosen instead.
    passed_over: Vec<String>,
    /// The manifest to start from, where it was read for the choice: each request less is a round trip less.
    base: Option<FoundManifest>,
}

async fn choose(domain: &Domain, target: Target) -> Result<Choice> {
    let none = |what: String| {
        let why = format!("domain {} has no {what} yet", domain.name());
        Error::new(ErrorKind::NotFound, format!("{why}: `freshet replicate` makes one"))
    };
    let (point, warnings, base) = match target {
        Target::Newest => {
            let found = domain.newest_point().await?;
            (found.point.ok_or_else(|| none("point".into()))?, found.warnings, Some(found.base))
        }
        Target::Point(n) => (domain.points().await?.point(n)?.clone(), Vec::new(), None),
        Target::At(time) => {
            let points = domain.points().await?;
            (points.at_or_before(time)?.clone(), points.warnings().to_vec(), None)
        }
    };
    // Where the newest segment of all ends at the point, nothing can be hidden.
    let mut passed_over = if point.at == domain.known_tip() { Vec::new() } else { warnings };
    if !matches!(target, Target::Point(_)) {
        passed_over.extend(domain.hidden());
    }
    Ok(Choice { point, passed_over, base })
}

impl Session {
    /// Brings the disks to `point`, which was chosen for `target`; to another where a take-over cuts it off meanwhile.
    async fn reach(&mut self, target: Target, mut point: PointInfo) -> Result<()> {
        for _ in 0..MAX_REWINDS {
            match self.bring_to(&point).await? {
                End::Done => return Ok(()),
                End::Rewound => point = self.choose_after_take_over(target).await?,
            }
        }
        let why = format!("domain {} was taken over {MAX_REWINDS} times meanwhile", self.domain().name());
        Err(Error::new(ErrorKind::Unreachable, format!("{why}: run it again when its sites are settled")))
    }

    async fn choose_after_take_over(&mut self, target: Target) -> Result<PointInfo> {
        self.note("the domain was taken over: going back to what it inherits".into());
        self.choose_again(target).await
    }

    /// Lets what was applied and landed here count on; whether that brings anything back.
    fn remember(&mut self) -> bool {
        let (applied, landed) = (self.tracker().state().applied(), self.log.held().landed);
        let before = self.domain().known_tip();
        self.reconciler.domain.remember(applied);
        self.reconciler.domain.remember(landed);
        self.domain().known_tip() != before
    }

    async fn choose_again(&mut self, target: Target) -> Result<PointInfo> {
        self.reconciler.domain.tip().await?;
        let Choice { point, passed_over, base } = choose(self.domain(), target).await?;
        self.passed_over = passed_over;
        self.base = base;
        Ok(point)
    }

    /// Brings the disks to `point`: the base by comparing maps, what came after it through the log.
    async fn bring_to(&mut self, point: &PointInfo) -> Result<End> {
        let read = self.base.take().filter(|f| f.manifest.as_ref().is_some_and(|m| m.cut.segment <= point.at.segment));
        let found = match read {
            Some(found) => found,
            None => self.domain().manifest_at_or_before(point.at.segment).await?,
        };
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
            if self.follow(Goal::Point(point.at.segment)).await? == End::Rewound {
                return Ok(End::Rewound);
            }
            self.cancel.check()?;
        }
        let applied = self.tracker().state().applied();
        if applied != point.at {
            return Err(Error::new(ErrorKind::Internal, format!("stopped at {applied} instead of {}", point.at)));
        }
        self.progress.applied(point.at.segment, point.time);
        Ok(End::Done)
    }

    /// Opens the disks of the state to start from: that of the base, or where the disks are already past it, their own;
    /// where there is no base, those of the point.
    async fn take_catalogue_of(&mut self, base: &PointMap, point: &PointInfo) -> Result<()> {
        let applied = self.tracker().state().applied();
        let past_base = applied.segment > base.at().segment && applied.segment <= point.at.segment;
        if past_base && self.domain().accepts(applied) {
            let own = PointMap::load(self.domain(), applied).await?;
            return self.take_catalogue(own.catalogue(), false);
        }
        if base.at().segment == SegmentNo::ZERO && !self.tracker().state().disks().is_empty() {
            // Before the first manifest there is no catalogue yet. Files that are there are emptied, and not forgotten:
            // else they would stand in the way as soon as a segment names their disks.
            let own = PointMap::load(self.domain(), point.at).await?;
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

    /// Brings the disks to `point`, then follows the domain until cancelled, or until a point from `until` on is applied.
    async fn go_on(&mut self, point: PointInfo, until: Option<SegmentNo>) -> Result<()> {
        let goal = until.map_or(Goal::Never, Goal::FirstPointFrom);
        let mut target = Some(point);
        loop {
            let step = match &target {
                Some(point) => self.bring_to(point).await,
                None => self.follow(goal).await,
            };
            match (step, target.take()) {
                (Ok(End::Done), Some(point)) if goal.is_reached(point.at.segment, true) => return Ok(()),
                (Ok(End::Done), Some(_)) => self.progress.stage("following"),
                (Ok(End::Done), None) => return Ok(()),
                (Ok(End::Rewound), _) => target = Some(self.choose_after_take_over(Target::Newest).await?),
                (Err(e), _) if e.kind() == ErrorKind::Damaged => match self.bridge(&e).await? {
                    Some(point) => target = Some(point),
                    None => return Ok(()),
                },
                (Err(e), None) if e.kind() == ErrorKind::Cancelled => return Ok(()),
                (Err(e), _) => return Err(e),
            }
        }
    }

    /// A segment is lost: the next manifest bridges it. Waits for one, and answers with the newest point then; `None`
    /// when asked to stop.
    async fn bridge(&mut self, error: &Error) -> Result<Option<PointInfo>> {
        self.note(format!("{error}: waiting for the next manifest to bridge it"));
        let stuck_at = self.tracker().state().applied();
        let cancel = self.cancel.clone();
        let look = async {
            loop {
                let newest = self.choose_again(Target::Newest).await?;
                let manifest = self.base.as_ref().and_then(|found| found.manifest.as_ref());
                if manifest.is_some_and(|m| m.cut.segment > stuck_at.segment) {
                    return Ok(newest);
                }
                tokio::time::sleep(BRIDGE_POLL).await;
            }
        };
        match cancel.or_stop(look).await {
            Err(e) if e.kind() == ErrorKind::Cancelled => Ok(None),
            found => found.map(Some),
        }
    }

    /// VMs whose disks are here and which `point` does not cover: their disks are not of one moment.
    async fn uncovered(&self, point: &PointInfo) -> Result<Vec<UncoveredVm>> {
        let disks = self.reconciler.disks.all();
        let here = |vm: &&VmInfo| self.catalogue.disks_of(vm.id).any(|d| disks.iter().any(|here| here.id == d.id));
        let vms = self.catalogue.vms.iter().filter(here).filter(|vm| !point.vms.contains(&vm.id));
        let vms: Vec<&VmInfo> = vms.collect();
        if vms.is_empty() {
            return Ok(Vec::new());
        }
        let points = self.domain().points().await?;
        let newest = |vm: &VmInfo| {
            let before = points.all().iter().rev().filter(|p| p.at.segment < point.at.segment);
            before.into_iter().find(|p| p.vms.contains(&vm.id)).map(|p| p.at.segment)
        };
        Ok(vms.into_iter().map(|vm| UncoveredVm { name: vm.name.clone(), newest: newest(vm) }).collect())
    }

    /// The last sync, the watermark, and the report.
    async fn finish(mut self) -> Result<RehydrateReport> {
        let disks = self.reconciler.disks.all();
        let (at, ahead, quarantined) = {
            let mut state = self.tracker().state();
            state.commit()?;
            (state.target(), state.between_points(), state.quarantined().to_vec())
        };
        let point = self.point.clone().filter(|p| p.at == at);
        let point_time = point.as_ref().map(|p| p.time).unwrap_or_default();
        let uncovered = match &point {
            Some(point) => self.uncovered(point).await?,
            None => Vec::new(),
        };
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
        self.notes.extend(self.reconciler.disks.why_not_direct()?);
        let written = self.tracker().written();
        let first_fetch = self.reconciler.pipeline.first_fetch();
        Ok(RehydrateReport {
            point: at,
            between_points: ahead,
            point_time,
            uncovered,
            fuzzy: point.is_some_and(|p| p.fuzzy),
            logical: disks.iter().map(|d| d.size).sum(),
            planned: snapshot.total,
            written,
            fetched: snapshot.moved,
            kept: snapshot.done.saturating_sub(written),
            landed_segments: self.landed_segments,
            landing: self.caught_up,
            applied_points: self.applied_points,
            seconds: self.started.elapsed().as_secs_f64(),
            plan_seconds: first_fetch.map_or(0.0, |at| (at - self.started).as_secs_f64()),
            damage: damage::name(&disks, quarantined),
            engine: format!("{:?}", info.kind),
            notes: std::mem::take(&mut self.notes),
            passed_over: std::mem::take(&mut self.passed_over),
            disks: disks
                .iter()
                .map(|d| RehydratedDisk { label: d.label.clone(), path: d.path.clone(), size: d.size })
                .collect(),
        })
    }
}
