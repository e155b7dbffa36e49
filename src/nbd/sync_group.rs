//! Many who wait for a sync, and as few syncs as serve them.
//!
//! Owns the count of wishes. A sync serves every wish made before it began; who finds his wish served does not sync.
//! Invariants: one sync at a time; a wish is never served by a sync that had begun before it; a failed sync serves
//! nobody. A wish that is given up (its future dropped) leaves the others as they are.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct SyncGroup {
    wishes: AtomicU64,
    /// Number of the last wish that was served. Held during a sync.
    served: Mutex<u64>,
}

impl SyncGroup {
    /// Returns when a sync that began after this call has ended well: somebody else's, or the one that `sync` makes.
    ///
    /// # Errors
    /// Those of `sync`.
    pub(super) async fn synced<E>(&self, sync: impl AsyncFnOnce() -> Result<(), E>) -> Result<(), E> {
        let mine = self.wishes.fetch_add(1, Ordering::AcqRel) + 1;
        let mut served = self.served.lock().await;
        if *served >= mine {
            return Ok(());
        }
        let covers = self.wishes.load(Ordering::Acquire);
        sync().await?;
        *served = covers;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn those_who_come_during_a_sync_share_the_next_one() {
        let group = SyncGroup::default();
        let syncs = AtomicUsize::new(0);
        let (go, gone) = oneshot::channel::<()>();
        let mut first = Box::pin(group.synced(async || {
            syncs.fetch_add(1, Ordering::Relaxed);
            gone.await.map_err(drop)
        }));
        assert!(first.as_mut().now_or_never().is_none());
        let later = (0..5).map(|_| {
            group.synced(async || {
                syncs.fetch_add(1, Ordering::Relaxed);
                Ok::<(), ()>(())
            })
        });
        let mut later: Vec<_> = later.map(Box::pin).collect();
        for wish in &mut later {
            assert!(wish.as_mut().now_or_never().is_none(), "served by a sync that had begun before");
        }
        go.send(()).unwrap();
        assert_eq!(first.await, Ok(()));
        for wish in later {
            assert_eq!(wish.await, Ok(()));
        }
        assert_eq!(syncs.into_inner(), 2);
    }

    #[tokio::test]
    async fn a_failed_sync_serves_nobody_and_a_dropped_wish_holds_up_nobody() {
        let group = SyncGroup::default();
        let mut stuck = Box::pin(group.synced(async || std::future::pending::<Result<(), ()>>().await));
        assert!(stuck.as_mut().now_or_never().is_none());
        drop(stuck);
        assert_eq!(group.synced(async || Err(5)).await, Err(5));
        assert_eq!(group.synced(async || Ok::<(), i32>(())).await, Ok(()));
    }
}
