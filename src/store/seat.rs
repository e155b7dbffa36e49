//! What a writer and its heartbeat share: the view of the ownership log under which segments are accepted, and the
//! knowledge that it was superseded, which is never forgotten.
//!
//! Between heartbeats the next ownership record is looked for, so that an idle writer notices soon that it is fenced, or
//! that another site asks for the domain; one that ships has looked already, with each acceptance. Once it is fenced it
//! stops and leaves the status to its successor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::hand_over::{Hand, may_resume};
use super::liveness::name_writer;
use super::{Asked, GenerationInfo, HandOver, Horizon, Ownership, StorageSite, keys, owner_log};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Author, Mode, OwnerKind, Status};
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
    /// When the next ownership record was last looked for.
    looked: StdMutex<Instant>,
    /// Who asks for the domain.
    asked: watch::Sender<Option<Asked>>,
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
            looked: StdMutex::new(Instant::now()),
            asked: watch::Sender::new(None),
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

    /// Told of who asks for the domain, as that is read.
    pub(super) fn asked(&self) -> watch::Receiver<Option<Asked>> {
        self.asked.subscribe()
    }

    /// The log was read to its end just now.
    fn note_looked(&self, ownership: &Ownership) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let asked = match ownership.hand_over() {
            HandOver::Asked(asked) | HandOver::Released(_, Some(asked)) => Some(asked),
            _ => None,
        };
        self.asked.send_if_modified(|known| std::mem::replace(known, asked.clone()) != asked);
    }

    /// Accepts own segments up to `at`, all of which exist.
    pub(super) async fn accept(&self, at: SegmentRef) -> Result<()> {
        self.check()?;
        let mut horizon = self.horizon.lock().await;
        for _ in 0..MAX_TURNS {
            let Some(seen) = horizon.seen(at) else { return self.superseded(&horizon) };
            if !owner_log::advance(&self.site, &self.name, &mut horizon).await? {
                horizon.accept(&seen);
                self.note_looked(horizon.ownership());
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
            true => {
                self.note_looked(horizon.ownership());
                Ok(())
            }
            false => self.superseded(&horizon),
        }
    }

    /// Gives the domain up, with what was accepted; when that was. Done before is done.
    pub(super) async fn release(&self) -> Result<Time> {
        let generation = self.generation;
        self.append(|ownership, last| {
            let open = ownership.newest().is_some_and(|newest| newest.released.is_none());
            open.then_some(OwnerKind::Release { generation, last })
        })
        .await?;
        let horizon = self.horizon.lock().await;
        let released = horizon.ownership().newest().and_then(|newest| newest.released);
        released.ok_or_else(|| Error::new(ErrorKind::Refused, format!("domain {}: was taken back", self.name)))
    }

    /// Goes on: takes a release back, or turns down who asks. `settle`: a release may be on its way that is in no log yet,
    /// and must not come to be there.
    pub(super) async fn resume(&self, settle: bool) -> Result<()> {
        let generation = self.generation;
        let before = self.horizon.lock().await.ownership().records();
        let resumed = self.append(|ownership, _| {
            let unsettled = settle && ownership.records() == before;
            (may_resume(ownership) || unsettled).then_some(OwnerKind::Resume { generation })
        });
        match resumed.await {
            // It has the number that the release was meant for, which is all that it is for.
            Err(error) if error.kind() == ErrorKind::Refused && settle => self.check(),
            other => other,
        }
    }

    /// Appends what `decide` makes of the log and the newest accepted segment, as long as this writer is the writer.
    async fn append(&self, decide: impl Fn(&Ownership, SegmentRef) -> Option<OwnerKind>) -> Result<()> {
        self.check()?;
        let mut horizon = self.horizon.lock().await;
        let (site, name, author) = (&self.site, &self.name, self.author.clone());
        // What is decided on is the log as it is, not as it was at the last look.
        owner_log::refresh(site, name, &mut horizon).await?;
        let (tip, hand) = (horizon.tip(), Hand { site, name, domain: self.id, author });
        let decide = |ownership: &Ownership| match ownership.newest() {
            Some(newest) if newest.generation != self.generation => Err(fenced(&self.name, newest)),
            _ => Ok(decide(ownership, tip)),
        };
        let appended = hand.append(&mut horizon, || self.clock.now(), decide).await;
        match appended {
            Ok(_) => {
                self.note_looked(horizon.ownership());
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Fenced => self.superseded(&horizon),
            Err(error) => Err(error),
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

    /// Beats until it is aborted or fenced, and looks for the next ownership record in between. A store that does not answer
    /// is asked again.
    pub(super) async fn keep_beating(self: Arc<Seat>, every: Duration, look_every: Duration) {
        let mut beaten = Instant::now();
        loop {
            tokio::time::sleep(look_every.min(every)).await;
            let due = beaten.elapsed() >= every;
            let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            let look = match due || looked.elapsed() >= look_every {
                true => self.look().await,
                false => self.check(),
            };
            let beat = match look {
                Ok(()) if due => {
                    beaten = Instant::now();
                    self.beat().await
                }
                looked => looked,
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
