//! Real devices and file systems: a loop device of 4,096-byte blocks, tmpfs, a read-only mount.
//!
//! They need root (as CI has it). Without it these tests say so and pass; the contract itself is tested elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::{Rig, SLOT, Variant, on_every_engine, pattern};
use crate::datastore::{Access, DiskEngine, FileId, Op, Slab, start};
use crate::error::ErrorKind;

on_every_engine!(
    a_block_device_of_4096_byte_blocks_works,
    a_file_system_of_4096_byte_blocks_works,
    tmpfs_works_with_or_without_direct_io,
    a_read_only_file_system_can_be_read,
);

/// Mounts a tmpfs for the calling thread, and those it starts, alone; it goes with them. False without root.
pub(super) fn mount_tmpfs(at: &Path, options: &str) -> bool {
    // SAFETY: changes which mounts this thread sees, and nothing in memory.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
    if !unshared {
        eprintln!("skipped: a mount namespace of its own needs root");
        return false;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let data = std::ffi::CString::new(options).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), data.as_c_str()).unwrap();
    true
}

/// A loop device, detached on drop.
struct Loop(PathBuf);

impl Loop {
    /// A device of this block size over `file`; `None` where there are no loop devices for us.
    fn over(file: &Path, block: u32) -> Option<Loop> {
        let made =
            Command::new("losetup").args(["--find", "--show", "--sector-size", &block.to_string()]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => Some(Loop(String::from_utf8(made.stdout).unwrap().trim().into())),
            other => {
                eprintln!("skipped: no loop device of {block}-byte blocks here: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        assert!(Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap().success());
    }
}

/// Writes and reads around the edges of blocks, all of it compared in the end.
fn exercise(engine: &dyn DiskEngine, file: FileId, size: usize) {
    let mut model = vec![0u8; size];
    let mut read = vec![0; size];
    assert_eq!(engine.read_blocking(file, 0, &mut model).unwrap(), size);
    for (n, (offset, len)) in
        [(0, 8192), (512, 512), (100, 9000), (4096, 4096), (8191, 2), (20_480, SLOT), (size - 700, 700)]
            .into_iter()
            .enumerate()
    {
        let bytes = pattern(n as u64, len);
        engine.write_all_blocking(file, offset as u64, &bytes).unwrap();
        model[offset..offset + len].copy_from_slice(&bytes);
        assert_eq!(engine.read_blocking(file, 0, &mut read).unwrap(), size);
        assert!(read == model, "after {len} at {offset}");
    }
    engine.sync_blocking(file).unwrap();
}

fn a_block_device_of_4096_byte_blocks_works(variant: Variant) {
    let rig = Rig::new(variant);
    let size = 1 << 20;
    fs::write(rig.path("backing"), pattern(1, size)).unwrap();
    let Some(device) = Loop::over(&rig.path("backing"), 4096) else { return };
    let file = rig.engine.open(&device.0, Access::Write).unwrap();
    let info = rig.engine.file_info(file).unwrap();
    assert_eq!((info.block_device, info.len), (true, size as u64));
    assert!(info.alignment.device == 4096 || info.not_direct.is_some(), "{info:?}");
    exercise(&*rig.engine, file, size);

    rig.engine.punch_hole_blocking(file, 65_536, 131_072).unwrap();
    let mut hole = vec![1; 131_072];
    rig.engine.read_blocking(file, 65_536, &mut hole).unwrap();
    assert!(hole.iter().all(|&b| b == 0));
    assert_eq!(rig.engine.set_len_blocking(file, 4096).unwrap_err().kind(), ErrorKind::Invalid);
    let slot = rig.slab.take();
    let past = rig.engine.execute(file, Op::Write { offset: size as u64 - 4096, slot, range: 0..8192 });
    assert_eq!(past.result.unwrap_err().kind(), ErrorKind::Full);
    let mut end = vec![0; 8192];
    assert_eq!(rig.engine.read_blocking(file, size as u64 - 4096, &mut end).unwrap(), 4096, "short at the end");
    rig.engine.close(file).unwrap();
    let read_only = rig.engine.open(&device.0, Access::Read).unwrap();
    assert_eq!(rig.engine.file_info(read_only).unwrap().len, size as u64);
    rig.engine.close(read_only).unwrap();
}

fn a_file_system_of_4096_byte_blocks_works(variant: Variant) {
    let dir = tempfile::tempdir().unwrap();
    let backing = dir.path().join("backing");
    fs::File::create(&backing).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = Loop::over(&backing, 4096) else { return };
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-b", "4096"]).arg(&device.0).status();
    if !made.is_ok_and(|made| made.success()) {
        eprintln!("skipped: no mke2fs here");
        return;
    }
    let at = tempfile::tempdir().unwrap();
    let test = || {
        if !mount_tmpfs(at.path(), "size=1m") {
            return;
        }
        let disk = at.path().join("mounted");
        fs::create_dir(&disk).unwrap();
        mount(&device.0, &disk, "ext4", MountFlags::empty(), None).unwrap();
        let slab = Slab::new(4, SLOT).unwrap();
        let engine = start(variant.kind(), slab, variant.options()).unwrap();
        let path = disk.join("disk");
        fs::write(&path, pattern(2, 600_001)).unwrap();
        let file = engine.open(&path, Access::Write).unwrap();
        let info = engine.file_info(file).unwrap();
        assert!(info.alignment.device == 4096 || info.not_direct.is_some(), "{info:?}");
        exercise(&*engine, file, 600_001);
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

fn tmpfs_works_with_or_without_direct_io(variant: Variant) {
    let dir = tempfile::tempdir().unwrap();
    let test = || {
        if !mount_tmpfs(dir.path(), "size=4m") {
            return;
        }
        let slab = Slab::new(4, SLOT).unwrap();
        let engine = start(variant.kind(), slab, variant.options()).unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, pattern(3, 600_001)).unwrap();
        let file = engine.open(&path, Access::Write).unwrap();
        exercise(&*engine, file, 600_001);
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

fn a_read_only_file_system_can_be_read(variant: Variant) {
    let dir = tempfile::tempdir().unwrap();
    let test = || {
        if !mount_tmpfs(dir.path(), "size=1m") {
            return;
        }
        let path = dir.path().join("disk");
        fs::write(&path, pattern(4, 10_000)).unwrap();
        rustix::mount::mount_remount(dir.path(), MountFlags::RDONLY, "").unwrap();
        let slab = Slab::new(1, SLOT).unwrap();
        let engine: Arc<dyn DiskEngine> = start(variant.kind(), slab, variant.options()).unwrap();
        let error = engine.open(&path, Access::Write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let file = engine.open(&path, Access::Read).unwrap();
        let mut bytes = vec![0; 20_000];
        assert_eq!(engine.read_blocking(file, 0, &mut bytes).unwrap(), 10_000);
        assert!(bytes[..10_000] == pattern(4, 10_000));
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}
