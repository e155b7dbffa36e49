//! Writers of one domain over a directory: one is believed, and a stale one never becomes visible.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::sync::Arc;

use freshet::cancel::Cancel;
use freshet::capture::{ReplicateRequest, replicate};
use freshet::error::ErrorKind;
use freshet::ids::Name;
use freshet::progress::Progress;
use freshet::store::{BaseChoice, Domain, DomainWriter, StartOptions};
use world::World;

const MIB: u64 = 1 << 20;

async fn world() -> World {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    world
}

fn site(name: &str) -> Name {
    Name::new(name).unwrap()
}

async fn start(world: &World, name: &str, take_ownership: bool) -> freshet::error::Result<DomainWriter> {
    let take_ownership = take_ownership.then_some(BaseChoice::NewestPoint);
    let options = StartOptions { take_ownership, ..StartOptions::default() };
    DomainWriter::start(&world.site, &world.domain, &site(name), options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_refused_while_the_first_lives_and_goes_on_after_it() {
    let world = world().await;
    let first = start(&world, "here", false).await.unwrap();
    let second = start(&world, "here", false).await.err().unwrap();
    assert_eq!(second.kind(), ErrorKind::Refused, "{second}");
    assert!(second.to_string().contains(&std::process::id().to_string()), "{second}");
    drop(first);
    let third = start(&world, "here", false).await.unwrap();
    assert_eq!(third.generation().get(), 2, "every start claims");
    third.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_is_refused_until_it_takes_over_and_then_the_first_is_fenced() {
    let world = world().await;
    world.replicate(0).await;
    let ours = start(&world, "first site", false).await.unwrap();
    let refused = start(&world, "second site", false).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert!(refused.to_string().contains("first site"), "{refused}");
    let theirs = start(&world, "second site", true).await.unwrap();
    assert_eq!(theirs.base(), ours.base(), "nothing is lost that had become a point");
    let next = freshet::ids::SegmentRef::new(ours.generation(), ours.base().segment.next());
    assert_eq!(ours.accept_up_to(next).await.unwrap_err().kind(), ErrorKind::Fenced);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stale_writer_ships_never_becomes_visible() {
    let world = world().await;
    world.replicate(0).await;
    let stale = start(&world, "first site", false).await.unwrap();
    let theirs = start(&world, "second site", true).await.unwrap();
    // The stale writer's object lands late, under the very next number.
    let at = freshet::ids::SegmentRef::new(stale.generation(), stale.base().segment.next());
    let key = freshet::store::keys::segment(&world.domain, at);
    let any = std::fs::read(world.segments().pop().unwrap()).unwrap();
    world.site.create(&key, vec![any.into()]).await.unwrap();
    let mut reader = Domain::open(&world.site, &world.domain).await.unwrap();
    assert_eq!(reader.tip().await.unwrap(), theirs.base());
    assert!(!reader.accepts(at));
    drop(theirs);
    let request = ReplicateRequest { site: site("second site"), ..world.replicate_request() };
    let report = replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    assert_eq!(reader.tip().await.unwrap(), report.point);
    assert!(!reader.accepts(at));
    world.rehydrate().await;
    world.assert_disks(&world.images());
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_start_at_once_are_never_both_believed() {
    for _ in 0..10 {
        let world = world().await;
        let starts = (0..4).map(|_| start(&world, "here", true));
        let writers: Vec<DomainWriter> =
            futures::future::join_all(starts).await.into_iter().filter_map(Result::ok).collect();
        let mut believed = 0;
        for writer in &writers {
            let first = freshet::ids::SegmentRef::new(writer.generation(), writer.base().segment.next());
            believed += usize::from(writer.accept_up_to(first).await.is_ok());
        }
        assert!(believed <= 1, "{believed} of {} writers are believed", writers.len());
    }
}
