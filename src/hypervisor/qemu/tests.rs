//! The driver against real QEMUs, with guests that are a boot sector each.

use std::path::Path;
use std::time::{Duration, Instant};

use super::accel::tests::qemu;
use super::*;
use crate::failover::samples;

/// Prints, enables the power button of the q35 machine, waits for it, and switches itself off: ports of the ICH9.
const OBEYS: &[u8] = &[
    0xba, 0xf8, 0x03, 0xb0, b'u', 0xee, // mov dx, 0x3f8; mov al, 'u'; out dx, al
    0xb8, 0x00, 0x01, 0xba, 0x02, 0x06, 0xef, // mov ax, 0x100; mov dx, 0x602; out dx, ax
    0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7, // l: mov dx, 0x600; in ax, dx; test ah, 1; jz l
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, // mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt
];
/// Prints and stands still for ever.
const DEAF: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, b'u', 0xee, 0xfa, 0xf4, 0xeb, 0xfd];
/// Prints and panics, as the device for it takes that.
const PANICS: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd];
/// Prints and resets the machine, as a kernel does that is to boot after a panic: `mov al, 0xfe; out 0x64, al; hlt`.
const RESETS: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, b'u', 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    dir: tempfile::TempDir,
    driver: QemuDriver,
}

impl Drop for Rig {
    /// Nothing that a test started outlives it.
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path().join("vms")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_str().and_then(Name::from_key);
            let _ = name.map(|name| process::kill(&self.driver.folder(&name)));
        }
    }
}

impl Rig {
    fn new(what: &str) -> Option<Rig> {
        let program = qemu(what)?;
        let dir = tempfile::tempdir().unwrap();
        let driver = QemuDriver::new(settings(dir.path(), &program));
        Some(Rig { dir, driver })
    }

    /// A driver as the next process of an appliance has it.
    fn again(&mut self) {
        self.driver = QemuDriver::new(self.driver.settings.clone());
    }

    fn image(&self, name: &str, code: &[u8]) -> String {
        let mut bytes = vec![0; 1 << 20];
        bytes[..code.len()].copy_from_slice(code);
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        format!("file://{}", path.display())
    }

    /// Defines a guest of this code and starts it, up to its first letter.
    async fn runs(&self, name: &str, code: &[u8]) -> Name {
        let mut vm = samples::spec("shop", name);
        (vm.firmware, vm.memory_bytes, vm.cpus) = ("bios".into(), 64 << 20, 1);
        vm.disks[0].uri = self.image(name, code);
        self.driver.define(&vm).await.unwrap();
        self.driver.start(&vm.name).await.unwrap();
        let console = self.driver.folder(&vm.name).path().join(CONSOLE);
        until("its first letter", || std::fs::read(&console).is_ok_and(|said| !said.is_empty())).await;
        vm.name
    }
}

fn settings(dir: &Path, program: &Path) -> QemuSettings {
    QemuSettings {
        accel: AccelChoice::Tcg,
        console: Console::File,
        uefi_vars: "/none".into(),
        limit: PATIENCE,
        poll: Duration::from_millis(20),
        ..QemuSettings::plain(dir.join("vms"), program.to_owned())
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_guest_goes_through_its_life_and_outlives_the_driver_that_started_it() {
    let Some(mut rig) = Rig::new("the life of a guest of QEMU") else { return };
    let vm = samples::name("web");
    assert_eq!(rig.driver.state(&vm).await.unwrap(), PowerState::Absent);
    assert_eq!(rig.driver.start(&vm).await.unwrap_err().kind(), ErrorKind::NotFound);
    rig.runs("web", OBEYS).await;
    assert_eq!(rig.driver.state(&vm).await.unwrap(), PowerState::Running);
    assert!(rig.driver.describe().contains("tcg"), "{}", rig.driver.describe());

    rig.again();
    let known = rig.driver.inventory().await.unwrap();
    assert_eq!(known, [VmEntry { name: vm.clone(), state: PowerState::Running }]);
    rig.driver.start(&vm).await.unwrap();
    assert!(!rig.driver.off_evidence(&vm).await.unwrap().off);
    let spec = rig.driver.folder(&vm).read().unwrap().unwrap();
    assert_eq!(rig.driver.define(&spec).await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(rig.driver.undefine(&vm).await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(rig.driver.trouble(&vm).await.unwrap(), None);

    assert!(rig.driver.shutdown(&vm, PATIENCE).await.unwrap(), "it has heard the power button");
    assert_eq!(rig.driver.state(&vm).await.unwrap(), PowerState::Off);
    let evidence = rig.driver.off_evidence(&vm).await.unwrap();
    assert!(evidence.off && evidence.because.contains("no process holds its lock"), "{evidence:?}");
    assert_eq!(rig.driver.trouble(&vm).await.unwrap(), None, "it was told to end");
    let other = VmSpec { domain: samples::name("bank"), ..spec };
    assert!(rig.driver.define(&other).await.unwrap_err().to_string().contains("in domain shop"));
    rig.driver.undefine(&vm).await.unwrap();
    assert_eq!(rig.driver.state(&vm).await.unwrap(), PowerState::Absent);
    assert!(rig.dir.path().join("web").exists(), "its disk stays");
}

#[tokio::test]
async fn a_deaf_guest_is_not_off_until_it_is_switched_off_and_one_that_ends_by_itself_is_told() {
    let Some(mut rig) = Rig::new("a guest of QEMU that hears nothing") else { return };
    let vm = rig.runs("web", DEAF).await;
    assert!(!rig.driver.shutdown(&vm, Duration::from_millis(200)).await.unwrap());
    assert_eq!(rig.driver.state(&vm).await.unwrap(), PowerState::Running);
    assert!(!rig.driver.folder(&vm).process().unwrap().told, "its end would be a surprise again");
    rig.driver.power_off(&vm).await.unwrap();
    assert!(rig.driver.off_evidence(&vm).await.unwrap().off);
    assert_eq!(rig.driver.trouble(&vm).await.unwrap(), None);
    rig.driver.power_off(&vm).await.unwrap();

    rig.driver.start(&vm).await.unwrap();
    let record = rig.driver.folder(&vm).process().unwrap();
    // From outside, as the kernel does where memory is short.
    process::kill(&rig.driver.folder(&vm)).unwrap();
    let folder = rig.driver.folder(&vm);
    until("its end", || !folder.is_alive().unwrap() && !process::lives(&record)).await;
    let told = rig.driver.trouble(&vm).await.unwrap().unwrap();
    assert!(told.contains("ended by itself"), "{told}");
    rig.again();
    assert!(rig.driver.trouble(&vm).await.unwrap().is_some(), "the next process tells it, too");
    let evidence = rig.driver.off_evidence(&vm).await.unwrap();
    assert!(evidence.off && evidence.because.contains(&format!("process {} is gone", record.pid)), "{evidence:?}");
    // A process that was remembered and lives without its lock is no evidence.
    let pid = std::process::id();
    let own = folder::ProcessRecord { pid, began: process::began(pid).unwrap(), ..record };
    rig.driver.folder(&vm).note_process(&own).unwrap();
    assert!(!rig.driver.off_evidence(&vm).await.unwrap().off);
}

#[tokio::test]
async fn a_guest_that_panics_stands_still_and_is_told_with_its_last_words() {
    let Some(rig) = Rig::new("a guest of QEMU that panics") else { return };
    let vm = rig.runs("web", PANICS).await;
    let began = Instant::now();
    let told = loop {
        match rig.driver.trouble(&vm).await.unwrap() {
            Some(told) => break told,
            None => assert!(began.elapsed() < PATIENCE, "the panic is not seen"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(told, "its guest panicked: !");
    // Nobody waits for it: it hears nothing.
    assert!(!rig.driver.shutdown(&vm, Duration::from_secs(3600)).await.unwrap());
    assert!(!rig.driver.folder(&vm).process().unwrap().told);
    assert!(rig.driver.off_evidence(&vm).await.unwrap().because.contains("its guest panicked"));
    rig.driver.power_off(&vm).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_starts_anew_again_and_again_is_told() {
    let Some(rig) = Rig::new("a guest of QEMU that starts anew") else { return };
    let vm = rig.runs("web", RESETS).await;
    let trouble = async {
        let began = Instant::now();
        loop {
            match rig.driver.trouble(&vm).await.unwrap() {
                Some(told) => break told,
                None => assert!(began.elapsed() < PATIENCE, "its resets are not seen"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = tokio::select! {
        told = trouble => told,
        () = rig.driver.watch(&|_| ()) => panic!("nobody hears any more"),
    };
    assert!(told.contains("started anew by itself") && told.contains("does not stay up"), "{told}");
    rig.driver.power_off(&vm).await.unwrap();
    assert_eq!(rig.driver.trouble(&vm).await.unwrap(), None, "it is off");
    rig.driver.start(&vm).await.unwrap();
    assert_eq!(rig.driver.trouble(&vm).await.unwrap(), None, "what was before is no more");
    rig.driver.power_off(&vm).await.unwrap();
}

#[tokio::test]
async fn what_cannot_start_is_told_with_qemu_s_words_and_is_off() {
    let Some(rig) = Rig::new("a guest of QEMU without its disk") else { return };
    let mut vm = samples::spec("shop", "web");
    vm.firmware = "bios".into();
    vm.disks[0].uri = "file:///does/not/exist".into();
    rig.driver.define(&vm).await.unwrap();
    let told = rig.driver.start(&vm.name).await.unwrap_err().to_string();
    assert!(told.contains("ended at its start") && told.contains("/does/not/exist"), "{told}");
    assert_eq!(rig.driver.state(&vm.name).await.unwrap(), PowerState::Off);
    vm.firmware = "uefi".into();
    let told = rig.driver.define(&vm).await.unwrap_err().to_string();
    assert!(told.contains("UEFI firmware /none (package ovmf"), "{told}");
    let foreseen = async |vm: &VmSpec| rig.driver.foresee(std::slice::from_ref(vm)).await.unwrap().remove(0);
    assert_eq!(foreseen(&vm).await.refused, Some(told), "it is known before");
    assert!(foreseen(&samples::spec("bank", "web")).await.refused.unwrap().contains("in domain shop"));
    vm.firmware = "bios".into();
    assert_eq!(foreseen(&vm).await, Foreseen { vm: vm.name.clone(), refused: None, changes: Vec::new() });
    vm.definition_kind = "libvirt-xml".into();
    let changes = foreseen(&vm).await.changes;
    assert!(changes[0].contains("libvirt-xml is not read here"), "{changes:?}");
    assert_eq!(rig.driver.define(&vm).await.unwrap(), changes);
}

#[tokio::test]
async fn a_running_guest_s_disk_moves_and_the_guest_goes_on() {
    let Some(rig) = Rig::new("moving the disk of a guest of QEMU") else { return };
    let vm = rig.runs("web", OBEYS).await;
    let (disk, old) = (samples::name("system"), rig.dir.path().join("web"));
    let new = rig.dir.path().join("new");
    std::fs::File::create(&new).unwrap().set_len(1 << 20).unwrap();
    let uri = format!("file://{}", new.display());
    rig.driver.move_disk(&vm, &disk, &uri, PATIENCE).await.unwrap();
    rig.driver.move_disk(&vm, &disk, &uri, PATIENCE).await.unwrap();
    assert_eq!(std::fs::read(&new).unwrap(), std::fs::read(&old).unwrap());
    assert_eq!(rig.driver.folder(&vm).read().unwrap().unwrap().disks[0].uri, uri);
    // The old one is let go of.
    let pid = rig.driver.folder(&vm).process().unwrap().pid;
    let open = |path: &Path| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|file| file == path)
    };
    assert!(open(&new) && !open(&old));

    let bad = rig.driver.move_disk(&vm, &disk, "file:///does/not/exist", PATIENCE).await.unwrap_err();
    assert!(bad.to_string().contains("/does/not/exist"), "{bad}");
    // Too small for it: it stays where it is.
    let small = rig.dir.path().join("small");
    std::fs::write(&small, [0; 512]).unwrap();
    let uri = format!("file://{}", small.display());
    assert!(rig.driver.move_disk(&vm, &disk, &uri, PATIENCE).await.is_err());
    assert!(open(&new) && !open(&small));
    let none = rig.driver.move_disk(&vm, &samples::name("other"), &uri, PATIENCE).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert!(rig.driver.shutdown(&vm, PATIENCE).await.unwrap());
    let off = rig.driver.move_disk(&vm, &disk, &uri, PATIENCE).await.unwrap_err();
    assert_eq!(off.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_move_that_was_cut_off_is_settled_by_where_the_guest_is() {
    let Some(rig) = Rig::new("a cut off move of a guest of QEMU") else { return };
    let vm = rig.runs("web", OBEYS).await;
    let (folder, disk) = (rig.driver.folder(&vm), samples::name("system"));
    let place = |name: &str| {
        let path = rig.dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        format!("file://{}", path.display())
    };
    // Begun, and left: the copy runs on by itself, and the guest is where it was.
    let (lost, node) = (place("lost"), mirror::target_node(0));
    folder.note_moving(Some(&Moving { disk: 0, uri: lost.clone(), node: node.clone() })).unwrap();
    {
        let mut qmp = rig.driver.monitor(&folder).await.unwrap();
        qmp.execute("blockdev-add", disk::node(&node, &lost, 60).unwrap()).await.unwrap();
        let job = format!("move-{node}");
        let mirror = json!({"job-id": job, "device": "disk0", "target": node, "sync": "full", "auto-dismiss": false});
        qmp.execute("blockdev-mirror", mirror).await.unwrap();
    }
    let next = place("next");
    rig.driver.move_disk(&vm, &disk, &next, PATIENCE).await.unwrap();
    assert_eq!(folder.read().unwrap().unwrap().disks[0].uri, next);
    assert_eq!(folder.moving().unwrap(), None);

    // Done, and not written down.
    let (last, node) = (place("last"), mirror::target_node(0));
    folder.note_moving(Some(&Moving { disk: 0, uri: last.clone(), node: node.clone() })).unwrap();
    {
        let mut qmp = rig.driver.monitor(&folder).await.unwrap();
        mirror::move_disk(&mut qmp, 0, (&node, &last), PATIENCE, PATIENCE).await.unwrap();
    }
    rig.driver.move_disk(&vm, &disk, &last, PATIENCE).await.unwrap();
    assert_eq!(folder.read().unwrap().unwrap().disks[0].uri, last);

    // Nobody can ask a guest that is off.
    folder.note_moving(Some(&Moving { disk: 0, uri: next, node })).unwrap();
    rig.driver.power_off(&vm).await.unwrap();
    let refused = rig.driver.start(&vm).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("newest writes"), "{refused}");
    rig.driver.define(&folder.read().unwrap().unwrap()).await.unwrap();
    rig.driver.start(&vm).await.unwrap();
    rig.driver.power_off(&vm).await.unwrap();
}

#[tokio::test]
async fn a_program_that_goes_away_keeps_nobody_from_ending_a_guest_that_runs() {
    let Some(mut rig) = Rig::new("a program that goes away") else { return };
    let (real, link) = (rig.driver.settings.program.clone(), rig.dir.path().join("qemu"));
    let missing = |ended: Result<()>| {
        let error = ended.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("qemu.program"), "{error}");
    };
    rig.driver = QemuDriver::new(QemuSettings { program: link.clone(), ..rig.driver.settings.clone() });
    missing(rig.driver.ready().await);
    assert_eq!(rig.driver.inventory().await.unwrap(), []);
    missing(rig.driver.define(&samples::spec("shop", "web")).await.map(drop));
    missing(rig.driver.foresee(&[]).await.map(drop));
    std::os::unix::fs::symlink(&real, &link).unwrap();
    rig.driver.ready().await.unwrap();
    let vm = rig.runs("web", OBEYS).await;
    std::fs::remove_file(&link).unwrap();
    missing(rig.driver.ready().await);
    assert_eq!(rig.driver.state(&vm).await.unwrap(), PowerState::Running);
    assert!(rig.driver.shutdown(&vm, PATIENCE).await.unwrap());
    assert!(rig.driver.off_evidence(&vm).await.unwrap().off);
    missing(rig.driver.start(&vm).await);
    // A folder that cannot be made is told as well.
    std::fs::write(rig.dir.path().join("file"), "x").unwrap();
    let dir = rig.dir.path().join("file/vms");
    let driver = QemuDriver::new(QemuSettings { dir, program: real, ..rig.driver.settings.clone() });
    let error = driver.ready().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unreachable && error.to_string().contains("qemu.dir"), "{error}");
}
