//! Landing: segments from the storage site into the replication log, in order, verified and as they came.
//!
//! ```text
//! next segment's key --> range GETs, a few segments ahead --> verify in parts --> log.append (waits while full)
//! ```
//!
//! A frame that does not verify after the segment was fetched again is named and landed as it is: applying quarantines
//! its range. A segment that is missing or whose index is damaged cannot land: that is an error.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Index, Parts, Point, SegmentHeader, VerifiedSegment, verify_segment};
use crate::ids::{SegmentNo, SegmentRef, Time};
use crate::log::ReplicationLog;
use crate::progress::Progress;
use crate::store::{Domain, Next, keys};

use super::pace::Pace;
use super::recent::Recent;
use super::run::{MIN_PAUSE, is_away, next_pause};
use super::steer::Completion;
use super::work::MAX_RANGE;

/// Segments that are fetched at once.
const SEGMENTS_AHEAD: usize = 4;
/// Points that wait to be told as landed.
const POINTS: usize = 64;
/// Time after which an append that waits is told to who applies.
const STALL: Duration = Duration::from_millis(100);
/// Further fetches of a segment that does not verify.
const REFETCHES: usize = 2;

/// What landing tells to who applies.
#[derive(Debug)]
pub(super) enum Landed {
    /// A segment was appended; it is durable once the log says so.
    Appended {
        /// Which.
        segment: SegmentRef,
        /// The point that it ends at.
        point: Option<Point>,
        /// Its index, where it was just fetched.
        index: Option<Box<Index>>,
    },
    /// The log is full: something must be applied.
    Full,
}

/// How landing, or following, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Its goal is reached, or it was asked to stop.
    Done,
    /// A take-over cut off what was landed.
    Rewound,
    /// It was asked to complete, and has: the disks are at the point that was asked for.
    Completed,
    /// It was asked to complete at a point to which what landed does not lead.
    Elsewhere(Completion),
}

/// What landing up to a given point took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Landing {
    /// Segments that were appended to the log.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds from the first look for a segment until the last one was durable; 0 where none was missing.
    pub seconds: f64,
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Up to this segment, which exists and ends at a point.
    Point(SegmentNo),
    /// Up to the first point of this number or a higher one.
    FirstPointFrom(SegmentNo),
    /// All that ever comes.
    Never,
}

impl Goal {
    /// Whether nothing after `segment` is needed.
    pub(super) fn is_reached(self, segment: SegmentNo, is_point: bool) -> bool {
        match self {
            Goal::Point(n) => segment >= n,
            Goal::FirstPointFrom(n) => is_point && segment >= n,
            Goal::Never => false,
        }
    }
}

/// The newest view of the domain that landing had, for who applies: what was accepted there counts here.
#[derive(Clone)]
pub(super) struct SharedView(Arc<Mutex<Domain>>);

impl SharedView {
    pub(super) fn new(domain: &Domain) -> SharedView {
        SharedView(Arc::new(Mutex::new(domain.clone())))
    }

    pub(super) fn get(&self) -> Domain {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, domain: &Domain) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = domain.clone();
    }
}

/// See the module.
pub(super) struct Lander {
    pub(super) domain: Domain,
    pub(super) view: SharedView,
    pub(super) log: Arc<ReplicationLog>,
    pub(super) recent: Arc<Recent>,
    pub(super) progress: Arc<Progress>,
    pub(super) cancel: Cancel,
    pub(super) pace: Pace,
}

enum Item {
    Segment(SegmentRef),
    Rewound,
}

impl Lander {
    /// Lands what comes after `at`, as far as `goal` says; each point is told as landed once it is durable.
    pub(super) async fn run(self, at: SegmentRef, goal: Goal, tell: mpsc::Sender<Landed>) -> Result<(End, Landing)> {
        let (points, appended) = mpsc::channel(POINTS);
        let (log, progress) = (Arc::clone(&self.log), Arc::clone(&self.progress));
        let (landed, ()) =
            tokio::try_join!(self.land(at, goal, tell, points), tell_durable(appended, &log, &progress))?;
        Ok(landed)
    }

    async fn land(
        self,
        at: SegmentRef,
        goal: Goal,
        tell: mpsc::Sender<Landed>,
        points: mpsc::Sender<(SegmentNo, Time)>,
    ) -> Result<(End, Landing)> {
        let (begun, mut landing) = (Instant::now(), Landing::default());
        let (domain, log, progress) = (self.domain.clone(), Arc::clone(&self.log), Arc::clone(&self.progress));
        let recent = Arc::clone(&self.recent);
        let patience = Patience::new(goal, &self.progress, &self.cancel);
        let pace = self.pace.clone();
        let fetched = self.following(at, goal, patience.clone()).map(|item| {
            let (domain, progress, patience) = (domain.clone(), Arc::clone(&progress), patience.clone());
            async move {
                match item? {
                    Item::Rewound => Ok(None),
                    Item::Segment(segment) => {
                        patience.keep(|| fetch_verified(&domain, segment, &progress)).await.map(Some)
                    }
                }
            }
        });
        let mut fetched = std::pin::pin!(fetched.buffered(SEGMENTS_AHEAD));
        while let Some(next) = fetched.next().await {
            let Some((parts, segment)) = next? else { return Ok((End::Rewound, landing)) };
            append(&log, &segment.header, &parts, &tell).await?;
            recent.keep(segment.header.id(), &parts);
            if !segment.index.entries.is_empty() {
                pace.wrote();
            }
            landing.segments += 1;
            landing.bytes += Parts::new(&parts).len();
            let point = segment.index.point.clone();
            let id = segment.header.id();
            let reached = goal.is_reached(id.segment, point.is_some());
            let time = point.as_ref().map(|point| point.time);
            let index = Some(Box::new(segment.index));
            if tell.send(Landed::Appended { segment: id, point, index }).await.is_err() {
                break;
            }
            // After it was told to who applies: what is reported as landed can be completed at.
            if let Some(time) = time
                && points.send((id.segment, time)).await.is_err()
            {
                break;
            }
            if reached {
                // Who applies goes on with what it has.
                drop(tell);
                log.wait_landed(id.segment).await?;
                landing.seconds = begun.elapsed().as_secs_f64();
                break;
            }
        }
        Ok((End::Done, landing))
    }

    /// The segments after `at` as they appear.
    fn following(self, at: SegmentRef, goal: Goal, patience: Patience) -> impl Stream<Item = Result<Item>> {
        let (view, pace) = (self.view, self.pace);
        let state = Some((self.domain, self.cancel, at));
        stream::unfold(state, move |state| {
            let (view, patience, pace) = (view.clone(), patience.clone(), pace.clone());
            async move {
                let (mut domain, cancel, at) = state?;
                let mut pause = MIN_PAUSE;
                loop {
                    // Whether what is landed ends at a point is told only by `run`.
                    if cancel.is_cancelled() || goal.is_reached(at.segment, false) {
                        return None;
                    }
                    let next = domain.next_after(at).await;
                    view.set(&domain);
                    match next {
                        Ok(Next::Segment(next)) => {
                            return Some((Ok(Item::Segment(next)), Some((domain, cancel, next))));
                        }
                        Ok(Next::Rewound { .. }) => return Some((Ok(Item::Rewound), None)),
                        Ok(Next::NotYet) => pace.wait().await,
                        Err(e) => match patience.wait(e, &mut pause).await {
                            Ok(()) => continue,
                            Err(e) => return Some((Err(e), None)),
                        },
                    }
                    patience.is_answered();
                    pause = MIN_PAUSE;
                }
            }
        })
    }
}

/// Whether a storage site that is away is waited for: who follows goes on as soon as it is back, and who is brought to a
/// point is told that it cannot be had.
#[derive(Clone)]
struct Patience {
    waits: bool,
    progress: Arc<Progress>,
    cancel: Cancel,
}

impl Patience {
    fn new(goal: Goal, progress: &Arc<Progress>, cancel: &Cancel) -> Patience {
        let waits = !matches!(goal, Goal::Point(_));
        Patience { waits, progress: Arc::clone(progress), cancel: cancel.clone() }
    }

    /// What `work` answers, tried again while the storage site is away.
    async fn keep<T, F: Future<Output = Result<T>>>(&self, work: impl Fn() -> F) -> Result<T> {
        let mut pause = MIN_PAUSE;
        loop {
            match work().await {
                Ok(done) => {
                    self.is_answered();
                    return Ok(done);
                }
                Err(e) => self.wait(e, &mut pause).await?,
            }
        }
    }

    /// Waits a little where it may get better by itself; the error otherwise.
    async fn wait(&self, error: Error, pause: &mut Duration) -> Result<()> {
        if !self.waits || !is_away(&error) || self.cancel.is_cancelled() {
            return Err(error);
        }
        self.progress.trouble(Some(error.to_string()));
        tokio::select! { () = tokio::time::sleep(*pause) => {} () = self.cancel.cancelled() => {} }
        *pause = next_pause(*pause);
        Ok(())
    }

    fn is_answered(&self) {
        self.progress.trouble(None);
    }
}

/// Tells points as landed, in order, each once it is durable.
async fn tell_durable(
    mut appended: mpsc::Receiver<(SegmentNo, Time)>,
    log: &ReplicationLog,
    progress: &Progress,
) -> Result<()> {
    while let Some((segment, time)) = appended.recv().await {
        log.wait_landed(segment).await?;
        progress.landed(segment, time);
        progress.unapplied(log.held().used_bytes);
    }
    Ok(())
}

async fn append(
    log: &ReplicationLog,
    header: &SegmentHeader,
    parts: &[Bytes],
    tell: &mpsc::Sender<Landed>,
) -> Result<()> {
    let mut appended = std::pin::pin!(log.append(header, parts));
    loop {
        tokio::select! {
            done = &mut appended => return done,
            () = tokio::time::sleep(STALL) => {
                // Full channel: who applies has enough to do, and will be told again.
                let _ = tell.try_send(Landed::Full);
            }
        }
    }
}

/// Fetches a segment by parallel ranges, and verifies it.
async fn fetch_verified(
    domain: &Domain,
    segment: SegmentRef,
    progress: &Progress,
) -> Result<(Vec<Bytes>, VerifiedSegment)> {
    let key = keys::segment(domain.name(), segment);
    let place = || format!("storage site {}: object {key}", domain.site().url());
    let mut last = None;
    for _ in 0..=REFETCHES {
        let parts = fetch_whole(domain, &key, progress).await?;
        match verify_segment(&Parts::new(&parts), domain.id(), segment) {
            Ok(verified) if verified.damaged.is_empty() => return Ok((parts, verified)),
            Ok(verified) => last = Some(Ok((parts, verified))),
            Err(e) => last = Some(Err(e.at(place()))),
        }
    }
    let missing = || Err(Error::new(ErrorKind::Damaged, format!("{}: could not be read", place())));
    let (parts, verified) = last.unwrap_or_else(missing)?;
    for (entry, error) in &verified.damaged {
        progress.note(format!("damaged: {}: frame of byte {}: {error}", place(), entry.offset));
    }
    Ok((parts, verified))
}

async fn fetch_whole(domain: &Domain, key: &str, progress: &Progress) -> Result<Vec<Bytes>> {
    let site = domain.site();
    let gone = || Error::new(ErrorKind::Damaged, format!("storage site {}: object {key} is missing", site.url()));
    let first = site.get_range(key, 0..MAX_RANGE).await?.ok_or_else(gone)?;
    progress.add_moved(first.len);
    let mut parts = first.parts;
    let starts = (1..first.object_len.div_ceil(MAX_RANGE)).map(|i| i * MAX_RANGE);
    let mut rest = stream::iter(starts)
        .map(|start| async move { site.get_range(key, start..(start + MAX_RANGE).min(first.object_len)).await })
        .buffered(8);
    while let Some(range) = rest.next().await {
        let range = range?.ok_or_else(gone)?;
        progress.add_moved(range.len);
        parts.extend(range.parts);
    }
    Ok(parts)
}
