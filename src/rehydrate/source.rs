//! Where frames are fetched from: the storage site, or what landed, with the storage site behind it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::SegmentRef;
use crate::log::ReplicationLog;
use crate::progress::Progress;
use crate::store::{Domain, keys};

use super::recent::Recent;

/// See the module.
pub(super) struct FrameSource {
    domain: Domain,
    progress: Arc<Progress>,
    landed: Option<(Arc<Recent>, Arc<ReplicationLog>)>,
}

impl FrameSource {
    /// Fetches from the storage site.
    pub(super) fn store(domain: Domain, progress: Arc<Progress>) -> FrameSource {
        FrameSource { domain, progress, landed: None }
    }

    /// Takes whole segments from `recent`, or reads them from the log; what that does not have whole comes from the storage
    /// site.
    pub(super) fn landed(
        recent: Arc<Recent>,
        log: Arc<ReplicationLog>,
        domain: Domain,
        progress: Arc<Progress>,
    ) -> FrameSource {
        FrameSource { domain, progress, landed: Some((recent, log)) }
    }

    /// Bytes `range` of a segment, all of them, in the parts in which they came; `None` where there is no such segment.
    /// The first try; a frame in it that does not verify is fetched by [`FrameSource::again`].
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where the segment ends before the range does.
    pub(super) async fn fetch(&self, segment: SegmentRef, range: Range<u64>) -> Result<Option<Vec<Bytes>>> {
        if let Some((recent, log)) = &self.landed {
            let whole = match recent.take(segment) {
                Some(whole) => Some(whole),
                None => read_log(log, segment).await?,
            };
            if let Some(whole) = whole
                && let Some(range) = within(&range, whole.len())
            {
                return Ok(Some(vec![whole.slice(range)]));
            }
        }
        self.again(segment, range).await
    }

    /// As [`FrameSource::fetch`], from the storage site.
    pub(super) async fn again(&self, segment: SegmentRef, range: Range<u64>) -> Result<Option<Vec<Bytes>>> {
        let key = keys::segment(self.domain.name(), segment);
        let Some(fetched) = self.domain.site().get_range(&key, range.clone()).await? else { return Ok(None) };
        self.progress.add_moved(fetched.len);
        match fetched.len == range.end - range.start {
            true => Ok(Some(fetched.parts)),
            false => {
                let why = format!("{key} has {} bytes, {} are needed", fetched.object_len, range.end);
                Err(Error::new(ErrorKind::Damaged, why))
            }
        }
    }
}

fn within(range: &Range<u64>, len: usize) -> Option<Range<usize>> {
    let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
    (start <= end && end <= len).then_some(start..end)
}

/// A segment as the log has it; `None` where the log does not have this very segment whole.
pub(super) async fn read_log(log: &Arc<ReplicationLog>, segment: SegmentRef) -> Result<Option<Bytes>> {
    let log = Arc::clone(log);
    let read = move || {
        let mut buffer = Vec::new();
        match log.read(segment.segment, &mut buffer) {
            Ok(header) if header.id() == segment => Ok(Some(Bytes::from(buffer))),
            Ok(_) => Ok(None),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => Ok(None),
            Err(e) => Err(e),
        }
    };
    let joined = tokio::task::spawn_blocking(read).await;
    joined.map_err(|e| Error::with_source(ErrorKind::Internal, "read the log", e))?
}
