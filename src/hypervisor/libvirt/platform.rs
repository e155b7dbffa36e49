//! What a hypervisor can run: architectures, machine types, CPU models, firmware; and which of them a definition gets.
//!
//! Pure. A definition keeps its machine type where this site has it; else it gets the newest of the same family, under
//! which guests of the older one run; another family is refused, since a guest would not find its devices.

use std::collections::BTreeMap;

use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};

/// Families of machine types: what versions begin with, and the name of the newest.
const FAMILIES: [(&str, &str); 6] = [
    ("pc-q35-", "q35"),
    ("pc-i440fx-", "pc"),
    ("virt-", "virt"),
    ("s390-ccw-virtio-", "s390-ccw-virtio"),
    ("pseries-", "pseries"),
    // Of other vendors' builds, from before q35.
    ("rhel", "pc"),
];

/// One architecture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Arch {
    name: String,
    machines: Vec<String>,
    /// `kvm`, `qemu`.
    types: Vec<String>,
}

/// What `virsh capabilities` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Capabilities {
    host: String,
    arches: Vec<Arch>,
}

impl Capabilities {
    /// # Errors
    /// `Invalid`.
    pub(super) fn parse(text: &str) -> Result<Capabilities> {
        let root = Element::parse(text)?;
        let host = root.at(&["host", "cpu", "arch"]).map(Element::text).unwrap_or_default();
        let mut arches = Vec::new();
        for guest in root.all("guest").filter(|guest| guest.text_of("os_type") == "hvm") {
            for arch in guest.all("arch") {
                let domains = arch.all("domain");
                let own = arch.all("machine").map(Element::text);
                let machines = own.chain(domains.flat_map(|d| d.all("machine").map(Element::text))).collect();
                let types = arch.all("domain").map(|d| d.attr("type").to_owned()).collect();
                arches.push(Arch { name: arch.attr("name").to_owned(), machines, types });
            }
        }
        Ok(Capabilities { host, arches })
    }
}

/// What a definition runs on here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    /// `kvm` or `qemu`.
    pub(super) kind: String,
    pub(super) arch: String,
    pub(super) machine: String,
    /// What differs from the definition.
    pub(super) notes: Vec<String>,
}

/// Chooses for a definition; `wanted` is what the plan's placement says.
///
/// # Errors
/// `Refused` where this site has nothing that the guest would run on.
pub(super) fn choose(definition: &Element, has: &Capabilities, wanted: &BTreeMap<String, String>) -> Result<Platform> {
    let refused = |why: String| Err(Error::new(ErrorKind::Refused, why));
    let os = definition.at(&["os", "type"]);
    let said = os.map_or("", |os| os.attr("arch"));
    let name = if said.is_empty() { has.host.as_str() } else { said };
    let Some(arch) = has.arches.iter().find(|arch| arch.name == name) else {
        let there: Vec<&str> = has.arches.iter().map(|arch| arch.name.as_str()).collect();
        return refused(format!("architecture {name} is not had by the hypervisor, which has {}", there.join(", ")));
    };
    let mut notes = Vec::new();
    let asked = definition.attr("type");
    let best = if arch.types.iter().any(|t| t == "kvm") { "kvm" } else { "qemu" };
    let kind = match asked {
        "" => best,
        asked if arch.types.iter().any(|t| t == asked) => asked,
        "kvm" if best == "qemu" => {
            notes.push("there is no hardware virtualization here: it runs by software emulation, slowly".to_owned());
            "qemu"
        }
        other => return refused(format!("it is a {other} guest, and the hypervisor runs {}", arch.types.join(", "))),
    };
    let has_machine = |machine: &str| arch.machines.iter().any(|m| m == machine);
    let machine = match (wanted.get("machine"), os.map_or("", |os| os.attr("machine"))) {
        (Some(machine), _) if has_machine(machine) => machine.clone(),
        (Some(machine), _) => return refused(format!("placement.machine is {machine}, which is not had here")),
        (None, "") => String::new(),
        (None, machine) if has_machine(machine) => machine.to_owned(),
        (None, machine) => {
            let family = FAMILIES.iter().find(|(prefix, _)| machine.starts_with(prefix)).map(|(_, newest)| *newest);
            let Some(newest) = family.filter(|newest| has_machine(newest)) else {
                let remedy = "name one that the guest runs on as placement.machine in the plan";
                return refused(format!("machine type {machine} is not had here, nor one like it; {remedy}"));
            };
            notes.push(format!("machine type {machine} is not had here: it gets {newest}"));
            newest.to_owned()
        }
    };
    Ok(Platform { kind: kind.to_owned(), arch: name.to_owned(), machine, notes })
}

/// What `virsh domcapabilities` says of one machine type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct MachineAbilities {
    /// Its full name.
    pub(super) machine: String,
    modes: Vec<String>,
    models: Vec<String>,
    efi: bool,
    loaders: Vec<String>,
}

impl MachineAbilities {
    /// # Errors
    /// `Invalid`.
    pub(super) fn parse(text: &str) -> Result<MachineAbilities> {
        let root = Element::parse(text)?;
        let mut out = MachineAbilities { machine: root.text_of("machine"), ..MachineAbilities::default() };
        for mode in root.child("cpu").into_iter().flat_map(|cpu| cpu.all("mode")) {
            if mode.attr("supported") == "yes" {
                out.modes.push(mode.attr("name").to_owned());
            }
            if mode.attr("name") == "custom" {
                let usable = mode.all("model").filter(|model| model.attr("usable") != "no");
                out.models.extend(usable.map(Element::text));
            }
        }
        if let Some(os) = root.child("os") {
            let firmware = os.all("enum").filter(|e| e.attr("name") == "firmware");
            out.efi = firmware.flat_map(|e| e.all("value")).any(|value| value.text() == "efi");
            out.loaders = os.child("loader").into_iter().flat_map(|l| l.all("value")).map(Element::text).collect();
        }
        Ok(out)
    }

    pub(super) fn has_mode(&self, mode: &str) -> bool {
        self.modes.iter().any(|m| m == mode)
    }

    /// The mode or model of a CPU that is not had, in words; `None` where both are.
    pub(super) fn unusable_cpu(&self, cpu: &Element) -> Option<String> {
        match (cpu.attr("mode"), cpu.text_of("model")) {
            ("" | "custom", model) if model.is_empty() || self.models.contains(&model) => None,
            ("" | "custom", model) => Some(format!("CPU model {model}")),
            (mode, _) => (!self.has_mode(mode)).then(|| format!("CPU {mode}")),
        }
    }

    /// Makes the firmware of a definition one that this site has; UEFI variables are made anew.
    ///
    /// # Errors
    /// `Refused` where there is none.
    pub(super) fn fit_firmware(&self, definition: &mut Element, notes: &mut Vec<String>) -> Result<()> {
        let Some(os) = definition.child_mut("os") else { return Ok(()) };
        os.remove_all(&["nvram"]);
        let auto = os.attr("firmware") == "efi";
        let loader = os.child("loader").map(Element::text).unwrap_or_default();
        let pflash = os.child("loader").is_some_and(|loader| loader.attr("type") == "pflash");
        if !auto && (!pflash || self.loaders.contains(&loader)) {
            return Ok(());
        }
        if !self.efi {
            return Err(Error::new(ErrorKind::Refused, "it boots by UEFI, and no such firmware is installed here"));
        }
        let secure = os.child("loader").is_some_and(|loader| loader.attr("secure") == "yes");
        os.remove_all(&["loader"]);
        os.set("firmware", "efi");
        if !auto {
            notes.push(format!("firmware {loader} is not had here: it gets the one of this site"));
            // Left to itself libvirt chooses one that starts nothing but what is signed.
            let secure = if secure { "yes" } else { "no" };
            os.remove_all(&["firmware"]);
            os.push(
                Element::new("firmware")
                    .and(Element::new("feature").with("enabled", secure).with("name", "secure-boot")),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HAS: &str = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>\
        <guest><os_type>hvm</os_type><arch name='x86_64'><machine>pc-q35-7.2</machine><machine canonical='pc-q35-7.2'>q35\
        </machine><machine>pc</machine><domain type='qemu'/></arch></guest></capabilities>";
    const CAN: &str = "<domainCapabilities><machine>pc-q35-7.2</machine><os><enum name='firmware'><value>efi</value></enum>\
        <loader><value>/fw/code.fd</value></loader></os><cpu><mode name='host-passthrough' supported='no'/>\
        <mode name='host-model' supported='yes'/><mode name='custom' supported='yes'><model usable='yes'>qemu64</model>\
        <model usable='no'>EPYC</model></mode></cpu></domainCapabilities>";

    fn vm(kind: &str, machine: &str) -> Element {
        Element::parse(&format!(
            "<domain type='{kind}'><os><type arch='x86_64' machine='{machine}'>hvm</type></os></domain>"
        ))
        .unwrap()
    }

    #[test]
    fn a_machine_type_is_kept_or_gives_way_to_its_family_or_is_refused() {
        let has = Capabilities::parse(HAS).unwrap();
        let none = BTreeMap::new();
        let choose_for = |kind: &str, machine: &str| choose(&vm(kind, machine), &has, &none);
        let kept = choose_for("qemu", "pc-q35-7.2").unwrap();
        assert_eq!((kept.kind.as_str(), kept.machine.as_str(), kept.notes.len()), ("qemu", "pc-q35-7.2", 0));
        let newer = choose_for("kvm", "pc-q35-9.0").unwrap();
        assert_eq!((newer.kind.as_str(), newer.machine.as_str(), newer.notes.len()), ("qemu", "q35", 2));
        for (kind, machine, why) in
            [("qemu", "virt-9.0", "nor one like it"), ("qemu", "x", "machine type x"), ("xen", "pc", "a xen guest")]
        {
            let error = choose_for(kind, machine).unwrap_err();
            assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(why), "{error}");
        }
        let wanted = |machine: &str| [("machine".to_owned(), machine.to_owned())].into();
        assert_eq!(choose(&vm("qemu", "x"), &has, &wanted("pc")).unwrap().machine, "pc");
        assert!(choose(&vm("qemu", "pc"), &has, &wanted("y")).unwrap_err().to_string().contains("placement.machine"));
        let mut arm = vm("qemu", "virt");
        arm.child_mut("os").unwrap().child_mut("type").unwrap().set("arch", "aarch64");
        assert!(choose(&arm, &has, &none).unwrap_err().to_string().contains("aarch64"));
    }

    #[test]
    fn firmware_is_kept_or_gives_way_or_is_refused() {
        let can = MachineAbilities::parse(CAN).unwrap();
        assert_eq!(can.machine, "pc-q35-7.2");
        let nothing = MachineAbilities::default();
        let boot = |os: &str, can: &MachineAbilities| {
            let mut vm = Element::parse(&format!("<domain><os{os}</os></domain>")).unwrap();
            let mut notes = Vec::new();
            can.fit_firmware(&mut vm, &mut notes).map(|()| (vm.child("os").unwrap().write().unwrap(), notes.len()))
        };
        let uefi = "><loader type='pflash'>/old.fd</loader><nvram>/v.fd</nvram>";
        let other = |enabled: &str| {
            let feature = format!("<feature enabled=\"{enabled}\" name=\"secure-boot\"/>");
            (format!("<os firmware=\"efi\"><firmware>{feature}</firmware></os>"), 1)
        };
        assert_eq!(boot(uefi, &can).unwrap(), other("no"));
        assert_eq!(boot("><loader type='pflash' secure='yes'>/old.fd</loader>", &can).unwrap(), other("yes"));
        assert_eq!(boot(" firmware='efi'><loader>/x</loader><nvram>/v</nvram>", &can).unwrap().1, 0);
        let same = boot("><loader type='pflash'>/fw/code.fd</loader><nvram>/v</nvram>", &can).unwrap();
        assert_eq!(same, ("<os><loader type=\"pflash\">/fw/code.fd</loader></os>".to_owned(), 0));
        assert_eq!(boot("><boot dev='hd'/>", &nothing).unwrap().1, 0);
        assert_eq!(boot(uefi, &nothing).unwrap_err().kind(), ErrorKind::Refused);
    }
}
