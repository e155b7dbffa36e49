//! Plans and VMs that tests begin from.

use super::plan::{
    ApplianceNetworks, Direction, DrSettings, FailoverMode, FailoverPlan, FailoverSettings, General, Options,
    VmSettings,
};
use crate::hypervisor::{DiskSpec, VmSpec};
use crate::ids::Name;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// An as-needed failover, forced, with everything it needs.
pub(crate) fn plan(domain: &str) -> FailoverPlan {
    FailoverPlan {
        general: General { domain: name(domain), mode: FailoverMode::AsNeeded, direction: Direction::Failover },
        failover: FailoverSettings { placement: Default::default(), datastore: "/datastore".into(), planned: false },
        vms: VmSettings { default_network: "vm-net".into(), ..VmSettings::default() },
        appliance_networks: ApplianceNetworks::default(),
        dr: DrSettings {
            appliance: String::new(),
            log_store: "/log".into(),
            log_size: 4 << 30,
            metadata_size: 1 << 30,
            memory: 512 << 20,
        },
        options: Options { accept_loss: true, ..Options::default() },
    }
}

pub(crate) fn spec(domain: &str, vm: &str) -> VmSpec {
    VmSpec {
        name: name(vm),
        domain: name(domain),
        cpus: 2,
        memory_bytes: 1 << 30,
        firmware: "uefi".into(),
        disks: vec![DiskSpec {
            name: name("system"),
            uri: format!("nbd+unix:///{vm}%2Fsystem?socket=/s"),
            size: 1 << 30,
        }],
        nics: Vec::new(),
        placement: Default::default(),
        storage_policy: String::new(),
        definition_kind: String::new(),
        definition: String::new(),
    }
}
