//! A guest under libvirt that writes numbered lines onto all its disks, one after the other, each durable before the next,
//! and tells its console whether all are there when it boots.
//!
//! What it is started with on its kernel's command line: `hold=N` waits so many seconds before it obeys its power button,
//! `agent=hangs` takes what its agent is told and never answers, `part=panics` panics before it looks at its disks. One with a
//! card also tells which hardware it has.

use std::path::{Path, PathBuf};

use super::agent;
use super::appliance::Place;
use super::console::Console;
use super::guest::Kernel;
use super::real_images::{run, tool};

/// Modules beside those of a disk and a power button: a channel, and the device that tells of a panic.
const MODULES: [&str; 5] = [
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/char/virtio_console",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
];

/// Modules of a card, beside those.
const CARD: [&str; 3] = ["net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"];

/// What one with a card does before: tells its processors, its memory in KiB, and the address of its card.
const TELL: &str = r#"
mount -t sysfs sys /sys
ip link set eth0 up || echo failed: card
echo "cpus $(grep -c ^processor /proc/cpuinfo)"
echo "memory $(sed -n 's/^MemTotal: *\([0-9]*\) .*/\1/p' /proc/meminfo)"
echo "card $(cat /sys/class/net/eth0/address)"
"#;

/// What it does: tells what it finds, writes on, and ends with its power button.
const SCRIPT: &str = r#"
[ "$part" = panics ] && echo c > /proc/sysrq-trigger
[ "$agent" = hangs ] && (cat /dev/vport0p1 > /dev/null &)
state=whole first= last=
mkdir /disks
for disk in /dev/vd?; do
    at=/disks/${disk##*/}
    mkdir $at
    mount -t ext4 $disk $at || echo failed: mount $disk
    touch $at/rows
    awk '$2 != NR { bad = 1 } END { exit bad }' $at/rows || state=torn
    n=$(wc -l < $at/rows)
    first=${first:-$n}
    # One disk is at most a line behind the one before it: all are of one moment.
    [ "$n" -le "${last:-$n}" ] && [ "$n" -ge $((first - 1)) ] || state=torn
    last=$n
    [ "$n" -ge "$first" ] || echo "row $first" >> $at/rows
done
echo "$state $last"
for button in /dev/input/event*; do
    (dd if=$button bs=24 count=1 of=/dev/null 2> /dev/null; echo asked; sleep ${hold:-0}; touch /stop) &
done
n=$first
while [ ! -e /stop ]; do
    n=$((n + 1))
    for at in /disks/*; do
        echo "row $n" | dd of=$at/rows oflag=append conv=notrunc,fsync 2> /dev/null || echo failed: row $n
    done
    echo "kept $n"
    sleep 0.05
done
umount /disks/* && echo "down $n"
poweroff -f
"#;

/// What a definition of it is made of.
pub(crate) struct LibvirtGuest {
    pub(crate) name: &'static str,
    kernel: PathBuf,
    initramfs: PathBuf,
    pub(crate) console: Console,
    /// Elements of its disks.
    pub(crate) disks: String,
    /// Further devices.
    pub(crate) devices: String,
    /// Further words on its kernel's command line.
    pub(crate) words: &'static str,
    /// What becomes of it where it panics.
    pub(crate) on_crash: &'static str,
}

impl LibvirtGuest {
    /// One without a disk, and its script in a place.
    pub(crate) fn new(place: &Place, kernel: &Kernel, name: &'static str) -> LibvirtGuest {
        let initramfs = place.path("initramfs");
        if !initramfs.exists() {
            kernel.pack_with(&MODULES, SCRIPT, &initramfs);
        }
        LibvirtGuest::of(place, kernel, name, initramfs)
    }

    /// The same for one that has a card, and these programs of an agent that runs.
    pub(crate) fn with_card(
        place: &Place,
        kernel: &Kernel,
        name: &'static str,
        programs: &[(String, PathBuf)],
    ) -> LibvirtGuest {
        let initramfs = place.path("initramfs-card");
        let script = [agent::RUN, TELL, SCRIPT].concat();
        kernel.pack_both(&[&MODULES[..], &CARD].concat(), programs, &script, &initramfs);
        LibvirtGuest::of(place, kernel, name, initramfs)
    }

    fn of(place: &Place, kernel: &Kernel, name: &'static str, initramfs: PathBuf) -> LibvirtGuest {
        // Its own, since libvirt gives such files to the user that QEMU runs as.
        let own = place.path("kernel");
        if !own.exists() {
            std::fs::copy(kernel.image(), &own).unwrap();
        }
        let console = Console(place.path(&format!("console-{name}")));
        std::fs::write(&console.0, "").unwrap();
        let (disks, devices) = (String::new(), String::new());
        LibvirtGuest { name, kernel: own, initramfs, console, disks, devices, words: "", on_crash: "destroy" }
    }

    /// As libvirt takes it.
    pub(crate) fn xml(&self) -> String {
        let LibvirtGuest { name, disks, devices, words, on_crash, .. } = self;
        let (kernel, initramfs) = (self.kernel.display(), self.initramfs.display());
        format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64'>hvm</type><kernel>{kernel}</kernel><initrd>{initramfs}</initrd>\
             <cmdline>console=ttyS0 loglevel=5 panic=-1 no_timer_check {words}</cmdline></os><features><acpi/></features>\
             <on_reboot>destroy</on_reboot><on_crash>{on_crash}</on_crash><devices>{disks}{devices}\
             <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
             <serial type='file'><source path='{}' append='on'/></serial></devices></domain>",
            self.console.0.display(),
        )
    }
}

/// A disk in a file.
pub(crate) fn file_disk(target: &str, path: &Path, format: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
         <target dev='{target}' bus='virtio'/></disk>",
        path.display()
    )
}

/// A raw image with an empty ext4 in it.
pub(crate) fn raw_image(place: &Place, name: &str) -> PathBuf {
    let raw = place.path(name);
    std::fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
    run(tool("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&raw));
    raw
}

/// The same in qcow2.
pub(crate) fn qcow2_image(place: &Place, name: &str) -> PathBuf {
    let (raw, image) = (raw_image(place, "raw"), place.path(name));
    run(tool("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&image));
    std::fs::remove_file(raw).unwrap();
    image
}
