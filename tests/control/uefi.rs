//! Guests with UEFI under both drivers: they boot by the firmware of this site, whatever that of the other one was called, and
//! what they write into its variables is there at their next start, also where they were defined anew.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use freshet::hypervisor::{
    AccelChoice, Console as ConsoleKind, DiskSpec, Hypervisor, OnReboot, QEMU_DEFINITION, QemuDefinition, QemuDriver,
    QemuSettings, VmSpec,
};
use freshet::ids::Name;

use super::appliance::{MIB, PATIENCE, Place};
use crate::support::console::Console;
use crate::support::guest::Kernel;
use crate::support::libvirt::Libvirt;
use crate::support::libvirt_site::with_a_guest;
use crate::support::real_images::{find, tool};
use crate::support::skipped;

const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const MODULES: [&str; 3] = ["drivers/acpi/button", "drivers/input/evdev", "fs/efivarfs/efivarfs"];

/// Tells how many variables of its own it finds, and adds one.
const SCRIPT: &str = r#"
mount -t sysfs sys /sys
[ -d /sys/firmware/efi ] || echo failed: no uefi
mount -t efivarfs efivarfs /sys/firmware/efi/efivars || echo failed: no variables
cd /sys/firmware/efi/efivars
found=$(ls | grep -c '^Freshet')
for button in /dev/input/event*; do
    (dd if=$button bs=24 count=1 of=/dev/null 2> /dev/null; touch /stop) &
done
printf '\007\000\000\000own' > Freshet$found-5d1e2ac4-94ea-4b6f-8b0d-30f43a3b5c5d && echo "variables $found"
while [ ! -e /stop ]; do sleep 0.1; done
poweroff -f
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn spec(kind: &str, definition: String, uri: String) -> VmSpec {
    VmSpec {
        name: name("web"),
        domain: name("d"),
        cpus: 1,
        memory_bytes: 192 * MIB,
        firmware: "uefi".to_owned(),
        disks: vec![DiskSpec { name: name("vda"), uri, size: 4 * MIB }],
        nics: Vec::new(),
        placement: Default::default(),
        storage_policy: String::new(),
        definition_kind: kind.to_owned(),
        definition,
    }
}

/// Waits until the guest has told its variables so often; how many it found the last time.
fn variables(console: &Console, boots: usize) -> u64 {
    console.wait("a boot by UEFI", || console.count("variables") >= boots);
    console.assert_no_alarm();
    console.newest("variables").unwrap()
}

/// An export of an image, ended with this.
struct Export(Child);

impl Export {
    fn start(socket: &Path, image: &Path) -> Export {
        let mut command = tool("qemu-nbd");
        command
            .args(["--persistent", "--format", "raw", "--export-name", "web/vda", "--socket"])
            .arg(socket)
            .arg(image);
        let export = Export(command.stdin(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < PATIENCE, "qemu-nbd does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        export
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_firmware(what: &str, test: impl FnOnce(&Kernel)) {
    match (Path::new(CODE).exists(), find("qemu-nbd")) {
        (true, Some(_)) => with_a_guest(what, test),
        (false, _) => skipped(what, &format!("no {CODE} here (package ovmf)")),
        (_, None) => skipped(what, "no qemu-nbd here"),
    }
}

#[test]
fn a_guest_under_libvirt_boots_by_the_firmware_of_this_site_and_keeps_its_variables() {
    with_firmware("UEFI under libvirt", |kernel| {
        let place = Place::new();
        let initramfs = place.path("initramfs");
        kernel.pack_with(&MODULES, SCRIPT, &initramfs);
        let console = Console(place.path("console"));
        let definition = |loader: &str| {
            format!(
                "<domain type='qemu'><name>web</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>\
                 <os><type arch='x86_64' machine='pc-q35-99.0'>hvm</type><loader readonly='yes' type='pflash'>{loader}</loader>\
                 <nvram>/not/here/web_VARS.fd</nvram><kernel>{}</kernel><initrd>{}</initrd>\
                 <cmdline>console=ttyS0 loglevel=5 panic=-1 no_timer_check</cmdline></os><features><acpi/></features>\
                 <on_reboot>destroy</on_reboot><devices><disk type='file' device='disk'><source file='/not/here/web.img'/>\
                 <target dev='vda' bus='virtio'/></disk>\
                 <serial type='file'><source path='{}' append='on'/></serial></devices></domain>",
                kernel.image().display(),
                initramfs.display(),
                console.0.display()
            )
        };
        let socket = place.path("export.sock");
        let _export = Export::start(&socket, &place.image("web.img"));
        let uri = format!("nbd+unix:///web%2Fvda?socket={}", socket.display());
        let libvirt = Libvirt::start(&place.path("l"));
        let driver = libvirt.driver(&place.path("seeds"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Firmware of another distribution first, then a file that this site has, too.
        for (boots, loader) in [(1, "/usr/share/edk2/ovmf/OVMF_CODE.fd"), (2, CODE)] {
            let web = spec("libvirt-xml", definition(loader), uri.clone());
            assert_eq!(runtime.block_on(driver.would_refuse(std::slice::from_ref(&web))).unwrap(), []);
            runtime.block_on(driver.define(&web)).unwrap();
            runtime.block_on(driver.start(&web.name)).unwrap();
            assert_eq!(variables(&console, boots), boots as u64 - 1, "what was written at the boot before");
            assert!(runtime.block_on(driver.shutdown(&web.name, PATIENCE)).unwrap());
        }
        runtime.block_on(driver.undefine(&name("web"))).unwrap();
        let kept = std::fs::read_dir(place.path("l/lib/qemu/nvram")).unwrap().count();
        assert_eq!(kept, 1, "its variables stay");
    });
}

#[test]
fn a_guest_under_qemu_boots_by_the_firmware_of_this_site_and_keeps_its_variables() {
    with_firmware("UEFI under QEMU", |kernel| {
        let place = Place::new();
        let boot = place.path("boot");
        std::fs::create_dir(&boot).unwrap();
        std::fs::copy(kernel.image(), boot.join("kernel")).unwrap();
        kernel.pack_with(&MODULES, SCRIPT, &boot.join("initrd"));
        let definition = QemuDefinition {
            kernel: Some(boot.join("kernel")),
            initrd: Some(boot.join("initrd")),
            append: "console=ttyS0 loglevel=5 panic=-1 no_timer_check".to_owned(),
            on_reboot: OnReboot::Stop,
            ..QemuDefinition::default()
        };
        let uri = format!("file://{}", place.image("web.img").display());
        let web = spec(QEMU_DEFINITION, serde_json::to_string(&definition).unwrap(), uri);
        let own = QemuSettings {
            accel: AccelChoice::Tcg,
            console: ConsoleKind::File,
            boot_dirs: vec![boot],
            poll: Duration::from_millis(50),
            ..QemuSettings::plain(place.path("vms"), PathBuf::from(freshet::demo::guest::QEMU))
        };
        let driver = QemuDriver::new(own).unwrap();
        let console = Console(place.path("vms/web/console"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = async {
            for boot in 0..2 {
                // Its console is a new file at each start.
                driver.define(&web).await.unwrap();
                driver.start(&web.name).await.unwrap();
                let found = variables(&console, 1);
                assert_eq!(found, boot, "what was written at the boot before");
                assert!(driver.shutdown(&web.name, PATIENCE).await.unwrap());
            }
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(test)));
        runtime.block_on(driver.kill(&web.name)).unwrap();
        ended.unwrap();
    });
}
