//! `freshet protect`: disks of running guests, served over NBD and captured, until it is told to end; and the questions
//! and wishes to one that runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::context::Context;
use super::protect_ask::{Asks, ask};
use super::replicate::{confirm_take_over, host_name};
use super::report::Report;
use super::steering::Steering;
use super::store_args::OptionsArgs;
use super::tls_args::TlsArgs;
use super::units::{bytes, parse_size};
use super::values::{Engine, parse_name};
use super::vm_disks::MaybeVmDisks;
use crate::capture::DEFAULT_LEVEL;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;
use crate::nbd::{CacheMode, Listen};
use crate::protect::{
    CaptureMode, ControlLimits, ControlServer, DEFAULT_PROTECT_LOG, DEFAULT_PROTECT_MEMORY, FencedPolicy, Origin,
    ProtectReport, ProtectRequest, Protection, control_path, rehydrated_disks,
};
use crate::store::{BaseChoice, StorageSite};

/// Time between two looks at the mode.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Serve disks to running guests and ship every write within about a second
#[derive(Debug, Args)]
pub(super) struct Protect {
    /// Storage site: file:///directory, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix
    #[arg(long, value_name = "URL", required_unless_present = "ask")]
    store: Option<String>,
    #[command(flatten)]
    options: OptionsArgs,
    /// Protected domain
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    domain: Name,
    #[command(flatten)]
    vms: MaybeVmDisks,
    /// Where to serve the disks: unix:/path or tcp:host:port. Can be repeated
    #[arg(long, value_name = "ADDRESS", required_unless_present = "ask")]
    listen: Vec<Listen>,
    #[command(flatten)]
    asks: Asks,
    /// With --hand-over: give up VMs, too, that the last point does not cover; what they wrote since their last one is lost
    #[arg(long, requires = "hand_over")]
    leave_uncovered: bool,
    /// Name of this site, which owns the domain [default: the host's name]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    site: Option<Name>,
    /// Directory for the replication log, the write-intent bitmaps and what must be remembered between two runs
    /// [default: /var/lib/freshet as root, else freshet in XDG_STATE_HOME; made where it is missing]
    #[arg(long, value_name = "DIR")]
    log_store: Option<PathBuf>,
    /// Size of the replication log, which takes what the storage site does not take in time
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_PROTECT_LOG)]
    log_size: u64,
    /// Budget for all buffers
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_PROTECT_MEMORY)]
    memory: u64,
    /// Past the page cache, or through it: then flush and FUA make writes durable
    #[arg(long, value_enum, default_value_t = Cache::Direct)]
    cache: Cache,
    #[command(flatten)]
    tls: TlsArgs,
    /// Connections of clients at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Age of its first write, in milliseconds, at which a segment is cut: what would be lost is a little more
    #[arg(long, value_name = "MS", value_parser = parse_millis, default_value = "800")]
    segment_age: Duration,
    /// Longest time, in milliseconds, that a write is held because the storage site takes too little
    #[arg(long, value_name = "MS", value_parser = parse_millis, default_value = "500")]
    longest_hold: Duration,
    /// Most that initial sync and resync read in a second
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    sync_rate: Option<u64>,
    /// How long the end waits for the storage site to take what was captured, in milliseconds
    #[arg(long, value_name = "MS", value_parser = parse_millis, default_value = "30000")]
    drain: Duration,
    /// What guests' writes do once another writer owns the domain
    #[arg(long, value_enum, default_value_t = WhenFenced::Continue)]
    when_fenced: WhenFenced,
    /// Open the exports before it is known who owns the domain, as when the storage site does not answer after a reboot
    #[arg(long)]
    open_unclaimed: bool,
    /// Accept an image that is smaller than at the last point; what lay past its end is dropped
    #[arg(long)]
    allow_shrink: bool,
    /// The disks were brought to this datastore by `freshet rehydrate`: they are protected from the point that they equal
    /// on, without reading or comparing them. Without --vm, all that it holds
    #[arg(long, value_name = "DIR", conflicts_with = "ask")]
    rehydrated: Option<PathBuf>,
    /// Take the domain over from the site that owns it; says what that cuts off, and asks. Disks that were rehydrated go on
    /// from the point that they equal
    #[arg(long)]
    take_ownership: bool,
    /// Answer yes to what --take-ownership asks
    #[arg(long, requires = "take_ownership")]
    yes: bool,
    /// zstd level, 1 to 19
    #[arg(long, default_value_t = DEFAULT_LEVEL)]
    level: i32,
    /// Disk engine
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,
}

/// How images are read and written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Cache {
    /// Past the page cache
    Direct,
    /// Through the page cache; flush and FUA make writes durable
    WriteBack,
}

/// What guests' writes do once another writer owns the domain.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum WhenFenced {
    /// Go on, unprotected: the local disk diverges and is kept
    Continue,
    /// Fail, so that the guest cannot diverge any further
    Stop,
}

/// Reads a number of milliseconds.
fn parse_millis(text: &str) -> std::result::Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|e| format!("expected a number of milliseconds: {e}"))
}

impl Protect {
    /// The domain that it is about.
    pub(super) fn domain(&self) -> &Name {
        &self.domain
    }

    pub(super) async fn run(mut self, context: &Context) -> Result<Report> {
        let state = state_dir(self.log_store.as_deref())?;
        if let Some(asked) = self.asks.request(&self.vms.vms, self.leave_uncovered)? {
            return ask(&state.join(self.domain.key()), &asked).await;
        }
        let url = self.store.as_deref().unwrap_or_default();
        let store = StorageSite::open(url, &self.options.load()?).await?;
        let mut base = BaseChoice::default();
        if let Some(datastore) = &self.rehydrated {
            let held = rehydrated_disks(&store, &self.domain, datastore, &state).await?;
            base = held.point.map_or(base, |point| BaseChoice::Point(point.segment));
            if self.vms.vms.is_empty() {
                self.vms.vms = held.vms;
            }
        }
        if self.vms.vms.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "name what to protect: --vm V --disk NAME=PATH"));
        }
        let yes = self.yes;
        let request = self.request(state)?;
        request.validate()?;
        if request.take_ownership {
            confirm_take_over(&store, &request.domain, &request.site, base, yes).await?;
        }
        let mut protection = Protection::open(store, request).await?;
        let control = control_path(&protection.state_dir());
        let steering = Steering::new(protection.observer(), context.cancel.clone());
        let control = ControlServer::start(&control, steering.clone(), ControlLimits::default())?;
        let output = &context.output;
        let mut served = false;
        if protection.is_serving() {
            served = true;
            ready(&protection, context)?;
        }
        let claimed = protection.claim(&context.cancel, |error| {
            let text = format!("the domain is not claimed yet: {error}");
            // What cannot be printed is not worth ending for.
            let _ = output.event(&json!({ "event": "waiting", "why": error.to_string() }), &text);
        });
        match claimed.await {
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            other => other?,
        }
        if !served && protection.is_serving() {
            ready(&protection, context)?;
        }
        for note in protection.notes() {
            output.event(&json!({ "event": "note", "text": note }), &format!("note: {note}"))?;
        }
        steering.begin(protection).await;
        watch(&steering, context).await?;
        control.shutdown().await;
        finish(&steering.take().await?.stop().await?)
    }

    fn request(self, state: PathBuf) -> Result<ProtectRequest> {
        let site = match self.site {
            Some(name) => name,
            None => host_name()?,
        };
        Ok(ProtectRequest {
            cache: match self.cache {
                Cache::Direct => CacheMode::Direct,
                Cache::WriteBack => CacheMode::WriteBack,
            },
            tls: self.tls.load()?,
            log_size: self.log_size,
            memory: self.memory,
            connections: self.connections,
            segment_age: self.segment_age,
            longest_hold: self.longest_hold,
            sync_rate: self.sync_rate,
            drain: self.drain,
            fenced: match self.when_fenced {
                WhenFenced::Continue => FencedPolicy::Continue,
                WhenFenced::Stop => FencedPolicy::Stop,
            },
            open_unclaimed: self.open_unclaimed,
            allow_shrink: self.allow_shrink,
            take_ownership: self.take_ownership,
            origin: self.rehydrated.map_or(Origin::Site, |datastore| Origin::Rehydrated { datastore }),
            level: self.level,
            engine: self.engine.into(),
            ..ProtectRequest::new(self.domain, site, self.vms.vms, self.listen, state)
        })
    }
}

/// Tells where the disks are served.
fn ready(protection: &Protection, context: &Context) -> Result<()> {
    let (addresses, exports) = (protection.addresses(), protection.exports());
    let text = format!("serving {} at {}", exports.join(", "), addresses.join(", "));
    context.output.event(&json!({ "event": "ready", "addresses": addresses, "exports": exports }), &text)
}

/// Tells when mode or status change, until it is asked to end.
async fn watch(steering: &Steering, context: &Context) -> Result<()> {
    let mut last = None;
    while !context.cancel.is_cancelled() {
        let (mode, status) = steering.with(async |protection| (protection.mode(), protection.status().await)).await?;
        if last.as_ref() != Some(&(mode, status.status.clone())) {
            last = Some((mode, status.status.clone()));
            let problems = status.problems.join("; ");
            let event = json!({ "event": "mode", "mode": mode, "status": status.status, "problems": status.problems });
            let why = if problems.is_empty() { String::new() } else { format!(": {problems}") };
            context.output.event(&event, &format!("{} ({}){why}", words(mode), status.status))?;
        }
        tokio::select! { () = tokio::time::sleep(LOOK_EVERY) => {} () = context.cancel.cancelled() => {} }
    }
    Ok(())
}

fn words(mode: CaptureMode) -> &'static str {
    match mode {
        CaptureMode::Starting => "starting",
        CaptureMode::Normal => "capturing",
        CaptureMode::Throttled => "capturing, writes are held: the storage site takes too little",
        CaptureMode::Bitmap => "not capturing, only marking: the storage site takes too little",
        CaptureMode::Fenced => "not capturing: another writer owns the domain",
        CaptureMode::Failed => "not capturing: restart it",
    }
}

fn finish(report: &ProtectReport) -> Result<Report> {
    let mut text = format!(
        "point {} of {}: {} in {} segments shipped for {} written\n",
        report.point,
        report.point_time,
        bytes(report.stored),
        report.segments,
        bytes(report.written)
    );
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    let why = format!(
        "{} were captured and not shipped; {} of disks are marked and will be read back at the next start",
        bytes(report.left),
        bytes(report.dirty)
    );
    let mut json = serde_json::to_value(report)
        .map_err(|e| Error::with_source(ErrorKind::Internal, "put the report into JSON", e))?;
    json["event"] = "stopped".into();
    Ok(Report::new(&json, text)?.incomplete((!report.all_shipped).then_some(why)))
}

/// Where state is kept.
fn state_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let dir = match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/var/lib/freshet"),
        false => {
            let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
            let base = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
            let advice = "neither XDG_STATE_HOME nor HOME is set: name a directory by --log-store";
            base.ok_or_else(|| Error::new(ErrorKind::Invalid, advice))?.join("freshet")
        }
    };
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(format!("make {}", dir.display()), e))?;
    Ok(dir)
}
