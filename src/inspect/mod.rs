//! `freshet inspect`: what any of our objects and files holds, and whether it is whole, from the bytes alone.
//!
//! It owns the recognition by magic (or, of text, by its first word), the walk over each kind and the report; it decodes with [`crate::format`] and changes
//! nothing. Every checksum is verified. Memory is bounded by the limit of the kind that the magic announces, never by what
//! a hostile file says of itself: segments are read frame by frame, logs in pieces. What is damaged is part of the report
//! and no error; an error means that there was nothing to report on.

mod guest;
mod intent;
mod log;
mod objects;
mod report;
mod segment;
mod source;
#[cfg(test)]
mod tests;

pub use report::{InspectReport, Problem};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, LOG_BLOCK, magic};
use crate::store::StoreOptions;

use self::source::Source;

/// What to show, and how to reach a URL.
#[derive(Debug, Clone, Default)]
pub struct InspectOptions {
    /// List every entry: frames and zeros of a segment, extents of a page, pages of a manifest, records of a log. At most
    /// [`MAX_ENTRIES`] are listed; the report says how many there are.
    pub frames: bool,
    /// Credentials, endpoint and limits for a URL.
    pub store: StoreOptions,
}

/// Most entries that a report lists.
pub const MAX_ENTRIES: usize = 100_000;

/// Inspects a file, or the object at a URL (`file:///dir/key`, `s3://bucket/key`, `az://...`, `gs://...`).
///
/// # Errors
/// [`ErrorKind::NotFound`] where there is nothing; [`ErrorKind::Invalid`] for what is none of ours; what reading says.
pub async fn run(source: &str, options: InspectOptions) -> Result<InspectReport> {
    let from = Source::open(source, &options.store).await?;
    let head = from.read(0..from.len().min(LOG_BLOCK)).await?;
    let kind = match format::recognise(&head) {
        Some(kind) => Some(kind),
        // A log whose first slot is damaged still has a second one.
        None => {
            let second = from.len().min(LOG_BLOCK)..from.len().min(2 * LOG_BLOCK);
            format::recognise(&from.read(second).await?).filter(|kind| *kind == magic::LOG_SUPERBLOCK)
        }
    };
    if kind.is_none() && guest::is_one(&head) {
        let mut report = InspectReport::new(source, guest::KIND, from.len(), options.frames);
        guest::guest(&from, &mut report).await?;
        return Ok(report);
    }
    let Some(kind) = kind else {
        let why = "it begins with no magic of ours: not an object or file of Freshet, or its first bytes are damaged";
        return Err(Error::new(ErrorKind::Invalid, format!("inspect {source}: {why}")));
    };
    let mut report = InspectReport::new(source, kind.what, from.len(), options.frames);
    match kind {
        magic::SEGMENT => segment::segment(&from, &mut report).await?,
        magic::FRAME => segment::frame(&from, &mut report).await?,
        magic::LOG_SUPERBLOCK => log::log(&from, &mut report).await?,
        _ => objects::object(kind, &from, &mut report).await?,
    }
    Ok(report)
}
