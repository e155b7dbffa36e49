//! Disks that were rehydrated are protected where they stand: nothing is read, nothing compared, nothing shipped that was
//! not written; and whatever is in doubt is compared in whole.

use std::path::Path;

use freshet::capture::{VmDefinition, replicate};
use freshet::error::ErrorKind;
use freshet::format::{HydrationMap, VmShape, Watermark};
use freshet::ids::SegmentNo;
use freshet::protect::Origin;
use freshet::rehydrate::{RehydrateRequest, Target};
use freshet::store::Domain;

use super::stores::{S3World, random, s3_world};
use super::*;

const LIVE: u64 = 24 * MIB;

/// The first site's domain: two VMs, defined, three disks, two points.
async fn protected_before(world: &World) -> u64 {
    world.make("web", "root", 48 * MIB, &[(0, 8 * MIB), (40 * MIB, 4 * MIB)]);
    world.make("web", "data", 32 * MIB + 512, &[(4 * MIB, 8 * MIB)]);
    world.make("db", "root", 16 * MIB, &[(0, 4 * MIB)]);
    let mut request = world.replicate_request();
    let shape = VmShape { cpus: 3, ..VmShape::default() };
    request.vms[0].definition = Some(VmDefinition { kind: "test".into(), text: "<web/>".into(), shape });
    let older = replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    world.change("web", "root", MIB, MIB, 77);
    world.replicate(0).await;
    older.point.segment.get()
}

/// What the second site protects: the rehydrated disks, in a state directory of its own.
pub(crate) fn over_rehydrated(world: &World) -> ProtectRequest {
    let state = world.dir.path().join("second state");
    std::fs::create_dir_all(&state).unwrap();
    let mut request = ProtectRequest {
        site: Name::new("second site").unwrap(),
        state,
        origin: Origin::Rehydrated { datastore: world.dir.path().join("datastore") },
        take_ownership: true,
        ..request(world)
    };
    for vm in &mut request.vms {
        for disk in &mut vm.disks {
            disk.path = world.target(vm.name.as_str(), disk.name.as_str());
        }
    }
    request
}

pub(crate) fn images(request: &ProtectRequest) -> Vec<PathBuf> {
    request.vms.iter().flat_map(|vm| vm.disks.iter().map(|disk| disk.path.clone())).collect()
}

/// What the domain holds at its newest point, in a datastore of its own, equals these files.
pub(crate) async fn assert_domain(world: &World, files: &[PathBuf]) {
    let place = world.dir.path().join(format!("proof-{}", uuid::Uuid::new_v4()));
    for sub in ["", "log"] {
        std::fs::create_dir(place.join(sub)).unwrap();
    }
    let request = RehydrateRequest { datastore: place.clone(), log_store: place.join("log"), ..world.request() };
    let report = world.run(request).await.unwrap();
    let mut disks = report.disks.clone();
    disks.sort_by_key(|disk| world.disks.iter().position(|(vm, name)| disk.label == format!("{vm}/{name}")));
    assert_eq!(disks.len(), files.len());
    for (disk, file) in disks.iter().zip(files) {
        crate::world::assert_same_files(&disk.path, file);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn protection_resumes_over_rehydrated_disks_and_reads_compares_and_ships_nothing() {
    let S3World { server: _server, world } = s3_world(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    protected_before(&world).await;
    let rehydrated = world.rehydrate().await;
    assert!(rehydrated.written >= LIVE);
    let request = over_rehydrated(&world);
    let before = world.site.counters();
    let protection = start(&world, request.clone()).await;
    // From the very start, before any time has passed.
    let status = protection.status().await;
    assert_eq!((status.status.as_str(), status.sync), ("Recoverable", None), "{status:#?}");
    assert_eq!(status.shipped, rehydrated.point.segment.get());
    assert!(status.vms.iter().all(|vm| vm.disks.iter().all(|disk| disk.unsynced == 0)), "{status:#?}");
    assert_eq!(protection.notes(), Vec::<String>::new());

    let mut guest = client(&world, "web", "data");
    blocking(move || guest.write(20 * MIB, &random(1, 1 << 20)).unwrap()).await;
    let point = protection.cut_point(Duration::from_secs(30)).await.unwrap();
    let status = protection.status().await;
    assert!(point > rehydrated.point.segment.get());
    assert_eq!((status.sync_read, status.raw), (0, MIB), "only what the guest wrote: {status:#?}");
    let after = world.site.counters();
    let (sent, got) = (after.bytes_out - before.bytes_out, after.bytes_in - before.bytes_in);
    assert!(sent < 2 * MIB && got < MIB, "{sent} bytes sent and {got} fetched for one MiB that was written");
    let report = protection.stop().await.unwrap();
    assert!(report.all_shipped && report.dirty == 0, "{report:#?}");

    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    let owner = domain.ownership().newest().unwrap();
    assert_eq!((owner.author.site.as_str(), owner.base.unwrap().last), ("second site", rehydrated.point));
    let first = domain.locate(rehydrated.point.segment.next()).unwrap();
    assert_eq!(first.generation, owner.generation, "the first segment is the one after the base");
    let found = domain.manifest_at_or_before(SegmentNo::new(u64::MAX)).await.unwrap().manifest.unwrap();
    assert_eq!(found.cut.generation, owner.generation);
    let web = found.catalogue.vm_named("web").unwrap();
    assert_eq!((web.definition.as_str(), web.shape.cpus), ("<web/>", 3), "definitions carry on");
    assert_domain(&world, &images(&request)).await;

    // And again, by its own memory: the datastore does not speak for the disks any more.
    let protection = start(&world, request.clone()).await;
    let status = protection.status().await;
    assert_eq!((status.status.as_str(), status.sync_read), ("Recoverable", 0), "{status:#?}");
    assert_eq!(protection.notes(), Vec::<String>::new());
    assert!(protection.stop().await.unwrap().all_shipped);
}

/// What the datastore says is changed by `spoil`; then all of what it is about is compared, and the domain comes to hold
/// what the files hold.
async fn doubted(word: &str, target: Target, spoil: impl AsyncFnOnce(&World, &mut ProtectRequest)) {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    let older = protected_before(&world).await;
    let target = match target {
        Target::Point(_) => Target::Point(SegmentNo::new(older)),
        target => target,
    };
    world.run(RehydrateRequest { target, ..world.request() }).await.unwrap();
    let mut request = over_rehydrated(&world);
    spoil(&world, &mut request).await;
    let protection = start(&world, request.clone()).await;
    let notes = protection.notes().join("\n");
    assert!(notes.contains(word) && notes.contains("is compared"), "{word}: {notes}");
    let status = until_recoverable(&protection).await;
    assert!(status.sync_read > 0, "{word}: {status:#?}");
    let report = protection.stop().await.unwrap();
    assert!(report.all_shipped, "{word}: {report:#?}");
    assert_domain(&world, &images(&request)).await;
}

fn state(world: &World) -> PathBuf {
    world.dir.path().join("datastore").join(world.domain.key()).join(".freshet")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_changed_since_is_compared_in_whole() {
    doubted("was changed since it was rehydrated", Target::Newest, async |world, _| {
        let path = world.target("web", "root");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &random(3, 4096), 30 * MIB).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_at_another_point_than_the_base_are_compared_in_whole() {
    doubted("and the chain goes on from", Target::Point(SegmentNo::ZERO), async |world, request| {
        // Taken over at the newest point, by other means.
        let take_ownership = Some(freshet::store::BaseChoice::NewestPoint);
        let options = freshet::store::StartOptions { take_ownership, ..Default::default() };
        let writer = freshet::store::DomainWriter::start(&world.site, &world.domain, &request.site, options).await;
        writer.unwrap().finish().await.unwrap();
        request.take_ownership = false;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_or_a_watermark_that_is_gone_or_torn_proves_nothing() {
    for (stem, torn, word) in
        [("hydration", false, "let its disks go"), ("hydration", true, "is lost"), ("watermark", false, "no watermark")]
    {
        doubted(word, Target::Newest, async |world, _| {
            for slot in 0..2 {
                let path = state(world).join(format!("{stem}.{slot}"));
                match torn {
                    true => std::fs::write(path, "torn").unwrap(),
                    false => drop(std::fs::remove_file(path)),
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_is_compared_in_whole_and_the_others_are_not() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    protected_before(&world).await;
    world.rehydrate().await;
    // As a rehydration leaves it that found one frame damaged.
    let (map, path) = newest_map(&world);
    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    let catalogue = domain.manifest_at_or_before(SegmentNo::new(u64::MAX)).await.unwrap().manifest.unwrap().catalogue;
    let db = catalogue.disks_of(catalogue.vm_named("db").unwrap().id).next().unwrap().id;
    let mut map = HydrationMap { sequence: map.sequence + 1, ..map };
    map.disks.iter_mut().find(|d| d.disk == db).unwrap().valid.remove(2);
    let (offset, len) = (2 * freshet::format::GRANULE, 4096);
    map.quarantined.push(freshet::format::Quarantined { disk: db, offset, len, why: "a bad frame".into() });
    std::fs::write(path, map.encode()).unwrap();
    let request = over_rehydrated(&world);
    let protection = start(&world, request.clone()).await;
    let notes = protection.notes();
    assert!(notes.len() == 1 && notes[0].contains("db/root") && notes[0].contains("a bad frame"), "{notes:?}");
    let status = until_recoverable(&protection).await;
    assert!(status.sync_read > 0 && status.sync_read <= 16 * MIB, "one disk: {status:#?}");
    assert!(protection.stop().await.unwrap().all_shipped);
    assert_domain(&world, &images(&request)).await;
}

/// The newest hydration map, and the file that the next one goes to.
fn newest_map(world: &World) -> (HydrationMap, PathBuf) {
    let read = |slot: u32| {
        let path = state(world).join(format!("hydration.{slot}"));
        (std::fs::read(&path).ok().and_then(|bytes| HydrationMap::decode(&bytes).ok()), path)
    };
    let (first, second) = (read(0), read(1));
    let sequence = |map: &Option<HydrationMap>| map.as_ref().map_or(0, |map| map.sequence);
    match sequence(&first.0) > sequence(&second.0) {
        true => (first.0.unwrap(), second.1),
        false => (second.0.unwrap(), first.1),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_are_not_whole_yet_or_in_use_are_refused_before_anything_is_claimed() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    protected_before(&world).await;
    let request = over_rehydrated(&world);
    let refused = async |kind: ErrorKind, word: &str| {
        let error = Protection::open(world.site.clone(), request.clone()).await.map(drop).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(word), "{error}");
    };
    refused(ErrorKind::NotFound, "no rehydrated disks").await;
    world.rehydrate().await;
    let (map, path) = newest_map(&world);
    let mut missing = HydrationMap { sequence: map.sequence + 1, ..map };
    missing.disks[0].valid.remove(5);
    std::fs::write(path, missing.encode()).unwrap();
    refused(ErrorKind::Refused, "have not been rehydrated yet").await;
    world.rehydrate().await;
    // A follower that runs.
    let cancel = Cancel::new();
    let follow = RehydrateRequest { mode: freshet::rehydrate::Mode::Continuous { until: None }, ..world.request() };
    let (site, progress, end) = (world.site.clone(), Arc::new(Progress::new()), cancel.clone());
    let progress_of = Arc::clone(&progress);
    let following = tokio::spawn(async move { rehydrate(&site, follow, progress_of, end).await });
    let began = Instant::now();
    while progress.snapshot().applied.is_none() {
        assert!(began.elapsed() < PATIENCE, "it never followed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    refused(ErrorKind::Refused, "in use by another freshet").await;
    cancel.cancel();
    following.await.unwrap().unwrap();
    let domain = Domain::open(&world.site, &world.domain).await.unwrap();
    assert_eq!(domain.ownership().newest().unwrap().author.site.as_str(), "first site");
    // A point that is none any more, as after another's take-over.
    let (map, path) = newest_map(&world);
    let at = freshet::ids::SegmentRef::new(map.target.generation, SegmentNo::new(map.target.segment.get() + 40));
    let map = HydrationMap { sequence: map.sequence + 1, target: at, applied: at, ..map };
    std::fs::write(path, map.encode()).unwrap();
    for slot in 0..2 {
        let path = state(&world).join(format!("watermark.{slot}"));
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let forged = Watermark { point: at, ..Watermark::decode(&bytes).unwrap() };
        std::fs::write(path, forged.encode()).unwrap();
    }
    let mut protection = Protection::open(world.site.clone(), request.clone()).await.unwrap();
    let error = protection.claim(&Cancel::new(), |_| ()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("no point of domain"), "{error}");
    let domain = Domain::open(&world.site, &world.domain).await.unwrap();
    assert_eq!(domain.ownership().newest().unwrap().author.site.as_str(), "first site", "nothing was claimed");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_a_guest_may_have_written_no_rehydration_takes_the_files_for_its_own() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    let older = protected_before(&world).await;
    world.rehydrate().await;
    let request = over_rehydrated(&world);
    let protection = start(&world, request.clone()).await;
    let running = world.run(world.request()).await.unwrap_err();
    assert!(running.kind() == ErrorKind::Refused && running.to_string().contains("in use"), "{running}");
    let mut guest = client(&world, "db", "root");
    blocking(move || guest.write_fua(9 * MIB, &random(5, 8192)).unwrap()).await;
    // Killed: what it wrote may be nowhere else.
    drop(protection);
    for target in [Target::Newest, Target::Point(SegmentNo::new(older))] {
        let rehydrate = RehydrateRequest { target, ..world.request() };
        let began = Instant::now();
        let error = loop {
            let error = world.run(rehydrate.clone()).await.unwrap_err();
            if !error.to_string().contains("in use") {
                break error;
            }
            assert!(began.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("--overwrite"), "{error}");
    }
    assert_eq!(std::fs::read(world.target("db", "root")).unwrap()[9 << 20..][..8192], random(5, 8192));
    let protection = start_late(&world, request.clone()).await;
    until_recoverable(&protection).await;
    assert!(protection.stop().await.unwrap().all_shipped);
    assert_domain(&world, &images(&request)).await;
    // By flag, and then it is a rehydrated datastore again.
    let again = RehydrateRequest { overwrite: true, target: Target::Point(SegmentNo::new(older)), ..world.request() };
    world.run(again).await.unwrap();
    world.rehydrate().await;
    let protection = start(&world, request.clone()).await;
    let status = protection.status().await;
    assert_eq!((status.status.as_str(), status.sync_read), ("Recoverable", 0), "{status:#?}");
    assert!(protection.stop().await.unwrap().all_shipped);
    assert_domain(&world, &images(&request)).await;
}

/// The file that the next version of a document of two goes to; `sequence` tells which of them is the newest.
fn next_slot(dir: &Path, stem: &str, sequence: impl Fn(&[u8]) -> u64) -> PathBuf {
    let paths = [0, 1].map(|slot| dir.join(format!("{stem}.{slot}")));
    let [first, second] = [0, 1].map(|slot: usize| std::fs::read(&paths[slot]).map_or(0, |bytes| sequence(&bytes)));
    let [even, odd] = paths;
    if first > second { odd } else { even }
}

/// Each document that is written while the disks are taken from the datastore cannot be: what is on disk then is what a
/// kill at that moment leaves.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_taking_the_disks_the_next_start_believes_what_is_true() {
    for step in ["protection", "hydration", "watermark"] {
        for moved in [false, true] {
            let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
            let older = protected_before(&world).await;
            world.rehydrate().await;
            let request = over_rehydrated(&world);
            let mut protection = Protection::open(world.site.clone(), request.clone()).await.unwrap();
            let blocked = match step {
                "protection" => request.state.join(request.domain.key()).join("protection.0"),
                "hydration" => newest_map(&world).1,
                _ => next_slot(&state(&world), step, |bytes| Watermark::decode(bytes).unwrap().sequence),
            };
            let kept = std::fs::read(&blocked).ok();
            drop(std::fs::remove_file(&blocked));
            std::fs::create_dir(&blocked).unwrap();
            let error = protection.claim(&Cancel::new(), |_| ()).await.unwrap_err();
            assert!(error.to_string().contains(step), "{step}: {error}");
            assert!(!protection.is_serving(), "{step}: a guest could have written");
            drop(protection);
            std::fs::remove_dir(&blocked).unwrap();
            kept.iter().for_each(|bytes| std::fs::write(&blocked, bytes).unwrap());
            let mut proved = true;
            if moved {
                // Rehydrated to another point meanwhile, into the same files: only while the datastore speaks for them.
                let to = RehydrateRequest { target: Target::Point(SegmentNo::new(older)), ..world.request() };
                match world.run(to).await {
                    Ok(_) => proved = false,
                    Err(error) => assert!(step == "watermark" && error.kind() == ErrorKind::Refused, "{step}: {error}"),
                }
            }
            let protection = start_late(&world, request.clone()).await;
            let notes = protection.notes();
            assert_eq!(notes.is_empty(), proved, "{step} {moved}: {notes:?}");
            if proved {
                assert_eq!(protection.status().await.status, "Recoverable", "{step} {moved}");
            }
            let status = until_recoverable(&protection).await;
            assert_eq!(status.sync_read > 0, !proved, "{step} {moved}: {status:#?}");
            assert!(protection.stop().await.unwrap().all_shipped);
            assert_domain(&world, &images(&request)).await;
        }
    }
}

/// VMs that are not named stay in the domain as they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_is_protected_and_the_rest_keeps_its_content() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    protected_before(&world).await;
    world.rehydrate().await;
    let mut request = over_rehydrated(&world);
    request.vms.retain(|vm| vm.name.as_str() == "web");
    let protection = start(&world, request.clone()).await;
    let status = protection.status().await;
    let web = status.vms.iter().find(|vm| vm.name == "web").unwrap();
    assert_eq!((web.status.as_str(), status.sync_read), ("Recoverable", 0), "{status:#?}");
    let mut guest = client(&world, "web", "root");
    blocking(move || guest.write(0, &random(6, 8192)).unwrap()).await;
    assert!(protection.stop().await.unwrap().all_shipped);
    let all = images(&over_rehydrated(&world));
    assert_domain(&world, &all).await;
}

/// As an operator does it: without a word about VMs and disks, and killed in between.
#[test]
fn the_program_protects_what_a_datastore_holds_and_finds_it_again_after_a_kill() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(async {
        let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
        protected_before(&world).await;
        world.rehydrate().await;
        world
    });
    let start = || {
        let mut command = super::program::about(&world);
        command.args(["--site", "second site", "--store", world.site.url(), "--memory", "128MiB"]);
        command.args(["--log-size", "64MiB", "--connections", "16", "--segment-age", "50", "--rehydrated"]);
        command.arg(world.dir.path().join("datastore"));
        command.args(["--take-ownership", "--yes", "--listen", &format!("unix:{}", socket(&world).display())]);
        super::program::Program::start(&mut command)
    };
    let program = start();
    let ready = program.event("ready");
    assert_eq!(ready["exports"].as_array().unwrap().len(), 3, "{ready}");
    let status = super::program::until_told(&world, "recoverable", super::program::recoverable);
    assert_eq!((status.sync_read, status.site.as_str()), (0, "second site"), "{status:#?}");
    client(&world, "web", "data").write_fua(7 * MIB, &random(8, 8192)).unwrap();
    program.end(rustix::process::Signal::KILL);
    let program = start();
    program.event("ready");
    let status = super::program::until_told(&world, "recoverable", super::program::recoverable);
    assert!(status.sync_read <= 2 * MIB, "only what was marked: {status:#?}");
    let (ended, report) = program.end(rustix::process::Signal::TERM);
    assert!(ended.success() && report["all_shipped"] == true && report["dirty"] == 0, "{ended}: {report:#}");
    let all: Vec<PathBuf> = world.disks.iter().map(|(vm, disk)| world.target(vm, disk)).collect();
    assert_eq!(std::fs::read(&all[1]).unwrap()[7 << 20..][..8192], random(8, 8192));
    runtime.block_on(assert_domain(&world, &all));
}
