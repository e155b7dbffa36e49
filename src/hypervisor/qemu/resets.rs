//! Resets of guests, heard on a monitor of their own: QEMU tells events to whoever is connected, and keeps none.
//!
//! ```text
//! guest runs -> connected within a moment -> RESET -> counted; the guest ends -> so does the connection
//! ```
//!
//! Owns the hearing: one connection for each guest, of a bounded number. Never asks anything: that is done on the other
//! monitor, where nobody stays. A guest that was started by a program without this has no such monitor, and is not heard.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::command::EVENTS;
use super::qmp::Qmp;
use super::{QUIT, QemuDriver};
use crate::error::Result;
use crate::hypervisor::restarts::Restarts;
use crate::ids::Name;

/// Between two looks for guests that are not heard.
const LOOK: Duration = Duration::from_secs(2);
/// Most guests that are heard at once.
const GUESTS: usize = 1024;

impl QemuDriver {
    /// Which guests started anew by themselves, by the resets that were heard.
    pub(super) fn restarts(&self) -> MutexGuard<'_, Restarts> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts resets of guests for as long as this is waited for.
    pub(super) async fn hear_resets(&self) {
        let (mut heard, mut hearing) = (BTreeSet::new(), FuturesUnordered::new());
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = looks.tick() => match self.running() {
                    Ok(running) => for vm in running {
                        if heard.len() < GUESTS && heard.insert(vm.clone()) {
                            hearing.push(self.hear(vm));
                        }
                    },
                    Err(error) => tracing::debug!("guests that run are not looked for: {error}"),
                },
                Some(ended) = hearing.next(), if !hearing.is_empty() => drop(heard.remove(&ended)),
            }
        }
    }

    /// Counts the resets of one guest until it ends, or cannot be heard.
    async fn hear(&self, vm: Name) -> Name {
        let folder = self.folder(&vm);
        let heard: Result<()> = async {
            let mut qmp = Qmp::connect(folder.path(), EVENTS, QUIT).await?;
            loop {
                if qmp.event().await? == "RESET" {
                    self.restarts().note(&vm, Instant::now());
                }
            }
        }
        .await;
        if let Err(error) = heard {
            tracing::debug!(%vm, "its resets are not heard: {error}");
        }
        vm
    }

    /// VMs with a process.
    fn running(&self) -> Result<Vec<Name>> {
        let mut known = self.folders()?;
        known.retain(|vm| self.folder(vm).is_alive().unwrap_or(false));
        Ok(known)
    }
}
