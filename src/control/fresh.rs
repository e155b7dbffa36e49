//! Definitions that travel with the disks of VMs, kept as the hypervisor has them.
//!
//! ```text
//! the hypervisor tells of a change, or now and then -> looked at -> another one: the catalog, the next segment, an event
//!                                                                -> one that no other site could take: a problem, and the last stays
//! ```
//!
//! Owns when that is looked at, and what is told. What a definition means is its driver's to say. Invariants: what travels is
//! always one that other sites can take; a VM that is on its way is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::appliance::Appliance;
use super::catalog::{self, Moving};
use crate::capture::{VmDefinition, VmSource};
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{FoundVm, GuestDisks, Refreshed};
use crate::ids::Name;

/// Time between two looks at all VMs: not every change is told.
const PAUSE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Why the definition of now cannot travel, by domain and VM.
    problems: Mutex<BTreeMap<(Name, Name), String>>,
    /// VMs that may have changed: at most those that are known.
    due: Mutex<BTreeSet<Name>>,
    changed: Notify,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fresh {
    /// A VM that is protected here may have changed: it is looked at soon.
    pub(super) fn look_soon(&self, vm: &Name) {
        lock(&self.due).insert(vm.clone());
        self.changed.notify_one();
    }

    /// What is to be told of a domain, each with its VM.
    pub(super) fn problems(&self, domain: &Name) -> Vec<String> {
        let problems = lock(&self.problems);
        let own = problems.iter().filter(|((of, _), _)| of == domain);
        own.map(|((_, vm), why)| format!("VM {vm}: {why}")).collect()
    }

    /// It is protected no longer.
    pub(super) fn forget(&self, domain: &Name, vm: &Name) {
        lock(&self.problems).remove(&(domain.clone(), vm.clone()));
    }

    /// What is wrong with a VM now; whether that is new.
    fn note(&self, domain: &Name, vm: &Name, why: Option<String>) -> bool {
        let (mut problems, key) = (lock(&self.problems), (domain.clone(), vm.clone()));
        match why {
            Some(why) => problems.insert(key, why.clone()).as_ref() != Some(&why),
            None => problems.remove(&key).is_some(),
        }
    }
}

impl Appliance {
    /// Keeps definitions fresh until the appliance closes.
    pub(crate) async fn keep_definitions_fresh(self: Arc<Appliance>) {
        let mut all = true;
        while !self.closing.is_cancelled() {
            let due = std::mem::take(&mut *lock(&self.fresh.due));
            let looked = self.look_at_definitions(|vm| all || due.contains(vm));
            let looked = tokio::select! { looked = looked => looked, () = self.closing.cancelled() => return };
            if let Err(error) = looked {
                tracing::debug!("definitions of VMs are not looked at: {error}");
            }
            let pause = async {
                tokio::select! { () = tokio::time::sleep(PAUSE) => true, () = self.fresh.changed.notified() => false }
            };
            all = tokio::select! { all = pause => all, () = self.closing.cancelled() => return };
        }
    }

    async fn look_at_definitions(self: &Arc<Appliance>, due: impl Fn(&Name) -> bool) -> Result<()> {
        let hypervisor = self.world.hypervisor_here();
        let Some(guests) = hypervisor.guest_disks() else { return Ok(()) };
        let known = self.catalog.call(|db| {
            let mut all = Vec::new();
            for domain in catalog::protected_domains(db)? {
                all.extend(catalog::protected(db, &domain)?.into_iter().map(|vm| (domain.clone(), vm.name)));
            }
            Ok(all)
        });
        for (domain, vm) in known.await?.into_iter().filter(|(_, vm)| due(vm)) {
            let Some((_, kept)) = self.kept(&domain, &vm).await? else { continue };
            match guests.look(&vm).await {
                Ok(Some(found)) => {
                    self.tell_unfit(&domain, &vm, None).await;
                    if let Err(error) = self.refresh(guests, &domain, &vm, &kept, &found).await {
                        tracing::warn!(%domain, %vm, "its definition is not taken anew: {error}");
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Refused => {
                    self.tell_unfit(&domain, &vm, Some(&error)).await;
                }
                Err(error) => tracing::debug!(%domain, %vm, "its definition is not looked at: {error}"),
            }
        }
        Ok(())
    }

    /// The definition that travels with a VM's disks; `None` where it has none, is on its way, or is not served now.
    async fn kept(&self, domain: &Name, vm: &Name) -> Result<Option<(VmSource, VmDefinition)>> {
        if self.hosting.get(domain).is_none() || self.engine.running(domain).is_some() {
            return Ok(None);
        }
        let (which, name) = (domain.clone(), vm.clone());
        let read = move |db: &rusqlite::Connection| match Moving::get(db, &which, &name)? {
            Some(_) => Ok(None),
            None => Ok(catalog::protected(db, &which)?.into_iter().find(|vm| vm.name == name)),
        };
        let vm = self.catalog.call(read).await?;
        Ok(vm.and_then(|vm| vm.definition.clone().map(|definition| (vm, definition))))
    }

    /// Tells that the definition of now cannot travel, or can again.
    async fn tell_unfit(&self, domain: &Name, vm: &Name, error: Option<&Error>) {
        let why = |error: &Error| {
            let last = "the definition that other sites get is the last one that they could take";
            format!("as its hypervisor has it now it cannot be recovered elsewhere: {error}; {last}")
        };
        let why = error.map(why);
        if !self.fresh.note(domain, vm, why.clone()) {
            return;
        }
        match why {
            Some(why) => {
                tracing::error!(%domain, %vm, "{why}");
                let detail = format!("VM {vm}: {why}");
                self.note("hypervisor", "definition not recoverable", domain.as_str(), Err("refused"), &detail).await;
            }
            None => {
                let detail = format!("VM {vm}");
                self.note("hypervisor", "definition recoverable again", domain.as_str(), Ok(()), &detail).await;
            }
        }
    }

    /// Takes the definition of a VM anew where it is another than `kept`.
    async fn refresh(
        self: &Arc<Appliance>,
        guests: &dyn GuestDisks,
        domain: &Name,
        vm: &Name,
        kept: &VmDefinition,
        found: &FoundVm,
    ) -> Result<()> {
        let (which, name) = (domain.clone(), vm.clone());
        let before = self.catalog.call(move |db| catalog::seen(db, &which, &name)).await?;
        let refresh = guests.refresh((&kept.kind, &kept.text), before.as_deref(), found)?;
        if refresh.new.is_none() && !refresh.remember {
            return Ok(());
        }
        let _turn = self.turns.take(domain, &format!("the definition of {vm} is taken anew")).await?;
        // Whoever had the domain's turn before may have changed it.
        if self.kept(domain, vm).await?.is_none_or(|(_, now)| now.text != kept.text) {
            return Ok(());
        }
        let new = refresh.new.map(|Refreshed { definition: text, shape, changes }| {
            (VmDefinition { kind: kept.kind.clone(), text, shape }, changes)
        });
        let (which, name, seen) = (domain.clone(), vm.clone(), found.definition.clone());
        let written = new.clone();
        let write = move |db: &rusqlite::Connection| {
            if refresh.remember {
                catalog::set_seen(db, &which, &name, &seen)?;
            }
            written.map_or(Ok(()), |(definition, _)| catalog::redefine(db, &which, &name, &definition))
        };
        self.catalog.call(write).await?;
        let Some((definition, changes)) = new else { return Ok(()) };
        let detail = format!("VM {vm}: {changes}; other sites get its definition as it is now");
        tracing::info!(%domain, "{detail}");
        if let Some(hosted) = self.hosting.get(domain)
            && let Err(error) = hosted.redefine(vm, &definition).await
        {
            // The next start takes it from the catalog.
            tracing::warn!(%domain, %vm, "its new definition is not part of the domain yet: {error}");
        }
        self.note("hypervisor", "definition changed", domain.as_str(), Ok(()), &detail).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_new_once_and_over_once() {
        let (fresh, name) = (Fresh::default(), |text: &str| Name::new(text).unwrap());
        let (d, web) = (name("d"), name("web"));
        assert!(!fresh.note(&d, &web, None), "nothing was wrong");
        assert!(fresh.note(&d, &web, Some("why".into())) && !fresh.note(&d, &web, Some("why".into())));
        assert!(fresh.note(&d, &web, Some("else".into())));
        assert_eq!(fresh.problems(&d), ["VM web: else"]);
        assert_eq!(fresh.problems(&name("e")), [""; 0]);
        assert!(fresh.note(&d, &web, None) && !fresh.note(&d, &web, None));
        fresh.note(&d, &web, Some("why".into()));
        fresh.forget(&d, &web);
        assert!(fresh.problems(&d).is_empty());
        fresh.look_soon(&web);
        fresh.look_soon(&web);
        assert_eq!(lock(&fresh.due).len(), 1);
    }
}
