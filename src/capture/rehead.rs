//! Segments of a dead generation as segments of the one that goes on: same content, new place in the chain.
//!
//! A writer that spilled segments and died left content behind that no reader accepts: every start claims a new generation.
//! While those segments follow one another from the base that the new generation inherits, they are given its headers
//! and shipped; the first one that does not ends that, and what it and the later ones held is read back from the disks.
//!
//! Invariants: the new chain holds the contents of the old one, in order and without a gap, up to where it was ended;
//! nothing is passed on unverified; payloads are never decoded, so what they hold cannot change. Does no I/O.

use crate::clock::next_point_time;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, Point, Seal, SealedSegment, Segment};
use crate::ids::{SegmentRef, Time};

use super::chain::ChainEnd;

/// Takes the segments of the old chain in order and gives those of the new one.
#[derive(Debug)]
pub struct Rehead {
    end: ChainEnd,
    /// Last segment of the old chain that was taken, and the digest of its index; the base at first.
    old: (SegmentRef, Digest),
    /// Time of the newest point so far.
    point: Option<Time>,
    ended: bool,
}

impl Rehead {
    /// Goes on from `end`, whose tip is the base that the old and the new chain share; `point` is the time of the newest
    /// point up to there.
    pub fn new(end: ChainEnd, point: Option<Time>) -> Rehead {
        Rehead { end, old: (end.tip, end.digest), point, ended: false }
    }

    /// Where the new chain ends now.
    pub fn end(&self) -> ChainEnd {
        self.end
    }

    /// Time of the newest point so far.
    pub fn point(&self) -> Option<Time> {
        self.point
    }

    /// The next segment of the old chain, `old` with these bytes, as the next one of the new chain, made at `now`. Its point
    /// stays, at its old time or a millisecond after the point before, whichever is later.
    ///
    /// # Errors
    /// `Refused` where it does not follow the segment before it in the old chain, or is not of an older generation;
    /// `Damaged` or `Unsupported` where anything in it does not verify. After an error nothing more is taken: `Refused`.
    pub fn next(&mut self, old: SegmentRef, bytes: &[u8], now: Time) -> Result<SealedSegment> {
        if self.ended {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("segment {old}: one before it could not be taken over"),
            ));
        }
        // Until it is known to be good.
        self.ended = true;
        let segment = Segment::open(bytes, self.end.domain, old).map_err(|e| e.at(old))?;
        self.check_follows(&segment)?;
        let point =
            segment.index.point.as_ref().map(|p| Point { time: next_point_time(p.time, self.point), ..p.clone() });
        let time = point.as_ref().map(|p| p.time);
        let seal = Seal {
            domain: self.end.domain,
            id: SegmentRef::new(self.end.generation, self.end.tip.segment.next()),
            parent: self.end.tip,
            parent_digest: self.end.digest,
            writer: self.end.writer,
            created: now,
            point,
            catalogue: segment.index.catalogue.clone(),
        };
        let sealed = segment.reseal(seal).map_err(|e| e.at(old))?;
        self.old = (old, segment.header.index_digest);
        (self.end.tip, self.end.digest) = (sealed.header.id(), sealed.header.index_digest);
        self.point = time.or(self.point);
        self.ended = false;
        Ok(sealed)
    }

    fn check_follows(&self, segment: &Segment<'_>) -> Result<()> {
        let header = &segment.header;
        let (before, digest) = self.old;
        let refused = |why: String| Err(Error::new(ErrorKind::Refused, format!("segment {}: {why}", header.id())));
        if header.generation >= self.end.generation {
            return refused(format!("is not of a generation before {}", self.end.generation));
        }
        if header.parent() != before || header.parent_digest != digest {
            return refused(format!("follows {} ({}), not {before} ({digest})", header.parent(), header.parent_digest));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "rehead_tests.rs"]
mod tests;
