//! The one door to a storage site: keys relative to the site's prefix in, bytes out.
//!
//! It owns the choice of the backend, the retries and the hedges around single tries, and the settling of lost
//! answers, and it measures what it is asked for. It never interprets an object's bytes. It never lists on its own.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::cloud::CloudStore;
use super::figures::Operations;
use super::file::FileStore;
use super::{Created, Fetched, ObjectInfo, Operation, Settled, StoreCounters, StoreFigures, StoreOptions, StoreUrl};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Time;

/// Bytes at either end of an object that [`StorageSite::create_settled`] compares.
const SETTLE_BYTES: u64 = 4096;
/// Reads of one end of an object that has other bytes, before they are believed.
const SETTLE_READS: usize = 3;

/// An object store or directory, opened by URL. Clones share connections, buffers and counts.
#[derive(Clone)]
pub struct StorageSite {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    store: Store,
    operations: Operations,
}

/// What is behind the door.
enum Store {
    File(FileStore),
    Cloud(CloudStore),
}

impl StorageSite {
    /// Opens the site at `url`. Reads the URL and builds a client; sends no request.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a bad URL or setting, each saying what is expected.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<StorageSite> {
        options.validate()?;
        let url = StoreUrl::parse(url)?;
        let shown = url.to_string();
        let store = match url {
            StoreUrl::File { dir } => Store::File(FileStore::new(shown.clone(), dir, options)),
            StoreUrl::Cloud { provider, bucket, prefix } => {
                Store::Cloud(CloudStore::new(shown.clone(), provider, &bucket, &prefix, options)?)
            }
        };
        Ok(StorageSite { inner: Arc::new(Inner { url: shown, store, operations: Operations::default() }) })
    }

    /// The site's URL, which never holds a secret.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The whole of a small object; `None` where there is no such object.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if it is longer than `max_len`; otherwise what the store says, after retries.
    pub async fn get(&self, key: &str, max_len: u64) -> Result<Option<Bytes>> {
        // One byte more than allowed tells an object that is too long without a second request.
        let Some(fetched) = self.get_range(key, 0..max_len.saturating_add(1)).await? else { return Ok(None) };
        if fetched.object_len > max_len {
            let why = format!("has {} bytes, at most {max_len} are expected", fetched.object_len);
            return Err(Error::new(ErrorKind::Damaged, format!("storage site {}: object {key} {why}", self.url())));
        }
        Ok(Some(fetched.into_bytes()))
    }

    /// Bytes `range` of an object, in the parts in which they came; `None` where there is no such object. An object
    /// that ends within or before the range gives what there is: the caller checks [`Fetched::len`].
    ///
    /// Retried and hedged within the limits of the options. Meant for ranges up to 16 MiB.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Fetched>> {
        let work = async {
            match &self.inner.store {
                Store::File(store) => store.get_range(key, range).await,
                Store::Cloud(store) => store.get_range(key, range).await,
            }
        };
        self.inner.measured(Operation::Get, work).await
    }

    /// Length and time of an object; `None` where there is no such object.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let work = async {
            match &self.inner.store {
                Store::File(store) => store.head(key).await,
                Store::Cloud(store) => store.head(key).await,
            }
        };
        self.inner.measured(Operation::Head, work).await
    }

    /// Creates an object of `parts`, joined, if there is none of that key. Atomic, and durable when it returns.
    ///
    /// A try whose answer was lost may have succeeded: [`Created::Exists`] can mean our own object. Use
    /// [`StorageSite::create_settled`], or read the object and look for what only we can have written.
    pub async fn create(&self, key: &str, parts: Vec<Bytes>) -> Result<Created> {
        let work = async {
            match &self.inner.store {
                Store::File(store) => store.create(key, parts).await,
                Store::Cloud(store) => store.create(key, parts).await,
            }
        };
        self.inner.measured(Operation::Put, work).await
    }

    /// As [`StorageSite::create`], and where the key is taken, reads back length, first and last 4096 bytes to tell
    /// our own object from another's. Only for objects whose ends identify them.
    pub async fn create_settled(&self, key: &str, parts: Vec<Bytes>) -> Result<Settled> {
        if self.create(key, parts.clone()).await? == Created::New {
            return Ok(Settled::New);
        }
        let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
        let ends = [0..len.min(SETTLE_BYTES), len.saturating_sub(SETTLE_BYTES)..len];
        for range in ends {
            if !self.holds(key, range, len, &parts).await? {
                return Ok(Settled::Theirs);
            }
        }
        Ok(Settled::Ours)
    }

    /// Whether an object has `len` bytes and, in `range`, those of `parts`. What differs is read again, since a byte may
    /// have changed on the way: a writer that took its own object for another's would stop for ever.
    async fn holds(&self, key: &str, range: Range<u64>, len: u64, parts: &[Bytes]) -> Result<bool> {
        for _ in 0..SETTLE_READS {
            let Some(fetched) = self.get_range(key, range.clone()).await? else {
                let why = "was there a moment ago and is gone; nothing may delete it, look for what does";
                return Err(Error::new(ErrorKind::Damaged, format!("storage site {}: object {key} {why}", self.url())));
            };
            if fetched.object_len != len {
                return Ok(false);
            }
            if fetched.into_bytes() == slice_parts(parts, range.clone()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes an object whether or not one is there. Only for a domain's `status`, which nothing trusts.
    pub async fn put_status(&self, key: &str, bytes: Bytes) -> Result<()> {
        let work = async {
            match &self.inner.store {
                Store::File(store) => store.put(key, bytes).await,
                Store::Cloud(store) => store.overwrite(key, bytes).await,
            }
        };
        self.inner.measured(Operation::Put, work).await
    }

    /// All objects in the folder `prefix` (empty for the whole site; a slash at its end makes no difference), in
    /// ascending byte order of their keys, those after `after` only. The same order on all stores: one that lists in
    /// another order ends the stream with [`ErrorKind::Unsupported`].
    pub fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'static, Result<ObjectInfo>> {
        let objects = match &self.inner.store {
            Store::File(store) => store.list(prefix, after),
            Store::Cloud(store) => store.list(prefix, after),
        };
        let listing = Listing { inner: Arc::clone(&self.inner), spent: Duration::ZERO, failed: None, begun: false };
        let next = |(mut objects, mut listing): (BoxStream<'static, Result<ObjectInfo>>, Listing)| async move {
            let began = Instant::now();
            let object = objects.next().await;
            listing.begun = true;
            listing.spent += began.elapsed();
            if let Some(Err(error)) = &object {
                listing.failed = Some(error.kind());
            }
            Some((object?, (objects, listing)))
        };
        futures::stream::unfold((objects, listing), next).boxed()
    }

    /// Names of the folders directly within the folder `prefix`, ascending, without slashes.
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>> {
        let work = async {
            match &self.inner.store {
                Store::File(store) => store.list_dirs(prefix).await,
                Store::Cloud(store) => store.list_dirs(prefix).await,
            }
        };
        self.inner.measured(Operation::List, work).await
    }

    /// Removes an object; it need not exist. Objects are never deleted but those of the probe.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let work = async {
            match &self.inner.store {
                Store::File(store) => store.delete(key).await,
                Store::Cloud(store) => store.delete(key).await,
            }
        };
        self.inner.measured(Operation::Delete, work).await
    }

    /// For `file://`: the directory, and whether it is read past the page cache.
    pub(super) fn file_store(&self) -> Option<(&Path, bool)> {
        match &self.inner.store {
            Store::File(store) => Some((store.root(), store.reads_direct())),
            Store::Cloud(_) => None,
        }
    }

    /// The store's clock: this machine's, corrected by the last answer's `Date` (seconds; kept to within one). For
    /// `file://` this machine's.
    pub fn now(&self) -> Time {
        match &self.inner.store {
            Store::File(store) => store.now(),
            Store::Cloud(store) => store.now(),
        }
    }

    /// What was done since the site was opened.
    pub fn counters(&self) -> StoreCounters {
        match &self.inner.store {
            Store::File(store) => store.counters(),
            Store::Cloud(store) => store.counters(),
        }
    }

    /// How long operations took since the site was opened, and what failed.
    pub fn figures(&self) -> StoreFigures {
        let failed_tries = match &self.inner.store {
            // Each operation is one try.
            Store::File(_) => Vec::new(),
            Store::Cloud(store) => store.failed_tries(),
        };
        StoreFigures { operations: self.inner.operations.snapshot(), failed_tries }
    }
}

impl Inner {
    /// Does `work`, and counts how long it took and how it ended.
    async fn measured<T>(&self, operation: Operation, work: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let done = work.await;
        self.operations.took(operation, began.elapsed(), done.as_ref().err().map(Error::kind));
        done
    }
}

/// A listing under way: one operation, counted when nobody reads on, as after its last object.
struct Listing {
    inner: Arc<Inner>,
    /// Time that it took to come so far.
    spent: Duration,
    failed: Option<ErrorKind>,
    /// Something was waited for to its end.
    begun: bool,
}

impl Drop for Listing {
    fn drop(&mut self) {
        if self.begun {
            self.inner.operations.took(Operation::List, self.spent, self.failed);
        }
    }
}

/// Bytes `range` of the joined parts.
fn slice_parts(parts: &[Bytes], range: Range<u64>) -> Bytes {
    let mut out = Vec::new();
    let mut start = 0u64;
    for part in parts {
        let end = start + part.len() as u64;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            // Both offsets are within the part, whose length is a usize.
            out.extend_from_slice(&part[(from - start) as usize..(to - start) as usize]);
        }
        start = end;
    }
    out.into()
}
