//! Multipart uploads: a directory each, with a file that names its target and one file for every part.
//!
//! All state is on disk, so an upload goes on after a restart. A part that is sent again replaces the earlier one;
//! completion wants the parts in order, each with the ETag it was answered with, and all but the last of 5 MiB or
//! more, as the original does.

use super::incoming::Incoming;
use s3s::dto::{CompletedPart, ETag};
use s3s::{S3Error, S3ErrorCode, S3Result};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Smallest part but the last, in bytes.
const LEAST_PART: u64 = 5 * 1024 * 1024;

/// Largest part number.
const MOST_PARTS: i32 = 10_000;

/// Starts an upload below `uploads`; returns its id.
pub(super) fn create(uploads: &Path, bucket: &str, key: &str) -> io::Result<String> {
    let id = Uuid::new_v4().to_string();
    let directory = uploads.join(&id);
    fs::create_dir(&directory)?;
    fs::write(directory.join("target"), target(bucket, key))?;
    Ok(id)
}

/// The directory of an upload that exists and is for this very object.
pub(super) fn find(uploads: &Path, bucket: &str, key: &str, id: &str) -> S3Result<PathBuf> {
    let unknown = || S3Error::new(S3ErrorCode::NoSuchUpload);
    // The id becomes a path: nothing but what `create` makes may get that far.
    let id = Uuid::try_parse(id).map_err(|_| unknown())?;
    let directory = uploads.join(id.to_string());
    match fs::read_to_string(directory.join("target")) {
        Ok(found) if found == target(bucket, key) => Ok(directory),
        Ok(_) => Err(unknown()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
        Err(error) => Err(S3Error::internal_error(error)),
    }
}

/// Refuses a part number that no upload can have.
pub(super) fn check_number(number: i32) -> S3Result<()> {
    if (1..=MOST_PARTS).contains(&number) {
        return Ok(());
    }
    Err(S3Error::with_message(S3ErrorCode::InvalidArgument, "part numbers run from 1 to 10000"))
}

/// Adds a part under a version of its own and removes the older ones of its number.
pub(super) fn add_part(directory: &Path, number: i32, version: u64, incoming: Incoming) -> S3Result<ETag> {
    let part = directory.join(part_name(number, version));
    incoming.take_to(&part).map_err(|error| match error.kind() {
        // Aborted or completed while the part was on its way.
        io::ErrorKind::NotFound => S3Error::new(S3ErrorCode::NoSuchUpload),
        _ => S3Error::internal_error(error),
    })?;
    remove_older(directory, number, version).map_err(S3Error::internal_error)?;
    Ok(etag(version))
}

/// Copies the named parts, in order, into one incoming file.
pub(super) fn assemble(directory: &Path, parts: &[CompletedPart], incoming: &Path) -> S3Result<Incoming> {
    let files = open_parts(directory, parts)?;
    let mut whole = Incoming::create(incoming).map_err(S3Error::internal_error)?;
    for file in &files {
        whole.append_file(file).map_err(S3Error::internal_error)?;
    }
    Ok(whole)
}

/// Forgets an upload and its parts; one that is gone already is fine.
pub(super) fn remove(directory: &Path) -> S3Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(S3Error::internal_error(error)),
        _ => Ok(()),
    }
}

fn open_parts(directory: &Path, parts: &[CompletedPart]) -> S3Result<Vec<File>> {
    let invalid = || S3Error::new(S3ErrorCode::InvalidPart);
    if parts.is_empty() {
        return Err(S3Error::new(S3ErrorCode::MalformedXML));
    }
    let mut files = Vec::with_capacity(parts.len());
    let mut previous = 0;
    for (index, part) in parts.iter().enumerate() {
        let number = part.part_number.ok_or_else(invalid)?;
        if number <= previous {
            return Err(S3Error::new(S3ErrorCode::InvalidPartOrder));
        }
        previous = number;
        let tag = part.e_tag.as_ref().and_then(ETag::as_strong).ok_or_else(invalid)?;
        let version = u64::from_str_radix(tag, 16).map_err(|_| invalid())?;
        let file = File::open(directory.join(part_name(number, version))).map_err(|_| invalid())?;
        let len = file.metadata().map_err(S3Error::internal_error)?.len();
        if len < LEAST_PART && index + 1 < parts.len() {
            return Err(S3Error::new(S3ErrorCode::EntityTooSmall));
        }
        files.push(file);
    }
    Ok(files)
}

/// Only older ones go, so that of two copies of a part on their way at once one stays.
fn remove_older(directory: &Path, number: i32, version: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((part, found)) = name.to_str().and_then(|name| name.split_once('@')) else { continue };
        let older = u64::from_str_radix(found, 16).is_ok_and(|found| found < version);
        if older && part.parse() == Ok(number) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn target(bucket: &str, key: &str) -> String {
    // A bucket's name holds no line break, so the two cannot be confused.
    format!("{bucket}\n{key}")
}

fn part_name(number: i32, version: u64) -> String {
    format!("{number:05}@{version:016x}")
}

fn etag(version: u64) -> ETag {
    ETag::Strong(format!("{version:016x}"))
}
