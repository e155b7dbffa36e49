//! `freshet demo`: the whole way of the bytes on this machine, in under a minute.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::context::Context;
use super::demo_guest;
use super::progress_view::ProgressView;
use super::report::Report;
use super::units::{bytes, rate};
use crate::demo::guest::{GuestDemoReport, GuestDemoRequest, guest_demo};
use crate::demo::{DemoReport, DemoRequest, demo, remove};
use crate::error::{IoResultExt, Result};
use crate::progress::Progress;

/// Replicate disks, change them, replicate again, rehydrate both points and compare every byte
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Work in this directory, which must be empty, and leave everything there [default: a fresh one under the
    /// directory for temporary files, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use a copy of this image as a disk instead of building some; can be repeated
    #[arg(long, value_name = "PATH")]
    image: Vec<PathBuf>,
    /// Show a failover of real guests between two sites on this machine, and the way back, in a minute or two. It
    /// takes QEMU, e2fsprogs, a Debian cloud kernel and a static busybox
    #[arg(long, conflicts_with = "image")]
    guest: bool,
    /// Directory where the kernel's package was unpacked [default: this machine's own kernels]
    #[arg(long, value_name = "DIR", requires = "guest")]
    kernel_dir: Option<PathBuf>,
    /// Storage site between both sites, at a prefix where nothing is; what is written there stays [default: an S3 server
    /// that the demo starts on loopback]
    #[arg(long, value_name = "URL", requires = "guest")]
    store: Option<String>,
    /// File with options of that storage site, NAME=VALUE on each line
    #[arg(long, value_name = "FILE", requires = "store")]
    store_options: Option<PathBuf>,
}

impl Demo {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        let keep = self.dir.is_some();
        let dir = self
            .dir
            .unwrap_or_else(|| std::env::temp_dir().join(format!("freshet-demo-{}", uuid::Uuid::new_v4().simple())));
        let progress = Arc::new(Progress::new());
        let view = ProgressView::start(progress.clone(), &context.output);
        let cancel = context.cancel.clone();
        let done = match self.guest {
            true => {
                let program = std::env::current_exe().io_context(|| "find this program")?;
                let (kernel_dir, store, store_options) = (self.kernel_dir, self.store, self.store_options);
                let request = GuestDemoRequest { dir: dir.clone(), program, kernel_dir, store, store_options };
                guest_demo(request, progress, cancel).await.map(Shown::Guests)
            }
            false => {
                demo(DemoRequest { dir: dir.clone(), images: self.image }, progress, cancel).await.map(Shown::Bytes)
            }
        };
        drop(view);
        let left = match (&done, keep) {
            (Ok(_), false) => {
                remove(&dir)?;
                format!("{} was removed; --dir DIR keeps everything", dir.display())
            }
            (Err(_), _) if !dir.exists() => "nothing was made".to_owned(),
            _ => format!("everything is in {}; remove it when you do not need it any more", dir.display()),
        };
        match done.map_err(|e| e.while_doing(format!("demo ({left})")))? {
            Shown::Bytes(done) => Report::new(&json(&done, keep), format!("{}{left}", text(&done))),
            Shown::Guests(done) => {
                Report::new(&demo_guest::json(&done, keep), format!("{}{left}", demo_guest::text(&done)))
            }
        }
    }
}

enum Shown {
    Bytes(DemoReport),
    Guests(GuestDemoReport),
}

fn json(done: &DemoReport, kept: bool) -> Value {
    let stages = done
        .stages
        .iter()
        .map(|s| json!({ "stage": s.name, "bytes": s.bytes, "counted": s.what, "seconds": s.seconds }));
    json!({
        "dir": done.dir,
        "kept": kept,
        "disks": done.disks.iter().map(|(path, what)| json!({ "path": path, "what": what })).collect::<Vec<_>>(),
        "bytes": { "logical": done.logical, "live": done.live, "stored": done.stored, "compared": done.compared },
        "stages": stages.collect::<Vec<_>>(),
        "limit": {
            "seconds": done.limit.seconds(), "write_seconds": done.limit.write_seconds,
            "decode_seconds": done.limit.decode_seconds,
        },
        "ratio": done.ratio,
        "engine": done.engine,
    })
}

fn text(done: &DemoReport) -> String {
    let mut out = String::new();
    for (path, what) in &done.disks {
        out += &format!("{}: {what}\n", path.display());
    }
    out += &format!(
        "logical {}, live {}, stored {} (both points)\n\n",
        bytes(done.logical),
        bytes(done.live),
        bytes(done.stored)
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["stage", "seconds", "bytes", "rate", "of"]);
    for s in &done.stages {
        let row = [s.name.to_owned(), format!("{:.2}", s.seconds), bytes(s.bytes), rate(s.bytes, s.seconds)];
        table.add_row(row.into_iter().chain([s.what.to_owned()]));
    }
    for column in table.column_iter_mut().skip(1).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    out += &table.trim_fmt();
    let limit = &done.limit;
    out += &format!(
        "\n\nlimit: {:.2} s, the longer of direct writes of as many bytes ({:.2} s) and zstd with checksum on all cores \
         ({:.2} s)\nrehydrating the new point reached {:.2} of it, with {}\n",
        limit.seconds(),
        limit.write_seconds,
        limit.decode_seconds,
        done.ratio,
        done.engine,
    );
    out
}
