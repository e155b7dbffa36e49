//! Writers of one domain over a directory: one is believed, and a stale one never becomes visible.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::sync::Arc;

use freshet::cancel::Cancel;
use freshet::capture::{ReplicateRequest, replicate};
use freshet::error::ErrorKind;
use freshet::format::{Author, OwnerKind, OwnerRecord, ProcessIdentity};
use freshet::ids::{Name, WriterId};
use freshet::progress::Progress;
use freshet::store::{BaseChoice, Domain, DomainWriter, HandOver, StartOptions, keys};
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

/// A claim of a site that died before it said what it goes on from.
async fn claim_without_base(world: &World, name: &str) {
    let domain = open(world).await;
    let (n, generation) = (domain.ownership().records() + 1, domain.ownership().newest_generation().next());
    let author = Author { site: site(name), writer: WriterId::random(), process: ProcessIdentity::default() };
    let kind = OwnerKind::Claim { generation, take_over: true };
    let record = OwnerRecord { n, domain: domain.id(), at: world.site.now(), author, nonce: [7; 16], kind };
    world.site.create(&keys::owner(&world.domain, n), vec![record.encode().to_vec().into()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_finds_its_points_also_after_a_claim_that_died_before_its_base() {
    let world = world().await;
    let point = world.replicate(0).await.point;
    claim_without_base(&world, "second site").await;
    let mut seen = open(&world).await;
    seen.tip().await.unwrap();
    assert!(seen.points().await.unwrap().newest().is_none(), "readers wait for its base");
    assert_eq!(seen.inheritable_points().await.unwrap().newest().map(|p| p.at), Some(point));
    let writer = start(&world, "second site", true).await.unwrap();
    assert_eq!(writer.base(), point);
    writer.finish().await.unwrap();
}

async fn open(world: &World) -> Domain {
    Domain::open(&world.site, &world.domain).await.unwrap()
}

/// Claims as the site that a domain is handed over to: only with the owner's consent.
async fn start_released(world: &World, name: &str) -> freshet::error::Result<DomainWriter> {
    let take_ownership = Some(BaseChoice::Tip);
    let options = StartOptions { take_ownership, only_released: true, ..StartOptions::default() };
    DomainWriter::start(&world.site, &world.domain, &site(name), options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_asked_for_released_and_claimed_and_each_step_is_done_once() {
    let world = world().await;
    world.replicate(0).await;
    let quick = StartOptions { look_every: std::time::Duration::from_millis(20), ..StartOptions::default() };
    let ours = DomainWriter::start(&world.site, &world.domain, &site("first site"), quick).await.unwrap();
    let (mut asking, there) = (open(&world).await, site("second site"));
    let records = asking.ownership().records();
    assert_eq!(asking.request_hand_over(&site("first site")).await.unwrap_err().kind(), ErrorKind::Refused);
    let HandOver::Asked(asked) = asking.request_hand_over(&there).await.unwrap() else { panic!("not asked") };
    assert_eq!(asked.site, there);
    assert!(matches!(open(&world).await.request_hand_over(&there).await.unwrap(), HandOver::Asked(_)));
    let third = open(&world).await.request_hand_over(&site("third site")).await.unwrap_err();
    assert!(third.kind() == ErrorKind::Refused && third.to_string().contains("second site"), "{third}");
    // The owner learns of it by itself, without writing anything.
    let mut told = ours.asked();
    let told = tokio::time::timeout(std::time::Duration::from_secs(60), told.wait_for(Option::is_some)).await;
    assert_eq!(told.unwrap().unwrap().as_ref().map(|asked| &asked.site), Some(&there));
    assert_eq!(start_released(&world, "second site").await.err().unwrap().kind(), ErrorKind::Refused);

    let released = ours.release().await.unwrap();
    assert_eq!(ours.release().await.unwrap(), released);
    let seen = open(&world).await;
    assert_eq!(seen.ownership().hand_over(), HandOver::Released(released, Some(asked)));
    assert_eq!(seen.ownership().records(), records + 2, "request and release, each once");
    // The owner's next start does not get in, in whatever way; nor does it take anything by trying.
    let again = start(&world, "first site", false).await.err().unwrap();
    assert!(again.kind() == ErrorKind::Fenced && again.to_string().contains("--resume"), "{again}");
    let again = start_released(&world, "first site").await.err().unwrap();
    assert_eq!(again.kind(), ErrorKind::Fenced, "{again}");
    let theirs = start_released(&world, "second site").await.unwrap();
    assert_eq!(theirs.base(), ours.base());
    let newest = open(&world).await;
    assert!(!newest.ownership().newest().unwrap().take_over, "with consent");
    assert_eq!(newest.ownership().hand_over(), HandOver::None);
    assert_eq!(newest.ownership().voids(), []);
    assert_eq!(ours.release().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(open(&world).await.resume(&site("first site")).await.unwrap_err().kind(), ErrorKind::Fenced);
    theirs.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_turned_down_or_taken_back_and_a_release_withdrawn() {
    let world = world().await;
    let ours = start(&world, "first site", false).await.unwrap();
    let (mut asking, there) = (open(&world).await, site("second site"));
    assert_eq!(asking.withdraw_request(&there).await.unwrap(), HandOver::None, "nothing to take back");
    asking.request_hand_over(&there).await.unwrap();
    ours.go_on(false).await.unwrap();
    assert!(ours.asked().borrow().is_none());
    asking.refresh().await.unwrap();
    assert!(matches!(asking.ownership().hand_over(), HandOver::TurnedDown(by, _) if by.site == there));
    asking.request_hand_over(&there).await.unwrap();
    assert_eq!(asking.withdraw_request(&there).await.unwrap(), HandOver::None);
    ours.go_on(false).await.unwrap();
    assert_eq!(open(&world).await.ownership().voids(), [], "there was nothing to go on from, and nothing was written");
    // Another process of the owner's withdraws; then its next writer may start, and who was promised it may not.
    ours.release().await.unwrap();
    let mut owner = open(&world).await;
    assert_eq!(owner.resume(&there).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(owner.resume(&site("first site")).await.unwrap(), HandOver::None);
    assert_eq!(start_released(&world, "second site").await.err().unwrap().kind(), ErrorKind::Refused);
    drop(ours);
    start(&world, "first site", false).await.unwrap().finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_resume_and_a_claim_at_the_same_moment_one_wins() {
    let (mut resumed, mut claimed) = (0, 0);
    for round in 0..40 {
        let world = world().await;
        let ours = start(&world, "first site", false).await.unwrap();
        ours.release().await.unwrap();
        drop(ours);
        let mut owner = open(&world).await;
        let here = site("first site");
        let resume = async {
            // Now the one, now the other has a start.
            tokio::time::sleep(std::time::Duration::from_micros(round % 8 * 150)).await;
            owner.resume(&here).await
        };
        let (resume, claim) = tokio::join!(resume, start_released(&world, "second site"));
        assert_ne!(resume.is_ok(), claim.is_ok(), "{resume:?}, {:?}", claim.err());
        match claim {
            Ok(_) => {
                claimed += 1;
                assert_eq!(resume.unwrap_err().kind(), ErrorKind::Fenced);
            }
            Err(error) => {
                resumed += 1;
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            }
        }
        let log = open(&world).await;
        assert_eq!(log.ownership().newest().unwrap().released, None);
        assert!(!log.ownership().newest().unwrap().take_over, "a hand-over never becomes a take-over");
    }
    println!("{resumed} resumed, {claimed} claimed");
}
