//! What the server has seen and done, for tests that assert on it and benches that report it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What a request asks for. Listing is told apart from reading an object though both are `GET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// `GET` of an object.
    Get,
    /// `HEAD` of an object or a bucket.
    Head,
    /// `GET` of a bucket or of the root.
    List,
    /// `PUT` of an object, a part or a bucket.
    Put,
    /// `POST`: multipart begin and end, deletion of several objects.
    Post,
    /// `DELETE` of an object, an upload or a bucket.
    Delete,
}

/// Counts since start or since the last [`reset`](super::S3Server::reset_counters).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that arrived, those answered with a fault included.
    pub requests: BTreeMap<Verb, u64>,
    /// Bytes of response bodies handed to connections.
    pub bytes_out: u64,
    /// Bytes of request bodies received.
    pub bytes_in: u64,
    /// Faults that were really injected, by the name of their kind.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Verb {
    /// The word for this verb in rules and reports.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Head => "HEAD",
            Verb::List => "LIST",
            Verb::Put => "PUT",
            Verb::Post => "POST",
            Verb::Delete => "DELETE",
        }
    }

    /// Whether the request changes the store.
    pub(super) fn writes(self) -> bool {
        matches!(self, Verb::Put | Verb::Post | Verb::Delete)
    }
}

impl Counters {
    /// Requests of one verb.
    pub fn of(&self, verb: Verb) -> u64 {
        self.requests.get(&verb).copied().unwrap_or(0)
    }

    /// Requests of all verbs.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }

    /// Faults of all kinds.
    pub fn total_faults(&self) -> u64 {
        self.faults.values().sum()
    }
}

/// The shared, growing side of [`Counters`].
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: Mutex<BTreeMap<Verb, u64>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
}

/// Which way the bytes of a body go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    In,
    Out,
}

impl Tally {
    pub(super) fn request(&self, verb: Verb) {
        *lock(&self.inner.requests).entry(verb).or_default() += 1;
    }

    pub(super) fn fault(&self, name: &'static str) {
        *lock(&self.inner.faults).entry(name).or_default() += 1;
    }

    pub(super) fn bytes(&self, direction: Direction, count: usize) {
        let counter = match direction {
            Direction::In => &self.inner.bytes_in,
            Direction::Out => &self.inner.bytes_out,
        };
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            requests: lock(&self.inner.requests).clone(),
            bytes_out: self.inner.bytes_out.load(Ordering::Relaxed),
            bytes_in: self.inner.bytes_in.load(Ordering::Relaxed),
            faults: lock(&self.inner.faults).clone(),
        }
    }

    pub(super) fn reset(&self) {
        lock(&self.inner.requests).clear();
        lock(&self.inner.faults).clear();
        self.inner.bytes_out.store(0, Ordering::Relaxed);
        self.inner.bytes_in.store(0, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds this lock")
}
