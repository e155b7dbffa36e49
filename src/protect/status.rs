//! The status of a protected domain, derived from what is: counts, bits and the newest accepted point. Never stored.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::coverage::Members;
use super::disk::ProtectedDisk;
use super::health::Health;
use super::pipeline::Pipeline;
use super::protection::export_name;
use super::recorder::Coverage;
use super::report::{DiskStatus, DivergedDiskStatus, DivergedStatus, ProtectStatus, Requests, SyncStatus, VmStatus};
use super::request::ProtectRequest;
use super::valve::CaptureMode;
use crate::format::Catalogue;
use crate::ids::VmId;
use crate::progress::MemoryUse;
use crate::store::StorageSite;

/// Most ranges of one disk that are told.
const MAX_RANGES: usize = 1000;

/// How the domain stands now. `seconds` is how long requests were counted.
pub(super) async fn of(
    request: &ProtectRequest,
    members: &Members,
    health: &Health,
    pipeline: Option<&Pipeline>,
    site: &StorageSite,
    seconds: u64,
) -> ProtectStatus {
    let mode = mode(pipeline, health);
    let (catalogue, disks) = (members.catalogue(), members.disks());
    // By the newest point that is part of the domain, and by the disks as they are now.
    let shipped = pipeline.map(|p| p.shipped.borrow().clone()).unwrap_or_default();
    let covered: Vec<VmId> = members.covered().into_iter().filter(|vm| shipped.covered.contains(vm)).collect();
    let (findings, instant) = (health.findings(), Instant::now());
    let vms = catalogue.vms.iter().map(|vm| {
        let covering = shipped.points.get(&vm.id);
        let status = vm_status(vm.id, covered.contains(&vm.id), &disks, pipeline).to_owned();
        // Nobody loses what nobody writes.
        let rpo_ms = covering.filter(|_| status != UNPROTECTED).map(|c| c.age.millis(instant));
        VmStatus {
            name: vm.name.to_string(),
            status,
            point: covering.map(|c| c.at.get()),
            point_time: covering.map(|c| c.time.to_string()),
            rpo_ms,
            disks: disks
                .iter()
                .filter(|d| d.index_disk().vm == vm.id)
                .map(|d| disk_status(d, &catalogue, rpo_ms))
                .collect(),
        }
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
    status.diverged = (mode == CaptureMode::Fenced).then(|| diverged(&disks, pipeline));
    status.status = domain_status(mode, &status.vms).to_owned();
    if let Some(pipeline) = pipeline {
        let waiting = pipeline.backlog.waiting();
        if let Some(asked) = &*pipeline.writer.asked().borrow() {
            (status.asked_by, status.asked_at) = (Some(asked.site.to_string()), Some(asked.at.to_string()));
        }
        status.generation = Some(pipeline.writer.generation().get());
        status.captured = pipeline.recorder.newest().get();
        status.shipped = shipped.at.segment.get();
        if shipped.point_time.millis() > 0 {
            status.point_time = Some(shipped.point_time.to_string());
        }
        let protected = status.vms.iter().filter(|vm| vm.status != UNPROTECTED);
        let ages: Option<Vec<u64>> = protected.map(|vm| vm.rpo_ms).collect();
        status.rpo_ms = ages.and_then(|ages| ages.into_iter().max());
        status.sync = sync_status(&disks, pipeline.pace.rate(instant));
        (status.waiting_segments, status.waiting_bytes) = (waiting.segments, waiting.bytes);
        status.waiting_memory = waiting.memory;
        (status.log_used, status.log_size) = waiting.log;
        status.memory = memory(&disks, pipeline, waiting.memory);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        status.hold_us = micros(pipeline.valve.hold());
        status.hold_bound_us = micros(pipeline.valve.bound());
        (status.held_writes, status.longest_held_us) = pipeline.valve.held();
        (status.written, status.raw) = (shipped.written, shipped.raw);
        status.sync_read = pipeline.sync_read.load(Relaxed);
        (status.stored, status.segments) = (shipped.stored, shipped.segments);
    }
    status
}

/// How much of the budget is used, part by part.
fn memory(disks: &[Arc<ProtectedDisk>], pipeline: &Pipeline, waiting: u64) -> Vec<MemoryUse> {
    let part = |name, (used, size)| MemoryUse::new(name, used, size);
    // All disks have their buffers of the same.
    let requests = disks.first().map(|disk| part("requests", disk.buffers().bytes()));
    let open = part("open-segments", pipeline.recorder.arena_bytes());
    let sealed = part("sealed-segments", (waiting, pipeline.backlog.memory_limit()));
    requests.into_iter().chain([open, sealed]).collect()
}

/// What the disks hold of their own, once another writer owns the domain. A bit is set from before a region is written
/// until that is accepted, and nothing is accepted any more.
fn diverged(disks: &[Arc<ProtectedDisk>], pipeline: Option<&Pipeline>) -> DivergedStatus {
    let waiting = pipeline.map(|pipeline| pipeline.backlog.waiting()).unwrap_or_default();
    let own = disks.iter().filter_map(|disk| {
        let (ranges, more) = disk.intent().set_ranges(MAX_RANGES);
        (!ranges.is_empty()).then(|| DivergedDiskStatus {
            disk: disk.label().to_owned(),
            path: disk.backing().image().path().display().to_string(),
            bytes: disk.intent().dirty_bytes(),
            ranges: ranges.into_iter().map(|range| (range.start, range.end - range.start)).collect(),
            more,
        })
    });
    DivergedStatus {
        segments: waiting.segments,
        first: waiting.times.map(|(first, _)| first.to_string()),
        last: waiting.times.map(|(_, last)| last.to_string()),
        disks: own.collect(),
    }
}

/// What is done with guests' writes.
pub(super) fn mode(pipeline: Option<&Pipeline>, health: &Health) -> CaptureMode {
    match pipeline {
        Some(pipeline) => pipeline.valve.mode(),
        None if health.is_fenced() => CaptureMode::Fenced,
        None if !health.is_sound() => CaptureMode::Failed,
        None => CaptureMode::Starting,
    }
}

/// How far sync is on the disks that the chain may lack something of.
fn sync_status(disks: &[Arc<ProtectedDisk>], rate: Option<u64>) -> Option<SyncStatus> {
    let parts = disks.iter().map(|disk| (disk.index_disk().size, disk.intent().report().unsynced_bytes));
    let (total, left) = parts.filter(|(_, left)| *left > 0).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    let eta_s = rate.filter(|rate| *rate > 0).map(|rate: u64| left.div_ceil(rate));
    (left > 0).then_some(SyncStatus { total, done: total.saturating_sub(left), rate, eta_s })
}

/// Requests to the storage site in the `seconds` since the start.
pub(super) fn requests(site: &StorageSite, seconds: u64) -> Requests {
    let counters = site.counters();
    Requests { puts: counters.puts, gets: counters.gets + counters.heads, lists: counters.lists, seconds }
}

/// A VM is recoverable where the newest point covers it and nothing was missed since; else it is synced for the first time, or
/// again. One that the domain has, and of which nothing is served here, as after a failover that it took no part in, is not
/// protected.
fn vm_status(vm: VmId, covered: bool, disks: &[Arc<ProtectedDisk>], pipeline: Option<&Pipeline>) -> &'static str {
    let own = || disks.iter().filter(|disk| disk.index_disk().vm == vm);
    if own().any(|disk| disk.backing().failure().is_some()) {
        return "Error";
    }
    if own().next().is_none() {
        return UNPROTECTED;
    }
    match pipeline {
        None => "Initializing",
        Some(_) if covered => "Recoverable",
        Some(_) if own().any(|disk| disk.was_synced()) => "Resync",
        Some(_) => "Initial Sync",
    }
}

/// The status of a VM of which nothing is served.
const UNPROTECTED: &str = "Unprotected";

/// Of the VMs that are protected here.
fn domain_status(mode: CaptureMode, vms: &[VmStatus]) -> &'static str {
    let vms: Vec<&VmStatus> = vms.iter().filter(|vm| vm.status != UNPROTECTED).collect();
    let recoverable = vms.iter().filter(|vm| vm.status == "Recoverable").count();
    match mode {
        CaptureMode::Fenced => "Fenced",
        CaptureMode::Failed => "Error",
        CaptureMode::Starting => "Initializing",
        _ if vms.is_empty() => UNPROTECTED,
        _ if recoverable == vms.len() => "Recoverable",
        _ if recoverable > 0 => "Partially Recoverable",
        _ if vms.iter().any(|vm| vm.status == "Error") => "Error",
        _ if vms.iter().any(|vm| vm.status == "Resync") => "Resync",
        _ => "Initial Sync",
    }
}

fn disk_status(disk: &ProtectedDisk, catalogue: &Catalogue, rpo_ms: Option<u64>) -> DiskStatus {
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
        // One that joined is in no point before it was whole.
        rpo_ms: rpo_ms.filter(|_| disk.was_synced()),
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
