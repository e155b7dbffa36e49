//! The end of a run: the last sync, the watermark, and the report.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::VmInfo;
use crate::ids::{SegmentRef, VmId};
use crate::store::PointInfo;

use super::request::{RehydrateReport, RehydratedDisk, UncoveredVm};
use super::session::Session;
use super::{damage, detached};

/// How long the storage site is asked for what only helps.
const POINTS_WITHIN: Duration = Duration::from_secs(5);

impl Session {
    /// VMs whose disks are here and which `point` does not cover: their disks are not of one moment.
    async fn uncovered(&mut self, point: &PointInfo) -> Vec<UncoveredVm> {
        let disks = self.reconciler.disks.all();
        let here = |vm: &&VmInfo| self.catalogue.disks_of(vm.id).any(|d| disks.iter().any(|here| here.id == d.id));
        let vms = self.catalogue.vms.iter().filter(here).filter(|vm| !point.vms.contains(&vm.id));
        let vms: Vec<_> = vms.map(|vm| (vm.name.clone(), vm.id)).collect();
        if vms.is_empty() {
            return Vec::new();
        }
        // A help only, on which the disks do not depend: nobody waits long for a storage site that does not answer.
        let late = || Error::new(ErrorKind::Unreachable, format!("no answer within {POINTS_WITHIN:?}"));
        let asked = tokio::time::timeout(POINTS_WITHIN, self.domain().points()).await;
        let points = match asked.map_err(|_| late()).flatten() {
            Ok(points) => points,
            Err(e) => {
                self.notes.push(format!("when each VM was covered last could not be told: {e}"));
                return vms.into_iter().map(|(name, _)| UncoveredVm { name, newest: None }).collect();
            }
        };
        let newest = |id: VmId| {
            let before = points.all().iter().rev().filter(|p| p.at.segment < point.at.segment);
            before.into_iter().find(|p| p.vms.contains(&id)).map(|p| p.at.segment)
        };
        vms.into_iter().map(|(name, id)| UncoveredVm { name, newest: newest(id) }).collect()
    }

    /// The last sync, the watermark, and the report.
    pub(super) async fn finish(mut self) -> Result<RehydrateReport> {
        let disks = self.reconciler.disks.all();
        let (at, ahead, quarantined) = {
            let mut state = self.tracker().state();
            state.commit()?;
            (state.target(), state.between_points(), state.quarantined().to_vec())
        };
        let point = self.point.clone().filter(|p| p.at == at);
        let point_time = point.as_ref().map(|p| p.time).unwrap_or_default();
        if quarantined.is_empty() && !ahead && at != SegmentRef::default() {
            let stamps = self.reconciler.disks.stamps()?;
            self.store_watermark(at, point_time, stamps)?;
        }
        let uncovered = match &point {
            Some(point) => self.uncovered(point).await,
            None => Vec::new(),
        };
        if ahead {
            self.notes.push(format!("the disks run ahead of point {at}: rehydrate again to reach a point"));
        }
        let snapshot = self.progress.snapshot();
        let info = self.reconciler.engine.info();
        self.notes.extend(info.fallbacks.iter().cloned());
        self.notes.extend(self.reconciler.disks.why_not_direct()?);
        let written = self.tracker().written();
        let first_fetch = self.reconciler.pipeline.first_fetch();
        Ok(RehydrateReport {
            point: at,
            between_points: ahead,
            point_time,
            uncovered,
            fuzzy: point.is_some_and(|p| p.fuzzy),
            logical: disks.iter().map(|d| d.size).sum(),
            planned: snapshot.total,
            written,
            fetched: snapshot.moved,
            kept: snapshot.done.saturating_sub(written),
            landed_segments: self.landed_segments,
            landing: self.caught_up,
            applied_points: self.applied_points,
            seconds: self.started.elapsed().as_secs_f64(),
            plan_seconds: first_fetch.map_or(0.0, |at| (at - self.started).as_secs_f64()),
            damage: damage::name(&disks, quarantined),
            detached: detached::detached(&self.request.datastore, self.domain().name())?,
            engine: format!("{:?}", info.kind),
            notes: std::mem::take(&mut self.notes),
            passed_over: std::mem::take(&mut self.passed_over),
            disks: disks
                .iter()
                .map(|d| RehydratedDisk { label: d.label.clone(), path: d.path.clone(), size: d.size })
                .collect(),
        })
    }
}
