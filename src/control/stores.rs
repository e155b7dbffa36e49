//! Storage sites that are open: one client for each, made when it is first needed and shared by all who work with it.
//!
//! Owns the way from a record of the catalog to a client. Credentials are read here, from the options file and the
//! environment, and go to the client only. A record that was changed is opened anew.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::catalog::{Catalog, StoreRecord};
use crate::error::{Result, ResultExt};
use crate::ids::{Name, Time};
use crate::store::{StorageSite, StoreOptions};

/// See the module.
#[derive(Debug)]
pub(crate) struct OpenStores {
    catalog: Catalog,
    open: Mutex<HashMap<Name, Opened>>,
}

struct Opened {
    record: StoreRecord,
    site: StorageSite,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.record.url)
    }
}

impl OpenStores {
    pub(crate) fn new(catalog: Catalog) -> OpenStores {
        OpenStores { catalog, open: Mutex::default() }
    }

    /// The client of a storage site of the catalog. Sends no request.
    ///
    /// # Errors
    /// `NotFound` for the name; what the options file says.
    pub(crate) async fn open(&self, name: &Name) -> Result<StorageSite> {
        let which = name.clone();
        let record = self.catalog.call(move |db| StoreRecord::get(db, &which)).await?;
        if let Some(opened) = self.lock().get(name)
            && (&opened.record.url, &opened.record.options_file) == (&record.url, &record.options_file)
        {
            return Ok(opened.site.clone());
        }
        let site = open_at(&record.url, record.options_file.as_deref()).await;
        let site = site.while_doing(|| format!("storage site {name}"))?;
        self.lock().insert(name.clone(), Opened { record, site: site.clone() });
        Ok(site)
    }

    /// The next one to ask opens it anew, as after its credentials changed.
    pub(crate) fn close(&self, name: &Name) {
        self.lock().remove(name);
    }

    /// The clock of a storage site, as far as it was heard from: the offset to this machine's that was last seen counts,
    /// also while the site is away. `None` for one that was not opened yet.
    pub(crate) fn now(&self, name: &Name) -> Option<Time> {
        self.lock().get(name).map(|opened| opened.site.now())
    }

    /// What is open, for figures.
    pub(crate) fn all(&self) -> Vec<(Name, StorageSite)> {
        self.lock().iter().map(|(name, opened)| (name.clone(), opened.site.clone())).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Opened>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client for `url`. Sends no request.
///
/// # Errors
/// `Invalid` for URL or options.
pub(crate) async fn open_at(url: &str, options_file: Option<&Path>) -> Result<StorageSite> {
    let file = options_file.map(Path::to_owned);
    let options = tokio::task::spawn_blocking(move || StoreOptions::load(file.as_deref())).await;
    let options = options.map_err(|e| {
        crate::error::Error::with_source(crate::error::ErrorKind::Internal, "reading the options panicked", e)
    })??;
    StorageSite::open(url, &options).await
}
