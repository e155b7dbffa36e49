//! How a protection stands while it is being claimed, for those who ask meanwhile. Looks, and changes nothing.

use std::sync::Arc;
use std::time::Instant;

use super::coverage::Members;
use super::health::Health;
use super::report::ProtectStatus;
use super::request::ProtectRequest;
use super::status;
use crate::store::StorageSite;

/// See the module. Made by [`super::Protection::observer`].
pub struct Observer {
    pub(super) request: ProtectRequest,
    pub(super) members: Arc<Members>,
    pub(super) health: Arc<Health>,
    pub(super) site: StorageSite,
    pub(super) began: Instant,
}

impl Observer {
    /// How it stands now.
    pub async fn status(&self) -> ProtectStatus {
        let seconds = self.began.elapsed().as_secs();
        status::of(&self.request, &self.members, &self.health, None, &self.site, seconds).await
    }
}
