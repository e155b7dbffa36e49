//! What a dead generation of this site left in the replication log becomes part of the new one.
//!
//! Owns the decision how much of it: as long as the segments follow one another from the base that was inherited. The
//! rest is given up; its regions are marked, and resynced. Invariant: what it takes over is stored and accepted before
//! it is laid over the map, and the log is empty afterwards.

use crate::capture::{ChainEnd, Rehead};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Segment;
use crate::ids::SegmentNo;
use crate::log::ReplicationLog;
use crate::map::PointMap;
use crate::store::{DomainWriter, Settled, keys};

/// Takes over what it can and empties the log; answers how many segments the domain gained.
///
/// # Errors
/// What the storage site says: the log is as it was then. `Fenced`.
pub(super) async fn take_over(
    log: &ReplicationLog,
    writer: &DomainWriter,
    map: &mut PointMap,
    clock: &dyn Clock,
) -> Result<u64> {
    let held = log.held();
    if held.used_bytes == 0 {
        return Ok(0);
    }
    let end = ChainEnd {
        domain: writer.domain().id(),
        generation: writer.generation(),
        writer: writer.writer(),
        tip: map.at(),
        digest: map.index_digest(),
    };
    let base = map.at().segment;
    let mut rehead = Rehead::new(end, map.last_point().map(|point| point.time));
    let (mut buffer, mut taken) = (Vec::new(), 0);
    for number in held.first.max(base.next()).get()..=held.landed.segment.get() {
        // Reads of a log that nobody writes to: short enough for this thread.
        let old = log.read(SegmentNo::new(number), &mut buffer).and_then(|_| {
            let old = Segment::open_any(&buffer).map_err(|e| e.at(format!("spilled segment {number}")))?;
            rehead.next(old.header.id(), &buffer, clock.now())
        });
        let sealed = match old {
            Ok(sealed) => sealed,
            Err(why) => {
                tracing::info!("the log is given up from segment {number} on, its regions are resynced: {why}");
                break;
            }
        };
        let (site, at) = (writer.domain().site(), sealed.header.id());
        let key = keys::segment(writer.domain().name(), at);
        match site.create_settled(&key, vec![sealed.bytes.into()]).await? {
            Settled::New | Settled::Ours => {}
            Settled::Theirs => {
                let why = "holds another segment: somebody else writes in this writer's generation";
                return Err(Error::new(ErrorKind::Fenced, format!("{}: {key} {why}", site.url())));
            }
        }
        writer.accept_up_to(at).await?;
        map.apply(&sealed.index, sealed.header.index_digest, sealed.header.total_len)?;
        taken += 1;
    }
    log.reset(map.at()).await?;
    Ok(taken)
}
