//! The chain of a domain: every accepted segment's index is read, and must name its parent and the parent's digest.
//!
//! The digest of an index covers the digest of the index before, so that the newest one proves all of them. After a
//! damaged index the walk goes on with the next one, whose link then cannot be proved; it is counted only once.

use std::collections::BTreeMap;

use futures::StreamExt;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, Index, Manifest, SegmentHeader};
use crate::ids::{SegmentNo, SegmentRef, Time};
use crate::store::{Domain, keys};

use super::report::VerifyReport;

/// Indexes that are fetched at once.
const FETCHES: usize = 16;

/// What was learned from the chain: which of its segments are points, and the manifests that can be used.
#[derive(Debug, Default)]
pub(super) struct Chain {
    points: BTreeMap<SegmentNo, (SegmentRef, Time)>,
    /// The last readable manifest at or before each point would be too many to keep: only the newest is.
    manifests: Vec<SegmentRef>,
    newest: Option<Manifest>,
}

impl Chain {
    /// The point asked for, or the newest; `None` where the domain has no point at all.
    pub(super) fn point(&self, domain: &Domain, wanted: Option<SegmentNo>) -> Result<Option<(SegmentRef, Time)>> {
        let Some(n) = wanted else { return Ok(self.points.values().next_back().copied()) };
        let found = self.points.get(&n).copied();
        found.map(Some).ok_or_else(|| {
            let why = format!("domain {}: {n} is not one of its points", domain.name());
            Error::new(ErrorKind::NotFound, format!("{why}; `freshet points` lists them"))
        })
    }

    /// The newest readable manifest, if it is not beyond `n`.
    pub(super) fn newest_manifest(&self, n: SegmentNo) -> Option<&Manifest> {
        self.newest.as_ref().filter(|m| m.cut.segment <= n)
    }
}

/// Walks the chain from the floor, or from the first segment, up to `tip`, and reads every manifest on it.
pub(super) async fn prove(
    domain: &Domain,
    tip: SegmentRef,
    report: &mut VerifyReport,
    cancel: &Cancel,
) -> Result<Chain> {
    let mut chain = Chain { manifests: domain.manifests().await?, ..Chain::default() };
    let first = domain.ownership().floor().get().max(1);
    let mut indexes = futures::stream::iter(first..=tip.segment.get())
        .map(|n| read_index(domain, SegmentNo::new(n)))
        .buffered(FETCHES);
    // Nothing before the first is needed, so its link is taken as it is.
    let mut before: Option<(SegmentRef, Digest)> = (first == 1).then(Default::default);
    let mut digests = BTreeMap::new();
    while let Some((at, read)) = indexes.next().await {
        cancel.check()?;
        let (header, index) = match read {
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Damaged => {
                report.bad_object(keys::segment(domain.name(), at), e.to_string());
                before = None;
                continue;
            }
            Err(e) => return Err(e),
        };
        if let Some(expected) = before.filter(|b| *b != (index.parent, index.parent_digest)) {
            let why = format!("it continues {} and not {}, or that one's index was replaced", index.parent, expected.0);
            report.bad_object(keys::segment(domain.name(), at), why);
        } else {
            report.segments += 1;
        }
        before = Some((at, header.index_digest));
        if let Some(point) = &index.point {
            chain.points.insert(at.segment, (at, point.time));
        }
        if chain.manifests.contains(&at) {
            digests.insert(at, header.index_digest);
        }
    }
    drop(indexes);
    read_manifests(domain, &mut chain, &digests, report, cancel).await?;
    Ok(chain)
}

async fn read_index(domain: &Domain, n: SegmentNo) -> (SegmentRef, Result<(SegmentHeader, Index)>) {
    match domain.locate(n) {
        Some(at) => (at, domain.index(at).await),
        None => {
            let why = format!("segment {n} is not part of the accepted chain");
            (SegmentRef::new(Default::default(), n), Err(Error::new(ErrorKind::Damaged, why)))
        }
    }
}

async fn read_manifests(
    domain: &Domain,
    chain: &mut Chain,
    digests: &BTreeMap<SegmentRef, Digest>,
    report: &mut VerifyReport,
    cancel: &Cancel,
) -> Result<()> {
    for at in chain.manifests.clone() {
        cancel.check()?;
        let key = keys::manifest(domain.name(), at);
        let manifest = match domain.manifest(at).await {
            Ok(manifest) => manifest,
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                report.bad_object(key, e.to_string());
                continue;
            }
            Err(e) => return Err(e),
        };
        if digests.get(&at).is_some_and(|digest| *digest != manifest.index_digest) {
            report.bad_object(key, "it was cut at another segment than the one that has its number");
            continue;
        }
        report.manifests += 1;
        // Points that the walk could not see, since their segment is damaged or below where it began.
        for (point_at, point) in &manifest.points {
            if domain.accepts(*point_at) {
                chain.points.entry(point_at.segment).or_insert((*point_at, point.time));
            }
        }
        chain.newest = Some(manifest);
    }
    Ok(())
}
