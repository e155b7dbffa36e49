//! Domains as readers and writers see them, on a directory and on the in-tree S3 server: who may write, what counts,
//! what happens to a stale writer, a lost answer, a damaged manifest.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use bytes::Bytes;
use freshet::error::ErrorKind;
use freshet::format::{
    Catalogue, Digest, IndexDisk, Manifest, Mode, Point, PointFlags, ProcessIdentity, Seal, SegmentBuilder,
};
use freshet::ids::{DiskId, DomainId, Generation, Name, SegmentNo, SegmentRef, Time, VmId, WriterId};
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};
use freshet::store::{
    BaseChoice, Created, Domain, DomainWriter, Next, StartOptions, StorageSite, StoreOptions, keys, list_domains,
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn at(generation: u64, segment: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
}

async fn file_site(dir: &tempfile::TempDir) -> StorageSite {
    StorageSite::open(&format!("file://{}", dir.path().display()), &StoreOptions::default()).await.unwrap()
}

/// A process on a host of its own.
fn elsewhere(host: u8) -> StartOptions {
    let process = ProcessIdentity { host: [host; 16], host_name: format!("host{host}"), pid: 7, started: 1 };
    StartOptions { process: Some(process), ..StartOptions::default() }
}

fn taking_over(base: BaseChoice) -> StartOptions {
    StartOptions { take_ownership: Some(base), ..elsewhere(9) }
}

async fn start(site: &StorageSite, who: &str, options: StartOptions) -> freshet::error::Result<DomainWriter> {
    DomainWriter::start(site, &name("dom"), &name(who), options).await
}

/// A writer of site P of this process.
async fn writer(site: &StorageSite) -> DomainWriter {
    start(site, "P", StartOptions::default()).await.unwrap()
}

/// Segment `id`, which ends at a point at time `n * 1000` unless told otherwise.
async fn put(site: &StorageSite, domain: DomainId, id: SegmentRef, is_point: bool) {
    let no = id.segment.get();
    let mut builder = SegmentBuilder::new(Vec::new());
    let disk = IndexDisk { id: DiskId::from_bytes([5; 16]), vm: VmId::from_bytes([6; 16]), size: 1 << 20 };
    builder.push_zeros(&disk, 0, 4096);
    let seal = Seal {
        domain,
        id,
        parent: if no == 1 { at(0, 0) } else { at(id.generation.get(), no - 1) },
        parent_digest: Digest::default(),
        writer: WriterId::default(),
        created: Time::default(),
        point: is_point.then(|| point(id.segment.get())),
        catalogue: None,
    };
    let bytes = builder.seal(seal).unwrap().bytes;
    assert_eq!(site.create(&keys::segment(&name("dom"), id), vec![bytes.into()]).await.unwrap(), Created::New);
}

fn point(n: u64) -> Point {
    Point { time: Time::from_millis(n * 1000), flags: PointFlags::default(), vms: [VmId::from_bytes([6; 16])].into() }
}

async fn put_range(site: &StorageSite, writer: &DomainWriter, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        put(site, writer.domain().id(), at(writer.generation().get(), n), true).await;
    }
}

async fn open(site: &StorageSite) -> Domain {
    Domain::open(site, &name("dom")).await.unwrap()
}

#[tokio::test]
async fn a_directory_keeps_the_rules() {
    for case in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let site = file_site(&dir).await;
        rules(&site, case).await;
    }
}

#[tokio::test]
async fn an_s3_server_keeps_the_rules() {
    for case in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start(dir.path(), Options { page_keys: 3, ..Options::default() }).unwrap();
        let site = StorageSite::open(&server.url("site"), &StoreOptions::from_vars(server.env())).await.unwrap();
        rules(&site, case).await;
    }
}

/// What holds on every store.
async fn rules(site: &StorageSite, case: u8) {
    match case {
        0 => stale_writer_is_never_believed(site).await,
        1 => follower_rewinds(site).await,
        _ => racing_writers(site).await,
    }
}

async fn stale_writer_is_never_believed(site: &StorageSite) {
    let old = writer(site).await;
    assert_eq!((old.generation(), old.base(), old.first()), (Generation::new(1), at(0, 0), at(1, 1)));
    put_range(site, &old, 1..=3).await;
    old.accept_up_to(at(1, 3)).await.unwrap();
    let new = start(site, "R", taking_over(BaseChoice::Tip)).await.unwrap();
    assert_eq!((new.generation(), new.base()), (Generation::new(2), at(1, 3)));
    assert_ne!(new.base_digest(), Digest::default());

    put_range(site, &old, 4..=5).await;
    let error = old.accept_up_to(at(1, 5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(error.context().contains("site R") && error.context().contains("host9"), "{error}");
    assert_eq!(old.check().unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(old.finish().await.unwrap_err().kind(), ErrorKind::Fenced);

    put_range(site, &new, 4..=4).await;
    let mut domain = open(site).await;
    assert_eq!(domain.tip().await.unwrap(), at(2, 4));
    assert_eq!(domain.locate(SegmentNo::new(4)), Some(at(2, 4)));
    assert_eq!(domain.locate(SegmentNo::new(5)), None);
    assert_eq!(domain.index(at(1, 4)).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(domain.index(at(1, 3)).await.unwrap().1.segment, at(1, 3));
    // The status is the new writer's, whatever the old one did.
    assert_eq!(domain.status().await.unwrap().unwrap().generation, Generation::new(2));
}

async fn follower_rewinds(site: &StorageSite) {
    let old = writer(site).await;
    let mut follower = open(site).await;
    assert_eq!(follower.next_after(at(0, 0)).await.unwrap(), Next::NotYet);
    put_range(site, &old, 1..=7).await;
    put(site, old.domain().id(), at(1, 9), true).await;
    let mut here = at(0, 0);
    while let Next::Segment(next) = follower.next_after(here).await.unwrap() {
        assert_eq!(next, at(1, here.segment.get() + 1));
        here = next;
    }
    assert_eq!(here, at(1, 7), "nothing beyond a gap");
    let error = open(site).await.next_after(at(4, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");

    let new = start(site, "R", taking_over(BaseChoice::Point(SegmentNo::new(5)))).await.unwrap();
    assert_eq!(new.base(), at(1, 5));
    assert_eq!(follower.next_after(here).await.unwrap(), Next::Rewound { to: at(1, 5) });
    assert_eq!(follower.next_after(at(1, 5)).await.unwrap(), Next::NotYet);
    put_range(site, &new, 6..=6).await;
    assert_eq!(follower.next_after(at(1, 5)).await.unwrap(), Next::Segment(at(2, 6)));
    assert_eq!(follower.next_after(at(1, 4)).await.unwrap(), Next::Segment(at(1, 5)));
    // One that starts anew from its watermark goes on as well.
    assert_eq!(open(site).await.next_after(at(1, 7)).await.unwrap(), Next::Rewound { to: at(1, 5) });
    put_range(site, &new, 7..=7).await;
    assert_eq!(open(site).await.next_after(at(2, 6)).await.unwrap(), Next::Segment(at(2, 7)));
}

async fn racing_writers(site: &StorageSite) {
    let starts = (1..=4).map(|host| start(site, "P", elsewhere(host)));
    let started = futures::future::join_all(starts).await;
    for error in started.iter().filter_map(|w| w.as_ref().err()) {
        assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Fenced), "{error}");
    }
    let writers: Vec<DomainWriter> = started.into_iter().flatten().collect();
    for writer in &writers {
        put_range(site, writer, writer.first().segment.get()..=writer.first().segment.get()).await;
    }
    let mut believed = Vec::new();
    for writer in &writers {
        if writer.accept_up_to(writer.first()).await.is_ok() {
            believed.push(writer.first());
        }
    }
    assert_eq!(believed.len(), 1, "{believed:?}");
    assert_eq!(open(site).await.tip().await.unwrap(), believed[0]);
}

#[tokio::test]
async fn a_second_writer_is_refused_and_a_finished_or_dead_one_followed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let site = file_site(&dir).await;
    let first = start(&site, "P", elsewhere(1)).await.unwrap();
    let error = start(&site, "P", elsewhere(2)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.context().contains("host1") && error.context().contains("process 7"), "{error}");
    first.finish().await.unwrap();
    assert_eq!(open(&site).await.status().await.unwrap().unwrap().mode, Mode::Idle);

    // Same host as the one that starts, and no such process any more.
    let dead = ProcessIdentity { started: 1, pid: u32::MAX >> 1, ..elsewhere(2).process.unwrap() };
    let killed = start(&site, "P", StartOptions { process: Some(dead), ..StartOptions::default() }).await.unwrap();
    put_range(&site, &killed, 1..=2).await;
    std::mem::forget(killed);
    let again = start(&site, "P", elsewhere(2)).await.unwrap();
    assert_eq!((again.generation(), again.base()), (Generation::new(3), at(2, 2)));
    assert_eq!(again.first(), at(3, 3));
    // One that was dropped without finishing does not block its own process.
    again.finish().await.unwrap();
    let own = writer(&site).await;
    assert_eq!(start(&site, "P", StartOptions::default()).await.map(|_| ()).unwrap_err().kind(), ErrorKind::Refused);
    drop(own);
    writer(&site).await;
}

#[tokio::test]
async fn another_site_is_refused_and_told_what_a_take_over_would_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let site = file_site(&dir).await;
    let owner = writer(&site).await;
    put_range(&site, &owner, 1..=4).await;
    put(&site, owner.domain().id(), at(1, 5), false).await;
    let error = start(&site, "R", elsewhere(2)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    for part in ["owned by site P since", "newest point is 4", "cut off 1 segments", "--take-ownership"] {
        assert!(error.context().contains(part), "{part}: {error}");
    }
    let preview = open(&site).await.preview_take_over(BaseChoice::Point(SegmentNo::new(2))).await.unwrap();
    assert_eq!((preview.tip, preview.base, preview.cut_segments, preview.cut_points), (at(1, 5), at(1, 2), 3, 2));
    assert!(preview.last_sign.is_recent() && preview.cut_bytes > 0);
    assert!(preview.to_string().contains("2 points, the last 2 s"), "{preview}");
    assert_eq!(open(&site).await.ownership().newest_generation(), Generation::new(1), "a preview changes nothing");
    let error = open(&site).await.preview_take_over(BaseChoice::Point(SegmentNo::new(5))).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.context().contains("before it is point 4"), "{error}");
    let new = start(&site, "R", taking_over(BaseChoice::NewestPoint)).await.unwrap();
    assert_eq!(new.base(), at(1, 4));
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_the_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(dir.path(), Options::default()).unwrap();
    let site = StorageSite::open(&server.url("site"), &StoreOptions::from_vars(server.env())).await.unwrap();
    let lost = Rule::new(Fault::LostResponse).verb(Verb::Put).key("/owner/").when(When::First(1));
    server.faults().add(lost);
    let writer = writer(&site).await;
    put_range(&site, &writer, 1..=1).await;
    writer.accept_up_to(at(1, 1)).await.unwrap();
    assert_eq!((writer.generation(), open(&site).await.ownership().records()), (Generation::new(1), 2));
}

#[tokio::test]
async fn points_come_from_manifests_and_segments_and_a_damaged_manifest_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let site = file_site(&dir).await;
    let writer = writer(&site).await;
    put_range(&site, &writer, 1..=9).await;
    writer.accept_up_to(at(1, 9)).await.unwrap();
    let id = writer.domain().id();
    let manifest = |previous: u64, cut: u64| Manifest {
        domain: id,
        cut: at(1, cut),
        index_digest: Digest::default(),
        previous: if previous == 0 { at(0, 0) } else { at(1, previous) },
        chain_bytes: 0,
        catalogue: Catalogue::default(),
        points: (previous + 1..=cut).map(|n| (at(1, n), point(n))).collect(),
        pages: Vec::new(),
    };
    let mut broken = manifest(3, 6).encode().unwrap();
    *broken.last_mut().unwrap() ^= 1;
    for (cut, bytes) in [(3, manifest(0, 3).encode().unwrap()), (6, broken)] {
        site.create(&keys::manifest(&name("dom"), at(1, cut)), vec![Bytes::from(bytes)]).await.unwrap();
    }
    // A stale writer's, beyond what counts.
    site.create(&keys::manifest(&name("dom"), at(1, 40)), vec![Bytes::from_static(b"x")]).await.unwrap();
    let domain = writer.view().await;
    assert_eq!(domain.manifests().await.unwrap(), [at(1, 3), at(1, 6)]);
    let found = domain.manifest_at_or_before(SegmentNo::new(9)).await.unwrap();
    assert_eq!((found.manifest.unwrap().cut, found.warnings.len()), (at(1, 3), 1));
    let points = domain.points().await.unwrap();
    let numbers: Vec<u64> = points.all().iter().map(|p| p.at.segment.get()).collect();
    assert_eq!((numbers, points.warnings().len()), ((1..=9).collect(), 1));
    assert_eq!(domain.newest_point().await.unwrap().point.unwrap().at, at(1, 9));
}

#[tokio::test]
async fn a_claim_without_a_base_seals_and_the_next_one_inherits() {
    let dir = tempfile::tempdir().unwrap();
    let site = file_site(&dir).await;
    let first = writer(&site).await;
    put_range(&site, &first, 1..=2).await;
    first.finish().await.unwrap();
    let second = start(&site, "P", elsewhere(1)).await.unwrap();
    second.finish().await.unwrap();
    // As if the second had died between claim and base.
    std::fs::remove_file(dir.path().join(keys::owner(&name("dom"), 4))).unwrap();
    let mut domain = open(&site).await;
    assert_eq!((domain.tip().await.unwrap(), domain.ownership().unsettled().is_some()), (at(0, 0), true));
    assert_eq!(domain.next_after(at(0, 0)).await.unwrap(), Next::NotYet);
    let third = start(&site, "P", elsewhere(1)).await.unwrap();
    assert_eq!((third.generation(), third.base()), (Generation::new(3), at(1, 2)));
    assert_eq!(domain.next_after(at(0, 0)).await.unwrap(), Next::Segment(at(1, 1)));
}

#[tokio::test]
async fn gaps_and_foreign_records_in_the_log_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let site = file_site(&dir).await;
    assert_eq!(Domain::open(&site, &name("dom")).await.unwrap_err().kind(), ErrorKind::NotFound);
    writer(&site).await.finish().await.unwrap();
    let key = |n| dir.path().join(keys::owner(&name("dom"), n));
    std::fs::copy(key(1), key(3)).unwrap();
    let error = Domain::open(&site, &name("dom")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Damaged && error.context().contains("record 1"), "{error}");
    std::fs::remove_file(key(2)).unwrap();
    let error = Domain::open(&site, &name("dom")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Damaged && error.context().contains("missing"), "{error}");
}

#[tokio::test]
async fn a_thousand_domains_are_listed_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let site = file_site(&dir).await;
    writer(&site).await.finish().await.unwrap();
    for i in 0..1000 {
        let to = dir.path().join(format!("d{i:04}/owner"));
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(dir.path().join(keys::owner(&name("dom"), 1)), to.join(format!("{:012}", 1))).unwrap();
    }
    std::fs::create_dir(dir.path().join("not claimed")).unwrap();
    let found = list_domains(&site).await.unwrap();
    assert_eq!(found.len(), 1001);
    assert!(found.iter().all(|(_, d)| d.is_ok()) && found.is_sorted_by_key(|(n, _)| n.clone()));
}
