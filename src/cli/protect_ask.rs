//! What is asked of a running `freshet protect`, and how its answers look.

use std::path::Path;

use clap::Args;
use serde_json::json;

use super::report::Report;
use super::units::{age, bytes};
use crate::capture::VmSource;
use crate::error::{Error, ErrorKind, Result};
use crate::protect::{ControlClient, ControlReply, ControlRequest, DiskSpec, ProtectStatus, control_path};

/// The wishes, one at a time.
#[derive(Debug, Args)]
#[group(id = "ask", multiple = false)]
pub(super) struct Asks {
    /// Show how the running protection of the domain stands
    #[arg(long)]
    status: bool,
    /// Have the VM and disks that are named join the running protection; initial sync begins at once
    #[arg(long, requires = "disk")]
    add: bool,
    /// Have a disk leave the running protection; its VM too, with its last one
    #[arg(long, value_name = "VM/DISK")]
    remove: Option<String>,
    /// Cut a point now and wait until it is part of the domain, this many milliseconds at most
    #[arg(long, value_name = "MS", num_args = 0..=1, default_missing_value = "60000")]
    point: Option<u64>,
    /// Hand the domain over: shut the guests down first. Everything is shipped, the last point is written, then the domain is
    /// released and the protection ends. Waits this many milliseconds at most
    #[arg(long, value_name = "MS", num_args = 0..=1, default_missing_value = "300000")]
    hand_over: Option<u64>,
    /// Turn down the site that asks for the domain
    #[arg(long)]
    turn_down: bool,
    /// End the running protection, as SIGTERM does
    #[arg(long)]
    stop: bool,
}

impl Asks {
    /// What is asked, if anything.
    ///
    /// # Errors
    /// `Invalid` for what cannot be asked.
    pub(super) fn request(&self, vms: &[VmSource], leave_uncovered: bool) -> Result<Option<ControlRequest>> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, why);
        if self.status {
            return Ok(Some(ControlRequest::Status));
        }
        if self.stop {
            return Ok(Some(ControlRequest::Stop));
        }
        if let Some(within_ms) = self.hand_over {
            return Ok(Some(ControlRequest::HandOver { within_ms, leave_uncovered }));
        }
        if self.turn_down {
            return Ok(Some(ControlRequest::TurnDown));
        }
        if let Some(within_ms) = self.point {
            return Ok(Some(ControlRequest::FlushPoint { within_ms }));
        }
        if let Some(which) = &self.remove {
            let (vm, disk) =
                which.split_once('/').ok_or_else(|| invalid(format!("--remove {which}: expected VM/DISK")))?;
            return Ok(Some(ControlRequest::RemoveDisk { vm: vm.to_owned(), disk: disk.to_owned() }));
        }
        if !self.add {
            return Ok(None);
        }
        let [vm] = vms else { return Err(invalid("--add: name one VM, and its disks".to_owned())) };
        let disks = vm.disks.iter().map(|disk| {
            // The other process stands in another directory.
            let path = std::path::absolute(&disk.path);
            let path = path.map_err(|e| Error::io(format!("disk image {}", disk.path.display()), e))?;
            Ok(DiskSpec { name: disk.name.to_string(), path, size: disk.size })
        });
        let disks = disks.collect::<Result<Vec<_>>>()?;
        Ok(Some(ControlRequest::AddVm { vm: vm.name.to_string(), disks }))
    }
}

/// Asks the protection whose state is in `dir`.
pub(super) async fn ask(dir: &Path, request: &ControlRequest) -> Result<Report> {
    let mut client = ControlClient::connect(&control_path(dir)).await?;
    match client.call(request).await? {
        ControlReply::Status(status) => {
            let shown: ProtectStatus = serde_json::from_value(status.clone())
                .map_err(|e| Error::with_source(ErrorKind::Damaged, "the status is not understood", e))?;
            Report::new(&status, text(&shown))
        }
        ControlReply::Added => Report::new(&json!({ "added": true }), "served and captured from now on"),
        ControlReply::Removed => Report::new(&json!({ "removed": true }), "not captured any more"),
        ControlReply::Point(n) => Report::new(&json!({ "point": n }), format!("point {n} is part of the domain")),
        ControlReply::Released(done) => {
            let mut text = format!("released with point {} of {}", done.point, done.point_time);
            if !done.uncovered.is_empty() {
                text += &format!("; not covered by it: {}", done.uncovered.join(", "));
            }
            let json = serde_json::to_value(&done)
                .map_err(|e| Error::with_source(ErrorKind::Internal, "put the answer into JSON", e))?;
            Report::new(&json, text)
        }
        ControlReply::TurnedDown => Report::new(&json!({ "turned_down": true }), "nobody asks for the domain now"),
        ControlReply::Stopping => Report::new(&json!({ "stopping": true }), "it ends"),
    }
}

fn text(status: &ProtectStatus) -> String {
    let mut out = format!("{} at {}: {}, {}\n", status.domain, status.site, status.status, status.mode);
    if let Some(time) = &status.point_time {
        let rpo = status.rpo_ms.map_or("-".to_owned(), age);
        out += &format!("point {} of {time}; captured up to {}; RPO {rpo}\n", status.shipped, status.captured);
    }
    out += &format!(
        "waiting {} in {} segments, log {} of {}\n",
        bytes(status.waiting_bytes),
        status.waiting_segments,
        bytes(status.log_used),
        bytes(status.log_size)
    );
    if let Some(sync) = &status.sync {
        let (rate, eta) =
            (sync.rate.map_or("-".to_owned(), bytes), sync.eta_s.map_or("-".to_owned(), |s| age(s * 1000)));
        out += &format!("sync {} of {}, {rate}/s, ETA {eta}\n", bytes(sync.done), bytes(sync.total));
    }
    if status.held_writes > 0 {
        let (held, longest) = (status.held_writes, status.longest_held_us / 1000);
        out += &format!("{held} writes held, {longest} ms at most of {} ms\n", status.hold_bound_us / 1000);
    }
    for vm in &status.vms {
        let point = vm.point.map_or("no point covers it".to_owned(), |n| format!("point {n}"));
        let ago = vm.rpo_ms.map_or(String::new(), |rpo| format!(", {} ago", age(rpo)));
        out += &format!("{}  {}  {point}{ago}\n", vm.name, vm.status);
        for disk in &vm.disks {
            let (size, dirty, unsynced) = (bytes(disk.size), bytes(disk.dirty), bytes(disk.unsynced));
            out += &format!("  {}  {size}  dirty {dirty}  unsynced {unsynced}  {}\n", disk.name, disk.path);
        }
    }
    if let Some(diverged) = &status.diverged {
        if let (Some(first), Some(last)) = (&diverged.first, &diverged.last) {
            out += &format!("not part of the domain: {} segments, from {first} to {last}\n", diverged.segments);
        }
        for disk in &diverged.disks {
            let ranges = disk.ranges.len() as u64 + disk.more;
            out += &format!("{} may hold {} of its own, in {ranges} ranges\n", disk.disk, bytes(disk.bytes));
        }
    }
    if let (Some(site), Some(at)) = (&status.asked_by, &status.asked_at) {
        out += &format!("site {site} asks for the domain since {at}: --hand-over gives it up, --turn-down does not\n");
    }
    for problem in &status.problems {
        out += &format!("problem: {problem}\n");
    }
    out
}
