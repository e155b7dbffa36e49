//! Object keys: where each kind of object of a domain lives under the site's prefix, and the way back.
//!
//! ```text
//! <domain>/owner/<n>
//! <domain>/segments/<generation>/<segment>
//! <domain>/maps/<disk-id>/<page>/<generation>/<segment>
//! <domain>/manifests/<generation>/<segment>
//! <domain>/status
//! <domain>/recovery-settings/<n>
//! ```
//!
//! Pure text, no I/O. `<domain>` is [`Name::key`], so that no name leaves its folder. Numbers have twelve decimal
//! digits with leading zeros, so that a sorted listing is in numeric order; [`MAX_NUMBER`] is far beyond what a domain
//! can reach (a segment a second for 30,000 years). [`ObjectKey::parse`] takes exactly what the functions here make
//! and nothing else: every other key in the store is foreign and is left alone.

use crate::ids::{DiskId, Generation, Name, SegmentNo, SegmentRef};

/// Decimal digits of a number within a key.
const DIGITS: usize = 12;

/// The highest number that [`ObjectKey::parse`] reads back.
pub const MAX_NUMBER: u64 = 999_999_999_999;

/// Folder of a domain, with the slash at its end.
pub fn domain_prefix(domain: &Name) -> String {
    format!("{}/", domain.key())
}

/// Folder of the ownership log, with the slash at its end.
pub fn owner_prefix(domain: &Name) -> String {
    format!("{}/owner/", domain.key())
}

/// Folder of one generation's segments, with the slash at its end.
pub fn segment_prefix(domain: &Name, generation: Generation) -> String {
    format!("{}/segments/{:0DIGITS$}/", domain.key(), generation.get())
}

/// Folder of all manifests, with the slash at its end.
pub fn manifest_prefix(domain: &Name) -> String {
    format!("{}/manifests/", domain.key())
}

/// Folder of one generation's manifests, with the slash at its end.
pub fn manifest_generation_prefix(domain: &Name, generation: Generation) -> String {
    format!("{}/manifests/{:0DIGITS$}/", domain.key(), generation.get())
}

/// Folder of one disk's map pages, with the slash at its end.
pub fn map_prefix(domain: &Name, disk: DiskId) -> String {
    format!("{}/maps/{disk}/", domain.key())
}

/// Key of record `n` of the ownership log; the first is 1.
pub fn owner(domain: &Name, n: u64) -> String {
    format!("{}/owner/{n:0DIGITS$}", domain.key())
}

/// Key of a segment.
pub fn segment(domain: &Name, at: SegmentRef) -> String {
    format!("{}/segments/{}", domain.key(), numbers(at))
}

/// Key of the map page `page` of `disk` that was written at the checkpoint `at`.
pub fn map_page(domain: &Name, disk: DiskId, page: u64, at: SegmentRef) -> String {
    format!("{}/maps/{disk}/{page:0DIGITS$}/{}", domain.key(), numbers(at))
}

/// Key of the manifest that was written at the checkpoint `at`.
pub fn manifest(domain: &Name, at: SegmentRef) -> String {
    format!("{}/manifests/{}", domain.key(), numbers(at))
}

/// Key of the domain's status, the one object that is overwritten.
pub fn status(domain: &Name) -> String {
    format!("{}/status", domain.key())
}

/// Key of recovery settings `n`; the first is 1.
pub fn recovery_settings(domain: &Name, n: u64) -> String {
    format!("{}/recovery-settings/{n:0DIGITS$}", domain.key())
}

fn numbers(at: SegmentRef) -> String {
    format!("{:0DIGITS$}/{:0DIGITS$}", at.generation.get(), at.segment.get())
}

/// What a key stands for within its domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// Record of the ownership log.
    Owner(u64),
    /// Segment.
    Segment(SegmentRef),
    /// Map page.
    MapPage {
        /// The disk that it maps.
        disk: DiskId,
        /// Number of the fixed span of the disk, from 0.
        page: u64,
        /// The checkpoint that wrote it.
        at: SegmentRef,
    },
    /// Manifest.
    Manifest(SegmentRef),
    /// The domain's status.
    Status,
    /// Recovery settings.
    RecoverySettings(u64),
}

impl ObjectKey {
    /// The key as text, in `domain`.
    pub fn key(self, domain: &Name) -> String {
        match self {
            ObjectKey::Owner(n) => owner(domain, n),
            ObjectKey::Segment(at) => segment(domain, at),
            ObjectKey::MapPage { disk, page, at } => map_page(domain, disk, page, at),
            ObjectKey::Manifest(at) => manifest(domain, at),
            ObjectKey::Status => status(domain),
            ObjectKey::RecoverySettings(n) => recovery_settings(domain, n),
        }
    }

    /// Domain and meaning of `key`; `None` for every key that this module does not make.
    pub fn parse(key: &str) -> Option<(Name, ObjectKey)> {
        let mut parts = key.split('/');
        let domain = Name::from_key(parts.next()?)?;
        let object = match parts.next()? {
            "owner" => ObjectKey::Owner(number(parts.next()?)?),
            "segments" => ObjectKey::Segment(segment_ref(&mut parts)?),
            "manifests" => ObjectKey::Manifest(segment_ref(&mut parts)?),
            "maps" => {
                let text = parts.next()?;
                let disk = DiskId::parse(text).filter(|d| d.to_string() == text)?;
                let page = number(parts.next()?)?;
                ObjectKey::MapPage { disk, page, at: segment_ref(&mut parts)? }
            }
            "status" => ObjectKey::Status,
            "recovery-settings" => ObjectKey::RecoverySettings(number(parts.next()?)?),
            _ => return None,
        };
        parts.next().is_none().then_some((domain, object))
    }
}

fn segment_ref<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<SegmentRef> {
    let generation = Generation::new(number(parts.next()?)?);
    Some(SegmentRef::new(generation, SegmentNo::new(number(parts.next()?)?)))
}

/// Reads one folder name of a listing back: a number of exactly twelve digits.
pub fn number(text: &str) -> Option<u64> {
    let plain = text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn at(generation: u64, segment: u64) -> SegmentRef {
        SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
    }

    #[test]
    fn every_key_comes_back_as_what_it_was() {
        let disk = DiskId::from_bytes([7; 16]);
        let all = [
            ObjectKey::Owner(1),
            ObjectKey::Owner(MAX_NUMBER),
            ObjectKey::Segment(at(3, 17)),
            ObjectKey::MapPage { disk, page: 0, at: at(1, MAX_NUMBER) },
            ObjectKey::Manifest(at(2, 5)),
            ObjectKey::Status,
            ObjectKey::RecoverySettings(1),
        ];
        for domain in ["prod", "a/b", "..", "web server", "ünï", "status", "owner"].map(name) {
            for object in all {
                let key = object.key(&domain);
                assert_eq!(ObjectKey::parse(&key), Some((domain.clone(), object)), "{key}");
                assert!(key.starts_with(&domain_prefix(&domain)), "{key}");
            }
        }
    }

    #[test]
    fn layout_is_pinned() {
        let d = name("d");
        let disk = DiskId::from_bytes([0xab; 16]);
        assert_eq!(owner(&d, 12), "d/owner/000000000012");
        assert_eq!(segment(&d, at(3, 17)), "d/segments/000000000003/000000000017");
        assert_eq!(manifest(&d, at(3, 17)), "d/manifests/000000000003/000000000017");
        assert_eq!(
            map_page(&d, disk, 2, at(3, 17)),
            "d/maps/abababab-abab-abab-abab-abababababab/000000000002/000000000003/000000000017"
        );
        assert_eq!(status(&d), "d/status");
        assert_eq!(recovery_settings(&d, 12), "d/recovery-settings/000000000012");
        assert!(segment(&d, at(3, 17)).starts_with(&segment_prefix(&d, Generation::new(3))));
        assert!(manifest(&d, at(3, 17)).starts_with(&manifest_generation_prefix(&d, Generation::new(3))));
        assert!(manifest(&d, at(3, 17)).starts_with(&manifest_prefix(&d)));
        assert!(map_page(&d, disk, 2, at(3, 17)).starts_with(&map_prefix(&d, disk)));
        assert!(owner(&d, 12).starts_with(&owner_prefix(&d)));
    }

    #[test]
    fn text_order_is_numeric_order() {
        let d = name("d");
        let mut keys: Vec<String> = [9, 10, 99, 100, 1, MAX_NUMBER].iter().map(|&n| owner(&d, n)).collect();
        keys.sort();
        let back: Vec<_> = keys.iter().map(|k| ObjectKey::parse(k).unwrap().1).collect();
        assert_eq!(back, [1, 9, 10, 99, 100, MAX_NUMBER].map(ObjectKey::Owner));
    }

    #[test]
    fn foreign_keys_are_not_ours() {
        for key in [
            "",
            "d",
            "d/",
            "d/owner",
            "d/owner/1",
            "d/owner/0000000000012",
            "d/owner/+00000000012",
            "d/owner/000000000012/",
            "d/owner/000000000012/x",
            "d/segments/000000000001",
            "d/maps/ABABABAB-abab-abab-abab-abababababab/000000000002/000000000003/000000000017",
            "d/maps/x/000000000002/000000000003/000000000017",
            "d/status/x",
            ".freshet-probe/1",
            "a b/status",
            "d/other",
        ] {
            assert_eq!(ObjectKey::parse(key), None, "{key}");
        }
    }
}
