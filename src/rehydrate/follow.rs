//! Landing and applying side by side: up to one point, or with every new one.
//!
//! Landing goes as fast as the log has room. Applying takes the newest landed point; only a log that fills up without a
//! point makes it run ahead. Who follows may have the disks left alone for a while, and may end it at a point: then
//! landing stops where it stands, and what it landed is applied, without a word from the storage site.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Point;
use crate::ids::{SegmentNo, SegmentRef};

use super::landing::{End, Goal, Landed, Lander, Landing, SharedView};
use super::pace::Pace;
use super::session::Session;
use super::steer::Completion;

/// Messages from landing that may wait.
const MESSAGES: usize = 256;

/// Where applying stands.
#[derive(Default)]
struct Seen {
    /// Newest segment that was appended.
    appended: SegmentRef,
    /// Newest point that was appended and is not applied.
    point: Option<(SegmentRef, Point)>,
    /// The log is full.
    full: bool,
}

/// Why applying stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Landing has ended, or it was asked to stop.
    Ended,
    /// What was landed does not count any more.
    Rewound,
    /// It was asked to complete.
    Asked(Completion),
}

impl Session {
    /// Lands and applies what comes after what is applied, as far as `goal` says. Wishes of who follows count only where
    /// all that ever comes is landed: until then the disks are brought to a first point.
    pub(super) async fn follow(&mut self, goal: Goal) -> Result<End> {
        self.indexes.clear();
        self.recent.clear();
        // Held as long as anything may be kept.
        let _reserved = self.reconciler.pipeline.reserve(self.recent.limit()).await?;
        let done = self.follow_on(goal).await;
        self.recent.clear();
        done
    }

    async fn follow_on(&mut self, goal: Goal) -> Result<End> {
        let applied = self.tracker().state().applied();
        let mut at = self.align_log(applied).await?;
        let mut seen = Seen { appended: applied, ..Seen::default() };
        let mut reached = goal.is_reached(applied.segment, false);
        for n in applied.segment.get() + 1..=at.segment.get() {
            if reached {
                break;
            }
            let Some(segment) = self.domain().locate(SegmentNo::new(n)) else { break };
            let point = self.landed_index(segment).await?.point.clone();
            if let Some(point) = &point {
                self.progress.landed(segment.segment, point.time);
            }
            reached = goal.is_reached(segment.segment, point.is_some());
            seen.take(segment, point);
            at = segment;
        }
        self.progress.unapplied(self.log.held().used_bytes);
        let view = SharedView::new(self.domain());
        let (tell, mut told) = mpsc::channel(MESSAGES);
        if reached {
            drop(tell);
            let stop = self.apply_as_it_lands(goal, &mut seen, &mut told, &view).await?;
            return self.end(goal, stop, Ok((End::Done, self.caught_up)), (seen, view)).await;
        }
        let lander = Lander {
            domain: self.domain().clone(),
            view: view.clone(),
            log: Arc::clone(&self.log),
            recent: Arc::clone(&self.recent),
            progress: Arc::clone(&self.progress),
            cancel: self.cancel.clone(),
            pace: Pace::new(self.steer.clone(), self.cancel.clone()),
        };
        let landing = crate::log_context::spawn(lander.run(at, goal, tell));
        let stopped = self.apply_as_it_lands(goal, &mut seen, &mut told, &view).await;
        match stopped {
            Ok(Stop::Ended) => told.close(),
            _ => landing.abort(),
        }
        let landed = match landing.await {
            Ok(ended) => ended,
            Err(e) if e.is_cancelled() => Ok((End::Done, Landing::default())),
            Err(e) => Err(Error::with_source(ErrorKind::Internal, "landing ended abnormally", e)),
        };
        while let Ok(message) = told.try_recv() {
            self.hear(&mut seen, message);
        }
        self.end(goal, stopped?, landed, (seen, view)).await
    }

    /// What following comes to, once applying has stopped and landing has ended.
    async fn end(
        &mut self,
        goal: Goal,
        stop: Stop,
        landed: Result<(End, Landing)>,
        (seen, view): (Seen, SharedView),
    ) -> Result<End> {
        match stop {
            Stop::Rewound => Ok(End::Rewound),
            Stop::Asked(at) => self.complete(at, seen, &view).await,
            Stop::Ended => {
                let (end, landing) = landed?;
                if matches!(goal, Goal::Point(_)) {
                    self.caught_up = landing;
                }
                Ok(end)
            }
        }
    }

    /// Brings the disks to the point at which following is to end, by what has landed.
    async fn complete(&mut self, at: Completion, seen: Seen, view: &SharedView) -> Result<End> {
        self.progress.stage("completing");
        let (applied, ahead) = {
            let state = self.tracker().state();
            (state.applied(), state.between_points())
        };
        let to = match (at, seen.point) {
            (Completion::Landed, Some((segment, _))) => segment,
            (Completion::Landed, None) => applied,
            (Completion::Point(n), _) if n == applied.segment => applied,
            (Completion::Point(n), _) if n < applied.segment || n > seen.appended.segment => {
                return Ok(End::Elsewhere(at));
            }
            (Completion::Point(n), _) => {
                if !self.know(seen.appended, view) {
                    return Ok(End::Rewound);
                }
                match self.domain().locate(n) {
                    Some(segment) if self.landed_index(segment).await?.point.is_some() => segment,
                    _ => return Ok(End::Elsewhere(at)),
                }
            }
        };
        if to == applied {
            return Ok(if ahead { End::Elsewhere(at) } else { End::Completed });
        }
        self.log.wait_landed(to.segment).await?;
        if !self.know(to, view) {
            return Ok(End::Rewound);
        }
        self.apply_through(to.segment).await?;
        Ok(End::Completed)
    }

    /// Applies until landing ends, or until what it landed does not count any more, or something else is asked.
    async fn apply_as_it_lands(
        &mut self,
        goal: Goal,
        seen: &mut Seen,
        told: &mut mpsc::Receiver<Landed>,
        view: &SharedView,
    ) -> Result<Stop> {
        let is_steered = !matches!(goal, Goal::Point(_));
        let mut wishes = self.steer.wishes();
        loop {
            let (completion, is_held) = if is_steered { wishes.look() } else { (None, false) };
            if let Some(at) = completion {
                return Ok(Stop::Asked(at));
            }
            let applied = self.tracker().state().applied().segment;
            if let Some(to) = seen.due(applied).filter(|_| !is_held) {
                self.log.wait_landed(to.segment).await?;
                if !self.know(to, view) {
                    return Ok(Stop::Rewound);
                }
                // One batch, then it is looked again at what was asked.
                self.apply_batch(to.segment).await?;
                self.progress.unapplied(self.log.held().used_bytes);
                seen.applied(self.tracker().state().applied().segment);
            } else {
                // Asked to stop, it does not wait for a segment that may be long on its way.
                let message = tokio::select! {
                    message = told.recv() => message,
                    () = wishes.changed(), if is_steered => continue,
                    () = self.cancel.cancelled() => return self.cancel.check().map(|()| Stop::Ended),
                };
                match message {
                    Some(message) => self.hear(seen, message),
                    None => return Ok(Stop::Ended),
                }
            }
            while let Ok(message) = told.try_recv() {
                self.hear(seen, message);
            }
            seen.full &= seen.appended.segment > self.tracker().state().applied().segment;
        }
    }

    fn hear(&mut self, seen: &mut Seen, message: Landed) {
        match message {
            Landed::Full => seen.full = true,
            Landed::Appended { segment, point, index } => {
                self.landed_segments += 1;
                if let Some(index) = index {
                    self.indexes.keep(*index);
                }
                seen.take(segment, point);
            }
        }
    }

    /// Takes over the lander's view of the domain where `segment` is beyond ours. Whether the segment counts: not so where
    /// a take-over cut it off since it landed. Looking by ourselves would not do: what the lander accepted counts also
    /// while a later claim has not settled its base, and then nobody who looks anew can accept it.
    fn know(&mut self, segment: SegmentRef, view: &SharedView) -> bool {
        if !self.domain().accepts(segment) {
            self.reconciler.domain = view.get();
        }
        self.domain().accepts(segment)
    }

    /// Makes the log go on after `applied`: keeps what it holds of the chain after that, and drops the rest. Answers with
    /// the last segment it holds.
    async fn align_log(&mut self, applied: SegmentRef) -> Result<SegmentRef> {
        let held = self.log.held();
        // What was trimmed is not held any more, however far the log once reached.
        let next = applied.segment.next();
        let holds_next = held.landed == applied || (held.first != SegmentNo::ZERO && held.first <= next);
        let whole = self.log.recovery().quarantined.is_empty() && held.landed == held.appended;
        // Where a take-over cut off its end, what it holds up to there is still ours.
        let ours = self.domain().ownership().common(held.landed).filter(|common| self.domain().accepts(*common));
        let ours = ours.filter(|ours| *ours != SegmentRef::default() && ours.segment >= applied.segment);
        if let Some(ours) = ours.filter(|_| holds_next && whole) {
            let kept = match ours == held.landed {
                true => Ok(()),
                false => self.log.truncate_after(ours).await,
            };
            if kept.is_ok() {
                self.log.trim(applied.segment)?;
                return Ok(ours);
            }
        }
        self.log.reset(applied).await?;
        Ok(applied)
    }
}

impl Seen {
    fn take(&mut self, segment: SegmentRef, point: Option<Point>) {
        self.appended = segment;
        if let Some(point) = point {
            self.point = Some((segment, point));
        }
    }

    /// Up to where it is to be applied now: the newest point, or all that there is where the log is full.
    fn due(&self, applied: SegmentNo) -> Option<SegmentRef> {
        let to = match &self.point {
            Some((segment, _)) => *segment,
            None if self.full => self.appended,
            None => return None,
        };
        (to.segment > applied).then_some(to)
    }

    /// Applied up to there.
    fn applied(&mut self, applied: SegmentNo) {
        if self.point.as_ref().is_some_and(|(segment, _)| segment.segment <= applied) {
            self.point = None;
        }
        self.full = false;
    }
}
