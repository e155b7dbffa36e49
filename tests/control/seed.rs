//! Addresses that are handed to guests: read by the real cloud-init, and by a real guest under the driver `qemu`, whose real
//! agent tells them back, and freezes its file system.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use freshet::demo::guest::{GUEST_MODULES, GuestKernel, QEMU};
use freshet::hypervisor::{
    AccelChoice, Console, DiskSpec, Hypervisor, NetworkKind, NicSpec, OnReboot, PowerState, QEMU_DEFINITION,
    QemuDefinition, QemuDriver, QemuNetwork, QemuSettings, Seed, VmSpec,
};
use freshet::ids::Name;

use super::appliance::{MIB, Place};
use super::libvirt_life::{assert_whole, must_recover};
use crate::support::libvirt_guest::raw_image;
use crate::support::real_images::{Kind, find, run};
use crate::support::{agent, console, skipped};

/// Longest wait for what a guest says, under software emulation on a busy machine.
const LONG: Duration = Duration::from_secs(240);
/// The hardware address of the guest's card.
const MAC: &str = "52:54:00:aa:bb:01";

/// Tells what is on the disk, sets what stands there, and lets the agent tell. Told by its agent to shut down it says so and
/// does nothing; its power button it obeys.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module" || echo "failed: $module"; done
seed=$(findfs LABEL=CIDATA) || echo "failed: no disk with the label"
echo "serial $(cat /sys/block/${seed#/dev/}/serial)"
dd if=/dev/zero of="$seed" bs=512 count=1 2> /dev/null && echo "failed: it can be written"
mount -t vfat -o ro "$seed" /mnt || echo "failed: mount"
for file in meta-data network-config user-data; do cat "/mnt/$file" || echo "failed: $file"; done
echo "card $(cat /sys/class/net/eth0/address)"
mkdir -p /sbin
printf '#!/bin/busybox sh\necho told to shut down > /dev/console\n' > /sbin/shutdown
chmod 755 /sbin/shutdown
for button in /dev/input/event*; do
    (dd if=$button bs=24 count=1 of=/dev/null 2> /dev/null; echo pressed; poweroff -f) &
done
ip addr add "$(sed -n 's/.*"\(10[0-9.]*\/[0-9]*\)".*/\1/p' /mnt/network-config)" dev eth0
mkdir /data
mount -t ext4 /dev/vdb /data || echo "failed: mount of the data"
"#;
/// Writes on and on.
const WRITE: &str = r#"
n=0
while :; do
    n=$((n + 1))
    echo "row $n" | dd of=/data/rows oflag=append conv=notrunc,fsync 2> /dev/null || echo "failed: row $n"
    echo "kept $n"
    sleep 0.1
done
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// With a first disk of 4 MiB, and others.
fn vm(disk: &Path, others: &[(&str, &Path)]) -> VmSpec {
    let file = |path: &Path| format!("file://{}", path.display());
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let others = others.iter().map(|(disk, path)| DiskSpec { name: name(disk), uri: file(path), size: size(path) });
    let first = NicSpec {
        mac: MAC.into(),
        network: "lan".into(),
        address: "10.9.0.5/24".into(),
        gateway: "10.9.0.1".into(),
        dns: vec!["10.9.0.53".into()],
        ..NicSpec::default()
    };
    VmSpec {
        name: name("web"),
        domain: name("d"),
        cpus: 1,
        memory_bytes: 192 * MIB,
        firmware: String::new(),
        disks: [DiskSpec { name: name("root"), uri: file(disk), size: 4 * MIB }].into_iter().chain(others).collect(),
        nics: vec![first],
        placement: Default::default(),
        storage_policy: String::new(),
        definition_kind: String::new(),
        definition: String::new(),
    }
}

/// A Python with what cloud-init needs, and the directory of its modules; or what is missing.
fn cloud_init() -> Result<(PathBuf, PathBuf), &'static str> {
    let python = std::env::var_os("FRESHET_GRPC_PYTHON").map(PathBuf::from).filter(|path| path.exists());
    let given = std::env::var_os("FRESHET_GUEST_DIR").map(PathBuf::from).unwrap_or_default();
    let modules = given.join("usr/lib/python3/dist-packages");
    match python {
        None => Err("FRESHET_GRPC_PYTHON names no Python with what cloud-init needs"),
        Some(_) if !modules.join("cloudinit").is_dir() => Err("no cloud-init is unpacked below FRESHET_GUEST_DIR"),
        Some(python) => Ok((python, modules)),
    }
}

#[test]
fn the_real_cloud_init_renders_our_addresses_for_our_cards() {
    let (python, modules) = match cloud_init() {
        Ok(found) => found,
        Err(why) => return skipped("cloud-init reads what is handed over", why),
    };
    let place = Place::new();
    let mut vm = vm(&place.path("root"), &[]);
    let by_dhcp = NicSpec { mac: "52:54:00:aa:bb:02".into(), network: "lan".into(), ..NicSpec::default() };
    let of_six = NicSpec { address: "fd00::5/64".into(), gateway: "fd00::1".into(), ..NicSpec::default() };
    vm.nics.extend([by_dhcp, NicSpec { mac: "52:54:00:aa:bb:03".into(), ..of_six }]);
    let macs: Vec<String> = vm.nics.iter().map(|nic| nic.mac.clone()).collect();
    let seed = Seed::of(&vm, &macs).unwrap().unwrap();
    for (file, content) in seed.files() {
        std::fs::write(place.path(file), content).unwrap();
    }
    let rendered = |kind: &str| {
        let out = place.path(kind);
        let mut command = Command::new(&python);
        command.env("PYTHONPATH", &modules).args([
            "-m",
            "cloudinit.cmd.devel.net_convert",
            "--kind",
            "yaml",
            "-D",
            "debian",
        ]);
        command.arg("--network-data").arg(place.path("network-config")).args(["--output-kind", kind, "-d"]).arg(&out);
        run(&mut command);
        out
    };
    let units = rendered("networkd").join("etc/systemd/network");
    let card = |n: usize| {
        let text = std::fs::read_to_string(units.join(format!("10-cloud-init-nic{n}.network"))).unwrap();
        assert!(text.contains(&format!("MACAddress={}", macs[n])), "{text}");
        text
    };
    for part in ["Address=10.9.0.5/24", "Gateway=10.9.0.1", "DNS=10.9.0.53", "DHCP=no"] {
        assert!(card(0).contains(part), "{part} is not in {}", card(0));
    }
    assert!(card(1).contains("DHCP=ipv4") && !card(1).contains("Address=10"), "{}", card(1));
    assert!(card(2).contains("Address=fd00::5/64") && card(2).contains("Gateway=fd00::1"), "{}", card(2));
    assert!(!card(2).contains("Destination"), "a default route, and no other: {}", card(2));
    let text = std::fs::read_to_string(rendered("eni").join("etc/network/interfaces.d/50-cloud-init")).unwrap();
    for line in ["address 10.9.0.5/24", "gateway 10.9.0.1", "address fd00::5/64", "gateway fd00::1"] {
        assert!(text.lines().any(|there| there.trim() == line), "{line} is not in {text}");
    }
    // What it takes of it, before the guest's own configuration.
    let script = "import sys, yaml; from cloudinit import util; own, ours = (yaml.safe_load(open(f)) for f in sys.argv[1:3]); \
                  all = util.mergemanydict([ours, own]); print(all['users'], all['ssh_deletekeys'], all['preserve_hostname'])";
    let cloud_cfg = modules.ancestors().nth(4).unwrap().join("etc/cloud/cloud.cfg");
    let mut command = Command::new(&python);
    command.env("PYTHONPATH", &modules).args(["-c", script]).arg(cloud_cfg).arg(place.path("user-data"));
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert_eq!(said.trim(), "[] False True", "{}", String::from_utf8_lossy(&out.stderr));
    // Found by what looks for it at a guest's boot.
    let image = place.path("seed.img");
    std::fs::write(&image, seed.image().unwrap()).unwrap();
    if let Some(blkid) = find("blkid") {
        let out = Command::new(blkid).args(["-p", "-o", "export"]).arg(&image).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(said.contains("LABEL=CIDATA") && said.contains("TYPE=vfat"), "{said}");
    }
}

/// Leaves no guest behind, however the test ends.
struct Ends<'d>(&'d QemuDriver, &'d Name);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let end = self.0.kill(self.1);
        let _ = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(end));
    }
}

/// Waits until `is` says so.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, console: &Path, mut is: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        let said = std::fs::read_to_string(console).unwrap_or_default();
        assert!(!said.contains("failed:") && !said.contains("Kernel panic"), "{said}");
        if let Some(found) = is().await {
            return found;
        }
        assert!(began.elapsed() < LONG, "{what} never came: {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a frozen guest has on its disk needs nothing to be whole; thawed, it writes on.
async fn its_file_system_is_frozen(driver: &QemuDriver, vm: &Name, console: &Path, data: &Path) {
    let limit = Duration::from_secs(30);
    let told = console::Console(console.to_owned());
    let newest = || told.newest("kept").unwrap_or(0);
    until("a row", console, || async { (newest() > 2).then_some(()) }).await;
    assert!(must_recover(data), "it is mounted, and written to");
    assert!(driver.freeze(vm, limit).await.unwrap());
    assert!(!must_recover(data));
    assert_whole(data);
    driver.thaw(vm, limit).await.unwrap();
    let now = newest();
    until("rows after it", console, || async { (newest() > now + 2).then_some(()) }).await;
    driver.thaw(vm, limit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reads_its_addresses_its_agent_tells_them_and_does_not_shut_it_down() {
    let what = "a guest of QEMU that is given an address";
    let given = std::env::var_os("FRESHET_GUEST_DIR").map(PathBuf::from);
    let kernel = match GuestKernel::find(&given.into_iter().chain(["/".into()]).collect::<Vec<_>>()) {
        _ if find("qemu-system-x86_64").is_none() => return skipped(what, "no qemu-system-x86_64 here"),
        _ if Kind::Ext4.missing().is_some() => return skipped(what, "no mke2fs here"),
        Ok(kernel) => kernel,
        Err(why) => return skipped(what, &why.to_string()),
    };
    let programs = match agent::programs() {
        Ok(programs) => programs,
        Err(why) => return skipped(what, &why),
    };
    let place = Place::new();
    let boot = place.path("boot");
    std::fs::create_dir(&boot).unwrap();
    std::fs::copy(kernel.image(), boot.join("kernel")).unwrap();
    let of_vfat = ["fs/fat/fat", "fs/fat/vfat", "fs/nls/nls_cp437", "fs/nls/nls_ascii", "fs/nls/nls_utf8"];
    let modules: Vec<&str> = GUEST_MODULES.iter().chain(&of_vfat).chain(&agent::MODULES).copied().collect();
    let init = format!("{INIT}{}{WRITE}", agent::RUN);
    let made = kernel.initramfs_with(&modules, &agent::borrowed(&programs), init.as_bytes()).unwrap();
    std::fs::write(boot.join("initrd"), made).unwrap();
    let data = raw_image(&place, "data.img");
    let definition = QemuDefinition {
        kernel: Some(boot.join("kernel")),
        initrd: Some(boot.join("initrd")),
        append: "console=ttyS0 quiet panic=-1".into(),
        on_reboot: OnReboot::Stop,
        ..QemuDefinition::default()
    };
    let spec = VmSpec {
        definition_kind: QEMU_DEFINITION.to_owned(),
        definition: serde_json::to_string(&definition).unwrap(),
        ..vm(&place.image("root"), &[("data", &data)])
    };
    let lan = QemuNetwork { name: "lan".into(), kind: NetworkKind::User { forwards: Vec::new() } };
    let vms = place.path("vms");
    let driver = QemuDriver::new(QemuSettings {
        accel: AccelChoice::Tcg,
        console: Console::File,
        boot_dirs: vec![boot],
        networks: vec![lan],
        limit: LONG,
        poll: Duration::from_millis(50),
        ..QemuSettings::plain(vms.clone(), PathBuf::from(QEMU))
    });
    driver.define(&spec).await.unwrap();
    let limit = Duration::from_secs(30);
    assert_eq!(driver.agent(&spec.name, false, limit).await.unwrap(), None, "it is off");
    let _ends = Ends(&driver, &spec.name);
    driver.start(&spec.name).await.unwrap();
    let console = vms.join("web/console");
    until("its agent", &console, || async { driver.agent(&spec.name, false, limit).await.ok().flatten() }).await;
    let wanted: std::net::IpAddr = "10.9.0.5".parse().unwrap();
    let told = until("its address", &console, || async {
        driver.agent(&spec.name, true, limit).await.ok().flatten().filter(|told| told.contains(&wanted))
    });
    told.await;
    its_file_system_is_frozen(&driver, &spec.name, &console, &data).await;
    // Its agent takes the order, and that is all that it does.
    assert!(driver.shutdown(&spec.name, LONG).await.unwrap());
    let said = std::fs::read_to_string(&console).unwrap().replace('\r', "");
    assert!(said.contains("told to shut down") && said.contains("pressed"), "{said}");
    let seed = Seed::of(&spec, &[MAC.to_owned()]).unwrap().unwrap();
    for (file, content) in seed.files() {
        assert!(said.contains(content), "{file} is not in {said}");
    }
    assert!(said.contains("serial freshet-seed") && said.contains(&format!("card {MAC}")), "{said}");
    // Without an address there is no disk for it any more.
    assert!(vms.join("web/seed.img").exists());
    let mut plain = spec.clone();
    plain.nics[0].address.clear();
    assert_eq!(driver.state(&spec.name).await.unwrap(), PowerState::Off);
    driver.define(&plain).await.unwrap();
    assert!(!vms.join("web/seed.img").exists());
}
