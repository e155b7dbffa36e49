//! Domains as those who watch them see them: however many watch one, it is looked at once a second for all of them.
//!
//! Owns the last view of each domain that is watched, as long as anybody watches it. Who asks for a domain without
//! watching it is not served from here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::fault::Done;
use super::proto;
use crate::ids::Name;

/// Age up to which a view serves another watcher: less than the time between two looks of one, who else would be told
/// what it was told before.
const FRESH: Duration = Duration::from_millis(900);

/// The last view of one domain; locked while the next one is made.
#[derive(Debug, Default)]
pub(super) struct Shared(tokio::sync::Mutex<Option<(Instant, proto::Domain)>>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watched {
    shared: Mutex<HashMap<Name, Weak<Shared>>>,
}

impl Watched {
    /// What all who watch a domain share. It is held as long as it is watched.
    pub(super) fn join(&self, domain: &Name) -> Arc<Shared> {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = all.get(domain).and_then(Weak::upgrade) {
            return shared;
        }
        all.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared::default());
        all.insert(domain.clone(), Arc::downgrade(&shared));
        shared
    }
}

impl Shared {
    /// The domain as it is now, or was a moment ago when another one saw it: `view` is made only where nobody just did.
    ///
    /// # Errors
    /// What `view` says; nobody else is told that.
    pub(super) async fn view(&self, view: impl Future<Output = Done<proto::Domain>>) -> Done<proto::Domain> {
        self.no_older_than(FRESH, view).await
    }

    async fn no_older_than(
        &self,
        fresh: Duration,
        view: impl Future<Output = Done<proto::Domain>>,
    ) -> Done<proto::Domain> {
        let mut last = self.0.lock().await;
        if let Some((at, domain)) = &*last
            && at.elapsed() < fresh
        {
            return Ok(domain.clone());
        }
        let domain = view.await?;
        *last = Some((Instant::now(), domain.clone()));
        Ok(domain)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::control::fault::Fault;

    #[tokio::test]
    async fn many_who_watch_cost_one_look_and_nothing_stays_of_them() {
        const LONG: Duration = Duration::from_secs(3600);
        let (watched, made, name) = (Watched::default(), AtomicU64::new(0), Name::new("d").unwrap());
        let view = async || {
            tokio::task::yield_now().await;
            let generation = made.fetch_add(1, Relaxed) + 1;
            Ok(proto::Domain { generation, ..proto::Domain::default() })
        };
        let watchers: Vec<_> = (0..10).map(|_| watched.join(&name)).collect();
        let failed = watchers[0].view(async { Err(Fault::refused("no")) });
        assert!(failed.await.is_err(), "and that is nobody else's");
        let views = watchers.iter().map(|shared| shared.no_older_than(LONG, view()));
        let seen = futures::future::join_all(views).await;
        assert!(seen.into_iter().all(|domain| domain.unwrap().generation == 1));
        // What is too old serves nobody.
        assert_eq!(watchers[1].no_older_than(Duration::ZERO, view()).await.unwrap().generation, 2);
        drop(watchers);
        let _other = watched.join(&Name::new("e").unwrap());
        assert_eq!(watched.shared.lock().unwrap().len(), 1);
    }
}
