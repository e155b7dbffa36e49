//! Clocks that jump by hours, this machine's and the store's: points stay in order, ages stay true, nothing stands still.

use std::sync::atomic::{AtomicI64, Ordering};

use freshet::clock::{Clock, SystemClock};
use freshet::ids::Time;
use freshet::store::Domain;

use super::stores::{S3World, random, s3_world};
use super::*;

const HOUR: i64 = 3_600_000;

/// The system's clock, set wrong by so many milliseconds.
#[derive(Debug, Default)]
struct Wrong(AtomicI64);

impl Wrong {
    fn set(&self, by: i64) {
        self.0.store(by, Ordering::Relaxed);
    }
}

impl Clock for Wrong {
    fn now(&self) -> Time {
        Time::from_millis(SystemClock.now().millis().saturating_add_signed(self.0.load(Ordering::Relaxed)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_stay_in_order_and_ages_true_when_clocks_jump_by_hours() {
    let S3World { server, world } = s3_world(&[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, 2 * MIB)]);
    let clock = Arc::new(Wrong::default());
    let request = || ProtectRequest { clock: clock.clone(), ..request(&world) };
    let protection = start(&world, request()).await;
    until_recoverable(&protection).await;
    let mut guest = client(&world, "web", "root");
    for (turn, hours) in [3, -5, 9, 0].into_iter().enumerate() {
        clock.set(hours * HOUR);
        server.faults().set_clock_skew(hours * HOUR / 1000);
        let (since, before) = (Instant::now(), protection.status().await);
        let turn = turn as u64;
        guest = blocking(move || {
            guest.write(turn * 8192, &random(turn, 8192)).unwrap();
            guest
        })
        .await;
        // Cut by its age, and shipped, without anybody's wish.
        let status = until(&protection, "a point", |status| status.shipped > before.shipped).await;
        let most = u64::try_from(since.elapsed().as_millis()).unwrap();
        assert!(status.rpo_ms.is_some_and(|rpo| rpo <= most), "older than the write, {most} ms ago: {status:#?}");
    }
    // Set back, with a store that is away: the age of the last point grows all the same.
    clock.set(-5 * HOUR);
    server.set_reachable(false).unwrap();
    let gone = Instant::now();
    until(&protection, "a true age", |status| {
        let rpo = status.rpo_ms.unwrap();
        assert!(rpo < HOUR as u64, "{rpo}");
        rpo > 300 && gone.elapsed() > Duration::from_millis(300)
    })
    .await;
    server.set_reachable(true).unwrap();
    stop_and_compare(&world, protection).await;

    // The next run begins with a clock that is hours behind the last point.
    let protection = start(&world, request()).await;
    let status = until_recoverable(&protection).await;
    assert!(status.rpo_ms.is_some_and(|rpo| rpo < HOUR as u64), "{status:#?}");
    protection.cut_point(PATIENCE).await.unwrap();
    stop_and_compare(&world, protection).await;
    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    let points = domain.points().await.unwrap();
    let times: Vec<u64> = points.all().iter().map(|point| point.time.millis()).collect();
    assert!(times.len() > 5 && times.windows(2).all(|two| two[0] < two[1]), "{times:?}");
}
