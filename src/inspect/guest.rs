//! The file in which the QEMU driver keeps a VM: text, so that it has no magic of bytes.

use serde_json::json;

use super::report::InspectReport;
use super::source::Source;
use crate::error::Result;
use crate::hypervisor::{MAX_QEMU_VM_LEN, QEMU_VM_FORMAT, qemu_vm};

/// What such a file is called.
pub(super) const KIND: &str = "VM of the QEMU driver";

/// Whether a file that begins so may be one.
pub(super) fn is_one(head: &[u8]) -> bool {
    let quoted = format!("\"{QEMU_VM_FORMAT}\"");
    head.first() == Some(&b'{') && head.windows(quoted.len()).any(|at| at == quoted.as_bytes())
}

pub(super) async fn guest(from: &Source, report: &mut InspectReport) -> Result<()> {
    if from.len() > MAX_QEMU_VM_LEN {
        report.problem("length", format!("{} bytes, at most {MAX_QEMU_VM_LEN} are possible", from.len()));
        return Ok(());
    }
    let vm = match qemu_vm(&from.read(0..from.len()).await?) {
        Ok(vm) => vm,
        Err(e) => {
            report.problem("whole", e);
            return Ok(());
        }
    };
    report.show("vm", &vm.name);
    report.show("domain", &vm.domain);
    report.fact("cpus", vm.cpus);
    report.fact("memory_bytes", vm.memory_bytes);
    report.show("firmware", &vm.firmware);
    report.show("definition_kind", &vm.definition_kind);
    report.fact("disks", vm.disks.len());
    report.fact("nics", vm.nics.len());
    for disk in &vm.disks {
        report.entry(|| json!({ "disk": disk.name.to_string(), "size": disk.size, "uri": disk.uri }));
    }
    for nic in &vm.nics {
        report.entry(|| json!({ "nic": nic.name, "mac": nic.mac, "network": nic.network, "address": nic.address }));
    }
    Ok(())
}
