//! Rehydration: a domain's disks at a site are brought up to a point.
//!
//! ```text
//! manifest + pages -> plan -> range GETs -> verify -> decode -> verify -> disks          (base: `reconcile`)
//! next segment     ->         range GETs -> verify -> replication log -> decode -> apply at a point -> disks
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `following`, `steer` | the handle of who follows a domain, and what it may ask |
//! | `run`, `finish` | the course of one run, through take-overs and outages; its end |
//! | `session`, `budget` | what one run has open; how its memory is divided |
//! | `in_place`, `protected`, `divergence` | following onto the files that this site protected; what would be lost |
//! | `reconcile`, `diff`, `check` | the one primitive: fetch exactly what differs from a target map |
//! | `work`, `source`, `pipeline`, `decoder`, `tracker` | ranges in, verified bytes on the disks out, and when they count |
//! | `landing`, `pace`, `follow`, `apply`, `indexes`, `recent` | segments into the log, and from there onto the disks, point by point |
//! | `state`, `doubts` | the durable hydration map, and what it cannot say |
//! | `disks`, `places`, `detached` | the disks' files, where they stand, and those of disks that left |

mod apply;
mod budget;
mod check;
mod damage;
mod decoder;
mod detached;
mod diff;
mod disks;
mod divergence;
mod doubts;
mod finish;
mod follow;
mod following;
mod in_place;
mod indexes;
mod landing;
mod pace;
mod pipeline;
mod places;
mod protected;
mod recent;
mod reconcile;
mod request;
mod run;
mod session;
mod source;
mod state;
mod steer;
mod tracker;
mod work;

pub use budget::COMMIT_BYTES;
pub use detached::{DetachedDisk, delete_detached, detached};
pub use divergence::{DivergedDisk, Divergence};
pub use following::{FollowState, Following};
pub use in_place::divergence;
pub use request::{
    DEFAULT_LOG_SIZE, DEFAULT_MEMORY, Damage, MIN_MEMORY, Mode, Placement, RehydrateReport, RehydrateRequest,
    RehydratedDisk, Target, UncoveredVm,
};
pub use steer::Completion;
pub use work::{MAX_RANGE, Piece, PlannedFrame, RangeWork, by_frame, coalesce};

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::store::{Domain, FoundManifest, PointInfo, StorageSite};

pub use landing::Landing;
use session::Session;
use steer::Steer;

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
    let (session, point) = open(site, request, progress, cancel, Steer::default()).await?;
    run(session, point).await
}

/// Opens everything and chooses the point to go to first. No disk is touched.
async fn open(
    site: &StorageSite,
    request: RehydrateRequest,
    progress: Arc<Progress>,
    cancel: Cancel,
    steer: Steer,
) -> Result<(Session, PointInfo)> {
    request.validate()?;
    progress.stage("opening");
    let target = request.target;
    let look = async {
        let mut domain = Domain::open(site, &request.domain).await?;
        domain.tip().await?;
        let choice = choose(&domain, target).await?;
        Ok((domain, choice))
    };
    let (domain, Choice { point, passed_over, base }) = cancel.or_stop(look).await?;
    let mut session = Session::open(domain, request, progress, cancel, steer)?;
    session.passed_over = passed_over;
    session.base = base;
    session.take_from_protection().await?;
    let point = match session.remember() {
        true if !matches!(target, Target::Point(_)) => session.choose_again(target).await?,
        _ => point,
    };
    Ok((session, point))
}

/// Goes to the point, and in [`Mode::Continuous`] on from there.
async fn run(mut session: Session, point: PointInfo) -> Result<RehydrateReport> {
    match session.request.mode {
        Mode::AsNeeded => session.reach(session.request.target, point).await?,
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
