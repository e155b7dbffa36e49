//! Guests that write more than the storage site takes: no write is held longer than the bound, memory stays in its budget.

use std::collections::BTreeSet;

use super::outside::wait_for;
use super::program::{Program, protect, recoverable, status, until_told};
use super::stores::{Guest, S3World, random, s3_world};
use super::*;
use freshet::s3_server::{Fault, Rule, Verb};

/// By what the valve grants and the recorder uses of that, never by a clock of the test.
#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_held_longer_than_the_bound_all_in_all() {
    let S3World { server, world } = s3_world(&[("web", "root")]).await;
    world.make("web", "root", 128 * MIB, &[]);
    let bound = Duration::from_millis(40);
    let protection = start(&world, ProtectRequest { longest_hold: bound, ..request(&world) }).await;
    until_recoverable(&protection).await;
    server.faults().set([Rule::new(Fault::Deny).verb(Verb::Put)]);
    let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let guests: Vec<_> = (0..4_u64)
        .map(|guest| {
            let (mut client, end) = (client(&world, "web", "root"), Arc::clone(&end));
            std::thread::spawn(move || {
                let mut n = 0;
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    n += 1;
                    let at = (n * 4 + guest) % 127 * MIB;
                    client.write(at, &random(n, 1 << 20)).unwrap();
                    // Several parts: sectors at both ends that are read back, and zeros between them.
                    client.zero(at + 700, 9000).unwrap();
                }
            })
        })
        .collect();
    let (began, mut modes) = (Instant::now(), BTreeSet::new());
    while !modes.contains("bitmap") {
        let status = protection.status().await;
        assert_eq!(status.hold_bound_us, 40_000);
        assert!(status.hold_us <= status.hold_bound_us, "{status:#?}");
        assert!(began.elapsed() < PATIENCE, "only {modes:?}");
        modes.insert(status.mode);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    end.store(true, std::sync::atomic::Ordering::Relaxed);
    blocking(move || guests.into_iter().for_each(|guest| guest.join().unwrap())).await;
    let status = protection.status().await;
    // The count, since the mode of a moment is seen only by who looks just then.
    assert!(status.held_writes > 0, "nothing was held: {modes:?} {status:#?}");
    assert!(status.longest_held_us <= status.hold_bound_us, "{status:#?}");
    assert_eq!(status.hold_us, 0, "nobody is held where nothing is captured");
    server.faults().clear();
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;
}

/// Bytes of memory that a process has used at most.
fn high_water(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_stays_in_its_budget_however_much_guests_write() {
    const BUDGET: u64 = 128 * MIB;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let S3World { server, world } = runtime.block_on(s3_world(&[("web", "root"), ("db", "data")]));
    for (vm, disk) in [("web", "root"), ("db", "data")] {
        world.make(vm, disk, 128 * MIB, &[(0, 16 * MIB)]);
    }
    let program = Program::start(protect(&world, 2).envs(server.env()).args(["--longest-hold", "20"]));
    program.event("ready");
    until_told(&world, "recoverable", recoverable);
    server.faults().set([Rule::new(Fault::Bandwidth(8 << 20))]);
    let guests: Vec<Guest> = [("web", "root"), ("db", "data")]
        .into_iter()
        .flat_map(|(vm, disk)| [(vm, disk, 1 << 20), (vm, disk, 64 << 10)])
        .map(|(vm, disk, len)| Guest::start(client(&world, vm, disk), len, Duration::from_millis(1)))
        .collect();
    let mut most = 0;
    wait_for("bitmap mode", || {
        let status = status(&world);
        most = most.max(status.waiting_memory);
        (status.mode == "bitmap").then_some(())
    });
    // On and on, with a resync that reads back and ships while guests overwrite.
    let written = || guests.iter().map(Guest::writes).sum::<u64>();
    let before = written();
    wait_for("a thousand more writes", || {
        most = most.max(status(&world).waiting_memory);
        (written() > before + 1000).then_some(())
    });
    guests.into_iter().for_each(|guest| runtime.block_on(guest.stop()));
    server.faults().clear();
    until_told(&world, "recoverable", recoverable);
    let used = high_water(program.id());
    println!("{} MiB at most, of which {} MiB of sealed segments", used >> 20, most >> 20);
    assert!(most > 0 && most <= BUDGET / 4, "sealed segments in memory: {most}");
    assert!(used <= BUDGET + 100 * MIB, "{used} bytes for a budget of {BUDGET}");
    program.stop_and_compare(&world, runtime.handle());
}
