//! Disks: bringing them to a point, letting them follow, protecting them, and ending that.

use std::path::PathBuf;
use std::sync::Arc;

use super::SiteWorld;
use crate::cancel::Cancel;
use crate::control::catalog::{self, DomainRecord, Recovery};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::failover::{FailoverPlan, PointChoice, Reached, RehydrateTo, VmStatus};
use crate::hypervisor::{DiskSpec, NicSpec, VmSpec};
use crate::ids::{Name, SegmentRef};
use crate::progress::Progress;
use crate::protect::{Origin, ProtectRequest, rehydrated_disks};
use crate::rehydrate::{Completion, Following, Mode, RehydrateReport, RehydrateRequest, rehydrate};

impl SiteWorld {
    /// Keeps the plan by which disks come here. Until they are protected by it, no start serves what was protected before:
    /// those are the disks that change.
    async fn keep(&self, domain: &Name, plan: &FailoverPlan, follows: bool) -> Result<()> {
        let (which, recovery) = (domain.clone(), Recovery { plan: plan.clone(), follows });
        let change = move |db: &rusqlite::Connection| {
            if catalog::parked(db, &which)?.is_none() {
                catalog::park(db, &which, SegmentRef::default())?;
            }
            recovery.put(db, &which)
        };
        self.catalog.call(change).await
    }

    pub(super) async fn bring_to(&self, to: &RehydrateTo, progress: Arc<Progress>, cancel: Cancel) -> Result<Reached> {
        let domain = &to.plan.general.domain;
        let record = self.known.record(domain).await?;
        self.end_superseded(domain).await?;
        self.keep(domain, &to.plan, false).await?;
        let site = self.stores.open(&record.store).await?;
        let request = RehydrateRequest {
            target: to.point.into(),
            mode: Mode::AsNeeded,
            vms: to.vms.clone(),
            ..self.known.rehydrate_request(&to.plan).await?
        };
        reached(domain, rehydrate(&site, request, progress, cancel).await?)
    }

    pub(super) async fn begin_following(&self, plan: &FailoverPlan) -> Result<()> {
        let domain = &plan.general.domain;
        let record = self.known.record(domain).await?;
        // What is wrong with it is told now, and not by a run in the background.
        self.end_superseded(domain).await?;
        self.known.rehydrate_request(plan).await?.validate()?;
        self.keep(domain, plan, true).await?;
        self.run_follower(&record, plan.clone());
        Ok(())
    }

    /// Has the disks of a domain follow it, as the catalog says.
    pub(crate) async fn follow_again(&self) -> Result<()> {
        let names = self.catalog.call(Recovery::following).await?;
        for domain in names {
            let record = self.known.record(&domain).await?;
            if let Some(recovery) = self.known.recovery(&domain).await? {
                self.run_follower(&record, recovery.plan);
            }
        }
        Ok(())
    }

    fn run_follower(&self, record: &DomainRecord, plan: FailoverPlan) {
        let (known, store, to) = (self.known.clone(), record.store.clone(), plan.clone());
        // Made anew each time: what diverged, say, is told by a storage site that may be away now.
        let start = move || {
            let (known, store, to) = (known.clone(), store.clone(), to.clone());
            let start = async move {
                let site = known.stores.open(&store).await?;
                Following::start(&site, known.rehydrate_request(&to).await?).await
            };
            Box::pin(start) as futures::future::BoxFuture<'static, Result<Following>>
        };
        self.followers.start(&record.name, plan, Arc::new(start));
    }

    /// Ends a protection whose domain belongs to another site now: its disks are to be rehydrated. One of a domain that is
    /// this site's stays, and is in the way.
    async fn end_superseded(&self, domain: &Name) -> Result<()> {
        let Some(hosted) = self.hosting.get(domain) else { return Ok(()) };
        let (_, view) = self.view(domain).await?;
        if view.ownership().newest().is_some_and(|newest| newest.author.site == self.settings.site) {
            return Ok(());
        }
        let status = hosted.status().await;
        tracing::info!(mode = %status.mode, "its protection is ended: the domain is another site's");
        // However it ended, its disks are let go; what they hold of their own is judged next.
        if let Some(Err(error)) = self.hosting.end(domain).await {
            tracing::warn!("it ended badly: {error}");
        }
        Ok(())
    }

    pub(super) async fn complete_following(
        &self,
        domain: &Name,
        at: SegmentRef,
        progress: Arc<Progress>,
        cancel: Cancel,
    ) -> Result<Reached> {
        let none = || Error::new(ErrorKind::NotFound, format!("no disks of domain {domain} follow it here"));
        let recovery = self.known.recovery(domain).await?.ok_or_else(none)?;
        let completed = self.followers.complete(domain, Completion::Point(at.segment)).await;
        let reached = match completed {
            Some(Ok(report)) if report.point == at && !report.between_points => reached(domain, report)?,
            other => {
                if let Some(Err(error)) = other {
                    tracing::warn!("its follower did not come to segment {}: {error}", at.segment);
                }
                let to = RehydrateTo { plan: recovery.plan, point: PointChoice::Number(at.segment), vms: Vec::new() };
                self.bring_to(&to, progress, cancel).await?
            }
        };
        let which = domain.clone();
        self.catalog.call(move |db| Recovery::stop_following(db, &which)).await?;
        Ok(reached)
    }

    pub(super) async fn end_following(&self, domain: &Name) -> Result<()> {
        let which = domain.clone();
        self.catalog.call(move |db| Recovery::stop_following(db, &which)).await?;
        self.followers.stop(domain).await;
        Ok(())
    }

    /// The request by which the disks of a domain are protected here: those of the catalog.
    pub(crate) async fn protect_request(&self, domain: &Name) -> Result<ProtectRequest> {
        let vms = self.known.protected(domain).await?;
        let (origin, log_size) = match self.known.recovery(domain).await? {
            Some(Recovery { plan, .. }) => {
                let log_size = self.settings.protect_log_size(&plan);
                (Origin::Rehydrated { datastore: plan.failover.datastore }, log_size)
            }
            None => (Origin::Site, self.settings.protect.log_size),
        };
        let which = domain.clone();
        let read = move |db: &rusqlite::Connection| {
            let moving = catalog::Moving::of(db, &which)?.into_iter().filter(catalog::Moving::is_no_moment);
            let astray = catalog::astray(db, &which)?.into_iter().map(|(vm, _)| vm);
            Ok(moving.map(|moving| moving.vm).chain(astray).collect::<Vec<_>>())
        };
        let no_moment = self.catalog.call(read).await?;
        let filling = crate::protect::Filling::default();
        for vm in vms.iter().filter(|vm| no_moment.contains(&vm.name)) {
            vm.disks.iter().for_each(|disk| filling.begin(&vm.name, &disk.name));
        }
        Ok(ProtectRequest { origin, filling, log_size, ..self.settings.protect_request(domain.clone(), vms) })
    }

    pub(super) async fn begin_protecting(
        &self,
        domain: &Name,
        plan: Option<&FailoverPlan>,
        vms: &[Name],
    ) -> Result<()> {
        let record = self.known.record(domain).await?;
        if let Some(hosted) = self.hosting.get(domain) {
            if hosted.is_running().await && hosted.status().await.mode != "fenced" {
                return Ok(());
            }
            // One that lost the domain, or never got it, has nothing to say any more.
            if let Some(ended) = self.hosting.end(domain).await {
                ended?;
            }
        }
        if let Some(plan) = plan {
            self.adopt(&record, plan, vms).await?;
        }
        let which = domain.clone();
        self.catalog.call(move |db| catalog::unpark(db, &which)).await?;
        let request = self.protect_request(domain).await?;
        self.hosting.start(&self.stores, &record.store, request).await
    }

    /// Writes into the catalog which disks are protected from now on: those that the plan rehydrated.
    async fn adopt(&self, record: &DomainRecord, plan: &FailoverPlan, vms: &[Name]) -> Result<()> {
        let site = self.stores.open(&record.store).await?;
        let state = &self.settings.protect.log_store;
        let held = rehydrated_disks(&site, &record.name, &plan.failover.datastore, state).await?;
        let known = self.known.protected(&record.name).await?;
        let mut sources = held.vms;
        sources.retain(|vm| vms.is_empty() || vms.contains(&vm.name));
        if plan.options.in_place {
            // In place the disks stand where they stood before.
            for vm in &mut sources {
                let before = known.iter().find(|known| known.name == vm.name);
                for disk in &mut vm.disks {
                    let place = before.and_then(|vm| vm.disks.iter().find(|known| known.name == disk.name));
                    if let Some(place) = place {
                        disk.path.clone_from(&place.path);
                    }
                }
            }
        }
        let domain = record.name.clone();
        let change = move |db: &rusqlite::Connection| {
            let mut before = Vec::with_capacity(known.len());
            for vm in &known {
                before.push((&vm.name, catalog::before(db, &domain, &vm.name)?));
                catalog::unprotect(db, &domain, &vm.name)?;
            }
            for vm in &sources {
                catalog::protect(db, &domain, vm)?;
                // The definition that came with the disks speaks of another site's; where they were here, they may go back to.
                let here = before.iter().find(|(name, _)| **name == vm.name).and_then(|(_, here)| here.as_ref());
                catalog::set_before(db, &domain, &vm.name, here)?;
            }
            Ok(())
        };
        self.catalog.call(change).await?;
        self.keep(&record.name, plan, false).await
    }

    pub(super) async fn end_protecting(&self, domain: &Name, progress: &Progress) -> Result<SegmentRef> {
        let which = domain.clone();
        let parked = self.catalog.call(move |db| catalog::parked(db, &which)).await?;
        if let Some(at) = parked.filter(|_| self.hosting.get(domain).is_none()) {
            return Ok(at);
        }
        if self.hosting.get(domain).is_none() {
            // A run before this one ended it, and did not come to say that all was shipped.
            self.begin_protecting(domain, None, &[]).await?;
        }
        self.refuse_unfit(domain).await?;
        progress.stage("shipping");
        let ended = self.hosting.end_telling(domain, progress).await;
        let report = ended.unwrap_or_else(|| Err(Error::new(ErrorKind::Unreachable, "its protection is starting")))?;
        let (_, mut view) = self.view(domain).await?;
        let owner = view.ownership().newest().map(|newest| newest.author.site.clone());
        if owner.as_ref() != Some(&self.settings.site) {
            let owner = owner.map(|site| site.to_string()).unwrap_or_default();
            return Err(Error::new(ErrorKind::Fenced, format!("domain {domain} belongs to site {owner}")));
        }
        if !report.all_shipped {
            let why = format!("domain {domain}: {} segments were not shipped before its protection ended", report.left);
            return Err(Error::new(ErrorKind::Unreachable, format!("{why}: it is started, and drained again")));
        }
        let at = view.tip().await?;
        let which = domain.clone();
        self.catalog.call(move |db| catalog::park(db, &which, at)).await?;
        Ok(at)
    }

    /// Refuses to end a protection whose last point would not cover everything.
    async fn refuse_unfit(&self, domain: &Name) -> Result<()> {
        let Some(hosted) = self.hosting.get(domain) else { return Ok(()) };
        let status = hosted.status().await;
        if status.mode == "fenced" {
            return Err(Error::new(ErrorKind::Fenced, format!("domain {domain}: {}", status.problems.join("; "))));
        }
        let behind: Vec<String> = status
            .vms
            .iter()
            .filter(|vm| VmStatus::from_word(&vm.status).is_none_or(VmStatus::is_behind))
            .map(|vm| format!("{} ({})", vm.name, vm.status))
            .collect();
        match behind.is_empty() {
            true => Ok(()),
            false => {
                let why = format!("the last point of domain {domain} would not cover {}", behind.join(", "));
                Err(Error::new(ErrorKind::Unreachable, format!("{why}: waiting until they are synced")))
            }
        }
    }

    /// The VMs of the domain with their disks as they are served here, or would be.
    pub(super) async fn specs(&self, domain: &Name) -> Result<Vec<VmSpec>> {
        let (_, mut view) = self.view(domain).await?;
        let catalogue = self.catalogue(&mut view).await?;
        let socket = crate::nbd::Address::Unix(self.settings.export_socket(domain));
        let nic = |(n, nic): (usize, &crate::format::Nic)| NicSpec {
            name: format!("nic{n}"),
            mac: nic.mac.clone(),
            network: nic.network.clone(),
            model: nic.model.clone(),
            ..NicSpec::default()
        };
        let vm = |vm: &crate::format::VmInfo| VmSpec {
            name: vm.name.clone(),
            domain: domain.clone(),
            cpus: vm.shape.cpus,
            memory_bytes: vm.shape.memory_bytes,
            firmware: vm.shape.firmware.clone(),
            disks: catalogue
                .disks_of(vm.id)
                .map(|disk| DiskSpec {
                    name: disk.name.clone(),
                    uri: socket.uri(&crate::protect::export_name(&vm.name, &disk.name), false),
                    size: disk.size,
                })
                .collect(),
            nics: vm.shape.nics.iter().enumerate().map(nic).collect(),
            placement: Default::default(),
            storage_policy: String::new(),
            definition_kind: vm.definition_kind.clone(),
            definition: vm.definition.clone(),
        };
        Ok(catalogue.vms.iter().map(vm).collect())
    }

    /// Removes the replication log of a rehydration whose disks are protected now: nothing reads it any more.
    pub(super) async fn remove_leftovers(&self, domain: &Name) -> Result<()> {
        let Some(recovery) = self.known.recovery(domain).await?.filter(|recovery| !recovery.follows) else {
            return Ok(());
        };
        let log = crate::log::log_path(&recovery.plan.dr.log_store, domain);
        remove_file(log).await
    }

    pub(super) async fn forget_domain(&self, domain: &Name, delete_disks: bool) -> Result<()> {
        self.followers.stop(domain).await;
        if let Some(ended) = self.hosting.end(domain).await {
            ended?;
        }
        if delete_disks && let Some(recovery) = self.known.recovery(domain).await? {
            let dir = recovery.plan.failover.datastore.join(domain.key());
            remove_file(crate::log::log_path(&recovery.plan.dr.log_store, domain)).await?;
            let removed = tokio::fs::remove_dir_all(&dir).await;
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("delete {}", dir.display()), e));
                }
                _ => {}
            }
        }
        let which = domain.clone();
        self.catalog.call(move |db| DomainRecord::remove(db, &which)).await?;
        self.looks.forget(domain);
        self.lock_views().remove(domain);
        Ok(())
    }
}

async fn remove_file(path: PathBuf) -> Result<()> {
    match tokio::fs::remove_file(&path).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.io_context(|| format!("remove {}", path.display())),
    }
}

/// What a rehydration came to. VMs that the point does not cover are damage: their disks are of no one moment.
fn reached(domain: &Name, report: RehydrateReport) -> Result<Reached> {
    if report.between_points {
        let (point, remedy) = (report.point, "trying again goes on from there, once the storage site answers");
        let why = format!("disks of domain {domain} are past point {point} and equal none; {remedy}");
        return Err(Error::new(ErrorKind::Unreachable, why));
    }
    let ranges = report.damage.iter().map(|d| {
        let end = d.offset + d.len;
        let files = if d.files.is_empty() { String::new() } else { format!(" ({})", d.files.join(", ")) };
        format!("disk {}: bytes {} to {end}: {}{files}", d.label, d.offset, d.why)
    });
    let uncovered = report.uncovered.iter().map(|vm| {
        let newest = vm.newest.map_or("no point does".to_owned(), |n| format!("the newest one that does is {n}"));
        format!(
            "VM {}: point {} does not cover it, and its disks are of no one moment; {newest}",
            vm.name, report.point
        )
    });
    Ok(Reached { at: report.point, damage: ranges.chain(uncovered).collect() })
}
