//! The service of domains.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Messages, Services, caller, convert, erase, fields};
use crate::control::appliance::Appliance;
use crate::control::catalog::{self, DomainRecord, Origin, StoreRecord};
use crate::control::fault::{Done, Fault};
use crate::control::looks::check_identity;
use crate::control::proto::domain_service_server::DomainService;
use crate::control::proto::{self, *};
use crate::control::watched::Shared;
use crate::error::{Error, ErrorKind};
use crate::failover::{Forget, Request as Wish, World};
use crate::ids::{DiskId, Name};
use crate::store::{Domain as StoreDomain, list_domains};

/// Time between two looks of a watcher.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Longest silence of a watch, in looks: ages change all the time and are told at least so often.
const TELL_EVERY: u32 = 5;
/// Usual and longest wait for a point.
const POINT_WITHIN: Duration = Duration::from_secs(60);
const MOST_WITHIN: Duration = Duration::from_secs(3600);
/// Usual and most domains of a page.
const PAGE: usize = 1000;
const MOST_PAGE: usize = 10_000;
/// Most kept copies of an answer.
const MOST_COPIES: usize = 10_000;

#[tonic::async_trait]
impl DomainService for Services {
    async fn create_domain(
        &self,
        request: Request<CreateDomainRequest>,
    ) -> Result<Response<CreateDomainResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let subject = asked.name.clone();
        let domain =
            self.app.act(&caller, "DomainService/CreateDomain", &subject, async move { create(&app, asked).await });
        Ok(Response::new(CreateDomainResponse { domain: Some(domain.await?) }))
    }

    async fn get_domain(&self, request: Request<GetDomainRequest>) -> Result<Response<GetDomainResponse>, Status> {
        let asked = request.into_inner();
        let name = fields::name("name", &asked.name)?;
        let about = |fault: Fault| fault.about(&asked.name);
        let record = self.app.domain(&name).await.map_err(|e| about(e.into()))?;
        if asked.fresh && record.id.is_some() {
            let looked = self.app.looks.look(&self.app.stores, &record, self.app.now()).await;
            looked.map_err(|e| about(e.into()))?;
        }
        Ok(Response::new(GetDomainResponse { domain: Some(self.app.view(&record).await) }))
    }

    async fn list_domains(
        &self,
        request: Request<ListDomainsRequest>,
    ) -> Result<Response<ListDomainsResponse>, Status> {
        let asked = request.into_inner();
        let most = fields::page_size(asked.page_size, PAGE, MOST_PAGE)?;
        let after = asked.page_token;
        if after.len() > crate::ids::MAX_NAME_LEN {
            return Err(Fault::field("page_token", "is none that this service gave").into());
        }
        let mut records =
            self.app.catalog.call(move |db| DomainRecord::list(db, &after, most + 1)).await.map_err(Fault::from)?;
        let more = records.len() > most;
        records.truncate(most);
        let next = records.last().filter(|_| more).map(|last| last.name.to_string());
        let domains = self.app.views(&records).await;
        Ok(Response::new(ListDomainsResponse { domains, next_page_token: next.unwrap_or_default() }))
    }

    type WatchDomainStream = Messages<WatchDomainResponse>;

    async fn watch_domain(
        &self,
        request: Request<WatchDomainRequest>,
    ) -> Result<Response<Self::WatchDomainStream>, Status> {
        let name = fields::name("name", &request.into_inner().name)?;
        self.app.domain(&name).await.map_err(Fault::from)?;
        let app = Arc::clone(&self.app);
        let shared = app.watched.join(&name);
        let begin: (_, Option<proto::Domain>, bool) = (app, None, false);
        let messages = futures::stream::unfold(begin, move |(app, last, over)| {
            let (name, shared) = (name.clone(), Arc::clone(&shared));
            async move {
                if over {
                    return None;
                }
                match changed(&app, &name, &shared, last.as_ref()).await {
                    Ok(domain) => {
                        let message = WatchDomainResponse { domain: Some(domain.clone()) };
                        Some((Ok(message), (app, Some(domain), false)))
                    }
                    Err(fault) => Some((Err(fault.about(name.as_str()).into_status()), (app, None, true))),
                }
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn import_domain(
        &self,
        request: Request<ImportDomainRequest>,
    ) -> Result<Response<ImportDomainResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let (subject, by) = (asked.name.clone(), caller.name.clone());
        let domain = self
            .app
            .act(&caller, "DomainService/ImportDomain", &subject, async move { import(&app, &by, asked).await });
        Ok(Response::new(ImportDomainResponse { domain: Some(domain.await?) }))
    }

    async fn import_all_domains(
        &self,
        request: Request<ImportAllDomainsRequest>,
    ) -> Result<Response<ImportAllDomainsResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let subject = asked.store.clone();
        let done = self
            .app
            .act(&caller, "DomainService/ImportAllDomains", &subject, async move { import_all(&app, asked).await });
        Ok(Response::new(done.await?))
    }

    async fn forget_domain(
        &self,
        request: Request<ForgetDomainRequest>,
    ) -> Result<Response<ForgetDomainResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let (subject, by) = (asked.name.clone(), caller.name.clone());
        let forgotten = self.app.act(&caller, "DomainService/ForgetDomain", &subject, async move {
            let name = fields::name("name", &asked.name)?;
            let _turn = app.turns.take(&name, &format!("{by} forgets it")).await?;
            app.domain(&name).await?;
            erase::may_be_forgotten(&app, &name).await?;
            if asked.delete_disks {
                if asked.confirm != asked.name {
                    return Err(Fault::field("confirm", "must be the domain's name, whose disks here are deleted"));
                }
                let wish = Wish::Forget(Forget { domain: name, delete_disks: true, accept_divergence: false });
                let task = app.engine.submit(wish, &by).await?;
                return Ok(Some(convert::task(&*app.engine.task(task)?)));
            }
            // What follows it ends first: nobody could end it afterwards.
            World::forget(&*app.world, &name, false).await?;
            Ok(None)
        });
        Ok(Response::new(ForgetDomainResponse { task: forgotten.await? }))
    }

    async fn prepare_delete_domain(
        &self,
        request: Request<PrepareDeleteDomainRequest>,
    ) -> Result<Response<PrepareDeleteDomainResponse>, Status> {
        let caller = caller(request.extensions())?;
        let name = fields::name("name", &request.into_inner().name)?;
        let told = erase::prepare(&self.app, &caller.name, &name).await;
        Ok(Response::new(told.map_err(|fault| fault.about(name.as_str()))?))
    }

    type DeleteDomainStream = Messages<DeleteDomainResponse>;

    async fn delete_domain(
        &self,
        request: Request<DeleteDomainRequest>,
    ) -> Result<Response<Self::DeleteDomainStream>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let (give, take) = mpsc::channel(16);
        tokio::spawn(async move {
            let (work, tell, by) = (Arc::clone(&app), give.clone(), caller.name.clone());
            let subject = asked.name.clone();
            let deleted = app.act(&caller, "DomainService/DeleteDomain", &subject, async move {
                // A caller that does not listen misses some of it.
                let tell = move |deleted_objects| {
                    drop(tell.try_send(Ok(DeleteDomainResponse { deleted_objects, done: false })))
                };
                erase::delete(&work, &by, &asked, tell).await
            });
            let last = match deleted.await {
                Ok(deleted_objects) => Ok(DeleteDomainResponse { deleted_objects, done: true }),
                Err(fault) => Err(fault.into_status()),
            };
            // It is done, whether or not somebody hears it.
            let _ = give.send(last).await;
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(take))))
    }

    async fn cut_point(&self, request: Request<CutPointRequest>) -> Result<Response<CutPointResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let subject = asked.domain.clone();
        let point = self.app.act(&caller, "DomainService/CutPoint", &subject, async move {
            let name = fields::name("domain", &asked.domain)?;
            let within = fields::millis("within_ms", asked.within_ms, POINT_WITHIN, MOST_WITHIN)?;
            app.domain(&name).await?;
            let hosted = app.hosting.get(&name);
            let hosted = hosted.ok_or_else(|| Fault::refused(format!("no VM of domain {name} is protected here")))?;
            if !asked.quiesce {
                return Ok(CutPointResponse { point: hosted.cut_point(within).await?, ..Default::default() });
            }
            let cut = app.quiesced_point(&name, within).await?;
            let left_out = cut.left_out.into_iter().map(|(vm, why)| NotFrozen { vm: vm.to_string(), why });
            Ok(CutPointResponse { point: cut.point, quiesced: cut.whole, left_out: left_out.collect() })
        });
        Ok(Response::new(point.await?))
    }

    async fn list_points(&self, request: Request<ListPointsRequest>) -> Result<Response<ListPointsResponse>, Status> {
        let asked = request.into_inner();
        let domain = asked.domain.clone();
        let told = super::points::list(&self.app, asked).await;
        Ok(Response::new(told.map_err(|fault| fault.about(&domain))?))
    }

    async fn list_kept_copies(
        &self,
        request: Request<ListKeptCopiesRequest>,
    ) -> Result<Response<ListKeptCopiesResponse>, Status> {
        let domain = request.into_inner().domain;
        let name = fields::name("domain", &domain)?;
        let about = |e: Error| Fault::from(e).about(&domain);
        self.app.domain(&name).await.map_err(about)?;
        let all = self.app.kept_copies(&name).await.map_err(about)?;
        let more = all.len().saturating_sub(MOST_COPIES) as u64;
        let copies = all.iter().take(MOST_COPIES).map(|(_, copy)| convert::kept_copy(copy)).collect();
        Ok(Response::new(ListKeptCopiesResponse { copies, more }))
    }

    async fn delete_kept_copy(
        &self,
        request: Request<DeleteKeptCopyRequest>,
    ) -> Result<Response<DeleteKeptCopyResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, by) = (Arc::clone(&self.app), request.into_inner(), caller.clone());
        let subject = asked.domain.clone();
        let deleted = self.app.act(&caller, "DomainService/DeleteKeptCopy", &subject, async move {
            let name = fields::name("domain", &asked.domain)?;
            let disk = DiskId::parse(&asked.disk_id);
            let disk = disk.ok_or_else(|| Fault::field("disk_id", "is no identity of a disk, which is a UUID"))?;
            let deleted = app.delete_kept_copy(&by, &name, disk, &asked.confirm).await?;
            Ok(DeleteKeptCopyResponse { deleted: Some(convert::kept_copy(&deleted)) })
        });
        Ok(Response::new(deleted.await?))
    }
}

async fn create(app: &Appliance, asked: CreateDomainRequest) -> Done<proto::Domain> {
    let (name, store) = (fields::name("name", &asked.name)?, fields::name("store", &asked.store)?);
    let _turn = app.turns.take(&name, "it is being made").await?;
    let which = name.clone();
    let known = app.catalog.call(move |db| DomainRecord::find(db, &which)).await?;
    if let Some(known) = known.filter(|known| known.store == store && known.origin == Origin::Protected) {
        return Ok(app.view(&known).await);
    }
    let record = DomainRecord { name: name.clone(), store, id: None, origin: Origin::Protected, created: app.now() };
    let site = app.stores.open(&record.store).await?;
    match StoreDomain::open(&site, &name).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
        Ok(there) => {
            let owner = there.ownership().newest().map(|g| g.author.site.to_string()).unwrap_or_default();
            let why = format!("storage site {} has a domain {name} already, owned by site {owner}", record.store);
            return Err(Fault::refused(format!("{why}; import it, or take another name")));
        }
    }
    let inserted = record.clone();
    app.catalog.call(move |db| StoreRecord::get(db, &inserted.store).and_then(|_| inserted.insert(db))).await?;
    Ok(app.view(&record).await)
}

/// How a domain that this site does not know is to be known: its own as protected, others as imported.
fn adopt(app: &Appliance, store: &Name, found: &StoreDomain) -> DomainRecord {
    let generations = found.ownership().generations();
    let is_home = generations.first().is_some_and(|first| first.author.site == *app.site());
    let owns = found.ownership().newest().is_some_and(|g| g.author.site == *app.site() && g.released.is_none());
    let origin = if is_home && owns { Origin::Protected } else { Origin::Imported };
    DomainRecord { name: found.name().clone(), store: store.clone(), id: Some(found.id()), origin, created: app.now() }
}

async fn import(app: &Arc<Appliance>, by: &str, asked: ImportDomainRequest) -> Done<proto::Domain> {
    let (name, store) = (fields::name("name", &asked.name)?, fields::name("store", &asked.store)?);
    let _turn = app.turns.take(&name, &format!("{by} imports it")).await?;
    let which = name.clone();
    if let Some(known) = app.catalog.call(move |db| DomainRecord::find(db, &which)).await? {
        let (how, store) = (app.known_as(&known), &known.store);
        let why = match known.origin {
            Origin::Protected => format!("domain {name} is this site's own"),
            Origin::Imported => format!("domain {name} was imported before"),
        };
        return Err(Fault::refused(format!(
            "{why}: it is known as {how}, in storage site {store}; nothing was changed"
        )));
    }
    let site = app.stores.open(&store).await?;
    let found = StoreDomain::open(&site, &name).await?;
    let record = adopt(app, &store, &found);
    let inserted = record.clone();
    app.catalog.call(move |db| inserted.insert(db)).await?;
    // What cannot be seen now is told in the view, and looked at again.
    let _ = app.looks.look(&app.stores, &record, app.now()).await;
    Ok(app.view(&record).await)
}

async fn import_all(app: &Arc<Appliance>, asked: ImportAllDomainsRequest) -> Done<ImportAllDomainsResponse> {
    let store = fields::name("store", &asked.store)?;
    let site = app.stores.open(&store).await?;
    let found = list_domains(&site).await?;
    let mut done = ImportAllDomainsResponse::default();
    let mut records = Vec::with_capacity(found.len());
    for (name, opened) in found {
        match opened {
            Ok(domain) => records.push(adopt(app, &store, &domain)),
            Err(e) => done.failed.push(ImportFailure { name: name.to_string(), reason: e.to_string() }),
        }
    }
    let written = app.catalog.call(move |db| {
        let (mut new, mut known, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for record in records {
            match DomainRecord::find(db, &record.name)? {
                None => {
                    record.insert(db)?;
                    new.push(record);
                }
                Some(there) if there.store == record.store && there.id.is_none_or(|id| Some(id) == record.id) => {
                    known.push(there.name.to_string());
                }
                Some(there) => {
                    let reason = format!("another domain of that name is known here, in storage site {}", there.store);
                    failed.push(ImportFailure { name: there.name.to_string(), reason });
                }
            }
        }
        Ok((new, known, failed))
    });
    let (new, known, failed) = written.await?;
    done.known = known;
    done.failed.extend(failed);
    done.imported = new.iter().map(|record| record.name.to_string()).collect();
    let looks = new.iter().map(|record| async {
        // Told in its view.
        let _ = app.looks.look(&app.stores, record, app.now()).await;
    });
    let looks: Vec<_> = looks.collect();
    futures::stream::iter(looks).buffer_unordered(app.settings.looks).collect::<Vec<()>>().await;
    Ok(done)
}

/// Waits until a domain is otherwise than `last`. The first time it is looked at anew, then once for all who watch it.
async fn changed(
    app: &Arc<Appliance>,
    name: &Name,
    shared: &Shared,
    last: Option<&proto::Domain>,
) -> Done<proto::Domain> {
    let mut looks = 0;
    loop {
        if last.is_some() {
            let pause = tokio::time::sleep(WATCH_EVERY);
            tokio::select! { () = pause => {} () = app.closing.cancelled() => {} }
        }
        if app.closing.is_cancelled() {
            return Err(Error::new(ErrorKind::Unreachable, "the appliance stops").into());
        }
        let record = app.domain(name).await?;
        let now = match last {
            Some(_) => shared.view(async { Ok(app.view(&record).await) }).await?,
            None => app.view(&record).await,
        };
        looks += 1;
        match last {
            Some(last) if looks < TELL_EVERY && still(last) == still(&now) => {}
            _ => return Ok(now),
        }
    }
}

/// Without what changes by time alone.
fn still(domain: &proto::Domain) -> proto::Domain {
    let mut domain = domain.clone();
    domain.rpo_ms = None;
    domain.observed = None;
    if let Some(point) = &mut domain.newest_point {
        point.age_ms = 0;
    }
    for vm in &mut domain.vms {
        vm.rpo_ms = None;
    }
    if let Some(follow) = &mut domain.follow {
        let points = [&mut follow.landed, &mut follow.applied];
        points.into_iter().flatten().for_each(|point| point.age_ms = 0);
    }
    domain
}

/// A domain in its store, which must be the one that is known.
pub(super) async fn in_store(app: &Appliance, record: &DomainRecord) -> Done<StoreDomain> {
    let site = app.stores.open(&record.store).await?;
    let found = StoreDomain::open(&site, &record.name).await?;
    check_identity(record.id, &found)?;
    Ok(found)
}

/// Whether VMs of a domain are protected here by the catalog.
pub(super) async fn protects(app: &Appliance, name: &Name) -> Done<bool> {
    let which = name.clone();
    Ok(!app.catalog.call(move |db| catalog::protected(db, &which)).await?.is_empty())
}
