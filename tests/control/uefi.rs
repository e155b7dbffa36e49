//! A guest with UEFI under the QEMU driver: it boots by the firmware of this site, and what it writes into its variables is
//! there at its next start, also where it was defined anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use freshet::hypervisor::{
    AccelChoice, Console as ConsoleKind, DiskSpec, Hypervisor, OnReboot, QEMU_DEFINITION, QemuDefinition, QemuDriver,
    QemuSettings, VmSpec,
};
use freshet::ids::Name;

use super::appliance::{MIB, PATIENCE, Place};
use crate::support::console::Console;
use crate::support::guest::Kernel;
use crate::support::libvirt_site::with_a_guest;
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

fn with_firmware(what: &str, test: impl FnOnce(&Kernel)) {
    match Path::new(CODE).exists() {
        true => with_a_guest(what, test),
        false => skipped(what, &format!("no {CODE} here (package ovmf)")),
    }
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
        let driver = QemuDriver::new(own);
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
