//! A body on its way into a file: written beside the objects, visible to nobody until the catalog takes it.
//!
//! Frames are gathered to about [`GATHER`] bytes and written with one vectored call on a blocking thread. Dropped
//! before it was taken, the file is removed; what a killed server leaves is swept at the next start.

use bytes::Bytes;
use futures::StreamExt;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};

/// Bytes gathered before a write.
const GATHER: usize = 1024 * 1024;

/// A temporary file with its length.
pub(super) struct Incoming {
    path: PathBuf,
    file: Option<File>,
    len: u64,
    taken: bool,
}

impl Incoming {
    /// Creates an empty file of a fresh name in `directory`.
    pub(super) fn create(directory: &Path) -> io::Result<Incoming> {
        let path = directory.join(uuid::Uuid::new_v4().to_string());
        let file = File::create_new(&path)?;
        Ok(Incoming { path, file: Some(file), len: 0, taken: false })
    }

    /// Streams a body to its end. `declared` is the length its header gave; another length is `IncompleteBody`.
    pub(super) async fn receive(
        directory: &Path,
        body: Option<StreamingBlob>,
        declared: Option<i64>,
    ) -> S3Result<Incoming> {
        let mut incoming = Incoming::create(directory).map_err(S3Error::internal_error)?;
        let mut gathered = Vec::new();
        let mut bytes = 0;
        if let Some(mut body) = body {
            while let Some(frame) = body.next().await {
                let frame =
                    frame.map_err(|error| S3Error::with_message(S3ErrorCode::IncompleteBody, error.to_string()))?;
                bytes += frame.len();
                gathered.push(frame);
                if bytes >= GATHER {
                    bytes = 0;
                    incoming.write(std::mem::take(&mut gathered)).await?;
                }
            }
        }
        incoming.write(gathered).await?;
        if declared.is_some_and(|declared| u64::try_from(declared) != Ok(incoming.len)) {
            return Err(S3Error::new(S3ErrorCode::IncompleteBody));
        }
        Ok(incoming)
    }

    /// Length so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Moves the file to `target`, from where it is no longer this value's to remove.
    pub(super) fn take_to(mut self, target: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.taken = true;
        Ok(())
    }

    /// Appends a whole file; the kernel copies, or shares blocks where the file system can.
    pub(super) fn append_file(&mut self, source: &File) -> io::Result<()> {
        let file = self.file.as_mut().expect("given back after every write");
        self.len += io::copy(&mut &*source, file)?;
        Ok(())
    }

    async fn write(&mut self, frames: Vec<Bytes>) -> S3Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        self.len += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let mut file = self.file.take().expect("given back after every write");
        let write = move || {
            write_all(&mut file, &frames)?;
            Ok::<_, io::Error>(file)
        };
        let file = tokio::task::spawn_blocking(write).await.map_err(S3Error::internal_error)?;
        self.file = Some(file.map_err(S3Error::internal_error)?);
        Ok(())
    }
}

fn write_all(file: &mut File, frames: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<_> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
    let mut left = slices.as_mut_slice();
    // Empty slices at the front would make a successful write of nothing look like a full disk.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.taken {
            // Nobody refers to it; a file that cannot be removed now is swept at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
