//! The service that tells who answers.

use tonic::{Request, Response, Status};

use super::{Services, caller};
use crate::control::catalog::{DomainRecord, StoreRecord};
use crate::control::fault::Fault;
use crate::control::proto::site_service_server::SiteService;
use crate::control::proto::{GetSiteRequest, GetSiteResponse};
use crate::control::view::timestamp;

#[tonic::async_trait]
impl SiteService for Services {
    async fn get_site(&self, request: Request<GetSiteRequest>) -> Result<Response<GetSiteResponse>, Status> {
        let caller = caller(request.extensions())?;
        let app = &self.app;
        let counts = app.catalog.call(|db| Ok((StoreRecord::list(db)?.len(), DomainRecord::count(db, None)?)));
        let (stores, domains) = counts.await.map_err(Fault::from)?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(GetSiteResponse {
            site: app.site().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Some(timestamp(app.started)),
            catalog_id: app.catalog.id().to_owned(),
            catalog_version: app.catalog.version(),
            stores: small(stores),
            domains,
            protections: small(app.hosting.all().len()),
            caller: caller.name,
            role: caller.role.word().to_owned(),
            hypervisor: app.world.hypervisor_here().describe(),
            hypervisor_problem: app.hypervisor_problem().unwrap_or_default(),
        }))
    }
}
