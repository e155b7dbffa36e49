//! Write-intent bitmaps: whose, how they are cut, and which ranges of the disk they call dirty; page by page, so that one
//! torn page is named and the others are read.

use serde_json::json;

use super::report::InspectReport;
use crate::format::{DecodeResult, INTENT_PAGE, IntentHeader};

/// Reports on a whole file.
pub(super) fn intent(bytes: &[u8], report: &mut InspectReport) -> DecodeResult<()> {
    let header = IntentHeader::open(bytes)?;
    let shape = header.shape()?;
    report.show("domain", header.domain);
    report.show("disk", header.disk);
    report.show("file", header.file);
    report.fact("size", header.size);
    report.fact("region_bytes", shape.region_bytes());
    report.fact("regions", shape.regions());
    let mut dirty = Dirty::default();
    for page in 0..shape.pages() {
        let at = (1 + page as usize) * INTENT_PAGE;
        let end = bytes.len().min(at + INTENT_PAGE);
        let opened = header.open_page(page, bytes.get(at..end).unwrap_or_default());
        let regions = shape.page_regions(page);
        if let Err(e) = &opened {
            let place = format!("page {page}, bytes {at} to {}", at + INTENT_PAGE - 1);
            report.problem(place, format!("{e}; all of its {} regions count as set", regions.len()));
        }
        for (n, region) in regions.enumerate() {
            let set = opened.as_ref().map_or(true, |p| p.bits[n / 8] >> (n % 8) & 1 != 0);
            dirty.region(shape.range_of(region), set, report);
        }
    }
    dirty.end_run(report);
    report.fact("set_regions", dirty.regions);
    report.fact("dirty_bytes", dirty.bytes);
    let whole = (1 + shape.pages() as usize) * INTENT_PAGE;
    if bytes.len() > whole {
        report.problem("length", format!("{} bytes after its last page", bytes.len() - whole));
    }
    Ok(())
}

/// Set regions so far, and the run of them that is not listed yet.
#[derive(Default)]
struct Dirty {
    regions: u64,
    bytes: u64,
    run: Option<std::ops::Range<u64>>,
}

impl Dirty {
    fn region(&mut self, range: std::ops::Range<u64>, set: bool, report: &mut InspectReport) {
        if !set {
            return self.end_run(report);
        }
        self.regions += 1;
        self.bytes += range.end - range.start;
        let start = self.run.as_ref().map_or(range.start, |run| run.start);
        self.run = Some(start..range.end);
    }

    fn end_run(&mut self, report: &mut InspectReport) {
        if let Some(run) = self.run.take() {
            report.entry(|| json!({ "dirty": run.start, "len": run.end - run.start }));
        }
    }
}
