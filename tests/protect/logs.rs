//! A log store that is full, missing, read-only or gone: named at the start, and mid-way nothing is claimed that is not so.

use std::path::Path;

use super::outside::{Mount, missing};
use super::program::{Program, answer, ask, freshet, protect, recoverable, status, until_told};
use super::stores::random;
use super::*;
use crate::support::mounts::{remount, set_read_only, with_own_mounts};
use crate::support::real_images::{run, tool};
use crate::support::skipped;
use crate::world::noise;

/// A world with one disk, whose state directory is a file system of memory.
fn world_on(runtime: &tokio::runtime::Runtime, options: &str) -> (World, Mount) {
    let world = runtime.block_on(World::new(&[("web", "root"), ("db", "root")]));
    world.make("web", "root", 8 * MIB, &[(0, 2 * MIB)]);
    world.make("db", "root", 8 * MIB, &[(0, 2 * MIB)]);
    let mount = Mount::memory(&world.dir.path().join("state"), options);
    (world, mount)
}

#[test]
fn a_log_store_without_room_missing_or_read_only_is_named_at_the_start() {
    with_own_mounts("log stores that cannot be used", || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (world, mount) = world_on(&runtime, "size=16m");
        let state = world.dir.path().join("state");
        let full = answer(&mut protect(&world, 1));
        assert_eq!((full.code, full.error().0), (10, "full"), "{full:?}");
        assert!(full.error().1.contains("replication log") && full.error().1.contains("67108864 bytes"), "{full:?}");
        set_read_only(&state, true);
        let denied = answer(&mut protect(&world, 1));
        assert!(denied.code == 8 && denied.error().1.contains(state.to_str().unwrap()), "{denied:?}");
        set_read_only(&state, false);
        let nowhere = world.dir.path().join("nowhere");
        let mut command = freshet();
        command.args([
            "--json",
            "protect",
            "--domain",
            "d",
            "--store",
            world.site.url(),
            "--listen",
            "tcp:127.0.0.1:0",
        ]);
        command.args(["--vm", "web", "--disk", &format!("root={}", world.image("web", "root").display())]);
        let gone = answer(command.arg("--log-store").arg(&nowhere));
        assert!(gone.code == 9 && gone.error().1.contains(nowhere.to_str().unwrap()), "{gone:?}");
        assert!(!nowhere.exists());
        // With room the same start works, whatever the attempts left.
        remount(&state, "size=96m");
        let program = Program::start(&mut protect(&world, 1));
        program.event("ready");
        until_told(&world, "recoverable", recoverable);
        let (ended, report) = program.end(rustix::process::Signal::TERM);
        assert!(ended.success(), "{report:#}");
        mount.unmount();
    });
}

#[test]
fn a_log_store_that_fills_up_mid_way_costs_nothing_that_was_protected() {
    with_own_mounts("a log store that fills up", || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (world, mount) = world_on(&runtime, "size=80m");
        let state = world.dir.path().join("state");
        let program = Program::start(&mut protect(&world, 1));
        program.event("ready");
        until_told(&world, "recoverable", recoverable);
        // Whatever else stands there takes the rest.
        let filler = state.join("filler");
        let mut rest = std::fs::File::create(&filler).unwrap();
        let full = std::iter::repeat_with(|| std::io::Write::write(&mut rest, &[1; 4096])).find_map(Result::err);
        assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
        drop(rest);
        let mut guest = client(&world, "web", "root");
        (0..8).for_each(|i| guest.write_fua(i * MIB, &random(i, 8192)).unwrap());
        assert_eq!(ask(&world, &["--point"]).code, 0);
        // A second of rounds that remember how far bits may be trusted.
        std::thread::sleep(Duration::from_millis(2500));
        let well = until_told(&world, "recoverable", recoverable);
        assert!(well.mode == "normal" && well.problems.is_empty(), "{well:#?}");
        let disk = format!("root={}", world.image("db", "root").display());
        let refused = ask(&world, &["--add", "--vm", "db", "--disk", &disk]);
        assert_eq!((refused.code, refused.error().0), (10, "full"), "{refused:?}");
        assert!(refused.error().1.contains(state.to_str().unwrap()), "{refused:?}");
        assert_eq!(status(&world).vms.len(), 1);
        std::fs::remove_file(&filler).unwrap();
        assert_eq!(ask(&world, &["--add", "--vm", "db", "--disk", &disk]).code, 0);
        until_told(&world, "recoverable", |status| recoverable(status) && status.vms.len() == 2);
        program.stop_and_compare(&world, runtime.handle());
        mount.unmount();
    });
}

/// The log store stands on a device that fails from some moment on; nothing on it can be written any more, the mark that it
/// failed included, and after a reboot it is there again as it was.
#[test]
fn a_log_store_that_fails_mid_way_leaves_guests_alone_and_no_gap_behind() {
    let test = "a_log_store_that_fails_mid_way_leaves_guests_alone_and_no_gap_behind";
    if let Some(program) = missing(&["mke2fs", "mount"]) {
        return skipped(test, &format!("{program} is not installed"));
    }
    with_own_mounts(test, || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let world = runtime.block_on(World::new(&[("web", "root")]));
        world.make("web", "root", 64 * MIB, &[(0, 2 * MIB)]);
        let (device, before) = (world.dir.path().join("device"), world.dir.path().join("before"));
        std::fs::File::create(&device).unwrap().set_len(128 * MIB).unwrap();
        run(tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]).arg(&device));
        let state = world.dir.path().join("state");
        let mount = Mount::image(&device, &state);
        let program = Program::start(&mut protect(&world, 1));
        program.event("ready");
        until_told(&world, "recoverable", recoverable);
        // Regions are quiet for long enough that their bits are clear.
        until_told(&world, "clear bits", |status| status.vms[0].disks[0].dirty == 0);
        // A first touch has the bitmap written, with all that was cleared.
        let mut guest = client(&world, "web", "root");
        guest.write_fua(MIB, &noise(50, 8192)).unwrap();
        let copy = |from: &Path, to: &Path| run(tool("cp").arg("--sparse=always").arg(from).arg(to));
        copy(&device, &before);
        run(tool("mount").args(["-o", "remount,abort"]).arg(&state));
        for i in 0..32 {
            guest.write_fua(i * 2 * MIB, &noise(i + 1, 8192)).unwrap();
        }
        let failed = until_told(&world, "what is wrong", |status| status.mode == "failed");
        assert_eq!(failed.status, "Error", "{failed:#?}");
        assert!(failed.problems.iter().any(|why| why.contains(state.to_str().unwrap())), "{failed:#?}");
        // They go on.
        guest.write_fua(63 * MIB, &noise(99, 8192)).unwrap();
        assert_eq!(ask(&world, &["--point"]).code, 4, "nothing is captured");
        program.end(rustix::process::Signal::KILL);
        mount.unmount();
        // As it was when it failed: nothing of what came after was written.
        copy(&before, &device);
        let mount = Mount::image(&device, &state);
        let program = Program::start(&mut protect(&world, 1));
        program.event("ready");
        until_told(&world, "recoverable", recoverable);
        program.stop_and_compare(&world, runtime.handle());
        mount.unmount();
    });
}
