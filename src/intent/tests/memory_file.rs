//! A file of pages that forgets: what was written stands beside what is durable until a sync succeeds. After a failed one
//! anything of it may be on the disk, reads show the newest, and no later sync writes it: it has to be written again.

use std::collections::BTreeMap;
use std::io;

use crate::format::*;
use crate::ids::*;

use super::super::bits::Bits;
use super::super::commit::PageFile;

pub(super) type PageBytes = [u8; INTENT_PAGE];

pub(super) const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
pub(super) const DISK: DiskId = DiskId::from_bytes([2; 16]);

pub(super) struct MemoryFile {
    header: IntentHeader,
    durable: BTreeMap<u32, PageBytes>,
    /// Everything written since the last sync, in order.
    loose: BTreeMap<u32, Vec<PageBytes>>,
    /// What a failed sync left, before what is loose.
    lost: BTreeMap<u32, Vec<PageBytes>>,
    pub(super) fail_write: bool,
    pub(super) fail_sync: bool,
    pub(super) syncs: u64,
}

impl MemoryFile {
    pub(super) fn new(header: IntentHeader, set: &[Bits]) -> MemoryFile {
        let page = |(n, bits): (u32, &Bits)| (n + 1, header.encode_page(n, bits.to_bytes()));
        let durable = (0..).zip(set).map(page).collect();
        MemoryFile {
            header,
            durable,
            loose: BTreeMap::new(),
            lost: BTreeMap::new(),
            fail_write: false,
            fail_sync: false,
            syncs: 0,
        }
    }

    /// Everything that page `n` of the bitmap may hold after power is lost now.
    pub(super) fn images(&self, n: u32) -> impl Iterator<Item = &PageBytes> {
        let of = |from| BTreeMap::get(from, &(n + 1)).into_iter().flatten();
        let (lost, loose): (_, _) = (of(&self.lost), of(&self.loose));
        self.durable.get(&(n + 1)).into_iter().chain(lost).chain(loose)
    }

    /// What reads show.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header.encode().to_vec();
        for n in 0..self.header.page_count {
            out.extend(self.images(n).last().into_iter().flatten());
        }
        out
    }

    /// Power is lost: of each page, one of its images is left, which `pick` chooses by number.
    pub(super) fn cut_power(&mut self, mut pick: impl FnMut(usize) -> usize) {
        for n in 0..self.header.page_count {
            let images: Vec<_> = self.images(n).copied().collect();
            self.durable.insert(n + 1, images[pick(images.len())]);
        }
        self.loose.clear();
        self.lost.clear();
    }
}

impl PageFile for MemoryFile {
    fn write_page(&mut self, n: u32, bytes: &PageBytes) -> io::Result<()> {
        if std::mem::take(&mut self.fail_write) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.loose.entry(n).or_default().push(*bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        let loose = std::mem::take(&mut self.loose);
        if std::mem::take(&mut self.fail_sync) {
            loose.into_iter().for_each(|(n, versions)| self.lost.entry(n).or_default().extend(versions));
            return Err(io::Error::from_raw_os_error(5));
        }
        for (n, mut versions) in loose {
            self.durable.extend(versions.pop().map(|last| (n, last)));
            self.lost.remove(&n);
        }
        Ok(())
    }
}
