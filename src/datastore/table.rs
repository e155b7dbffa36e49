//! The open files of one engine, by id, and the requests that are using each.
//!
//! Owns the map from [`FileId`] to [`OpenFile`] and the count of users. Invariants: an id is never given out twice;
//! once `close` has taken a file out of the map no request can begin to use it; descriptors are closed before
//! `close` returns, and only after the last user is gone.

use std::collections::HashMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::engine::{Access, FileId};
use super::file::{FileOptions, OpenFile};
use crate::error::{Error, ErrorKind, Result};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Files {
    options: FileOptions,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last: u32,
    files: HashMap<FileId, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    file: Arc<OpenFile>,
    users: Arc<Users>,
}

#[derive(Debug, Default)]
struct Users {
    count: Mutex<usize>,
    gone: Condvar,
}

/// The right to use a file; `close` of the file waits until it is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    id: FileId,
    // An Option only so that drop can let go of the file before it counts itself out.
    file: Option<Arc<OpenFile>>,
    users: Arc<Users>,
}

impl Files {
    pub(super) fn new(options: FileOptions) -> Files {
        Files { options, open: Mutex::default() }
    }

    pub(super) fn open(&self, path: &Path, access: Access) -> Result<FileId> {
        let file = Arc::new(OpenFile::open(path, access, &self.options)?);
        let mut open = self.lock();
        open.last = open.last.checked_add(1).ok_or_else(|| {
            Error::new(ErrorKind::Full, "this disk engine has opened 4294967295 files: restart the process")
        })?;
        let id = FileId(open.last);
        open.files.insert(id, Entry { file, users: Arc::default() });
        Ok(id)
    }

    /// Begins to use a file.
    ///
    /// # Errors
    /// `Invalid` when it is not open.
    pub(super) fn enter(&self, id: FileId) -> Result<InUse> {
        let open = self.lock();
        let Entry { file, users } = open.files.get(&id).ok_or_else(|| not_open(id))?.clone();
        *users.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(InUse { id, file: Some(file), users })
    }

    /// Takes a file out, waits for its users, then calls `last`, and closes the descriptors.
    ///
    /// # Errors
    /// `Invalid` when it is not open.
    pub(super) fn close(&self, id: FileId, last: impl FnOnce()) -> Result<()> {
        let Entry { file, users } = self.lock().files.remove(&id).ok_or_else(|| not_open(id))?;
        let mut count = users.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = users.gone.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        last();
        drop(file);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    pub(super) fn id(&self) -> FileId {
        self.id
    }
}

impl Deref for InUse {
    type Target = OpenFile;

    fn deref(&self) -> &OpenFile {
        self.file.as_ref().expect("the file is there until drop")
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.file = None;
        *self.users.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.users.gone.notify_all();
    }
}

fn not_open(id: FileId) -> Error {
    Error::new(ErrorKind::Invalid, format!("file {} of this disk engine is closed or was never open", id.0))
}
