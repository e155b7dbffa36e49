//! Deleting a domain: what it would destroy, told and confirmed first.

use std::sync::Arc;

use super::domains::{in_store, protects};
use super::fields;
use crate::control::appliance::Appliance;
use crate::control::catalog::DomainRecord;
use crate::control::fault::{Done, Fault};
use crate::control::proto::{DeleteDomainRequest, Point, PrepareDeleteDomainResponse};
use crate::control::told::Told;
use crate::control::view::timestamp;
use crate::error::{Error, ErrorKind};
use crate::failover::World;
use crate::ids::{Name, SegmentRef, Time};
use crate::scan::{DomainSummary, summarise};
use crate::store::{DomainWriter, Inventory, StartOptions, erase};

/// Refuses while something of a domain runs here.
///
/// # Errors
/// `Refused`, saying what.
pub(super) async fn must_be_idle(app: &Appliance, name: &Name) -> Done<()> {
    app.must_have_no_task(name)?;
    if app.hosting.get(name).is_some() || protects(app, name).await? {
        return Err(Fault::refused(format!("VMs of domain {name} are protected here; unprotect them first")));
    }
    Ok(())
}

/// Fails while a task works on the domain, or its VMs are protected here. Those that were until another site took it may be
/// forgotten: nothing captures them.
pub(super) async fn may_be_forgotten(app: &Appliance, name: &Name) -> Done<()> {
    match must_be_idle(app, name).await {
        Ok(()) => Ok(()),
        Err(fault) if app.must_have_no_task(name).is_err() || app.hosting.get(name).is_some() => Err(fault),
        Err(fault) => match app.world.facts(name).await {
            Ok(facts) if facts.owner.site != facts.site => Ok(()),
            // Its own, or that cannot be told now.
            _ => Err(fault),
        },
    }
}

/// What a domain is, for whom it is deleted and for the token.
struct Found {
    summary: DomainSummary,
    inventory: Inventory,
}

impl Found {
    /// What the token is drawn for: a domain that went on is another one.
    fn told(&self) -> Told {
        let SegmentRef { generation, segment } = self.summary.tip;
        Told::exactly(format!("{} {} {}/{}", self.summary.id, self.summary.generation, generation.get(), segment.get()))
    }
}

fn told(found: Option<&Found>) -> Told {
    found.map_or_else(|| Told::exactly(""), Found::told)
}

fn act(name: &Name) -> String {
    format!("delete domain {name}")
}

/// `None` where the domain was never claimed, so that nothing of it is in its store.
async fn find(app: &Appliance, record: &DomainRecord) -> Done<Option<Found>> {
    must_be_idle(app, &record.name).await?;
    let found = match in_store(app, record).await {
        Ok(found) => found,
        Err(fault) if record.id.is_none() && fault.shown().0 == ErrorKind::NotFound.word() => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let summary = summarise(found.clone()).await?;
    if summary.owner != *app.site() {
        let why = format!("domain {} is owned by site {}", record.name, summary.owner);
        return Err(Fault::refused(format!("{why}: only its owner deletes it; forget it here instead")));
    }
    Ok(Some(Found { inventory: found.inventory().await?, summary }))
}

/// See the interface.
pub(super) async fn prepare(app: &Appliance, caller: &str, name: &Name) -> Done<PrepareDeleteDomainResponse> {
    let record = app.domain(name).await?;
    let found = find(app, &record).await?;
    let token = app.tokens.draw(caller, &act(name), told(found.as_ref()));
    let life = u64::try_from(app.tokens.life().as_millis()).unwrap_or(u64::MAX);
    let expires = Time::from_millis(app.now().millis().saturating_add(life));
    let mut told = PrepareDeleteDomainResponse {
        confirmation_token: token,
        expires: Some(timestamp(expires)),
        summary: format!("domain {name} has nothing in storage site {}; it would be forgotten", record.store),
        ..PrepareDeleteDomainResponse::default()
    };
    if let Some(Found { summary, inventory }) = found {
        let point = summary.point.as_ref();
        told.vms = summary.catalogue.vms.iter().map(|vm| vm.name.to_string()).collect();
        told.newest_point = point.map(|point| Point {
            number: point.at.segment.get(),
            time: Some(timestamp(point.time)),
            age_ms: point.age_ms,
        });
        (told.objects, told.bytes) = (inventory.objects, inventory.bytes);
        let newest = point.map_or("none".to_owned(), |point| format!("{} of {}", point.at.segment.get(), point.time));
        told.summary = format!(
            "deleting domain {name} destroys {} objects ({} bytes) in storage site {}: {} VMs ({}) could not be recovered \
             any more at any point, the newest is {newest}; disks and images at the sites stay",
            inventory.objects,
            inventory.bytes,
            record.store,
            told.vms.len(),
            told.vms.join(", ")
        );
    }
    Ok(told)
}

/// See the interface; answers with the number of objects that are gone.
pub(super) async fn delete(
    app: &Arc<Appliance>,
    caller: &str,
    asked: &DeleteDomainRequest,
    tell: impl FnMut(u64) + Send,
) -> Done<u64> {
    let name = fields::name("name", &asked.name)?;
    if asked.confirmation_token.is_empty() {
        return Err(Fault::field(
            "confirmation_token",
            "must be there; PrepareDeleteDomain tells what is destroyed and draws it",
        ));
    }
    let _turn = app.turns.take(&name, &format!("{caller} deletes it")).await?;
    let record = app.domain(&name).await?;
    let found = find(app, &record).await?;
    app.tokens.redeem(&asked.confirmation_token, caller, &act(&name), &told(found.as_ref()))?;
    let mut count = 0;
    if found.is_some() {
        let site = app.stores.open(&record.store).await?;
        // The claim keeps everybody else of this site away, and tells other sites that somebody is at it.
        let writer = DomainWriter::start(&site, &name, app.site(), StartOptions::default()).await?;
        count = erase(writer, tell).await?;
    }
    let which = name.clone();
    app.catalog.call(move |db| DomainRecord::remove(db, &which)).await?;
    app.looks.forget(&name);
    let local = app.settings.protect.log_store.join(name.key());
    let cleared = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&local).map_err(|e| (local, e))).await;
    match cleared {
        Ok(Err((local, e))) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("bitmaps and log of the deleted domain stay in {}: {e}", local.display());
        }
        Err(e) => return Err(Error::with_source(ErrorKind::Internal, "clearing bitmaps panicked", e).into()),
        _ => {}
    }
    Ok(count)
}
