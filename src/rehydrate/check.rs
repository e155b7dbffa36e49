//! Hashing what is on a disk against the map, where the local state is in doubt. Reads only.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::datastore::{DiskEngine, FileId};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Extent, xxh3_128};

/// For each extent, whether the disk holds its bytes already. A part of a frame cannot be told, and counts as not.
pub(super) async fn in_place(engine: &Arc<dyn DiskEngine>, file: FileId, extents: &[Extent]) -> Result<Vec<bool>> {
    let (engine, extents) = (Arc::clone(engine), extents.to_vec());
    let check = move || check_all(&engine, file, &extents);
    let joined = tokio::task::spawn_blocking(check).await;
    joined.map_err(|e| Error::with_source(ErrorKind::Internal, "check a disk", e))?
}

fn check_all(engine: &Arc<dyn DiskEngine>, file: FileId, extents: &[Extent]) -> Result<Vec<bool>> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<(usize, bool)>> {
        let mut found = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(extent) = extents.get(i) else { return Ok(found) };
            found.push((i, holds(engine, file, extent)?));
        }
    };
    let results: Vec<Result<Vec<(usize, bool)>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let lost = || Err(Error::new(ErrorKind::Internal, "a checking thread panicked"));
        handles.into_iter().map(|h| h.join().unwrap_or_else(|_| lost())).collect()
    });
    let mut out = vec![false; extents.len()];
    for result in results {
        result?.into_iter().for_each(|(i, same)| out[i] = same);
    }
    Ok(out)
}

fn holds(engine: &Arc<dyn DiskEngine>, file: FileId, extent: &Extent) -> Result<bool> {
    if !extent.is_whole_frame() {
        return Ok(false);
    }
    let len = extent.len as usize;
    let (read, slot) = engine.read_slot_blocking(file, extent.offset, engine.slab().take(), 0..len)?;
    Ok(read == len && xxh3_128(&slot[..len]) == extent.frame.body.raw_digest)
}
