//! The end of the domain's chain of segments, as this writer extends it.
//!
//! Owns the number of the next segment, its parent and the parent's digest; a segment gets them when it is sealed, under
//! a lock that is held only for that, so that workers fill segments side by side and the chain has no gaps. Does no I/O.
//! The catalogue, where it changed, goes into the first segment that is sealed: whatever becomes of the run, what its
//! segments hold can be told by name.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::error::Result;
use crate::format::{Catalogue, Digest, Point, Seal, SealedSegment, SegmentBuilder};
use crate::ids::{DomainId, Generation, SegmentRef, WriterId};

/// Where the chain stands and who extends it.
#[derive(Debug, Clone, Copy)]
pub struct ChainEnd {
    /// Domain.
    pub domain: DomainId,
    /// Generation of the new segments.
    pub generation: Generation,
    /// Run of the writer.
    pub writer: WriterId,
    /// The newest segment; zero where there is none.
    pub tip: SegmentRef,
    /// Digest of its index.
    pub digest: Digest,
}

struct State {
    end: ChainEnd,
    catalogue: Option<Catalogue>,
}

/// See the module.
pub(crate) struct Chain {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Chain {
    /// Goes on from `end`; `catalogue` is the new one where it changed.
    pub(crate) fn new(end: ChainEnd, catalogue: Option<Catalogue>, clock: Arc<dyn Clock>) -> Chain {
        Chain { clock, state: Mutex::new(State { end, catalogue }) }
    }

    /// The catalogue changed: it goes into the next segment.
    pub(crate) fn set_catalogue(&self, catalogue: Catalogue) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).catalogue = Some(catalogue);
    }

    /// Makes the next segment of what `builder` holds; it ends at `point`, if there is one.
    ///
    /// # Errors
    /// `Internal`, where what was built is no valid segment; the chain is as it was then.
    pub(crate) fn seal(&self, builder: SegmentBuilder, point: Option<Point>) -> Result<SealedSegment> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end = state.end;
        let seal = Seal {
            domain: end.domain,
            id: SegmentRef::new(end.generation, end.tip.segment.next()),
            parent: end.tip,
            parent_digest: end.digest,
            writer: end.writer,
            created: self.clock.now(),
            point,
            catalogue: state.catalogue.clone(),
        };
        let place = format!("new segment {}", seal.id);
        let sealed = builder.seal(seal).map_err(|e| e.at(place))?;
        state.catalogue = None;
        state.end.tip = sealed.header.id();
        state.end.digest = sealed.header.index_digest;
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::format::{FrameEncoder, IndexDisk, Segment};
    use crate::ids::{DiskId, SegmentNo, VmId};

    fn end(segment: u64) -> ChainEnd {
        let generation = Generation::new(if segment == 0 { 0 } else { 1 });
        ChainEnd {
            domain: DomainId::from_bytes([1; 16]),
            generation: Generation::new(2),
            writer: WriterId::random(),
            tip: SegmentRef::new(generation, SegmentNo::new(segment)),
            digest: if segment == 0 { Digest::default() } else { Digest([9; 16]) },
        }
    }

    fn segment(byte: u8) -> SegmentBuilder {
        let disk = IndexDisk { id: DiskId::from_bytes([byte; 16]), vm: VmId::from_bytes([2; 16]), size: 4096 };
        let mut builder = SegmentBuilder::new(Vec::new());
        builder.push_data(&disk, 0, &[byte; 4096], None, &mut FrameEncoder::new(1).unwrap()).unwrap();
        builder
    }

    #[test]
    fn segments_continue_the_chain_and_only_the_first_has_the_catalogue() {
        let end = end(7);
        let chain = Chain::new(end, Some(Catalogue::default()), Arc::new(SystemClock));
        let first = chain.seal(segment(1), None).unwrap();
        let second = chain.seal(segment(2), None).unwrap();
        assert_eq!((first.header.id().to_string(), first.header.parent()), ("g2/s8".into(), end.tip));
        assert_eq!(first.header.parent_digest, end.digest);
        assert_eq!(
            (second.header.parent(), second.header.parent_digest),
            (first.header.id(), first.header.index_digest)
        );
        assert!(first.index.catalogue.is_some() && second.index.catalogue.is_none());
        let opened = Segment::open(&second.bytes, end.domain, second.header.id()).unwrap();
        assert!(opened.damaged_frames().is_empty());
    }

    #[test]
    fn a_segment_that_cannot_be_sealed_leaves_the_chain_as_it_was() {
        let chain = Chain::new(end(0), Some(Catalogue::default()), Arc::new(SystemClock));
        let mut bad = segment(1);
        let disk = IndexDisk { id: DiskId::from_bytes([1; 16]), vm: VmId::from_bytes([2; 16]), size: 4096 };
        bad.push_zeros(&disk, 0, 4096);
        assert!(chain.seal(bad, None).is_err());
        let good = chain.seal(segment(1), None).unwrap();
        assert_eq!(good.header.id().segment.get(), 1);
        assert!(good.index.catalogue.is_some());
    }
}
