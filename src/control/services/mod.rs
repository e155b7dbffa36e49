//! The services of the API: each checks what it was sent, has the appliance do it, and answers. They decide nothing else.
//!
//! What changes something goes through [`Appliance::act`]: carried out to its end though the caller goes, and written down.

mod convert;
mod domains;
mod erase;
mod events;
mod failover;
mod fields;
mod guests;
mod points;
mod runbooks;
mod site;
mod stores;
mod tasks;
mod vms;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Extensions, Status};

use super::access::Caller;
use super::appliance::Appliance;
use super::fault::{Done, Fault};
use crate::error::{Error, ErrorKind};

/// Messages that come over time.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services, on one appliance.
#[derive(Clone)]
pub(crate) struct Services {
    pub(super) app: Arc<Appliance>,
}

impl Services {
    pub(crate) fn new(app: Arc<Appliance>) -> Services {
        Services { app }
    }
}

/// Who asks, as the gate has found out.
fn caller(extensions: &Extensions) -> Done<Caller> {
    let caller = extensions.get::<Caller>().cloned();
    caller.ok_or_else(|| Fault::from(Error::new(ErrorKind::Internal, "a call came past the gate")))
}
