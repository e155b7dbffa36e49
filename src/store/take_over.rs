//! What taking a domain over would mean, before anything is done: who owns it, whether its writer still beats, which
//! point it would go on from and what lies after that.
//!
//! Reads only. An estimate: the owner may write on until the claim. The tip is looked at as the next claim would
//! inherit it, also where a claim whose author died keeps readers from accepting it.

use std::fmt;

use futures::TryStreamExt;

use super::keys::{self, ObjectKey};
use super::liveness::{self, LastSign};
use super::{Acceptance, Domain, Horizon, PointInfo, Points, prefix};
use crate::error::Result;
use crate::format::{Author, Digest, OwnerKind, OwnerRecord, ProcessIdentity};
use crate::ids::{Generation, Name, SegmentNo, SegmentRef, Time, WriterId};

/// From where a take-over goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseChoice {
    /// From the newest point: segments after it are cut off.
    #[default]
    NewestPoint,
    /// From the point that this segment ends at: everything after it is cut off.
    Point(SegmentNo),
    /// From the last segment, whether or not a point ends there: nothing is cut off.
    Tip,
}

/// What taking a domain over would mean.
#[derive(Debug, Clone)]
pub struct TakeOverPreview {
    /// Domain.
    pub domain: Name,
    /// Who owns it now.
    pub owner: Author,
    /// Generation of the owner.
    pub generation: Generation,
    /// When the owner claimed it.
    pub claimed: Time,
    /// When the owner released it, if it did.
    pub released: Option<Time>,
    /// The owner's last sign of life.
    pub last_sign: LastSign,
    /// The store's time at which all this was looked at.
    pub now: Time,
    /// Last segment that exists.
    pub tip: SegmentRef,
    /// Newest point; `None` where there is none.
    pub newest_point: Option<PointInfo>,
    /// Last segment that the new generation would inherit; zero for nothing.
    pub base: SegmentRef,
    /// Time of the point at that base; `None` where none ends there.
    pub base_time: Option<Time>,
    /// Segments after the base, which would be cut off.
    pub cut_segments: u64,
    /// Bytes of those segments.
    pub cut_bytes: u64,
    /// Points after the base, which would be cut off.
    pub cut_points: u64,
    /// What could not be read.
    pub warnings: Vec<String>,
}

impl Domain {
    /// What taking the domain over would mean. Changes nothing.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::ErrorKind::NotFound) where `choice` names a point that does not exist.
    pub async fn preview_take_over(&self, choice: BaseChoice) -> Result<TakeOverPreview> {
        let mut fresh = self.clone();
        fresh.refresh().await?;
        let owner = fresh.ownership().newest().expect("a domain has a first claim").clone();
        let status = fresh.status().await?;
        let now = self.site().now();
        let tip = prefix::inheritable(self.site(), self.name(), fresh.ownership()).await?;
        let inherited = fresh.as_if_inherited(tip);
        let newest = inherited.newest_point().await?;
        let (base, base_time, cut_points) = match choice {
            BaseChoice::Point(_) => {
                let points = inherited.points().await?;
                let (base, time) = inherited.base_for(choice).await?;
                (base, time, points.all().iter().filter(|p| p.at.segment > base.segment).count() as u64)
            }
            BaseChoice::NewestPoint => {
                let point = newest.point.as_ref();
                (point.map(|p| p.at).unwrap_or_default(), point.map(|p| p.time), 0)
            }
            BaseChoice::Tip => (tip, newest.point.as_ref().filter(|p| p.at == tip).map(|p| p.time), 0),
        };
        let (cut_segments, cut_bytes) = fresh.after(base).await?;
        Ok(TakeOverPreview {
            domain: self.name().clone(),
            generation: owner.generation,
            claimed: owner.claimed,
            released: owner.released,
            last_sign: liveness::last_sign(&owner, status.as_ref(), now),
            owner: owner.author,
            now,
            tip,
            newest_point: newest.point,
            base,
            base_time,
            cut_segments,
            cut_bytes,
            cut_points,
            warnings: newest.warnings,
        })
    }

    /// The points that a take-over could go on from, those included that a claim whose author died keeps readers from
    /// accepting.
    ///
    /// # Errors
    /// What the storage site says; what is damaged is told in the warnings.
    pub async fn inheritable_points(&self) -> Result<Points> {
        let mut fresh = self.clone();
        fresh.refresh().await?;
        let tip = prefix::inheritable(self.site(), self.name(), fresh.ownership()).await?;
        fresh.as_if_inherited(tip).points().await
    }

    /// This domain as it would be if a further generation had inherited everything up to `tip`.
    pub(super) fn as_if_inherited(&self, tip: SegmentRef) -> Domain {
        let mut ownership = self.ownership().clone();
        let author =
            Author { site: self.name().clone(), writer: WriterId::random(), process: ProcessIdentity::default() };
        let generation = ownership.newest_generation().next();
        let claim = OwnerKind::Claim { generation, take_over: true };
        for kind in [claim, OwnerKind::Base { generation, last: tip, digest: Digest::default() }] {
            let n = ownership.records() + 1;
            let at = Time::default();
            ownership.apply(&OwnerRecord { n, domain: self.id(), at, author: author.clone(), nonce: [0; 16], kind });
        }
        Domain::with(self.site(), self.name(), self.id(), Horizon::new(ownership))
    }

    /// The base for `choice`, up to the known tip, and the time of the point there.
    pub(super) async fn base_for(&self, choice: BaseChoice) -> Result<(SegmentRef, Option<Time>)> {
        let point = match choice {
            BaseChoice::Tip => return Ok((self.known_tip(), None)),
            BaseChoice::NewestPoint => self.newest_point().await?.point,
            BaseChoice::Point(n) => Some(self.points().await?.point(n)?.clone()),
        };
        Ok(point.map_or((SegmentRef::default(), None), |p| (p.at, Some(p.time))))
    }

    /// Number and bytes of the segments after `base` that count or could be inherited.
    ///
    /// # Errors
    /// What the storage site says.
    pub(crate) async fn after(&self, base: SegmentRef) -> Result<(u64, u64)> {
        let (mut segments, mut bytes) = (0, 0);
        for generation in self.ownership().generations() {
            if generation.base.is_none() || generation.generation < base.generation {
                continue;
            }
            let from = keys::segment(self.name(), SegmentRef::new(generation.generation, base.segment));
            let mut listing = self.site().list(&keys::segment_prefix(self.name(), generation.generation), Some(&from));
            while let Some(object) = listing.try_next().await? {
                let Some((_, ObjectKey::Segment(at))) = ObjectKey::parse(&object.key) else { continue };
                if !matches!(self.ownership().acceptance(at), Acceptance::Never | Acceptance::Unknown) {
                    segments += 1;
                    bytes += object.len;
                }
            }
        }
        Ok((segments, bytes))
    }
}

impl fmt::Display for TakeOverPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = |t: Time| liveness::age(self.now.millis_since(t));
        write!(f, "domain {} is owned by site {} since {} ", self.domain, self.owner.site, self.claimed)?;
        write!(f, "({} ago, generation {})", age(self.claimed), self.generation.get())?;
        if let Some(released) = self.released {
            write!(f, ", which released it {} ago", age(released))?;
        }
        write!(f, "; {}. ", self.last_sign)?;
        match &self.newest_point {
            Some(p) => write!(f, "Its newest point is {} of {}, {} old. ", p.at.segment.get(), p.time, age(p.time))?,
            None => write!(f, "It has no point. ")?,
        }
        match self.base.segment {
            SegmentNo::ZERO => write!(f, "Taking it over would begin anew, ")?,
            n => write!(f, "Taking it over would go on after segment {}, ", n.get())?,
        }
        if self.cut_segments == 0 {
            return write!(f, "and cut nothing off that is there now");
        }
        write!(f, "and cut off {} segments ({} bytes) ", self.cut_segments, self.cut_bytes)?;
        match (self.cut_points, &self.newest_point, self.base_time) {
            (0, _, _) => write!(f, "that no point covers yet"),
            (n, Some(newest), Some(base)) => {
                write!(f, "with {n} points, the last {} of them", liveness::age(newest.time.millis_since(base)))
            }
            (n, _, _) => write!(f, "with {n} points"),
        }
    }
}
