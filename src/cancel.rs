//! Asking work to stop: set once, seen by threads and tasks alike. What is durable stays so.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};

/// A flag that is set once. Clones share it.
#[derive(Debug, Clone)]
pub struct Cancel {
    flag: Arc<watch::Sender<bool>>,
}

impl Default for Cancel {
    fn default() -> Self {
        Cancel { flag: Arc::new(watch::Sender::new(false)) }
    }
}

impl Cancel {
    /// Not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks all work that holds a clone to stop.
    pub fn cancel(&self) {
        self.flag.send_replace(true);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        *self.flag.borrow()
    }

    /// Fails once it was asked to stop.
    pub fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(stopped()),
            false => Ok(()),
        }
    }

    /// What `work` answers, or an error as soon as it is asked to stop; then `work` is dropped where it stands.
    pub async fn or_stop<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.cancelled() => Err(stopped()),
        }
    }

    /// Waits until it is asked to stop.
    pub async fn cancelled(&self) {
        // The sender lives as long as this clone, so waiting cannot fail.
        let _ = self.flag.subscribe().wait_for(|set| *set).await;
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped as asked; run it again to go on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clones_see_it_and_waiting_ends() {
        let cancel = Cancel::new();
        let clone = cancel.clone();
        assert!(clone.check().is_ok());
        let waiting = tokio::spawn(async move { clone.cancelled().await });
        cancel.cancel();
        waiting.await.unwrap();
        assert_eq!(cancel.check().unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
