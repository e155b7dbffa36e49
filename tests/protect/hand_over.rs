//! A domain that is handed over: nothing is lost, nothing is given up half, and whoever had it opens nothing before it is
//! theirs again.

use freshet::error::ErrorKind;
use freshet::format::ProtectionRecord;
use freshet::ids::SegmentNo;
use freshet::protect::{HandOverOptions, HandedOver};
use freshet::rehydrate::RehydrateRequest;
use freshet::store::{Domain, HandOver};

use super::program::{self, Program};
use super::rehydrated::{assert_domain, images, over_rehydrated};
use super::stores::{S3World, random, s3_world};
use super::*;
use freshet::s3_server::{Fault, Rule, Verb};

const WITHIN: HandOverOptions = HandOverOptions { within: Duration::from_secs(60), leave_uncovered: false };

fn site(name: &str) -> Name {
    Name::new(name).unwrap()
}

async fn domain(world: &World) -> Domain {
    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    domain
}

/// Writes until it is cut off; answers with how much was acknowledged.
fn guest_until_cut_off(world: &World, vm: &'static str, disk: &'static str, seed: u64) -> std::thread::JoinHandle<u64> {
    let mut client = client(world, vm, disk);
    std::thread::spawn(move || {
        let (mut place, mut writes) = (fastrand::Rng::with_seed(seed), 0);
        loop {
            let at = place.u64(..client.size / 4096) * 4096;
            if client.write(at, &random(place.u64(..), 4096)).is_err() {
                return writes;
            }
            writes += 1;
        }
    })
}

/// The newest protection record.
fn record(request: &ProtectRequest) -> ProtectionRecord {
    let dir = request.state.join(request.domain.key());
    let read = |slot: u32| {
        let bytes = std::fs::read(dir.join(format!("protection.{slot}"))).ok()?;
        ProtectionRecord::decode(&bytes).ok()
    };
    [read(0), read(1)].into_iter().flatten().max_by_key(|record| record.sequence).unwrap()
}

/// The disks of the first site equal the last point, byte for byte, and its record says so.
async fn assert_handed_over(world: &World, done: &HandedOver) {
    let own: Vec<PathBuf> = world.disks.iter().map(|(vm, disk)| world.image(vm, disk)).collect();
    assert_domain(world, &own).await;
    let record = record(&request(world));
    let at = (record.relied_on.generation.get(), record.relied_on.segment.get());
    assert_eq!((at, record.boot), ((done.generation, done.point), [0; 16]));
    for stamp in &record.stamps {
        let same = own.iter().any(|path| {
            use std::os::unix::fs::MetadataExt;
            let meta = path.metadata().unwrap();
            let changed = (meta.mtime() as u64, meta.mtime_nsec() as u32);
            (meta.ino(), meta.len(), changed) == (stamp.inode, stamp.len, stamp.changed)
        });
        assert!(same, "{stamp:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_under_load_loses_nothing_and_the_other_site_goes_on_from_the_last_point() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    for (vm, disk) in world.disks.clone() {
        world.make(vm, disk, 32 * MIB, &[(0, 2 * MIB)]);
    }
    let mut first = start(&world, request(&world)).await;
    until_recoverable(&first).await;
    world.rehydrate().await;
    let mut asking = domain(&world).await;
    asking.request_hand_over(&site("second site")).await.unwrap();
    let status = until(&first, "the request", |status| status.asked_by.is_some()).await;
    assert_eq!(status.asked_by.as_deref(), Some("second site"));

    let guests = [("web", "root"), ("web", "data"), ("db", "root")];
    let guests: Vec<_> = (1..).zip(guests).map(|(n, (vm, disk))| guest_until_cut_off(&world, vm, disk, n)).collect();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let done = first.hand_over(WITHIN).await.unwrap();
    let mut written = 0;
    for guest in guests {
        written += blocking(move || guest.join().unwrap()).await;
    }
    assert!(written > 100, "{written} writes are no load");
    assert_eq!((done.covered.len(), done.uncovered.len()), (2, 0), "{done:?}");
    assert!(!first.is_serving() && NbdClient::try_connect(&socket(&world), "web/root").is_err());
    assert_eq!(first.hand_over(WITHIN).await.unwrap(), done, "once");
    let status = first.status().await;
    assert!(status.status == "Fenced" && status.problems[0].contains("was released"), "{status:#?}");
    let report = first.stop().await.unwrap();
    assert!(report.all_shipped && report.dirty == 0 && report.point == done.point, "{report:#?}");
    assert_handed_over(&world, &done).await;

    // On the same boot, and it opens nothing: what a guest wrote now would be in no chain.
    let mut again = Protection::open(world.site.clone(), request(&world)).await.unwrap();
    let refused = again.claim(&Cancel::new(), |_| ()).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Fenced && refused.to_string().contains("released by this site"), "{refused}");
    assert!(!again.is_serving());
    drop(again);

    // The other site has what is missing at once, and goes on from there.
    let rehydrated = world.rehydrate().await;
    assert_eq!(rehydrated.point.segment.get(), done.point);
    let second = over_rehydrated(&world);
    let protection = start(&world, second.clone()).await;
    let status = protection.status().await;
    assert_eq!((status.status.as_str(), status.sync_read, status.shipped), ("Recoverable", 0, done.point));
    let newest = domain(&world).await;
    let newest = newest.ownership().newest().unwrap();
    assert_eq!((newest.author.site.as_str(), newest.take_over), ("second site", false), "with consent");
    let mut guest = client(&world, "db", "root");
    blocking(move || guest.write(8 * MIB, &random(9, 1 << 20)).unwrap()).await;
    assert!(protection.stop().await.unwrap().all_shipped);
    assert_domain(&world, &images(&second)).await;
    // What the first site has is what it gave up, still.
    let first = world.images();
    world
        .run(RehydrateRequest {
            target: freshet::rehydrate::Target::Point(SegmentNo::new(done.point)),
            overwrite: true,
            ..world.request()
        })
        .await
        .unwrap();
    world.assert_disks(&first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_nobody_takes_is_taken_back_and_the_guests_go_on_without_any_sync() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
    let mut first = start(&world, request(&world)).await;
    until_recoverable(&first).await;
    let done = first.hand_over(WITHIN).await.unwrap();
    drop(first);
    assert_eq!(domain(&world).await.resume(&site("first site")).await.unwrap(), HandOver::None);
    let first = start_late(&world, request(&world)).await;
    let status = first.status().await;
    assert_eq!((status.status.as_str(), status.sync_read), ("Recoverable", 0), "{status:#?}");
    assert_eq!(first.notes(), Vec::<String>::new());
    let mut guest = client(&world, "web", "root");
    blocking(move || guest.write(MIB, &random(2, 8192)).unwrap()).await;
    assert!(stop_and_compare(&world, first).await.point > done.point);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_cannot_be_done_gives_nothing_up_and_the_guests_go_on() {
    let S3World { server, world } = s3_world(&[("web", "root"), ("db", "root")]).await;
    world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
    world.make("db", "root", 16 * MIB, &[]);
    let mut first = start(&world, request(&world)).await;
    until_recoverable(&first).await;
    // The storage site is away.
    let mut guest = client(&world, "web", "root");
    server.set_reachable(false).unwrap();
    blocking(move || guest.write(MIB, &random(1, 8192)).unwrap()).await;
    let short = HandOverOptions { within: Duration::from_millis(500), ..WITHIN };
    let error = first.hand_over(short).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unreachable && error.to_string().contains("nothing was given up"), "{error}");
    assert!(first.is_serving());
    let mut guest = client(&world, "web", "root");
    blocking(move || guest.write(2 * MIB, &random(2, 8192)).unwrap()).await;
    assert_ne!(record(&request(&world)).boot, [0; 16], "a restart gives the guests their disks back at once");
    server.set_reachable(true).unwrap();
    until_recoverable(&first).await;
    assert_eq!(domain(&world).await.ownership().hand_over(), HandOver::None);
    // The second time it works, though every answer to it is lost.
    server.faults().set([Rule::new(Fault::LostResponse).verb(Verb::Put).key("/owner/")]);
    let done = first.hand_over(WITHIN).await.unwrap();
    server.faults().clear();
    assert_eq!(done.uncovered, Vec::<String>::new());
    assert!(first.stop().await.unwrap().all_shipped);
    assert!(matches!(domain(&world).await.ownership().hand_over(), HandOver::Released(..)));
    assert_handed_over(&world, &done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_not_known_whether_the_release_stands_the_disks_stay_closed_until_it_is() {
    for landed in [false, true] {
        for back in [false, true] {
            let S3World { server, world } = s3_world(&[("web", "root")]).await;
            world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
            let mut first = start(&world, request(&world)).await;
            until_recoverable(&first).await;
            let lost = if landed { Fault::LostResponse } else { Fault::Deny };
            // The write is not answered; nor is, from its arrival on, the look that would settle it.
            let latency = Fault::Latency(Duration::from_secs(2));
            server.faults().set([latency, lost].map(|fault| Rule::new(fault).verb(Verb::Put).key("/owner/")));
            server.reset_counters();
            let blind = async {
                while server.counters().total_faults() == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                for verb in [Verb::Get, Verb::Head] {
                    server.faults().add(Rule::new(Fault::Deny).verb(verb).key("/owner/"));
                }
            };
            let (handed, ()) = tokio::join!(first.hand_over(WITHIN), blind);
            let error = handed.unwrap_err();
            assert!(error.to_string().contains("not known whether"), "{error}");
            assert!(!first.is_serving());
            assert!(first.take_back().await.is_err() && !first.is_serving(), "not while nobody can tell");
            server.faults().clear();
            if back {
                first.take_back().await.unwrap();
                assert!(first.is_serving());
                let state = domain(&world).await.ownership().hand_over();
                assert!(matches!(state, HandOver::None | HandOver::TurnedDown(..)), "{state:?}");
                let mut guest = client(&world, "web", "root");
                blocking(move || guest.write(MIB, &random(3, 8192)).unwrap()).await;
                until_recoverable(&first).await;
            }
            let done = first.hand_over(WITHIN).await.unwrap();
            drop(first);
            let log = domain(&world).await;
            assert!(matches!(log.ownership().hand_over(), HandOver::Released(..)));
            assert_handed_over(&world, &done).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_not_covered_is_given_up_only_on_demand() {
    let world = World::new(&[("web", "root"), ("db", "root")]).await;
    world.make("web", "root", 4 * MIB, &[(0, MIB)]);
    world.make("db", "root", 256 * MIB, &[(0, 256 * MIB)]);
    // One is in its first sync for a long time.
    let mut first = start(&world, ProtectRequest { sync_rate: Some(MIB), ..request(&world) }).await;
    until(&first, "partly", |status| status.status == "Partially Recoverable").await;
    let short = HandOverOptions { within: Duration::from_millis(800), leave_uncovered: false };
    let error = first.hand_over(short).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Incomplete && error.to_string().contains("not cover db"), "{error}");
    assert!(first.is_serving());
    let done =
        first.hand_over(HandOverOptions { within: Duration::from_secs(20), leave_uncovered: true }).await.unwrap();
    assert_eq!((done.covered, done.uncovered), (vec!["web".to_owned()], vec!["db".to_owned()]));
    first.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_comes_first_fences_the_hand_over() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
    let mut first = start(&world, request(&world)).await;
    until_recoverable(&first).await;
    let take_ownership = Some(freshet::store::BaseChoice::NewestPoint);
    let options = freshet::store::StartOptions { take_ownership, ..Default::default() };
    let second = site("second site");
    let writer = freshet::store::DomainWriter::start(&world.site, &world.domain, &second, options).await.unwrap();
    let error = first.hand_over(WITHIN).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Refused), "{error}");
    assert_eq!(until(&first, "fenced", |status| status.mode == "fenced").await.status, "Fenced");
    assert_eq!(domain(&world).await.ownership().newest().unwrap().author.site, second);
    writer.finish().await.unwrap();
    first.stop().await.unwrap();
}

/// The whole way by the program, as two operators do it.
#[test]
fn two_operators_hand_a_domain_over_by_the_program() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new(&[("web", "root")]));
    world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
    let hand_over = |site: &str, wish: &[&str]| {
        let mut command = program::freshet();
        command.args(["--json", "hand-over", "--domain", world.domain.as_str(), "--store", world.site.url()]);
        program::answer(command.args(["--site", site]).args(wish))
    };
    let running = Program::start(&mut program::protect(&world, 1));
    running.event("ready");
    program::until_told(&world, "recoverable", program::recoverable);
    assert_eq!(hand_over("second site", &[]).json["hand_over"], "none");
    assert_eq!(hand_over("second site", &["--request"]).json["asked"]["site"], "second site");
    program::until_told(&world, "the request", |status| status.asked_by.as_deref() == Some("second site"));
    assert_eq!(program::ask(&world, &["--turn-down"]).json["turned_down"], true);
    assert_eq!(hand_over("second site", &[]).json["hand_over"], "turned-down");
    assert_eq!(hand_over("second site", &["--request"]).json["hand_over"], "asked");
    client(&world, "web", "root").write_fua(3 * MIB, &random(1, 8192)).unwrap();
    let done = program::ask(&world, &["--hand-over", "60000"]);
    assert!(done.code == 0 && done.json["uncovered"] == serde_json::json!([]), "{done:?}");
    let (ended, report) = running.ended();
    assert!(ended.success() && report["all_shipped"] == true, "{ended}: {report:#}");
    assert_eq!((report["point"].clone(), report["event"].clone()), (done.json["point"].clone(), "stopped".into()));
    assert_eq!(hand_over("second site", &[]).json["hand_over"], "released");
    runtime.block_on(assert_domain(&world, &[world.image("web", "root")]));
    // The first operator tries again: 5 is fenced.
    let again = program::answer(&mut program::protect(&world, 1));
    assert_eq!((again.code, again.error().0), (5, "fenced"), "{again:?}");
    assert_eq!(hand_over("second site", &["--resume"]).code, 5);
    assert_eq!(hand_over("first site", &["--resume"]).code, 0);
    let running = Program::start(&mut program::protect(&world, 1));
    running.event("ready");
    program::until_told(&world, "recoverable", program::recoverable);
    running.stop_and_compare(&world, runtime.handle());
}
