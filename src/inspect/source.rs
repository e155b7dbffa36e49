//! Where the bytes come from: a local file, or an object of a storage site.
//!
//! Reads are exact: what ends early, because it was cut while it was read, is an error and never padded.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::store::keys::ObjectKey;
use crate::store::{StorageSite, StoreOptions};

enum Kind {
    File(Arc<File>),
    Object { site: Box<StorageSite>, key: String },
}

/// Something to inspect.
pub(super) struct Source {
    name: String,
    kind: Kind,
    len: u64,
}

impl Source {
    /// Opens a path, or the object at a URL.
    pub(super) async fn open(name: &str, options: &StoreOptions) -> Result<Source> {
        match name.contains("://") {
            true => Source::open_url(name, options).await,
            false => {
                let file = File::open(name).io_context(|| format!("inspect {name}"))?;
                let meta = file.metadata().io_context(|| format!("inspect {name}"))?;
                if !meta.is_file() {
                    let why = "not a regular file; give an object, a log or a map, not the directory it is in";
                    return Err(Error::new(ErrorKind::Invalid, format!("inspect {name}: {why}")));
                }
                Ok(Source { name: name.to_owned(), kind: Kind::File(Arc::new(file)), len: meta.len() })
            }
        }
    }

    async fn open_url(name: &str, options: &StoreOptions) -> Result<Source> {
        // A domain's folder may hold characters that a site's prefix may not, so a bucket is opened at its root.
        let cut = match name.strip_prefix("file://") {
            Some(_) => name.rfind('/'),
            None => name.find("://").and_then(|at| name[at + 3..].find('/').map(|slash| at + 3 + slash)),
        };
        let (site, key) = cut.map_or((name, ""), |at| (&name[..at], &name[at + 1..]));
        if key.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, format!("inspect {name}: the URL names no object")));
        }
        let site = StorageSite::open(site, options).await?;
        let Some(info) = site.head(key).await? else {
            return Err(Error::new(ErrorKind::NotFound, format!("inspect {name}: there is no such object")));
        };
        Ok(Source {
            name: name.to_owned(),
            kind: Kind::Object { site: Box::new(site), key: key.to_owned() },
            len: info.len,
        })
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What the end of its path says that it is; `None` for any other path.
    pub(super) fn expected(&self) -> Option<ObjectKey> {
        let starts = self.name.match_indices('/').map(|(at, _)| at + 1);
        std::iter::once(0).chain(starts).find_map(|at| ObjectKey::parse(&self.name[at..])).map(|(_, key)| key)
    }

    /// Exactly the bytes of `range`, which lies within the length.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        if len == 0 {
            return Ok(Bytes::new());
        }
        match &self.kind {
            Kind::File(file) => {
                let (file, name) = (Arc::clone(file), self.name.clone());
                let read = move || {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, range.start).map(|()| bytes)
                };
                let joined = tokio::task::spawn_blocking(read).await;
                let joined = joined.map_err(|e| Error::with_source(ErrorKind::Internal, format!("read {name}"), e))?;
                joined.map(Bytes::from).io_context(|| format!("read {name}"))
            }
            Kind::Object { site, key } => {
                let fetched = site.get_range(key, range).await?;
                let bytes = fetched.map(|f| f.into_bytes()).unwrap_or_default();
                match bytes.len() == len {
                    true => Ok(bytes),
                    false => {
                        let why = format!("{} bytes came instead of {len}: it changed while it was read", bytes.len());
                        Err(Error::new(ErrorKind::Damaged, format!("read {}: {why}", self.name)))
                    }
                }
            }
        }
    }

    /// `range` in pieces of at most `piece` bytes, each handed to `each`.
    pub(super) async fn read_pieces(&self, range: Range<u64>, piece: u64, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + piece);
            each(&self.read(at..end).await?);
            at = end;
        }
        Ok(())
    }
}
