//! The images of one call together: opened, told apart, and looked after from the first read to the point.
//!
//! Owns the decision whether what is read can be a point: images that somebody may write to, or that changed while they
//! were read, are refused, or make the point fuzzy where that is allowed.

use super::request::ReplicateRequest;
use super::source::SourceImage;
use crate::datastore::{Occupants, find_occupants};
use crate::error::{Error, ErrorKind, Result};

/// Images in the order of the request, and what the operator should know of them.
#[derive(Debug)]
pub(crate) struct Images {
    /// The images; empty while they are lent to the stages.
    pub(crate) list: Vec<SourceImage>,
    /// Whether the point will be fuzzy.
    pub(crate) fuzzy: bool,
    /// What the operator should know.
    pub(crate) notes: Vec<String>,
    allow_fuzzy: bool,
}

impl Images {
    /// Opens all images of `request`.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Denied` for what cannot be an image; `Refused` where one is given twice, or may be
    /// written to and that is not allowed.
    pub(crate) fn open(request: &ReplicateRequest) -> Result<Images> {
        let disks = || request.vms.iter().flat_map(|vm| &vm.disks);
        let list = disks().map(|disk| SourceImage::open(&disk.path)).collect::<Result<Vec<_>>>()?;
        for (disk, image) in disks().zip(&list) {
            if disk.size.is_some_and(|size| size != image.len()) {
                let (path, len) = (image.path().display(), image.len());
                let why = format!("disk image {path}: has {len} bytes, must have {}", disk.size.unwrap_or_default());
                return Err(Error::new(ErrorKind::Invalid, why));
            }
        }
        for (i, image) in list.iter().enumerate() {
            if list[..i].iter().any(|other| other.key() == image.key()) {
                let why = format!("disk image {} is given for two disks", image.path().display());
                return Err(Error::new(ErrorKind::Refused, why));
            }
        }
        let mut images = Images { list: Vec::new(), fuzzy: false, notes: Vec::new(), allow_fuzzy: request.allow_fuzzy };
        let found = occupants(&list)?;
        images.doubt(writers(&list, &found))?;
        images.list = list;
        if found.unseen > 0 {
            images.notes.push(format!(
                "{} processes of other users could not be looked into: whether they have an image open for writing \
                 is not known. Run as root to look into all",
                found.unseen
            ));
        }
        Ok(images)
    }

    /// To be called when all of `list`, the lent images, was read, before that becomes a point.
    ///
    /// # Errors
    /// `Refused` where an image changed since it was opened, or may be written to, and that is not allowed.
    pub(crate) fn check_still(&mut self, list: &[SourceImage]) -> Result<()> {
        let mut doubts = Vec::new();
        for image in list {
            if let Some(how) = image.changed_since_open()? {
                doubts.push(format!("disk image {}: {how} while it was read", image.path().display()));
            }
        }
        doubts.extend(writers(list, &occupants(list)?));
        self.doubt(doubts)
    }

    fn doubt(&mut self, doubts: Vec<String>) -> Result<()> {
        if doubts.is_empty() {
            return Ok(());
        }
        if !self.allow_fuzzy {
            let advice =
                "Stop who writes and run it again, or allow a fuzzy point, whose blocks may be of different moments";
            return Err(Error::new(ErrorKind::Refused, format!("{}. {advice}", doubts.join(". "))));
        }
        self.fuzzy = true;
        for doubt in doubts {
            if !self.notes.contains(&doubt) {
                self.notes.push(doubt);
            }
        }
        Ok(())
    }
}

/// Who may write to each image: what was found when it was opened, and what is found now.
fn occupants(list: &[SourceImage]) -> Result<Occupants> {
    let suspects: Vec<_> = list.iter().map(SourceImage::suspect).collect();
    let mut found = find_occupants(&suspects)?;
    for (image, writers) in list.iter().zip(&mut found.writers) {
        writers.splice(0..0, image.claims().iter().cloned());
    }
    Ok(found)
}

/// One text for each image that may be written to.
fn writers(list: &[SourceImage], found: &Occupants) -> Vec<String> {
    let doubts = list.iter().zip(&found.writers).filter(|(_, writers)| !writers.is_empty());
    doubts.map(|(image, who)| format!("disk image {}: {}", image.path().display(), who.join("; "))).collect()
}
