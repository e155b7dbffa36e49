//! A fixed set of threads that run blocking work off a bounded queue.
//!
//! Owns its threads and the queue, and knows nothing of files. Invariants: all that was queued runs before the
//! threads end; a panic in one piece of work is reported and does not take its thread along.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam::channel::{self, Sender};

use crate::error::{IoResultExt, Result};

type Work = Box<dyn FnOnce() + Send>;

/// Threads and the queue to them. Dropping waits until the queue is empty and the threads are gone.
#[derive(Debug)]
pub(super) struct Workers {
    queue: Option<Sender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `threads` threads called `name` behind a queue of `depth` pieces of work.
    pub(super) fn start(name: &str, threads: usize, depth: usize) -> Result<Workers> {
        let (queue, work) = channel::bounded::<Work>(depth);
        let mut workers = Workers { queue: Some(queue), threads: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let work = work.clone();
            let run = move || {
                for piece in work {
                    if catch_unwind(AssertUnwindSafe(piece)).is_err() {
                        tracing::error!("a piece of work on a disk thread panicked");
                    }
                }
            };
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(crate::log_context::here(run));
            workers.threads.push(thread.io_context(|| format!("start a {name} thread"))?);
        }
        Ok(workers)
    }

    /// Queues one piece of work; blocks while the queue is full.
    pub(super) fn run(&self, work: impl FnOnce() + Send + 'static) {
        let queue = self.queue.as_ref().expect("the queue is there until drop");
        queue.send(Box::new(work)).expect("the threads hold the other end until drop");
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue = None;
        join_all(std::mem::take(&mut self.threads));
    }
}

/// Waits for threads to end; one that is the caller itself (the last handle was dropped there) ends by itself.
pub(super) fn join_all(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("a disk thread panicked");
        }
    }
}
