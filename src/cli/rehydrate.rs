//! `freshet rehydrate`: a domain's disks at this site are brought up to a point, once or continuously.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::context::Context;
use super::follow_view;
use super::progress_view::ProgressView;
use super::report::Report;
use super::store_args::DomainArgs;
use super::units::{bytes, parse_size, parse_time, rate};
use super::values::{Engine, parse_disk_id, parse_name, parse_placement, parse_point};
use crate::error::Result;
use crate::ids::{DiskId, Name, SegmentNo, Time};
use crate::progress::Progress;
use crate::rehydrate::{
    DEFAULT_LOG_SIZE, DEFAULT_MEMORY, Damage, DetachedDisk, Mode, Placement, RehydrateReport, RehydrateRequest, Target,
    UncoveredVm, rehydrate,
};

/// Bring a domain's disks up to a point; run it again to go on, or to move to another point
#[derive(Debug, Args)]
pub(super) struct Rehydrate {
    #[command(flatten)]
    domain: DomainArgs,
    /// Recovery datastore: disks become DIR/<domain>/<vm>/<disk>.raw
    #[arg(long, value_name = "DIR")]
    datastore: PathBuf,
    /// Directory of the replication log [default: the datastore]
    #[arg(long, value_name = "DIR")]
    log_store: Option<PathBuf>,
    /// Size of the replication log, where it does not exist yet
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_LOG_SIZE)]
    log_size: u64,
    /// Point to bring the disks to, by its number [default: the newest]
    #[arg(long, value_name = "P", value_parser = parse_point, conflicts_with = "at")]
    point: Option<SegmentNo>,
    /// The newest point at or before this time, such as 2026-11-24T05:30:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<Time>,
    /// Only this VM; can be repeated
    #[arg(long, value_name = "V", value_parser = parse_name)]
    vm: Vec<Name>,
    /// Budget for all buffers
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_MEMORY)]
    memory: u64,
    /// Go on with every new point until SIGINT or SIGTERM
    #[arg(long, conflicts_with_all = ["point", "at"])]
    continuous: bool,
    /// End when this point is applied
    #[arg(long, value_name = "P", value_parser = parse_point, requires = "continuous")]
    until: Option<SegmentNo>,
    /// Replace files at the disks' paths that this domain's rehydration did not make
    #[arg(long)]
    overwrite: bool,
    /// Follow in place onto the disks that `freshet protect` served here: its state directory, once it has ended
    #[arg(long, value_name = "DIR", conflicts_with = "overwrite")]
    protected: Option<PathBuf>,
    /// A disk that stands at a place of its own, such as the image that was protected; `/` within a name is %2F. Can be
    /// repeated
    #[arg(long, value_name = "VM/DISK=PATH", value_parser = parse_placement)]
    place: Vec<Placement>,
    /// Overwrite what the protected disks hold and the domain does not; by the name that the refusal gives it
    #[arg(long, value_name = "NAME", requires = "protected")]
    discard: Option<String>,
    /// Delete the copy of a disk that left the domain, by its identity; can be repeated
    #[arg(long, value_name = "ID", value_parser = parse_disk_id)]
    delete_detached: Vec<DiskId>,
    /// Trust nothing local: compare every block with the map and fetch what differs
    #[arg(long)]
    check_local: bool,
    /// Disk engine
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,
}

impl Rehydrate {
    /// The domain that it is about.
    pub(super) fn domain(&self) -> &crate::ids::Name {
        &self.domain.domain
    }

    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        let site = self.domain.site.open().await?;
        let continuous = self.continuous;
        let request = self.request();
        request.validate()?;
        let progress = Arc::new(Progress::new());
        let shown = match continuous {
            true => None,
            false => Some(ProgressView::start(progress.clone(), &context.output)),
        };
        let work = rehydrate(&site, request, progress.clone(), context.cancel.clone());
        let done = match continuous {
            true => follow_view::while_running(work, &site, &progress, &context.output).await?,
            false => work.await,
        };
        drop(shown);
        report(&done?, continuous)
    }

    fn request(self) -> RehydrateRequest {
        let log_store = self.log_store.unwrap_or_else(|| self.datastore.clone());
        let target = match (self.point, self.at) {
            (Some(point), _) => Target::Point(point),
            (None, Some(time)) => Target::At(time),
            (None, None) => Target::Newest,
        };
        RehydrateRequest {
            log_size: self.log_size,
            target,
            mode: if self.continuous { Mode::Continuous { until: self.until } } else { Mode::AsNeeded },
            vms: self.vm,
            memory: self.memory,
            overwrite: self.overwrite,
            check_local: self.check_local,
            placements: self.place,
            protected: self.protected,
            discard: self.discard,
            delete_detached: self.delete_detached,
            engine: self.engine.into(),
            ..RehydrateRequest::new(self.domain.domain, self.datastore, log_store)
        }
    }
}

fn report(done: &RehydrateReport, continuous: bool) -> Result<Report> {
    let lost: u64 = done.damage.iter().map(|d| d.len).sum();
    let mut why = Vec::new();
    if !done.damage.is_empty() {
        why.push(format!("{} damaged ranges, {} of the disks", done.damage.len(), bytes(lost)));
    }
    for vm in &done.uncovered {
        let other = match vm.newest {
            Some(point) => {
                format!("the newest point that does is {point}: name that, for this VM and a datastore of its own")
            }
            None => "no point does yet".to_owned(),
        };
        why.push(format!("VM {} is not covered by this point, its disks are not of one moment; {other}", vm.name));
    }
    if done.between_points {
        why.push(format!("the disks equal no point, they are past point {}: run it again", done.point.segment));
    }
    if let Some(first) = done.passed_over.first() {
        why.push(format!("there may be a newer point, {} things are in its way: {first}", done.passed_over.len()));
    }
    let mut json = json(done);
    if continuous {
        json["event"] = "end".into();
    }
    Ok(Report::new(&json, text(done))?.incomplete((!why.is_empty()).then(|| why.join("; "))))
}

fn json(done: &RehydrateReport) -> Value {
    let disk = |d: &crate::rehydrate::RehydratedDisk| json!({ "disk": d.label, "path": d.path, "size": d.size });
    json!({
        "point": done.point.segment.get(),
        "between_points": done.between_points,
        "generation": done.point.generation.get(),
        "point_time": done.point_time.to_string(),
        "fuzzy": done.fuzzy,
        "uncovered": done.uncovered.iter().map(uncovered_json).collect::<Vec<_>>(),
        "disks": done.disks.iter().map(disk).collect::<Vec<_>>(),
        "bytes": {
            "logical": done.logical, "planned": done.planned, "written": done.written,
            "fetched": done.fetched, "kept": done.kept,
        },
        "landed_segments": done.landed_segments,
        "landing": {
            "segments": done.landing.segments, "bytes": done.landing.bytes, "seconds": done.landing.seconds,
        },
        "applied_points": done.applied_points,
        "seconds": done.seconds,
        "plan_seconds": done.plan_seconds,
        "damage": done.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "detached": done.detached.iter().map(detached_json).collect::<Vec<_>>(),
        "engine": done.engine,
        "passed_over": done.passed_over,
        "notes": done.notes,
    })
}

fn uncovered_json(vm: &UncoveredVm) -> Value {
    json!({ "vm": vm.name.as_str(), "newest_point": vm.newest.map(SegmentNo::get) })
}

fn detached_json(d: &DetachedDisk) -> Value {
    json!({ "disk": d.label, "disk_id": d.disk.to_string(), "path": d.path, "size": d.size })
}

fn damage_json(d: &Damage) -> Value {
    json!({ "disk": d.label, "disk_id": d.disk.to_string(), "offset": d.offset, "len": d.len, "why": d.why, "files": d.files })
}

fn text(done: &RehydrateReport) -> String {
    let fuzzy = if done.fuzzy { " (fuzzy: a disk was open for writing)" } else { "" };
    let past = if done.between_points { "past " } else { "" };
    let mut out = format!("{past}point {} of {}{fuzzy}\n", done.point.segment, done.point_time);
    for disk in &done.disks {
        out += &format!("  {}  {}  {}\n", disk.label, bytes(disk.size), disk.path.display());
    }
    out += &format!(
        "planned {}, written {}, kept {}, fetched {}, in {:.2} s ({})\n",
        bytes(done.planned),
        bytes(done.written),
        bytes(done.kept),
        bytes(done.fetched),
        done.seconds,
        rate(done.written, done.seconds),
    );
    for note in &done.notes {
        out += &format!("note: {note}\n");
    }
    for d in &done.detached {
        out += &format!("left: {} ({}), {}, kept at {}\n", d.label, d.disk, bytes(d.size), d.path.display());
    }
    for d in &done.damage {
        out += &format!("damaged: {} bytes {}..{}: {}\n", d.label, d.offset, d.offset.saturating_add(d.len), d.why);
        for file in &d.files {
            out += &format!("  file {file}\n");
        }
    }
    out
}
