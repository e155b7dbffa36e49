//! A reader of domains for tests: slow, simple, and sharing no code path with rehydration.
//!
//! Reads every live extent of a map from its segment object, verifies it, and puts the disk together in memory.

use std::collections::HashMap;

use freshet::format::{FrameDecoder, Segment};
use freshet::ids::{Name, SegmentRef};
use freshet::map::{PageKey, PointMap};
use freshet::store::{Domain, StorageSite, keys};

/// Opens a domain and looks for its tip.
pub(crate) async fn open(site: &StorageSite, domain: &str) -> (Domain, SegmentRef) {
    let mut domain = Domain::open(site, &Name::new(domain).unwrap()).await.unwrap();
    let tip = domain.tip().await.unwrap();
    (domain, tip)
}

/// Every disk of a domain at its tip, by `vm/disk`.
pub(crate) async fn disks(site: &StorageSite, domain: &str) -> HashMap<String, Vec<u8>> {
    let (domain, tip) = open(site, domain).await;
    let map = PointMap::load(&domain, tip).await.unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    let mut segments: HashMap<SegmentRef, Vec<u8>> = HashMap::new();
    let mut out = HashMap::new();
    for disk in &map.catalogue().disks {
        let mut bytes = vec![0; disk.size as usize];
        for page in 0..disk.size.div_ceil(1 << 30) {
            let extents = map.page(site, &domain, PageKey { disk: disk.id, page }).await.unwrap();
            for e in extents {
                let at = e.frame.segment;
                if let std::collections::hash_map::Entry::Vacant(place) = segments.entry(at) {
                    let object = site.get(&keys::segment(domain.name(), at), 128 << 20).await.unwrap().unwrap();
                    place.insert(object.to_vec());
                }
                let segment = Segment::open(&segments[&at], domain.id(), at).unwrap();
                let entry =
                    segment.index.entries.iter().find(|x| x.frame.is_some_and(|f| f == (e.frame.pos, e.frame.body)));
                let frame = segment.frame(entry.unwrap()).unwrap().unwrap();
                let mut raw = vec![0; e.frame.body.raw_len as usize];
                decoder.decode_into(&frame, &mut raw).unwrap();
                let from = (e.offset - e.frame.start) as usize;
                bytes[e.offset as usize..e.end() as usize].copy_from_slice(&raw[from..from + e.len as usize]);
            }
        }
        out.insert(map.catalogue().disk_label(disk.id), bytes);
    }
    out
}
