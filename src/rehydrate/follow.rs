//! Landing and applying side by side: up to one point, or with every new one.
//!
//! Landing goes as fast as the log has room. Applying takes the newest landed point; only a log that fills up without a
//! point makes it run ahead.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Point;
use crate::ids::{SegmentNo, SegmentRef};

use super::landing::{End, Goal, Landed, Lander, Landing, SharedView};
use super::session::Session;

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

impl Session {
    /// Lands and applies what comes after what is applied, as far as `goal` says.
    pub(super) async fn follow(&mut self, goal: Goal) -> Result<End> {
        let applied = self.tracker().state().applied();
        let mut at = self.align_log(applied).await?;
        let mut seen = Seen { appended: applied, ..Seen::default() };
        let mut reached = goal.is_reached(applied.segment, false);
        for n in applied.segment.get() + 1..=at.segment.get() {
            if reached {
                break;
            }
            let Some(segment) = self.domain().locate(SegmentNo::new(n)) else { break };
            let point = self.landed_index(segment).await?.point;
            reached = goal.is_reached(segment.segment, point.is_some());
            seen.take(Landed::Appended { segment, point });
            at = segment;
        }
        let view = SharedView::new(self.domain());
        let (tell, mut told) = mpsc::channel(MESSAGES);
        if reached {
            drop(tell);
            return self.apply_as_it_lands(seen, &mut told, &view).await;
        }
        let lander = Lander {
            domain: self.domain().clone(),
            view: view.clone(),
            log: Arc::clone(&self.log),
            progress: Arc::clone(&self.progress),
            cancel: self.cancel.clone(),
        };
        let landing = tokio::spawn(lander.run(at, goal, tell));
        let applied = self.apply_as_it_lands(seen, &mut told, &view).await;
        drop(told);
        if !matches!(applied, Ok(End::Done)) {
            landing.abort();
        }
        let landed = match landing.await {
            Ok(ended) => ended,
            Err(e) if e.is_cancelled() => Ok((End::Done, Landing::default())),
            Err(e) => Err(Error::with_source(ErrorKind::Internal, "landing ended abnormally", e)),
        };
        if applied? == End::Rewound {
            return Ok(End::Rewound);
        }
        let (end, landing) = landed?;
        if matches!(goal, Goal::Point(_)) {
            self.caught_up = landing;
        }
        Ok(end)
    }

    /// Applies until landing ends, or until what it landed does not count any more.
    async fn apply_as_it_lands(
        &mut self,
        mut seen: Seen,
        told: &mut mpsc::Receiver<Landed>,
        view: &SharedView,
    ) -> Result<End> {
        loop {
            let point = seen.point.take();
            let (to, is_due) = match &point {
                Some((segment, _)) => (*segment, true),
                None => (seen.appended, seen.full),
            };
            if is_due && to.segment > self.tracker().state().applied().segment {
                self.log.wait_landed(to.segment).await?;
                if !self.know(to, view) {
                    return Ok(End::Rewound);
                }
                if let Some((segment, point)) = point {
                    self.progress.landed(segment.segment, point.time);
                }
                self.apply_through(to.segment).await?;
                seen.full = false;
            }
            if seen.point.is_none() && !seen.full {
                // Asked to stop, it does not wait for a segment that may be long on its way.
                let message = tokio::select! {
                    message = told.recv() => message,
                    () = self.cancel.cancelled() => return self.cancel.check().map(|()| End::Done),
                };
                match message {
                    Some(message) => self.hear(&mut seen, message),
                    None => return Ok(End::Done),
                }
            }
            while let Ok(message) = told.try_recv() {
                self.hear(&mut seen, message);
            }
            seen.full &= seen.appended.segment > self.tracker().state().applied().segment;
        }
    }

    fn hear(&mut self, seen: &mut Seen, message: Landed) {
        self.landed_segments += u64::from(matches!(message, Landed::Appended { .. }));
        seen.take(message);
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
        let whole = self.log.recovery().quarantined.is_empty();
        let ours = self.domain().accepts(held.landed);
        let further = held.landed.segment >= applied.segment && held.landed != SegmentRef::default();
        if holds_next && further && whole && ours && held.landed == held.appended {
            self.log.trim(applied.segment)?;
            return Ok(held.landed);
        }
        self.log.reset(applied).await?;
        Ok(applied)
    }
}

impl Seen {
    fn take(&mut self, message: Landed) {
        match message {
            Landed::Appended { segment, point } => {
                self.appended = segment;
                if let Some(point) = point {
                    self.point = Some((segment, point));
                }
            }
            Landed::Full => self.full = true,
        }
    }
}
