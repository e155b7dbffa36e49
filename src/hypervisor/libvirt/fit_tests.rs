//! Real definitions, as libvirt 9.0 wrote them, made to fit another site.

use super::*;
use crate::failover::samples;
use crate::hypervisor::NicSpec;
use crate::hypervisor::libvirt::definition::Source;
use crate::hypervisor::libvirt::platform::{Capabilities, choose};

/// A guest that ran under libvirt, with a card on a network and one on a bridge.
const WEB: &str = include_str!("samples/web.xml");
/// One that was made by `virt-install` for UEFI on q35, pinned, with a CD.
const DESK: &str = include_str!("samples/desk.xml");
const CAPABILITIES: &str = include_str!("samples/capabilities.xml");
const MACHINE: &str = include_str!("samples/domcapabilities.xml");

fn spec(definition: &str, disks: &[&str]) -> VmSpec {
    let read = Definition::parse(definition).unwrap();
    let shape = read.shape().unwrap();
    let nic = |(n, nic): (usize, &crate::format::Nic)| NicSpec {
        name: format!("nic{n}"),
        mac: nic.mac.clone(),
        network: "dr-lan".into(),
        model: nic.model.clone(),
        ..NicSpec::default()
    };
    let disk = |name: &&str| DiskSpec {
        name: samples::name(name),
        uri: format!("nbd+unix:///{}/{name}?socket=/run/f/d.sock", read.name),
        size: 1 << 30,
    };
    VmSpec {
        cpus: shape.cpus,
        memory_bytes: shape.memory_bytes,
        firmware: shape.firmware.clone(),
        disks: disks.iter().map(disk).collect(),
        nics: shape.nics.iter().enumerate().map(nic).collect(),
        definition_kind: "libvirt-xml".into(),
        definition: definition.into(),
        ..samples::spec("shop", read.name.as_str())
    }
}

fn fitted(spec: &VmSpec, known: &[Definition]) -> Result<Fitted> {
    let root = match spec.definition.is_empty() {
        true => blank(spec),
        false => Definition::parse(&spec.definition)?.root,
    };
    let has = Capabilities::parse(CAPABILITIES).unwrap();
    let can = MachineAbilities::parse(MACHINE).unwrap();
    let platform = choose(&root, &has, &spec.placement)?;
    let seed = seed::wanted(spec).then_some(Path::new("/var/lib/freshet-seeds/web.img"));
    fit(root, spec, &Site { platform: &platform, can: &can, lacks: None, known, seed })
}

#[test]
fn a_guest_that_gets_addresses_has_a_disk_more_which_never_counts_as_one_of_its_own() {
    let mut vm = spec(WEB, &["vda", "vdb"]);
    let before = read(&fitted(&vm, &[]).unwrap().root);
    assert!(!before.root.write().unwrap().contains(SEED_SERIAL));
    vm.nics[0].address = "10.9.0.5/24".into();
    vm.nics[1].mac.clear();
    let made = read(&fitted(&vm, &[]).unwrap().root);
    let text = made.root.write().unwrap();
    assert!(
        text.contains("<source file=\"/var/lib/freshet-seeds/web.img\"/>") && text.contains("<readonly/>"),
        "{text}"
    );
    assert_eq!(
        text.matches("bus=\"virtio\"").count(),
        before.root.write().unwrap().matches("bus=\"virtio\"").count() + 1
    );
    // For whoever looks at the VM's own disks it is not there.
    assert_eq!(made.disks(), before.disks());
    made.refuse_unfit().unwrap();
    let mut taken = made.clone();
    assert!(taken.drop_seed() && !taken.drop_seed());
    assert!(!taken.root.write().unwrap().contains("freshet-seeds"));
    // At the next site the one of this site is gone, whoever wrote it into the definition.
    let mut back = spec(&text, &["vda", "vdb"]);
    assert_eq!(back.nics.len(), vm.nics.len());
    let home = read(&fitted(&back, &[]).unwrap().root);
    assert!(!home.root.write().unwrap().contains(SEED_SERIAL) && home.disks() == before.disks());
    // A second one is never added.
    back.nics[0].address = "10.8.0.5/24".into();
    assert_eq!(
        read(&fitted(&back, &[]).unwrap().root).root.write().unwrap().matches("<serial>freshet-seed<").count(),
        1
    );
}

#[test]
fn cards_of_a_guest_that_gets_addresses_have_hardware_addresses_that_stay() {
    let mut vm = spec(WEB, &["vda", "vdb"]);
    vm.nics[0].address = "10.9.0.5/24".into();
    vm.placement.insert("mac".into(), "renew".into());
    let macs = |vm: &VmSpec| read(&fitted(vm, &[]).unwrap().root).macs();
    let renewed = macs(&vm);
    assert_eq!(renewed.len(), vm.nics.len());
    assert_eq!(macs(&vm), renewed, "defined again it has the same ones");
    assert!(renewed.iter().zip(&vm.nics).all(|(new, nic)| *new != nic.mac && seed::is_mac(new)), "{renewed:?}");
    let mut none = blank_vm(&vm);
    none.placement.clear();
    assert_eq!(macs(&none), (0..none.nics.len()).map(|n| seed::drawn_mac(&none, n, "")).collect::<Vec<_>>());
}

/// The same without a definition, and without hardware addresses.
fn blank_vm(vm: &VmSpec) -> VmSpec {
    let mut blank = VmSpec { definition: String::new(), definition_kind: String::new(), ..vm.clone() };
    blank.nics.iter_mut().for_each(|nic| nic.mac.clear());
    blank
}

fn read(root: &Element) -> Definition {
    Definition::parse(&root.write().unwrap()).unwrap()
}

#[test]
fn a_definition_is_read_as_it_was_written() {
    for text in [WEB, DESK] {
        let tree = Element::parse(text).unwrap();
        let again = Element::parse(&tree.write().unwrap()).unwrap();
        assert_eq!(again, tree);
        assert_eq!(tree.write().unwrap().replace('"', "'"), text.trim_end().replace('"', "'"));
    }
    let web = Definition::parse(WEB).unwrap();
    let shape = web.shape().unwrap();
    assert_eq!((shape.cpus, shape.memory_bytes, shape.firmware.as_str()), (2, 256 << 20, "bios"));
    let networks: Vec<&str> = shape.nics.iter().map(|n| n.network.as_str()).collect();
    assert_eq!(networks, ["default", "bridge:br0"]);
    assert_eq!((shape.nics[0].mac.as_str(), shape.nics[0].model.as_str()), ("52:54:00:11:22:33", "virtio"));
    assert!(web.refuse_unfit().is_ok());
    assert_eq!(Definition::parse(DESK).unwrap().firmware(), "uefi");
}

#[test]
fn disks_are_exports_and_the_rest_stays() {
    let made = fitted(&spec(WEB, &["vda", "vdb"]), &[]).unwrap();
    let web = read(&made.root);
    let socket = Some("/run/f/d.sock".into());
    let nbd = |name: &str| Source::Nbd { export: format!("web/{name}"), socket: socket.clone() };
    let sources: Vec<Source> = web.disks().into_iter().map(|d| d.source).collect();
    assert_eq!(sources, [nbd("vda"), nbd("vdb"), Source::None]);
    let text = made.root.write().unwrap();
    for gone in ["/var/lib/libvirt/images", "qcow2", "<emulator", "<backingStore", "install.iso", "seclabel"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    for kept in [
        "<reconnect delay=\"300\"/>",
        "error_policy=\"stop\" rerror_policy=\"stop\"",
        "<serial>WEB-ROOT</serial>",
        "<address type=\"pci\" domain=\"0x0000\" bus=\"0x00\" slot=\"0x03\" function=\"0x0\"/>",
        "iothread=\"1\"",
        "<uuid>f533f2eb-2309-4183-9f90-9761e03d3c25</uuid>",
        "<mac address=\"52:54:00:11:22:33\"/>",
        "<source network=\"dr-lan\"/>",
        "<qemu:arg value=\"-no-hpet\"/>",
        "xmlns:qemu",
        "<freshet:vm xmlns:freshet=\"urn:freshet:libvirt:1\" domain=\"shop\"/>",
    ] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    assert!(!text.contains("br0") && made.notes.iter().any(|n| n.contains("cdrom sda is empty")), "{:?}", made.notes);
    assert_eq!(web.owner().as_deref(), Some("shop"));
    // Once more over its own result: nothing is added.
    let again = fitted(&VmSpec { definition: text.clone(), ..spec(WEB, &["vda", "vdb"]) }, &[]).unwrap();
    assert_eq!(again.root.write().unwrap(), text);
}

#[test]
fn disks_of_other_names_go_by_their_order_and_those_without_a_partner_are_left_out_or_added() {
    let sources = |disks: &[&str]| {
        let made = fitted(&spec(WEB, disks), &[]).unwrap();
        let disks = read(&made.root).disks();
        let shown = disks.into_iter().filter(DiskPart::is_disk).map(|d| match d.source {
            Source::Nbd { export, .. } => format!("{}={export}", d.target),
            other => format!("{}={other:?}", d.target),
        });
        (shown.collect::<Vec<_>>(), made.notes)
    };
    assert_eq!(sources(&["root", "data"]).0, ["vda=web/root", "vdb=web/data"]);
    let (one, notes) = sources(&["vdb"]);
    assert_eq!(one, ["vdb=web/vdb"]);
    assert!(notes.iter().any(|note| note.contains("disk vda of its definition is not protected")), "{notes:?}");
    assert_eq!(sources(&["vda", "vdb", "more"]).0, ["vda=web/vda", "vdb=web/vdb", "vdc=web/more"]);
}

#[test]
fn identities_are_kept_where_they_are_free_and_never_taken_from_others() {
    let web = spec(WEB, &["vda", "vdb"]);
    let other = |name: &str, uuid: &str, mac: &str| {
        let nic = format!("<interface type='user'><mac address='{mac}'/></interface>");
        let text = format!("<domain><name>{name}</name><uuid>{uuid}</uuid><devices>{nic}</devices></domain>");
        Definition::parse(&text).unwrap()
    };
    let (own, foreign) = ("F533F2EB-2309-4183-9f90-9761e03d3c25", "0533f2eb-2309-4183-9f90-9761e03d3c25");
    let refused = |known: Definition, with: &[(&str, &str)]| {
        let mut spec = web.clone();
        spec.placement.extend(with.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        fitted(&spec, &[known]).map(|made| read(&made.root)).map_err(|e| (e.kind(), e.to_string()))
    };
    assert!(refused(other("web", own, ""), &[]).is_ok(), "it is itself");
    let (kind, why) = refused(other("web", foreign, ""), &[]).unwrap_err();
    assert!(kind == ErrorKind::Refused && why.contains("is here already"), "{why}");
    assert!(refused(other("mail", own, ""), &[]).unwrap_err().1.contains("is that of VM mail"));
    let renewed = refused(other("mail", own, ""), &[("uuid", "renew")]).unwrap();
    assert_eq!(renewed.uuid, "");
    let taken = || other("mail", foreign, "52:54:00:11:22:33");
    assert!(refused(taken(), &[]).unwrap_err().1.contains("52:54:00:11:22:33"));
    assert_eq!(refused(taken(), &[("mac", "renew")]).unwrap().macs(), Vec::<String>::new());
    // What was defined for the domain before has kept another UUID since: it is gone on with.
    let mut ours = fitted(&web, &[]).unwrap().root;
    ours.child_or_new("uuid").set_text(foreign);
    assert_eq!(refused(read(&ours), &[]).unwrap().uuid, foreign);
}

#[test]
fn resources_of_the_plan_and_what_belongs_to_a_host() {
    let mut desk = spec(DESK, &["vda"]);
    (desk.cpus, desk.memory_bytes) = (3, 512 << 20);
    let made = fitted(&desk, &[]).unwrap();
    let text = made.root.write().unwrap();
    let shape = read(&made.root).shape().unwrap();
    assert_eq!((shape.cpus, shape.memory_bytes), (3, 512 << 20));
    for gone in ["cpuset", "numatune", "vcpupin", "<topology", "nvram", "192.0.2.7", "currentMemory"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    assert!(text.contains("machine=\"q35\"") && text.contains("firmware=\"efi\""), "{text}");
    assert!(text.contains("<cpu mode=\"host-model\""), "{text}");
    assert!(text.contains("<link state=\"up\"/>") && text.contains("type=\"network\""), "{text}");
    assert!(made.notes.len() >= 4, "{:?}", made.notes);
    // A card without a network here is there, and unplugged.
    desk.nics[0].network.clear();
    let text = fitted(&desk, &[]).unwrap().root.write().unwrap();
    assert!(text.contains("type=\"user\"") && text.contains("<link state=\"down\"/>"), "{text}");
}

#[test]
fn a_vm_without_a_definition_gets_one() {
    let mut bare = spec(WEB, &["root"]);
    (bare.definition, bare.definition_kind) = (String::new(), String::new());
    (bare.cpus, bare.memory_bytes) = (0, 0);
    let made = fitted(&bare, &[]).unwrap();
    let read = read(&made.root);
    assert_eq!(read.disks().len(), 1);
    let shape = read.shape().unwrap();
    assert_eq!((shape.cpus, shape.memory_bytes, shape.nics.len()), (1, 1 << 30, 2));
}

#[test]
fn what_cannot_follow_its_disks_is_refused_with_all_reasons() {
    let with = |devices: &str| {
        let text = format!("<domain><name>a</name><devices>{devices}</devices></domain>");
        Definition::parse(&text).unwrap().refuse_unfit().map_err(|e| e.to_string())
    };
    let disk = |more: &str| format!("<disk><source file='/a'/><target dev='vda'/>{more}</disk>");
    assert!(with(&disk("")).is_ok());
    let cdrom = "<disk device='cdrom'><source file='/i'/><target dev='sda'/></disk>";
    assert!(with(&(disk("") + cdrom)).is_ok());
    for (devices, why) in [
        (cdrom.to_owned(), "it has no disk"),
        (disk("") + &disk(""), "two disks are named vda"),
        (disk("<shareable/>"), "is shared"),
        (disk("<transient/>"), "is transient"),
        (disk("<encryption format='luks'/>"), "is encrypted"),
        (disk("") + "<hostdev type='pci'/>", "passed through (pci)"),
        (disk("") + "<interface type='hostdev'/>", "network card of its host"),
        (disk("") + "<filesystem/>", "a directory of its host"),
        ("<disk device='lun'><source dev='/d'/><target dev='sda'/></disk>".to_owned(), "(lun)"),
        ("<disk type='network'><source protocol='rbd'/><target dev='vda'/></disk>".to_owned(), "rbd network disk"),
        ("<disk><target dev='vda'/></disk>".to_owned(), "has no source"),
    ] {
        let told = with(&devices).unwrap_err();
        assert!(told.contains(why), "{why}: {told}");
    }
    assert!(with(&(disk("<transient/>") + "<filesystem/>")).unwrap_err().contains("; "), "all of them at once");
    for (text, why) in [
        ("<pool/>", "must be a <domain>"),
        ("<domain/>", "name of a definition"),
        ("<domain><name>a</name><memory unit='parsec'>1</memory></domain>", "parsec"),
        ("<domain><name>a</name><memory unit='TiB'>99999999999</memory></domain>", "cannot be understood"),
        ("<domain><name>a</name><vcpu>many</vcpu></domain>", "many"),
    ] {
        let told = Definition::parse(text).and_then(|d| d.shape()).unwrap_err().to_string();
        assert!(told.contains(why), "{why}: {told}");
    }
}
