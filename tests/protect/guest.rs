//! A guest of QEMU on a protected disk, through a kill of the server to its own power cut.
//!
//! It writes numbered files with fsync and prints each number once fsync has returned. `freshet protect` is killed
//! meanwhile and started again, which the guest must not notice, while a recovery site follows. The followed disk is
//! looked at twice: as the kill left it, where it is sound and has every file that was printed before its point; and
//! after the guest's power cut and a clean end of the server, where it has every file that was ever printed.

use std::process::{Command, Stdio};
use std::time::SystemTime;

use rustix::process::Signal;
use serde_json::Value;

use super::outside::{Running, boot, missing, wait_for};
use super::*;
use crate::support::guest::Kernel;
use crate::support::mounts::with_own_mounts;
use crate::support::real_images::{run, tool};
use crate::support::skipped;
use crate::world::assert_same_files;

/// Seconds for which the hypervisor tries to connect again: longer than any wait of this test.
const RECONNECT: u32 = 120;
/// Files that are written between two things that happen.
const SOME: u64 = 40;
/// Words on a console that speak of a disk that failed.
const ALARMS: [&str; 5] = ["I/O error", "EXT4-fs error", "EXT4-fs warning", "failed", "Kernel panic"];

/// What the guest does. File n holds the line `n` over and over, its length depends on n. It ends before the disk is full.
const SCRIPT: &str = r#"
mount -t ext4 /dev/vda /mnt || echo failed: mount
n=0
while [ $n -lt 4000 ]; do
    n=$((n + 1))
    yes "file $n" | head -c $((n * 577 % 20000 + 1)) > /tmp.file
    dd if=/tmp.file of=/mnt/$n bs=32k conv=fsync 2> /tmp.said && echo "kept $n" || { echo "failed: file $n"; cat /tmp.said; }
done
sleep 100000
"#;

/// What file `n` must hold.
fn content(n: u64) -> Vec<u8> {
    let len = usize::try_from(n * 577 % 20000 + 1).unwrap();
    format!("file {n}\n").into_bytes().into_iter().cycle().take(len).collect()
}

/// `freshet`, with what its commands share.
fn freshet(world: &World, command: &str) -> Command {
    let mut freshet = Command::new(env!("CARGO_BIN_EXE_freshet"));
    freshet.args(["--json", command, "--domain", world.domain.as_str(), "--store", world.site.url()]);
    freshet.args(["--memory", "128MiB", "--log-size", "160MiB"]).stdin(Stdio::null());
    freshet
}

fn protect(world: &World) -> Running {
    let mut command = freshet(world, "protect");
    command.args(["--site", "first site", "--vm", "web", "--connections", "16", "--segment-age", "200"]);
    command.arg("--log-store").arg(world.dir.path().join("state"));
    command.arg("--disk").arg(format!("root={}", world.image("web", "root").display()));
    command.arg("--listen").arg(format!("unix:{}", socket(world).display()));
    let protect = Running::start(&mut command);
    protect.wait_line("a server", |line| line.contains("\"ready\""));
    protect
}

fn follow(world: &World) -> Running {
    let mut command = freshet(world, "rehydrate");
    command.arg("--continuous").arg("--datastore").arg(world.dir.path().join("datastore"));
    Running::start(command.arg("--log-store").arg(world.dir.path().join("log")))
}

/// Waits until a protection says that all is recoverable.
fn until_it_covers(protect: &Running) {
    protect.wait_line("a point that covers the VM", |line| line.contains("\"Recoverable\""));
}

/// The newest file that the guest has printed.
fn kept(lines: &[String]) -> u64 {
    lines.iter().rev().find_map(|line| line.strip_prefix("kept ")?.parse().ok()).unwrap_or(0)
}

/// Waits until the guest has printed some more files than now.
fn some_more(guest: &Running) {
    let now = kept(&guest.lines());
    wait_for("files of the guest", || (kept(&guest.lines()) >= now + SOME).then_some(()));
}

/// The guest's console says nothing of errors, and each number once, in order.
fn assert_undisturbed(console: &[String]) {
    let alarm = console.iter().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    assert_eq!(alarm, None, "{console:#?}");
    let numbers = console.iter().filter_map(|line| line.strip_prefix("kept ")?.parse::<u64>().ok());
    assert!(numbers.zip(1..).all(|(found, n)| found == n), "{console:#?}");
}

/// The newest point that a follower has said to be applied, and its time.
fn applied(lines: &[String]) -> Option<(u64, SystemTime)> {
    let events = lines.iter().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let event = events.into_iter().find(|event| event["applied"]["point"].is_u64())?;
    let time: jiff::Timestamp = event["applied"]["time"].as_str()?.parse().unwrap();
    let since = Duration::from_millis(u64::try_from(time.as_millisecond()).unwrap());
    Some((event["applied"]["point"].as_u64()?, SystemTime::UNIX_EPOCH + since))
}

/// Boots a copy of the followed disk: every file up to `last` is there, whole.
fn assert_files(world: &World, last: u64) {
    let (copy, at) = (world.dir.path().join("copy"), world.dir.path().join("mounted"));
    let mount = boot(&world.target("web", "root"), &copy, &at);
    for n in 1..=last {
        let found = std::fs::read(at.join(n.to_string())).unwrap_or_else(|e| panic!("file {n} of {last}: {e}"));
        assert!(found == content(n), "file {n} of {last}, {} bytes", found.len());
    }
    mount.unmount();
    std::fs::remove_file(copy).unwrap();
}

fn guest_through_a_kill(kernel: &Kernel) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new(&[("web", "root")]));
    world.make("web", "root", 96 * MIB, &[]);
    run(tool("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(world.image("web", "root")));
    std::fs::create_dir(world.dir.path().join("state")).unwrap();
    let initramfs = world.dir.path().join("initramfs");
    kernel.pack(SCRIPT, &initramfs);

    let first = protect(&world);
    until_it_covers(&first);
    let follower = follow(&world);
    let guest = Running::start(&mut kernel.qemu(&initramfs, &socket(&world), "web/root", RECONNECT));
    some_more(&guest);
    // Files that were printed before the newest point of the recovery site, and that it must have therefore.
    let due = |lines: &[String]| applied(lines).map_or(0, |(_, time)| kept(&guest.lines_until(time)));
    wait_for("files at the recovery site", || (due(&follower.lines()) >= SOME).then_some(()));
    first.end(Signal::KILL);
    // Long enough for the guest to have written into the void.
    std::thread::sleep(Duration::from_secs(1));
    let before = kept(&guest.lines());
    let (status, lines) = follower.end(Signal::TERM);
    assert!(status.success(), "{status}: {lines:#?}");
    let lost_at = due(&lines);
    assert_files(&world, lost_at);

    let follower = follow(&world);
    let second = protect(&world);
    some_more(&guest);
    until_it_covers(&second);
    some_more(&guest);
    let (_, console) = guest.end(Signal::KILL);
    assert_undisturbed(&console);
    let last = kept(&console);
    let (status, lines) = second.end(Signal::TERM);
    let report: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert!(status.success() && report["all_shipped"] == true, "{report:#}");
    let point = report["point"].as_u64().unwrap();
    wait_for("the last point at the recovery site", || {
        applied(&follower.lines()).filter(|(applied, _)| *applied >= point)
    });
    let (status, lines) = follower.end(Signal::TERM);
    assert!(status.success(), "{status}: {lines:#?}");
    println!("{last} files, {lost_at} of {before} at the recovery site when the server was killed; point {point}");
    assert_files(&world, last);
    assert_same_files(&world.target("web", "root"), &world.image("web", "root"));
}

#[test]
fn a_guest_does_not_notice_a_kill_and_comes_back_from_its_power_cut_with_every_file() {
    let what = "a guest of QEMU on a protected disk";
    if let Some(tool) = missing(&["mke2fs", "e2fsck", "mount"]) {
        return skipped(what, &format!("no {tool} here"));
    }
    match Kernel::find() {
        Ok(kernel) => with_own_mounts(what, || guest_through_a_kill(&kernel)),
        Err(why) => skipped(what, &why),
    }
}
