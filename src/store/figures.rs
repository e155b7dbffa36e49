//! How long what was asked of a storage site took, and what failed: the live figures of one site, and what they stood at.
//!
//! Owns the bounds of the histograms and the words for failed tries. Two things are kept apart: an *operation* is what a
//! caller asked for, with all its tries and pauses, and fails once; a *try* is one request, and most that fail are made
//! good by the next. An operation whose caller went away is not counted. Relaxed order: nothing is decided by it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::failure::{Class, Failure};
use crate::error::ErrorKind;

/// Upper bounds of the histograms in seconds; beyond the last there is one more bucket without a bound.
pub const LATENCY_BOUNDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const BUCKETS: usize = LATENCY_BOUNDS.len() + 1;

/// What is asked of a storage site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reading an object or a range of one.
    Get,
    /// Reading an object's length.
    Head,
    /// Writing an object.
    Put,
    /// Listing: the time until the last object, without what the caller did in between.
    List,
    /// Deleting an object.
    Delete,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 5] =
        [Operation::Get, Operation::Head, Operation::Put, Operation::List, Operation::Delete];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Head => "head",
            Operation::Put => "put",
            Operation::List => "list",
            Operation::Delete => "delete",
        }
    }
}

/// Kinds of errors with which operations of a site end.
const KINDS: [ErrorKind; 13] = ErrorKind::ALL;
/// Words for failed tries; the last is for what fits no other.
const REASONS: [&str; 9] =
    ["connect", "stalled", "broken", "throttled", "server-error", "denied", "full", "unsupported", "other"];

/// How long operations took, as counts by [`LATENCY_BOUNDS`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Latency {
    /// Operations of each bucket alone, the one without a bound last.
    pub buckets: [u64; BUCKETS],
    /// All of their times together.
    pub sum: Duration,
}

impl Latency {
    /// How many operations there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// One kind of operation since the site was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationFigures {
    /// Which.
    pub operation: Operation,
    /// How long they took, those that failed included.
    pub latency: Latency,
    /// How many failed after all their tries, by the kind of error; those that never came are left out.
    pub failed: Vec<(ErrorKind, u64)>,
}

/// What a site's requests came to since it was opened; all numbers only grow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreFigures {
    /// Each kind of operation.
    pub operations: Vec<OperationFigures>,
    /// Tries that failed, by a word that says how; words that never came are left out.
    pub failed_tries: Vec<(&'static str, u64)>,
}

/// The live figures of one kind of operation.
#[derive(Debug, Default)]
struct Measured {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
    failed: [AtomicU64; KINDS.len()],
}

/// The live figures of one site's operations.
#[derive(Debug, Default)]
pub(super) struct Operations {
    measured: [Measured; Operation::ALL.len()],
}

impl Operations {
    /// An operation took so long, and failed with this kind of error, if it did.
    pub(super) fn took(&self, operation: Operation, time: Duration, failed: Option<ErrorKind>) {
        let measured = &self.measured[operation as usize];
        let seconds = time.as_secs_f64();
        let bucket = LATENCY_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS - 1);
        measured.buckets[bucket].fetch_add(1, Relaxed);
        measured.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
        if let Some(at) = failed.and_then(|kind| KINDS.iter().position(|known| *known == kind)) {
            measured.failed[at].fetch_add(1, Relaxed);
        }
    }

    /// What they stand at.
    pub(super) fn snapshot(&self) -> Vec<OperationFigures> {
        let figures = |(operation, measured): (Operation, &Measured)| OperationFigures {
            operation,
            latency: Latency {
                buckets: std::array::from_fn(|i| measured.buckets[i].load(Relaxed)),
                sum: Duration::from_micros(measured.micros.load(Relaxed)),
            },
            failed: counted(KINDS, &measured.failed),
        };
        Operation::ALL.into_iter().zip(&self.measured).map(figures).collect()
    }
}

/// The live counts of failed tries of one site.
#[derive(Debug, Default)]
pub(super) struct FailedTries([AtomicU64; REASONS.len()]);

impl FailedTries {
    /// A try failed.
    pub(super) fn count(&self, failure: &Failure) {
        let reason = reason(failure);
        let at = REASONS.iter().position(|word| *word == reason).unwrap_or(REASONS.len() - 1);
        self.0[at].fetch_add(1, Relaxed);
    }

    /// What they stand at.
    pub(super) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        counted(REASONS, &self.0)
    }
}

/// Those of which there are any.
fn counted<T: Copy, const N: usize>(what: [T; N], counts: &[AtomicU64; N]) -> Vec<(T, u64)> {
    let all = what.into_iter().zip(counts).map(|(what, count)| (what, count.load(Relaxed)));
    all.filter(|(_, count)| *count > 0).collect()
}

/// The word for a failed try.
fn reason(failure: &Failure) -> &'static str {
    match failure {
        Failure::Connect(_) => return "connect",
        Failure::Stalled(_) => return "stalled",
        Failure::Broken(_) => return "broken",
        // A store that wants fewer requests says so in one of two ways.
        Failure::Status(status) if status.status == 429 || status.code == "SlowDown" => return "throttled",
        _ => {}
    }
    match failure.class() {
        Class::Transient | Class::Connect => "server-error",
        Class::Denied | Class::ClockOff => "denied",
        Class::Full => "full",
        Class::Unsupported => "unsupported",
        Class::NoBucket | Class::NoObject | Class::Exists | Class::PastEnd | Class::Invalid => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Status;
    use super::*;

    #[test]
    fn operations_are_counted_in_the_bucket_that_holds_their_time() {
        let operations = Operations::default();
        let millis = Duration::from_millis;
        operations.took(Operation::Put, millis(1), None);
        operations.took(Operation::Put, millis(2), Some(ErrorKind::Full));
        operations.took(Operation::Put, millis(61_000), Some(ErrorKind::Full));
        operations.took(Operation::List, millis(3), None);
        let all = operations.snapshot();
        let of = |operation| all.iter().find(|figures| figures.operation == operation).unwrap();
        let put = of(Operation::Put);
        assert_eq!(put.latency.buckets[..2], [1, 1]);
        assert_eq!((put.latency.buckets[BUCKETS - 1], put.latency.count()), (1, 3));
        assert_eq!(put.latency.sum, millis(61_003));
        assert_eq!(put.failed, [(ErrorKind::Full, 2)]);
        assert_eq!((of(Operation::List).latency.count(), of(Operation::Get).latency.count()), (1, 0));
        assert!(of(Operation::List).failed.is_empty());
    }

    #[test]
    fn every_failed_try_has_a_word() {
        let status = |status, code: &str| {
            Failure::Status(Box::new(Status { status, code: code.to_owned(), ..Status::default() }))
        };
        let tries = FailedTries::default();
        for (failure, word) in [
            (status(503, "SlowDown"), "throttled"),
            (status(429, ""), "throttled"),
            (status(500, "InternalError"), "server-error"),
            (status(403, "AccessDenied"), "denied"),
            (status(507, ""), "full"),
            (status(501, ""), "unsupported"),
            (status(404, "NoSuchBucket"), "other"),
            (Failure::Connect(String::new()), "connect"),
            (Failure::Broken(String::new()), "broken"),
            (Failure::Stalled(Duration::ZERO), "stalled"),
            (Failure::NoCredentials(String::new()), "denied"),
            (Failure::Client(String::new()), "unsupported"),
        ] {
            assert_eq!(reason(&failure), word, "{failure}");
            assert!(REASONS.contains(&word));
            tries.count(&failure);
        }
        assert_eq!(tries.snapshot().iter().map(|(_, n)| n).sum::<u64>(), 12);
        assert!(tries.snapshot().contains(&("denied", 2)));
    }
}
