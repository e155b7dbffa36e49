//! What the disks of a site hold that its domain does not: what following in place would overwrite, by name. Pure.
//!
//! Two kinds. *Unaccepted*: what segments of this site changed that are not part of the domain, because another site took
//! it over from an earlier point, or because they never left the log. *Suspect*: regions that the write-intent bitmap has
//! marked, and whole disks that may have been written to unwatched; they may hold writes of which there is no segment, or
//! may not. Together they are an upper bound, and nothing outside them differs.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::format::xxh3_64;
use crate::ids::{DiskId, DomainId, Name, SegmentRef, Time};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Domain.
    pub domain: Name,
    /// Its identity.
    pub domain_id: DomainId,
    /// Up to where the disks and the domain have the same history; zero for nothing.
    pub parted: SegmentRef,
    /// Segments of this site that are not part of the domain.
    pub segments: u64,
    /// When the first and the last of them were made.
    pub times: Option<(Time, Time)>,
    /// Disks that may differ, each with what may; those that do not are left out.
    pub disks: Vec<DivergedDisk>,
}

/// What one disk may hold that the domain does not. Ranges are bytes, ascending and disjoint within each list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DivergedDisk {
    /// Disk.
    pub disk: DiskId,
    /// `vm/disk`.
    pub label: String,
    /// Its file.
    pub path: PathBuf,
    /// What segments that are not part of the domain changed.
    pub unaccepted: Vec<Range<u64>>,
    /// What may have been written without any segment.
    pub suspect: Vec<Range<u64>>,
    /// Why all of the disk is suspect, where it is.
    pub in_doubt: Option<String>,
}

impl DivergedDisk {
    /// All that may differ, ascending and disjoint.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        merged(self.unaccepted.iter().chain(&self.suspect).cloned().collect())
    }

    /// Bytes of that.
    pub fn bytes(&self) -> u64 {
        self.ranges().iter().map(|r| r.end - r.start).sum()
    }
}

impl Divergence {
    /// Whether no byte could be lost: at most points of a site that was idle.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// Bytes that may differ, of all disks.
    pub fn bytes(&self) -> u64 {
        self.disks.iter().map(DivergedDisk::bytes).sum()
    }

    /// Its name, by which it is given up: another divergence has another one.
    pub fn name(&self) -> String {
        let mut text = format!("{} {} {} {:?}", self.domain_id, self.parted, self.segments, self.times);
        for disk in &self.disks {
            let DivergedDisk { disk, unaccepted, suspect, in_doubt, .. } = disk;
            text += &format!(" {disk} {unaccepted:?} {suspect:?} {}", in_doubt.is_some());
        }
        format!("{:016x}", xxh3_64(text.as_bytes()))
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "the disks here hold nothing that domain {} does not", self.domain);
        }
        write!(
            f,
            "the disks here hold what domain {} does not, since segment {}",
            self.domain,
            self.parted.segment.get()
        )?;
        if let Some((first, last)) = self.times {
            write!(f, ": {} segments from {first} to {last}", self.segments)?;
        }
        for disk in &self.disks {
            let ranges = disk.ranges().len();
            write!(f, "; {} at {}: up to {} bytes in {ranges} ranges", disk.label, disk.path.display(), disk.bytes())?;
            if let Some(why) = &disk.in_doubt {
                write!(f, " ({why})")?;
            }
        }
        Ok(())
    }
}

/// Ranges made ascending and disjoint; what touches becomes one.
pub(super) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|r| r.start < r.end);
    ranges.sort_unstable_by_key(|r| r.start);
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, SegmentNo};

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    fn sample() -> Divergence {
        let disk = DivergedDisk {
            disk: DiskId::from_bytes([3; 16]),
            label: "web/root".into(),
            path: "/images/root".into(),
            unaccepted: vec![0..100, 300..400],
            suspect: one(50..150),
            in_doubt: None,
        };
        Divergence {
            domain: Name::new("shop").unwrap(),
            domain_id: DomainId::from_bytes([1; 16]),
            parted: SegmentRef::new(Generation::new(2), SegmentNo::new(7)),
            segments: 3,
            times: Some((Time::from_millis(1000), Time::from_millis(2000))),
            disks: vec![disk],
        }
    }

    #[test]
    fn bytes_are_counted_once_and_all_is_named() {
        let it = sample();
        assert_eq!((it.bytes(), it.disks[0].ranges()), (250, vec![0..150, 300..400]));
        let text = it.to_string();
        for word in ["shop", "segment 7", "3 segments", "1970-01-01T00:00:01", "web/root", "250 bytes in 2 ranges"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!it.is_empty() && Divergence { disks: Vec::new(), ..it }.is_empty());
    }

    #[test]
    fn every_part_of_it_is_in_its_name() {
        let it = sample();
        let change = |change: fn(&mut Divergence)| {
            let mut other = it.clone();
            change(&mut other);
            other.name()
        };
        assert_eq!(it.name(), change(|_| ()));
        let others = [
            change(|d| d.parted.segment = SegmentNo::new(8)),
            change(|d| d.segments = 4),
            change(|d| d.times = None),
            change(|d| d.disks[0].suspect = one(50..151)),
            change(|d| d.disks[0].unaccepted = one(0..100)),
            change(|d| d.disks[0].in_doubt = Some("x".into())),
            change(|d| d.disks.clear()),
        ];
        assert!(others.iter().all(|name| *name != it.name()), "{others:?}");
    }
}
