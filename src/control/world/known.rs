//! What the catalog knows of a domain's disks at this site, and the request by which they are rehydrated.
//!
//! Writes nothing. Cheap to clone: a run that follows a domain keeps one, and makes its request anew at each start.

use std::sync::Arc;

use crate::capture::VmSource;
use crate::control::catalog::{self, Catalog, DomainRecord, Recovery};
use crate::control::settings::Settings;
use crate::control::stores::OpenStores;
use crate::error::Result;
use crate::failover::FailoverPlan;
use crate::ids::Name;
use crate::rehydrate::{Placement, RehydrateRequest, divergence};

/// See the module.
#[derive(Clone)]
pub(crate) struct Known {
    pub(super) settings: Settings,
    pub(super) catalog: Catalog,
    pub(super) stores: Arc<OpenStores>,
}

impl Known {
    /// The record of a domain.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) async fn record(&self, domain: &Name) -> Result<DomainRecord> {
        let which = domain.clone();
        self.catalog.call(move |db| DomainRecord::get(db, &which)).await
    }

    /// What this site protects, or did.
    pub(crate) async fn protected(&self, domain: &Name) -> Result<Vec<VmSource>> {
        let which = domain.clone();
        self.catalog.call(move |db| catalog::protected(db, &which)).await
    }

    pub(crate) async fn recovery(&self, domain: &Name) -> Result<Option<Recovery>> {
        let which = domain.clone();
        self.catalog.call(move |db| Recovery::find(db, &which)).await
    }

    /// The request by which the plan's disks are rehydrated.
    pub(crate) async fn rehydrate_request(&self, plan: &FailoverPlan) -> Result<RehydrateRequest> {
        let domain = plan.general.domain.clone();
        let mut request =
            RehydrateRequest::new(domain.clone(), plan.failover.datastore.clone(), plan.dr.log_store.clone());
        (request.log_size, request.memory) = (plan.dr.log_size, plan.dr.memory);
        request.engine = self.settings.protect.engine;
        let state = self.settings.protect.log_store.clone();
        let was_protected = state.join(domain.key()).is_dir();
        if plan.options.in_place {
            self.place(&mut request).await?;
        }
        if plan.options.in_place && was_protected {
            request.protected = Some(state);
            if plan.options.accept_divergence {
                let record = self.record(&domain).await?;
                let site = self.stores.open(&record.store).await?;
                request.discard = divergence(&site, &request).await?.map(|found| found.name());
            }
        }
        Ok(request)
    }

    /// The disks stand where this site protects them, or did.
    pub(crate) async fn place(&self, request: &mut RehydrateRequest) -> Result<()> {
        // Those that stand in the datastore need no place of their own.
        let root = request.datastore.join(request.domain.key());
        for vm in self.protected(&request.domain).await? {
            let name = vm.name;
            let elsewhere = vm.disks.into_iter().filter(|disk| !disk.path.starts_with(&root));
            request.placements.extend(elsewhere.map(|disk| Placement {
                vm: name.clone(),
                disk: disk.name,
                path: disk.path,
            }));
        }
        Ok(())
    }
}
