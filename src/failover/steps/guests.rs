//! Defining VMs at this site, starting them, and forgetting them.

use super::{Context, Ran, changed_hands};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::shape;
use crate::hypervisor::{PowerState, VmSpec};
use crate::ids::Name;

impl Context {
    /// The VMs that take part, as the protected site knows them.
    async fn guests(&self) -> Result<Vec<VmSpec>> {
        let mut guests = self.world.guests(self.domain()).await?;
        guests.retain(|g| self.task.learned.vms.contains(&g.name));
        match self.task.learned.vms.iter().find(|vm| !guests.iter().any(|g| g.name == **vm)) {
            None => Ok(guests),
            Some(vm) => {
                let why = format!("VM {vm} of domain {} has no disks at this site", self.domain());
                Err(Error::new(ErrorKind::NotFound, why))
            }
        }
    }

    pub(super) async fn define(&mut self) -> Result<Ran> {
        let plan = self.plan()?;
        let hypervisor = self.world.hypervisor();
        for guest in self.guests().await? {
            let spec = shape::apply(guest, &plan);
            if hypervisor.state(&spec.name).await? == PowerState::Running {
                let why = format!("VM {} runs already on {}", spec.name, hypervisor.describe());
                let remedy = "it may have disks that are not those of the domain; switch it off";
                return Err(Error::new(ErrorKind::Refused, format!("{why}: {remedy}")));
            }
            for change in hypervisor.define(&spec).await? {
                self.note(format!("VM {}: {change}", spec.name));
            }
        }
        self.note(format!("{} VMs defined on {}", self.task.learned.vms.len(), hypervisor.describe()));
        Ran::nothing()
    }

    pub(super) async fn start(&mut self, vm: &Name) -> Result<Ran> {
        let facts = self.facts().await?;
        if !facts.is_owner() {
            return Err(changed_hands(&facts));
        }
        if !facts.protecting {
            let why = format!("domain {} is not protected here now: VM {vm} has no disks", facts.domain);
            return Err(Error::new(ErrorKind::Unreachable, why));
        }
        let hypervisor = self.world.hypervisor();
        match hypervisor.state(vm).await? {
            PowerState::Running => return Ran::nothing(),
            PowerState::Absent => {
                let why = format!("VM {vm} is not defined on {} any more", hypervisor.describe());
                return Err(Error::new(ErrorKind::NotFound, why));
            }
            PowerState::Off => hypervisor.start(vm).await?,
        }
        match hypervisor.state(vm).await? {
            PowerState::Running => Ran::nothing(),
            _ => {
                let why = format!("VM {vm} was started on {} and does not run", hypervisor.describe());
                Err(Error::new(ErrorKind::Io, why))
            }
        }
    }

    /// Forgets the VMs that are off. Their disks stay.
    pub(super) async fn undefine(&mut self) -> Result<Ran> {
        let hypervisor = self.world.hypervisor();
        for vm in self.task.learned.vms.clone() {
            match hypervisor.state(&vm).await? {
                PowerState::Absent => {}
                PowerState::Off => hypervisor.undefine(&vm).await?,
                PowerState::Running => {
                    let why = format!("VM {vm} runs on {}", hypervisor.describe());
                    return Err(Error::new(ErrorKind::Refused, format!("{why}: switch it off first")));
                }
            }
        }
        Ran::nothing()
    }
}
