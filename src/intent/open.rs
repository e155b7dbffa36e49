//! What a bitmap's file says when it is opened, and the file that memory and disk agree on from then on.
//!
//! | found | answer | file |
//! |---|---|---|
//! | nothing | `New`: all set | made |
//! | of this disk and size | `Kept`: what it says; all regions of a page that does not verify | pages written again |
//! | of this disk, smaller | `Kept`: what it says; regions that reach past the old end are set | made anew |
//! | of this disk, larger | `Lost`: all set | made anew |
//! | header does not verify | `Lost`: all set | put aside, made anew |
//! | of another domain or disk | refused | left alone |
//! | of a newer version | refused | left alone |
//!
//! Nothing is trusted before it was written and synced by this program: the page cache may show what a failed sync lost.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{DecodeError, INTENT_PAGE, INTENT_PAGE_REGIONS, IntentHeader, IntentId, IntentShape};
use crate::ids::{DiskId, DomainId};

use super::bits::Bits;
use super::commit::PageFile;
use super::file::{IntentFile, put_aside};

/// Whose bitmap it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntentIdentity {
    /// Domain.
    pub domain: DomainId,
    /// Disk.
    pub disk: DiskId,
    /// Bytes of the disk.
    pub size: u64,
}

/// How the bitmap behaves.
#[derive(Debug, Clone)]
pub struct IntentOptions {
    /// Calls of `clear_accepted` for which a region must have been quiet before its bit is cleared, so that hot regions
    /// keep theirs. At one call a second, the default of 8 keeps a bit for 8 seconds after the last write.
    pub quiet_calls: u32,
    /// How long cleared bits may stay set in the file when nothing else has to be written; default 10 s. Longer costs
    /// more resync after a crash, shorter more syncs.
    pub patience: Duration,
}

impl Default for IntentOptions {
    fn default() -> IntentOptions {
        IntentOptions { quiet_calls: 8, patience: Duration::from_secs(10) }
    }
}

/// What opening found. All regions that are set are unsynced: the caller reads them back and ships them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There was no file: nothing is known to be in the chain, all regions are set.
    New,
    /// The bitmap of this disk.
    Kept {
        /// Regions that are set.
        set: u32,
        /// Pages that did not verify, and why: all their regions are set.
        damaged: Vec<String>,
        /// Bytes that the disk had before it grew.
        grown_from: Option<u64>,
    },
    /// There was a file of which nothing can be used: all regions are set. Why.
    Lost(String),
}

/// What the bytes of a file mean. Pure.
pub(super) struct Judged {
    pub(super) found: Found,
    /// The file's own header, where its pages go on being used.
    pub(super) header: Option<IntentHeader>,
    /// What is set, for each page.
    pub(super) set: Vec<Bits>,
}

/// A file that says durably what `set` says.
pub(super) struct Opened {
    pub(super) file: IntentFile,
    pub(super) header: IntentHeader,
    pub(super) shape: IntentShape,
    pub(super) set: Vec<Bits>,
    pub(super) found: Found,
}

/// Opens or makes the file at `path`. Blocks.
pub(super) fn open(path: &Path, identity: &IntentIdentity) -> Result<Opened> {
    let Some(shape) = IntentShape::of(identity.size) else {
        return Err(Error::new(ErrorKind::Invalid, format!("disk {}: has no bytes", identity.disk)));
    };
    // Held while another takes its name, so that no second process gets in between.
    let old = IntentFile::open(path)?;
    let judged = match &old {
        None => Judged { found: Found::New, header: None, set: all_set(&shape) },
        Some(file) => judge(path, &file.read().io_context(|| format!("read {}", path.display()))?, identity, &shape)?,
    };
    let Judged { found, header, set } = judged;
    match (old, header) {
        (Some(mut file), Some(header)) => {
            rewrite(&mut file, &header, &set).io_context(|| format!("write {}", path.display()))?;
            Ok(Opened { file, header, shape, set, found })
        }
        (_old, _) => make(path, identity, shape, set, found),
    }
}

/// What of the disk the file at `path` has marked, as ranges of its bytes, ascending and disjoint: all of it where nothing
/// of the file can be believed. Changes nothing. Blocks.
///
/// # Errors
/// `Refused` where it is in use or is another disk's; `Unsupported` where a newer program wrote it; `Io`.
pub(crate) fn look(path: &Path, identity: &IntentIdentity) -> Result<Vec<Range<u64>>> {
    let Some(shape) = IntentShape::of(identity.size) else { return Ok(Vec::new()) };
    let set = match IntentFile::open(path)? {
        None => all_set(&shape),
        Some(file) => {
            judge(path, &file.read().io_context(|| format!("read {}", path.display()))?, identity, &shape)?.set
        }
    };
    let mut out: Vec<Range<u64>> = Vec::new();
    for (page, bits) in (0..).zip(&set) {
        let first = shape.page_regions(page).start;
        let mut next = bits.next(0);
        while let Some(region) = next {
            let range = shape.range_of(first + region);
            match out.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => out.push(range),
            }
            next = bits.next(region + 1);
        }
    }
    Ok(out)
}

/// Writes every page again, so that what was read is durable whatever the page cache pretended.
pub(super) fn rewrite(file: &mut dyn PageFile, header: &IntentHeader, set: &[Bits]) -> std::io::Result<()> {
    for (page, bits) in (0..).zip(set) {
        file.write_page(page + 1, &header.encode_page(page, bits.to_bytes()))?;
    }
    file.sync()
}

/// A new file, in place of what `path` names, if anything.
fn make(path: &Path, of: &IntentIdentity, shape: IntentShape, set: Vec<Bits>, mut found: Found) -> Result<Opened> {
    if let Found::Lost(why) = &mut found {
        let aside = put_aside(path)?;
        why.push_str(&format!("; what was there is {} now", aside.display()));
    }
    let header = IntentHeader::new(IntentId::random(), of.domain, of.disk, &shape);
    let mut bytes = header.encode().to_vec();
    for (page, bits) in (0..).zip(&set) {
        bytes.extend_from_slice(&header.encode_page(page, bits.to_bytes()));
    }
    let file = IntentFile::create(path, &bytes)?;
    Ok(Opened { file, header, shape, set, found })
}

fn all_set(shape: &IntentShape) -> Vec<Bits> {
    (0..shape.pages()).map(|page| Bits::all(page_len(shape, page))).collect()
}

fn page_len(shape: &IntentShape, page: u32) -> u32 {
    let regions = shape.page_regions(page);
    regions.end - regions.start
}

/// What `bytes`, read from `path`, mean for a disk of this identity.
///
/// # Errors
/// `Unsupported` for a newer version of any page; `Refused` for another domain's or disk's file.
pub(super) fn judge(path: &Path, bytes: &[u8], identity: &IntentIdentity, shape: &IntentShape) -> Result<Judged> {
    let lost = |why: String| Judged { found: Found::Lost(why), header: None, set: all_set(shape) };
    let header = match IntentHeader::open(bytes) {
        Ok(header) => header,
        Err(e @ DecodeError::Version { .. }) => return Err(e.at(path.display())),
        Err(e) => return Ok(lost(e.to_string())),
    };
    if header.domain != identity.domain || header.disk != identity.disk {
        let IntentIdentity { domain, disk, .. } = identity;
        let whose = format!("disk {} of domain {}", header.disk, header.domain);
        let why =
            format!("{} is the write-intent bitmap of {whose}, not of disk {disk} of domain {domain}", path.display());
        return Err(Error::new(ErrorKind::Refused, why));
    }
    if header.size > identity.size {
        return Ok(lost(format!("the disk had {} bytes and has {} now", header.size, identity.size)));
    }
    let old = header.shape().map_err(|e| e.at(path.display()))?;
    let (mut set, mut damaged) = (Vec::new(), Vec::new());
    for page in 0..old.pages() {
        let at = (1 + page as usize) * INTENT_PAGE;
        let bytes = bytes.get(at..at + INTENT_PAGE).unwrap_or_default();
        let len = page_len(&old, page);
        match header.open_page(page, bytes) {
            Ok(page) => set.push(Bits::from_bytes(&page.bits, len)),
            Err(e @ DecodeError::Version { .. }) => return Err(e.at(path.display())),
            Err(e) => {
                damaged.push(format!("page {page}: {e}"));
                set.push(Bits::all(len));
            }
        }
    }
    let grown_from = (old != *shape).then_some(old.size());
    if grown_from.is_some() {
        set = grown(&old, &set, shape);
    }
    let count = set.iter().map(Bits::count).sum();
    let header = grown_from.is_none().then_some(header);
    Ok(Judged { found: Found::Kept { set: count, damaged, grown_from }, header, set })
}

/// The set regions of a disk that grew: those that reach past its old end, and those with a part that was set.
fn grown(old: &IntentShape, set: &[Bits], new: &IntentShape) -> Vec<Bits> {
    let was_set = |region: u32| {
        let page = set.get((region / INTENT_PAGE_REGIONS) as usize);
        page.is_none_or(|page| page.has(region % INTENT_PAGE_REGIONS))
    };
    let is_set = |region: u32| {
        let range = new.range_of(region);
        old.regions_of(&range).is_none_or(|mut parts| parts.any(was_set))
    };
    let page = |page: u32| {
        let regions = new.page_regions(page);
        let mut bits = Bits::none(page_len(new, page));
        let first = regions.start;
        regions.filter(|region| is_set(*region)).for_each(|region| {
            bits.insert(region - first);
        });
        bits
    };
    (0..new.pages()).map(page).collect()
}
