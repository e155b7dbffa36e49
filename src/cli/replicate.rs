//! `freshet replicate`: disk images into a storage site, as one new point of a domain.

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::context::Context;
use super::output::{can_ask, complain, confirm};
use super::progress_view::ProgressView;
use super::report::Report;
use super::store_args::DomainArgs;
use super::units::{bytes, parse_size, rate};
use super::values::{Engine, parse_name};
use super::vm_disks::VmDisks;
use crate::capture::{DEFAULT_LEVEL, DEFAULT_MEMORY, ReplicateReport, ReplicateRequest, ReplicatedDisk, replicate};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;
use crate::progress::Progress;
use crate::store::{BaseChoice, Domain, StorageSite};

/// Ship disk images as a new point; a second run ships only what changed
#[derive(Debug, Args)]
pub(super) struct Replicate {
    #[command(flatten)]
    domain: DomainArgs,
    #[command(flatten)]
    vms: VmDisks,
    /// Name of this site, which owns the domain [default: the host's name]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    site: Option<Name>,
    /// Ship an image that is open for writing elsewhere; its point is marked fuzzy
    #[arg(long)]
    allow_fuzzy: bool,
    /// Accept an image that is smaller than at the last point; what lay past its end is dropped
    #[arg(long)]
    allow_shrink: bool,
    /// Take the domain over from the site that owns it; says what that cuts off, and asks
    #[arg(long)]
    take_ownership: bool,
    /// Answer yes to what --take-ownership asks
    #[arg(long, requires = "take_ownership")]
    yes: bool,
    /// zstd level, 1 to 19
    #[arg(long, default_value_t = DEFAULT_LEVEL)]
    level: i32,
    /// Threads that compare and compress [default: one for each processor]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Budget for all buffers
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_MEMORY)]
    memory: u64,
    /// Disk engine
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,
}

impl Replicate {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        let site = self.domain.site.open().await?;
        let yes = self.yes;
        let request = self.request()?;
        request.validate()?;
        if request.take_ownership {
            confirm_take_over(&site, &request.domain, &request.site, BaseChoice::default(), yes).await?;
        }
        let progress = Arc::new(Progress::new());
        let view = ProgressView::start(progress.clone(), &context.output);
        let done = replicate(&site, request, progress, context.cancel.clone()).await;
        drop(view);
        let done = done?;
        Report::new(&json(&done), text(&done))
    }

    fn request(self) -> Result<ReplicateRequest> {
        let site = match self.site {
            Some(name) => name,
            None => host_name()?,
        };
        Ok(ReplicateRequest {
            take_ownership: self.take_ownership,
            allow_fuzzy: self.allow_fuzzy,
            allow_shrink: self.allow_shrink,
            level: self.level,
            workers: self.workers.unwrap_or(0),
            memory: self.memory,
            engine: self.engine.into(),
            ..ReplicateRequest::new(self.domain.domain, site, self.vms.vms)
        })
    }
}

/// Shows what taking the domain over from `base` cuts off, and asks unless `yes`. Nothing is asked where there is nothing
/// to take.
pub(super) async fn confirm_take_over(
    site: &StorageSite,
    name: &Name,
    here: &Name,
    base: BaseChoice,
    yes: bool,
) -> Result<()> {
    let domain = match Domain::open(site, name).await {
        Ok(domain) => domain,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if domain.ownership().newest().is_some_and(|owner| owner.author.site == *here) {
        return Ok(());
    }
    let preview = domain.preview_take_over(base).await?;
    complain(&preview.to_string());
    if yes || (can_ask() && confirm("take it over?")) {
        return Ok(());
    }
    let why = match can_ask() {
        true => "not confirmed",
        false => "there is no terminal to ask on: give --yes to confirm",
    };
    Err(Error::new(ErrorKind::Refused, format!("take domain {name} over: {why}; nothing was done")))
}

/// The host's name, which is this site's unless the operator names it.
pub(super) fn host_name() -> Result<Name> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let advice = |e: Error| e.while_doing("the host's name cannot be this site's, give one by --site");
    match name.as_str() {
        "" | "(none)" => Err(advice(Error::new(ErrorKind::Invalid, "it is not set"))),
        name => Name::new(name).map_err(advice),
    }
}

fn json(done: &ReplicateReport) -> Value {
    let disk = |d: &ReplicatedDisk| {
        json!({
            "disk": d.label, "disk_id": d.disk.to_string(), "vm_id": d.vm.to_string(),
            "path": d.path, "size": d.size, "joined": d.joined,
        })
    };
    let s = &done.seconds;
    json!({
        "domain_id": done.domain.to_string(),
        "point": done.point.segment.get(),
        "generation": done.point.generation.get(),
        "point_time": done.point_time.to_string(),
        "fuzzy": done.fuzzy,
        "covered": done.covered.iter().map(Name::as_str).collect::<Vec<_>>(),
        "disks": done.disks.iter().map(disk).collect::<Vec<_>>(),
        "bytes": {
            "logical": done.logical, "live": done.live, "read": done.read,
            "shipped": done.shipped, "zeroed": done.zeroed, "stored": done.stored,
        },
        "frames": done.frames,
        "segments": done.segments,
        "manifest": done.manifest.map(|m| m.to_string()),
        "pages": done.pages,
        "seconds": {
            "total": s.total(), "prepare": s.prepare, "transfer": s.transfer, "point": s.point,
            "checkpoint": s.checkpoint, "comparing": s.comparing, "compressing": s.compressing,
        },
        "engine": done.engine,
        "notes": done.notes,
    })
}

fn text(done: &ReplicateReport) -> String {
    let fuzzy = if done.fuzzy { " (fuzzy: a disk was open for writing)" } else { "" };
    let mut out = format!("point {} of {}{fuzzy}\n", done.point.segment, done.point_time);
    for disk in &done.disks {
        let joined = if disk.joined { "  new" } else { "" };
        out += &format!("  {}  {}  {}{joined}\n", disk.label, bytes(disk.size), disk.path.display());
    }
    let seconds = done.seconds.total();
    out += &format!(
        "read {}, shipped {} as {} in {} segments, zeroed {}, in {seconds:.2} s ({})\n",
        bytes(done.read),
        bytes(done.shipped),
        bytes(done.stored),
        done.segments,
        bytes(done.zeroed),
        rate(done.read, seconds),
    );
    for note in &done.notes {
        out += &format!("note: {note}\n");
    }
    out
}
