//! One replication from request to report.
//!
//! Owns the order of the steps: images, ownership, map, roster; transfer; point; checkpoint. What each step does is told
//! in its own file.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::sync::RwLock;

use super::chain::{Chain, ChainEnd};
use super::checkpoint;
use super::halt::Halt;
use super::images::Images;
use super::report::{ReplicateReport, ReplicatedDisk, StageSeconds};
use super::request::ReplicateRequest;
use super::roster::{Roster, roster};
use super::transfer;
use super::worker::Tally;
use crate::cancel::Cancel;
use crate::clock::next_point_time;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Point, PointFlags};
use crate::ids::{DomainId, SegmentRef, Time};
use crate::map::PointMap;
use crate::progress::Progress;
use crate::store::{BaseChoice, DomainWriter, StartOptions, StorageSite};

/// Ships what changed of the request's disks since the domain's newest segment, as a new point.
///
/// Takes ownership of the domain for the time of the call, or makes the domain. `progress` counts bytes of images: in
/// all those that are allocated; done those that equal the map or whose segments are accepted.
///
/// # Errors
/// `Invalid` for the request, `Refused` for an image that is open for writing elsewhere or shrank, and where another
/// site or writer owns the domain; `Fenced` when another writer took over meanwhile; `Cancelled`. After any of them the
/// domain's points are as they were; run it again and it ships only what is still missing.
pub async fn replicate(
    site: &StorageSite,
    request: ReplicateRequest,
    progress: Arc<Progress>,
    cancel: Cancel,
) -> Result<ReplicateReport> {
    request.validate()?;
    let started = Instant::now();
    progress.stage("opening images");
    let request = Arc::new(request);
    let images = blocking({
        let request = Arc::clone(&request);
        move || Images::open(&request)
    });
    let images = images.await?;
    cancel.check()?;
    progress.stage("taking ownership");
    let take_ownership = request.take_ownership.then_some(BaseChoice::NewestPoint);
    let options = StartOptions { take_ownership, ..StartOptions::default() };
    let writer = DomainWriter::start(site, &request.domain, &request.site, options).await?;
    let outcome = owned(&writer, &request, images, progress, Halt::new(cancel), started).await;
    // The next writer need not wait for this one to be thought dead; what was reported is durable without it.
    let finished = writer.finish().await;
    let mut report = outcome?;
    if let Err(error) = finished {
        report.notes.push(format!("the end of this run could not be told to other writers: {error}"));
    }
    Ok(report)
}

/// All that is done as the owner.
async fn owned(
    writer: &DomainWriter,
    request: &Arc<ReplicateRequest>,
    mut images: Images,
    progress: Arc<Progress>,
    halt: Halt,
    started: Instant,
) -> Result<ReplicateReport> {
    progress.stage("loading the map");
    let map = PointMap::load(writer.domain(), writer.base()).await?;
    let sizes: Vec<u64> = images.list.iter().map(|i| i.len()).collect();
    let roster = roster(map.catalogue(), &request.vms, &sizes, request.allow_shrink)?;
    let end = ChainEnd {
        domain: writer.domain().id(),
        generation: writer.generation(),
        writer: writer.writer(),
        tip: map.at(),
        digest: map.index_digest(),
    };
    let clock = Arc::clone(&request.clock);
    let chain = Chain::new(end, roster.changed.then(|| roster.catalogue.clone()), Arc::clone(&clock));
    let disks = roster.members.iter().map(|m| m.disk).collect();
    let mut report = describe(end.domain, &roster, &images);
    let prepared = blocking({
        let (request, progress, list) = (Arc::clone(request), Arc::clone(&progress), std::mem::take(&mut images.list));
        let halt = halt.clone();
        move || {
            for image in &list {
                progress.add_total(image.allocated()?);
            }
            transfer::prepare(&request, list, disks, chain, progress, halt)
        }
    });
    let transfer = prepared.await?;
    report.notes.extend_from_slice(writer.warnings());
    report.engine = engine_words(&transfer);
    report.seconds.prepare = started.elapsed().as_secs_f64();

    progress.stage("replicating");
    let begun = Instant::now();
    let floor = Arc::clone(&transfer.floor);
    let previous = map.last_point().map(|point| point.time);
    let map = RwLock::new(map);
    let point = |fuzzy| Point {
        time: next_point_time(clock.now(), previous),
        flags: PointFlags { fuzzy, quiesced: false },
        vms: roster.covered.clone().into(),
    };
    let done = transfer.run(writer, &map, images, point).await?;
    let map = map.into_inner();
    report.seconds.transfer = done.sealed.duration_since(begun).as_secs_f64();
    report.seconds.point = done.sealed.elapsed().as_secs_f64();
    count(&mut report, &floor.tally);
    (report.read, report.segments, report.stored) = (done.read, done.prefix.segments, done.prefix.stored);
    (report.fuzzy, report.point) = (done.images.fuzzy, done.prefix.at);
    report.notes.extend(done.images.notes);
    report.point_time = map.last_point().map_or(Time::default(), |point| point.time);

    writer.report_point(report.point, report.point_time);

    if checkpoint::is_due(&map, request.manifest_every) {
        progress.stage("writing the manifest");
        let begun = Instant::now();
        write_checkpoint(writer, &map, &halt, &mut report).await?;
        report.seconds.checkpoint = begun.elapsed().as_secs_f64();
    }
    progress.stage("done");
    Ok(report)
}

/// The point is reported whatever becomes of its manifest: it is accepted, and the next run writes one. Only a writer
/// that is fenced must not go on.
async fn write_checkpoint(
    writer: &DomainWriter,
    map: &PointMap,
    halt: &Halt,
    report: &mut ReplicateReport,
) -> Result<()> {
    let points: Vec<(SegmentRef, Point)> = map.points_since_manifest().to_vec();
    let written = match checkpoint::write(writer.domain(), map, points, halt).await {
        Ok(written) => writer.accept_up_to(written.at).await.map(|()| written),
        Err(error) => Err(error),
    };
    match written {
        Ok(written) => (report.manifest, report.pages) = (Some(written.at), written.pages),
        Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
        Err(error) => report.notes.push(format!("the point is stored, its manifest is not: {error}")),
    }
    Ok(())
}

fn describe(domain: DomainId, roster: &Roster, images: &Images) -> ReplicateReport {
    let names = roster.catalogue.vms.iter().filter(|vm| roster.covered.contains(&vm.id));
    let disks = roster.members.iter().zip(&images.list).map(|(member, image)| ReplicatedDisk {
        vm: member.disk.vm,
        disk: member.disk.id,
        label: member.label.clone(),
        path: image.path().to_owned(),
        size: member.disk.size,
        joined: member.joined,
    });
    ReplicateReport {
        domain,
        covered: names.map(|vm| vm.name.clone()).collect(),
        disks: disks.collect(),
        logical: roster.members.iter().map(|m| m.disk.size).sum(),
        notes: roster.notes.clone(),
        ..ReplicateReport::default()
    }
}

fn engine_words(transfer: &transfer::Transfer) -> String {
    let info = transfer.engine.info();
    let mut words = format!("{:?}, {} reads deep, {} workers", info.kind, info.queue_depth, transfer.workers);
    for reason in &info.fallbacks {
        words.push_str("; ");
        words.push_str(reason);
    }
    words
}

fn count(report: &mut ReplicateReport, tally: &Tally) {
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    report.live = tally.live.load(Relaxed);
    report.shipped = tally.shipped.load(Relaxed);
    report.zeroed = tally.zeroed.load(Relaxed);
    report.frames = tally.frames.load(Relaxed);
    report.seconds = StageSeconds {
        comparing: seconds(tally.comparing_nanos.load(Relaxed)),
        compressing: seconds(tally.compressing_nanos.load(Relaxed)),
        ..report.seconds
    };
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "a step of the replication panicked", e))?
}
