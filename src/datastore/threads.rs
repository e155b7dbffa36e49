//! The disk engine on plain threads: `pread` and `pwrite`, one blocking call at a time on each thread.
//!
//! Owns its workers. It is what runs where io_uring is not to be had, under the same contract.

use std::path::Path;
use std::sync::Arc;

use super::engine::{Access, DiskEngine, EngineInfo, EngineKind, EngineOptions, FileId, FileInfo, Request};
use super::file::FileOptions;
use super::gate::Gate;
use super::job::Job;
use super::slab::Slab;
use super::table::Files;
use super::workers::Workers;
use crate::error::Result;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Threads {
    slab: Arc<Slab>,
    files: Files,
    gate: Arc<Gate>,
    workers: Workers,
    fallbacks: Vec<String>,
}

impl Threads {
    /// Starts the workers; `fallbacks` says why it is not the other engine, where that was asked for.
    ///
    /// # Errors
    /// `Io` when a thread cannot be started.
    pub(super) fn start(slab: Arc<Slab>, options: &EngineOptions, fallbacks: Vec<String>) -> Result<Threads> {
        let threads = options.worker_threads.min(options.queue_depth);
        Ok(Threads {
            slab,
            files: Files::new(FileOptions::from(options)),
            gate: Gate::new(options.queue_depth),
            workers: Workers::start("freshet-disk", threads, options.queue_depth)?,
            fallbacks,
        })
    }
}

impl DiskEngine for Threads {
    fn open(&self, path: &Path, access: Access) -> Result<FileId> {
        self.files.open(path, access)
    }

    fn close(&self, file: FileId) -> Result<()> {
        self.files.close(file, || ())
    }

    fn submit(&self, request: Request) {
        let job = Job::admit(&self.gate, &self.files, request);
        self.workers.run(|| job.run());
    }

    fn file_info(&self, file: FileId) -> Result<FileInfo> {
        self.files.enter(file)?.info()
    }

    fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    fn info(&self) -> EngineInfo {
        EngineInfo {
            kind: EngineKind::Threads,
            registered_slots: 0,
            queue_depth: self.gate.depth(),
            fallbacks: self.fallbacks.clone(),
        }
    }
}
