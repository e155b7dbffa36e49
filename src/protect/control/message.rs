//! What is said over the control socket: requests, replies, and how they stand in a line. No I/O.
//!
//! `docs/control.md` describes the same for other programs; a test holds the two together. What is not known is refused and
//! never skipped: a request that an older program understands in part could do something else than what was asked.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::hand_over::{HandOverOptions, HandedOver};
use crate::capture::{DiskSource, VmSource};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

/// Version of the messages.
pub const CONTROL_VERSION: u64 = 1;
/// Most disks of one request.
const MAX_DISKS: usize = 1024;
/// Longest time that a request may wait for a point.
const MOST_WITHIN: Duration = Duration::from_secs(3600);

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControlRequest {
    /// How the protection stands.
    Status,
    /// A disk of a VM joins; the VM as well, where it is new.
    AddDisk {
        /// The VM.
        vm: String,
        /// Name of the disk in the VM.
        disk: String,
        /// Its image.
        path: PathBuf,
        /// Bytes that the image must have; its own unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// A VM joins with all its disks, so that no point covers a part of it.
    AddVm {
        /// The VM.
        vm: String,
        /// Its disks, one at least.
        disks: Vec<DiskSpec>,
    },
    /// A disk leaves; the VM as well, with its last one.
    RemoveDisk {
        /// The VM.
        vm: String,
        /// Name of the disk in the VM.
        disk: String,
    },
    /// A point is cut now; the reply comes when it is part of the domain.
    FlushPoint {
        /// Milliseconds to wait for that, an hour at most.
        within_ms: u64,
    },
    /// The domain is given up, without loss; the reply comes when it is released, and then the protection ends.
    HandOver {
        /// Milliseconds to wait for sync and the storage site, an hour at most.
        within_ms: u64,
        /// Give up VMs, too, that the last point does not cover.
        #[serde(default, skip_serializing_if = "is_false")]
        leave_uncovered: bool,
    },
    /// Who asks for the domain is turned down.
    TurnDown,
    /// The protection ends as by SIGTERM; the reply comes before it does.
    Stop,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A disk that joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Name of the disk in its VM.
    pub name: String,
    /// Its image.
    pub path: PathBuf,
    /// Bytes that the image must have; its own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// What is answered where a request was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlReply {
    /// How the protection stands.
    Status(Value),
    /// The disks are served and captured from now on.
    Added,
    /// The disk is not captured any more.
    Removed,
    /// The point is part of the domain; the number of its segment.
    Point(u64),
    /// The domain is released, with this point as its last.
    Released(HandedOver),
    /// Nobody asks for the domain any more.
    TurnedDown,
    /// It has begun to end.
    Stopping,
}

/// What the server does for a request, with every value checked.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Status,
    Add(VmSource),
    RemoveDisk(Name, Name),
    FlushPoint(Duration),
    HandOver(HandOverOptions),
    TurnDown,
    Stop,
}

impl ControlRequest {
    /// Its line, with the newline.
    pub(super) fn to_line(&self) -> Result<Vec<u8>> {
        let mut value = serde_json::to_value(self).map_err(internal)?;
        if let Value::Object(map) = &mut value {
            map.insert("version".into(), CONTROL_VERSION.into());
        }
        Ok(with_newline(&value))
    }

    /// From a line without its newline.
    ///
    /// # Errors
    /// `Invalid` for what is no request; `Unsupported` for another version.
    pub(super) fn from_line(line: &[u8]) -> Result<ControlRequest> {
        let map = versioned(line)?;
        let asked = Value::Object(map);
        let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("request: {why}"));
        let request = ControlRequest::deserialize(&asked).map_err(|e| invalid(e.to_string()))?;
        // Requests without fields would take any: the derived decoder does not look.
        match serde_json::to_value(&request).map_err(internal)? == asked {
            true => Ok(request),
            false => Err(invalid(format!("{asked} says more than is known of such a request"))),
        }
    }

    /// What is to be done.
    ///
    /// # Errors
    /// `Invalid` where a value is out of bounds.
    pub(super) fn check(self) -> Result<Command> {
        let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
        Ok(match self {
            ControlRequest::Status => Command::Status,
            ControlRequest::AddDisk { vm, disk, path, size } => {
                Command::Add(source(&vm, vec![DiskSpec { name: disk, path, size }])?)
            }
            ControlRequest::AddVm { vm, disks } => Command::Add(source(&vm, disks)?),
            ControlRequest::RemoveDisk { vm, disk } => Command::RemoveDisk(Name::new(&vm)?, Name::new(&disk)?),
            ControlRequest::FlushPoint { within_ms } | ControlRequest::HandOver { within_ms, .. }
                if Duration::from_millis(within_ms) > MOST_WITHIN =>
            {
                return invalid(format!("within_ms {within_ms} is above {}", MOST_WITHIN.as_millis()));
            }
            ControlRequest::FlushPoint { within_ms } => Command::FlushPoint(Duration::from_millis(within_ms)),
            ControlRequest::HandOver { within_ms, leave_uncovered } => {
                Command::HandOver(HandOverOptions { within: Duration::from_millis(within_ms), leave_uncovered })
            }
            ControlRequest::TurnDown => Command::TurnDown,
            ControlRequest::Stop => Command::Stop,
        })
    }

    /// How long its answer may take beside the exchange itself; what adds and removes disks waits for a sync at most.
    pub(super) fn patience(&self) -> Duration {
        match self {
            ControlRequest::FlushPoint { within_ms } => Duration::from_millis(*within_ms).min(MOST_WITHIN),
            // Beside what is waited for: clients are shut out, the release is written, what runs is ended.
            ControlRequest::HandOver { within_ms, .. } => {
                Duration::from_millis(*within_ms).min(MOST_WITHIN) + Duration::from_secs(120)
            }
            ControlRequest::Status | ControlRequest::Stop => Duration::ZERO,
            _ => Duration::from_secs(120),
        }
    }
}

fn source(vm: &str, specs: Vec<DiskSpec>) -> Result<VmSource> {
    let name = Name::new(vm)?;
    if specs.is_empty() || specs.len() > MAX_DISKS {
        let why = format!("VM {name}: {} disks, must be 1 to {MAX_DISKS}", specs.len());
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let mut disks: Vec<DiskSource> = Vec::with_capacity(specs.len());
    for spec in specs {
        let disk = Name::new(&spec.name)?;
        // The server's working directory is nobody's business.
        if !spec.path.is_absolute() {
            let why = format!("disk {disk} of VM {name}: its path {} is not absolute", spec.path.display());
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        if disks.iter().any(|d| d.name == disk) {
            return Err(Error::new(ErrorKind::Invalid, format!("disk {disk} of VM {name} is named twice")));
        }
        disks.push(DiskSource { name: disk, path: spec.path, size: spec.size });
    }
    Ok(VmSource { name, disks, definition: None })
}

/// The line of an answer, with the newline.
pub(super) fn answer_line(answer: &Result<ControlReply>) -> Vec<u8> {
    let body = match answer {
        Ok(reply) => serde_json::to_value(reply).map(|reply| json!({ "version": CONTROL_VERSION, "ok": reply })),
        Err(e) => Ok(json!({
            "version": CONTROL_VERSION,
            "error": { "kind": e.kind().word(), "message": e.to_string() },
        })),
    };
    match body {
        Ok(value) => with_newline(&value),
        Err(e) => answer_line(&Err(internal(e))),
    }
}

/// What a line, without its newline, answers.
///
/// # Errors
/// What it says; `Unsupported` for another version; `Damaged` for what is no answer.
pub(super) fn read_answer(line: &[u8]) -> Result<ControlReply> {
    let mut map = versioned(line)?;
    if let Some(ok) = map.remove("ok") {
        return serde_json::from_value(ok).map_err(|e| Error::new(ErrorKind::Damaged, format!("answer: {e}")));
    }
    let error = map.remove("error");
    let text = |name: &str| error.as_ref().and_then(|e| e.get(name)).and_then(Value::as_str);
    match (text("kind"), text("message")) {
        (Some(kind), Some(message)) => {
            Err(Error::new(ErrorKind::from_word(kind).unwrap_or(ErrorKind::Internal), message.to_owned()))
        }
        _ => Err(Error::new(ErrorKind::Damaged, "answer: neither ok nor error")),
    }
}

/// The object of a line, without the version that it has been checked to have.
fn versioned(line: &[u8]) -> Result<Map<String, Value>> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, why);
    let value: Value = serde_json::from_slice(line).map_err(|e| invalid(format!("not a JSON document: {e}")))?;
    let Value::Object(mut map) = value else { return Err(invalid("not a JSON object".into())) };
    match map.remove("version").as_ref().map(Value::as_u64) {
        Some(Some(CONTROL_VERSION)) => Ok(map),
        Some(Some(other)) => {
            let why = format!("version {other} of the control messages: this program speaks {CONTROL_VERSION}");
            Err(Error::new(ErrorKind::Unsupported, why))
        }
        _ => Err(invalid("no version, which must be a number".into())),
    }
}

fn with_newline(value: &Value) -> Vec<u8> {
    // Text is escaped, so that the only newline is the one at the end.
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn internal(e: serde_json::Error) -> Error {
    Error::with_source(ErrorKind::Internal, "put a control message into JSON", e)
}
