//! Scanning a storage site that holds a thousand domains: all are found and told right, with few requests for each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use freshet::cancel::Cancel;
use freshet::error::ErrorKind;
use freshet::format::{Catalogue, DiskInfo, IndexDisk, Point, PointFlags, Seal, SegmentBuilder, VmInfo, VmShape};
use freshet::ids::{DiskId, Name, Time, VmId};
use freshet::scan::scan;
use freshet::store::{DomainWriter, StartOptions, StorageSite, StoreOptions, keys};
use futures::StreamExt;

const DOMAINS: usize = 1000;
/// Requests for a domain with one segment and no manifest: records and next record of the ownership log, tip, status,
/// manifests, header and index of the segment, with some room. A cost that grows with the site would be far above.
const REQUESTS_EACH: u64 = 16;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A domain of one VM with one disk of `size` bytes, and one point; answers with the bytes of its segment.
async fn make_domain(site: &StorageSite, domain: &Name, size: u64) -> u64 {
    let owner = name("site-a");
    let writer = DomainWriter::start(site, domain, &owner, StartOptions::default()).await.unwrap();
    let (vm, disk) = (VmId::random(), DiskId::random());
    let info = VmInfo {
        id: vm,
        name: name("web server"),
        definition_kind: String::new(),
        definition: String::new(),
        shape: VmShape::default(),
    };
    let disk_info = DiskInfo { id: disk, vm, name: name("root"), size };
    let mut builder = SegmentBuilder::new(Vec::new());
    builder.push_zeros(&IndexDisk { id: disk, vm, size }, 0, 4096);
    let point = Point { time: Time::from_millis(1_000_000), flags: PointFlags::default(), vms: [vm].into() };
    let catalogue = Catalogue { vms: vec![info], disks: vec![disk_info] };
    publish(site, writer, builder, point, Some(catalogue)).await
}

/// Makes a segment the next one of a domain; its bytes.
async fn publish(
    site: &StorageSite,
    writer: DomainWriter,
    builder: SegmentBuilder,
    point: Point,
    catalogue: Option<Catalogue>,
) -> u64 {
    let sealed = builder.seal(Seal {
        domain: writer.domain().id(),
        id: writer.first(),
        parent: writer.base(),
        parent_digest: writer.base_digest(),
        writer: writer.writer(),
        created: site.now(),
        point: Some(point),
        catalogue,
    });
    let sealed = sealed.unwrap();
    let len = sealed.bytes.len() as u64;
    let key = keys::segment(writer.domain().name(), writer.first());
    site.create(&key, vec![sealed.bytes.into()]).await.unwrap();
    writer.accept_up_to(writer.first()).await.unwrap();
    writer.finish().await.unwrap();
    len
}

async fn open(dir: &tempfile::TempDir) -> StorageSite {
    StorageSite::open(&format!("file://{}", dir.path().display()), &StoreOptions::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_domains_are_told_with_few_requests_each() {
    let dir = tempfile::tempdir().unwrap();
    let site = open(&dir).await;
    let names: Vec<Name> = (0..DOMAINS).map(|i| name(&format!("domain {i:04}"))).collect();
    let lens: Vec<u64> = futures::stream::iter(names.iter().enumerate())
        .map(|(i, domain)| make_domain(&site, domain, (i as u64 + 1) * 4096))
        .buffered(16)
        .collect()
        .await;
    // Folders that are not domains do not disturb.
    std::fs::create_dir_all(dir.path().join("lost+found")).unwrap();
    std::fs::create_dir_all(dir.path().join("never-claimed/segments")).unwrap();

    let fresh = open(&dir).await;
    let found = scan(&fresh, &Cancel::new()).await.unwrap();
    assert_eq!(found.iter().map(|s| s.name.clone()).collect::<Vec<_>>(), names);
    for (i, scanned) in found.iter().enumerate() {
        let s = scanned.summary.as_ref().unwrap();
        assert_eq!((s.logical, s.stored), ((i as u64 + 1) * 4096, lens[i]), "{}", scanned.name);
        assert_eq!((s.owner.as_str(), s.generation.get(), s.tip.segment.get()), ("site-a", 1, 1));
        assert_eq!((s.catalogue.vms.len(), s.catalogue.disks[0].name.as_str()), (1, "root"));
        let point = s.point.unwrap();
        assert_eq!((point.at, point.time), (s.tip, Time::from_millis(1_000_000)));
        assert!(point.age_ms > 1_000_000_000_000, "the age is not by today's clock: {}", point.age_ms);
        assert!(!s.last_sign.is_recent(), "a writer that finished is not alive");
        assert!(s.warnings.is_empty(), "{:?}", s.warnings);
    }
    let counters = fresh.counters();
    let requests = counters.gets + counters.heads + counters.lists;
    assert!(requests <= REQUESTS_EACH * DOMAINS as u64, "{requests} requests: {counters:?}");
    assert_eq!((counters.puts, counters.deletes), (0, 0), "a scan writes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_domain_is_named_and_the_others_are_still_told() {
    let dir = tempfile::tempdir().unwrap();
    let site = open(&dir).await;
    for domain in ["good", "no-log", "no-index"] {
        make_domain(&site, &name(domain), 8192).await;
    }
    let flip = |path: String| {
        let path = dir.path().join(path);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() * 9 / 10;
        bytes[middle] ^= 0x20;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    flip(keys::owner(&name("no-log"), 1));
    let n = freshet::ids::SegmentRef::new(freshet::ids::Generation::new(1), freshet::ids::SegmentNo::new(1));
    let segment = dir.path().join(keys::segment(&name("no-index"), n));
    let len = std::fs::metadata(&segment).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(len - 100).unwrap();

    let found = scan(&open(&dir).await, &Cancel::new()).await.unwrap();
    let by_name = |wanted: &str| found.iter().find(|s| s.name.as_str() == wanted).unwrap().summary.as_ref();
    assert_eq!(by_name("good").unwrap().logical, 8192);
    assert_eq!(by_name("no-log").unwrap_err().kind(), ErrorKind::Damaged);
    let no_index = by_name("no-index").unwrap();
    assert_eq!(no_index.warnings.len(), 1, "{:?}", no_index.warnings);
    assert!(no_index.point.is_none());
}

/// A point of `vms` of a domain that is there, after its newest segment.
async fn add_point(site: &StorageSite, domain: &Name, time: u64, vms: &[VmId]) {
    let writer = DomainWriter::start(site, domain, &name("site-a"), StartOptions::default()).await.unwrap();
    let point = Point { time: Time::from_millis(time), flags: PointFlags::default(), vms: vms.into() };
    publish(site, writer, SegmentBuilder::new(Vec::new()), point, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_the_newest_point_leaves_out_keeps_the_last_one_that_covers_it() {
    let dir = tempfile::tempdir().unwrap();
    let (site, domain) = (open(&dir).await, name("d"));
    make_domain(&site, &domain, 8192).await;
    let read = async || scan(&open(&dir).await, &Cancel::new()).await.unwrap().remove(0).summary.unwrap();
    let first = read().await;
    let vm = first.catalogue.vms[0].id;
    assert!(first.covers(vm));
    add_point(&site, &domain, 2_000_000, &[]).await;
    let second = read().await;
    assert_eq!(second.point.unwrap().time, Time::from_millis(2_000_000));
    assert!(!second.covers(vm));
    assert_eq!(second.covered_by[&vm].at, first.point.unwrap().at);
    add_point(&site, &domain, 3_000_000, &[vm]).await;
    let third = read().await;
    assert!(third.covers(vm) && third.covered_by[&vm].time == Time::from_millis(3_000_000));
}

#[tokio::test]
async fn an_empty_site_has_no_domains() {
    let dir = tempfile::tempdir().unwrap();
    assert!(scan(&open(&dir).await, &Cancel::new()).await.unwrap().is_empty());
}
