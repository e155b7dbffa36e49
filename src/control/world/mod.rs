//! This site as the engine of failovers sees it: storage site, disks, protections and guests, for real.
//!
//! | file | what it owns |
//! |---|---|
//! | `look`, `survey` | what is so: a domain, and what there is for a plan |
//! | `data` | bringing disks to a point, following, protecting, draining |
//! | `asking` | what two sites tell each other about handing a domain over |
//! | `owner` | the ownership log: claiming, releasing, taking back |
//! | `known` | what the catalog knows of disks here |
//! | `follower` | runs that follow domains |
//!
//! Owns nothing that a step did: that stands in the storage site, on the disks, in the catalog, or runs in `hosting` and
//! `follower`. Invariant: every call looks at what is so before it acts, and may be made again.

mod asking;
mod data;
mod follower;
mod known;
mod look;
mod owner;
mod survey;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::catalog::{Catalog, DomainRecord};
use super::hosting::Hosting;
use super::looks::{Looks, check_identity};
use super::settings::Settings;
use super::stores::OpenStores;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::failover::{
    self, Claim, DomainFacts, FailoverPlan, HandOverRequest, Reached, RehydrateTo, RemoteSettings, Resumed, ScriptEnd,
    ScriptRun, Survey, Underway, World,
};
use crate::hypervisor::{Hypervisor, VmSpec};
use crate::ids::{Name, SegmentRef};
use crate::progress::Progress;
use crate::store::{Asked, Domain};

pub(crate) use follower::{Followers, Seen};
use known::Known;

/// See the module.
pub(crate) struct SiteWorld {
    pub(super) known: Known,
    pub(super) settings: Settings,
    pub(super) catalog: Catalog,
    pub(super) stores: Arc<OpenStores>,
    pub(super) hosting: Arc<Hosting>,
    pub(super) looks: Arc<Looks>,
    pub(super) followers: Arc<Followers>,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    /// Views of domains that were opened before: a look costs one request then.
    views: Mutex<HashMap<Name, Domain>>,
    /// Requests of this site that were turned down, and why, where that was told.
    reasons: Mutex<HashMap<Name, (HandOverRequest, Option<String>)>>,
}

impl SiteWorld {
    pub(crate) fn new(
        settings: Settings,
        catalog: Catalog,
        stores: Arc<OpenStores>,
        hosting: Arc<Hosting>,
        looks: Arc<Looks>,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> SiteWorld {
        let (followers, views, reasons) = (Arc::default(), Mutex::default(), Mutex::default());
        let known = Known { settings: settings.clone(), catalog: catalog.clone(), stores: Arc::clone(&stores) };
        SiteWorld { known, settings, catalog, stores, hosting, looks, followers, hypervisor, views, reasons }
    }

    /// What runs guests here.
    pub(crate) fn hypervisor_here(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.hypervisor)
    }

    /// What the catalog knows of disks here.
    pub(crate) fn known(&self) -> &Known {
        &self.known
    }

    /// Runs that follow domains.
    pub(crate) fn followers(&self) -> &Arc<Followers> {
        &self.followers
    }

    /// The domain as its ownership log has it now.
    async fn view(&self, domain: &Name) -> Result<(DomainRecord, Domain)> {
        let record = self.known.record(domain).await?;
        let site = self.stores.open(&record.store).await?;
        let kept = self.lock_views().get(domain).cloned();
        let kept = kept.filter(|view| view.site().url() == site.url() && record.id.is_none_or(|id| id == view.id()));
        let view = match kept {
            Some(mut view) => {
                view.refresh().await?;
                view
            }
            None => Domain::open(&site, domain).await?,
        };
        check_identity(record.id, &view)?;
        self.lock_views().insert(domain.clone(), view.clone());
        Ok((record, view))
    }

    fn lock_reasons(&self) -> std::sync::MutexGuard<'_, HashMap<Name, (HandOverRequest, Option<String>)>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_views(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Domain>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl World for SiteWorld {
    fn site(&self) -> Name {
        self.settings.site.clone()
    }

    fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.hypervisor)
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn facts(&self, domain: &Name) -> Result<DomainFacts> {
        self.look(domain).await
    }

    async fn survey(&self, plan: &FailoverPlan) -> Result<Survey> {
        Ok(self.survey_for(plan).await)
    }

    async fn publish_remote_settings(&self, domain: &Name, settings: Option<&RemoteSettings>) -> Result<()> {
        self.leave_settings(domain, settings).await
    }

    async fn remote_settings(&self, domain: &Name, from: &Name) -> Result<Option<RemoteSettings>> {
        self.settings_left_by(domain, from).await
    }

    async fn tell_underway(&self, domain: &Name, underway: &Underway) {
        if let Err(error) = self.leave_underway(domain, underway).await {
            tracing::warn!(%domain, "who waits for it is not told: {error}");
        }
    }

    async fn request(&self, domain: &Name) -> Result<()> {
        let (_, mut view) = self.view(domain).await?;
        view.request_hand_over(&self.settings.site).await.map(drop)
    }

    async fn withdraw_request(&self, domain: &Name) -> Result<()> {
        let (_, mut view) = self.view(domain).await?;
        view.withdraw_request(&self.settings.site).await.map(drop)
    }

    async fn refuse_request(&self, domain: &Name, request: &HandOverRequest, why: &str) -> Result<()> {
        let asked = Asked { site: request.site.clone(), at: request.at };
        self.turn_down(domain, &asked, why).await.map(drop)
    }

    async fn claim(&self, claim: &Claim) -> Result<()> {
        self.claim_domain(claim).await
    }

    async fn rehydrate(&self, to: &RehydrateTo, progress: Arc<Progress>, cancel: Cancel) -> Result<Reached> {
        self.bring_to(to, progress, cancel).await
    }

    async fn follow(&self, plan: &FailoverPlan) -> Result<()> {
        self.begin_following(plan).await
    }

    async fn finish_following(
        &self,
        domain: &Name,
        at: SegmentRef,
        progress: Arc<Progress>,
        cancel: Cancel,
    ) -> Result<Reached> {
        self.complete_following(domain, at, progress, cancel).await
    }

    async fn unfollow(&self, domain: &Name) -> Result<()> {
        self.end_following(domain).await
    }

    async fn protect(&self, domain: &Name, plan: Option<&FailoverPlan>, vms: &[Name]) -> Result<()> {
        self.begin_protecting(domain, plan, vms).await
    }

    async fn drain(&self, domain: &Name, progress: Arc<Progress>) -> Result<SegmentRef> {
        self.end_protecting(domain, &progress).await
    }

    async fn release(&self, domain: &Name, at: SegmentRef) -> Result<()> {
        self.release_domain(domain, at).await
    }

    async fn resume(&self, domain: &Name) -> Result<Resumed> {
        self.take_back(domain).await
    }

    async fn guests(&self, domain: &Name) -> Result<Vec<VmSpec>> {
        self.specs(domain).await
    }

    async fn run_script(&self, run: &ScriptRun) -> Result<ScriptEnd> {
        failover::run_script(run).await
    }

    async fn port_is_open(&self, host: &str, port: u16) -> bool {
        failover::port_is_open(host, port).await
    }

    async fn clean_up(&self, domain: &Name) -> Result<()> {
        self.remove_leftovers(domain).await?;
        // Guests run: this must not keep the task from its end. Whoever asks next clears them away first.
        if let Err(error) = self.publish_remote_settings(domain, None).await {
            tracing::warn!("settings for the other site are left in the storage site: {error}");
        }
        Ok(())
    }

    async fn forget(&self, domain: &Name, delete_disks: bool) -> Result<()> {
        self.forget_domain(domain, delete_disks).await
    }
}
