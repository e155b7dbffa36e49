//! Archives as a kernel unpacks them for its first root: cpio, its format `newc`. Pure.

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn dir(&mut self, name: &str) {
        self.add(name, 0o040_755, &[]);
    }

    /// Adds a file; with `runs` it may be executed.
    pub fn file(&mut self, name: &str, runs: bool, content: &[u8]) {
        self.add(name, if runs { 0o100_755 } else { 0o100_644 }, content);
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // A file of 4 GiB has no place in here: it would be told short, and the kernel would say so.
        let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        // Inode, mode, owner, group, links, time, length, four numbers of devices, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, len(content.len()), 0, 0, 0, 0, len(name.len() + 1), 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Its bytes.
    pub fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
