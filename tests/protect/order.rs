//! Write order over all disks of a domain, at every point.
//!
//! A journal on one disk, data on another: entry n is written to the journal, and when that is acknowledged to the data,
//! and when that is acknowledged entry n + 1 follows. In any state that the disks ever had the data are at most one
//! entry behind the journal and never ahead, and from the two newest numbers every byte of both disks follows.

use freshet::store::Domain;

use super::*;

pub(crate) const BLOCK: usize = 4096;
/// Blocks of a disk: entry n stands in block n modulo this.
pub(crate) const BLOCKS: u64 = 1024;

/// What entry `n` looks like on a disk.
pub(crate) fn entry(n: u64, disk: u8) -> Vec<u8> {
    let mut block = vec![disk; BLOCK];
    for word in block.chunks_mut(16) {
        word[..8].copy_from_slice(&n.to_le_bytes());
    }
    block
}

/// The newest entry of a disk, after a check that it holds exactly what was written up to that.
pub(crate) fn newest(bytes: &[u8], disk: u8) -> u64 {
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    let newest = bytes.chunks(BLOCK).map(number).max().unwrap();
    for (at, block) in (0..BLOCKS).zip(bytes.chunks(BLOCK)) {
        // The newest n up to `newest` with n % BLOCKS == at.
        let expected = if newest < at { None } else { Some(newest - (newest - at) % BLOCKS) };
        match expected.filter(|n| *n > 0) {
            Some(n) => assert!(block == entry(n, disk), "block {at} of disk {disk} is not entry {n} of {newest}"),
            None => assert!(block.iter().all(|b| *b == 0), "block {at} of disk {disk} ahead of {newest}"),
        }
    }
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_one_of_hundreds_of_points_the_data_follow_the_journal() {
    let world = World::new(&[("bank", "journal"), ("bank", "data")]).await;
    for disk in ["journal", "data"] {
        world.make("bank", disk, BLOCKS * BLOCK as u64, &[]);
    }
    let request = ProtectRequest { segment_age: Duration::from_millis(10), ..request(&world) };
    let protection = start(&world, request).await;
    until_recoverable(&protection).await;
    let (mut journal, mut data) = (client(&world, "bank", "journal"), client(&world, "bank", "data"));
    let last = blocking(move || {
        let until = Instant::now() + Duration::from_secs(4);
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let at = n % BLOCKS * BLOCK as u64;
            journal.write(at, &entry(n, 1)).unwrap();
            data.write(at, &entry(n, 2)).unwrap();
        }
        n
    })
    .await;
    assert!(protection.stop().await.unwrap().all_shipped);
    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    let points = domain.points().await.unwrap();
    assert!(points.warnings().is_empty(), "{:?}", points.warnings());
    let covering: Vec<_> = points.all().iter().filter(|point| !point.vms.is_empty()).collect();
    assert!(covering.len() > 100, "{} points for {last} entries", covering.len());
    let mut seen = 0;
    for point in &covering {
        world.rehydrate_to(point.at.segment).await;
        let read = |disk: &str| std::fs::read(world.target("bank", disk)).unwrap();
        let (journal, data) = (newest(&read("journal"), 1), newest(&read("data"), 2));
        assert!(journal == data || journal == data + 1, "point {}: journal {journal}, data {data}", point.at);
        assert!(journal >= seen, "point {} goes back from {seen} to {journal}", point.at);
        seen = journal;
    }
    assert_eq!(seen, last, "the last point has everything");
}
