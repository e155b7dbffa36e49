//! What this machine could do at best, measured in the same run: how long direct writes of as many bytes take, and how
//! long libzstd and the checksum take for the frames that were stored, on all cores.
//!
//! A pipeline that overlaps them perfectly takes as long as the slower one. It leaves out reading the store and the
//! processor time of writing, so that it is a little too kind to the machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::datastore::{Access, Completion, EngineKind, EngineOptions, Op, Request, Slab, start};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{FrameDecoder, Segment};

/// Writes under way at once, and bytes of each.
const WRITES: usize = 32;
const SLOT: usize = 1 << 20;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limit {
    /// Bytes that were written.
    pub written: u64,
    /// Seconds that direct writes of them took, the sync included.
    pub write_seconds: f64,
    /// Raw bytes of all stored frames.
    pub decoded: u64,
    /// Seconds that decoding as many bytes as were written takes on all cores.
    pub decode_seconds: f64,
}

impl Limit {
    /// The least that the rehydration could take.
    pub fn seconds(&self) -> f64 {
        self.write_seconds.max(self.decode_seconds)
    }
}

/// Measures both for a rehydration that wrote `bytes` out of the store in `dir`.
pub(super) fn measure(dir: &Path, bytes: u64) -> Result<Limit> {
    let write_seconds = write(&dir.join("limit"), bytes)?;
    let (decoded, seconds) = decode(&segments(&dir.join("store"))?)?;
    // What a later segment replaced was decoded here and not by the rehydration.
    let share = if decoded > 0 { (bytes as f64 / decoded as f64).min(1.0) } else { 0.0 };
    Ok(Limit { written: bytes, write_seconds, decoded, decode_seconds: seconds * share })
}

/// Direct writes of buffers that are ready, many at once, into a new file, and a sync.
fn write(path: &Path, bytes: u64) -> Result<f64> {
    let slab = Slab::new(WRITES, SLOT)?;
    let engine = start(EngineKind::Auto, Arc::clone(&slab), EngineOptions::default())?;
    fill(&slab);
    let created = File::create_new(path).and_then(|file| file.set_len(bytes));
    created.io_context(|| format!("write {}", path.display()))?;
    let file = engine.open(path, Access::Write)?;
    let (failed, failure) = crossbeam::channel::bounded(1);
    let started = Instant::now();
    for offset in (0..bytes).step_by(SLOT) {
        let failed = failed.clone();
        let done = Box::new(move |completion: Completion| {
            if let Err(e) = completion.result {
                // The first one is enough.
                let _ = failed.try_send(e);
            }
        });
        let len = usize::try_from(bytes - offset).unwrap_or(SLOT).min(SLOT);
        let op = Op::Write { offset, slot: slab.take(), range: 0..len };
        engine.submit(Request { file, op, done });
    }
    // When all buffers are back, all writes are done.
    drop((0..WRITES).map(|_| slab.take()).collect::<Vec<_>>());
    engine.sync_blocking(file)?;
    let seconds = started.elapsed().as_secs_f64();
    engine.close(file)?;
    std::fs::remove_file(path).io_context(|| format!("remove {}", path.display()))?;
    failure.try_recv().map_or(Ok(seconds), Err)
}

/// Gives every buffer bytes, so that none is touched for the first time while the clock runs.
fn fill(slab: &Arc<Slab>) {
    let mut slots: Vec<_> = (0..WRITES).map(|_| slab.take()).collect();
    for slot in &mut slots {
        slot.iter_mut().enumerate().for_each(|(i, byte)| *byte = ((i as u32).wrapping_mul(0x9E37_79B1) >> 24) as u8);
    }
}

/// All segment files of the store.
fn segments(store: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![store.join("demo").join("segments")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).io_context(|| format!("read {}", dir.display()))? {
            let path = entry.io_context(|| format!("read {}", dir.display()))?.path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// Decodes every frame on all cores; answers with raw bytes and seconds.
fn decode(files: &[PathBuf]) -> Result<(u64, f64)> {
    let (next, raw) = (AtomicUsize::new(0), AtomicU64::new(0));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let work = || -> Result<()> {
        let mut decoder = FrameDecoder::new().map_err(|e| Error::io("start a decoder", e))?;
        let mut out = Vec::new();
        while let Some(path) = files.get(next.fetch_add(1, Relaxed)) {
            let bytes = std::fs::read(path).io_context(|| format!("read {}", path.display()))?;
            let place = path.display().to_string();
            let segment = Segment::open_any(&bytes).map_err(|e| e.at(&place))?;
            for entry in &segment.index.entries {
                let Some(frame) = segment.frame(entry).map_err(|e| e.at(&place))? else { continue };
                out.resize(frame.body().raw_len as usize, 0);
                decoder.decode_into(&frame, &mut out).map_err(|e| e.at(&place))?;
                raw.fetch_add(out.len() as u64, Relaxed);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| {
            t.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a decoding thread panicked")))
        })
    })?;
    Ok((raw.into_inner(), started.elapsed().as_secs_f64()))
}
