//! The whole way through a real S3 server that fails: disks go in and come out byte for byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};
use freshet::store::StoreOptions;
use world::World;

const MIB: u64 = 1 << 20;
const NEVER: u64 = 1 << 40;

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_back_through_s3_while_every_tenth_request_fails() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("s3"), Options::default()).unwrap();
    let options = StoreOptions::from_vars(server.env());
    let world = World::at(dir, &server.url("site"), &options, &[("web", "root"), ("web", "data")]).await;
    world.make("web", "root", 96 * MIB, &[(0, 40 * MIB), (90 * MIB, 6 * MIB)]);
    world.make("web", "data", 40 * MIB + 99, &[(MIB, 20 * MIB)]);
    let rule = |fault, n| Rule::new(fault).when(When::Every(n));
    server.faults().set([
        rule(Fault::SlowDown, 10),
        rule(Fault::Truncate, 11).verb(Verb::Get),
        rule(Fault::Flip, 10).verb(Verb::Get).key("segments/"),
        rule(Fault::Reset, 13).verb(Verb::Get),
        rule(Fault::LostResponse, 7).verb(Verb::Put).key("segments/"),
    ]);
    world.replicate(0).await;
    world.rehydrate().await;
    world.assert_disks(&world.images());
    for i in 0..3 {
        world.change("web", "root", (20 + i * 3) * MIB, 2 * MIB, 50 + i);
        world.replicate(NEVER).await;
    }
    let report = world.rehydrate().await;
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    world.assert_disks(&world.images());
    assert!(server.counters().total_faults() > 10, "too few faults to mean anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_clock_steps_back_is_written_and_read_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("s3"), Options::default()).unwrap();
    let options = StoreOptions::from_vars(server.env());
    let world = World::at(dir, &server.url("site"), &options, &[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    let mut last = None;
    for (i, skew) in [7200, 0, -7200].into_iter().enumerate() {
        server.faults().set_clock_skew(skew);
        world.change("web", "root", i as u64 * MIB, 300_000, 80 + i as u64);
        let point = world.replicate(NEVER).await.point;
        assert!(last.is_none_or(|last| point > last), "{point}");
        assert_eq!(world.rehydrate().await.point, point);
        world.assert_disks(&world.images());
        last = Some(point);
    }
}
