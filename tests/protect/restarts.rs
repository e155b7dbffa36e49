//! Starts after something else than a clean end: a kill with segments in the log, a reboot, a store that is away.

use freshet::format::ProtectionRecord;
use freshet::ids::SegmentNo;
use rustix::process::Signal;

use super::program::{Program, ask, protect, recoverable, status, until_told};
use super::stores::{S3World, open_late, random, s3_world};
use super::*;
use freshet::s3_server::{Fault, Rule, Verb};

/// What is in the log when a protection is killed while the store is away goes on under the next generation.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_protection_had_spilled_is_part_of_the_domain_after_the_next_start() {
    let S3World { server, world } = s3_world(&[("web", "root")]).await;
    world.make("web", "root", 128 * MIB, &[(0, 2 * MIB)]);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    server.faults().set([Rule::new(Fault::Deny).verb(Verb::Put)]);
    let mut guest = client(&world, "web", "root");
    let (mut n, mut spilled) = (0, None);
    // Some more are written once the first are in the log.
    while spilled.is_none_or(|(_, since)| n < since + 8) {
        guest = blocking(move || {
            guest.write(n * MIB, &random(n, 1 << 20)).unwrap();
            guest
        })
        .await;
        n += 1;
        assert!(n < 100, "nothing was spilled");
        let point = protection.cut_point(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(point.kind(), freshet::error::ErrorKind::Unreachable, "{point}");
        let status = protection.status().await;
        if spilled.is_none() && status.log_used > 0 {
            spilled = Some((status.captured, n));
        }
    }
    // All that was in memory comes through, and of the log the first: what is left in it follows on what is there.
    let (until_this, last) = (spilled.unwrap().0, protection.status().await.captured);
    assert!(until_this < last);
    let denied =
        (until_this + 1..=last + 100).map(|n| Rule::new(Fault::Deny).verb(Verb::Put).key(&format!("/{n:012}")));
    server.faults().set(denied.collect::<Vec<_>>());
    until(&protection, "the memory to be shipped", |status| status.shipped == until_this).await;
    let last = protection.status().await.captured;
    until(&protection, "all in the log", |status| status.waiting_segments == last - until_this).await;
    let images = world.images();

    server.set_reachable(false).unwrap();
    drop(protection);
    let mut protection = open_late(&world).await;
    assert!(protection.is_serving());
    let claiming = tokio::spawn(async move {
        protection.claim(&Cancel::new(), |_| ()).await.unwrap();
        protection
    });
    let mut guest = client(&world, "web", "root");
    blocking(move || guest.write(110 * MIB, &random(777, 8192)).unwrap()).await;
    server.faults().clear();
    server.set_reachable(true).unwrap();
    let protection = claiming.await.unwrap();
    let taken = format!("{} segments that an earlier run had not shipped", last - until_this);
    assert!(protection.notes().iter().any(|note| note.contains(&taken)), "{taken}: {:?}", protection.notes());
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;
    // The last of them is the state at the kill, to which nothing of the next run was added.
    world.rehydrate_to(SegmentNo::new(last)).await;
    world.assert_disks(&images);
}

/// Makes the newest protection record one of another boot of the host, as after a reboot.
fn forge_reboot(world: &World) {
    let dir = world.dir.path().join("state").join(world.domain.key());
    let records = [0, 1].map(|slot| {
        let path = dir.join(format!("protection.{slot}"));
        let record = std::fs::read(&path).ok().and_then(|bytes| ProtectionRecord::decode(&bytes).ok());
        (record, path)
    });
    let newest = records.iter().filter_map(|(record, _)| record.as_ref()).max_by_key(|record| record.sequence).unwrap();
    let forged = ProtectionRecord { boot: [9; 16], sequence: newest.sequence + 1, ..newest.clone() };
    let older = records.iter().find(|(record, _)| record.as_ref() != Some(newest));
    std::fs::write(older.map_or(&records[0].1, |(_, path)| path), forged.encode()).unwrap();
}

fn waits(world: &World, program: &Program) -> ProtectStatus {
    program.event("waiting");
    let named = |why: &String| why.contains("storage site");
    let status = until_told(world, "what it waits for", |status| status.problems.iter().any(named));
    assert_eq!((status.mode.as_str(), status.status.as_str()), ("starting", "Initializing"), "{status:#?}");
    assert!(status.generation.is_none() && status.rpo_ms.is_none(), "nothing is claimed: {status:#?}");
    status
}

#[test]
fn with_the_store_away_a_restart_serves_at_once_and_a_reboot_only_on_the_operators_word() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let S3World { server, world } = runtime.block_on(s3_world(&[("web", "root")]));
    world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
    let start = |more: &[&str]| Program::start(protect(&world, 1).envs(server.env()).args(more));
    let program = start(&[]);
    program.event("ready");
    until_told(&world, "recoverable", recoverable);
    program.end(Signal::KILL);
    server.set_reachable(false).unwrap();

    // The same boot: the guests that run get their disks back, and what they write is marked.
    let program = start(&[]);
    program.event("ready");
    waits(&world, &program);
    client(&world, "web", "root").write_fua(5 * MIB, &random(1, 8192)).unwrap();
    assert!(status(&world).vms[0].disks[0].unsynced > 0);
    for wish in [&["--point"][..], &["--remove", "web/root"]] {
        let refused = ask(&world, wish);
        assert!(refused.code == 4 && refused.error().1.contains("not claimed yet"), "{refused:?}");
    }
    program.end(Signal::KILL);

    // Another boot: closed, and it can be asked and ended all the same.
    forge_reboot(&world);
    let program = start(&[]);
    waits(&world, &program);
    assert!(!program.has_told("ready") && NbdClient::try_connect(&socket(&world), "web/root").is_err(), "it is open");
    assert_eq!(ask(&world, &["--stop"]).code, 0);
    let (ended, report) = program.ended();
    assert!(ended.code().is_some() && report["all_shipped"] != true, "{ended}: {report:#}");

    // The operator says so.
    let program = start(&["--open-unclaimed"]);
    program.event("ready");
    waits(&world, &program);
    let mut guest = client(&world, "web", "root");
    guest.write_fua(6 * MIB, &random(2, 8192)).unwrap();
    server.set_reachable(true).unwrap();
    until_told(&world, "recoverable", recoverable);
    guest.write_fua(7 * MIB, &random(3, 8192)).unwrap();
    drop(guest);
    program.stop_and_compare(&world, runtime.handle());
    let recovered = std::fs::read(world.target("web", "root")).unwrap();
    for (at, seed) in [(5, 1), (6, 2), (7, 3)] {
        assert!(recovered[at << 20..][..8192] == random(seed, 8192), "what was written in turn {seed}");
    }

    // And a reboot with the store there: claimed first, then open.
    forge_reboot(&world);
    let program = start(&[]);
    program.event("ready");
    until_told(&world, "recoverable", |status| recoverable(status) && status.generation.is_some());
    program.stop_and_compare(&world, runtime.handle());
}
