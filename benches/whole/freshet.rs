//! Our own commands, as users give them, with the numbers of their reports.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::process::{Run, drop_cache, files_below, fresh_dir, run};
use crate::server::Server;

/// Where the objects are.
#[derive(Clone, Copy)]
pub(crate) enum Store<'a> {
    /// A directory.
    File(&'a Path),
    /// A server, with the directory in which it keeps its bucket.
    S3(&'a Server, &'a Path),
}

impl Store<'_> {
    /// The files that hold its objects.
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Store::File(dir) | Store::S3(_, dir) => dir,
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        let url = match self {
            Store::File(dir) => format!("file://{}", dir.display()),
            Store::S3(server, _) => {
                server.env(&mut command);
                format!("s3://{}", crate::BUCKET)
            }
        };
        command.args([verb, "--json", "--store", &url, "--domain", "bench"]);
        command
    }

    fn server_cpu(&self) -> Outcome<f64> {
        match self {
            Store::File(_) => Ok(0.0),
            Store::S3(server, _) => server.cpu(),
        }
    }

    /// Runs one of our commands; the CPU seconds of the server are added to its own.
    fn run(&self, command: &mut Command) -> Outcome<Run> {
        let before = self.server_cpu()?;
        let run = run(command)?;
        Ok(Run { cpu: run.cpu + self.server_cpu()? - before, ..run })
    }
}

/// Ships the image.
pub(crate) fn replicate(store: Store<'_>, image: &Path) -> Outcome<Run> {
    drop_cache(image)?;
    store.run(store.command("replicate").args(["--vm", "vm", "--disk"]).arg(format!("disk={}", image.display())))
}

/// A command that rehydrates into directories below `dir`.
pub(crate) fn rehydrate_command(store: Store<'_>, dir: &Path, args: &[&str]) -> Command {
    let mut command = store.command("rehydrate");
    command.arg("--datastore").arg(dir.join("datastore")).arg("--log-store").arg(dir.join("log")).args(args);
    command
}

/// Rehydrates into empty directories below `dir`, with cold caches.
pub(crate) fn rehydrate(store: Store<'_>, dir: &Path, args: &[&str]) -> Outcome<Run> {
    fresh_dir(&dir.join("datastore"))?;
    fresh_dir(&dir.join("log"))?;
    rehydrate_again(store, dir, args)
}

/// Rehydrates into what is there.
pub(crate) fn rehydrate_again(store: Store<'_>, dir: &Path, args: &[&str]) -> Outcome<Run> {
    drop_cache(store.dir())?;
    store.run(&mut rehydrate_command(store, dir, args))
}

/// The disk that [`rehydrate`] makes.
pub(crate) fn disk(dir: &Path) -> PathBuf {
    dir.join("datastore/bench/vm/disk.raw")
}

/// The segments among the objects of a store.
pub(crate) fn segments(store: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = files_below(store)?;
    files.retain(|file| file.components().any(|part| part.as_os_str() == "segments"));
    match files.is_empty() {
        true => Err(format!("{} holds no segments", store.display()).into()),
        false => Ok(files),
    }
}

/// A number of a report, by its JSON pointer.
pub(crate) fn number(run: &Run, pointer: &str) -> Outcome<f64> {
    let report = run.json()?;
    let value = report.pointer(pointer).and_then(serde_json::Value::as_f64);
    value.ok_or_else(|| format!("the report has no {pointer}: {report}").into())
}
