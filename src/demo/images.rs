//! The disks of the demo: a real ext4 file system of this machine's own files where `mke2fs` is here, and a disk of
//! generated data; both are really changed between the points.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::xxh3_64;
use crate::ids::Name;

/// Bytes of files that go into the file system.
const TREE_BYTES: u64 = 256 << 20;
/// Size of the file system's disk.
const SYSTEM_SIZE: u64 = 1 << 30;
/// Size of the generated disk: not a multiple of 4 KiB.
const DATA_SIZE: u64 = (128 << 20) + 1536;
/// Unit of copies and changes.
const CHUNK: usize = 1 << 20;
/// Where the files come from, as far as they go.
const TREES: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/share"];

/// One disk.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) name: Name,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) what: String,
    /// Whether `debugfs` can write a file into it.
    ext4: bool,
}

impl Image {
    pub(super) fn file_name(&self) -> String {
        format!("{}.img", self.name.key())
    }
}

/// Copies the given images, or builds two disks.
pub(super) fn build(dir: &Path, given: &[PathBuf]) -> Result<Vec<Image>> {
    let at = |name: &str| dir.join("images").join(format!("{name}.img"));
    let mut out = Vec::new();
    for (i, source) in given.iter().enumerate() {
        let name = format!("disk{}", i + 1);
        copy(source, &at(&name))?;
        out.push(image(&name, at(&name), format!("copy of {}", source.display()), false)?);
    }
    if !out.is_empty() {
        return Ok(out);
    }
    let system = at("system");
    let (what, ext4) = match build_ext4(dir, &system)? {
        true => ("ext4 of this machine's files".to_owned(), true),
        false => {
            generate(&system, SYSTEM_SIZE / 4, 1)?;
            ("generated, since mke2fs is not here".to_owned(), false)
        }
    };
    out.push(image("system", system, what, ext4)?);
    generate(&at("data"), DATA_SIZE, 2)?;
    out.push(image("data", at("data"), "generated data and zeros, of odd size".to_owned(), false)?);
    Ok(out)
}

fn image(name: &str, path: PathBuf, what: String, ext4: bool) -> Result<Image> {
    let size = path.metadata().io_context(|| format!("disk image {}", path.display()))?.len();
    Ok(Image { name: Name::new(name)?, path, size, what, ext4 })
}

/// Whether `program` is here and did what it was asked.
pub(super) fn tool(program: &str, args: &[&std::ffi::OsStr]) -> bool {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut run = Command::new(program);
    run.env("PATH", paths).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run.status().is_ok_and(|s| s.success())
}

fn build_ext4(dir: &Path, path: &Path) -> Result<bool> {
    let tree = dir.join("tree");
    let mut left = TREE_BYTES;
    for root in TREES {
        gather(Path::new(root), &tree.join(root.trim_start_matches('/')), &mut left)?;
    }
    let file = File::create_new(path).io_context(|| format!("disk image {}", path.display()))?;
    file.set_len(SYSTEM_SIZE).io_context(|| format!("disk image {}", path.display()))?;
    let args = ["-q", "-F", "-t", "ext4", "-d"].map(std::ffi::OsStr::new);
    let made = tool("mke2fs", &[&args[..], &[tree.as_os_str(), path.as_os_str()]].concat());
    std::fs::remove_dir_all(&tree).io_context(|| format!("remove {}", tree.display()))?;
    if !made {
        std::fs::remove_file(path).io_context(|| format!("remove {}", path.display()))?;
    }
    Ok(made)
}

/// Files below this length are left out: thousands of them would cost a slow disk a minute to read.
const LEAST_FILE: u64 = 16 << 10;

/// Copies regular files below `from`, as many as fit what is `left`. Files that may not be read are left out.
fn gather(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    std::fs::create_dir_all(to).io_context(|| format!("directory {}", to.display()))?;
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    let mut entries: Vec<_> = entries.filter_map(std::result::Result::ok).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        // Looking at every file of the machine would take longer than all the rest.
        if *left < TREE_BYTES / 4 {
            return Ok(());
        }
        let (Ok(kind), Ok(meta)) = (entry.file_type(), entry.metadata()) else { continue };
        let target = to.join(entry.file_name());
        // One tree does not take all: each file may have a tenth of what is left.
        if kind.is_dir() {
            gather(&entry.path(), &target, left)?;
        } else if kind.is_file() && (LEAST_FILE..=*left / 10).contains(&meta.len()) {
            *left -= std::fs::copy(entry.path(), &target).unwrap_or(0);
        }
    }
    Ok(())
}

/// A sparse disk: stretches of text-like data, of noise, of zeros and of holes.
fn generate(path: &Path, size: u64, seed: u64) -> Result<()> {
    let show = || format!("disk image {}", path.display());
    let file = File::create_new(path).io_context(show)?;
    file.set_len(size).io_context(show)?;
    let mut chunk = vec![0; CHUNK];
    for (i, offset) in (0..size).step_by(CHUNK).enumerate() {
        match i % 4 {
            0 => fill(&mut chunk, seed + offset, 24),
            1 => fill(&mut chunk, seed + offset, 256),
            2 => chunk.fill(0),
            _ => continue,
        }
        let len = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
        file.write_all_at(&chunk[..len], offset).io_context(show)?;
    }
    file.sync_all().io_context(show)
}

/// Bytes of `kinds` different values in no order; few kinds compress well.
fn fill(chunk: &mut [u8], seed: u64, kinds: u64) {
    for (i, word) in chunk.chunks_mut(8).enumerate() {
        let mix = xxh3_64(&(seed ^ ((i as u64) << 32)).to_le_bytes()).to_le_bytes();
        for (byte, random) in word.iter_mut().zip(mix) {
            // Both factors are below 256.
            *byte = (u64::from(random) * kinds / 256) as u8;
        }
    }
}

/// Changes every disk; answers with the bytes that were written or made zero.
pub(super) fn change(dir: &Path, disks: &[Image]) -> Result<u64> {
    let mut changed = 0;
    for disk in disks {
        if disk.ext4 && write_into_file_system(dir, disk)? {
            changed += 8 << 20;
            continue;
        }
        changed += change_blocks(disk)?;
    }
    Ok(changed)
}

/// Writes a new file into the file system of the image, as a guest would.
fn write_into_file_system(dir: &Path, disk: &Image) -> Result<bool> {
    let source = dir.join("new-file");
    let mut bytes = vec![0; 8 << 20];
    fill(&mut bytes, 77, 64);
    std::fs::write(&source, &bytes).io_context(|| format!("write {}", source.display()))?;
    let command = format!("write {} new-file", source.display());
    let args = ["-w", "-R", &command].map(std::ffi::OsStr::new);
    let done = tool("debugfs", &[&args[..], &[disk.path.as_os_str()]].concat());
    std::fs::remove_file(&source).io_context(|| format!("remove {}", source.display()))?;
    Ok(done)
}

/// Overwrites every sixteenth megabyte, makes the one after it zero, and writes a few bytes across a block boundary.
fn change_blocks(disk: &Image) -> Result<u64> {
    let show = || format!("disk image {}", disk.path.display());
    let file = OpenOptions::new().write(true).open(&disk.path).io_context(show)?;
    let (mut chunk, mut changed) = (vec![0; CHUNK], 0);
    for offset in (0..disk.size).step_by(16 * CHUNK) {
        for (at, data) in [(offset, true), (offset + CHUNK as u64, false)] {
            let len = usize::try_from(disk.size.saturating_sub(at)).unwrap_or(CHUNK).min(CHUNK);
            match data {
                true => fill(&mut chunk, offset + 3, 40),
                false => chunk.fill(0),
            }
            file.write_all_at(&chunk[..len], at).io_context(show)?;
            changed += len as u64;
        }
    }
    if disk.size > 3 << 20 {
        file.write_all_at(b"across a boundary", (3 << 20) - 9).io_context(show)?;
        changed += 17;
    }
    file.sync_all().io_context(show)?;
    Ok(changed)
}

/// Copies an image and leaves its holes and zeros out.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let show = || format!("copy {} to {}", from.display(), to.display());
    let mut source = File::open(from).io_context(show)?;
    let size = source.seek(SeekFrom::End(0)).io_context(show)?;
    source.rewind().io_context(show)?;
    let mut target = File::create_new(to).io_context(show)?;
    let (mut chunk, mut offset) = (vec![0; CHUNK], 0);
    while offset < size {
        let len = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
        source.read_exact(&mut chunk[..len]).io_context(show)?;
        match chunk[..len].iter().all(|b| *b == 0) {
            true => drop(target.seek(SeekFrom::Current(i64::try_from(len).unwrap_or(0))).io_context(show)?),
            false => target.write_all(&chunk[..len]).io_context(show)?,
        }
        offset += len as u64;
    }
    target.set_len(size).io_context(show)?;
    match target.metadata().io_context(show)?.len() == size {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Io, format!("{}: the copy is short", show()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_differ_after_a_change_and_copies_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        generate(&path, (20 << 20) + 1536, 5).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(before.iter().any(|b| *b != 0));
        copy(&path, &dir.path().join("b.img")).unwrap();
        assert!(std::fs::read(dir.path().join("b.img")).unwrap() == before);
        let disk = image("a", path.clone(), String::new(), false).unwrap();
        assert!(change_blocks(&disk).unwrap() > 2 << 20);
        let after = std::fs::read(&path).unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after != before);
    }
}
