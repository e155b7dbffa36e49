//! The whole way of the bytes on one machine: disks are built, replicated, changed, replicated again, rehydrated to both
//! points, and compared byte by byte with what they were.
//!
//! ```text
//! images --replicate--> store --rehydrate--> disks == images?
//!    '--changed, replicate--> store --rehydrate: newest, older, newest again--> disks == images of that point?
//! ```
//!
//! It works in one directory and says what it leaves there. It never touches an image that it is given: it copies it.

mod compare;
pub mod guest;
mod images;
mod limit;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::capture::{DiskSource, ReplicateReport, ReplicateRequest, VmSource, replicate};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::MAX_SEGMENT_LEN;
use crate::ids::{Name, SegmentNo};
use crate::progress::Progress;
use crate::rehydrate::{RehydrateReport, RehydrateRequest, Target, rehydrate};
use crate::store::{StorageSite, StoreOptions};

pub use limit::Limit;

/// Size of the log: enough for what the demo ships, little enough for a small disk.
const LOG_SIZE: u64 = 2 * MAX_SEGMENT_LEN;

/// What to show.
#[derive(Debug, Clone)]
pub struct DemoRequest {
    /// Directory to work in; made where it does not exist, and must be empty.
    pub dir: PathBuf,
    /// Images to use copies of; disks are built where there are none.
    pub images: Vec<PathBuf>,
}

/// One stage and what it moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// What was done.
    pub name: &'static str,
    /// Bytes that its rate counts.
    pub bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// What its bytes are.
    pub what: &'static str,
}

/// What was shown. Sizes are bytes.
#[derive(Debug, Clone, Default)]
pub struct DemoReport {
    /// Where everything is.
    pub dir: PathBuf,
    /// The disks, each with what it is made of.
    pub disks: Vec<(PathBuf, String)>,
    /// Bytes of the disks.
    pub logical: u64,
    /// Of these, live at the newest point.
    pub live: u64,
    /// Bytes of the segments of both points.
    pub stored: u64,
    /// The stages in their order.
    pub stages: Vec<Stage>,
    /// Bytes that were compared and found equal.
    pub compared: u64,
    /// What the machine could do at best.
    pub limit: Limit,
    /// Share of the limit that the first rehydration reached.
    pub ratio: f64,
    /// The disk engine.
    pub engine: String,
}

/// Shows it all.
///
/// # Errors
/// [`ErrorKind::Damaged`] where a byte came back different; what any of the operations says otherwise.
pub async fn demo(request: DemoRequest, progress: Arc<Progress>, cancel: Cancel) -> Result<DemoReport> {
    let mut demo = Demo::prepare(request, progress, cancel).await?;
    demo.build().await?;
    let first = demo.replicate("replicate", "live").await?;
    demo.keep("v1").await?;
    demo.change().await?;
    let second = demo.replicate("replicate what changed", "read").await?;
    demo.keep("v2").await?;
    let fresh = demo.rehydrate("rehydrate the new point", second.point.segment).await?;
    demo.compare("v2").await?;
    demo.rehydrate("move to the older point", first.point.segment).await?;
    demo.compare("v1").await?;
    demo.rehydrate("move to the new point", second.point.segment).await?;
    demo.compare("v2").await?;
    demo.finish(&first, &second, &fresh).await
}

struct Demo {
    dir: PathBuf,
    given: Vec<PathBuf>,
    site: StorageSite,
    domain: Name,
    vm: Name,
    disks: Vec<images::Image>,
    progress: Arc<Progress>,
    cancel: Cancel,
    report: DemoReport,
}

impl Demo {
    async fn prepare(request: DemoRequest, progress: Arc<Progress>, cancel: Cancel) -> Result<Demo> {
        let dir = empty_dir(&request.dir, &["images", "v1", "v2", "store", "datastore"])?;
        let show = dir.display();
        let url = url::Url::from_directory_path(dir.join("store"))
            .map_err(|()| Error::new(ErrorKind::Invalid, format!("directory {show} makes no URL")))?;
        let site = StorageSite::open(url.as_str().trim_end_matches('/'), &StoreOptions::default()).await?;
        let report = DemoReport { dir: dir.clone(), ..DemoReport::default() };
        let (domain, vm) = (Name::new("demo")?, Name::new("guest")?);
        Ok(Demo { dir, given: request.images, site, domain, vm, disks: Vec::new(), progress, cancel, report })
    }

    fn stage(&mut self, name: &'static str, bytes: u64, seconds: f64, what: &'static str) {
        self.report.stages.push(Stage { name, bytes, seconds, what });
    }

    async fn build(&mut self) -> Result<()> {
        self.progress.stage("build disks");
        let started = Instant::now();
        let (dir, given) = (self.dir.clone(), self.given.clone());
        self.disks = blocking(move || images::build(&dir, &given)).await?;
        let bytes = self.disks.iter().map(|d| d.size).sum();
        self.report.logical = bytes;
        self.report.disks = self.disks.iter().map(|d| (d.path.clone(), d.what.clone())).collect();
        self.stage("build disks", bytes, started.elapsed().as_secs_f64(), "logical");
        Ok(())
    }

    async fn change(&mut self) -> Result<()> {
        self.progress.stage("change data");
        let started = Instant::now();
        let (disks, dir) = (self.disks.clone(), self.dir.clone());
        let bytes = blocking(move || images::change(&dir, &disks)).await?;
        self.stage("change data", bytes, started.elapsed().as_secs_f64(), "changed");
        Ok(())
    }

    async fn replicate(&mut self, name: &'static str, what: &'static str) -> Result<ReplicateReport> {
        self.cancel.check()?;
        let disks = self.disks.iter().map(|d| DiskSource { name: d.name.clone(), path: d.path.clone(), size: None });
        let vms = vec![VmSource { name: self.vm.clone(), disks: disks.collect(), definition: None }];
        let request = ReplicateRequest::new(self.domain.clone(), Name::new("protected-site")?, vms);
        self.progress.stage(name);
        let started = Instant::now();
        // Counts of its own: an operation's total and done are about that operation alone.
        let done = replicate(&self.site, request, Arc::default(), self.cancel.clone()).await?;
        let bytes = if what == "read" { done.read } else { done.live };
        self.stage(name, bytes, started.elapsed().as_secs_f64(), what);
        Ok(done)
    }

    /// Keeps the images as they are now, to compare with.
    async fn keep(&mut self, version: &'static str) -> Result<()> {
        let (dir, disks) = (self.dir.join(version), self.disks.clone());
        blocking(move || disks.iter().try_for_each(|d| images::copy(&d.path, &dir.join(d.file_name())))).await
    }

    async fn rehydrate(&mut self, name: &'static str, point: SegmentNo) -> Result<RehydrateReport> {
        self.cancel.check()?;
        let datastore = self.dir.join("datastore");
        let request = RehydrateRequest {
            target: Target::Point(point),
            log_size: LOG_SIZE,
            ..RehydrateRequest::new(self.domain.clone(), datastore.clone(), datastore)
        };
        self.progress.stage(name);
        let started = Instant::now();
        let done = rehydrate(&self.site, request, Arc::default(), self.cancel.clone()).await?;
        if let Some(d) = done.damage.first() {
            let why = format!("{} at byte {} could not be recovered: {}", d.label, d.offset, d.why);
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        self.stage(name, done.written, started.elapsed().as_secs_f64(), "written");
        Ok(done)
    }

    async fn compare(&mut self, version: &'static str) -> Result<()> {
        self.progress.stage("compare every byte");
        let recovered = self.dir.join("datastore").join(self.domain.key()).join(self.vm.key());
        let pairs: Vec<(PathBuf, PathBuf)> = self
            .disks
            .iter()
            .map(|d| (self.dir.join(version).join(d.file_name()), recovered.join(format!("{}.raw", d.name.key()))))
            .collect();
        let started = Instant::now();
        let bytes = blocking(move || compare::all(&pairs)).await?;
        self.report.compared += bytes;
        self.stage("compare every byte", bytes, started.elapsed().as_secs_f64(), "compared, equal");
        Ok(())
    }

    async fn finish(
        mut self,
        first: &ReplicateReport,
        second: &ReplicateReport,
        fresh: &RehydrateReport,
    ) -> Result<DemoReport> {
        self.progress.stage("measure the limit");
        self.report.live = fresh.planned;
        self.report.stored = first.stored + second.stored;
        self.report.engine = fresh.engine.clone();
        let (dir, written) = (self.dir.clone(), fresh.written);
        let limit = blocking(move || limit::measure(&dir, written)).await?;
        let taken = self.report.stages.iter().find(|s| s.name == "rehydrate the new point").map_or(0.0, |s| s.seconds);
        self.report.ratio = if taken > 0.0 { limit.seconds() / taken } else { 0.0 };
        self.report.limit = limit;
        Ok(self.report)
    }
}

/// Makes `dir` with these directories in it; where it is there already it must be empty.
fn empty_dir(dir: &Path, subs: &[&str]) -> Result<PathBuf> {
    let show = dir.display();
    std::fs::create_dir_all(dir).io_context(|| format!("directory {show}"))?;
    let dir = dir.canonicalize().io_context(|| format!("directory {show}"))?;
    if std::fs::read_dir(&dir).io_context(|| format!("directory {show}"))?.next().is_some() {
        let why = format!("directory {show} is not empty: name an empty one, nothing in it is overwritten");
        return Err(Error::new(ErrorKind::Refused, why));
    }
    for sub in subs {
        std::fs::create_dir(dir.join(sub)).io_context(|| format!("directory {show}/{sub}"))?;
    }
    Ok(dir)
}

/// Removes what the demo made in `dir`, and `dir` itself.
pub fn remove(dir: &Path) -> Result<()> {
    std::fs::remove_dir_all(dir).io_context(|| format!("remove {}", dir.display()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "wait for a stage of the demo", e))?
}
