//! Which objects exist: an ordered index in memory over the files of a directory, and the one place that changes it.
//!
//! ```text
//! root/.lock  root/.incoming/<temporary>  root/.uploads/<id>/...  root/<bucket>/<escaped key>@<version>
//! ```
//!
//! Invariants: a version is handed out once and only grows, so it serves as ETag; a conditional write checks its
//! condition, renames the file and updates the index under one lock, so racing writers have one winner. File names
//! hold all there is to know: the index is rebuilt from them at start, and of two versions of a key (a kill between
//! the rename and the removal of the old file) the newer one counts.

use super::incoming::Incoming;
use super::name;
use s3s::dto::{ETag, ETagCondition, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Opening the file of an entry is tried this often: a racing overwrite may have removed it in between.
const OPEN_ATTEMPTS: usize = 16;

type Objects = BTreeMap<String, Entry>;

/// The buckets and objects below one directory.
pub(super) struct Catalog {
    root: PathBuf,
    buckets: RwLock<BTreeMap<String, Objects>>,
    newest: AtomicU64,
    /// Held for its lock: one server per directory.
    _lock: File,
}

/// One object as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// When it was committed, in nanoseconds since the Unix epoch, made unique by counting on.
    pub(super) version: u64,
    /// Length in bytes.
    pub(super) len: u64,
}

/// What a write demands of the object that is there.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    /// Nothing.
    Any,
    /// That there is none.
    Absent,
    /// That there is one, and that it is this one.
    Is(ETagCondition),
}

/// Where a page of a listing begins.
#[derive(Debug, Clone)]
pub(super) enum After {
    /// At the first key.
    Start,
    /// Behind this key.
    Key(String),
    /// Behind every key that begins with this common prefix.
    Prefix(String),
}

/// What to list.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) prefix: &'a str,
    pub(super) delimiter: &'a str,
    pub(super) after: After,
    pub(super) max: usize,
}

/// One page of a listing, in key order.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<(String, Entry)>,
    pub(super) prefixes: Vec<String>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<After>,
}

impl Entry {
    /// The opaque tag of this version.
    pub(super) fn etag(self) -> ETag {
        ETag::Strong(format!("{:016x}", self.version))
    }

    /// When it was committed, in whole seconds, as HTTP dates are.
    pub(super) fn modified(self) -> Timestamp {
        let seconds = Duration::from_nanos(self.version).as_secs();
        Timestamp::from(UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

impl Catalog {
    /// Takes over a directory, creating it if need be, and reads what is there.
    pub(super) fn open(root: &Path) -> io::Result<Catalog> {
        fs::create_dir_all(root)?;
        let lock = File::create(root.join(".lock"))?;
        lock.try_lock().map_err(|error| io::Error::other(format!("{} is in use: {error}", root.display())))?;
        let incoming = root.join(".incoming");
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        fs::create_dir_all(&incoming)?;
        fs::create_dir_all(root.join(".uploads"))?;
        let mut buckets = BTreeMap::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if let Some(bucket) = entry.file_name().to_str().filter(|name| !name.starts_with('.')) {
                let mut objects = Objects::new();
                load(&entry.path(), "", &mut objects)?;
                buckets.insert(bucket.to_owned(), objects);
            }
        }
        let newest = buckets.values().flat_map(BTreeMap::values).map(|entry| entry.version).max().unwrap_or(0);
        Ok(Catalog {
            root: root.to_owned(),
            buckets: RwLock::new(buckets),
            newest: AtomicU64::new(newest),
            _lock: lock,
        })
    }

    /// Directory for files on their way in; on the same file system as the buckets.
    pub(super) fn incoming(&self) -> PathBuf {
        self.root.join(".incoming")
    }

    /// Directory for multipart uploads.
    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join(".uploads")
    }

    /// A version that nobody had: the clock, or one more than the last where the clock has not moved on.
    pub(super) fn next_version(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let step = |newest: u64| Some(now.max(newest + 1));
        let previous = self.newest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        previous.map_or(now, |newest| now.max(newest + 1))
    }

    /// Creates a bucket; false if it is there already.
    pub(super) fn create_bucket(&self, bucket: &str) -> io::Result<bool> {
        let mut buckets = self.buckets.write().expect("no code panics while it holds this lock");
        if buckets.contains_key(bucket) {
            return Ok(false);
        }
        fs::create_dir_all(self.root.join(bucket))?;
        buckets.insert(bucket.to_owned(), Objects::new());
        Ok(true)
    }

    /// Names of all buckets, sorted.
    pub(super) fn buckets(&self) -> Vec<String> {
        self.buckets.read().expect("no code panics while it holds this lock").keys().cloned().collect()
    }

    /// An object, if it exists. Error: no such bucket.
    pub(super) fn find(&self, bucket: &str, key: &str) -> S3Result<Option<Entry>> {
        let buckets = self.buckets.read().expect("no code panics while it holds this lock");
        let objects = buckets.get(bucket).ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchBucket))?;
        Ok(objects.get(key).copied())
    }

    /// File of the current version of an object, if there is one.
    pub(super) fn file_of(&self, bucket: &str, key: &str) -> Option<PathBuf> {
        let entry = self.find(bucket, key).ok().flatten()?;
        Some(self.path(bucket, key, entry))
    }

    /// An object opened for reading, with the length its file has now: a test may have cut it.
    pub(super) fn open_object(&self, bucket: &str, key: &str) -> S3Result<(Entry, File)> {
        for _ in 0..OPEN_ATTEMPTS {
            let entry = self.find(bucket, key)?.ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchKey))?;
            match File::open(self.path(bucket, key, entry)) {
                Ok(file) => {
                    let len = file.metadata().map_err(S3Error::internal_error)?.len();
                    return Ok((Entry { len, ..entry }, file));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(S3Error::internal_error(error)),
            }
        }
        Err(S3Error::new(S3ErrorCode::NoSuchKey))
    }

    /// Makes `incoming` the object, if `condition` holds at that very moment.
    pub(super) fn commit(&self, bucket: &str, key: &str, incoming: Incoming, condition: &Condition) -> S3Result<Entry> {
        let len = incoming.len();
        let (entry, replaced) = {
            let mut buckets = self.buckets.write().expect("no code panics while it holds this lock");
            let objects = buckets.get_mut(bucket).ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchBucket))?;
            condition.check(objects.get(key))?;
            let entry = Entry { version: self.next_version(), len };
            let path = self.path(bucket, key, entry);
            let parent = path.parent().expect("it is below the bucket");
            fs::create_dir_all(parent).map_err(S3Error::internal_error)?;
            incoming.take_to(&path).map_err(S3Error::internal_error)?;
            (entry, objects.insert(key.to_owned(), entry))
        };
        if let Some(replaced) = replaced {
            self.remove_file(bucket, key, replaced)?;
        }
        Ok(entry)
    }

    /// Removes an object; one that is not there is fine unless the condition wants it.
    pub(super) fn delete(&self, bucket: &str, key: &str, condition: &Condition) -> S3Result<()> {
        let removed = {
            let mut buckets = self.buckets.write().expect("no code panics while it holds this lock");
            let objects = buckets.get_mut(bucket).ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchBucket))?;
            condition.check(objects.get(key))?;
            objects.remove(key)
        };
        removed.map_or(Ok(()), |entry| self.remove_file(bucket, key, entry))
    }

    /// One page of a listing.
    pub(super) fn list(&self, bucket: &str, query: &Query<'_>) -> S3Result<Page> {
        let buckets = self.buckets.read().expect("no code panics while it holds this lock");
        let objects = buckets.get(bucket).ok_or_else(|| S3Error::new(S3ErrorCode::NoSuchBucket))?;
        Ok(page(objects, query))
    }

    fn path(&self, bucket: &str, key: &str, entry: Entry) -> PathBuf {
        self.root.join(bucket).join(name::path(key, entry.version))
    }

    fn remove_file(&self, bucket: &str, key: &str, entry: Entry) -> S3Result<()> {
        match fs::remove_file(self.path(bucket, key, entry)) {
            // A test that removes an object's file behind the server's back plays a lost object.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(S3Error::internal_error(error)),
            _ => Ok(()),
        }
    }
}

impl Condition {
    fn check(&self, current: Option<&Entry>) -> S3Result<()> {
        match (self, current) {
            (Condition::Any, _) | (Condition::Absent, None) => Ok(()),
            (Condition::Is(ETagCondition::Any), Some(_)) => Ok(()),
            (Condition::Is(ETagCondition::ETag(wanted)), Some(entry)) if entry.etag().strong_cmp(wanted) => Ok(()),
            (Condition::Is(_), None) => Err(S3Error::new(S3ErrorCode::NoSuchKey)),
            (Condition::Absent | Condition::Is(_), Some(_)) => Err(S3Error::new(S3ErrorCode::PreconditionFailed)),
        }
    }
}

/// Reads one directory of objects; `prefix` is the escaped piece of key that led here.
fn load(directory: &Path, prefix: &str, objects: &mut Objects) -> io::Result<()> {
    for file in fs::read_dir(directory)? {
        let file = file?;
        let Ok(file_name) = file.file_name().into_string() else { continue };
        if let Some(piece) = name::directory_piece(&file_name) {
            load(&file.path(), &format!("{prefix}{piece}"), objects)?;
        } else if let Some((key, version)) = name::parse(prefix, &file_name) {
            let entry = Entry { version, len: file.metadata()?.len() };
            match objects.get(&key) {
                Some(other) if other.version > version => fs::remove_file(file.path())?,
                _ => drop(objects.insert(key, entry)),
            }
        }
    }
    Ok(())
}

fn page(objects: &Objects, query: &Query<'_>) -> Page {
    let mut page = Page::default();
    let mut last = After::Start;
    let mut from = first_bound(query);
    while let Some(bound) = from.take() {
        let rest = (bound.as_ref().map(String::as_str), Bound::Unbounded);
        let Some((key, entry)) = objects.range::<str, _>(rest).next() else { break };
        let Some(tail) = key.strip_prefix(query.prefix) else { break };
        if page.objects.len() + page.prefixes.len() == query.max {
            page.next = Some(last);
            break;
        }
        let cut = if query.delimiter.is_empty() { None } else { tail.find(query.delimiter) };
        if let Some(cut) = cut {
            let common = &key[..query.prefix.len() + cut + query.delimiter.len()];
            page.prefixes.push(common.to_owned());
            last = After::Prefix(common.to_owned());
            from = behind_prefix(common);
        } else {
            page.objects.push((key.clone(), *entry));
            last = After::Key(key.clone());
            from = Some(Bound::Excluded(key.clone()));
        }
    }
    page
}

fn first_bound(query: &Query<'_>) -> Option<Bound<String>> {
    let prefix = query.prefix.to_owned();
    match &query.after {
        After::Prefix(common) => behind_prefix(common),
        After::Key(key) if *key >= prefix => Some(Bound::Excluded(key.clone())),
        After::Key(_) | After::Start => Some(Bound::Included(prefix)),
    }
}

/// The least string behind all that begin with `prefix`; `None` if nothing can be behind them.
fn behind_prefix(prefix: &str) -> Option<Bound<String>> {
    let mut head = prefix.to_owned();
    while let Some(last) = head.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            head.push(next);
            return Some(Bound::Included(head));
        }
    }
    None
}
