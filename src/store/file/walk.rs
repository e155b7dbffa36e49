//! Listing a directory tree as an object store lists keys: ascending by the bytes of the whole key.
//!
//! One folder's entries are in memory at a time, plus those of the folders above it; symbolic links and other special
//! files are not objects. A folder that comes after the walk began may be missed, as on an object store.

use std::fs::FileType;
use std::sync::Arc;

use futures::stream::{self, BoxStream};

use super::{Inner, absent, blocking, create, info};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectInfo;

/// Objects handed over at a time.
const BATCH: usize = 1000;

/// An entry on the way: name as key, a folder with a slash at its end so that it sorts as its objects' keys do.
struct Walk {
    inner: Arc<Inner>,
    after: Option<String>,
    /// Entries still to be visited, the next one last, for each folder on the path to where the walk is.
    stack: Vec<Vec<String>>,
}

/// All objects in `folder` whose keys are greater than `after`.
pub(super) fn list(inner: Arc<Inner>, folder: String, after: Option<String>) -> BoxStream<'static, Result<ObjectInfo>> {
    let root = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let walk = Walk { inner, after, stack: vec![vec![root]] };
    let batches = stream::try_unfold(Some(walk), |walk| async move {
        let Some(mut walk) = walk else { return Ok(None) };
        let (batch, walk) = blocking(move || {
            let batch = walk.batch()?;
            let more = !walk.stack.is_empty();
            Ok((batch, more.then_some(walk)))
        })
        .await?;
        Ok(Some((stream::iter(batch.into_iter().map(Ok)), walk)))
    });
    Box::pin(futures::TryStreamExt::try_flatten(batches))
}

impl Walk {
    fn batch(&mut self) -> Result<Vec<ObjectInfo>> {
        let mut found = Vec::new();
        while found.len() < BATCH {
            let Some(level) = self.stack.last_mut() else { break };
            match level.pop() {
                None => drop(self.stack.pop()),
                Some(key) if key.is_empty() || key.ends_with('/') => {
                    let entries = self.entries(&key)?;
                    self.stack.push(entries);
                }
                Some(key) => found.extend(self.object(key)?),
            }
        }
        Ok(found)
    }

    /// Entries of a folder that can hold keys after `after`, descending.
    fn entries(&self, folder: &str) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for (name, kind) in read_dir(&self.inner, folder)? {
            let key = match kind {
                k if k.is_dir() => format!("{folder}{name}/"),
                k if k.is_file() => format!("{folder}{name}"),
                _ => continue,
            };
            let wanted = match &self.after {
                Some(after) => key.as_str() > after.as_str() || (key.ends_with('/') && after.starts_with(&key)),
                None => true,
            };
            if wanted {
                keys.push(key);
            }
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
        Ok(keys)
    }

    fn object(&self, key: String) -> Result<Option<ObjectInfo>> {
        let path = self.inner.root.join(&key);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) => Ok(Some(info(key, &meta))),
            Err(e) if absent(&e) => Ok(None),
            Err(e) => Err(self.inner.error("read the length of", &path, e)),
        }
    }
}

/// Names of the folders directly within `folder`, ascending.
pub(super) fn dirs(inner: &Inner, folder: &str) -> Result<Vec<String>> {
    let entries = read_dir(inner, folder)?;
    let mut names: Vec<String> = entries.into_iter().filter(|(_, k)| k.is_dir()).map(|(n, _)| n).collect();
    names.sort_unstable();
    Ok(names)
}

/// Names and kinds in a folder; none if it is missing, which the site's own directory may not be. Names that are not UTF-8 and temporary files are no objects.
fn read_dir(inner: &Inner, folder: &str) -> Result<Vec<(String, FileType)>> {
    let path = inner.root.join(folder);
    let failed = |e| inner.error("list", &path, e);
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if absent(&e) && !folder.is_empty() => return Ok(Vec::new()),
        Err(e) if absent(&e) => {
            let why = "the directory does not exist; create it, or correct the URL";
            return Err(Error::with_source(ErrorKind::NotFound, format!("storage site {}: {why}", inner.url), e));
        }
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !create::is_temporary(&name) {
            found.push((name, entry.file_type().map_err(failed)?));
        }
    }
    Ok(found)
}
