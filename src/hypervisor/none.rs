//! The hypervisor of a site that has none: it knows no VM, and says what to set where one is wanted.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::{Hypervisor, OffEvidence, PowerState, VmEntry, VmSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHypervisor;

fn none<T>() -> Result<T> {
    let why = "no hypervisor is set up at this site: nothing can define or start a VM here";
    Err(Error::new(ErrorKind::Unsupported, format!("{why}; set hypervisor.kind in the settings")))
}

#[async_trait]
impl Hypervisor for NoHypervisor {
    fn describe(&self) -> String {
        "no hypervisor".to_owned()
    }

    async fn inventory(&self) -> Result<Vec<VmEntry>> {
        none()
    }

    async fn networks(&self) -> Result<Option<Vec<String>>> {
        none()
    }

    fn addressing(&self) -> std::result::Result<&'static str, String> {
        none().map_err(|e| e.to_string())
    }

    async fn define(&self, _: &VmSpec) -> Result<Vec<String>> {
        none()
    }

    async fn undefine(&self, _: &Name) -> Result<()> {
        none()
    }

    async fn start(&self, _: &Name) -> Result<()> {
        none()
    }

    async fn shutdown(&self, _: &Name, _: Duration) -> Result<bool> {
        none()
    }

    async fn power_off(&self, _: &Name) -> Result<()> {
        none()
    }

    async fn state(&self, _: &Name) -> Result<PowerState> {
        none()
    }

    async fn freeze(&self, _: &Name, _: Duration) -> Result<bool> {
        none()
    }

    async fn thaw(&self, _: &Name, _: Duration) -> Result<()> {
        none()
    }

    async fn agent(&self, _: &Name, _: bool, _: Duration) -> Result<Option<Vec<IpAddr>>> {
        none()
    }

    fn agent_problem(&self, _: &VmSpec) -> Option<String> {
        none::<()>().err().map(|e| e.to_string())
    }

    async fn off_evidence(&self, _: &Name) -> Result<OffEvidence> {
        none()
    }
}
