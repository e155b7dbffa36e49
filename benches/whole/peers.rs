//! The programs that people have today, on the same image; every output is compared byte for byte.
//!
//! Each is given what makes it fast: many threads, direct output where it has that, sparse output. None of them makes
//! its output durable: the sync that ours has done when it ends is added to their time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::Outcome;
use crate::process::{Run, drop_cache, fresh_dir, is_here, run, same};

/// One peer, its stored copy of the image ready.
pub(crate) struct Peer {
    /// What it is called in the table.
    pub(crate) name: &'static str,
    stored: PathBuf,
    restore: fn(&Path, &Path) -> Outcome<Run>,
    /// The restored image within the output directory.
    output: &'static str,
}

impl Peer {
    /// Restores into an empty directory, from a cold cache, and compares.
    pub(crate) fn restore(&self, image: &Path, out: &Path) -> Outcome<Run> {
        fresh_dir(out)?;
        drop_cache(&self.stored)?;
        let mut run = (self.restore)(&self.stored, out)?;
        let restored = match self.output {
            // restic keeps the whole path.
            "" => out.join(image.strip_prefix("/")?),
            name => out.join(name),
        };
        let begun = Instant::now();
        File::open(&restored)?.sync_all()?;
        run.wall += begun.elapsed().as_secs_f64();
        same(image, &restored)?;
        fresh_dir(out)?;
        Ok(run)
    }
}

/// Stores the image with every peer that is installed; says which are not.
pub(crate) fn prepare(image: &Path, dir: &Path) -> Outcome<Vec<Peer>> {
    let mut peers = Vec::new();
    let missing = |program: &str| println!("{program} is not installed: not compared");
    if is_here("restic") {
        let stored = dir.join("restic");
        fresh_dir(&stored)?;
        run(restic(&stored).arg("init"))?;
        run(restic(&stored).arg("backup").arg(image))?;
        let restore = |stored: &Path, out: &Path| {
            let help = run(Command::new("restic").args(["restore", "--help"]))?.out;
            // Older versions do not have it.
            let sparse = help.contains("--sparse").then_some("--sparse");
            run(restic(stored).args(["restore", "latest"]).args(sparse).arg("--target").arg(out))
        };
        peers.push(Peer { name: "restic restore", stored, restore, output: "" });
    } else {
        missing("restic");
    }
    if is_here("rclone") && is_here("zstd") {
        let stored = dir.join("rclone");
        fresh_dir(&stored)?;
        run(Command::new("zstd").args(["-q", "-1", "-T0", "-o"]).arg(stored.join("image.zst")).arg(image))?;
        peers.push(Peer { name: "rclone copy, zstd -d", stored, restore: rclone, output: "image" });
    } else {
        missing("rclone or zstd");
    }
    if is_here("qemu-img") {
        let stored = dir.join("qcow2");
        fresh_dir(&stored)?;
        let qcow2 = stored.join("image.qcow2");
        let options = ["convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-W", "-m", "16", "-f", "raw"];
        run(Command::new("qemu-img").args(options).args([image, &qcow2]))?;
        peers.push(Peer { name: "qemu-img convert", stored: stored.clone(), restore: qemu_img, output: "image" });
        if is_here("nbdcopy") && is_here("qemu-nbd") {
            peers.push(Peer { name: "nbdcopy", stored, restore: nbdcopy, output: "image" });
        } else {
            missing("nbdcopy");
        }
    } else {
        missing("qemu-img");
    }
    Ok(peers)
}

fn restic(repository: &Path) -> Command {
    let mut command = Command::new("restic");
    command.args(["--quiet", "--no-cache", "--repo"]).arg(repository).env("RESTIC_PASSWORD", "bench");
    command
}

fn rclone(stored: &Path, out: &Path) -> Outcome<Run> {
    let copied = run(Command::new("rclone").arg("copy").args([stored, out]))?;
    let packed = out.join("image.zst");
    let unpacked = run(Command::new("zstd").args(["-q", "-d", "--sparse", "-o"]).arg(out.join("image")).arg(packed))?;
    Ok(copied.then(unpacked))
}

fn qemu_img(stored: &Path, out: &Path) -> Outcome<Run> {
    let options = ["convert", "-f", "qcow2", "-O", "raw", "-t", "none", "-T", "none", "-W", "-m", "16"];
    run(Command::new("qemu-img").args(options).args([stored.join("image.qcow2"), out.join("image")]))
}

/// nbdcopy from a qemu-nbd that it starts itself; the server's CPU seconds count, since nbdcopy waits for it.
fn nbdcopy(stored: &Path, out: &Path) -> Outcome<Run> {
    let image = out.join("image");
    let info = run(Command::new("qemu-img").args(["info", "--output=json"]).arg(stored.join("image.qcow2")))?.json()?;
    std::fs::File::create(&image)?.set_len(info["virtual-size"].as_u64().ok_or("qemu-img tells no size")?)?;
    let server = ["qemu-nbd", "--read-only", "--cache=none", "--aio=native", "--shared=8", "--format=qcow2"];
    let mut command = Command::new("nbdcopy");
    command.args(["--destination-is-zero", "--", "["]).args(server).arg(stored.join("image.qcow2")).arg("]");
    run(command.arg(&image))
}
