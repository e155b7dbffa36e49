//! A protection as the control socket steers it, from before it is claimed to its end.
//!
//! Owns the one place where the command and the socket meet: questions run side by side, changes one at a time. While
//! the domain is being claimed it can be asked and ended; once the protection has ended every request says so.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::RwLock;

use crate::cancel::Cancel;
use crate::capture::VmSource;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;
use crate::protect::{Controlled, HandOverOptions, HandedOver, Observer, Protection};

/// How far it is.
enum Stage {
    // Both are large beside the third.
    Claiming(Box<Observer>),
    Running(Box<Protection>),
    Ended,
}

/// See the module.
pub(super) struct Steering {
    stage: RwLock<Stage>,
    cancel: Cancel,
}

impl Steering {
    /// Tells what `observer` sees, until there is more to steer; `cancel` ends it.
    pub(super) fn new(observer: Observer, cancel: Cancel) -> Arc<Steering> {
        Arc::new(Steering { stage: RwLock::new(Stage::Claiming(Box::new(observer))), cancel })
    }

    /// Steers `protection` from now on.
    pub(super) async fn begin(&self, protection: Protection) {
        *self.stage.write().await = Stage::Running(Box::new(protection));
    }

    /// What `ask` finds out.
    pub(super) async fn with<T>(&self, ask: impl AsyncFnOnce(&Protection) -> T) -> Result<T> {
        match &*self.stage.read().await {
            Stage::Running(protection) => Ok(ask(protection).await),
            other => Err(other.refuse()),
        }
    }

    /// What `change` does.
    async fn change(&self, change: impl AsyncFnOnce(&mut Protection) -> Result<()>) -> Result<()> {
        match &mut *self.stage.write().await {
            Stage::Running(protection) => change(protection).await,
            other => Err(other.refuse()),
        }
    }

    /// Takes it out, once what runs has ended: for the end.
    pub(super) async fn take(&self) -> Result<Protection> {
        let mut stage = self.stage.write().await;
        match std::mem::replace(&mut *stage, Stage::Ended) {
            Stage::Running(protection) => Ok(*protection),
            other => Err(other.refuse()),
        }
    }
}

impl Stage {
    /// Why nothing can be done now.
    fn refuse(&self) -> Error {
        match self {
            Stage::Claiming(_) => Error::new(ErrorKind::Refused, "the domain is not claimed yet; see the status"),
            _ => Error::new(ErrorKind::Cancelled, "the protection has ended"),
        }
    }
}

impl Controlled for Steering {
    fn status(&self) -> BoxFuture<'_, Result<Value>> {
        Box::pin(async {
            let status = match &*self.stage.read().await {
                Stage::Claiming(observer) => observer.status().await,
                Stage::Running(protection) => protection.status().await,
                Stage::Ended => return Err(Stage::Ended.refuse()),
            };
            serde_json::to_value(status)
                .map_err(|e| Error::with_source(ErrorKind::Internal, "put the status into JSON", e))
        })
    }

    fn add(&self, vm: VmSource) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.change(async |protection| protection.add(&[vm]).await).await })
    }

    fn remove_disk<'a>(&'a self, vm: &'a Name, disk: &'a Name) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.change(async |protection| protection.remove(vm, disk).await).await })
    }

    fn flush_point(&self, within: Duration) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.with(async |protection| protection.cut_point(within).await).await? })
    }

    fn hand_over(&self, options: HandOverOptions) -> BoxFuture<'_, Result<HandedOver>> {
        Box::pin(async move {
            let handed = match &mut *self.stage.write().await {
                Stage::Running(protection) => protection.hand_over(options).await,
                other => Err(other.refuse()),
            };
            // Nothing is left to serve.
            handed.inspect(|_| self.cancel.cancel())
        })
    }

    fn turn_down(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.with(async |protection| protection.turn_down().await).await? })
    }

    fn stop(&self) -> BoxFuture<'_, Result<()>> {
        self.cancel.cancel();
        Box::pin(std::future::ready(Ok(())))
    }
}
