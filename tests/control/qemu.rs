//! Real guests under the driver `qemu`: a planned failover onto disks that followed, a planned way back, and a failover by
//! force, each with the guest's own word on what it found on its disks, while one appliance is killed and a guest panics.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use freshet::demo::guest::{GUEST_MODULES, GuestKernel, QEMU};
use freshet::hypervisor::{
    Console, DiskSpec, Hypervisor, OnReboot, PowerState, QEMU_DEFINITION, QemuDefinition, QemuDriver, QemuSettings,
    VmSpec,
};
use freshet::ids::Name;
use serde_json::Value;

use super::appliance::{Appliance, MIB, Place};
use super::failovers::Site;
use crate::support::real_images::{Kind, find};
use crate::support::skipped;

/// Boots are counted on the first disk. Lines are written onto one disk after the other, each with fsync: all disks are of one
/// moment where the second has as many lines as the first, or one less.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module" || echo "failed: $module"; done
[ "$part" = panics ] && echo c > /proc/sysrq-trigger
mount -t ext4 /dev/vda /mnt || echo "failed: mount"
if [ "$part" = writes ]; then
    mount -t ext4 /dev/vdb /data || echo "failed: mount of the second"
fi
echo boot >> /mnt/boots
sync
touch /mnt/lines /data/lines
behind=$(($(wc -l < /mnt/lines) - $(wc -l < /data/lines)))
[ "$behind" = 0 ] || [ "$behind" = 1 ] || echo "failed: the second disk is $behind lines behind"
tail -n "$behind" /mnt/lines >> /data/lines
echo "boots $(wc -l < /mnt/boots) lines $(wc -l < /mnt/lines)"
stop=
trap 'stop=1' USR1
for input in /dev/input/event*; do (head -c 24 "$input" > /dev/null && kill -USR1 1) & done
n=$(wc -l < /mnt/lines)
while [ -z "$stop" ]; do
    n=$((n + 1))
    for disk in /mnt /data; do
        echo "$n" | dd of=$disk/lines oflag=append conv=notrunc,fsync 2> /dev/null || echo "failed: line $n"
    done
    echo "line $n"
done
umount /mnt /data && echo "stopped after $n"
poweroff -f
"#;
/// Longest wait for what a guest says: several boots under software emulation on a busy machine.
const LONG: Duration = Duration::from_secs(240);

/// One that writes, and one that panics.
const VMS: [&str; 2] = ["web", "bad"];

/// A site with the driver `qemu`, and a second driver of the test's own over the same folder.
struct Guests<'p> {
    site: Site<'p>,
    driver: QemuDriver,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Guests<'_> {
    fn drop(&mut self) {
        for vm in VMS {
            let _ = self.runtime.block_on(self.driver.kill(&name(vm)));
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl<'p> Guests<'p> {
    fn start(place: &'p Place, at: &'static str) -> Guests<'p> {
        let site = Site::with(place, at, &settings(place, at), Place::serve_with);
        let own = QemuSettings {
            accel: freshet::hypervisor::AccelChoice::Tcg,
            console: Console::File,
            boot_dirs: vec![place.path("boot")],
            ..QemuSettings::plain(place.path(&format!("{at}-vms")), PathBuf::from(QEMU))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Guests { site, driver: QemuDriver::new(own), runtime }
    }

    /// The appliance is killed, and another one started.
    fn kill_and_serve_again(&mut self) {
        let (place, at) = (self.site.place, self.site.name);
        let again = place.settings(at, &settings(place, at));
        let socket = self.site.appliance.socket.clone();
        self.site.appliance.crash();
        self.site.appliance = Appliance::start(&again, &socket).unwrap();
    }

    /// Appliance and guests end at once.
    fn power_failure(&mut self) {
        self.site.appliance.crash();
        for vm in VMS {
            self.runtime.block_on(self.driver.kill(&name(vm))).unwrap();
        }
    }

    fn state(&self, vm: &str) -> PowerState {
        self.runtime.block_on(self.driver.state(&name(vm))).unwrap()
    }

    fn pid(&self, vm: &str) -> u64 {
        let path = self.site.place.path(&format!("{}-vms/{vm}/process", self.site.name));
        let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        record["pid"].as_u64().unwrap()
    }

    /// What the guest has said, in whole lines: half a number is another one.
    fn console(&self) -> String {
        let path = self.site.place.path(&format!("{}-vms/web/console", self.site.name));
        let mut bytes = std::fs::read(path).unwrap_or_default();
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest has said something that `wanted` finds.
    fn said<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let console = self.console();
            if let Some(found) = wanted(&console) {
                assert!(!console.contains("failed:"), "{}: {console}", self.site.name);
                return found;
            }
            assert!(began.elapsed() < LONG, "{}: {what} never came: {console}", self.site.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the guest found at its boot: boots and lines.
    fn found(&self) -> (u64, u64) {
        self.said("its boot", |console| {
            let words = console.lines().find_map(|line| line.trim().strip_prefix("boots "))?;
            let (boots, lines) = words.split_once(" lines ")?;
            Some((boots.parse().ok()?, lines.parse().ok()?))
        })
    }

    /// The newest line that the guest said to be on its disk.
    fn newest(&self) -> u64 {
        let console = self.console();
        console.lines().rev().find_map(|line| line.trim().strip_prefix("line ")?.parse().ok()).unwrap_or(0)
    }

    fn some_more(&self) {
        let now = self.newest();
        self.said("more lines", |_| (self.newest() > now + 5).then_some(()));
    }

    /// The last line that it wrote before it was off.
    fn stopped(&self) -> u64 {
        self.said("its end", |console| {
            console.lines().find_map(|line| line.trim().strip_prefix("stopped after ")?.parse().ok())
        })
    }
}

fn settings(place: &Place, at: &str) -> String {
    format!(
        "[hypervisor]\nkind = \"qemu\"\npoll = \"50ms\"\nlimit = \"4m\"\n[qemu]\ndir = {:?}\naccel = \"tcg\"\n\
         console = \"file\"\nboot_dirs = [{:?}]\n[failover]\nshutdown_limit = \"4m\"\n",
        place.path(&format!("{at}-vms")),
        place.path("boot"),
    )
}

/// Kernel and first root, and the definition of a guest that plays `part`.
fn build(place: &Place, kernel: &GuestKernel) {
    let boot = place.path("boot");
    std::fs::create_dir(&boot).unwrap();
    std::fs::copy(kernel.image(), boot.join("kernel")).unwrap();
    std::fs::write(boot.join("initrd"), kernel.initramfs(&GUEST_MODULES, INIT.as_bytes()).unwrap()).unwrap();
    for (vm, part) in [("web", "writes"), ("bad", "panics")] {
        let definition = QemuDefinition {
            kernel: Some(boot.join("kernel")),
            initrd: Some(boot.join("initrd")),
            append: format!("console=ttyS0 quiet panic=-1 part={part}"),
            on_reboot: OnReboot::Stop,
            ..QemuDefinition::default()
        };
        std::fs::write(place.path(vm), serde_json::to_vec(&definition).unwrap()).unwrap();
    }
}

/// Protects VM `vm` with these disks, as an operator does; where they are served.
fn protect(site: &Site<'_>, vm: &str, disks: &[(&str, &std::path::Path)]) -> Vec<String> {
    let file = site.place.path(vm).display().to_string();
    let disks: Vec<String> = disks.iter().map(|(disk, image)| format!("{disk}={}", image.display())).collect();
    let mut words = vec!["vm", "protect", "d", vm, "--definition", &file];
    disks.iter().for_each(|disk| words.extend(["--disk", disk]));
    words.extend(["--definition-kind", QEMU_DEFINITION, "--cpus", "1", "--memory", "128MiB"]);
    site.ask(&words);
    let shown = site.appliance.until("d", "its disks are served", |shown| uris(shown, vm).is_some());
    uris(&shown, vm).unwrap()
}

fn uris(shown: &Value, vm: &str) -> Option<Vec<String>> {
    let own = shown["vms"].as_array()?.iter().find(|one| one["name"] == vm)?;
    let uri = |disk: &Value| disk["export_uri"].as_str().filter(|uri| !uri.is_empty()).map(str::to_owned);
    own["disks"].as_array()?.iter().map(uri).collect()
}

/// A domain with a guest that runs at the first site, on its export, and one that is off there and panics where it starts.
fn two_guests(place: &Place) -> Guests<'_> {
    let first = Guests::start(place, "first");
    first.site.ask(&["store", "add", "s", "--url", &place.store_url()]);
    first.site.ask(&["domain", "create", "d", "--store", "s"]);
    let (root, data, tree) = (place.path("root"), place.path("data"), place.path("tree"));
    std::fs::create_dir(&tree).unwrap();
    [&root, &data].into_iter().for_each(|image| Kind::Ext4.make(image, 32 * MIB, &tree));
    let uris = protect(&first.site, "web", &[("root", &root), ("data", &data)]);
    let disk = |(disk, uri): (&str, String)| DiskSpec { name: name(disk), uri, size: 32 * MIB };
    let spec = VmSpec {
        name: name("web"),
        domain: name("d"),
        cpus: 1,
        memory_bytes: 128 * MIB,
        firmware: String::new(),
        disks: ["root", "data"].into_iter().zip(uris).map(disk).collect(),
        nics: Vec::new(),
        placement: Default::default(),
        storage_policy: String::new(),
        definition_kind: QEMU_DEFINITION.to_owned(),
        definition: std::fs::read_to_string(place.path("web")).unwrap(),
    };
    first.runtime.block_on(first.driver.define(&spec)).unwrap();
    first.runtime.block_on(first.driver.start(&spec.name)).unwrap();
    protect(&first.site, "bad", &[("root", &place.image("bad-disk"))]);
    assert_eq!(first.found(), (1, 0));
    first.some_more();
    first.site.appliance.until_recoverable("d");
    first
}

#[test]
fn guests_go_over_and_come_back_and_one_that_panics_is_told() {
    let what = "guests of QEMU through a planned failover";
    let given = std::env::var_os("FRESHET_GUEST_DIR").map(PathBuf::from);
    let kernel = match GuestKernel::find(&given.into_iter().chain(["/".into()]).collect::<Vec<_>>()) {
        _ if find("qemu-system-x86_64").is_none() => return skipped(what, "no qemu-system-x86_64 here"),
        _ if Kind::Ext4.missing().is_some() => return skipped(what, "no mke2fs here"),
        Ok(kernel) => kernel,
        Err(why) => return skipped(what, &why.to_string()),
    };
    let place = Place::new();
    build(&place, &kernel);
    let mut first = two_guests(&place);
    let mut second = Guests::start(&place, "second");
    second.site.ask(&["store", "add", "s", "--url", &place.store_url()]);
    second.site.ask(&["domain", "import", "d", "--store", "s"]);
    let there = second.site.datastore();
    let plan = ["--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    second.site.task(&[&["failover", "continuous", "d"][..], &plan].concat());
    second.site.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    first.some_more();
    second.site.task(&["failover", "complete", "d", "--planned", "--yes", "d"]);
    let last = first.stopped();
    assert_eq!(second.found(), (2, last), "every line is there");
    assert_eq!(first.state("web"), PowerState::Off);
    second.some_more();
    let panicked = |shown: &Value| shown["problems"].to_string().contains("VM bad: its guest panicked");
    second.site.appliance.until("d", "the panic", panicked);
    let events = second.site.ask(&["event", "list", "--subject", "d"]).to_string();
    assert!(events.contains("guest in trouble"), "{events}");

    // The guest goes on while nobody serves its disk, and the next appliance knows it.
    let pid = second.pid("web");
    second.kill_and_serve_again();
    second.some_more();
    assert_eq!((second.state("web"), second.pid("web")), (PowerState::Running, pid));
    second.site.appliance.until_recoverable("d");

    // On the way back one guest hears its power button, and the other is for the operator to switch off.
    first.site.until_idle();
    let back = first.site.datastore();
    let plan = ["--datastore", &back, "--log-size", "256MiB", "--in-place", "--yes", "d"];
    let begun = first.site.ask(&[&["failback", "start", "d", "--planned"][..], &plan].concat());
    let id = begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap().to_owned();
    let asked = second.site.asked("d");
    assert_eq!(asked["question"]["vms"], serde_json::json!(["bad"]), "{asked:#}");
    second.site.ask(&[
        "task",
        "answer",
        asked["id"].as_str().unwrap(),
        &asked["question"]["number"].to_string(),
        "power-off",
    ]);
    first.site.ended(&id, "TASK_STATE_DONE");
    let last = second.stopped();
    assert_eq!(first.found(), (3, last), "every line is there");
    assert_eq!(second.state("web"), PowerState::Off);
    first.some_more();
    taken_by_force(&mut first, &second);
}

/// The first site is gone with its guest in the middle of writing: the second has every line that was shipped, on its own disks.
fn taken_by_force(first: &mut Guests<'_>, second: &Guests<'_>) {
    first.site.appliance.until_recoverable("d");
    let shipped = first.newest();
    first.site.ask(&["domain", "point", "d"]);
    first.power_failure();
    let there = second.site.datastore();
    let plan = ["--datastore", &there, "--log-size", "256MiB", "--in-place", "--yes", "d"];
    second.site.task(&[&["failover", "start", "d"][..], &plan].concat());
    let (boots, lines) = second.found();
    assert!(boots == 4 && lines >= shipped, "{boots} boots, {lines} lines of {shipped}");
    second.some_more();
    second.site.until_mode("DOMAIN_MODE_RUNNING_IN_FAILOVER");
}
