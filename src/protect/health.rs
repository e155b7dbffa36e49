//! What is wrong with a protected domain, for its status and for those who must act on it.
//!
//! Owns the first lasting fault, whether this writer was superseded, and the store's latest answer. Lasting things never
//! go away by themselves; the store's word changes with each request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind};

#[derive(Debug, Default)]
struct State {
    fenced: Option<String>,
    fault: Option<String>,
    store: Option<(Instant, String)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// What `state` says, for those who ask at every write.
    fenced: AtomicBool,
    state: Mutex<State>,
    worsened: Notify,
}

/// A copy of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Why this writer is not the writer any more.
    pub(crate) fenced: Option<String>,
    /// What stopped capture or shipping for good.
    pub(crate) fault: Option<String>,
    /// Since how many seconds the store does not do what it is asked, and what it says.
    pub(crate) store: Option<(u64, String)>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store did what it was asked.
    pub(crate) fn store_answers(&self) {
        if let Some((since, _)) = self.lock().store.take() {
            tracing::info!("the storage site answers again, after {} s", since.elapsed().as_secs());
        }
    }

    /// It did not.
    pub(crate) fn store_fails(&self, error: &Error) {
        let mut state = self.lock();
        match &mut state.store {
            Some((_, text)) => *text = error.to_string(),
            None => {
                tracing::warn!("the storage site does not do what it is asked: {error}");
                state.store = Some((Instant::now(), error.to_string()));
            }
        }
    }

    /// Something ended for good.
    pub(crate) fn fail(&self, error: &Error) {
        tracing::error!("{error}");
        {
            let mut state = self.lock();
            let place = if error.kind() == ErrorKind::Fenced { &mut state.fenced } else { &mut state.fault };
            place.get_or_insert_with(|| error.to_string());
            self.fenced.store(state.fenced.is_some(), Ordering::Release);
        }
        self.worsened.notify_waiters();
    }

    /// Whether another writer took over.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Whether capture and shipping can go on.
    pub(crate) fn is_sound(&self) -> bool {
        let state = self.lock();
        state.fenced.is_none() && state.fault.is_none()
    }

    /// All of it.
    pub(crate) fn findings(&self) -> Findings {
        let state = self.lock();
        Findings {
            fenced: state.fenced.clone(),
            fault: state.fault.clone(),
            store: state.store.as_ref().map(|(since, text)| (since.elapsed().as_secs(), text.clone())),
        }
    }

    /// Resolves once something lasting is wrong.
    pub(crate) async fn worsened(&self) {
        loop {
            let told = self.worsened.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !self.is_sound() {
                return;
            }
            told.await;
        }
    }
}
