//! Landing and applying side by side: up to one point, or with every new one.
//!
//! Landing goes as fast as the log has room. Applying takes the newest landed point; only a log that fills up without a
//! point makes it run ahead.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Point;
use crate::ids::{SegmentNo, SegmentRef};

use super::landing::{End, Landed, Lander};
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
    /// Lands and applies what comes after what is applied, up to point `until`, or all that ever comes.
    pub(super) async fn follow(&mut self, until: Option<SegmentNo>) -> Result<End> {
        let applied = self.tracker().state().applied();
        let mut at = self.align_log(applied).await?;
        if let Some(until) = until.filter(|until| at.segment > *until) {
            at = self.domain().locate(until).unwrap_or(at);
        }
        let mut seen = Seen { appended: applied, ..Seen::default() };
        for n in applied.segment.get() + 1..=at.segment.get() {
            let Some(segment) = self.domain().locate(SegmentNo::new(n)) else { break };
            let point = self.landed_index(segment).await?.point;
            seen.take(Landed::Appended { segment, point });
        }
        let lander = Lander {
            domain: self.domain().clone(),
            log: Arc::clone(&self.log),
            progress: Arc::clone(&self.progress),
            cancel: self.cancel.clone(),
        };
        let (tell, mut told) = mpsc::channel(MESSAGES);
        let landing = tokio::spawn(lander.run(at, until, tell));
        let applied = self.apply_as_it_lands(seen, &mut told).await;
        drop(told);
        if applied.is_err() {
            landing.abort();
        }
        let landed = match landing.await {
            Ok(end) => end,
            Err(e) if e.is_cancelled() => Ok(End::Done),
            Err(e) => Err(Error::with_source(ErrorKind::Internal, "landing ended abnormally", e)),
        };
        applied?;
        landed
    }

    async fn apply_as_it_lands(&mut self, mut seen: Seen, told: &mut mpsc::Receiver<Landed>) -> Result<()> {
        loop {
            if let Some((segment, point)) = seen.point.take() {
                self.log.wait_landed(segment.segment).await?;
                self.progress.landed(segment.segment, point.time);
                self.know(segment).await?;
                self.apply_through(segment.segment).await?;
                seen.full = false;
            } else if seen.full && seen.appended.segment > self.tracker().state().applied().segment {
                self.log.wait_landed(seen.appended.segment).await?;
                self.know(seen.appended).await?;
                self.apply_through(seen.appended.segment).await?;
                seen.full = false;
            }
            if seen.point.is_none() && !seen.full {
                match told.recv().await {
                    Some(message) => self.hear(&mut seen, message),
                    None => return Ok(()),
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

    /// The lander's view of the domain moved on; this one follows.
    async fn know(&mut self, segment: SegmentRef) -> Result<()> {
        if self.domain().locate(segment.segment).is_none() {
            self.reconciler.domain.tip().await?;
        }
        Ok(())
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
