//! The status of a protected domain, derived from what is: counts, bits and the newest accepted point. Never stored.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::coverage::Members;
use super::disk::ProtectedDisk;
use super::health::Health;
use super::pipeline::Pipeline;
use super::protection::export_name;
use super::recorder::Coverage;
use super::report::{DiskStatus, ProtectStatus, Requests, VmStatus};
use super::request::ProtectRequest;
use super::valve::CaptureMode;
use crate::format::Catalogue;
use crate::ids::VmId;
use crate::store::StorageSite;

/// How the domain stands now. `seconds` is how long requests were counted.
pub(super) async fn of(
    request: &ProtectRequest,
    members: &Members,
    health: &Health,
    pipeline: Option<&Pipeline>,
    site: &StorageSite,
    seconds: u64,
) -> ProtectStatus {
    let mode = match pipeline {
        Some(pipeline) => pipeline.valve.mode(),
        None if health.is_fenced() => CaptureMode::Fenced,
        None => CaptureMode::Starting,
    };
    let (catalogue, disks) = (members.catalogue(), members.disks());
    // By the newest point that is part of the domain, and by the disks as they are now.
    let shipped = pipeline.map(|p| Arc::clone(&p.shipped.borrow().covered)).unwrap_or_default();
    let covered: Vec<VmId> = members.covered().into_iter().filter(|vm| shipped.contains(vm)).collect();
    let findings = health.findings();
    let vms = catalogue.vms.iter().map(|vm| VmStatus {
        name: vm.name.to_string(),
        status: vm_status(vm.id, covered.contains(&vm.id), &disks, pipeline).to_owned(),
        disks: disks.iter().filter(|d| d.index_disk().vm == vm.id).map(|d| disk_status(d, &catalogue)).collect(),
    });
    let mut status = ProtectStatus {
        domain: request.domain.to_string(),
        site: request.site.to_string(),
        mode: serde_json::to_value(mode).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default(),
        vms: vms.collect(),
        requests: requests(site, seconds),
        problems: findings.fenced.into_iter().chain(findings.fault).collect(),
        ..ProtectStatus::default()
    };
    if let Some((since, why)) = findings.store {
        status.problems.push(format!("the storage site has not done what it is asked for {since} s: {why}"));
    }
    for disk in &disks {
        status.problems.extend(disk.sync_error().map(|why| format!("{}: {why}", disk.label())));
        status.problems.extend(disk.backing().failure().map(str::to_owned));
    }
    status.status = domain_status(mode, &status.vms).to_owned();
    if let Some(pipeline) = pipeline {
        let (shipped, waiting) = (pipeline.shipped.borrow().clone(), pipeline.backlog.waiting());
        let now = request.clock.now().millis();
        status.generation = Some(pipeline.writer.generation().get());
        status.captured = pipeline.recorder.newest().get();
        status.shipped = shipped.at.segment.get();
        if shipped.point_time.millis() > 0 {
            status.point_time = Some(shipped.point_time.to_string());
            status.rpo_ms = Some(now.saturating_sub(shipped.point_time.millis()));
        }
        (status.waiting_segments, status.waiting_bytes) = (waiting.segments, waiting.bytes);
        (status.log_used, status.log_size) = waiting.log;
        status.hold_us = u64::try_from(pipeline.valve.hold().as_micros()).unwrap_or(u64::MAX);
        (status.written, status.raw) = (shipped.written, shipped.raw);
        status.sync_read = pipeline.sync_read.load(Relaxed);
        (status.stored, status.segments) = (shipped.stored, shipped.segments);
    }
    status
}

/// Requests to the storage site in the `seconds` since the start.
pub(super) fn requests(site: &StorageSite, seconds: u64) -> Requests {
    let counters = site.counters();
    Requests { puts: counters.puts, gets: counters.gets + counters.heads, lists: counters.lists, seconds }
}

/// A VM is recoverable where the newest point covers it and nothing was missed since; else it is synced for the first time, or again.
fn vm_status(vm: VmId, covered: bool, disks: &[Arc<ProtectedDisk>], pipeline: Option<&Pipeline>) -> &'static str {
    let own = || disks.iter().filter(|disk| disk.index_disk().vm == vm);
    if own().any(|disk| disk.backing().failure().is_some()) {
        return "Error";
    }
    match pipeline {
        None => "Initializing",
        Some(_) if covered => "Recoverable",
        Some(_) if own().any(|disk| disk.was_synced()) => "Resync",
        Some(_) => "Initial Sync",
    }
}

fn domain_status(mode: CaptureMode, vms: &[VmStatus]) -> &'static str {
    let recoverable = vms.iter().filter(|vm| vm.status == "Recoverable").count();
    match mode {
        CaptureMode::Fenced => "Fenced",
        CaptureMode::Failed => "Error",
        CaptureMode::Starting => "Initializing",
        _ if recoverable == vms.len() => "Recoverable",
        _ if recoverable > 0 => "Partially Recoverable",
        _ if vms.iter().any(|vm| vm.status == "Error") => "Error",
        _ if vms.iter().any(|vm| vm.status == "Resync") => "Resync",
        _ => "Initial Sync",
    }
}

fn disk_status(disk: &ProtectedDisk, catalogue: &Catalogue) -> DiskStatus {
    let index = disk.index_disk();
    let report = disk.intent().report();
    let info = catalogue.disk(index.id);
    let name = info.map(|d| d.name.to_string()).unwrap_or_default();
    let vm = info.and_then(|d| catalogue.vms.iter().find(|vm| vm.id == d.vm));
    let export = match (vm, info) {
        (Some(vm), Some(disk)) => export_name(&vm.name, &disk.name),
        _ => disk.label().to_owned(),
    };
    let traffic = &disk.traffic;
    DiskStatus {
        name,
        path: disk.backing().image().path().display().to_string(),
        export,
        size: index.size,
        dirty: report.dirty_bytes,
        unsynced: report.unsynced_bytes,
        bitmap_syncs: report.syncs,
        writes: traffic.writes.load(Relaxed),
        written: traffic.written.load(Relaxed),
        reads: traffic.reads.load(Relaxed),
        read: traffic.read.load(Relaxed),
        failed: traffic.failed.load(Relaxed),
    }
}
