//! Domains as the API shows them: from the catalog, what runs here, the last look at the store, and, where something of a
//! domain is here, what its ownership log says right now.
//!
//! Invariant: a store that does not answer costs a bounded time, for one domain and for all of a list together, and then
//! what this site knows by itself is shown: a task that runs, disks that follow.

use futures::StreamExt;
use tokio::time::Instant;

use super::appliance::Appliance;
use super::catalog::{DomainRecord, Origin};
use super::damage::{damage_of, tell_damage};
use super::looks::{Last, Look};
use super::proto::{self, DomainMode, ProtectionStatus};
use super::world::Seen;
use crate::failover::{self, FailoverPlan, TaskKind, World};
use crate::ids::{Name, Time};
use crate::progress::Stand;
use crate::protect::ProtectStatus;
use crate::scan::DomainSummary;

/// Longest wait for what is true right now, of one domain or of all of a list.
const FACTS_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
/// Time after which a store that did not answer is told as a problem. A domain of a long list that has less, since others
/// took it, is shown as far as this site knows by itself.
const LATE: std::time::Duration = std::time::Duration::from_millis(4500);
/// Domains of a list that are looked at side by side.
const SIDE_BY_SIDE: usize = 32;

/// As the API writes a time.
pub(crate) fn timestamp(time: Time) -> prost_types::Timestamp {
    let millis = i64::try_from(time.millis()).unwrap_or(i64::MAX);
    // Below a thousand million.
    let nanos = (millis % 1000 * 1_000_000) as i32;
    prost_types::Timestamp { seconds: millis / 1000, nanos }
}

/// The enum for a status in words.
pub(crate) fn status_of(words: &str) -> ProtectionStatus {
    match words {
        "Initializing" => ProtectionStatus::Initializing,
        "Initial Sync" => ProtectionStatus::InitialSync,
        "Recoverable" => ProtectionStatus::Recoverable,
        "Resync" => ProtectionStatus::Resync,
        "Partially Recoverable" => ProtectionStatus::PartiallyRecoverable,
        "Unprotected" => ProtectionStatus::Unprotected,
        _ => ProtectionStatus::Error,
    }
}

/// The words for a status.
pub fn status_words(status: ProtectionStatus) -> &'static str {
    match status {
        ProtectionStatus::Unspecified => "-",
        ProtectionStatus::Initializing => "Initializing",
        ProtectionStatus::InitialSync => "Initial Sync",
        ProtectionStatus::Recoverable => "Recoverable",
        ProtectionStatus::Resync => "Resync",
        ProtectionStatus::Error => "Error",
        ProtectionStatus::Unprotected => "Unprotected",
        ProtectionStatus::PartiallyRecoverable => "Partially Recoverable",
    }
}

/// The words for a mode.
pub fn mode_words(mode: DomainMode) -> &'static str {
    match mode {
        DomainMode::Unspecified => "-",
        DomainMode::Protected => "Protected",
        DomainMode::Imported => "Imported",
        DomainMode::FailoverInProgress => "Failover in Progress",
        DomainMode::ContinuousRehydrationInProgress => "Continuous Rehydration in Progress",
        DomainMode::RunningInFailover => "Running in Failover",
        DomainMode::FailbackInProgress => "Failback in Progress",
        DomainMode::TestFailoverInProgress => "Test Failover in Progress",
        DomainMode::Fenced => "Fenced",
    }
}

/// The API's mode for that of the engine.
fn mode_of(mode: failover::DomainMode) -> DomainMode {
    match mode {
        failover::DomainMode::Protected => DomainMode::Protected,
        failover::DomainMode::Imported => DomainMode::Imported,
        failover::DomainMode::FailoverInProgress => DomainMode::FailoverInProgress,
        failover::DomainMode::ContinuousRehydrationInProgress => DomainMode::ContinuousRehydrationInProgress,
        failover::DomainMode::RunningInFailover => DomainMode::RunningInFailover,
        failover::DomainMode::FailbackInProgress => DomainMode::FailbackInProgress,
        failover::DomainMode::TestFailoverInProgress => DomainMode::TestFailoverInProgress,
        failover::DomainMode::Fenced => DomainMode::Fenced,
    }
}

fn follow_of(follow: &failover::FollowFacts, now: Time) -> proto::Follow {
    let point = |point: Option<failover::PointFacts>| {
        point.map(|point| proto::Point {
            number: point.at.segment.get(),
            time: Some(timestamp(point.time)),
            age_ms: now.millis_since(point.time),
        })
    };
    proto::Follow {
        running: follow.running,
        landed: point(follow.landed),
        applied: point(follow.applied),
        caught_up: follow.caught_up,
        done_bytes: follow.done.0,
        total_bytes: follow.done.1,
        problem: follow.problem.clone().unwrap_or_default(),
        damage: damage_of(&follow.damage),
        log_used_bytes: follow.unapplied,
        log_size_bytes: follow.plan.dr.log_size,
    }
}

/// The same, of what this site knows by itself.
fn follow_seen(plan: &FailoverPlan, seen: &Seen, now: Time) -> proto::Follow {
    let point = |stand: Option<Stand>| {
        stand.map(|stand| proto::Point {
            number: stand.point.get(),
            time: Some(timestamp(stand.time)),
            age_ms: now.millis_since(stand.time),
        })
    };
    proto::Follow {
        running: seen.running,
        landed: point(seen.state.landed),
        applied: point(seen.state.applied),
        caught_up: seen.running && seen.state.applied.is_some(),
        done_bytes: seen.counts.done,
        total_bytes: seen.counts.total,
        problem: seen.problem.clone().unwrap_or_default(),
        damage: damage_of(&seen.state.damage),
        log_used_bytes: seen.state.unapplied,
        log_size_bytes: plan.dr.log_size,
    }
}

/// Of all VMs together: the worst, but where some are recoverable it says so.
pub(super) fn together(vms: &[proto::Vm]) -> ProtectionStatus {
    let each = vms.iter().filter_map(|vm| failover::VmStatus::from_word(status_words(vm.status())));
    status_of(failover::VmStatus::of_domain(&each.collect::<Vec<_>>()).word())
}

impl Appliance {
    /// A domain as it stands.
    pub(crate) async fn view(&self, record: &DomainRecord) -> proto::Domain {
        self.view_by(record, Instant::now() + FACTS_WITHIN).await
    }

    /// The same of many: all of them together take no longer than one may.
    pub(crate) async fn views(&self, records: &[DomainRecord]) -> Vec<proto::Domain> {
        let deadline = Instant::now() + FACTS_WITHIN;
        let views: Vec<_> = records.iter().map(|record| self.view_by(record, deadline)).collect();
        futures::stream::iter(views).buffered(SIDE_BY_SIDE).collect().await
    }

    async fn view_by(&self, record: &DomainRecord, deadline: Instant) -> proto::Domain {
        let last = self.looks.last(&record.name);
        let mut view = proto::Domain {
            name: record.name.to_string(),
            store: record.store.to_string(),
            domain_id: record.id.map(|id| id.to_string()).unwrap_or_default(),
            ..proto::Domain::default()
        };
        match self.hosting.get(&record.name) {
            Some(hosted) => {
                let status = hosted.status().await;
                view.addresses = hosted.addresses();
                self.fill_hosted(&mut view, record, last.seen.as_ref(), &status);
            }
            None => self.fill_looked(&mut view, record, &last),
        }
        // A file system that hangs is told by what needs it.
        if let Ok(Ok(copies)) = tokio::time::timeout_at(deadline, self.kept_copies(&record.name)).await {
            view.kept_copies = Some(u32::try_from(copies.len()).unwrap_or(u32::MAX));
            view.kept_copy_bytes = copies.iter().map(|(_, copy)| copy.held).sum();
        }
        self.fill_facts(&mut view, record, deadline).await;
        self.fill_moves(&mut view, record);
        self.fill_astray(&mut view, record);
        if let Some(follow) = view.follow.as_ref().filter(|follow| !follow.problem.is_empty()) {
            let how = if follow.running { "its disks follow, but" } else { "its disks do not follow now:" };
            view.problems.push(format!("{how} {}", follow.problem));
        }
        if view.follow.is_some()
            && let Some((_, seen)) = self.world.followers().seen(&record.name)
        {
            tell_damage(&mut view, &seen.state.damage);
        }
        view.problems.extend(self.guests.of(&record.name));
        view.problems.extend(self.fresh.problems(&record.name));
        if let Some(why) = self.hypervisor_problem().filter(|_| self.hosting.get(&record.name).is_some()) {
            view.problems.push(format!("no VM can be started here: {why}"));
        }
        view
    }

    /// The clock of the storage site of a domain, by which its ages are told: with the offset that was last seen while the
    /// site is away, and the appliance's own where it was never heard.
    fn store_now(&self, record: &DomainRecord) -> Time {
        self.stores.now(&record.store).unwrap_or_else(|| self.now())
    }

    /// From the moves that are under way. A VM that is not served yet is shown for its move alone.
    fn fill_moves(&self, view: &mut proto::Domain, record: &DomainRecord) {
        for (vm, shown) in self.moves.of(&record.name) {
            let at = view.vms.iter().position(|one| one.name == vm.as_str()).unwrap_or_else(|| {
                let status = ProtectionStatus::Initializing.into();
                view.vms.push(proto::Vm { name: vm.to_string(), status, ..proto::Vm::default() });
                view.vms.len() - 1
            });
            view.vms[at].r#move = Some(shown);
        }
        view.problems.extend(self.moves.troubles(&record.name));
    }

    /// A VM whose guest runs on other disks is not recoverable, whatever points cover it.
    fn fill_astray(&self, view: &mut proto::Domain, record: &DomainRecord) {
        let astray = self.astray.vms(&record.name);
        let mut any = false;
        for vm in view.vms.iter_mut().filter(|vm| astray.iter().any(|name| name.as_str() == vm.name)) {
            vm.set_status(ProtectionStatus::Error);
            any = true;
        }
        let by_vms = [ProtectionStatus::Recoverable, ProtectionStatus::PartiallyRecoverable, ProtectionStatus::Resync];
        if any && by_vms.contains(&view.status()) {
            view.set_status(together(&view.vms));
        }
        view.problems.extend(self.astray.problems(&record.name));
    }

    /// From what the engine would act on, where there is more than a look tells: a task, disks that follow or are here.
    async fn fill_facts(&self, view: &mut proto::Domain, record: &DomainRecord, deadline: Instant) {
        let task = self.engine.running(&record.name);
        if let Some(task) = &task {
            view.task_id = task.id.to_string();
        }
        let recovery = self.world.known().recovery(&record.name).await.ok().flatten();
        let here = recovery.is_some();
        let name = record.name.clone();
        let protects = async { self.catalog.call(move |db| super::catalog::protected(db, &name)).await };
        let idle = self.hosting.get(&record.name).is_none();
        if task.is_none() && !here && !(idle && protects.await.is_ok_and(|vms| !vms.is_empty())) {
            return;
        }
        let began = Instant::now();
        let why = match tokio::time::timeout_at(deadline, self.world.facts(&record.name)).await {
            Ok(Ok(facts)) => {
                view.follow = facts.follow.as_ref().map(|follow| follow_of(follow, facts.now));
                view.set_mode(mode_of(failover::DomainMode::of(&facts, task.map(|task| task.kind))));
                if let (failover::LocalDisks::Diverged { common, bytes }, None) = (facts.disks, &view.diverged) {
                    let common = common.segment.get();
                    view.diverged = Some(proto::Diverged { common, bytes, ..proto::Diverged::default() });
                }
                return;
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => (began.elapsed() >= LATE).then(|| "the storage site does not answer in time".to_owned()),
        };
        if let Some(why) = why.filter(|why| !view.problems.iter().any(|told| told.starts_with(why))) {
            view.problems.push(why);
        }
        let follows = recovery.is_some_and(|recovery| recovery.follows);
        self.fill_known(view, record, task.map(|task| task.kind), follows);
    }

    /// What this site knows by itself while the store does not answer. The rest is as of the last look.
    fn fill_known(&self, view: &mut proto::Domain, record: &DomainRecord, task: Option<TaskKind>, follows: bool) {
        let last = self.looks.last(&record.name);
        let home = last.home().map_or(record.origin == Origin::Protected, |home| home == self.site());
        if let Some(mode) = task.and_then(|kind| failover::DomainMode::during(kind, home)) {
            view.set_mode(mode_of(mode));
        } else if follows {
            view.set_mode(DomainMode::ContinuousRehydrationInProgress);
        }
        if let Some((plan, seen)) = self.world.followers().seen(&record.name).filter(|_| follows) {
            view.follow = Some(follow_seen(&plan, &seen, self.store_now(record)));
        }
    }

    /// From the protection that runs here.
    fn fill_hosted(
        &self,
        view: &mut proto::Domain,
        record: &DomainRecord,
        look: Option<&Look>,
        status: &ProtectStatus,
    ) {
        let home = look.and_then(|look| look.home.as_ref());
        let mode = match status.mode.as_str() {
            "fenced" => DomainMode::Fenced,
            _ if record.origin == Origin::Imported || home.is_some_and(|home| home != self.site()) => {
                DomainMode::RunningInFailover
            }
            _ => DomainMode::Protected,
        };
        view.set_mode(mode);
        view.set_status(status_of(&status.status));
        // Who has it instead is seen by looking.
        let seen = look.map(|look| &look.found.owner);
        view.owner_site = match mode {
            DomainMode::Fenced => seen.filter(|owner| *owner != self.site()).map(Name::to_string).unwrap_or_default(),
            _ => self.site().to_string(),
        };
        view.generation = status.generation.unwrap_or_default();
        if status.shipped > 0 {
            let time = status.point_time.as_deref().and_then(time_of);
            view.newest_point = time.map(|time| proto::Point {
                number: status.shipped,
                time: Some(timestamp(time)),
                age_ms: self.store_now(record).millis_since(time),
            });
        }
        view.rpo_ms = status.rpo_ms;
        view.diverged = status.diverged.as_ref().map(diverged_of);
        let socket = crate::nbd::Address::Unix(self.settings.export_socket(&record.name));
        let served = !view.addresses.is_empty();
        view.vms =
            status.vms.iter().map(|vm| vm_of_status(vm, &|export| served.then(|| socket.uri(export, false)))).collect();
        for vm in &mut view.vms {
            let known = look.and_then(|look| look.found.catalogue.vms.iter().find(|of| of.name.as_str() == vm.name));
            if let Some(known) = known {
                describe(vm, known);
            }
        }
        view.problems.clone_from(&status.problems);
        view.observed = Some(timestamp(self.now()));
        view.capture.clone_from(&status.mode);
        (view.captured, view.shipped) = (status.captured, status.shipped);
        (view.waiting_bytes, view.log_used_bytes, view.log_size_bytes) =
            (status.waiting_bytes, status.log_used, status.log_size);
        if let Some(sync) = &status.sync {
            (view.sync_total_bytes, view.sync_done_bytes, view.sync_eta_s) = (sync.total, sync.done, sync.eta_s);
        }
    }

    /// From looks at the store. While it does not answer, what was seen last is shown, with the time.
    fn fill_looked(&self, view: &mut proto::Domain, record: &DomainRecord, last: &Last) {
        let by_origin = match record.origin {
            Origin::Protected => DomainMode::Protected,
            Origin::Imported => DomainMode::Imported,
        };
        view.set_mode(by_origin);
        match (&last.seen, &last.failed) {
            (Some(look), None) => self.fill_seen(view, record, look),
            (Some(look), Some(failed)) if failed.is_away() => {
                self.fill_seen(view, record, look);
                view.problems.push(format!("{}; what is shown of it was seen at {}", failed.why, look.at));
            }
            (_, Some(failed)) => {
                view.observed = Some(timestamp(failed.at));
                view.set_status(ProtectionStatus::Error);
                view.problems.push(failed.why.clone());
            }
            (None, None) => view.set_status(match record.id {
                // Nothing was ever claimed: there is nothing to be seen.
                None => ProtectionStatus::Unprotected,
                Some(_) => ProtectionStatus::Initializing,
            }),
        }
    }

    fn fill_seen(&self, view: &mut proto::Domain, record: &DomainRecord, look: &Look) {
        let (summary, now) = (&look.found, self.store_now(record));
        let ours = summary.owner == *self.site() && summary.released.is_none();
        let home = look.home.as_ref() == Some(self.site());
        view.set_mode(match (ours, home) {
            (true, true) => DomainMode::Protected,
            (true, false) => DomainMode::RunningInFailover,
            (false, _) => DomainMode::Imported,
        });
        view.observed = Some(timestamp(look.at));
        view.owner_site = summary.owner.to_string();
        view.generation = summary.generation.get();
        view.newest_point = summary.point.as_ref().map(|point| proto::Point {
            number: point.at.segment.get(),
            time: Some(timestamp(point.time)),
            age_ms: now.millis_since(point.time),
        });
        view.vms = vms_of_summary(summary, now);
        view.rpo_ms = worst_rpo(&view.vms);
        view.set_status(together(&view.vms));
        view.problems.clone_from(&summary.warnings);
    }

    /// One VM of a domain as it stands.
    pub(crate) async fn view_vm(&self, record: &DomainRecord, vm: &Name) -> proto::Vm {
        let view = self.view(record).await;
        view.vms.into_iter().find(|one| one.name == vm.as_str()).unwrap_or_default()
    }
}

/// A time as a status has it in words.
fn time_of(text: &str) -> Option<Time> {
    let time = text.parse::<jiff::Timestamp>().ok()?;
    Some(Time::from_millis(u64::try_from(time.as_millisecond()).unwrap_or(0)))
}

fn diverged_of(diverged: &crate::protect::DivergedStatus) -> proto::Diverged {
    let stamp = |text: &Option<String>| text.as_deref().and_then(time_of).map(timestamp);
    let disks = diverged.disks.iter().map(|disk| proto::DivergedDisk {
        disk: disk.disk.clone(),
        path: disk.path.clone(),
        bytes: disk.bytes,
        ranges: disk.ranges.iter().map(|&(offset, length)| proto::ByteRange { offset, length }).collect(),
        more: disk.more,
    });
    proto::Diverged {
        common: 0,
        segments: diverged.segments,
        first: stamp(&diverged.first),
        last: stamp(&diverged.last),
        bytes: Some(diverged.disks.iter().map(|disk| disk.bytes).sum()),
        disks: disks.collect(),
    }
}

fn vm_of_status(vm: &crate::protect::VmStatus, uri: &dyn Fn(&str) -> Option<String>) -> proto::Vm {
    let disks = vm.disks.iter().map(|disk| proto::Disk {
        name: disk.name.clone(),
        size_bytes: disk.size,
        path: disk.path.clone(),
        export_uri: uri(&disk.export).filter(|_| !disk.export.is_empty()).unwrap_or_default(),
        dirty_bytes: disk.dirty,
        unsynced_bytes: disk.unsynced,
        written_bytes: disk.written,
        failed_requests: disk.failed,
    });
    proto::Vm {
        name: vm.name.clone(),
        status: status_of(&vm.status).into(),
        disks: disks.collect(),
        point: vm.point,
        rpo_ms: vm.rpo_ms,
        ..proto::Vm::default()
    }
}

/// What the definition of a VM says that was shipped with its disks.
fn describe(vm: &mut proto::Vm, shipped: &crate::format::VmInfo) {
    (vm.cpus, vm.memory_bytes) = (shipped.shape.cpus, shipped.shape.memory_bytes);
    vm.definition_kind.clone_from(&shipped.definition_kind);
}

/// What would be lost of the protected VM that would lose most; `None` where one of them has no point.
fn worst_rpo(vms: &[proto::Vm]) -> Option<u64> {
    let protected = vms.iter().filter(|vm| vm.status() != ProtectionStatus::Unprotected);
    protected.map(|vm| vm.rpo_ms).collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// The VMs of a domain that was looked at; `now` is the storage site's.
pub(crate) fn vms_of_summary(summary: &DomainSummary, now: Time) -> Vec<proto::Vm> {
    let vms = summary.catalogue.vms.iter().map(|vm| {
        let point = summary.covered_by.get(&vm.id);
        let status = match point {
            Some(_) if summary.covers(vm.id) => ProtectionStatus::Recoverable,
            Some(_) => ProtectionStatus::Resync,
            None => ProtectionStatus::InitialSync,
        };
        let disks = summary.catalogue.disks_of(vm.id).map(|disk| proto::Disk {
            name: disk.name.to_string(),
            size_bytes: disk.size,
            ..proto::Disk::default()
        });
        let mut told = proto::Vm {
            name: vm.name.to_string(),
            status: status.into(),
            disks: disks.collect(),
            point: point.map(|point| point.at.segment.get()),
            rpo_ms: point.map(|point| now.millis_since(point.time)),
            ..proto::Vm::default()
        };
        describe(&mut told, vm);
        told
    });
    vms.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::format::{Catalogue, VmInfo, VmShape};
    use crate::ids::{DomainId, Generation, SegmentNo, SegmentRef, VmId};
    use crate::scan::NewestPoint;
    use crate::store::LastSign;

    #[test]
    fn words_and_times_go_both_ways() {
        for number in 1..=7 {
            let status = ProtectionStatus::try_from(number).unwrap();
            assert_eq!(status_of(status_words(status)), status);
        }
        let stamp = timestamp(Time::from_millis(1_700_000_000_123));
        assert_eq!((stamp.seconds, stamp.nanos), (1_700_000_000, 123_000_000));
    }

    #[test]
    fn a_domain_stands_as_its_vms_do() {
        use ProtectionStatus::{Error, InitialSync, PartiallyRecoverable, Recoverable, Unprotected};
        let of = |list: &[ProtectionStatus]| {
            let vm = |status: &ProtectionStatus| proto::Vm { status: (*status).into(), ..proto::Vm::default() };
            together(&list.iter().map(vm).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), Unprotected);
        assert_eq!(of(&[Recoverable, Recoverable]), Recoverable);
        assert_eq!(of(&[Recoverable, Error]), PartiallyRecoverable);
        assert_eq!(of(&[InitialSync, Error]), Error);
        assert_eq!(of(&[InitialSync]), InitialSync);
        assert_eq!((of(&[Recoverable, Unprotected]), of(&[Unprotected])), (Recoverable, Unprotected));
    }

    fn point(n: u64, time: u64) -> NewestPoint {
        let at = SegmentRef::new(Generation::new(1), SegmentNo::new(n));
        NewestPoint { at, time: Time::from_millis(time), age_ms: 0, fuzzy: false, quiesced: false }
    }

    fn summary(vms: &[&str]) -> DomainSummary {
        let vm = |(n, name): (usize, &&str)| VmInfo {
            id: VmId::from_bytes([u8::try_from(n).unwrap(); 16]),
            name: Name::new(name).unwrap(),
            definition_kind: String::new(),
            definition: String::new(),
            shape: VmShape::default(),
        };
        DomainSummary {
            id: DomainId::from_bytes([9; 16]),
            owner: Name::new("a").unwrap(),
            host: "h".into(),
            generation: Generation::new(1),
            released: None,
            last_sign: LastSign { mode: None, age_ms: 0 },
            catalogue: Catalogue { vms: vms.iter().enumerate().map(vm).collect(), disks: Vec::new() },
            logical: 0,
            live: None,
            stored: 0,
            tip: SegmentRef::default(),
            point: Some(point(9, 9_000)),
            covered_by: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_vm_has_the_newest_point_that_covers_it_and_the_domain_the_rpo_of_the_worst() {
        let mut seen = summary(&["covered", "resynced", "new"]);
        let ids: Vec<VmId> = seen.catalogue.vms.iter().map(|vm| vm.id).collect();
        seen.covered_by = BTreeMap::from([(ids[0], point(9, 9_000)), (ids[1], point(4, 4_000))]);
        let vms = vms_of_summary(&seen, Time::from_millis(10_000));
        let told: Vec<_> = vms.iter().map(|vm| (vm.status(), vm.point, vm.rpo_ms)).collect();
        assert_eq!(
            told,
            [
                (ProtectionStatus::Recoverable, Some(9), Some(1_000)),
                (ProtectionStatus::Resync, Some(4), Some(6_000)),
                (ProtectionStatus::InitialSync, None, None),
            ]
        );
        assert_eq!((worst_rpo(&vms), worst_rpo(&vms[..2]), worst_rpo(&[])), (None, Some(6_000), None));
    }
}
