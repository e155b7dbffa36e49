//! Real guests under real libvirt daemons, one for each site: what is asked of the driver, a running guest that is
//! protected without a stop, every way to the other site, and back. Content is checked by the guest itself, which reads its
//! numbered lines at each boot and tells its console whether all are there.

use std::path::PathBuf;
use std::time::Duration;

use super::appliance::{Place, Ran, freshet};
use super::libvirt_life;
use crate::support::console::Console;
use crate::support::guest::Kernel;
use crate::support::libvirt::{Libvirt, missing};
use crate::support::libvirt_guest::{file_disk, qcow2_image};
use crate::support::libvirt_site::{LibvirtSite, with_a_guest};
use crate::support::{agent, skipped};
use freshet::error::ErrorKind;
use freshet::hypervisor::{DiskSpec, Hypervisor, LibvirtDriver, LibvirtSettings, NicSpec, PowerState, Seed, VmSpec};
use freshet::ids::Name;

/// What the guest does: tells what it finds, writes on, and ends with its power button.
pub(super) const SCRIPT: &str = r#"
mount -t ext4 /dev/vda /mnt || echo failed: mount
touch /mnt/rows
awk '$2 != NR { bad = 1 } END { print (bad ? "torn " : "whole ") NR }' /mnt/rows
for button in /dev/input/event*; do
    (dd if=$button bs=24 count=1 of=/dev/null 2> /dev/null; touch /stop) &
done
n=$(wc -l < /mnt/rows)
while [ ! -e /stop ]; do
    n=$((n + 1))
    echo "row $n" >> /mnt/rows && sync && echo "kept $n"
    sleep 0.05
done
umount /mnt && echo "down $n"
poweroff -f
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn settings(uri: &str, place: &Place) -> LibvirtSettings {
    let (limit, poll) = (Duration::from_secs(60), Duration::from_millis(50));
    LibvirtSettings { uri: uri.to_owned(), limit, poll, exports: PathBuf::from("/"), seeds: place.path("seeds") }
}

/// A guest's definition, with its disk as `disk` says and its console in a file.
pub(super) fn definition(place: &Place, kernel: &Kernel, name: &str, disk: &str) -> String {
    let (console, initramfs) = (place.path("console"), place.path("initramfs"));
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>console=ttyS0 loglevel=5 panic=-1</cmdline></os><features><acpi/></features>\
         <on_reboot>destroy</on_reboot><devices>{disk}\
         <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <serial type='file'><source path='{}' append='on'/></serial></devices></domain>",
        kernel.image().display(),
        initramfs.display(),
        console.display(),
    )
}

#[test]
fn a_running_guest_is_protected_fails_over_and_back_and_is_let_go_with_every_line() {
    with_a_guest("a guest under libvirt", |kernel| {
        let place = Place::new();
        kernel.pack_with_button(SCRIPT, &place.path("initramfs"));
        let image = qcow2_image(&place, "web.qcow2");
        let console = Console(place.path("console"));
        let mut first = LibvirtSite::start(&place, "first");
        let mut second = LibvirtSite::start(&place, "second");
        first.libvirt.define(&definition(&place, kernel, "web", &file_disk("vda", &image, "qcow2")));
        first.libvirt.virsh(&["start", "web"]);
        assert_eq!(console.boots(1), 0);
        console.some_more();

        // Without a stop: no further boot, and its disk is the export now and from its next start on.
        first.make_domain();
        first.ask(&["vm", "protect", "d", "web"]);
        for which in ["--inactive", "--security-info"] {
            let xml = first.libvirt.virsh(&["dumpxml", which, "web"]);
            assert!(xml.contains("name='web/vda'") && !xml.contains("web.qcow2"), "{xml}");
        }
        first.appliance.until_recoverable("d");
        // A kill of the appliance is not noticed.
        first.crash();
        std::thread::sleep(Duration::from_millis(300));
        first.serve_again();
        console.some_more();
        console.assert_no_alarm();
        first.appliance.until_recoverable("d");

        // Planned: every line is there.
        second.import_domain();
        let shown = second.appliance.until_recoverable("d");
        assert_eq!(shown["vms"][0]["definition_kind"], "libvirt-xml", "{shown:#}");
        libvirt_life::changes_of_its_definition_travel(&first, &second);
        second.follow("failover", &[]);
        console.some_more();
        second.task(&["failover", "complete", "d", "--planned", "--yes", "d"]);
        assert_eq!(console.boots(2), console.newest("down").unwrap(), "{:#?}", console.lines());
        assert_eq!(
            (first.libvirt.state("web").as_str(), second.libvirt.state("web").as_str()),
            ("shut off", "running")
        );
        assert!(second.libvirt.virsh(&["dumpxml", "web"]).contains("<memory unit='KiB'>229376<"));
        console.some_more();
        console.assert_no_alarm();

        // Back in place, as needed, and then by force: the site is gone with its guest in the middle of writing.
        first.until_idle();
        // The daemon that is to shut the guest down is away when it is asked: the task waits for it.
        second.libvirt.stop();
        let back = first.begin_planned("failback", &["--in-place"]);
        console.wait("the hand-over", || {
            let tasks = second.ask(&["task", "list", "--domain", "d", "--running"]);
            tasks["tasks"].as_array().is_some_and(|tasks| !tasks.is_empty())
        });
        std::thread::sleep(Duration::from_millis(500));
        second.libvirt.start_again();
        first.ended(&back, "TASK_STATE_DONE");
        assert_eq!(console.boots(3), console.newest("down").unwrap());
        second.until_idle();
        second.follow("failover", &["--in-place"]);
        let shipped = console.some_more();
        first.ask(&["domain", "point", "d"]);
        first.power_failure();
        second.task(&["failover", "complete", "d", "--yes", "d"]);
        let found = console.boots(4);
        assert!(found >= shipped, "{found} of {shipped}");
        second.until_mode("DOMAIN_MODE_RUNNING_IN_FAILOVER");

        // It is shut down by hand and let go: its definition names the image.
        second.libvirt.virsh(&["shutdown", "web"]);
        console.wait("the end", || second.libvirt.state("web") == "shut off");
        console.wait("what was noticed", || {
            let events = second.ask(&["event", "list", "--subject", "d"]).to_string();
            ["guest started", "guest stopped"].iter().all(|event| events.contains(event))
        });
        second.ask(&["vm", "unprotect", "d", "web"]);
        let xml = second.libvirt.virsh(&["dumpxml", "web"]);
        assert!(xml.contains("second-disks") && xml.contains("type='raw'") && !xml.contains("nbd"), "{xml}");
        assert!(second.site.appliance.stop().success());
    });
}

#[test]
fn a_guest_is_moved_on_and_back_and_what_fails_or_is_killed_half_way_leaves_it_where_it_was() {
    with_a_guest("live protection under libvirt", |kernel| {
        let place = Place::new();
        let programs = match agent::programs() {
            Ok(programs) => programs,
            Err(why) => return skipped("live protection under libvirt of a guest with an agent", &why),
        };
        kernel.pack_with_agent(&programs, SCRIPT, &place.path("initramfs"));
        let image = qcow2_image(&place, "web.qcow2");
        let console = Console(place.path("console"));
        let mut site = LibvirtSite::start(&place, "first");
        site.libvirt.define(&definition(&place, kernel, "web", &file_disk("vda", &image, "qcow2")));
        site.libvirt.virsh(&["start", "web"]);
        console.boots(1);
        agent_answers(&site, &place, &console);
        site.make_domain();
        let on_export = |site: &LibvirtSite<'_>| site.libvirt.virsh(&["domblklist", "web"]).contains("web/vda");

        // Somebody else's copy is in its way, and goes on: nothing is left of ours.
        let other = place.path("other.raw");
        site.libvirt.virsh(&["blockcopy", "web", "vda", other.to_str().unwrap(), "--transient-job"]);
        let refused = site.appliance.ask(&["vm", "protect", "d", "web"]).bad(4);
        assert!(refused.contains("is being copied by somebody else"), "{refused}");
        assert!(site.libvirt.virsh(&["dumpxml", "web"]).contains("other.raw") && !on_export(&site));
        site.libvirt.virsh(&["blockjob", "web", "vda", "--abort"]);
        assert_eq!(std::fs::read_dir(place.path("first-state/images/d/web")).unwrap().count(), 0);

        // Killed while it copies: the guest has its old disk, and the next start goes on.
        let socket = site.appliance.socket.clone();
        let asking = std::thread::spawn(move || {
            Ran::of(freshet().args(["--json", "vm", "protect", "d", "web", "--socket"]).arg(socket))
        });
        console.wait("a copy", || site.libvirt.virsh(&["dumpxml", "web"]).contains("<mirror") || on_export(&site));
        site.crash();
        asking.join().unwrap();
        console.some_more();
        site.serve_again();
        console.wait("the disk on its export", || on_export(&site));
        site.appliance.until_recoverable("d");
        console.some_more();
        libvirt_life::a_frozen_file_system_is_clean(&site, &place, &console);
        libvirt_life::a_backup_puts_it_on_an_overlay_and_back(&site, &place, &console);

        let back = site.ask(&["vm", "unprotect", "d", "web"]);
        assert!(back["notes"].to_string().contains("web.qcow2"), "{back:#}");
        assert!(site.libvirt.virsh(&["domblklist", "web"]).contains("web.qcow2"));
        assert!(site.libvirt.virsh(&["dumpxml", "--inactive", "web"]).contains("web.qcow2"));
        console.some_more();
        console.assert_no_alarm();
        assert_eq!(console.count("whole"), 1, "it never stopped");
        site.libvirt.virsh(&["shutdown", "web"]);
        console.wait("the end", || site.libvirt.state("web") == "shut off");
        // While it is off its image is converted, and its definition changed.
        site.ask(&["vm", "protect", "d", "web"]);
        assert!(on_export(&site));
        site.libvirt.virsh(&["start", "web"]);
        assert_eq!(console.boots(2), console.newest("down").unwrap());
        site.appliance.until_recoverable("d");
        console.some_more();
        console.assert_no_alarm();
        libvirt_life::it_strays_and_comes_back(&mut site, &place, &console);
    });
}

/// One without a device that would tell of a panic, whose boot sector resets it.
async fn a_guest_that_starts_anew_again_and_again_is_told(libvirt: &Libvirt, driver: &LibvirtDriver, place: &Place) {
    /// `mov al, 0xfe; out 0x64, al; hlt`: what a kernel does that is to boot after a panic.
    const RESETS: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    let (image, anew) = (place.path("anew.img"), name("anew"));
    let mut sector = vec![0; 1 << 20];
    sector[..RESETS.len()].copy_from_slice(&RESETS);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&image, sector).unwrap();
    let told = async |wanted: bool| {
        let began = std::time::Instant::now();
        loop {
            let told = driver.trouble(&anew).await.unwrap();
            if told.is_some() == wanted {
                return told.unwrap_or_default();
            }
            assert!(began.elapsed() < Duration::from_secs(120), "it is {told:?} still");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let watching = tokio::spawn({
        let driver = driver.clone();
        async move { driver.watch(&|_| ()).await }
    });
    libvirt.define(&format!(
        "<domain type='qemu'><name>anew</name><memory unit='MiB'>64</memory><os><type>hvm</type></os><devices>{}\
         </devices></domain>",
        file_disk("vda", &image, "raw")
    ));
    libvirt.virsh(&["start", "anew"]);
    let why = told(true).await;
    assert!(why.contains("started anew by itself") && why.contains("does not stay up"), "{why}");
    assert_eq!(driver.state(&anew).await.unwrap(), PowerState::Running, "nothing else tells of it");
    libvirt.virsh(&["destroy", "anew"]);
    told(false).await;
    watching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_says_what_is_wrong_and_undefines_no_disk() {
    let what = "a libvirt daemon";
    if let Some(why) = missing() {
        return skipped(what, &why);
    }
    let place = Place::new();
    let mut libvirt = Libvirt::start(&place.path("one"));
    let driver = LibvirtDriver::new(settings(&libvirt.uri(), &place)).unwrap();
    let web = name("web");
    assert_eq!(driver.state(&web).await.unwrap(), PowerState::Absent);
    let image = place.image("web.img");
    let xml = |name: &str, more: &str| {
        format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os><devices>{}{more}\
             </devices></domain>",
            file_disk("vda", &image, "raw")
        )
    };
    // A VM whose name is a number is not taken for a running guest's.
    libvirt.define(&xml("1", ""));
    libvirt.define(&xml("web", ""));
    libvirt.virsh(&["start", "web"]);
    assert_eq!(driver.state(&name("1")).await.unwrap(), PowerState::Off);
    assert_eq!(driver.state(&web).await.unwrap(), PowerState::Running);
    let refused = driver.undefine(&web).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let evidence = driver.off_evidence(&web).await.unwrap();
    assert!(!evidence.off && evidence.because.contains("running"), "{evidence:?}");
    assert!(!driver.freeze(&web, Duration::from_secs(5)).await.unwrap(), "it has no agent");
    let refused = driver.agent(&web, true, Duration::from_secs(5)).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Unsupported && refused.to_string().contains("no channel"), "{refused}");
    driver.thaw(&web, Duration::from_secs(5)).await.unwrap();
    // No guest hears the button: it is asked, and is on after the time that it had.
    assert!(!driver.shutdown(&web, Duration::from_millis(300)).await.unwrap());

    // The daemon is away, and comes back: the guest ran on.
    libvirt.stop();
    let away = driver.state(&web).await.unwrap_err();
    assert_eq!(away.kind(), ErrorKind::Unreachable, "{away}");
    libvirt.start_again();
    assert_eq!(driver.state(&web).await.unwrap(), PowerState::Running);
    driver.power_off(&web).await.unwrap();
    driver.power_off(&web).await.unwrap();
    let evidence = driver.off_evidence(&web).await.unwrap();
    assert!(evidence.off && evidence.because.contains("no process of this host"), "{evidence:?}");

    a_guest_that_starts_anew_again_and_again_is_told(&libvirt, &driver, &place).await;

    // The daemon says so of a URI that virsh itself cannot tell to be wrong; no waiting helps in either case.
    for wrong in [libvirt.uri().replace("qemu:///system", "foo:///bar"), "foo+bar:///".to_owned()] {
        let error = LibvirtDriver::new(settings(&wrong, &place)).unwrap().state(&web).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(&wrong), "{error}");
    }
    let guests = driver.guest_disks().unwrap();
    assert!(guests.look(&name("nobody")).await.unwrap().is_none());
    let found = guests.look(&web).await.unwrap().unwrap();
    assert_eq!((found.running, found.disks.len(), found.disks[0].size), (false, 1, 4 << 20));
    libvirt.define(&xml(
        "bad",
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>",
    ));
    let refused = guests.look(&name("bad")).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("passed through"), "{refused}");
    libvirt.virsh(&["snapshot-create-as", "web", "before", "--disk-only"]);
    let refused = guests.look(&web).await.unwrap_err();
    assert!(refused.to_string().contains("snapshots (before"), "{refused}");
    libvirt.virsh(&["snapshot-delete", "web", "before", "--metadata"]);

    let before = std::fs::read(&image).unwrap();
    assert!(!driver.freeze(&web, Duration::from_secs(5)).await.unwrap(), "it does not run");
    driver.thaw(&web, Duration::from_secs(5)).await.unwrap();
    driver.undefine(&web).await.unwrap();
    driver.undefine(&web).await.unwrap();
    assert_eq!(driver.state(&web).await.unwrap(), PowerState::Absent);
    assert!(std::fs::read(&image).unwrap() == before, "undefining touches no disk");
    addresses_are_handed_over(&driver, &libvirt, &place).await;
}

/// A VM whose card gets an address has a disk for that, with which it starts, which nobody takes for one of its own, and
/// which goes with the address or the VM.
async fn addresses_are_handed_over(driver: &LibvirtDriver, libvirt: &Libvirt, place: &Place) {
    let vm = name("addressed");
    let uri = format!("nbd+unix:///addressed/vda?socket={}", place.path("none.sock").display());
    let mut spec = VmSpec {
        name: vm.clone(),
        domain: name("d"),
        cpus: 1,
        memory_bytes: 64 << 20,
        firmware: String::new(),
        disks: vec![DiskSpec { name: name("vda"), uri, size: 4 << 20 }],
        nics: vec![NicSpec { address: "10.9.0.5/24".into(), gateway: "10.9.0.1".into(), ..NicSpec::default() }],
        placement: Default::default(),
        storage_policy: String::new(),
        definition_kind: String::new(),
        definition: String::new(),
    };
    assert!(driver.addressing().unwrap().contains("cloud-init"));
    driver.define(&spec).await.unwrap();
    driver.define(&spec).await.unwrap();
    let file = place.path("seeds/addressed.img");
    let xml = libvirt.virsh(&["dumpxml", "--inactive", "addressed"]);
    assert!(xml.contains(&format!("<source file='{}'/>", file.display())) && xml.contains("<readonly/>"), "{xml}");
    let mac = xml.split("<mac address='").nth(1).and_then(|rest| rest.split('\'').next()).unwrap().to_owned();
    let seed = Seed::of(&spec, &[mac]).unwrap().unwrap();
    assert!(std::fs::read(&file).unwrap() == seed.image().unwrap(), "it speaks of the card that is there");
    let found = driver.guest_disks().unwrap().look(&vm).await.unwrap().unwrap();
    assert!(found.disks.len() == 1 && !found.definition.contains("addressed.img"), "{found:?}");
    // QEMU takes it. Nobody serves the other disk here.
    libvirt.virsh(&["detach-disk", "addressed", "vda", "--config"]);
    libvirt.virsh(&["start", "addressed"]);
    assert_eq!(driver.agent(&vm, true, Duration::from_secs(5)).await.unwrap(), None, "nothing answers in it");
    driver.power_off(&vm).await.unwrap();
    spec.nics[0].address.clear();
    driver.define(&spec).await.unwrap();
    assert!(!file.exists() && !libvirt.virsh(&["dumpxml", "addressed"]).contains("addressed.img"));
    spec.nics[0].address = "10.9.0.6/24".into();
    driver.define(&spec).await.unwrap();
    assert!(file.exists());
    driver.undefine(&vm).await.unwrap();
    assert!(!file.exists());
}

/// The real agent in the guest answers the driver, and tells the guest's addresses.
fn agent_answers(site: &LibvirtSite<'_>, place: &Place, console: &Console) {
    let driver = LibvirtDriver::new(settings(&site.libvirt.uri(), place)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |addresses| runtime.block_on(driver.agent(&name("web"), addresses, Duration::from_secs(20)));
    console.wait("its agent", || ask(false).is_ok_and(|told| told.is_some()));
    console
        .wait("its loopback address", || ask(true).unwrap().is_some_and(|told| told.contains(&[127, 0, 0, 1].into())));
}
