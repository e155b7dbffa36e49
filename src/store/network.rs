//! Whether a directory is on a network file system, by the type that `statfs(2)` tells.

use std::path::Path;

/// Types of file systems whose data other hosts may reach, from `linux/magic.h` and the file systems' own headers.
const TYPES: [(u64, &str); 16] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x7461_636F, "OCFS2"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0xAAD7_AAEA, "PanFS"),
];

/// Name of the network file system that holds `path` or its nearest folder that exists; `None` on a local one.
pub(super) fn file_system(path: &Path) -> Option<&'static str> {
    let there = path.ancestors().find_map(|p| rustix::fs::statfs(p).ok())?;
    // The field is signed and as wide as a pointer; the types are 32 bits.
    name_of(there.f_type as u64 & 0xFFFF_FFFF)
}

fn name_of(kind: u64) -> Option<&'static str> {
    TYPES.iter().find(|(k, _)| *k == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_types_have_names_and_local_ones_do_not() {
        assert_eq!(name_of(0x6969), Some("NFS"));
        assert_eq!(name_of(0xFF53_4D42), Some("CIFS"));
        assert_eq!(name_of(0xEF53), None, "ext4");
        // procfs is never remote, and the missing folder is looked for above itself.
        assert_eq!(file_system(Path::new("/proc/none/none")), None);
    }
}
