//! The service of VMs and disks under protection.
//!
//! Order of each act: first the protection, then the catalog. A crash in between leaves a VM protected that the next start
//! does not serve, and asking again puts that right; the other way round a VM that cannot be opened would keep a whole
//! domain from its guests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Services, caller, fields};
use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::control::access::Caller;
use crate::control::appliance::Appliance;
use crate::control::catalog::{self, DomainRecord, Moving};
use crate::control::fault::{Done, Fault};
use crate::control::letting_go::LettingGo;
use crate::control::proto::vm_service_server::VmService;
use crate::control::proto::*;
use crate::control::settings::Role;
use crate::control::taking_in::{TakingIn, Trust};
use crate::error::{Error, ErrorKind};
use crate::hypervisor::{DiskPlace, FoundDisk, FoundVm};
use crate::ids::Name;

#[tonic::async_trait]
impl VmService for Services {
    async fn list_guests(&self, request: Request<ListGuestsRequest>) -> Result<Response<ListGuestsResponse>, Status> {
        Ok(Response::new(super::guests::list(&self.app, &request.into_inner()).await?))
    }

    async fn protect_vm(&self, request: Request<ProtectVmRequest>) -> Result<Response<ProtectVmResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, who) = (Arc::clone(&self.app), request.into_inner(), caller.clone());
        let subject = asked.domain.clone();
        let vm =
            self.app.act(&caller, "VmService/ProtectVm", &subject, async move { protect(&app, &who, &asked).await });
        Ok(Response::new(ProtectVmResponse { vm: Some(vm.await?) }))
    }

    async fn unprotect_vm(
        &self,
        request: Request<UnprotectVmRequest>,
    ) -> Result<Response<UnprotectVmResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, by) = (Arc::clone(&self.app), request.into_inner(), caller.name.clone());
        let subject = asked.domain.clone();
        let done =
            self.app.act(&caller, "VmService/UnprotectVm", &subject, async move { unprotect(&app, &by, &asked).await });
        Ok(Response::new(done.await?))
    }

    async fn add_disk(&self, request: Request<AddDiskRequest>) -> Result<Response<AddDiskResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, who) = (Arc::clone(&self.app), request.into_inner(), caller.clone());
        let subject = asked.domain.clone();
        let vm =
            self.app.act(&caller, "VmService/AddDisk", &subject, async move { add_disk(&app, &who, &asked).await });
        Ok(Response::new(AddDiskResponse { vm: Some(vm.await?) }))
    }

    async fn remove_disk(&self, request: Request<RemoveDiskRequest>) -> Result<Response<RemoveDiskResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, by) = (Arc::clone(&self.app), request.into_inner(), caller.name.clone());
        let subject = asked.domain.clone();
        let vm = self
            .app
            .act(&caller, "VmService/RemoveDisk", &subject, async move { remove_disk(&app, &by, &asked).await });
        Ok(Response::new(RemoveDiskResponse { vm: Some(vm.await?) }))
    }

    async fn open_exports(
        &self,
        request: Request<OpenExportsRequest>,
    ) -> Result<Response<OpenExportsResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, by) = (Arc::clone(&self.app), request.into_inner(), caller.name.clone());
        let subject = asked.domain.clone();
        let opened = self.app.act(&caller, "VmService/OpenExports", &subject, async move {
            let domain = fields::name("domain", &asked.domain)?;
            if asked.confirm != asked.domain {
                return Err(Fault::field("confirm", "must be the name of the domain once more"));
            }
            let _turn = app.turns.take(&domain, &format!("{by} opens its exports")).await?;
            let record = app.domain(&domain).await?;
            Ok(app.hosting.open_unclaimed(&app.stores, &record.store, &domain).await?)
        });
        Ok(Response::new(OpenExportsResponse { addresses: opened.await? }))
    }
}

/// VMs of a domain that are protected here.
async fn known(app: &Appliance, domain: &Name) -> Done<Vec<VmSource>> {
    let which = domain.clone();
    Ok(app.catalog.call(move |db| catalog::protected(db, &which)).await?)
}

fn same_disks(a: &[DiskSource], b: &[DiskSource]) -> bool {
    let same = |x: &DiskSource, y: &DiskSource| x.name == y.name && x.path == y.path;
    a.len() == b.len() && a.iter().all(|x| b.iter().any(|y| same(x, y)))
}

/// Refuses images outside the directories that operators may use.
async fn may_use(app: &Appliance, caller: &Caller, disks: &[DiskSource]) -> Done<()> {
    if caller.role >= Role::Admin {
        return Ok(());
    }
    let allowed = app.settings.protect.image_dirs.clone();
    let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path.clone()).collect();
    let who = caller.name.clone();
    let checked = tokio::task::spawn_blocking(move || paths.iter().try_for_each(|path| inside(&allowed, path, &who)));
    let checked =
        checked.await.map_err(|e| Error::with_source(ErrorKind::Internal, "looking at images panicked", e))?;
    Ok(checked?)
}

/// Links are followed first: where an image is counts, not what it is called.
fn inside(allowed: &[PathBuf], path: &Path, who: &str) -> Result<(), Error> {
    let real = path.canonicalize().map_err(|e| Error::io(format!("disk image {}", path.display()), e))?;
    match allowed.iter().any(|dir| dir.canonicalize().is_ok_and(|dir| real.starts_with(dir))) {
        true => Ok(()),
        false => {
            let why = format!("{who} is operator, and {} is in none of protect.image_dirs", path.display());
            Err(Error::new(ErrorKind::Denied, format!("{why}: an admin may protect it")))
        }
    }
}

async fn protect(app: &Arc<Appliance>, caller: &Caller, asked: &ProtectVmRequest) -> Done<Vm> {
    if asked.disks.is_empty() {
        return protect_found(app, caller, asked).await;
    }
    let (domain, mut vm) = (fields::name("domain", &asked.domain)?, fields::vm(asked)?);
    let _turn = app.turns.take(&domain, &format!("{} protects {}", caller.name, vm.name)).await?;
    app.must_have_no_task(&domain)?;
    let record = app.domain(&domain).await?;
    may_use(app, caller, &vm.disks).await?;
    if let Some(there) = known(app, &domain).await?.into_iter().find(|there| there.name == vm.name) {
        if same_disks(&there.disks, &vm.disks) {
            learn_identity(app, &record).await;
            return Ok(app.view_vm(&record, &vm.name).await);
        }
        let disks = there.disks.iter().map(|disk| format!("{}={}", disk.name, disk.path.display()));
        let why = format!("VM {} is protected with other disks: {}", vm.name, disks.collect::<Vec<_>>().join(", "));
        return Err(Fault::refused(format!("{why}; add or remove disks")));
    }
    if vm.definition.is_none()
        && let Some(found) = TakingIn::new(app, &record, &vm.name).look().await?
    {
        let FoundVm { definition_kind: kind, definition: text, shape, .. } = found;
        vm.definition = Some(VmDefinition { kind, text, shape });
    }
    join(app, &record, vm.clone()).await?;
    learn_identity(app, &record).await;
    Ok(app.view_vm(&record, &vm.name).await)
}

/// The VM is protected by now: that its domain's identity cannot be read back is no error of the call, and is made up for
/// by the next one.
async fn learn_identity(app: &Appliance, record: &DomainRecord) {
    if let Err(error) = app.learn_identity(record).await {
        tracing::warn!(domain = %record.name, "its identity is not noted yet: {error}");
    }
}

/// The hypervisor tells which disks the VM has, and moves them.
async fn protect_found(app: &Arc<Appliance>, caller: &Caller, asked: &ProtectVmRequest) -> Done<Vm> {
    let (domain, vm) = (fields::name("domain", &asked.domain)?, fields::name("vm", &asked.vm)?);
    if asked.definition.is_some() {
        return Err(Fault::field("definition", "goes with disks: without them the hypervisor tells both"));
    }
    let _turn = app.turns.take(&domain, &format!("{} protects {vm}", caller.name)).await?;
    app.must_have_no_task(&domain)?;
    let record = app.domain(&domain).await?;
    let taking = TakingIn::new(app, &record, &vm);
    if let Some(there) = known(app, &domain).await?.into_iter().find(|there| there.name == vm) {
        let (which, one) = (domain.clone(), vm.clone());
        match app.catalog.call(move |db| Moving::get(db, &which, &one)).await? {
            Some(moving) if moving.leaves => taking.stay(&there).await?,
            Some(_) => taking.finish(&there, Trust::Nothing).await?,
            None => taking.bring_home(&there).await?,
        }
        return Ok(app.view_vm(&record, &vm).await);
    }
    let hypervisor = app.world.hypervisor_here();
    if hypervisor.guest_disks().is_none() {
        let why = format!("must be there: {} cannot tell which disks a VM has", hypervisor.describe());
        return Err(Fault::field("disks", why));
    }
    let found = taking.look().await?;
    let missing = || Error::new(ErrorKind::NotFound, format!("{} has no VM {vm}", hypervisor.describe()));
    let found = found.ok_or_else(missing)?;
    for note in &found.notes {
        tracing::warn!(%domain, %vm, "{note}");
        app.note(&caller.name, "stays behind", domain.as_str(), Ok(()), &format!("VM {vm}: {note}")).await;
    }
    let source = |disk: &FoundDisk| match &disk.place {
        DiskPlace::Raw(path) | DiskPlace::Image { path, .. } => {
            Some(DiskSource { name: disk.name.clone(), path: path.clone(), size: None })
        }
        DiskPlace::Export { .. } => None,
    };
    may_use(app, caller, &found.disks.iter().filter_map(source).collect::<Vec<_>>()).await?;
    taking.protect(&found).await?;
    learn_identity(app, &record).await;
    Ok(app.view_vm(&record, &vm).await)
}

/// Has a VM, or further disks of one, join: the protection that runs, or a new one.
async fn join(app: &Arc<Appliance>, record: &DomainRecord, vm: VmSource) -> Done<()> {
    let domain = record.name.clone();
    let vms = std::slice::from_ref(&vm);
    match app.hosting.get(&domain) {
        Some(hosted) => hosted.add(vms).await?,
        None => {
            let request = app.settings.protect_request(domain.clone(), vms.to_vec());
            app.hosting.start(&app.stores, &record.store, request).await?;
        }
    }
    let (which, written) = (domain.clone(), vm.clone());
    let kept = move |db: &rusqlite::Connection| {
        // Served from now on, whatever a recovery that came to nothing left.
        catalog::unpark(db, &which)?;
        catalog::protect(db, &which, &written)
    };
    let written = app.catalog.call(kept).await;
    if let Err(error) = written {
        // What the catalog does not know would be gone after a restart, unseen.
        for disk in &vm.disks {
            if let Some(hosted) = app.hosting.get(&domain)
                && let Err(also) = hosted.remove(&vm.name, &disk.name).await
            {
                tracing::warn!(vm = %vm.name, disk = %disk.name, "it stays protected until the next start: {also}");
            }
        }
        return Err(error.into());
    }
    Ok(())
}

fn missing(domain: &Name, what: &str) -> Fault {
    Error::new(ErrorKind::NotFound, format!("{what} of domain {domain} is not protected here")).into()
}

async fn unprotect(app: &Arc<Appliance>, by: &str, asked: &UnprotectVmRequest) -> Done<UnprotectVmResponse> {
    let (domain, vm) = (fields::name("domain", &asked.domain)?, fields::name("vm", &asked.vm)?);
    let _turn = app.turns.take(&domain, &format!("{by} unprotects {vm}")).await?;
    app.must_have_no_task(&domain)?;
    let record = app.domain(&domain).await?;
    let known = known(app, &domain).await?;
    let Some(found) = known.iter().find(|one| one.name == vm) else {
        return Err(missing(&domain, &format!("VM {vm}")));
    };
    let done = LettingGo::new(app, &record, found).run().await?;
    app.moves.trouble(&domain, &vm, None);
    app.astray.forget(&domain, &vm);
    app.fresh.forget(&domain, &vm);
    Ok(UnprotectVmResponse { all_shipped: done.all_shipped, notes: done.notes })
}

async fn add_disk(app: &Arc<Appliance>, caller: &Caller, asked: &AddDiskRequest) -> Done<Vm> {
    let (domain, vm) = (fields::name("domain", &asked.domain)?, fields::name("vm", &asked.vm)?);
    let disk = asked.disk.clone().ok_or_else(|| Fault::field("disk", "must be there"))?;
    let disk = fields::disks("disk", &[disk])?.remove(0);
    let _turn = app.turns.take(&domain, &format!("{} adds disk {} to {vm}", caller.name, disk.name)).await?;
    app.must_have_no_task(&domain)?;
    let record = app.domain(&domain).await?;
    may_use(app, caller, std::slice::from_ref(&disk)).await?;
    let known = known(app, &domain).await?;
    let there = known.iter().find(|one| one.name == vm).ok_or_else(|| missing(&domain, &format!("VM {vm}")))?;
    if let Some(same) = there.disks.iter().find(|one| one.name == disk.name) {
        return match same.path == disk.path {
            true => Ok(app.view_vm(&record, &vm).await),
            false => Err(Fault::refused(format!("disk {} of VM {vm} is {} already", disk.name, same.path.display()))),
        };
    }
    if app.hosting.get(&domain).is_none() {
        return Err(Fault::refused(format!("domain {domain} is not protected here now")));
    }
    join(app, &record, VmSource { name: vm.clone(), disks: vec![disk], definition: None }).await?;
    Ok(app.view_vm(&record, &vm).await)
}

async fn remove_disk(app: &Arc<Appliance>, by: &str, asked: &RemoveDiskRequest) -> Done<Vm> {
    let (domain, vm) = (fields::name("domain", &asked.domain)?, fields::name("vm", &asked.vm)?);
    let disk = fields::name("disk", &asked.disk)?;
    let _turn = app.turns.take(&domain, &format!("{by} removes disk {disk} from {vm}")).await?;
    app.must_have_no_task(&domain)?;
    let record = app.domain(&domain).await?;
    let known = known(app, &domain).await?;
    let there = known.iter().find(|one| one.name == vm).ok_or_else(|| missing(&domain, &format!("VM {vm}")))?;
    if !there.disks.iter().any(|one| one.name == disk) {
        return Err(missing(&domain, &format!("disk {disk} of VM {vm}")));
    }
    if there.disks.len() == 1 {
        return Err(Fault::refused(format!("disk {disk} is the last one of VM {vm}; unprotect the VM instead")));
    }
    let hosted = app.hosting.get(&domain);
    let hosted = hosted.ok_or_else(|| Fault::refused(format!("domain {domain} is not protected here now")))?;
    match hosted.remove(&vm, &disk).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        other => other?,
    }
    let (which, owner) = (domain.clone(), vm.clone());
    app.catalog.call(move |db| catalog::unprotect_disk(db, &which, &owner, &disk)).await?;
    Ok(app.view_vm(&record, &vm).await)
}
