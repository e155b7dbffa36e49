//! Guests that run here, looked at now and then: one that panicked, stands still or ended by itself is told.
//!
//! Owns what the last look found. It starts and ends no guest; that is for an operator. Its bounds: each guest is asked
//! within a time, some side by side, and what is told of one is as long as its driver makes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;

use super::appliance::{Appliance, SELF};
use super::catalog;
use crate::error::Result;
use crate::failover::World;
use crate::ids::Name;

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for what is told of one guest.
const WITHIN: Duration = Duration::from_secs(10);
/// Guests that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;

type Troubles = BTreeMap<(Name, Name), String>;
/// Each with its domain, in words.
type Told = Vec<(Name, String)>;

/// What is wrong with guests, by domain and VM.
#[derive(Debug, Default)]
pub(crate) struct Guests(Mutex<Troubles>);

impl Guests {
    /// What is wrong with guests of a domain, each with its VM.
    pub(crate) fn of(&self, domain: &Name) -> Vec<String> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = troubles.iter().filter(|((of, _), _)| of == domain);
        own.map(|((_, vm), why)| format!("VM {vm}: {why}")).collect()
    }

    /// Takes what was found now; what of it is new, and what is over.
    fn replace(&self, found: Troubles) -> (Told, Told) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    async fn look_at_guests(&self) -> Result<()> {
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
