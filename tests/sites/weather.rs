//! What happens to the sites meanwhile: cables cut and mended, ways that are slow, processes that are killed and started.

use std::time::{Duration, Instant};

use super::estate::Estate;

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Cut(usize),
    Mend(usize),
    Slow(usize, u64),
    Kill(usize),
    Start(usize),
}

/// Changes to come, each with its moment.
pub(crate) struct Weather {
    began: Instant,
    coming: Vec<(Duration, Change)>,
}

impl Weather {
    /// Some that begin within `within`, at either site, and that are over by themselves.
    pub(crate) fn drawn(random: &mut fastrand::Rng, within: Duration) -> Weather {
        let mut coming = Vec::new();
        for _ in 0..random.usize(1..=2) {
            let (site, at) = (random.usize(..2), Duration::from_millis(random.u64(..within.as_millis() as u64)));
            let until = at + Duration::from_millis(random.u64(100..2500));
            let (begins, ends) = match random.u8(..3) {
                0 => (Change::Cut(site), Change::Mend(site)),
                1 => (Change::Slow(site, random.u64(20..200)), Change::Slow(site, 0)),
                _ => (Change::Kill(site), Change::Start(site)),
            };
            coming.extend([(at, begins), (until, ends)]);
        }
        Weather::of(coming)
    }

    pub(crate) fn of(mut coming: Vec<(Duration, Change)>) -> Weather {
        coming.sort_by_key(|(at, _)| *at);
        println!("weather: {coming:?}");
        Weather { began: Instant::now(), coming }
    }

    /// Has happen what is due.
    pub(crate) fn pass(&mut self, estate: &mut Estate) {
        let due = self.coming.iter().take_while(|(at, _)| *at <= self.began.elapsed()).count();
        for (_, change) in self.coming.drain(..due) {
            match change {
                Change::Cut(site) => estate.link(site, false),
                Change::Mend(site) => estate.link(site, true),
                Change::Slow(site, ms) => estate.delay(site, Duration::from_millis(ms)),
                Change::Kill(site) => estate.sites[site].crash(),
                Change::Start(site) => estate.sites[site].restart(),
            }
        }
    }

    /// Whatever was to come has come to its end.
    pub(crate) fn clear(&mut self, estate: &mut Estate) {
        while !self.coming.is_empty() {
            self.pass(estate);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
