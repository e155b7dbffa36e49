//! Images that are made for VMs which the hypervisor runs already: empty ones, and conversions of others.
//!
//! Owns their making and the removing of those that came to nothing. Invariants: what was there before is not touched; an
//! image has its name only once it is whole and durable.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::RunCommand;

/// Longest time that an image may take to be converted.
const CONVERSION: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of a converter's errors that are shown.
const MAX_ERRORS: usize = 4096;

/// A file as it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    len: u64,
    changed: (i64, i64),
}

/// Looks at a file.
///
/// # Errors
/// What the file system says.
pub(super) fn seen(path: &Path) -> Result<Seen> {
    let there = std::fs::metadata(path).io_context(|| format!("disk image {}", path.display()))?;
    Ok(Seen { len: there.len(), changed: (there.mtime(), there.mtime_nsec()) })
}

/// An image that is read as another one is written.
pub(super) struct Conversion {
    pub(super) from: PathBuf,
    pub(super) format: String,
    pub(super) to: PathBuf,
}

/// Files of a move, and the images that they were made from as those were.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) files: Vec<PathBuf>,
    pub(super) seen: Vec<Seen>,
}

/// Removes the images of a move that came to nothing. One that stays is told.
pub(super) async fn remove_files(made: &Made) {
    for file in &made.files {
        if let Err(error) = tokio::fs::remove_file(file).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} is left over: {error}", file.display());
        }
    }
}

fn make_room(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .io_context(|| format!("make {}", dir.display()))?;
    match path.exists() {
        false => Ok(()),
        true => {
            let why = format!("{} is there already, from a protection before", path.display());
            Err(Error::new(ErrorKind::Refused, format!("{why}; nothing of it is used: remove it")))
        }
    }
}

/// A new image of `size` bytes that holds nothing.
pub(super) fn make_empty(path: &Path, size: u64) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    make_room(path)?;
    let what = || format!("make {}", path.display());
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).io_context(what)?;
    file.set_len(size).io_context(what)?;
    file.sync_all().io_context(what)
}

/// Reads an image in another format into a raw one, which has its name only once it is whole and durable.
pub(super) async fn convert(conversion: &Conversion) -> Result<()> {
    let Conversion { from, format, to } = conversion;
    make_room(to)?;
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{} is not UTF-8", path.display())))
    };
    let part = PathBuf::from(format!("{}.part", text(to)?));
    let command = ["qemu-img", "convert", "-f", format, "-O", "raw", "--"].map(str::to_owned);
    let run = RunCommand {
        command: command.into_iter().chain([text(from)?, text(&part)?]).collect(),
        environment: [("LC_ALL".to_owned(), "C".to_owned())].into(),
        input: Vec::new(),
        limit: CONVERSION,
        max_output: MAX_ERRORS,
        max_errors: MAX_ERRORS,
    };
    let end = run.run().await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::Unsupported, "there is no qemu-img here: install QEMU's tools"),
        _ => e,
    })?;
    if end.code != Some(0) {
        let _ = tokio::fs::remove_file(&part).await;
        let said = String::from_utf8_lossy(&end.errors).trim().to_owned();
        return Err(Error::new(ErrorKind::Io, format!("convert {}: {said}", from.display())));
    }
    let to = to.clone();
    let finish = move || {
        std::fs::File::open(&part)
            .and_then(|file| file.sync_all())
            .io_context(|| format!("sync {}", part.display()))?;
        std::fs::rename(&part, &to).io_context(|| format!("name {}", to.display()))
    };
    let done = tokio::task::spawn_blocking(finish).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "naming an image panicked", e))?
}
