//! Moves of disks that did not come to their end, gone on with: after a start, and after a failure half-way.
//!
//! Owns the trying again, with pauses that are bounded, until the move is done, given up, or the appliance closes. How a
//! move is done is for `taking_in` and `letting_go`. Invariant: at most one try of a domain at a time, each from what is
//! so by then.

use std::sync::Arc;
use std::time::Duration;

use super::appliance::{Appliance, SELF};
use super::catalog::{self, DomainRecord, Moving};
use super::letting_go::LettingGo;
use super::taking_in::{TakingIn, Trust};
use crate::capture::VmSource;
use crate::error::{Error, ErrorKind, Result};

/// Pauses between two tries.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Goes on with moves that the last run did not end.
pub(crate) async fn go_on(app: Arc<Appliance>) {
    let found = app.catalog.call(|db| {
        let mut all = Vec::new();
        for domain in Moving::domains(db)? {
            let record = DomainRecord::get(db, &domain)?;
            for moving in Moving::of(db, &domain)? {
                let vm = catalog::protected(db, &domain)?.into_iter().find(|vm| vm.name == moving.vm);
                all.extend(vm.map(|vm| (record.clone(), vm)));
            }
        }
        Ok(all)
    });
    match found.await {
        Ok(all) => all.iter().for_each(|(record, vm)| go_on_with(&app, record, vm)),
        Err(error) => tracing::error!("moves that were under way are not gone on with: {error}"),
    }
}

/// Goes on with the move of a VM in the background, unless that is done already. Whoever asks has the domain's turn, or is the
/// only one there is.
pub(super) fn go_on_with(app: &Arc<Appliance>, record: &DomainRecord, vm: &VmSource) {
    if app.moves.keep_on(&record.name, &vm.name) {
        tokio::spawn(keep_on(Arc::clone(app), record.clone(), vm.clone()));
    }
}

async fn keep_on(app: Arc<Appliance>, record: DomainRecord, vm: VmSource) {
    let (mut pause, mut told) = (MIN_PAUSE, String::new());
    let domain = record.name.clone();
    while !app.closing.is_cancelled() {
        // Whoever has it for long may be doing just that; what became of it is looked at after.
        let Ok(turn) = app.turns.take(&domain, &format!("disks of {} are moved", vm.name)).await else { continue };
        match move_again(&app, &record, &vm).await {
            Ok(done) => {
                app.moves.trouble(&domain, &vm.name, None);
                // With the turn still held: who has it next may ask anew.
                app.moves.end_keeping_on(&domain, &vm.name);
                if let Some(done) = done {
                    app.note(SELF, done, domain.as_str(), Ok(()), vm.name.as_str()).await;
                }
                return;
            }
            Err(error) if error.to_string() == told => {}
            Err(error) => {
                told = error.to_string();
                tracing::warn!(%domain, vm = %vm.name, "moving its disks is tried again: {told}");
                app.moves.trouble(&domain, &vm.name, Some(told.clone()));
                app.note(SELF, "moved", domain.as_str(), Err(error.kind().word()), &told).await;
            }
        }
        drop(turn);
        tokio::select! { () = tokio::time::sleep(pause) => {} () = app.closing.cancelled() => {} }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// One try, by whoever has the domain's turn. What it came to, in the word of an event; `None` where somebody has done it,
/// or ended the protection, meanwhile.
async fn move_again(app: &Arc<Appliance>, record: &DomainRecord, vm: &VmSource) -> Result<Option<&'static str>> {
    if let Some(task) = app.engine.running(&record.name) {
        return Err(Error::new(ErrorKind::Unreachable, format!("task {} works on the domain", task.id)));
    }
    let (domain, name) = (record.name.clone(), vm.name.clone());
    let read = move |db: &rusqlite::Connection| {
        Ok((Moving::get(db, &domain, &name)?, catalog::parked(db, &domain)?.is_some()))
    };
    let (Some(moving), parked) = app.catalog.call(read).await? else { return Ok(None) };
    let served = match app.hosting.get(&record.name) {
        Some(hosted) => hosted.is_running().await,
        // One that leaves may have been the last. A domain that was handed over comes back, or is forgotten, first.
        None => moving.leaves && !parked,
    };
    match (served, moving.leaves) {
        (false, _) => Err(Error::new(ErrorKind::Unreachable, "its disks are not served yet")),
        (true, true) => leave_again(app, record, vm).await,
        (true, false) => onto_again(app, record, vm, &moving).await,
    }
}

async fn leave_again(app: &Arc<Appliance>, record: &DomainRecord, vm: &VmSource) -> Result<Option<&'static str>> {
    let leaving = LettingGo::new(app, record, vm);
    match leaving.try_once(false).await {
        Ok(done) => {
            done.notes.iter().for_each(|note| tracing::info!(domain = %record.name, vm = %vm.name, "{note}"));
            Ok(Some("unprotected"))
        }
        Err(error) if error.kind() == ErrorKind::Refused && leaving.stay_if_all_are_here().await? => {
            tracing::error!(domain = %record.name, vm = %vm.name, "it stays protected: {error}");
            app.note(SELF, "gave up to unprotect", record.name.as_str(), Err("refused"), &error.to_string()).await;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn onto_again(
    app: &Arc<Appliance>,
    record: &DomainRecord,
    vm: &VmSource,
    moving: &Moving,
) -> Result<Option<&'static str>> {
    let taking = TakingIn::new(app, record, &vm.name);
    match taking.finish(vm, Trust::Nothing).await {
        Ok(()) => Ok(Some("moved")),
        Err(error) if app.closing.is_cancelled() => Err(error),
        // It will not do better: the guest keeps its old disks, and is not protected. Where disks may have changed over,
        // which place has what the guest wrote last is for an operator to say.
        Err(error) if error.kind() == ErrorKind::Refused && !moving.pivots && !taking.has_moved(vm).await => {
            tracing::error!(domain = %record.name, vm = %vm.name, "its protection is given up: {error}");
            app.note(SELF, "gave up to protect", record.name.as_str(), Err("refused"), &error.to_string()).await;
            taking.undo(vm).await?;
            // Whether a guest ever wrote to them is not known any more: they are the operator's to remove.
            for disk in vm.disks.iter().filter(|disk| taking.is_new(&disk.path)) {
                tracing::warn!(domain = %record.name, vm = %vm.name, "{} is left, and not used", disk.path.display());
            }
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
