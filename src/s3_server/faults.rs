//! The faults in force, switchable while the server runs, and the decision what each request suffers.
//!
//! Every rule counts the requests that match it, whether or not another rule strikes first. Latencies add up, the
//! narrowest bandwidth counts, and of the faults that end a request the first rule in order wins.

use super::counters::{Tally, Verb};
use super::rule::{Fault, Rule, When};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A handle to the faults of one server; clones act on the same server.
#[derive(Clone, Default)]
pub struct Faults {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    rules: Mutex<Vec<Active>>,
    read_only: AtomicBool,
    skew_seconds: AtomicI64,
}

/// A rule with what it has counted.
struct Active {
    rule: Rule,
    seen: u64,
    random: u64,
    pacer: Option<Arc<Pacer>>,
}

/// What one request suffers.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) latency: Duration,
    pub(super) pacers: Vec<Arc<Pacer>>,
    pub(super) end: Option<Fault>,
}

/// A line of limited bandwidth that bodies share.
pub(super) struct Pacer {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Faults {
    /// Replaces all rules, with fresh counts.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        *self.rules() = rules.into_iter().map(Active::new).collect();
    }

    /// Adds a rule behind those in force.
    pub fn add(&self, rule: Rule) {
        self.rules().push(Active::new(rule));
    }

    /// Ends all faults, read-only and a wrong clock included.
    pub fn clear(&self) {
        self.set([]);
        self.set_read_only(false);
        self.set_clock_skew(0);
    }

    /// Whether every write is answered with 403.
    pub fn set_read_only(&self, read_only: bool) {
        self.inner.read_only.store(read_only, Ordering::Relaxed);
    }

    /// By how many seconds the `Date` header is ahead of the clock (behind, if negative).
    pub fn set_clock_skew(&self, seconds: i64) {
        self.inner.skew_seconds.store(seconds, Ordering::Relaxed);
    }

    pub(super) fn clock_skew(&self) -> i64 {
        self.inner.skew_seconds.load(Ordering::Relaxed)
    }

    /// Counts a request and decides what it suffers. `target` is its decoded path and query.
    pub(super) fn plan(&self, verb: Verb, target: &str) -> Plan {
        let mut plan = Plan::default();
        if verb.writes() && self.inner.read_only.load(Ordering::Relaxed) {
            plan.end = Some(Fault::Deny);
        }
        for active in self.rules().iter_mut().filter(|active| active.rule.matches(verb, target)) {
            if !active.strikes() {
                continue;
            }
            match active.rule.fault {
                Fault::Latency(latency) => plan.latency += latency,
                Fault::Bandwidth(_) => plan.pacers.extend(active.pacer.clone()),
                fault => plan.end = plan.end.or(Some(fault)),
            }
        }
        plan
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Active>> {
        self.inner.rules.lock().expect("no code panics while it holds this lock")
    }
}

impl Plan {
    /// Counts what is injected whatever the response turns out to be.
    pub(super) fn count_delays(&self, tally: &Tally) {
        if !self.latency.is_zero() {
            tally.fault(Fault::Latency(self.latency).name());
        }
        if !self.pacers.is_empty() {
            tally.fault(Fault::Bandwidth(0).name());
        }
    }
}

impl Active {
    fn new(rule: Rule) -> Active {
        let random = if let When::Chance(_, seed) = rule.when { seed } else { 0 };
        let pacer = match rule.fault {
            Fault::Bandwidth(rate) => Some(Arc::new(Pacer::new(rate))),
            _ => None,
        };
        Active { rule, seen: 0, random, pacer }
    }

    fn strikes(&mut self) -> bool {
        self.seen += 1;
        match self.rule.when {
            When::Always => true,
            When::Every(n) => self.seen.is_multiple_of(n.max(1)),
            When::Phase { cycle, at } => self.seen % cycle.max(1) == at % cycle.max(1),
            When::First(n) => self.seen <= n,
            When::Chance(probability, _) => self.draw() < probability,
        }
    }

    /// Uniform in [0, 1): the upper 53 bits of a SplitMix64 step (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Pacer {
    fn new(bytes_per_second: u64) -> Pacer {
        Pacer { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Queues `bytes` on the line; returns when they are through.
    pub(super) fn reserve(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().expect("no code panics while it holds this lock");
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        *free_at = (*free_at).max(Instant::now()) + took;
        *free_at
    }
}
