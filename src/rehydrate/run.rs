//! The course of one run: to a point, or on with every new one, through take-overs, lost segments and a storage site that
//! is away for a while.
//!
//! It decides what comes next; how disks change is told by `reconcile` and `apply`.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Catalogue;
use crate::ids::{SegmentNo, SegmentRef};
use crate::map::PointMap;
use crate::store::PointInfo;

use super::landing::{End, Goal};
use super::request::Target;
use super::session::Session;
use super::steer::Completion;
use super::{Choice, choose};

/// Most take-overs during one run, beyond which it is no use to go back once more.
const MAX_REWINDS: usize = 16;
/// Time between looks for a manifest beyond a lost segment.
const BRIDGE_POLL: Duration = Duration::from_secs(2);
/// First pause before a storage site that does not answer is asked again, doubled up to the other.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);

impl Session {
    /// Brings the disks to `point`, which was chosen for `target`; to another where a take-over cuts it off meanwhile.
    pub(super) async fn reach(&mut self, target: Target, mut point: PointInfo) -> Result<()> {
        for _ in 0..MAX_REWINDS {
            match self.bring_to(&point).await? {
                End::Rewound => point = self.choose_after_take_over(target).await?,
                End::Done | End::Completed | End::Elsewhere(_) => return Ok(()),
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
    pub(super) fn remember(&mut self) -> bool {
        let (applied, landed) = (self.tracker().state().applied(), self.log.held().landed);
        let before = self.domain().known_tip();
        self.reconciler.domain.remember(applied);
        self.reconciler.domain.remember(landed);
        self.domain().known_tip() != before
    }

    pub(super) async fn choose_again(&mut self, target: Target) -> Result<PointInfo> {
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
        let own = self.take_catalogue_of(&base, point).await?;
        if !self.can_go_on_from_here(&base, point) {
            self.begin_changes()?;
            let doubts = std::mem::take(&mut self.doubts);
            // Where the disks are past the base and at a point, what is missing there is fetched, and nothing undone.
            let is_at_point = !self.tracker().state().between_points();
            let target = own.filter(|_| is_at_point).unwrap_or(base);
            self.reconciler.reconcile(&target, doubts).await?;
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

    /// Opens the disks of the state to start from: that of the base, or where the disks are already past it, their own,
    /// whose map is the answer; where there is no base, those of the point.
    async fn take_catalogue_of(&mut self, base: &PointMap, point: &PointInfo) -> Result<Option<PointMap>> {
        let applied = self.tracker().state().applied();
        let past_base = applied.segment > base.at().segment && applied.segment <= point.at.segment;
        if past_base && self.domain().accepts(applied) {
            let own = PointMap::load(self.domain(), applied).await?;
            self.take_catalogue(own.catalogue(), false)?;
            return Ok(Some(own));
        }
        if base.at().segment == SegmentNo::ZERO && !self.tracker().state().disks().is_empty() {
            // Before the first manifest there is no catalogue yet. Files that are there are emptied, and not forgotten:
            // else they would stand in the way as soon as a segment names their disks.
            let own = PointMap::load(self.domain(), point.at).await?;
            self.take_catalogue(own.catalogue(), false)?;
            return Ok(None);
        }
        self.detach_left_since(applied, base.catalogue()).await?;
        self.take_catalogue(base.catalogue(), false)?;
        Ok(None)
    }

    /// Detaches disks that left after `applied`, while nobody followed. What cannot be told is left where it is.
    async fn detach_left_since(&mut self, applied: SegmentRef, catalogue: &Catalogue) -> Result<()> {
        let any = self.tracker().state().disks().iter().any(|d| catalogue.disk(d.disk).is_none());
        if !any || !self.domain().accepts(applied) || self.domain().manifests().await?.is_empty() {
            return Ok(());
        }
        match PointMap::load(self.domain(), applied).await {
            Ok(old) => self.detach_left(old.catalogue(), catalogue),
            Err(e) if is_away(&e) => Err(e),
            Err(e) => {
                self.note(format!("copies of disks that left the domain stay where they are: {e}"));
                Ok(())
            }
        }
    }

    /// Whether only segments from the log are missing.
    fn can_go_on_from_here(&self, base: &PointMap, point: &PointInfo) -> bool {
        let state = self.tracker().state();
        let applied = state.applied();
        let between = applied.segment >= base.at().segment && applied.segment <= point.at.segment;
        let all_there = !state.disks().is_empty()
            && state.quarantined().is_empty()
            && state.disks().iter().all(|d| state.missing(d.disk).is_empty());
        between && self.domain().accepts(applied) && all_there && !self.doubts.any()
    }

    /// Brings the disks to `point`, then follows the domain until cancelled, until a point from `until` on is applied, or
    /// until it is asked to complete and has.
    pub(super) async fn go_on(&mut self, point: PointInfo, until: Option<SegmentNo>) -> Result<()> {
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
                (Ok(End::Done | End::Completed), _) => return Ok(()),
                (Ok(End::Elsewhere(at)), _) => return self.complete_elsewhere(at).await,
                (Ok(End::Rewound), _) => {
                    self.progress.cut_off();
                    match self.choose_when_answered().await? {
                        Some(point) => target = Some(point),
                        None => return Ok(()),
                    }
                }
                (Err(e), _) if e.kind() == ErrorKind::Damaged => match self.bridge(&e).await? {
                    Bridge::To(point) => target = Some(*point),
                    Bridge::Stopped => return Ok(()),
                    Bridge::Asked(at) => return self.complete_from_here(at).await,
                },
                (Err(e), None) if e.kind() == ErrorKind::Cancelled => return Ok(()),
                (Err(e), _) => return Err(e),
            }
        }
    }

    /// Ends at the point that the disks equal, if that is the one; otherwise goes to it.
    async fn complete_from_here(&mut self, at: Completion) -> Result<()> {
        let is_there = {
            let state = self.tracker().state();
            let asked = match at {
                Completion::Landed => true,
                Completion::Point(n) => n == state.applied().segment,
            };
            asked && !state.between_points()
        };
        if is_there { Ok(()) } else { self.complete_elsewhere(at).await }
    }

    /// Goes to a point to which what landed does not lead: by comparing maps, and landing what is missing.
    async fn complete_elsewhere(&mut self, at: Completion) -> Result<()> {
        let n = match at {
            Completion::Point(n) => n,
            Completion::Landed => self.tracker().state().target().segment,
        };
        let target = Target::Point(n);
        let point = self.choose_again(target).await?;
        self.reach(target, point).await
    }

    /// After a take-over: the newest point, as soon as the storage site answers; `None` when asked to stop.
    async fn choose_when_answered(&mut self) -> Result<Option<PointInfo>> {
        let (cancel, mut pause) = (self.cancel.clone(), MIN_PAUSE);
        loop {
            let error = match cancel.or_stop(self.choose_after_take_over(Target::Newest)).await {
                Ok(point) => {
                    self.progress.trouble(None);
                    return Ok(Some(point));
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => return Ok(None),
                Err(e) if is_away(&e) => e,
                Err(e) => return Err(e),
            };
            self.progress.trouble(Some(error.to_string()));
            tokio::select! { () = tokio::time::sleep(pause) => {} () = cancel.cancelled() => return Ok(None) }
            pause = next_pause(pause);
        }
    }

    /// A segment is lost: the next manifest bridges it. Waits for one, and answers with the newest point then.
    async fn bridge(&mut self, error: &Error) -> Result<Bridge> {
        let lost = format!("{error}: waiting for the next manifest to bridge it");
        self.note(lost.clone());
        self.progress.trouble(Some(lost));
        let stuck_at = self.tracker().state().applied();
        let (cancel, steer) = (self.cancel.clone(), self.steer.clone());
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
        let found = tokio::select! {
            found = cancel.or_stop(look) => found,
            () = steer.completing() => return Ok(Bridge::Asked(steer.completion().unwrap_or_default())),
        };
        self.progress.trouble(None);
        match found {
            Err(e) if e.kind() == ErrorKind::Cancelled => Ok(Bridge::Stopped),
            found => found.map(|point| Bridge::To(Box::new(point))),
        }
    }
}

/// What came of waiting for a manifest.
enum Bridge {
    /// This point is beyond what was lost.
    To(Box<PointInfo>),
    /// It was asked to stop.
    Stopped,
    /// It was asked to complete.
    Asked(Completion),
}

/// Whether the storage site does not answer, or does not let us: it may do so again.
pub(super) fn is_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Denied)
}

/// The pause after `pause`.
pub(super) fn next_pause(pause: Duration) -> Duration {
    (pause * 2).min(MAX_PAUSE)
}
