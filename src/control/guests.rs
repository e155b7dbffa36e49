//! Guests that run here, and what runs them, looked at now and then: one that panicked, stands still or ended by itself is
//! told, and so is a hypervisor that cannot be used.
//!
//! Owns what the last look found. It starts and ends no guest; that is for an operator. Exports do not wait for a
//! hypervisor that is missing: it is looked for again until it is there. Its bounds: the hypervisor and each guest are
//! asked within a time, some guests side by side, and what is told of one is as long as its driver makes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::appliance::{Appliance, SELF};
use super::catalog;
use crate::error::Result;
use crate::failover::World;
use crate::ids::Name;

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// The same at a hypervisor that could be used the last time.
const READY_PAUSE: Duration = Duration::from_secs(10);
/// Longest wait for what is told of one guest.
const WITHIN: Duration = Duration::from_secs(10);
/// Guests that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;

type Troubles = BTreeMap<(Name, Name), String>;
/// Each with its domain, in words.
type Told = Vec<(Name, String)>;

/// What is wrong with guests, by domain and VM, and with what runs them.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    troubles: Mutex<Troubles>,
    hypervisor: Mutex<Option<Looked>>,
}

/// A look at the hypervisor.
#[derive(Debug, Clone)]
struct Looked {
    at: Instant,
    /// Why it cannot be used, where it cannot.
    problem: Option<String>,
}

impl Guests {
    /// Whether the hypervisor could be used at the last look, or why not; `None` before the first.
    pub(crate) fn hypervisor(&self) -> Option<Result<(), String>> {
        let looked = self.hypervisor.lock().unwrap_or_else(PoisonError::into_inner);
        looked.as_ref().map(|looked| looked.problem.clone().map_or(Ok(()), Err))
    }

    /// Whether it is time to look at the hypervisor again.
    fn is_due(&self, now: Instant) -> bool {
        let looked = self.hypervisor.lock().unwrap_or_else(PoisonError::into_inner);
        looked
            .as_ref()
            .is_none_or(|looked| looked.problem.is_some() || now.saturating_duration_since(looked.at) >= READY_PAUSE)
    }

    /// Takes what was found of the hypervisor; `Some` where that is news, with the reason where it cannot be used.
    fn found(&self, at: Instant, problem: Option<String>) -> Option<Option<String>> {
        let mut looked = self.hypervisor.lock().unwrap_or_else(PoisonError::into_inner);
        let before = looked.replace(Looked { at, problem: problem.clone() });
        let was = before.is_some_and(|before| before.problem.is_some());
        (was != problem.is_some()).then_some(problem)
    }

    /// What is wrong with guests of a domain, each with its VM.
    pub(crate) fn of(&self, domain: &Name) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let own = troubles.iter().filter(|((of, _), _)| of == domain);
        own.map(|((_, vm), why)| format!("VM {vm}: {why}")).collect()
    }

    /// Takes what was found now; what of it is new, and what is over.
    fn replace(&self, found: Troubles) -> (Told, Told) {
        let mut known = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(key, why): (&(Name, Name), &String)| (key.0.clone(), format!("VM {}: {why}", key.1));
        let new = found.iter().filter(|(key, _)| !known.contains_key(*key)).map(told).collect();
        let over = known.iter().filter(|(key, _)| !found.contains_key(*key)).map(told).collect();
        *known = found;
        (new, over)
    }
}

impl Appliance {
    /// Looks at guests until the appliance closes.
    pub(crate) async fn keep_watching(self: Arc<Appliance>) {
        while !self.closing.is_cancelled() {
            let looked =
                tokio::select! { looked = self.look_at_guests() => looked, () = self.closing.cancelled() => return };
            if let Err(error) = looked {
                tracing::warn!("looking at guests: {error}");
            }
            tokio::select! { () = tokio::time::sleep(PAUSE) => {} () = self.closing.cancelled() => {} }
        }
    }

    async fn look_at_the_hypervisor(&self) {
        if !self.guests.is_due(Instant::now()) {
            return;
        }
        let hypervisor = self.world.hypervisor();
        let problem = match tokio::time::timeout(WITHIN, hypervisor.ready()).await {
            Ok(ready) => ready.err().map(|error| error.to_string()),
            Err(_) => Some(format!("{} does not answer within {} s", hypervisor.describe(), WITHIN.as_secs())),
        };
        match self.guests.found(Instant::now(), problem) {
            Some(Some(why)) => {
                tracing::error!("the hypervisor cannot be used, and is looked for again: {why}");
                self.note(SELF, "hypervisor not ready", "", Err("unreachable"), &why).await;
            }
            Some(None) => self.note(SELF, "hypervisor ready", "", Ok(()), &hypervisor.describe()).await,
            None => {}
        }
    }

    /// Why the VMs of a domain that are here cannot be started or moved, where that is so.
    pub(crate) fn hypervisor_problem(&self) -> Option<String> {
        self.guests.hypervisor()?.err()
    }

    async fn look_at_guests(&self) -> Result<()> {
        self.look_at_the_hypervisor().await;
        let all = self.catalog.call(|db| {
            let mut all = Vec::new();
            for domain in catalog::protected_domains(db)? {
                all.extend(catalog::protected(db, &domain)?.into_iter().map(|vm| (domain.clone(), vm.name)));
            }
            Ok(all)
        });
        let mut all = all.await?;
        all.retain(|(domain, _)| self.hosting.get(domain).is_some());
        let hypervisor = &self.world.hypervisor();
        let each = all.into_iter().map(|(domain, vm)| async move {
            let trouble = match tokio::time::timeout(WITHIN, hypervisor.trouble(&vm)).await {
                Ok(Ok(trouble)) => trouble,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("its hypervisor does not answer within {} s", WITHIN.as_secs())),
            };
            trouble.map(|why| ((domain, vm), why))
        });
        let found: Vec<_> = futures::stream::iter(each).buffer_unordered(SIDE_BY_SIDE).collect().await;
        let (new, over) = self.guests.replace(found.into_iter().flatten().collect());
        for (domain, why) in new {
            tracing::warn!(%domain, "{why}");
            self.note(SELF, "guest in trouble", domain.as_str(), Err("trouble"), &why).await;
        }
        for (domain, why) in over {
            self.note(SELF, "guest in trouble no more", domain.as_str(), Ok(()), &why).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hypervisor_that_is_missing_is_looked_for_often_and_told_of_once() {
        let (guests, began) = (Guests::default(), Instant::now());
        assert_eq!(guests.hypervisor(), None);
        assert!(guests.is_due(began));
        assert_eq!(guests.found(began, None), None, "it is no news that it is there");
        assert_eq!(guests.hypervisor(), Some(Ok(())));
        assert!(!guests.is_due(began + PAUSE) && guests.is_due(began + READY_PAUSE));
        assert_eq!(guests.found(began, Some("gone".to_owned())), Some(Some("gone".to_owned())));
        assert!(guests.is_due(began), "each look looks for it");
        assert_eq!(guests.found(began, Some("gone still".to_owned())), None);
        assert_eq!(guests.hypervisor(), Some(Err("gone still".to_owned())));
        assert_eq!(guests.found(began, None), Some(None));
        assert_eq!(guests.hypervisor(), Some(Ok(())));
    }

    #[test]
    fn each_trouble_is_new_once_and_over_once() {
        let name = |text: &str| Name::new(text).unwrap();
        let found = |list: &[(&str, &str)]| -> Troubles {
            list.iter().map(|(vm, why)| ((name("shop"), name(vm)), (*why).to_owned())).collect()
        };
        let guests = Guests::default();
        let (new, over) = guests.replace(found(&[("web", "panicked"), ("db", "gone")]));
        assert_eq!((new.len(), over.len()), (2, 0));
        assert_eq!(guests.of(&name("shop")), ["VM db: gone", "VM web: panicked"]);
        assert_eq!(guests.of(&name("bank")), [""; 0]);
        let (new, over) = guests.replace(found(&[("web", "panicked still")]));
        assert_eq!((new, over), (Vec::new(), vec![(name("shop"), "VM db: gone".to_owned())]));
        assert_eq!(guests.of(&name("shop")), ["VM web: panicked still"]);
    }
}
