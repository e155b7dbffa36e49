//! An object store as a storage site: single tries over `object_store`, and around them retries and hedges.
//!
//! ```text
//! get_range: [ try || hedge ] -> parts so far -> failed? pause, ask for the rest -> Fetched
//! ```
//!
//! Invariants: a range is handed out only when as many bytes came as the answer promised and the whole range is of
//! one version of the object; a retry asks only for what is missing; an upload is sent again from the same parts,
//! which are never copied.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::time::Instant;

use super::connector::Watch;
use super::counters::count;
use super::failure::{Class, Failure};
use super::hedge::Hedge;
use super::retry::Tries;
use super::{Created, Fetched, ObjectInfo, Provider, RetryLimits, StoreCounters, StoreOptions, client, listing};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Time;

/// One bucket and prefix.
#[derive(Clone)]
pub(super) struct CloudStore {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    /// Shown in errors.
    url: String,
    provider: Provider,
    bucket: String,
    prefix: String,
    pub(super) store: Arc<dyn ObjectStore>,
    watch: Arc<Watch>,
    retry: RetryLimits,
    hedge: Hedge,
}

/// What one try for a range brought.
struct Body {
    parts: Vec<Bytes>,
    len: u64,
    object_len: u64,
    e_tag: Option<String>,
}

/// A try for a range that failed, and what had come before it did.
struct Torn {
    failure: Failure,
    got: Option<Body>,
}

impl From<Failure> for Torn {
    fn from(failure: Failure) -> Torn {
        Torn { failure, got: None }
    }
}

impl CloudStore {
    /// Builds the client; sends no request.
    pub(super) fn new(
        url: String,
        provider: Provider,
        bucket: &str,
        prefix: &str,
        options: &StoreOptions,
    ) -> Result<CloudStore> {
        let watch = Watch::new(options);
        let store =
            client::build(provider, bucket, options, &watch).map_err(|e| e.while_doing(format!("open {url}")))?;
        let inner = Inner {
            url,
            provider,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            store,
            watch,
            retry: options.retry.clone(),
            hedge: Hedge::new(options.hedge.clone()),
        };
        Ok(CloudStore { inner: Arc::new(inner) })
    }

    /// See [`super::StorageSite::get_range`].
    pub(super) async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Fetched>> {
        let inner = &*self.inner;
        let path = inner.path(key)?;
        if range.is_empty() {
            let info = self.head(key).await?;
            return Ok(info.map(|i| Fetched { object_len: i.len, ..Fetched::default() }));
        }
        let mut attempts = Attempts::new(inner, "read", key);
        let mut so_far: Option<Body> = None;
        loop {
            let have = so_far.as_ref().map_or(0, |b| b.len);
            let torn = match inner.hedged(&path, range.start + have..range.end).await {
                Ok(Some(body)) => match joined(so_far.take(), body) {
                    Ok(body) => return Ok(Some(body.into_fetched())),
                    Err(torn) => torn,
                },
                Ok(None) => return Ok(None),
                Err(Torn { failure, got: None }) => Torn { failure, got: so_far.take() },
                Err(Torn { failure, got: Some(got) }) => match joined(so_far.take(), got) {
                    Ok(body) => Torn { failure, got: Some(body) },
                    Err(changed) => changed,
                },
            };
            so_far = torn.got;
            // All that was asked for may have come before the connection broke.
            if let Some(body) = so_far.take_if(|b| b.len >= wanted(&range, b.object_len)) {
                return Ok(Some(body.into_fetched()));
            }
            attempts.failed(torn.failure).await?;
        }
    }

    /// See [`super::StorageSite::head`].
    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let inner = &*self.inner;
        let path = inner.path(key)?;
        let mut attempts = Attempts::new(inner, "read the length of", key);
        loop {
            match inner.store.head(&path).await {
                Ok(meta) => return Ok(Some(inner.info(meta)?)),
                Err(e) => match Failure::of(&e) {
                    failure if failure.class() == Class::NoObject => return Ok(None),
                    failure => attempts.failed(failure).await?,
                },
            }
        }
    }

    /// See [`super::StorageSite::create`].
    pub(super) async fn create(&self, key: &str, parts: Vec<Bytes>) -> Result<Created> {
        match self.put("create", key, parts, PutMode::Create).await {
            Ok(()) => Ok(Created::New),
            Err(None) => Ok(Created::Exists),
            Err(Some(e)) => Err(e),
        }
    }

    /// Writes the object whether or not one is there.
    pub(super) async fn overwrite(&self, key: &str, bytes: Bytes) -> Result<()> {
        let put = self.put("write", key, vec![bytes], PutMode::Overwrite).await;
        put.map_err(|e| e.unwrap_or_else(|| self.inner.error("write", key, "the store says that it exists")))
    }

    /// `Err(None)` where the object exists.
    async fn put(&self, doing: &str, key: &str, parts: Vec<Bytes>, mode: PutMode) -> Result<(), Option<Error>> {
        let inner = &*self.inner;
        let path = inner.path(key)?;
        let payload: PutPayload = parts.into_iter().collect();
        let mut attempts = Attempts::new(inner, doing, key);
        loop {
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            let Err(e) = inner.store.put_opts(&path, payload.clone(), options).await else { return Ok(()) };
            match (Failure::of(&e), &e) {
                (failure, _) if failure.class() == Class::Exists => return Err(None),
                (_, object_store::Error::AlreadyExists { .. }) => return Err(None),
                (failure, _) => attempts.failed(failure).await?,
            }
        }
    }

    /// Removes an object; it need not exist. Only for objects of the probe.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let inner = &*self.inner;
        let path = inner.path(key)?;
        let mut attempts = Attempts::new(inner, "delete", key);
        loop {
            match inner.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => return Ok(()),
                Err(e) => match Failure::of(&e) {
                    failure if failure.class() == Class::NoObject => return Ok(()),
                    failure => attempts.failed(failure).await?,
                },
            }
        }
    }

    /// See [`super::StorageSite::list`].
    pub(super) fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'static, Result<ObjectInfo>> {
        listing::list(Arc::clone(&self.inner), prefix, after)
    }

    /// See [`super::StorageSite::list_dirs`].
    pub(super) async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>> {
        let inner = &*self.inner;
        let folder = inner.folder(prefix)?;
        let mut attempts = Attempts::new(inner, "list", prefix);
        let found = loop {
            match inner.store.list_with_delimiter(Some(&folder)).await {
                Ok(found) => break found,
                Err(e) => attempts.failed(Failure::of(&e)).await?,
            }
        };
        let mut names: Vec<String> =
            found.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The store's clock.
    pub(super) fn now(&self) -> Time {
        self.inner.watch.now()
    }

    /// What was done so far.
    pub(super) fn counters(&self) -> StoreCounters {
        self.inner.watch.counters.snapshot()
    }

    /// Tries that failed, by a word that says how.
    pub(super) fn failed_tries(&self) -> Vec<(&'static str, u64)> {
        self.inner.watch.failed_tries.snapshot()
    }
}

impl Inner {
    /// Where the object of a key is.
    pub(super) fn path(&self, key: &str) -> Result<Path> {
        let full = match self.prefix.is_empty() {
            true => key.to_owned(),
            false => format!("{}/{key}", self.prefix),
        };
        match Path::parse(&full) {
            Ok(path) if !key.is_empty() && path.as_ref() == full => Ok(path),
            _ => {
                let why = "is not an object key: parts must not be empty, . or ..";
                Err(Error::new(ErrorKind::Invalid, format!("storage site {}: {key:?} {why}", self.url)))
            }
        }
    }

    /// Where a folder is; the site's own for the empty prefix.
    pub(super) fn folder(&self, prefix: &str) -> Result<Path> {
        match prefix.strip_suffix('/').unwrap_or(prefix) {
            // The prefix was checked with the URL.
            "" => Ok(Path::from(self.prefix.as_str())),
            folder => self.path(folder),
        }
    }

    /// An object of a listing, its key relative to the site.
    pub(super) fn info(&self, meta: object_store::ObjectMeta) -> Result<ObjectInfo> {
        let full = meta.location.as_ref();
        let key = match self.prefix.is_empty() {
            true => Some(full),
            false => full.strip_prefix(self.prefix.as_str()).and_then(|k| k.strip_prefix('/')),
        };
        let key = key.ok_or_else(|| self.error("list", full, "the store lists an object that is not in the folder"))?;
        let modified = Time::from_millis(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0));
        Ok(ObjectInfo { key: key.to_owned(), len: meta.size, modified })
    }

    /// An error of this site with a reason that is not a failure of a request.
    pub(super) fn error(&self, doing: &str, key: &str, why: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("storage site {}: {doing} object {key}: {why}", self.url))
    }

    /// One try, and a second one beside it if the first is slow; the first to succeed wins.
    async fn hedged(&self, path: &Path, range: Range<u64>) -> Result<Option<Body>, Torn> {
        let len = range.end - range.start;
        let began = Instant::now();
        let delay = self.hedge.begin(len);
        let mut first = std::pin::pin!(self.try_range(path, range.clone()));
        let done = |result: Result<Option<Body>, Torn>| {
            if matches!(&result, Ok(Some(_))) {
                self.hedge.took(len, began.elapsed());
            }
            result
        };
        let Some(delay) = delay else { return first.await };
        if let Ok(result) = tokio::time::timeout(delay, first.as_mut()).await {
            return done(result);
        }
        if !self.hedge.spend() {
            return done(first.await);
        }
        count(&self.watch.counters.hedges);
        let second = std::pin::pin!(self.try_range(path, range));
        let (result, second_won) = match select(first, second).await {
            Either::Left((Ok(body), _)) => (Ok(body), false),
            Either::Right((Ok(body), _)) => (Ok(body), true),
            Either::Left((Err(torn), second)) => (second.await.map_err(|other| further(torn, other)), true),
            Either::Right((Err(torn), first)) => (first.await.map_err(|other| further(torn, other)), false),
        };
        if second_won && result.is_ok() {
            count(&self.watch.counters.hedges_won);
        }
        done(result)
    }

    /// One request for a range.
    async fn try_range(&self, path: &Path, range: Range<u64>) -> Result<Option<Body>, Torn> {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let result = match self.store.get_opts(path, options).await {
            Ok(result) => result,
            Err(e) => return self.without_body(path, Failure::of(&e)).await,
        };
        let promised = result.range.end.saturating_sub(result.range.start);
        let (object_len, e_tag) = (result.meta.size, result.meta.e_tag.clone());
        let mut body = Body { parts: Vec::new(), len: 0, object_len, e_tag };
        let mut stream = result.into_stream();
        let failure = loop {
            match stream.next().await {
                Some(Ok(part)) if part.is_empty() => {}
                Some(Ok(part)) => {
                    body.len += part.len() as u64;
                    body.parts.push(part);
                    if body.len > promised {
                        let why = format!("more than the promised {promised} bytes came");
                        return Err(Failure::Broken(why).into());
                    }
                }
                Some(Err(e)) => break Failure::of(&e),
                None if body.len == promised => return Ok(Some(body)),
                None => break Failure::Broken(format!("{} of {promised} bytes came", body.len)),
            }
        };
        Err(Torn { failure, got: (body.len > 0).then_some(body) })
    }

    /// The answer was not a success: no object, a range past its end, or a failure.
    async fn without_body(&self, path: &Path, failure: Failure) -> Result<Option<Body>, Torn> {
        match failure.class() {
            Class::NoObject => Ok(None),
            Class::PastEnd => {
                let told = match &failure {
                    Failure::Status(status) => status.object_len,
                    _ => None,
                };
                let object_len = match told {
                    Some(len) => len,
                    None => self.store.head(path).await.map_err(|e| Failure::of(&e))?.size,
                };
                Ok(Some(Body { parts: Vec::new(), len: 0, object_len, e_tag: None }))
            }
            _ => Err(failure.into()),
        }
    }
}

impl Body {
    fn into_fetched(self) -> Fetched {
        Fetched { parts: self.parts, len: self.len, object_len: self.object_len }
    }
}

/// Bytes of the range that an object of this length has.
fn wanted(range: &Range<u64>, object_len: u64) -> u64 {
    range.end.min(object_len).saturating_sub(range.start)
}

/// What came before and what came after it, if both are of the same object.
fn joined(before: Option<Body>, after: Body) -> Result<Body, Torn> {
    let Some(mut body) = before else { return Ok(after) };
    if body.object_len != after.object_len || body.e_tag != after.e_tag {
        return Err(Failure::Broken("the object changed while it was read".into()).into());
    }
    body.len += after.len;
    body.parts.extend(after.parts);
    Ok(body)
}

/// Of two torn tries for the same range, the one that got further.
fn further(one: Torn, other: Torn) -> Torn {
    let got = |t: &Torn| t.got.as_ref().map_or(0, |b| b.len);
    if got(&one) > got(&other) { one } else { other }
}

/// The tries of one operation: pauses between them, and the error after the last.
pub(super) struct Attempts<'a> {
    site: &'a Inner,
    doing: &'a str,
    key: &'a str,
    tries: Tries<'a>,
    began: Instant,
}

impl<'a> Attempts<'a> {
    /// Before the first try.
    pub(super) fn new(site: &'a Inner, doing: &'a str, key: &'a str) -> Attempts<'a> {
        Attempts { site, doing, key, tries: Tries::new(&site.retry), began: Instant::now() }
    }

    /// Returns after the pause when there is to be another try, or gives the error.
    pub(super) async fn failed(&mut self, failure: Failure) -> Result<()> {
        let (class, answered) = (failure.class(), self.site.watch.answered());
        self.site.watch.failed_tries.count(&failure);
        let pause = self.tries.pause(class, answered, self.began.elapsed(), failure.retry_after(), fastrand::f64());
        let Some(pause) = pause else { return Err(self.error(&failure)) };
        tracing::debug!(site = self.site.url, key = self.key, %failure, ?pause, "{} again", self.doing);
        count(&self.site.watch.counters.retries);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn error(&self, failure: &Failure) -> Error {
        let Inner { url, provider, bucket, .. } = self.site;
        let class = failure.class();
        let what = match class {
            Class::NoBucket => format!("the {} {bucket:?} does not exist ({failure})", provider.container_word()),
            _ => failure.to_string(),
        };
        let tries = match self.tries.failed() {
            0 | 1 => String::new(),
            n => format!(" (given up after {n} tries in {:.1} s)", self.began.elapsed().as_secs_f32()),
        };
        let (doing, key, advice) = (self.doing, self.key, class.advice(*provider));
        let key = if key.is_empty() { String::new() } else { format!(" {key}") };
        let end = if advice.is_empty() { String::new() } else { format!("; {advice}") };
        Error::new(class.kind(), format!("storage site {url}: {doing}{key}: {what}{tries}{end}"))
    }
}
