//! A VM as it is defined at this site: its definition, changed as the plan says, and then as the runbook says. Pure.

use super::plan::FailoverPlan;
use super::runbook::VmStart;
use crate::hypervisor::{NicSpec, VmSpec};
use crate::ids::Name;

/// `spec`, which comes from the protected site, as `plan` wants it here.
pub(crate) fn apply(mut spec: VmSpec, plan: &FailoverPlan) -> VmSpec {
    let start = in_runbook(plan, &spec.name);
    let setting = plan.vms.vms.get(&spec.name);
    spec.placement = plan.failover.placement.clone();
    spec.storage_policy = plan.vms.storage_policy.clone();
    if let Some(setting) = setting {
        spec.cpus = setting.cpus.unwrap_or(spec.cpus);
        spec.memory_bytes = setting.memory_bytes.unwrap_or(spec.memory_bytes);
        if !setting.storage_policy.is_empty() {
            spec.storage_policy = setting.storage_policy.clone();
        }
    }
    if let Some(start) = start {
        spec.cpus = start.cpus.unwrap_or(spec.cpus);
        spec.memory_bytes = start.memory_bytes.unwrap_or(spec.memory_bytes);
    }
    let name = spec.name.clone();
    for (i, nic) in spec.nics.iter_mut().enumerate() {
        nic.network = network(plan, &name, i, &nic.network).unwrap_or_default();
        if let Some(start) = start {
            apply_ip(nic, i, start);
        }
    }
    spec
}

fn apply_ip(nic: &mut NicSpec, i: usize, start: &VmStart) {
    let Some(ip) = start.nics.iter().find(|n| n.nic as usize == i).and_then(|n| n.ip.as_ref()) else { return };
    nic.address = ip.address.clone();
    nic.gateway = ip.gateway.clone();
    nic.dns = ip.dns.clone();
}

/// The network of this site for card `i` of `vm`, which is on `there` at the protected site: as the runbook says, else
/// the VM's own setting, else the mapping, else the default. `None` where nothing says.
pub(super) fn network(plan: &FailoverPlan, vm: &Name, i: usize, there: &str) -> Option<String> {
    let said = |n: &String| (!n.is_empty()).then(|| n.clone());
    let runbook = in_runbook(plan, vm).and_then(|s| s.nics.iter().find(|n| n.nic as usize == i));
    let own = plan.vms.vms.get(vm).and_then(|s| s.networks.get(i));
    runbook
        .and_then(|n| said(&n.network))
        .or_else(|| own.and_then(said))
        .or_else(|| plan.vms.networks.get(there).and_then(said))
        .or_else(|| said(&plan.vms.default_network))
}

pub(super) fn in_runbook<'a>(plan: &'a FailoverPlan, vm: &Name) -> Option<&'a VmStart> {
    plan.options.runbook.as_ref()?.groups.iter().flat_map(|g| &g.vms).find(|v| v.vm == *vm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::samples;

    #[test]
    fn the_runbook_goes_before_the_vms_settings_and_those_before_the_mapping() {
        let mut plan = samples::plan("shop");
        plan.vms.networks.insert("lan".into(), "dr-lan".into());
        plan.vms.default_network = "dr-rest".into();
        plan.vms.storage_policy = "gold".into();
        let setting = r#"{"networks":["","dr-own"],"cpus":3,"memory_bytes":3145728}"#;
        plan.vms.vms.insert(samples::name("web"), serde_json::from_str(setting).unwrap());
        let book = r#"{"groups":[{"name":"a","vms":[{"vm":"web","cpus":7,
            "nics":[{"nic":2,"network":"dr-book","ip":{"address":"10.0.0.5/24","dns":["10.0.0.1"]}}]}]}]}"#;
        plan.options.runbook = Some(serde_json::from_str(book).unwrap());
        plan.failover.placement.insert("cluster".into(), "c1".into());

        let nic = |n: &str| NicSpec { network: n.into(), ..NicSpec::default() };
        let mut spec = samples::spec("shop", "web");
        spec.nics = vec![nic("lan"), nic("lan"), nic("lan"), nic("other")];
        let made = apply(spec, &plan);
        let networks: Vec<&str> = made.nics.iter().map(|n| n.network.as_str()).collect();
        assert_eq!(networks, ["dr-lan", "dr-own", "dr-book", "dr-rest"]);
        assert_eq!((made.cpus, made.memory_bytes, made.storage_policy.as_str()), (7, 3 << 20, "gold"));
        assert_eq!(made.nics[2].address, "10.0.0.5/24");
        assert_eq!(made.placement["cluster"], "c1");
    }
}
