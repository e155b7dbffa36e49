//! The service of storage sites.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use tonic::{Request, Response, Status};

use super::{Messages, Services, caller, fields};
use crate::control::appliance::Appliance;
use crate::control::catalog::{DomainRecord, StoreRecord};
use crate::control::fault::{Done, Fault};
use crate::control::proto::store_service_server::StoreService;
use crate::control::proto::{
    AddStoreRequest, AddStoreResponse, ListStoresRequest, ListStoresResponse, Point, RemoveStoreRequest,
    RemoveStoreResponse, ScanStoreRequest, ScanStoreResponse, Store,
};
use crate::control::stores::open_at;
use crate::control::view::{mode_words, timestamp, vms_of_summary};
use crate::error::{Error, ErrorKind};
use crate::ids::{Name, Time};
use crate::scan::{Scanned, scan};
use crate::store::probe;

#[tonic::async_trait]
impl StoreService for Services {
    async fn add_store(&self, request: Request<AddStoreRequest>) -> Result<Response<AddStoreResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let subject = asked.name.clone();
        let store = self.app.act(&caller, "StoreService/AddStore", &subject, async move { add(&app, asked).await });
        Ok(Response::new(AddStoreResponse { store: Some(store.await?) }))
    }

    async fn list_stores(&self, _: Request<ListStoresRequest>) -> Result<Response<ListStoresResponse>, Status> {
        let stores = self.app.catalog.call(|db| {
            let records = StoreRecord::list(db)?.into_iter();
            records.map(|record| Ok(shown(&record, DomainRecord::count(db, Some(&record.name))?))).collect()
        });
        Ok(Response::new(ListStoresResponse { stores: stores.await.map_err(Fault::from)? }))
    }

    async fn remove_store(
        &self,
        request: Request<RemoveStoreRequest>,
    ) -> Result<Response<RemoveStoreResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked) = (Arc::clone(&self.app), request.into_inner());
        let subject = asked.name.clone();
        let removed = self.app.act(&caller, "StoreService/RemoveStore", &subject, async move {
            let name = fields::name("name", &asked.name)?;
            let which = name.clone();
            app.catalog.call(move |db| StoreRecord::remove(db, &which)).await?;
            app.stores.close(&name);
            Ok(())
        });
        removed.await?;
        Ok(Response::new(RemoveStoreResponse {}))
    }

    type ScanStoreStream = Messages<ScanStoreResponse>;

    async fn scan_store(&self, request: Request<ScanStoreRequest>) -> Result<Response<Self::ScanStoreStream>, Status> {
        let name = fields::name("name", &request.into_inner().name)?;
        let found = scan_store(&self.app, &name).await?;
        let closing = self.app.closing.clone();
        let messages = futures::stream::iter(found).map(Ok).take_until(async move { closing.cancelled().await });
        Ok(Response::new(Box::pin(messages)))
    }
}

async fn add(app: &Appliance, asked: AddStoreRequest) -> Done<Store> {
    let name = fields::name("name", &asked.name)?;
    let options_file = match asked.options_file.as_str() {
        "" => None,
        text => Some(fields::path("options_file", text)?),
    };
    let site = open_at(&asked.url, options_file.as_deref()).await;
    let site = site.map_err(|e| match e.kind() {
        ErrorKind::Invalid => Fault::field("url", e),
        _ => e.into(),
    })?;
    // As the site writes it, so that one store is not known twice.
    let url = site.url().to_owned();
    let check = {
        let (name, url) = (name.clone(), url.clone());
        move |db: &rusqlite::Connection| {
            if let Some(there) = StoreRecord::find(db, &name)?.filter(|there| there.url != url) {
                let why = format!("storage site {name} is {} already", there.url);
                return Err(Error::new(ErrorKind::Refused, format!("{why}; remove it first, or take another name")));
            }
            if let Some(there) = StoreRecord::at(db, &url)?.filter(|there| there.name != name) {
                return Err(Error::new(ErrorKind::Refused, format!("{url} is storage site {} already", there.name)));
            }
            Ok(())
        }
    };
    app.catalog.call(check.clone()).await?;
    let verdict = probe(&site).await?;
    verdict.require_ownership()?;
    let now = app.now();
    let record =
        StoreRecord { name: name.clone(), url, options_file, added: now, probed: now, verdict: verdict.because };
    let stored = app.catalog.call(move |db| {
        check(db)?;
        record.put(db)?;
        Ok((StoreRecord::get(db, &record.name)?, DomainRecord::count(db, Some(&record.name))?))
    });
    let (record, domains) = stored.await?;
    app.stores.close(&name);
    Ok(shown(&record, domains))
}

fn shown(record: &StoreRecord, domains: u32) -> Store {
    Store {
        name: record.name.to_string(),
        url: record.url.clone(),
        options_file: record.options_file.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        added: Some(timestamp(record.added)),
        probed: Some(timestamp(record.probed)),
        verdict: record.verdict.clone(),
        domains,
    }
}

async fn scan_store(app: &Appliance, name: &Name) -> Done<Vec<ScanStoreResponse>> {
    let site = app.stores.open(name).await?;
    let found = scan(&site, &app.closing).await?;
    let known = app.catalog.call(|db| DomainRecord::list(db, "", usize::MAX)).await?.into_iter();
    let known: HashMap<Name, DomainRecord> =
        known.filter(|record| record.store == *name).map(|record| (record.name.clone(), record)).collect();
    let mut out = Vec::with_capacity(found.len());
    for scanned in found {
        let known = match known.get(&scanned.name) {
            Some(record) => mode_words(app.view(record).await.mode()).to_owned(),
            None => String::new(),
        };
        out.push(one(&scanned, known, site.now()));
    }
    Ok(out)
}

/// A domain as it was scanned; `now` is the storage site's.
fn one(scanned: &Scanned, known_as: String, now: Time) -> ScanStoreResponse {
    let domain = scanned.name.to_string();
    let summary = match &scanned.summary {
        Ok(summary) => summary,
        Err(e) => return ScanStoreResponse { domain, error: e.to_string(), known_as, ..ScanStoreResponse::default() },
    };
    ScanStoreResponse {
        domain,
        domain_id: summary.id.to_string(),
        error: String::new(),
        owner_site: summary.owner.to_string(),
        generation: summary.generation.get(),
        released: summary.released.is_some(),
        writer_alive: summary.last_sign.is_recent(),
        vms: vms_of_summary(summary, now),
        newest_point: summary.point.as_ref().map(|point| Point {
            number: point.at.segment.get(),
            time: Some(timestamp(point.time)),
            age_ms: point.age_ms,
        }),
        logical_bytes: summary.logical,
        stored_bytes: summary.stored,
        warnings: summary.warnings.clone(),
        known_as,
    }
}
