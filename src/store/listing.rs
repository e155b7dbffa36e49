//! Listing an object store: one ascending stream over all pages, gone on with after a failure where it stopped.
//!
//! Invariant: keys come strictly ascending and after the one asked for, whatever the store does: a store that ignores
//! the start is filtered, one that lists in another order ends the stream with an error, because everything that
//! follows a listing relies on the order.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::ObjectInfo;
use super::cloud::{Attempts, Inner};
use super::failure::Failure;
use crate::error::Result;

type Pages = BoxStream<'static, object_store::Result<object_store::ObjectMeta>>;

struct Listing {
    inner: Arc<Inner>,
    prefix: String,
    /// Key of the last object handed out, or the start.
    last: Option<String>,
    pages: Option<Pages>,
}

/// All objects in the folder `prefix` whose keys are greater than `after`.
pub(super) fn list(inner: Arc<Inner>, prefix: &str, after: Option<&str>) -> BoxStream<'static, Result<ObjectInfo>> {
    let listing = Listing { inner, prefix: prefix.to_owned(), last: after.map(str::to_owned), pages: None };
    stream::try_unfold(listing, |mut listing| async move {
        let next = listing.next().await?;
        Ok(next.map(|info| (info, listing)))
    })
    .boxed()
}

impl Listing {
    async fn next(&mut self) -> Result<Option<ObjectInfo>> {
        let inner = Arc::clone(&self.inner);
        let prefix = self.prefix.clone();
        let mut attempts = Attempts::new(&inner, "list", &prefix);
        // The key from which the store was told to go on: up to it, keys are filtered; beyond it they must ascend.
        let mut start = None;
        loop {
            if self.pages.is_none() {
                self.pages = Some(self.open()?);
                start = self.last.clone();
            }
            let Some(pages) = self.pages.as_mut() else { continue };
            match pages.next().await {
                None => return Ok(None),
                Some(Err(e)) => {
                    self.pages = None;
                    attempts.failed(Failure::of(&e)).await?;
                }
                Some(Ok(meta)) => {
                    let info = inner.info(meta)?;
                    match &self.last {
                        Some(last) if info.key <= *last && start.as_ref() == Some(last) => {}
                        Some(last) if info.key <= *last => {
                            let why = "the store does not list in ascending order; use another store";
                            return Err(inner.error("list", &info.key, why));
                        }
                        _ => {
                            self.last = Some(info.key.clone());
                            return Ok(Some(info));
                        }
                    }
                }
            }
        }
    }

    fn open(&self) -> Result<Pages> {
        let folder = self.inner.folder(&self.prefix)?;
        Ok(match &self.last {
            Some(last) => self.inner.store.list_with_offset(Some(&folder), &self.inner.path(last)?),
            None => self.inner.store.list(Some(&folder)),
        })
    }
}
