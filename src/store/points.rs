//! The points of a domain: from the lists in its manifests, and from the indexes of the segments that no manifest covers.
//!
//! A manifest lists every point after the manifest before it, so a chain of them lists all; what a damaged manifest would
//! have told is read from the segments instead. Only accepted segments are points, and none below the floor.

use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::{Domain, FoundManifest};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Manifest, Point};
use crate::ids::{Name, SegmentNo, SegmentRef, Time, VmId};

/// Manifests read at a time: they can be large.
const PARALLEL_MANIFESTS: usize = 8;
/// Indexes read at a time.
const PARALLEL_INDEXES: usize = 32;

/// A point of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointInfo {
    /// The segment that ends at it; its number names the point.
    pub at: SegmentRef,
    /// When.
    pub time: Time,
    /// A disk was open for writing elsewhere while it was read.
    pub fuzzy: bool,
    /// The file systems of all guests that it covers were frozen while it was cut.
    pub quiesced: bool,
    /// VMs that are consistent together here.
    pub vms: Arc<[VmId]>,
}

impl PointInfo {
    fn new(at: SegmentRef, point: &Point) -> PointInfo {
        PointInfo {
            at,
            time: point.time,
            fuzzy: point.flags.fuzzy,
            quiesced: point.flags.quiesced,
            vms: point.vms.clone(),
        }
    }
}

/// The points of a domain, ascending, and what could not be read.
#[derive(Debug, Clone)]
pub struct Points {
    domain: Name,
    list: Vec<PointInfo>,
    warnings: Vec<String>,
}

impl Points {
    /// All of them, ascending.
    pub fn all(&self) -> &[PointInfo] {
        &self.list
    }

    /// The newest.
    pub fn newest(&self) -> Option<&PointInfo> {
        self.list.last()
    }

    /// One text for each manifest or segment that could not be read, so that points may be missing.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The point that segment `n` ends at.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], naming the points on either side.
    pub fn point(&self, n: SegmentNo) -> Result<&PointInfo> {
        let i = self.list.partition_point(|p| p.at.segment < n);
        match self.list.get(i) {
            Some(point) if point.at.segment == n => Ok(point),
            _ => Err(self.none(&format!("point {}", n.get()), i)),
        }
    }

    /// The newest point whose time is `time` or earlier.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], naming the oldest point, where all are later.
    pub fn at_or_before(&self, time: Time) -> Result<&PointInfo> {
        let i = self.list.partition_point(|p| p.time <= time);
        let point = i.checked_sub(1).and_then(|i| self.list.get(i));
        point.ok_or_else(|| self.none(&format!("point at or before {time}"), i))
    }

    fn none(&self, what: &str, i: usize) -> Error {
        let show = |p: &PointInfo| format!("point {} at {}", p.at.segment.get(), p.time);
        let before = i.checked_sub(1).and_then(|i| self.list.get(i)).map(|p| format!("before it is {}", show(p)));
        let after = self.list.get(i).map(|p| format!("after it is {}", show(p)));
        let nearest: Vec<String> = before.into_iter().chain(after).collect();
        let nearest = if nearest.is_empty() { "it has no points".to_owned() } else { nearest.join(", ") };
        Error::new(ErrorKind::NotFound, format!("domain {} has no {what}: {nearest}", self.domain))
    }
}

/// A point where one was asked for, and what could not be read on the way.
#[derive(Debug, Clone, Default)]
pub struct FoundPoint {
    /// The newest manifest at or before it, with what had to be passed over for it.
    pub base: FoundManifest,
    /// The point; `None` where there is none.
    pub point: Option<PointInfo>,
    /// One text for each manifest or segment that could not be read.
    pub warnings: Vec<String>,
}

impl Domain {
    /// All points up to the known tip, from the floor on.
    pub async fn points(&self) -> Result<Points> {
        let (mut list, mut warnings, mut covered) = (Vec::new(), Vec::new(), Vec::new());
        let cuts = self.manifests().await?;
        let mut reads = futures::stream::iter(cuts)
            .map(|cut| async move { tolerate(self.manifest(cut).await) })
            .buffered(PARALLEL_MANIFESTS);
        while let Some(read) = reads.try_next().await? {
            match read {
                Ok(manifest) => {
                    covered.push(covers(&manifest));
                    list.extend(manifest.points.iter().map(|(at, point)| PointInfo::new(*at, point)));
                }
                Err(warning) => warnings.push(warning),
            }
        }
        drop(reads);
        let from = self.ownership().floor().get().max(1);
        for gap in gaps(covered, from..=self.known_tip().segment.get()) {
            let (points, mut told) = self.points_of_segments(gap).await?;
            list.extend(points);
            warnings.append(&mut told);
        }
        list.retain(|p| self.accepts(p.at) && p.at.segment.get() >= from);
        list.sort_by_key(|p| p.at.segment);
        list.dedup_by_key(|p| p.at);
        Ok(Points { domain: self.name().clone(), list, warnings })
    }

    /// The newest point up to the known tip: from the segments after the newest manifest, backwards, or its own.
    pub async fn newest_point(&self) -> Result<FoundPoint> {
        let tip = self.known_tip().segment;
        let found = self.manifest_at_or_before(tip).await?;
        let mut warnings = found.warnings.clone();
        let from = found.manifest.as_ref().map_or(SegmentNo::ZERO, |m| m.cut.segment).get() + 1;
        let mut end = tip.get();
        while end >= from {
            let start = end.saturating_sub(PARALLEL_INDEXES as u64 - 1).max(from);
            let (points, mut told) = self.points_of_segments(start..=end).await?;
            warnings.append(&mut told);
            if let Some(point) = points.into_iter().next_back() {
                return Ok(FoundPoint { point: Some(point), warnings, base: found });
            }
            end = start - 1;
        }
        let own = found.manifest.as_ref().and_then(|m| Some(PointInfo::new(m.cut, m.point()?)));
        Ok(FoundPoint { point: own, warnings, base: found })
    }

    async fn points_of_segments(&self, range: RangeInclusive<u64>) -> Result<(Vec<PointInfo>, Vec<String>)> {
        let (mut points, mut warnings) = (Vec::new(), Vec::new());
        let refs = range.filter_map(|n| self.locate(SegmentNo::new(n)));
        let mut reads = futures::stream::iter(refs)
            .map(|at| async move { tolerate(self.index(at).await.map(|(_, index)| (at, index.point))) })
            .buffered(PARALLEL_INDEXES);
        while let Some(read) = reads.try_next().await? {
            match read {
                Ok((at, Some(point))) => points.push(PointInfo::new(at, &point)),
                Ok((_, None)) => {}
                Err(warning) => warnings.push(format!("{warning}; whether a point ends there is not known")),
            }
        }
        Ok((points, warnings))
    }
}

/// Damage as a text to go on with; every other error as it is.
fn tolerate<T>(result: Result<T>) -> Result<std::result::Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Numbers of which a manifest lists all points: after the one before it, up to its own.
fn covers(manifest: &Manifest) -> RangeInclusive<u64> {
    manifest.previous.segment.get().saturating_add(1)..=manifest.cut.segment.get()
}

/// What of `whole` no range covers.
fn gaps(mut covered: Vec<RangeInclusive<u64>>, whole: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
    covered.sort_by_key(|r| *r.start());
    let (mut next, mut out) = (*whole.start(), Vec::new());
    for range in covered {
        let end = range.start().saturating_sub(1).min(*whole.end());
        if end >= next {
            out.push(next..=end);
        }
        next = next.max(range.end().saturating_add(1));
    }
    if next <= *whole.end() {
        out.push(next..=*whole.end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    fn points(list: &[(u64, u64)]) -> Points {
        let at = |n| SegmentRef::new(Generation::new(1), SegmentNo::new(n));
        let info = |&(n, t)| PointInfo {
            at: at(n),
            time: Time::from_millis(t),
            fuzzy: false,
            quiesced: false,
            vms: [].into(),
        };
        let domain = Name::new("d").unwrap();
        Points { domain, list: list.iter().map(info).collect(), warnings: Vec::new() }
    }

    #[test]
    fn gaps_are_what_no_manifest_covers() {
        assert_eq!(gaps(vec![], 1..=5), [1..=5]);
        assert_eq!(gaps(vec![1..=3, 4..=6], 1..=9), [7..=9]);
        assert_eq!(gaps(vec![7..=9, 1..=3], 1..=9), [4..=6]);
        assert_eq!(gaps(vec![1..=9, 2..=3], 1..=9), []);
        assert_eq!(gaps(vec![1..=3, 2..=5], 3..=7), [6..=7]);
        assert_eq!(gaps(vec![20..=30], 1..=9), [1..=9]);
        assert_eq!(gaps(vec![], RangeInclusive::new(1, 0)), []);
    }

    #[test]
    fn a_point_is_found_by_number_or_time_and_the_nearest_are_named_otherwise() {
        let points = points(&[(3, 1000), (7, 2000)]);
        let no = SegmentNo::new;
        assert_eq!(points.point(no(7)).unwrap().at.segment, no(7));
        let error = points.point(no(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.context().contains("before it is point 3") && error.context().contains("after it is point 7"));
        assert!(!points.point(no(9)).unwrap_err().context().contains("after it"));
        let at = |t| points.at_or_before(Time::from_millis(t)).map(|p| p.at.segment);
        assert_eq!((at(1000).unwrap(), at(1999).unwrap(), at(9999).unwrap()), (no(3), no(3), no(7)));
        assert!(at(999).unwrap_err().context().contains("after it is point 3"));
    }

    #[test]
    fn a_domain_without_points_says_so() {
        assert!(points(&[]).point(SegmentNo::new(1)).unwrap_err().context().contains("no points"));
    }
}
