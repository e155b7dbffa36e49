//! The handle of who follows a domain: what it shows, holding the disks, and ending at a point with nothing but what has
//! landed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::path::PathBuf;
use std::time::Duration;

use freshet::capture::{ReplicateReport, ReplicateRequest, replicate};
use freshet::error::ErrorKind;
use freshet::ids::{Name, SegmentNo};
use freshet::rehydrate::{Completion, FollowState, Following, RehydrateReport};
use freshet::s3_server::{Options, S3Server};
use freshet::store::{BaseChoice, DomainWriter, StartOptions, StoreOptions};
use world::World;

const MIB: u64 = 1 << 20;
const NEVER: u64 = 1 << 40;
/// Longest wait for anything here; nothing is asserted about time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A storage site that can be cut off, whose client gives up soon.
async fn s3_world(disks: &[(&'static str, &'static str)]) -> (S3Server, World) {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("objects"), Options::default()).unwrap();
    let mut options = StoreOptions::from_vars(server.env());
    for (name, value) in [("RETRY_TRIES", "2"), ("RETRY_PAUSE", "10ms"), ("RETRY_PAUSE_MAX", "50ms")] {
        options.set(name, value).unwrap();
    }
    let world = World::at(dir, &server.url("site"), &options, disks).await;
    (server, world)
}

async fn one_disk() -> (S3Server, World, ReplicateReport) {
    let (server, world) = s3_world(&[("web", "root")]).await;
    world.make("web", "root", 64 * MIB, &[(0, 4 * MIB)]);
    let first = world.replicate(0).await;
    (server, world, first)
}

/// Some points one after the other, with the images at each; every one in several segments.
async fn points(world: &World, range: std::ops::Range<u64>) -> Vec<(ReplicateReport, Vec<PathBuf>)> {
    let mut points = Vec::new();
    for n in range {
        world.change("web", "root", n * 3 * MIB, MIB, 100 + n);
        world.change("web", "root", 60 * MIB, 5000, 200 + n);
        let request = ReplicateRequest { segment_bytes: 256 << 10, manifest_every: NEVER, ..world.replicate_request() };
        let done = replicate(&world.site, request, Default::default(), Default::default()).await.unwrap();
        assert!(done.segments > 1, "{done:?}");
        points.push((done, world.images()));
    }
    points
}

async fn start(world: &World) -> Following {
    Following::start(&world.site, world.request()).await.unwrap()
}

async fn until(following: &Following, what: &str, is: impl Fn(&FollowState) -> bool) -> FollowState {
    let mut state = following.watch();
    let waited = tokio::time::timeout(PATIENCE, async { state.wait_for(|s| is(s)).await.map(|s| s.clone()) }).await;
    match waited {
        Ok(Ok(state)) => state,
        other => panic!("waited in vain for {what}: {other:?}, {:?}", following.state()),
    }
}

async fn until_landed(following: &Following, point: SegmentNo) -> FollowState {
    until(following, "a point to land", |s| s.landed.is_some_and(|l| l.point == point)).await
}

async fn until_applied(following: &Following, point: SegmentNo) -> FollowState {
    until(following, "a point to be applied", |s| s.applied.is_some_and(|a| a.point == point)).await
}

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it never ended")
}

async fn complete(following: Following, at: Completion) -> RehydrateReport {
    bounded(following.complete_at(at)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_landed_and_is_not_applied_is_completed_without_the_storage_site() {
    let (server, world, first) = one_disk().await;
    let at_first = world.images();
    let following = start(&world).await;
    until_applied(&following, first.point.segment).await;
    following.hold(true);
    let made = points(&world, 1..6).await;
    let newest = made.last().unwrap();
    let state = until_landed(&following, newest.0.point.segment).await;
    assert!(state.is_held && state.unapplied > MIB && state.lag_ms.is_some(), "{state:?}");
    assert_eq!(state.applied.map(|a| a.point), Some(first.point.segment), "{state:?}");
    world.assert_disks(&at_first);

    server.set_reachable(false).unwrap();
    server.reset_counters();
    let report = complete(following, Completion::Landed).await;
    assert_eq!((report.point, report.between_points), (newest.0.point, false), "{report:?}");
    assert!(report.damage.is_empty() && report.uncovered.is_empty(), "{report:?}");
    world.assert_disks(&newest.1);
    assert_eq!(server.counters().total(), 0);
    server.set_reachable(true).unwrap();
    // The watermark tells the next run that nothing is left to do.
    assert_eq!(world.rehydrate().await.written, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_at_any_point_whether_that_landed_is_applied_or_neither() {
    let (_server, world, first) = one_disk().await;
    let mut made = points(&world, 1..4).await;
    // One that landed and is not the newest one, while all are held.
    let following = start(&world).await;
    let third = made[2].0.point.segment;
    until_applied(&following, third).await;
    following.hold(true);
    made.extend(points(&world, 4..7).await);
    until_landed(&following, made[5].0.point.segment).await;
    let report = complete(following, Completion::Point(made[4].0.point.segment)).await;
    assert_eq!((report.point, report.between_points), (made[4].0.point, false));
    world.assert_disks(&made[4].1);

    // One that the disks are past: they go back.
    let following = start(&world).await;
    until_applied(&following, made[5].0.point.segment).await;
    let report = complete(following, Completion::Point(made[0].0.point.segment)).await;
    assert_eq!((report.point, report.between_points), (made[0].0.point, false));
    world.assert_disks(&made[0].1);

    // One that comes to be at the last moment: what is missing is landed.
    let following = start(&world).await;
    until_applied(&following, made[5].0.point.segment).await;
    following.hold(true);
    made.extend(points(&world, 7..8).await);
    let report = complete(following, Completion::Point(made[6].0.point.segment)).await;
    assert_eq!((report.point, report.between_points), (made[6].0.point, false));
    world.assert_disks(&made[6].1);

    // The one that the disks equal, with nothing to do.
    let following = start(&world).await;
    until_applied(&following, made[6].0.point.segment).await;
    let report = complete(following, Completion::Point(made[6].0.point.segment)).await;
    assert_eq!((report.point, report.written), (made[6].0.point, 0));

    // What is no point is told, and the disks are left at one.
    let inside = SegmentNo::new(made[6].0.point.segment.get() - 1);
    for no_point in [inside, SegmentNo::new(1_000_000)] {
        let following = start(&world).await;
        until_applied(&following, made[6].0.point.segment).await;
        let error = bounded(following.complete_at(Completion::Point(no_point))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        world.assert_disks(&made[6].1);
    }
    let _ = first;
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_while_the_first_point_is_still_being_reached_it_ends_there() {
    let (_server, world, first) = one_disk().await;
    let report = complete(start(&world).await, Completion::Landed).await;
    assert_eq!(report.point, first.point);
    world.assert_disks(&world.images());
    let made = points(&world, 1..4).await;
    let report = complete(start(&world).await, Completion::Point(made[1].0.point.segment)).await;
    assert_eq!(report.point, made[1].0.point);
    world.assert_disks(&made[1].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_for_and_told() {
    let (server, world, first) = one_disk().await;
    let following = start(&world).await;
    until_applied(&following, first.point.segment).await;
    let state = until(&following, "no trouble", |s| s.trouble.is_none()).await;
    assert_eq!(state.stage, "following");
    server.set_reachable(false).unwrap();
    until(&following, "the trouble", |s| s.trouble.as_ref().is_some_and(|t| t.contains("storage site"))).await;
    assert!(!following.has_ended());
    server.set_reachable(true).unwrap();
    let made = points(&world, 1..3).await;
    let state = until_applied(&following, made[1].0.point.segment).await;
    assert_eq!(state.trouble, None);
    let report = bounded(following.stop()).await.unwrap();
    assert_eq!(report.point, made[1].0.point);
    world.assert_disks(&made[1].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_landed_while_held_is_there_for_the_next_run_and_fetched_once() {
    let (_server, world, first) = one_disk().await;
    let following = start(&world).await;
    until_applied(&following, first.point.segment).await;
    following.hold(true);
    let made = points(&world, 1..4).await;
    let newest = &made[2];
    until_landed(&following, newest.0.point.segment).await;
    let report = bounded(following.stop()).await.unwrap();
    assert_eq!(report.point, first.point, "it was held: {report:?}");

    let following = start(&world).await;
    until_applied(&following, newest.0.point.segment).await;
    let report = bounded(following.stop()).await.unwrap();
    assert_eq!(report.point, newest.0.point);
    assert_eq!((report.fetched, report.landed_segments), (0, 0), "all of it had landed: {report:?}");
    world.assert_disks(&newest.1);
    // Held and let go again, it goes on by itself.
    let following = start(&world).await;
    following.hold(true);
    let made = points(&world, 4..5).await;
    until_landed(&following, made[0].0.point.segment).await;
    following.hold(false);
    until_applied(&following, made[0].0.point.segment).await;
}

/// The order of a forced completion: the claim first, from a point that is not the newest that landed.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_comes_first_cuts_off_what_landed_beyond_it_and_nothing_is_fetched_again() {
    let (server, world, first) = one_disk().await;
    let following = start(&world).await;
    until_applied(&following, first.point.segment).await;
    following.hold(true);
    let made = points(&world, 1..6).await;
    until_landed(&following, made[4].0.point.segment).await;
    let base = made[2].0.point;
    let here = Name::new("second site").unwrap();
    let options = StartOptions { take_ownership: Some(BaseChoice::Point(base.segment)), ..StartOptions::default() };
    let writer = DomainWriter::start(&world.site, &world.domain, &here, options).await.unwrap();
    assert_eq!(writer.base(), base);
    // It sees the claim by itself and goes back to the base.
    until(&following, "the rewind", |s| s.applied.is_some_and(|a| a.point == base.segment)).await;
    let report = complete(following, Completion::Point(base.segment)).await;
    assert_eq!((report.point, report.between_points), (base, false), "{report:?}");
    let landed: u64 = made.iter().map(|(done, _)| done.segments).sum();
    assert_eq!(report.landed_segments, landed, "what had landed is not landed again: {report:?}");
    world.assert_disks(&made[2].1);
    writer.finish().await.unwrap();
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_and_an_unknown_domain_are_refused_at_once() {
    let (_server, world, first) = one_disk().await;
    let following = start(&world).await;
    until_applied(&following, first.point.segment).await;
    let error = Following::start(&world.site, world.request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let unknown = freshet::rehydrate::RehydrateRequest { domain: Name::new("nobody's").unwrap(), ..world.request() };
    let error = Following::start(&world.site, unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // Dropped, it lets go of everything in a moment.
    drop(following);
    let began = std::time::Instant::now();
    let again = loop {
        match Following::start(&world.site, world.request()).await {
            Ok(again) => break again,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(bounded(again.stop()).await.map_err(|e| e.kind()).map(|r| r.point).unwrap_or(first.point), first.point);
}
