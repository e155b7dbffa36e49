//! The exports of a server by name, which come and go while it runs.
//!
//! Owns the names and, for each export, how many requests are in flight. Invariants: once a removal has begun no
//! further request begins; the removal ends when none is in flight, and from then on nothing here holds the export,
//! whatever clients stay connected.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use super::export::{Export, ExportInfo};
use crate::error::{Error, ErrorKind, Result};

/// Longest name of an export in bytes: the protocol's longest string.
const MAX_NAME: usize = 4096;

/// Added to the count of an export for each request; the lowest bit says that it is being removed.
const ONE: usize = 2;
const CLOSED: usize = 1;

/// See the module's head. Clones share the exports.
#[derive(Clone, Default)]
pub struct Exports {
    by_name: Arc<RwLock<BTreeMap<String, Arc<Entry>>>>,
}

impl Exports {
    /// None yet.
    pub fn new() -> Exports {
        Exports::default()
    }

    /// Serves `export` under `name` from now on. As long as it is the only one it is also the default export, which a
    /// client gets that gives no name.
    ///
    /// # Errors
    /// `Invalid` for a name that clients cannot ask for; `Refused` when there is one of that name.
    pub fn add(&self, name: &str, export: Arc<dyn Export>) -> Result<()> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            let text = format!("export {name:?}: a name has 1 to {MAX_NAME} bytes and no zero byte");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if by_name.contains_key(name) {
            return Err(Error::new(ErrorKind::Refused, format!("export {name:?}: there is one of that name")));
        }
        let entry = Entry {
            name: name.to_owned(),
            export: RwLock::new(Some(export)),
            state: AtomicUsize::new(0),
            idle: Notify::new(),
        };
        by_name.insert(name.to_owned(), Arc::new(entry));
        Ok(())
    }

    /// Ends the service of an export: requests that begin from now on are refused with `ESHUTDOWN`; returns it when
    /// those in flight have ended.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub async fn remove(&self, name: &str) -> Result<Arc<dyn Export>> {
        let entry = self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let entry = entry.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("export {name:?}: there is none")))?;
        entry.close().await;
        let export = entry.export.write().unwrap_or_else(PoisonError::into_inner).take();
        export.ok_or_else(|| Error::new(ErrorKind::Internal, format!("export {name:?}: was removed twice")))
    }

    /// Names in order.
    pub fn names(&self) -> Vec<String> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// All exports in the order of their names.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The export that a client means by `name`; the empty name is the only export, where there is only one.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Entry>> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        match (name, by_name.len()) {
            ("", 1) => by_name.values().next().cloned(),
            _ => by_name.get(name).cloned(),
        }
    }
}

impl fmt::Debug for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exports").field(&self.names()).finish()
    }
}

/// One export, and the count of its requests.
pub(super) struct Entry {
    name: String,
    /// There until it is removed.
    export: RwLock<Option<Arc<dyn Export>>>,
    state: AtomicUsize,
    idle: Notify,
}

impl Entry {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What clients are told of it; `None` once it is removed.
    pub(super) fn info(&self) -> Option<ExportInfo> {
        self.export.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|export| export.info())
    }

    /// The export, for a request that has begun and not ended.
    pub(super) fn in_use(&self) -> Arc<dyn Export> {
        let export = self.export.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(export.as_ref().expect("a removal waits for every request that has begun"))
    }

    /// Begins a request, to be ended by [`Entry::leave`]; `false` when the export is being removed.
    pub(super) fn enter(&self) -> bool {
        let before = self.state.fetch_add(ONE, Ordering::AcqRel);
        if before & CLOSED == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Ends a request.
    pub(super) fn leave(&self) {
        if self.state.fetch_sub(ONE, Ordering::AcqRel) == ONE + CLOSED {
            self.idle.notify_waiters();
        }
    }

    async fn close(&self) {
        let idle = self.idle.notified();
        tokio::pin!(idle);
        // Before the count is looked at, so that whoever leaves in between wakes us.
        idle.as_mut().enable();
        if self.state.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED == 0 {
            return;
        }
        while self.state.load(Ordering::Acquire) != CLOSED {
            idle.as_mut().await;
            idle.set(self.idle.notified());
            idle.as_mut().enable();
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).field("state", &self.state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::{Answer, BlockStatus, Payload, ZeroMode};
    use futures::FutureExt;

    struct Nothing;

    impl Export for Nothing {
        fn info(&self) -> ExportInfo {
            ExportInfo::new(0)
        }
        fn read(self: Arc<Self>, _: u64, into: Payload) -> Answer<Payload> {
            Box::pin(async { Ok(into) })
        }
        fn write(self: Arc<Self>, _: u64, _: Payload, _: bool) -> Answer<()> {
            Box::pin(async { Ok(()) })
        }
        fn flush(self: Arc<Self>) -> Answer<()> {
            Box::pin(async { Ok(()) })
        }
        fn trim(self: Arc<Self>, _: u64, _: u64, _: bool) -> Answer<()> {
            Box::pin(async { Ok(()) })
        }
        fn write_zeroes(self: Arc<Self>, _: u64, _: u64, _: ZeroMode, _: bool) -> Answer<()> {
            Box::pin(async { Ok(()) })
        }
        fn extents(self: Arc<Self>, _: u64, _: u64, _: bool) -> Answer<Vec<BlockStatus>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    #[test]
    fn names_are_checked_and_the_empty_one_means_the_only_export() {
        let exports = Exports::new();
        exports.add("b", Arc::new(Nothing)).unwrap();
        assert_eq!(exports.find("").unwrap().name(), "b");
        exports.add("a", Arc::new(Nothing)).unwrap();
        assert!(exports.find("").is_none());
        assert_eq!(exports.find("a").unwrap().name(), "a");
        assert_eq!(exports.names(), ["a", "b"]);
        assert_eq!(exports.add("a", Arc::new(Nothing)).unwrap_err().kind(), ErrorKind::Refused);
        for bad in ["", "a\0b", &"x".repeat(4097)] {
            assert_eq!(exports.add(bad, Arc::new(Nothing)).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[tokio::test]
    async fn a_removal_waits_for_requests_in_flight_and_lets_none_begin() {
        let exports = Exports::new();
        exports.add("a", Arc::new(Nothing)).unwrap();
        let entry = exports.find("a").unwrap();
        assert!(entry.enter() && entry.enter());
        let mut removal = Box::pin(exports.remove("a"));
        assert!(removal.as_mut().now_or_never().is_none());
        assert!(!entry.enter(), "a request began during the removal");
        assert!(exports.find("a").is_none());
        entry.leave();
        assert!(removal.as_mut().now_or_never().is_none());
        entry.leave();
        removal.await.unwrap();
        assert_eq!(exports.remove("a").await.err().unwrap().kind(), ErrorKind::NotFound);
    }
}
