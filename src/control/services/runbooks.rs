//! The service of runbooks: text that is checked as a whole before it is kept.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Services, caller, fields};
use crate::control::appliance::Appliance;
use crate::control::catalog::{self, DomainRecord, RunbookKind as Kind, RunbookRecord};
use crate::control::fault::{Done, Fault};
use crate::control::proto::runbook_service_server::RunbookService;
use crate::control::proto::{
    GetRunbookRequest, GetRunbookResponse, Runbook, RunbookKind, SetRunbookRequest, SetRunbookResponse,
};
use crate::control::view::timestamp;
use crate::failover::{self, Severity};
use crate::ids::Name;

/// Longest text of a runbook in bytes.
const MOST_TEXT: usize = 1 << 20;

#[tonic::async_trait]
impl RunbookService for Services {
    async fn get_runbook(&self, request: Request<GetRunbookRequest>) -> Result<Response<GetRunbookResponse>, Status> {
        let asked = request.into_inner();
        let (domain, kind) = (fields::name("domain", &asked.domain)?, kind_of(asked.kind())?);
        let which = domain.clone();
        let found = self.app.catalog.call(move |db| {
            DomainRecord::get(db, &which)?;
            RunbookRecord::find(db, &which, kind)
        });
        let found = found.await.map_err(|e| Fault::from(e).about(domain.as_str()))?;
        Ok(Response::new(GetRunbookResponse { runbook: Some(shown(&domain, asked.kind(), found)) }))
    }

    async fn set_runbook(&self, request: Request<SetRunbookRequest>) -> Result<Response<SetRunbookResponse>, Status> {
        let caller = caller(request.extensions())?;
        let (app, asked, by) = (Arc::clone(&self.app), request.into_inner(), caller.name.clone());
        let subject = asked.domain.clone();
        let set =
            self.app.act(&caller, "RunbookService/SetRunbook", &subject, async move { set(&app, by, asked).await });
        Ok(Response::new(SetRunbookResponse { runbook: Some(set.await?) }))
    }
}

fn kind_of(kind: RunbookKind) -> Done<Kind> {
    match kind {
        RunbookKind::Failover => Ok(Kind::Failover),
        RunbookKind::Failback => Ok(Kind::Failback),
        RunbookKind::Unspecified => Err(Fault::field("kind", "must be failover or failback")),
    }
}

fn shown(domain: &Name, kind: RunbookKind, found: Option<RunbookRecord>) -> Runbook {
    let mut runbook = Runbook { domain: domain.to_string(), kind: kind.into(), ..Runbook::default() };
    if let Some(found) = found {
        (runbook.text, runbook.revision) = (found.text, found.revision);
        (runbook.changed, runbook.changed_by) = (Some(timestamp(found.changed)), found.changed_by);
    }
    runbook
}

/// The VMs that a runbook of a domain can speak of: those that are protected here, or were seen in its store.
async fn vms_of(app: &Appliance, record: &DomainRecord) -> Done<Vec<Name>> {
    let which = record.name.clone();
    let protected = app.catalog.call(move |db| catalog::protected(db, &which)).await?;
    let mut names: Vec<Name> = protected.into_iter().map(|vm| vm.name).collect();
    if let Some(look) = app.looks.last(&record.name).seen {
        names.extend(look.found.catalogue.vms.iter().map(|vm| vm.name.clone()));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Reads the text of a runbook, and checks it where the domain has `vms`.
///
/// # Errors
/// `Invalid` with everything that is wrong.
pub(super) fn read(text: &str, vms: &[Name]) -> Done<failover::Runbook> {
    let runbook: failover::Runbook =
        toml::from_str(text).map_err(|e| Fault::field("text", e.to_string().trim_end()))?;
    let findings = runbook.findings(vms);
    let wrong: Vec<String> =
        findings.iter().filter(|found| found.severity == Severity::Error).map(ToString::to_string).collect();
    match wrong.is_empty() {
        true => Ok(runbook),
        false => Err(Fault::field("text", format!("{} problems:\n  {}", wrong.len(), wrong.join("\n  ")))),
    }
}

async fn set(app: &Appliance, by: String, asked: SetRunbookRequest) -> Done<Runbook> {
    let (domain, kind) = (fields::name("domain", &asked.domain)?, kind_of(asked.kind())?);
    if asked.text.len() > MOST_TEXT {
        return Err(Fault::field("text", format!("{} bytes, at most {MOST_TEXT}", asked.text.len())));
    }
    let record = app.domain(&domain).await?;
    if !asked.text.is_empty() {
        read(&asked.text, &vms_of(app, &record).await?)?;
    }
    let (which, expected, new) = (domain.clone(), asked.expected_revision, (asked.text.clone(), app.now(), by));
    let set = app.catalog.call(move |db| RunbookRecord::set(db, &which, kind, expected, new)).await?;
    Ok(shown(&domain, asked.kind(), Some(set)))
}

/// The runbook of a domain, read; `None` where none is set.
pub(super) async fn kept(app: &Appliance, domain: &Name, kind: Kind) -> Done<Option<failover::Runbook>> {
    let which = domain.clone();
    let found = app.catalog.call(move |db| RunbookRecord::find(db, &which, kind)).await?;
    match found.filter(|found| !found.text.is_empty()) {
        // Against the VMs it is checked with the plan.
        Some(found) => toml::from_str(&found.text).map(Some).map_err(|e| {
            Fault::refused(format!("the {} runbook of {domain} cannot be read any more: {e}", kind.word()))
        }),
        None => Ok(None),
    }
}
