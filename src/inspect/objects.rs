//! Everything that is read as one piece: map pages, manifests, ownership records, status, hydration maps,
//! watermarks, write-intent bitmaps, protection records.

use bytes::Bytes;
use serde_json::json;

use super::report::InspectReport;
use super::source::Source;
use crate::error::Result;
use crate::format::magic::{self, Magic};
use crate::format::{
    Author, Catalogue, DecodeError, DecodeResult, HydrationMap, MAX_HYDRATION_LEN, MAX_INTENT_LEN, MAX_MANIFEST_LEN,
    MAX_PAGE_LEN, MAX_PROTECTION_LEN, MAX_RECOVERY_SETTINGS_LEN, MAX_WATERMARK_LEN, Manifest, MapPage,
    OWNER_RECORD_LEN, OwnerKind, OwnerRecord, ProtectionRecord, RecoverySettings, STATUS_LEN, Status, Watermark,
};
use crate::store::keys::ObjectKey;

/// Reports on an object of `kind`.
pub(super) async fn object(kind: Magic, from: &Source, report: &mut InspectReport) -> Result<()> {
    let max = match kind {
        magic::MAP_PAGE => MAX_PAGE_LEN,
        magic::MANIFEST => MAX_MANIFEST_LEN,
        magic::OWNER => OWNER_RECORD_LEN as u64,
        magic::STATUS => STATUS_LEN as u64,
        magic::RECOVERY_SETTINGS => MAX_RECOVERY_SETTINGS_LEN,
        magic::HYDRATION => MAX_HYDRATION_LEN,
        magic::WATERMARK => MAX_WATERMARK_LEN,
        magic::INTENT => MAX_INTENT_LEN,
        magic::PROTECTION => MAX_PROTECTION_LEN,
        _ => {
            report.problem("whole", "a part that has no meaning outside its segment, log or bitmap: inspect that");
            return Ok(());
        }
    };
    if from.len() > max {
        report.problem("length", format!("{} bytes, at most {max} are possible", from.len()));
        return Ok(());
    }
    let bytes = from.read(0..from.len()).await?;
    if let Err(e) = facts(kind, &bytes, from.expected(), report) {
        report.problem("whole", e);
    }
    Ok(())
}

fn facts(kind: Magic, bytes: &Bytes, key: Option<ObjectKey>, report: &mut InspectReport) -> DecodeResult<()> {
    let found = match kind {
        magic::MAP_PAGE => map_page(&MapPage::decode_any(bytes)?, report),
        magic::MANIFEST => manifest(&Manifest::decode_any(bytes)?, report),
        magic::OWNER => owner(&OwnerRecord::decode_any(bytes)?, report),
        magic::STATUS => status(&Status::decode(bytes)?, report),
        magic::RECOVERY_SETTINGS => recovery_settings(&RecoverySettings::decode_any(bytes)?, report),
        magic::INTENT => return super::intent::intent(bytes, report),
        magic::HYDRATION => return hydration(&HydrationMap::decode(bytes)?, report),
        magic::PROTECTION => return protection(&ProtectionRecord::decode(bytes)?, report),
        _ => return watermark(&Watermark::decode(bytes)?, report),
    };
    match key {
        Some(key) if key != found => {
            Err(DecodeError::identity(kind.what, format!("{found:?}"), format!("{key:?} by its key")))
        }
        _ => Ok(()),
    }
}

fn map_page(page: &MapPage, report: &mut InspectReport) -> ObjectKey {
    report.show("domain", page.domain);
    report.show("disk", page.disk);
    report.fact("page", page.page);
    report.show("cut_at", page.cut);
    report.fact("extents", page.extents.len());
    report.fact("live_bytes", page.live_bytes());
    for e in &page.extents {
        report.entry(|| {
            json!({
                "offset": e.offset, "len": e.len, "segment": e.frame.segment.to_string(), "at": e.frame.pos,
                "frame_offset": e.offset - e.frame.start, "raw": e.frame.body.raw_len,
                "stored": e.frame.body.stored_len, "digest": e.frame.body.raw_digest.to_string(),
            })
        });
    }
    ObjectKey::MapPage { disk: page.disk, page: page.page, at: page.cut }
}

/// VMs and disks.
pub(super) fn catalogue_facts(catalogue: &Catalogue, report: &mut InspectReport) {
    const SHOWN: usize = 1000;
    report.fact("vm_count", catalogue.vms.len());
    report.fact("disk_count", catalogue.disks.len());
    let vms = catalogue.vms.iter().take(SHOWN).map(|vm| vm.name.to_string());
    report.fact("vms", vms.collect::<Vec<_>>());
    let label = |d: &crate::format::DiskInfo| {
        let vm = catalogue.vm(d.vm).map(|vm| vm.name.to_string());
        json!({ "vm": vm, "name": d.name.to_string(), "id": d.id.to_string(), "size": d.size })
    };
    report.fact("catalogue_disks", catalogue.disks.iter().take(SHOWN).map(label).collect::<Vec<_>>());
}

fn manifest(manifest: &Manifest, report: &mut InspectReport) -> ObjectKey {
    report.show("domain", manifest.domain);
    report.show("cut_at", manifest.cut);
    report.show("previous", manifest.previous);
    report.show("index_digest", manifest.index_digest);
    if let Some(point) = manifest.point() {
        report.show("point_time", point.time);
    }
    report.fact("points", manifest.points.len());
    report.fact("pages", manifest.pages.len());
    report.fact("live_bytes", manifest.live_bytes());
    report.fact("chain_bytes", manifest.chain_bytes);
    catalogue_facts(&manifest.catalogue, report);
    for p in &manifest.pages {
        let disk = manifest.catalogue.disks[p.disk as usize].id;
        report.entry(|| {
            json!({
                "disk": disk.to_string(), "page": p.page, "cut_at": p.cut.to_string(), "extents": p.extents,
                "live_bytes": p.live_bytes, "digest": p.digest.to_string(),
            })
        });
    }
    ObjectKey::Manifest(manifest.cut)
}

fn author_facts(author: &Author, report: &mut InspectReport) {
    report.show("site", &author.site);
    report.show("writer", author.writer);
    report.show("host", &author.process.host_name);
    report.fact("pid", author.process.pid);
}

fn owner(record: &OwnerRecord, report: &mut InspectReport) -> ObjectKey {
    report.show("domain", record.domain);
    report.fact("number", record.n);
    report.fact("record", record.kind.word());
    report.show("at", record.at);
    author_facts(&record.author, report);
    match record.kind {
        OwnerKind::Claim { generation, take_over } => {
            report.show("generation", generation);
            report.fact("take_over", take_over);
        }
        OwnerKind::Base { generation, last, .. } | OwnerKind::Release { generation, last } => {
            report.show("generation", generation);
            report.show("last_segment", last);
        }
        OwnerKind::Request { generation } | OwnerKind::Resume { generation } => report.show("generation", generation),
        OwnerKind::Floor { segment } => report.show("floor", segment),
    }
    ObjectKey::Owner(record.n)
}

fn recovery_settings(settings: &RecoverySettings, report: &mut InspectReport) -> ObjectKey {
    report.show("domain", settings.domain);
    report.fact("number", settings.n);
    report.show("site", &settings.site);
    report.show("at", settings.at);
    report.fact("text", settings.text.as_str());
    ObjectKey::RecoverySettings(settings.n)
}

fn status(status: &Status, report: &mut InspectReport) -> ObjectKey {
    report.show("domain", status.domain);
    report.fact("mode", status.mode.word());
    report.show("generation", status.generation);
    report.show("point", status.point);
    report.show("point_time", status.point_time);
    report.fact("beat", status.beat);
    report.show("at", status.at);
    author_facts(&status.author, report);
    ObjectKey::Status
}

fn hydration(map: &HydrationMap, report: &mut InspectReport) -> DecodeResult<()> {
    report.show("domain", map.domain);
    report.fact("sequence", map.sequence);
    report.show("target", map.target);
    report.show("applied", map.applied);
    report.fact("disks", map.disks.len());
    report.fact("quarantined", map.quarantined.len());
    for d in &map.disks {
        report.entry(|| {
            json!({
                "disk": d.disk.to_string(), "size": d.size, "pristine": d.pristine, "valid_granules": d.valid.len(),
                "touched_granules": d.touched.len(),
            })
        });
    }
    for q in &map.quarantined {
        report.entry(|| json!({ "disk": q.disk.to_string(), "quarantined": q.offset, "len": q.len, "why": q.why }));
    }
    Ok(())
}

fn protection(record: &ProtectionRecord, report: &mut InspectReport) -> DecodeResult<()> {
    report.show("domain", record.domain);
    report.fact("sequence", record.sequence);
    report.show("relied_on", record.relied_on);
    report.show("own_generation", record.own_generation);
    report.fact("clean_end", record.stamps.iter().all(|stamp| stamp.changed != (0, 0)));
    report.fact("vms", record.catalogue.vms.len());
    for disk in &record.catalogue.disks {
        let label = record.catalogue.disk_label(disk.id);
        report.entry(|| json!({ "disk": disk.id.to_string(), "label": label, "len": disk.size }));
    }
    Ok(())
}

fn watermark(mark: &Watermark, report: &mut InspectReport) -> DecodeResult<()> {
    report.show("domain", mark.domain);
    report.fact("sequence", mark.sequence);
    report.show("point", mark.point);
    report.show("point_time", mark.point_time);
    report.fact("disks", mark.stamps.len());
    for s in &mark.stamps {
        report.entry(|| json!({ "disk": s.disk.to_string(), "inode": s.inode, "len": s.len }));
    }
    Ok(())
}
