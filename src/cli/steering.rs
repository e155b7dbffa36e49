//! A running protection as the control socket steers it.
//!
//! Owns the one place where the command and the socket meet: questions run side by side, changes one at a time. Once
//! the protection has ended every request says so.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::RwLock;

use crate::cancel::Cancel;
use crate::capture::VmSource;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;
use crate::protect::{Controlled, Protection};

/// See the module.
pub(super) struct Steering {
    protection: RwLock<Option<Protection>>,
    cancel: Cancel,
}

impl Steering {
    /// Steers `protection`; `cancel` ends it.
    pub(super) fn new(protection: Protection, cancel: Cancel) -> Arc<Steering> {
        Arc::new(Steering { protection: RwLock::new(Some(protection)), cancel })
    }

    /// What `ask` finds out.
    pub(super) async fn with<T>(&self, ask: impl AsyncFnOnce(&Protection) -> T) -> Result<T> {
        match self.protection.read().await.as_ref() {
            Some(protection) => Ok(ask(protection).await),
            None => Err(ended()),
        }
    }

    /// Takes it out, once what runs has ended: for the end.
    pub(super) async fn take(&self) -> Result<Protection> {
        self.protection.write().await.take().ok_or_else(ended)
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Cancelled, "the protection has ended")
}

impl Controlled for Steering {
    fn status(&self) -> BoxFuture<'_, Result<Value>> {
        Box::pin(async {
            let status = self.with(async |protection| protection.status().await).await?;
            serde_json::to_value(status)
                .map_err(|e| Error::with_source(ErrorKind::Internal, "put the status into JSON", e))
        })
    }

    fn add(&self, vm: VmSource) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut protection = self.protection.write().await;
            protection.as_mut().ok_or_else(ended)?.add(&[vm]).await
        })
    }

    fn remove_disk<'a>(&'a self, vm: &'a Name, disk: &'a Name) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut protection = self.protection.write().await;
            protection.as_mut().ok_or_else(ended)?.remove(vm, disk).await
        })
    }

    fn flush_point(&self, within: Duration) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.with(async |protection| protection.cut_point(within).await).await? })
    }

    fn stop(&self) -> BoxFuture<'_, Result<()>> {
        self.cancel.cancel();
        Box::pin(std::future::ready(Ok(())))
    }
}
