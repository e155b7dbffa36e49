//! What a writer and its heartbeat share: the view of the ownership log under which segments are accepted, and the
//! knowledge that it was superseded, which is never forgotten.
//!
//! The heartbeat also reads the next ownership record, so that an idle writer notices soon that it is fenced; it then
//! stops and leaves the status to its successor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::liveness::name_writer;
use super::{GenerationInfo, Horizon, StorageSite, keys, owner_log};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Author, Mode, Status};
use crate::ids::{DomainId, Generation, Name, SegmentRef, Time};

/// Most records read for one acceptance.
const MAX_TURNS: usize = 1000;

/// A writer's place in its domain.
pub(super) struct Seat {
    site: StorageSite,
    name: Name,
    id: DomainId,
    author: Author,
    generation: Generation,
    clock: Arc<dyn Clock>,
    horizon: Mutex<Horizon>,
    /// Why this writer is not the writer any more.
    fenced: OnceLock<String>,
    point: StdMutex<(SegmentRef, Time)>,
    beats: AtomicU64,
}

impl Seat {
    pub(super) fn new(
        site: &StorageSite,
        name: &Name,
        id: DomainId,
        author: Author,
        generation: Generation,
        clock: Arc<dyn Clock>,
        horizon: Horizon,
    ) -> Seat {
        Seat {
            site: site.clone(),
            name: name.clone(),
            id,
            author,
            generation,
            clock,
            horizon: Mutex::new(horizon),
            fenced: OnceLock::new(),
            point: StdMutex::default(),
            beats: AtomicU64::new(0),
        }
    }

    pub(super) fn author(&self) -> &Author {
        &self.author
    }

    pub(super) async fn tip(&self) -> SegmentRef {
        self.horizon.lock().await.tip()
    }

    pub(super) async fn horizon(&self) -> Horizon {
        self.horizon.lock().await.clone()
    }

    pub(super) fn report_point(&self, at: SegmentRef, time: Time) {
        *self.point.lock().unwrap_or_else(PoisonError::into_inner) = (at, time);
    }

    /// Fails where it is known that this writer is superseded.
    pub(super) fn check(&self) -> Result<()> {
        match self.fenced.get() {
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::Fenced, why.clone())),
        }
    }

    /// Accepts own segments up to `at`, all of which exist.
    pub(super) async fn accept(&self, at: SegmentRef) -> Result<()> {
        self.check()?;
        let mut horizon = self.horizon.lock().await;
        for _ in 0..MAX_TURNS {
            let Some(seen) = horizon.seen(at) else { return self.superseded(&horizon) };
            if !owner_log::advance(&self.site, &self.name, &mut horizon).await? {
                horizon.accept(&seen);
                return Ok(());
            }
        }
        let why = format!("the ownership log of domain {} grows without end", self.name);
        Err(Error::new(ErrorKind::Unreachable, format!("storage site {}: {why}", self.site.url())))
    }

    /// Reads what was appended, and fails where that supersedes this writer.
    async fn look(&self) -> Result<()> {
        self.check()?;
        let mut horizon = self.horizon.lock().await;
        owner_log::refresh(&self.site, &self.name, &mut horizon).await?;
        match horizon.ownership().newest_generation() == self.generation {
            true => Ok(()),
            false => self.superseded(&horizon),
        }
    }

    fn superseded(&self, horizon: &Horizon) -> Result<()> {
        let newest = horizon.ownership().newest().expect("our own claim at least");
        let error = fenced(&self.name, newest);
        Err(Error::new(error.kind(), self.fenced.get_or_init(|| error.context().to_owned()).clone()))
    }

    /// Writes the status.
    pub(super) async fn beat(&self) -> Result<()> {
        self.write(Mode::Replicating).await
    }

    /// Writes the last status, unless the domain is another's by now.
    pub(super) async fn end(&self) -> Result<()> {
        match self.look().await {
            Ok(()) => self.write(Mode::Idle).await,
            Err(error) => Err(error),
        }
    }

    async fn write(&self, mode: Mode) -> Result<()> {
        let (point, point_time) = *self.point.lock().unwrap_or_else(PoisonError::into_inner);
        let status = Status {
            domain: self.id,
            author: self.author.clone(),
            generation: self.generation,
            mode,
            point,
            point_time,
            beat: self.beats.fetch_add(1, Ordering::Relaxed) + 1,
            at: self.clock.now(),
        };
        self.site.put_status(&keys::status(&self.name), Bytes::copy_from_slice(&status.encode())).await
    }

    /// Beats until it is aborted or fenced. A store that does not answer is asked again at the next beat.
    pub(super) async fn keep_beating(self: Arc<Seat>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let beat = match self.look().await {
                Ok(()) => self.beat().await,
                Err(error) => Err(error),
            };
            match beat {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Fenced => return tracing::warn!("{error}"),
                Err(error) => tracing::warn!("heartbeat of domain {}: {error}", self.name),
            }
        }
    }
}

/// The error of a writer whose domain the writer of `newest` has claimed since.
pub(super) fn fenced(name: &Name, newest: &GenerationInfo) -> Error {
    let who = name_writer(&newest.author);
    let claim =
        format!("generation {} was claimed at {} by site {}", newest.generation, newest.claimed, newest.author.site);
    let advice = "nothing more is accepted from here; local data is kept";
    Error::new(ErrorKind::Fenced, format!("domain {name}: {claim}, {who}; {advice}"))
}
