//! The CPU of a definition: what of it a hypervisor lacks, and what it becomes then.
//!
//! ```text
//! a mode or model that is not had -> host-model
//! features: asked as libvirt itself does before a start (`virsh hypervisor-cpu-compare`) -> host-model where one is missing
//! ```
//!
//! Owns the question and what the answer means. A CPU that libvirt does not check (`check='none'`, which it writes for models
//! under software emulation) starts with what there is: it is kept, and what is missing is told. Where nobody can tell, as on
//! architectures that libvirt compares nothing of, it is kept as well.

use std::collections::BTreeMap;
use std::time::Duration;

use super::LibvirtDriver;
use super::platform::{MachineAbilities, Platform};
use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};

/// Parts of a CPU that are compared; the others are about its shape.
const COMPARED: [&str; 3] = ["model", "vendor", "feature"];
/// Features that the comparison calls missing everywhere, since no guest that has them migrates alive.
const NOT_COMPARED: [&str; 1] = ["invtsc"];
/// What libvirt says of a CPU that is not had.
const INCOMPATIBLE: &str = "the CPU is incompatible with host CPU";
/// What it says of words that it does not know, which no start gets past either.
const UNKNOWN: &str = "Unknown CPU ";

/// What was found missing of CPUs, by the call and the CPU that it compared: VMs of one domain are much alike.
pub(super) type Compared = BTreeMap<(String, String), Option<String>>;

/// What of a CPU can be missing; `None` where nothing of it can.
fn compared(cpu: &Element) -> Option<Element> {
    let mut asked = cpu.clone();
    asked.remove(|part| !COMPARED.contains(&part.name.as_str()) || NOT_COMPARED.contains(&part.attr("name")));
    let names = |part: &Element| part.name == "feature" || (part.name == "model" && !part.text().is_empty());
    let can_be_missing = asked.elements().any(names);
    can_be_missing.then_some(asked)
}

/// Why a CPU is not had, by the error that comparing it ended with; `None` where that could not be told.
fn lacking(said: &str) -> Option<String> {
    if let Some((_, why)) = said.split_once(INCOMPATIBLE) {
        let why = why.trim_start_matches([':', ' ']).trim();
        return Some(if why.is_empty() { "it does not say why" } else { why }.to_owned());
    }
    said.find(UNKNOWN).map(|at| said[at..].trim().to_owned())
}

/// Whether libvirt compares such a CPU before it starts a guest of this kind.
fn is_checked(cpu: &Element, kind: &str) -> bool {
    match (cpu.attr("check"), cpu.attr("mode")) {
        ("none", _) => false,
        ("", "" | "custom") => kind != "qemu",
        ("", mode) => mode == "host-model",
        _ => true,
    }
}

/// Makes the CPU of a definition one that a machine of this kind has; `lacks` is what the comparison found missing.
///
/// # Errors
/// `Refused` where there is none.
pub(super) fn fit(
    definition: &mut Element,
    can: &MachineAbilities,
    kind: &str,
    lacks: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Some(cpu) = definition.child_mut("cpu") else { return Ok(()) };
    let had = match (can.unusable_cpu(cpu), lacks) {
        (Some(unusable), _) => format!("{unusable} is not had here"),
        (None, Some(why)) if is_checked(cpu, kind) => format!("its CPU is not had here ({why})"),
        (None, Some(why)) => {
            let why = format!("its CPU is not had here ({why})");
            notes.push(format!("{why}: it starts without that, since its definition has nobody check"));
            return Ok(());
        }
        (None, None) => {
            if cpu.attr("check") == "full" && matches!(cpu.attr("mode"), "" | "custom") {
                // It would have to have what QEMU adds of its own, which another one does not.
                cpu.set("check", "partial");
                notes.push("its CPU need not be the same to the last feature here (check='partial')".to_owned());
            }
            return Ok(());
        }
    };
    if !can.has_mode("host-model") {
        return Err(Error::new(ErrorKind::Refused, format!("{had}, and neither is host-model")));
    }
    notes.push(format!("{had}: it gets host-model"));
    cpu.remove_all(&COMPARED);
    ["match", "check", "migratable"].iter().for_each(|name| cpu.unset(name));
    cpu.set("mode", "host-model");
    Ok(())
}

impl LibvirtDriver {
    /// What of the CPU of a definition is missing on a platform; `None` where nothing is, or nobody can tell.
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    pub(super) async fn lacks(
        &self,
        definition: &Element,
        can: &MachineAbilities,
        platform: &Platform,
        known: &mut Compared,
    ) -> Result<Option<String>> {
        let cpu = definition.child("cpu").filter(|cpu| can.unusable_cpu(cpu).is_none());
        let Some(asked) = cpu.and_then(compared) else { return Ok(None) };
        let asked = asked.write()?;
        let mut order = vec!["hypervisor-cpu-compare", "/dev/stdin", "--error"];
        order.extend(["--virttype", &platform.kind, "--arch", &platform.arch]);
        if !platform.machine.is_empty() {
            order.extend(["--machine", &platform.machine]);
        }
        let key = (order.join(" "), asked.clone());
        if let Some(found) = known.get(&key) {
            return Ok(found.clone());
        }
        let found = match self.virsh.tell(&order, asked, Duration::ZERO).await {
            Ok(_) => None,
            Err(error) => match lacking(error.context()) {
                None if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Denied) => return Err(error),
                None => {
                    tracing::debug!("whether a CPU is had cannot be told: {error}");
                    None
                }
                why => why,
            },
        };
        known.insert(key, found.clone());
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAN: &str = "<domainCapabilities><machine>pc-q35-7.2</machine><cpu>\
        <mode name='host-passthrough' supported='no'/><mode name='host-model' supported='yes'/>\
        <mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>EPYC</model></mode>\
        </cpu></domainCapabilities>";
    const MISSING: &str = "Host CPU does not provide required features: avx512f";

    /// What becomes of a CPU, and what is told.
    fn fitted(cpu: &str, can: &MachineAbilities, kind: &str, lacks: Option<&str>) -> Result<(String, String)> {
        let mut vm = Element::parse(&format!("<domain>{cpu}</domain>")).unwrap();
        let mut notes = Vec::new();
        fit(&mut vm, can, kind, lacks, &mut notes)?;
        Ok((vm.child("cpu").map(|cpu| cpu.write().unwrap()).unwrap_or_default(), notes.join("; ")))
    }

    #[test]
    fn a_mode_or_model_is_kept_or_gives_way_or_is_refused() {
        let can = MachineAbilities::parse(CAN).unwrap();
        let kept = "<cpu mode=\"custom\" match=\"exact\"><model>qemu64</model><feature name=\"x\"/></cpu>";
        assert_eq!(fitted(kept, &can, "kvm", None).unwrap(), (kept.to_owned(), String::new()));
        let epyc = "<cpu mode='custom' match='exact' check='partial'><model>EPYC</model><topology sockets='1'/></cpu>";
        let (other, told) = fitted(epyc, &can, "kvm", None).unwrap();
        assert_eq!(other, "<cpu mode=\"host-model\"><topology sockets=\"1\"/></cpu>");
        assert_eq!(told, "CPU model EPYC is not had here: it gets host-model");
        let (_, told) = fitted("<cpu mode='host-passthrough' migratable='on'/>", &can, "kvm", None).unwrap();
        assert_eq!(told, "CPU host-passthrough is not had here: it gets host-model");
        assert_eq!(fitted("", &can, "kvm", None).unwrap(), (String::new(), String::new()));
        let nothing = MachineAbilities::default();
        let refused = fitted("<cpu mode='host-model'/>", &nothing, "kvm", None).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
    }

    #[test]
    fn features_that_are_missing_give_way_where_libvirt_would_not_start_the_guest() {
        let can = MachineAbilities::parse(CAN).unwrap();
        let cpu = |words: &str| {
            let feature = "<feature policy=\"require\" name=\"avx512f\"/>";
            format!("<cpu{words}><model>qemu64</model>{feature}</cpu>")
        };
        for (words, kind, gives_way) in [
            (" mode=\"custom\" check=\"partial\"", "qemu", true),
            (" mode=\"custom\" check=\"full\"", "kvm", true),
            (" mode=\"custom\"", "kvm", true),
            ("", "kvm", true),
            (" mode=\"host-model\"", "qemu", true),
            (" mode=\"custom\" check=\"none\"", "kvm", false),
            (" mode=\"custom\"", "qemu", false),
        ] {
            let (became, told) = fitted(&cpu(words), &can, kind, Some(MISSING)).unwrap();
            assert!(told.starts_with(&format!("its CPU is not had here ({MISSING}): it ")), "{told}");
            match gives_way {
                true => assert_eq!(
                    (became.as_str(), told.ends_with("gets host-model")),
                    ("<cpu mode=\"host-model\"/>", true)
                ),
                false => assert_eq!((became, told.contains("starts without")), (cpu(words), true)),
            }
        }
        let refused =
            MachineAbilities::parse(&CAN.replace("'host-model' supported='yes'", "'host-model' supported='no'"));
        let refused = fitted(&cpu(""), &refused.unwrap(), "kvm", Some(MISSING)).unwrap_err();
        assert!(
            refused.kind() == ErrorKind::Refused && refused.to_string().contains("neither is host-model"),
            "{refused}"
        );
        // Nothing is missing, and QEMU's own additions would still be too many.
        let (became, told) = fitted(&cpu(" mode=\"custom\" check=\"full\""), &can, "kvm", None).unwrap();
        assert_eq!(became, cpu(" mode=\"custom\" check=\"partial\""));
        assert!(told.contains("last feature"), "{told}");
    }

    #[test]
    fn only_what_can_be_missing_is_compared() {
        let of = |cpu: &str| compared(&Element::parse(cpu).unwrap()).map(|asked| asked.write().unwrap());
        for none in [
            "<cpu mode='host-model' check='partial'/>",
            "<cpu mode='host-model'><model fallback='allow'/></cpu>",
            "<cpu><topology sockets='1' cores='2' threads='1'/><numa><cell id='0' cpus='0' memory='1'/></numa></cpu>",
            "<cpu mode='host-passthrough'><feature policy='require' name='invtsc'/></cpu>",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
        let all = "<cpu mode='custom' match='exact'><model>EPYC</model><vendor>AMD</vendor><topology sockets='1'/>\
                   <feature policy='require' name='invtsc'/><feature policy='require' name='avx512f'/></cpu>";
        assert_eq!(
            of(all).unwrap(),
            "<cpu mode=\"custom\" match=\"exact\"><model>EPYC</model><vendor>AMD</vendor>\
             <feature policy=\"require\" name=\"avx512f\"/></cpu>"
        );
    }

    #[test]
    fn what_libvirt_says_of_a_cpu_is_understood() {
        let at = "virsh hypervisor-cpu-compare at qemu:///system: Failed to compare hypervisor CPU with /dev/stdin";
        let of = |said: &str| lacking(&format!("{at}: {said}"));
        assert_eq!(of(&format!("{INCOMPATIBLE}: {MISSING}")).as_deref(), Some(MISSING));
        assert_eq!(of(INCOMPATIBLE).as_deref(), Some("it does not say why"));
        let unknown = of("internal error: Unknown CPU feature nonsense");
        assert_eq!(unknown.as_deref(), Some("Unknown CPU feature nonsense"));
        assert_eq!(of("this function is not supported by the connection driver: virConnectCompareHypervisorCPU"), None);
    }
}
