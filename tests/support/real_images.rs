//! Images of real file systems, filled with a part of this machine's own `/usr`, and the checkers of their makers.
//!
//! Nothing is mounted: ext4 is filled by `mke2fs -d`, xfs by the prototype file of `mkfs.xfs -p`, so that it works
//! wherever the tests do. The part is bounded and chosen in the order of names: two images made on one machine hold the
//! same files.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where files are taken from, a third of the bytes each.
const ROOTS: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/share"];
/// Bytes of a block of both file systems.
const BLOCK: usize = 4096;
/// Larger files are left out, so that there are many.
const LARGEST: u64 = 8 << 20;
/// Directories below a root that are entered.
const DEEPEST: usize = 6;

/// A file system that an image can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// The programs that make and check it.
    fn tools(self) -> [&'static str; 2] {
        match self {
            Kind::Ext4 => ["mke2fs", "e2fsck"],
            Kind::Xfs => ["mkfs.xfs", "xfs_repair"],
        }
    }

    /// The first of its programs that this machine lacks.
    pub(crate) fn missing(self) -> Option<&'static str> {
        self.tools().into_iter().find(|tool| find(tool).is_none())
    }

    /// Makes `image`, sparse, of `len` bytes, holding the files of `tree`.
    pub(crate) fn make(self, image: &Path, len: u64, tree: &Path) {
        fs::File::create(image).unwrap().set_len(len).unwrap();
        match self {
            Kind::Ext4 => {
                let mut command = tool("mke2fs");
                run(command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"]).arg(tree).arg(image));
            }
            Kind::Xfs => {
                let proto = image.with_extension("proto");
                fs::write(&proto, prototype(tree)).unwrap();
                run(tool("mkfs.xfs").args(["-q", "-f", "-p"]).arg(&proto).arg(image));
                fs::remove_file(proto).unwrap();
            }
        }
        self.check(image);
    }

    /// Its checker finds nothing wrong with `image`, and changes nothing.
    pub(crate) fn check(self, image: &Path) {
        match self {
            Kind::Ext4 => run(tool("e2fsck").arg("-fn").arg(image)),
            Kind::Xfs => run(tool("xfs_repair").args(["-n", "-f"]).arg(image)),
        }
    }
}

/// Copies files of `/usr`, about `budget` bytes of them, into `tree`, which must not exist; and a marker, see
/// [`rewrite_marker`].
pub(crate) fn copy_tree(tree: &Path, budget: u64) {
    fs::create_dir(tree).unwrap();
    fs::write(tree.join("marker"), marker()).unwrap();
    let mut copied = 0;
    for (i, root) in ROOTS.iter().enumerate() {
        let into = tree.join(root.rsplit('/').next().unwrap());
        copied += copy_some(Path::new(root), &into, budget * (i as u64 + 1) / 3 - copied, DEEPEST);
    }
    assert!(copied > budget / 2, "only {copied} bytes in {ROOTS:?}: too few for this test");
}

/// Bytes of the marker: blocks of a file system that stand nowhere else.
fn marker() -> Vec<u8> {
    let mut bytes = vec![0; 256 * BLOCK];
    fastrand::Rng::with_seed(0x6d61_726b).fill(&mut bytes);
    bytes
}

/// Rewrites the marker's file within an unmounted `image`. Only bytes of a file change, so the file system stays sound.
pub(crate) fn rewrite_marker(image: &Path) {
    let bytes = marker();
    let blocks: std::collections::HashSet<&[u8]> = bytes.chunks(BLOCK).collect();
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let (mut at, mut found, mut chunk) = (0, 0, vec![0; 256 * BLOCK]);
    loop {
        let read = file.read_at(&mut chunk, at).unwrap();
        if read == 0 {
            break;
        }
        for (i, block) in chunk[..read].chunks(BLOCK).enumerate().filter(|(_, b)| blocks.contains(b)) {
            let flipped: Vec<u8> = block.iter().map(|b| b ^ 0x55).collect();
            file.write_all_at(&flipped, at + (i * BLOCK) as u64).unwrap();
            found += 1;
        }
        at += read as u64;
    }
    assert_eq!(found, blocks.len(), "blocks of the marker in {}", image.display());
}

/// Copies what fits into `left` bytes; answers with the bytes copied.
fn copy_some(from: &Path, into: &Path, left: u64, depth: usize) -> u64 {
    fs::create_dir(into).unwrap();
    // What cannot be read, or went away, is left out.
    let mut names: Vec<_> = fs::read_dir(from).map_or(Vec::new(), |d| d.flatten().map(|e| e.file_name()).collect());
    names.sort();
    let mut copied = 0;
    for name in names {
        // A prototype file knows no names with blanks.
        if !name.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_graphic())) {
            continue;
        }
        let (source, target) = (from.join(&name), into.join(&name));
        let Ok(meta) = fs::symlink_metadata(&source) else { continue };
        if meta.is_symlink() {
            let to = fs::read_link(&source).unwrap();
            if to.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_graphic())) {
                std::os::unix::fs::symlink(to, &target).unwrap();
            }
        } else if meta.is_dir() && depth > 0 && copied < left {
            copied += copy_some(&source, &target, left - copied, depth - 1);
        } else if meta.is_file() && meta.len() <= LARGEST.min(left - copied) {
            copied += fs::copy(&source, &target).unwrap_or(0);
        }
    }
    copied
}

/// A prototype file for `tree`: see mkfs.xfs(8).
fn prototype(tree: &Path) -> Vec<u8> {
    let mut text = b"/dev/null\n0 0\nd--755 0 0\n".to_vec();
    describe(tree, &mut text);
    text
}

fn describe(dir: &Path, text: &mut Vec<u8>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let (name, path) = (entry.file_name().into_string().unwrap(), entry.path());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            writeln!(text, "{name} d--755 0 0").unwrap();
            describe(&path, text);
        } else if kind.is_symlink() {
            writeln!(text, "{name} l--777 0 0 {}", fs::read_link(&path).unwrap().display()).unwrap();
        } else {
            writeln!(text, "{name} ---644 0 0 {}", path.display()).unwrap();
        }
    }
    text.extend_from_slice(b"$\n");
}

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&dirs).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    dirs.into_iter().map(|d| d.join(program)).find(|p| p.is_file())
}

/// A program that must be there.
pub(crate) fn tool(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| panic!("no {program} here")))
}

/// Runs it to its end; shows what it says where it fails.
pub(crate) fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
}
