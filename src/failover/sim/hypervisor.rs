//! The hypervisor of a simulated site.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::world::Process;
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{Hypervisor, OffEvidence, PowerState, VmEntry, VmSpec};
use crate::ids::Name;

#[async_trait]
impl Hypervisor for Process {
    fn describe(&self) -> String {
        format!("the hypervisor of site {}", self.name())
    }

    async fn inventory(&self) -> Result<Vec<VmEntry>> {
        self.call("inventory", |sim, site| {
            let vms = &sim.site(site).vms;
            Ok(vms.iter().map(|(name, (_, state))| VmEntry { name: name.clone(), state: *state }).collect())
        })
        .await
    }

    async fn networks(&self) -> Result<Option<Vec<String>>> {
        self.call("networks", |_, _| Ok(Some(vec!["vm-net".into(), "mgmt".into()]))).await
    }

    fn unheeded(&self, _: &std::collections::BTreeMap<String, String>, _: &[&str]) -> Vec<String> {
        Vec::new()
    }

    fn addressing(&self) -> std::result::Result<&'static str, String> {
        Ok("they are not used")
    }

    async fn define(&self, spec: &VmSpec) -> Result<Vec<String>> {
        let spec = spec.clone();
        self.call("define", move |sim, site| {
            if sim.site(site).vms.get(&spec.name).is_some_and(|(_, s)| *s == PowerState::Running) {
                sim.violate(format!("define {} at {site} while it runs", spec.name));
            }
            sim.site_mut(site).vms.insert(spec.name.clone(), (spec, PowerState::Off));
            Ok(Vec::new())
        })
        .await
    }

    async fn undefine(&self, vm: &Name) -> Result<()> {
        let vm = vm.clone();
        self.call("undefine", move |sim, site| {
            sim.site_mut(site).vms.remove(&vm);
            Ok(())
        })
        .await
    }

    async fn start(&self, vm: &Name) -> Result<()> {
        let vm = vm.clone();
        self.call("start", move |sim, site| {
            let Some((_, state)) = sim.site(site).vms.get(&vm) else {
                return Err(Error::new(ErrorKind::NotFound, format!("no VM {vm} at {site}")));
            };
            let state = *state;
            if state == PowerState::Running {
                sim.violate(format!("start {vm} at {site} while it runs"));
            }
            let here = sim.site(site);
            let protected = here.protecting == Some(sim.owner.generation) && sim.owner.site == *site;
            let known = here.at.is_none_or(|at| sim.content_at(at) == here.content);
            if !protected || !known || here.content.is_none() {
                sim.violate(format!("start {vm} at {site} on disks that are not protected, or are no point"));
            }
            let reached = |s: &&Name| *s != site && !sim.cut_off.contains(*s) && sim.runs_at(s);
            let elsewhere = sim.sites.keys().find(reached).filter(|_| !sim.owner.forced).cloned();
            if let Some(other) = elsewhere {
                sim.violate(format!("start {vm} at {site} while guests run at {other}"));
            }
            sim.site_mut(site).vms.get_mut(&vm).expect("looked at above").1 = PowerState::Running;
            // What guests wrote while they went down is shipped by the protection, which runs.
            if sim.site(site).content != Some(sim.tip().content) {
                sim.ship(site);
            }
            Ok(())
        })
        .await
    }

    async fn shutdown(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let vm = vm.clone();
        let millis = u64::try_from(limit.as_millis()).unwrap();
        self.call("shutdown", move |sim, site| {
            if sim.site(site).hanging.contains(&vm) {
                sim.now += millis;
                return Ok(false);
            }
            // The guest writes what it has to write.
            sim.write(site);
            if let Some((_, state)) = sim.site_mut(site).vms.get_mut(&vm) {
                *state = PowerState::Off;
            }
            Ok(true)
        })
        .await
    }

    async fn power_off(&self, vm: &Name) -> Result<()> {
        let vm = vm.clone();
        self.call("power-off", move |sim, site| {
            if !sim.site(site).hanging.contains(&vm) {
                sim.violate(format!("power-off of {vm} at {site}, which shuts down when asked"));
            }
            if let Some((_, state)) = sim.site_mut(site).vms.get_mut(&vm) {
                *state = PowerState::Off;
            }
            Ok(())
        })
        .await
    }

    async fn state(&self, vm: &Name) -> Result<PowerState> {
        let vm = vm.clone();
        self.call("state", move |sim, site| Ok(sim.site(site).vms.get(&vm).map_or(PowerState::Absent, |(_, s)| *s)))
            .await
    }

    async fn freeze(&self, _: &Name, _: Duration) -> Result<bool> {
        Ok(false)
    }

    async fn thaw(&self, _: &Name, _: Duration) -> Result<()> {
        Ok(())
    }

    async fn agent(&self, vm: &Name, _: bool, _: Duration) -> Result<Option<Vec<IpAddr>>> {
        let vm = vm.clone();
        self.call("agent", move |sim, site| Ok(sim.site(site).agents.get(&vm).cloned())).await
    }

    async fn off_evidence(&self, vm: &Name) -> Result<OffEvidence> {
        let vm = vm.clone();
        self.call("off-evidence", move |sim, site| {
            let off = sim.site(site).vms.get(&vm).is_none_or(|(_, s)| *s != PowerState::Running);
            Ok(OffEvidence { off, because: format!("it is {}", if off { "off" } else { "running" }) })
        })
        .await
    }
}
