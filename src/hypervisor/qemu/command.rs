//! From a VM to the arguments of its QEMU. Pure.
//!
//! What a definition says goes into JSON arguments or into arguments of its own, so that no comma in a name is an option.
//! Sockets and files of the VM's folder are named without a path: QEMU is started there.

use std::ffi::OsString;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::definition::{Machine, OnReboot, QemuDefinition};
use super::disk;
use super::folder::SEED;
use super::settings::{Console, NetworkKind, QemuSettings};
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{NicSpec, SEED_SERIAL, VmSpec, seed};

/// The monitor's socket.
pub(super) const MONITOR: &str = "monitor";
/// The socket of the monitor that only tells events.
pub(super) const EVENTS: &str = "events";
/// The agent's socket.
pub(super) const AGENT: &str = "agent";
/// The console, where it goes to a file.
pub(super) const CONSOLE: &str = "console";
/// The UEFI variables.
pub(super) const UEFI_VARS: &str = "uefi-vars";
/// Node of disk `n`.
pub(super) fn disk_node(n: usize) -> String {
    format!("disk{n}")
}
/// Device of disk `n`.
pub(super) fn disk_device(n: usize) -> String {
    format!("vd{n}")
}

/// Memory of a VM whose definition does not say.
const DEFAULT_MEMORY: u64 = 512 << 20;
/// Least and most memory, in bytes.
const MEMORY: std::ops::RangeInclusive<u64> = (16 << 20)..=(64 << 40);
/// Most processors.
const MAX_CPUS: u32 = 255;
/// Most disks: a virtio disk takes a slot of the bus, of which 32 are there.
const MAX_DISKS: usize = 20;
/// Most network cards, for the same reason.
const MAX_NICS: usize = 8;

/// Everything that QEMU is told about `spec`. With `kvm` its own processor, else software emulation.
///
/// # Errors
/// `Invalid` where it cannot be made here, with what to change.
pub(super) fn arguments(
    spec: &VmSpec,
    own: &QemuDefinition,
    settings: &QemuSettings,
    kvm: bool,
) -> Result<Vec<OsString>> {
    let bad = |why: String| Error::new(ErrorKind::Invalid, format!("VM {}: {why}", spec.name));
    let memory = if spec.memory_bytes == 0 { DEFAULT_MEMORY } else { spec.memory_bytes };
    if !MEMORY.contains(&memory) || spec.cpus > MAX_CPUS {
        let why = format!("{} CPUs and {memory} bytes of memory; at most {MAX_CPUS} and 16 MiB to 64 TiB", spec.cpus);
        return Err(bad(why));
    }
    if spec.disks.is_empty() || spec.disks.len() > MAX_DISKS || spec.nics.len() > MAX_NICS {
        let why = format!("{} disks and {} network cards", spec.disks.len(), spec.nics.len());
        return Err(bad(format!("{why}; 1 to {MAX_DISKS} disks and at most {MAX_NICS} cards can be made")));
    }
    let mut out = Arguments::default();
    let machine = match own.machine {
        Machine::Q35 => "q35",
        Machine::Pc => "pc",
    };
    out.pair("-name", format!("guest={}", spec.name.as_str().replace(',', ",,")));
    out.pair("-machine", format!("{machine},accel={}", if kvm { "kvm" } else { "tcg" }));
    out.pair("-cpu", processor(kvm));
    out.pair("-smp", spec.cpus.max(1).to_string());
    // Rounded up: a guest never has less than it is said to.
    out.pair("-m", format!("{}M", memory.div_ceil(1 << 20)));
    for flag in ["-nodefaults", "-no-user-config"] {
        out.plain(flag);
    }
    out.pair("-display", "none");
    let reboot = match own.on_reboot {
        OnReboot::Restart => "reset",
        OnReboot::Stop => "shutdown",
    };
    // A guest that panicked stands still, so that it can be seen.
    out.pair("-action", format!("panic=pause,reboot={reboot}"));
    out.pair("-device", "pvpanic");
    monitor_and_console(&mut out, settings.console);
    firmware(&mut out, spec, settings)?;
    if let Some(kernel) = &own.kernel {
        out.pair("-kernel", kernel);
        if let Some(initrd) = &own.initrd {
            out.pair("-initrd", initrd);
        }
        out.pair("-append", &own.append);
    }
    for (n, given) in spec.disks.iter().enumerate() {
        let node = disk_node(n);
        out.json("-blockdev", &disk::node(&node, &given.uri, settings.reconnect.as_secs())?);
        out.json("-device", &disk_of(n, given.name.as_str()));
    }
    for (n, nic) in spec.nics.iter().enumerate() {
        card(&mut out, spec, n, nic, settings)?;
    }
    if seed::wanted(spec) {
        let file = json!({"driver": "file", "filename": SEED, "read-only": true});
        out.json("-blockdev", &json!({"driver": "raw", "node-name": "seed", "read-only": true, "file": file}));
        // The last device of all: those of the guest's own keep their slots, and with them the names of cards and disks.
        let device = json!({"driver": "virtio-blk-pci", "id": "seed", "drive": "seed", "serial": SEED_SERIAL});
        out.json("-device", &device);
    }
    Ok(out.0)
}

/// The processor that guests see.
pub(super) fn processor(kvm: bool) -> &'static str {
    if kvm { "host" } else { "max" }
}

fn disk_of(n: usize, name: &str) -> Value {
    /// Most bytes of a serial number that a virtio disk shows.
    const SERIAL: usize = 20;
    let serial: String = name.chars().filter(char::is_ascii_graphic).take(SERIAL).collect();
    json!({
        // An error pauses the guest, which never sees it; the disk's own name is in the guest's /dev/disk/by-id.
        "driver": "virtio-blk-pci", "id": disk_device(n), "drive": disk_node(n), "serial": serial,
        "bootindex": n + 1, "write-cache": "on", "werror": "stop", "rerror": "stop",
    })
}

fn monitor_and_console(out: &mut Arguments, console: Console) {
    for (id, socket) in [("monitor", MONITOR), ("events", EVENTS), ("agent", AGENT)] {
        out.pair("-chardev", format!("socket,id={id},path={socket},server=on,wait=off"));
    }
    for id in ["monitor", "events"] {
        out.pair("-mon", format!("chardev={id},mode=control"));
    }
    out.pair("-device", "virtio-serial-pci");
    out.pair("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0");
    out.pair(
        "-chardev",
        match console {
            Console::Ring => "ringbuf,id=console,size=65536".to_owned(),
            Console::File => format!("file,id=console,path={CONSOLE}"),
        },
    );
    out.pair("-serial", "chardev:console");
}

fn firmware(out: &mut Arguments, spec: &VmSpec, settings: &QemuSettings) -> Result<()> {
    let pflash = |node: &str, path: &str, read_only: bool| json!({"driver": "raw", "node-name": node, "read-only": read_only, "file": {"driver": "file", "filename": path}});
    match spec.firmware.as_str() {
        "" | "bios" => Ok(()),
        "uefi" => {
            let code = settings.uefi_code.to_str().unwrap_or_default();
            out.json("-blockdev", &pflash("uefi-code", code, true));
            out.json("-blockdev", &pflash("uefi-vars", UEFI_VARS, false));
            out.pair("-machine", "pflash0=uefi-code,pflash1=uefi-vars");
            Ok(())
        }
        other => {
            let why = format!("VM {}: firmware {other:?} is neither bios nor uefi", spec.name);
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

fn card(out: &mut Arguments, spec: &VmSpec, n: usize, nic: &NicSpec, settings: &QemuSettings) -> Result<()> {
    let bad = |why: String| Error::new(ErrorKind::Invalid, format!("VM {}, card {n}: {why}", spec.name));
    let model = match nic.model.as_str() {
        "" | "virtio" | "virtio-net" | "virtio-net-pci" | "vmxnet3" => "virtio-net-pci",
        "e1000" => "e1000",
        "e1000e" => "e1000e",
        "rtl8139" => "rtl8139",
        other => return Err(bad(format!("model {other:?} is none of virtio, e1000, e1000e, rtl8139"))),
    };
    // QEMU's own choice would be the same for the first card of every VM.
    let mac = seed::mac_of(spec, n);
    if !seed::is_mac(&mac) {
        return Err(bad(format!("{mac:?} is no hardware address")));
    }
    let mut device = json!({"driver": model, "id": format!("nic{n}"), "mac": mac});
    // Without a network the card is there, and its cable is not.
    if !nic.network.is_empty() {
        let network = settings.networks.iter().find(|known| known.name == nic.network);
        let network = network.ok_or_else(|| {
            let known: Vec<&str> = settings.networks.iter().map(|known| known.name.as_str()).collect();
            bad(format!("network {} is none of this site's: {}", nic.network, known.join(", ")))
        })?;
        let id = format!("net{n}");
        let made = match &network.kind {
            NetworkKind::Bridge { bridge } => json!({"type": "bridge", "id": id, "br": bridge}),
            NetworkKind::User { forwards } => {
                let own = forwards.iter().filter(|forward| forward.vm == spec.name);
                let ways: Vec<Value> = own.map(|f| json!({"str": host_forward(f.listen, f.port)})).collect();
                json!({"type": "user", "id": id, "hostfwd": ways})
            }
        };
        out.json("-netdev", &made);
        device["netdev"] = id.into();
    }
    out.json("-device", &device);
    Ok(())
}

fn host_forward(listen: SocketAddr, port: u16) -> String {
    format!("tcp:{}:{}-:{port}", listen.ip(), listen.port())
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn plain(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.pair(option, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::samples;
    use crate::hypervisor::qemu::settings::{Forward, QemuNetwork};

    fn settings() -> QemuSettings {
        let forwards = ["web", "db"].map(|vm| Forward {
            vm: samples::name(vm),
            listen: "127.0.0.1:8080".parse().unwrap(),
            port: 80,
        });
        let network = |name: &str, kind| QemuNetwork { name: name.to_owned(), kind };
        QemuSettings {
            uefi_code: "/fw,code".into(),
            reconnect: std::time::Duration::from_secs(60),
            networks: vec![
                network("lan", NetworkKind::User { forwards: forwards.into() }),
                network("dmz", NetworkKind::Bridge { bridge: "br0".to_owned() }),
            ],
            ..QemuSettings::plain("/q".into(), "/usr/bin/qemu".into())
        }
    }

    fn made(spec: &VmSpec) -> Result<String> {
        let own = QemuDefinition::default();
        let words = arguments(spec, &own, &settings(), false)?;
        Ok(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    fn nic(network: &str, mac: &str) -> NicSpec {
        NicSpec { network: network.into(), mac: mac.into(), ..NicSpec::default() }
    }

    #[test]
    fn a_vm_gets_what_its_definition_says() {
        let mut vm = samples::spec("shop", "web");
        vm.nics = vec![nic("lan", "52:54:00:12:34:56"), nic("dmz", ""), nic("", "")];
        let text = made(&vm).unwrap();
        for part in [
            "-m 1024M",
            "-smp 2",
            "accel=tcg",
            "pflash0=uefi-code",
            "\"filename\":\"/fw,code\"",
            "\"export\":\"web/system\"",
            "\"reconnect-delay\":60",
            "\"serial\":\"system\"",
            "\"mac\":\"52:54:00:12:34:56\"",
            "\"hostfwd\":[{\"str\":\"tcp:127.0.0.1:8080-:80\"}]",
            "\"br\":\"br0\"",
            "panic=pause,reboot=reset",
            "\"rerror\":\"stop\"",
            "\"werror\":\"stop\"",
            "ringbuf",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(text.matches("-netdev").count(), 2);
        assert!(!text.contains("seed"), "no card has an address");
        vm.nics[1].address = "10.9.0.5/24".into();
        let text = made(&vm).unwrap();
        assert!(text.rfind("freshet-seed") > text.rfind("\"id\":\"nic2\""), "cards keep their slots: {text}");
        assert!(text.contains("\"filename\":\"seed.img\"") && text.contains("\"serial\":\"freshet-seed\""), "{text}");
        assert!(text.contains(&format!("\"mac\":\"{}\"", seed::mac_of(&vm, 1))), "{text}");
        vm.name = samples::name("a,b");
        assert!(made(&vm).unwrap().contains("guest=a,,b"));
    }

    #[test]
    fn what_cannot_be_made_is_refused_with_the_reason() {
        let bad = |change: &dyn Fn(&mut VmSpec)| {
            let mut vm = samples::spec("shop", "web");
            change(&mut vm);
            made(&vm).unwrap_err().to_string()
        };
        assert!(bad(&|vm| vm.disks.clear()).contains("0 disks"));
        assert!(bad(&|vm| vm.cpus = 4096).contains("4096 CPUs"));
        assert!(bad(&|vm| vm.memory_bytes = 1).contains("memory"));
        assert!(bad(&|vm| vm.firmware = "openboot".into()).contains("openboot"));
        assert!(bad(&|vm| vm.nics = vec![nic("wan", "")]).contains("lan, dmz"));
        assert!(bad(&|vm| vm.nics = vec![nic("lan", "52:54:00:12:34:5g")]).contains("hardware address"));
        assert!(bad(&|vm| vm.nics = vec![NicSpec { model: "ne2k".into(), ..nic("", "") }]).contains("ne2k"));
        assert!(bad(&|vm| vm.disks[0].uri = "ftp://x".into()).contains("ftp"));
        assert!(bad(&|vm| vm.nics = vec![nic("", ""); 9]).contains("9 network cards"));
    }
}
