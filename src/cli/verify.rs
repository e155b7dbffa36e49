//! `freshet verify`: whether everything that a point needs is there and whole.

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::context::Context;
use super::progress_view::ProgressView;
use super::report::Report;
use super::store_args::DomainArgs;
use super::units::{bytes, parse_size, rate};
use super::values::parse_point;
use crate::error::Result;
use crate::ids::SegmentNo;
use crate::progress::Progress;
use crate::verify::{BadRange, DEFAULT_MEMORY, VerifyReport, VerifyRequest, verify};

/// Read every live frame of a point, prove the chain, and report damage by VM, disk and byte range
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    domain: DomainArgs,
    /// Point to verify [default: the newest]
    #[arg(long, value_name = "P", value_parser = parse_point)]
    point: Option<SegmentNo>,
    /// Structure only: ownership log, manifests, map pages, indexes; no frame is read
    #[arg(long)]
    quick: bool,
    /// Budget for what is fetched and not yet checked
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_MEMORY)]
    memory: u64,
}

impl Verify {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        let site = self.domain.site.open().await?;
        let request = VerifyRequest {
            point: self.point,
            quick: self.quick,
            memory: self.memory,
            ..VerifyRequest::new(self.domain.domain)
        };
        let progress = Arc::new(Progress::new());
        let view = ProgressView::start(progress.clone(), &context.output);
        let done = verify(&site, request, progress, context.cancel.clone()).await;
        drop(view);
        let done = done?;
        let (ranges, objects) = (done.range_count, done.object_count);
        let why = format!("{ranges} damaged ranges with {}, {objects} damaged objects", bytes(done.bad_bytes));
        Ok(Report::new(&json(&done), text(&done))?.incomplete((!done.is_whole()).then_some(why)))
    }
}

fn json(done: &VerifyReport) -> Value {
    let range = |r: &BadRange| {
        json!({
            "vm": r.vm, "disk": r.disk, "disk_id": r.disk_id.to_string(), "offset": r.offset, "len": r.len,
            "object": r.object, "why": r.why,
        })
    };
    json!({
        "quick": done.quick,
        "tip": done.tip.segment.get(),
        "point": done.point.segment.get(),
        "point_time": done.point_time.to_string(),
        "point_lost": done.point_lost,
        "segments": done.segments,
        "manifests": done.manifests,
        "pages": done.pages,
        "frames": done.frames,
        "bytes": { "live": done.live, "fetched": done.fetched, "bad": done.bad_bytes },
        "damage": {
            "range_count": done.range_count,
            "ranges": done.ranges.iter().map(range).collect::<Vec<_>>(),
            "object_count": done.object_count,
            "objects": done.objects.iter().map(|o| json!({ "object": o.object, "why": o.why })).collect::<Vec<_>>(),
        },
        "notes": done.notes,
        "seconds": done.seconds,
    })
}

fn text(done: &VerifyReport) -> String {
    let mut out = match done.point.segment.get() {
        0 => "no points yet\n".to_owned(),
        _ => format!("point {} of {}\n", done.point.segment, done.point_time),
    };
    out += &format!(
        "chain: {} segments and {} manifests in order; map: {} pages\n",
        done.segments, done.manifests, done.pages
    );
    if !done.quick {
        out += &format!(
            "data: {} frames whole, {} live, in {:.2} s ({})\n",
            done.frames,
            bytes(done.live),
            done.seconds,
            rate(done.live, done.seconds),
        );
    }
    for note in &done.notes {
        out += &format!("note: {note}\n");
    }
    for o in &done.objects {
        out += &format!("damaged: {}: {}\n", o.object, o.why);
    }
    for r in &done.ranges {
        let end = r.offset.saturating_add(r.len);
        out += &format!("damaged: {}/{} bytes {}..{end}: {}: {}\n", r.vm, r.disk, r.offset, r.object, r.why);
    }
    let unlisted = (done.range_count + done.object_count) - (done.ranges.len() + done.objects.len()) as u64;
    if unlisted > 0 {
        out += &format!("and {unlisted} more\n");
    }
    out
}
