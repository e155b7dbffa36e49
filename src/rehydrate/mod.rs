//! Rehydration: a domain's disks at a site are brought up to a point.
//!
//! ```text
//! manifest + pages -> plan -> range GETs -> verify -> decode -> verify -> disks          (base)
//! next segment     ->         range GETs -> verify -> replication log -> decode -> apply at a point -> disks
//! ```

mod request;

pub use request::{
    DEFAULT_LOG_SIZE, DEFAULT_MEMORY, Damage, MIN_MEMORY, Mode, RehydrateReport, RehydrateRequest, RehydratedDisk,
    Target,
};

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::store::StorageSite;

/// Brings the disks of a domain to a point, and in [`Mode::Continuous`] goes on with every new one.
///
/// # Errors
/// Nothing is lost by any of them: run it again to go on. Damage is no error: see [`RehydrateReport::damage`].
pub async fn rehydrate(
    _site: &StorageSite,
    request: RehydrateRequest,
    _progress: Arc<Progress>,
    _cancel: Cancel,
) -> Result<RehydrateReport> {
    request.validate()?;
    Err(Error::new(ErrorKind::Unsupported, "rehydrate is not in this build yet"))
}
