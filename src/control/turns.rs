//! Whose turn it is to change a domain: one at a time, and whoever comes meanwhile is told who is at it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

/// Longest wait for one's turn.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Turn {
    lock: Arc<tokio::sync::Mutex<()>>,
    holder: String,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub(crate) struct Turns {
    turns: Arc<Mutex<HashMap<Name, Turn>>>,
}

/// A turn, as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    turns: Turns,
    domain: Name,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Turn>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one's turn at `domain`; `who` says who does what, for those who come meanwhile.
    ///
    /// # Errors
    /// `Refused` where the one before takes too long, naming it.
    pub(crate) async fn take(&self, domain: &Name, who: &str) -> Result<Held> {
        self.take_within(domain, who, PATIENCE).await
    }

    async fn take_within(&self, domain: &Name, who: &str, patience: Duration) -> Result<Held> {
        let mut held = Held { turns: self.clone(), domain: domain.clone(), guard: None };
        let lock = Arc::clone(&self.lock().entry(domain.clone()).or_default().lock);
        match tokio::time::timeout(patience, lock.lock_owned()).await {
            Ok(guard) => {
                if let Some(turn) = self.lock().get_mut(domain) {
                    who.clone_into(&mut turn.holder);
                }
                held.guard = Some(guard);
                Ok(held)
            }
            Err(_) => {
                let holder = self.lock().get(domain).map(|turn| turn.holder.clone()).unwrap_or_default();
                let why = format!("domain {domain} is being changed: {holder}");
                Err(Error::new(ErrorKind::Refused, format!("{why}; ask again when that has ended")))
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = self.turns.lock();
        // Nobody holds it or waits for it: names that were asked for once are not kept.
        if turns.get(&self.domain).is_some_and(|turn| Arc::strong_count(&turn.lock) == 1) {
            turns.remove(&self.domain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_is_at_it_the_other_is_told_who_and_nothing_is_kept() {
        let (turns, domain) = (Turns::default(), Name::new("d").unwrap());
        let first = turns.take(&domain, "alice protects web").await.unwrap();
        let refused = turns.take_within(&domain, "bob", Duration::from_millis(1)).await.unwrap_err();
        assert!(
            refused.kind() == ErrorKind::Refused && refused.to_string().contains("alice protects web"),
            "{refused}"
        );
        let other = turns.take(&Name::new("other").unwrap(), "carol").await.unwrap();
        let waiting = {
            let turns = turns.clone();
            let domain = domain.clone();
            tokio::spawn(async move { turns.take(&domain, "bob").await })
        };
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        drop((second, other));
        assert!(turns.lock().is_empty());
    }
}
