//! Packing: threads that compress cuts side by side, and the sealing of them in order.
//!
//! ```text
//! cuts -> threads: frames -> reorder by number -> chain: parent, digest, point -> backlog
//! ```
//!
//! Owns the order of sealing. Invariant: segments are sealed in the order of their numbers, without gaps. Bounded: an
//! arena is free only after its cut is packed, so no more cuts are under way than there are arenas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::Receiver;
use tokio::sync::mpsc;

use super::backlog::{Backlog, Sealed};
use super::recorder::Cut;
use crate::capture::Chain;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{FrameEncoder, Point, SegmentBuilder};
use crate::ids::SegmentNo;
use crate::log_context::here;

/// A cut whose frames are compressed.
pub(crate) struct Packed {
    number: SegmentNo,
    builder: SegmentBuilder,
    point: Point,
    at: Instant,
    written: u64,
    raw: u64,
}

/// Starts `threads` packing threads; what they pack goes to `out`. They end when `cuts` is closed and empty.
///
/// # Errors
/// `Io` where a thread or its compression context cannot be made.
pub(crate) fn start(
    threads: usize,
    level: i32,
    cuts: &Receiver<Cut>,
    out: &mpsc::Sender<Result<Packed>>,
) -> Result<Vec<JoinHandle<()>>> {
    let mut started = Vec::with_capacity(threads);
    for _ in 0..threads {
        let encoder = FrameEncoder::new(level).io_context(|| "set up compression")?;
        let (cuts, out) = (cuts.clone(), out.clone());
        let thread = std::thread::Builder::new().name("freshet-pack".into());
        started.push(thread.spawn(here(move || run(&cuts, &out, encoder))).io_context(|| "start a packing thread")?);
    }
    Ok(started)
}

/// How much less of a processor a packing thread is given than one that serves guests, as nice(2) counts.
const NICE: i32 = 10;

fn run(cuts: &Receiver<Cut>, out: &mpsc::Sender<Result<Packed>>, mut encoder: FrameEncoder) {
    // Guests come first: on few processors, compressing would be felt in their latency. Of this thread alone.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("packing runs at the same priority as serving: {error}");
    }
    let mut scratch = Vec::new();
    for cut in cuts {
        let room = Vec::with_capacity(cut.batch.used() / 2 + (64 << 10));
        let packed = cut.batch.pack(&mut encoder, &mut scratch, room);
        let (number, written) = (cut.batch.number(), cut.batch.written());
        // The arena goes back before there is a wait.
        drop(cut.batch);
        let (point, at) = (cut.point, cut.at);
        let packed = packed.map(|builder| Packed { number, raw: builder.raw_bytes(), builder, point, at, written });
        let packed = packed.io_context(|| format!("compress segment {number}"));
        let failed = packed.is_err();
        if out.blocking_send(packed).is_err() || failed {
            return;
        }
    }
}

/// Seals what is packed, in order, and hands it to `backlog`, until all packers have ended.
///
/// # Errors
/// What failed in packing, sealing or spilling; nothing after that segment is part of the chain then.
pub(crate) async fn seal_all(
    mut packed: mpsc::Receiver<Result<Packed>>,
    first: SegmentNo,
    chain: Arc<Chain>,
    backlog: &Backlog,
) -> Result<()> {
    let (mut apart, mut next) = (BTreeMap::new(), first);
    while let Some(one) = packed.recv().await {
        let one = one?;
        apart.insert(one.number, one);
        while let Some(one) = apart.remove(&next) {
            next = next.next();
            let chain = Arc::clone(&chain);
            let sealing = tokio::task::spawn_blocking(move || seal(one, &chain)).await;
            let sealed = sealing.map_err(|e| Error::with_source(ErrorKind::Internal, "seal a segment", e))??;
            backlog.push(sealed).await?;
        }
    }
    match apart.is_empty() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Internal, format!("segment {next} was never packed"))),
    }
}

fn seal(packed: Packed, chain: &Chain) -> Result<Sealed> {
    let sealed = chain.seal(packed.builder, Some(packed.point.clone()))?;
    if sealed.header.segment != packed.number {
        let why = format!("segment {} was sealed as {}", packed.number, sealed.header.id());
        return Err(Error::new(ErrorKind::Internal, why));
    }
    let mut bytes = sealed.bytes;
    bytes.shrink_to_fit();
    Ok(Sealed {
        header: sealed.header,
        index: Some(sealed.index),
        bytes: bytes.into(),
        point: packed.point,
        cut: packed.at,
        written: packed.written,
        raw: packed.raw,
    })
}
