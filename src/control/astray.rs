//! Guests that run on other disks than those that are served: what they write is captured by nobody.
//!
//! ```text
//! runs on other disks -> written down, noted on its images, no point covers it -> (is off, runs on ...)
//!   -> on its exports again, at its next start at least -> all of its images is compared -> covered
//! ```
//!
//! Looked at now and then, and at once where the hypervisor tells of a change. Owns who is astray, durably, and the way
//! back. Moves that are under way are for `taking_in` and `letting_go`. Invariants: no point covers a VM from when its guest
//! was seen astray until it is on its exports and all that its images hold is part of the domain; what is said is what was
//! seen last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::appliance::{Appliance, SELF};
use super::catalog::{self, Moving};
use crate::capture::VmSource;
use crate::error::Result;
use crate::hypervisor::{SeenDisk, Whereabouts};
use crate::ids::Name;
use crate::protect::{clear_unwatched, note_unwatched};

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// Most disks that a sentence names.
const MAX_NAMED: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Astray {
    /// Where those are that are astray, in words, by domain and VM.
    known: Mutex<BTreeMap<(Name, Name), String>>,
    /// Disks that VMs have and that are not protected, in words.
    unprotected: Mutex<BTreeMap<(Name, Name), String>>,
    changed: Notify,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Astray {
    /// Something changed: it is looked at once.
    pub(super) fn look_soon(&self) {
        self.changed.notify_one();
    }

    /// VMs of a domain that are astray.
    pub(super) fn vms(&self, domain: &Name) -> Vec<Name> {
        lock(&self.known).keys().filter(|(of, _)| of == domain).map(|(_, vm)| vm.clone()).collect()
    }

    /// What is to be told of a domain, each with its VM.
    pub(super) fn problems(&self, domain: &Name) -> Vec<String> {
        let (known, unprotected) = (lock(&self.known), lock(&self.unprotected));
        let all = known.iter().chain(unprotected.iter()).filter(|((of, _), _)| of == domain);
        all.map(|((_, vm), why)| format!("VM {vm}: {why}")).collect()
    }

    /// Where a VM is that is astray, in words.
    pub(super) fn of(&self, domain: &Name, vm: &Name) -> Option<String> {
        lock(&self.known).get(&(domain.clone(), vm.clone())).cloned()
    }

    /// It is protected no longer.
    pub(super) fn forget(&self, domain: &Name, vm: &Name) {
        let key = (domain.clone(), vm.clone());
        lock(&self.known).remove(&key);
        lock(&self.unprotected).remove(&key);
    }
}

/// Where a VM is, seen beside what is protected of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    /// All its protected disks are on their exports.
    Home,
    /// Others are used, or would be; in words.
    Away { running: bool, words: String },
    /// The hypervisor does not know it.
    Gone,
}

fn is_own(disk: &SeenDisk, vm: &VmSource, own: &Name, socket: &Path) -> bool {
    let export = crate::protect::export_name(&vm.name, own);
    disk.export.as_ref().is_some_and(|(name, at)| *name == export && at == socket)
}

/// Where `vm`, whose exports are at `socket`, stands.
fn stand(vm: &VmSource, seen: Option<&Whereabouts>, socket: &Path) -> Stand {
    let Some(seen) = seen else { return Stand::Gone };
    let away = vm.disks.iter().filter(|own| !seen.disks.iter().any(|disk| is_own(disk, vm, &own.name, socket)));
    let place = |own: &Name| match seen.disks.iter().find(|disk| disk.name == own.as_str()) {
        Some(disk) => format!("{own} ({})", disk.place),
        None => format!("{own} (which it does not have)"),
    };
    let away: Vec<String> = away.map(|disk| place(&disk.name)).collect();
    match away.is_empty() {
        true => Stand::Home,
        false => Stand::Away { running: seen.running, words: named(&away) },
    }
}

/// Disks of a VM that are none of its protected ones, in words; `None` where there is none.
fn unprotected(vm: &VmSource, seen: &Whereabouts, socket: &Path) -> Option<String> {
    let of_own = |disk: &&SeenDisk| {
        vm.disks.iter().any(|own| own.name.as_str() == disk.name || is_own(disk, vm, &own.name, socket))
    };
    let others: Vec<String> =
        seen.disks.iter().filter(|disk| !of_own(disk)).map(|disk| format!("{} ({})", disk.name, disk.place)).collect();
    let why = "it has disks that are not protected, and that no other site gets";
    (!others.is_empty()).then(|| format!("{why}: {}", named(&others)))
}

fn named(disks: &[String]) -> String {
    let more = disks.len().saturating_sub(MAX_NAMED);
    let first = disks[..disks.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// What an operator is told of a VM that is astray.
fn told(stand: &Stand) -> String {
    let back = "shut it down and protect it again (`vm protect`): its definition is pointed at its exports, and all of its \
                images is compared";
    match stand {
        Stand::Away { running: true, words } => format!(
            "its guest runs on disks that are not served: {words}; what it writes is captured by nobody, and no point \
             covers it; {back}"
        ),
        Stand::Away { running: false, words } => format!(
            "its guest ran on disks that are not served, and would again: {words}; no point covers it until it is on its \
             exports; {back}"
        ),
        Stand::Gone => {
            "its guest ran on disks that were not served, and where it is now is not known; no point covers it"
                .to_owned()
        }
        Stand::Home => "its guest ran on disks that were not served: all of its images is to be compared".to_owned(),
    }
}

/// One VM to look at.
struct Watched {
    domain: Name,
    vm: VmSource,
    /// That it is astray is written down.
    is_known: bool,
}

impl Appliance {
    /// Looks for guests that run on other disks until the appliance closes.
    pub(crate) async fn keep_finding_strays(self: Arc<Appliance>) {
        while !self.closing.is_cancelled() {
            let looked =
                tokio::select! { looked = self.find_strays() => looked, () = self.closing.cancelled() => return };
            if let Err(error) = looked {
                tracing::debug!("where guests run is not known: {error}");
            }
            let pause = async {
                tokio::select! { () = tokio::time::sleep(PAUSE) => {} () = self.astray.changed.notified() => {} }
            };
            tokio::select! { () = pause => {} () = self.closing.cancelled() => {} }
        }
    }

    /// VMs whose disks are served here, and not on their way.
    async fn watched(&self) -> Result<Vec<Watched>> {
        let all = self.catalog.call(|db| {
            let mut all = Vec::new();
            for domain in catalog::protected_domains(db)? {
                let (moving, astray) = (Moving::of(db, &domain)?, catalog::astray(db, &domain)?);
                for vm in catalog::protected(db, &domain)? {
                    // Where it is while it moves, is for whoever moves it.
                    if !moving.iter().any(|moving| moving.vm == vm.name) {
                        let is_known = astray.iter().any(|(known, _)| *known == vm.name);
                        all.push(Watched { domain: domain.clone(), vm, is_known });
                    }
                }
            }
            Ok(all)
        });
        let mut all = all.await?;
        all.retain(|one| self.hosting.get(&one.domain).is_some());
        let mut known = lock(&self.astray.known);
        for one in &mut all {
            let key = (one.domain.clone(), one.vm.name.clone());
            if one.is_known {
                known.entry(key).or_insert_with(|| told(&Stand::Gone));
            } else {
                // What could not be written down is known all the same.
                one.is_known = known.contains_key(&key);
            }
        }
        drop(known);
        Ok(all)
    }

    async fn find_strays(self: &Arc<Appliance>) -> Result<()> {
        let hypervisor = self.world.hypervisor_here();
        let Some(guests) = hypervisor.guest_disks() else { return Ok(()) };
        let watched = self.watched().await?;
        let names: Vec<Name> = watched.iter().map(|one| one.vm.name.clone()).collect();
        if names.is_empty() {
            lock(&self.astray.known).clear();
            lock(&self.astray.unprotected).clear();
            return Ok(());
        }
        let seen = guests.whereabouts(&names).await?;
        let (mut known, mut others) = (BTreeMap::new(), BTreeMap::new());
        for one in &watched {
            let (key, socket) = ((one.domain.clone(), one.vm.name.clone()), self.settings.export_socket(&one.domain));
            let found = seen.get(&one.vm.name);
            let extra = found.and_then(|found| unprotected(&one.vm, found, &socket));
            others.extend(extra.map(|why| (key.clone(), why)));
            let stand = stand(&one.vm, found, &socket);
            let outcome = match (&stand, one.is_known) {
                (Stand::Away { running: true, .. }, false) => self.begin_stray(one).await,
                (Stand::Home, true) => self.end_stray(one).await.map(|ended| !ended),
                (_, is_known) => Ok(is_known),
            };
            let astray = outcome.unwrap_or_else(|error| {
                tracing::warn!(domain = %one.domain, vm = %one.vm.name, "{}: {error}", told(&stand));
                true
            });
            if astray {
                known.insert(key, told(&stand));
            }
        }
        *lock(&self.astray.known) = known;
        self.tell_unprotected(others).await;
        Ok(())
    }

    /// Disks that came to be unprotected, or are so no more, are events.
    async fn tell_unprotected(&self, found: BTreeMap<(Name, Name), String>) {
        let before = std::mem::replace(&mut *lock(&self.astray.unprotected), found.clone());
        for ((domain, vm), why) in found.iter().filter(|(key, why)| before.get(*key) != Some(why)) {
            self.note("hypervisor", "disk unprotected", domain.as_str(), Err("trouble"), &format!("VM {vm}: {why}"))
                .await;
        }
    }

    /// Looks again, while nobody else changes the domain: where a VM is by now, unless it is on its way or is gone.
    async fn stand_now(&self, one: &Watched) -> Result<Option<Stand>> {
        let again = self.watched().await?;
        let is_it = |other: &&Watched| other.domain == one.domain && other.vm.name == one.vm.name;
        let (Some(now), hypervisor) = (again.iter().find(is_it), self.world.hypervisor_here()) else { return Ok(None) };
        let Some(guests) = hypervisor.guest_disks() else { return Ok(None) };
        let seen = guests.whereabouts(std::slice::from_ref(&now.vm.name)).await?;
        Ok(Some(stand(&now.vm, seen.get(&now.vm.name), &self.settings.export_socket(&one.domain))))
    }

    /// Has no point cover a VM any more. Whether it is astray.
    async fn begin_stray(self: &Arc<Appliance>, one: &Watched) -> Result<bool> {
        let (domain, vm) = (&one.domain, &one.vm.name);
        let _turn = self.turns.take(domain, &format!("{vm} is looked for")).await?;
        let Some(stand @ Stand::Away { running: true, .. }) = self.stand_now(one).await? else { return Ok(false) };
        let Some(hosted) = self.hosting.get(domain) else { return Ok(false) };
        one.vm.disks.iter().for_each(|disk| hosted.filling().begin(vm, &disk.name));
        let (which, name, now) = (domain.clone(), vm.clone(), self.now());
        self.catalog.call(move |db| catalog::stray(db, &which, &name, now)).await?;
        for image in images(&one.vm) {
            let noted = on_image(image, note_unwatched).await;
            if let Err(error) = noted.and_then(|noted| noted) {
                // The catalog tells; only whoever goes by the image alone does not learn of it.
                tracing::warn!(%domain, %vm, "{error}");
            }
        }
        let detail = format!("VM {vm}: {}", told(&stand));
        tracing::error!(%domain, "{detail}");
        self.note("hypervisor", "guest unprotected", domain.as_str(), Err("refused"), &detail).await;
        Ok(true)
    }

    /// Has points cover a VM again, once all of its images was compared. Whether it is on its exports.
    async fn end_stray(self: &Arc<Appliance>, one: &Watched) -> Result<bool> {
        let (domain, vm) = (&one.domain, &one.vm.name);
        let _turn = self.turns.take(domain, &format!("{vm} is looked for")).await?;
        if self.stand_now(one).await? != Some(Stand::Home) {
            return Ok(false);
        }
        let Some(hosted) = self.hosting.get(domain) else { return Ok(false) };
        // Marked, durably, before anybody forgets why.
        hosted.doubt(vm).await?;
        let (which, name) = (domain.clone(), vm.clone());
        self.catalog.call(move |db| catalog::unstray(db, &which, &name)).await?;
        hosted.filled(vm).await;
        for image in images(&one.vm) {
            on_image(image, clear_unwatched).await?;
        }
        let detail =
            format!("VM {vm} is on its exports again: all of its images is compared, and then points cover it");
        tracing::info!(%domain, "{detail}");
        self.note(SELF, "guest protected again", domain.as_str(), Ok(()), &detail).await;
        Ok(true)
    }
}

fn images(vm: &VmSource) -> Vec<PathBuf> {
    vm.disks.iter().map(|disk| disk.path.clone()).collect()
}

/// Does what blocks where it may.
async fn on_image<T: Send + 'static>(image: PathBuf, work: impl FnOnce(&Path) -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || work(&image)).await;
    done.map_err(|e| crate::error::Error::with_source(crate::error::ErrorKind::Internal, "a note on an image", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::DiskSource;

    fn seen(name: &str, export: Option<&str>, place: &str) -> SeenDisk {
        let export = export.map(|export| (export.to_owned(), PathBuf::from("/own.sock")));
        SeenDisk { name: name.to_owned(), export, place: place.to_owned() }
    }

    fn web() -> VmSource {
        let disk = |name: &str| DiskSource { name: Name::new(name).unwrap(), path: "/i".into(), size: None };
        VmSource { name: Name::new("web").unwrap(), disks: vec![disk("vda"), disk("vdb")], definition: None }
    }

    fn at(running: bool, disks: Vec<SeenDisk>) -> Whereabouts {
        Whereabouts { running, disks }
    }

    #[test]
    fn a_vm_is_home_only_with_all_its_disks_on_its_own_exports() {
        let (own, socket) = (web(), Path::new("/own.sock"));
        let vda = seen("vda", Some("web/vda"), "the NBD export web/vda");
        let vdb = seen("vdb", Some("web/vdb"), "the NBD export web/vdb");
        // Whatever they are called in the guest.
        let renamed = seen("sdb", Some("web/vdb"), "the NBD export web/vdb");
        for disks in [vec![vda.clone(), vdb.clone()], vec![renamed.clone(), vda.clone()]] {
            for running in [true, false] {
                assert_eq!(stand(&own, Some(&at(running, disks.clone())), socket), Stand::Home);
            }
        }
        assert_eq!(stand(&own, None, socket), Stand::Gone);
        assert!(matches!(
            stand(&own, Some(&at(true, vec![vda.clone(), vdb.clone()])), Path::new("/other.sock")),
            Stand::Away { running: true, .. }
        ));
        let away = |running, disks| stand(&own, Some(&at(running, disks)), socket);
        let words = "vdb (/old.qcow2)".to_owned();
        let old = seen("vdb", None, "/old.qcow2");
        assert_eq!(away(true, vec![vda.clone(), old.clone()]), Stand::Away { running: true, words: words.clone() });
        assert_eq!(away(false, vec![vda.clone(), old]), Stand::Away { running: false, words });
        let gone = away(true, vec![vda.clone()]);
        assert_eq!(gone, Stand::Away { running: true, words: "vdb (which it does not have)".into() });
        assert!(told(&gone).contains("captured by nobody") && told(&gone).contains("vdb"));
    }

    #[test]
    fn disks_that_are_not_protected_are_told_and_those_elsewhere_are_not_told_twice() {
        let (own, socket) = (web(), Path::new("/own.sock"));
        let vda = seen("vda", Some("web/vda"), "x");
        let of = |more: SeenDisk| unprotected(&own, &at(true, vec![vda.clone(), more]), socket);
        assert_eq!(of(seen("vdb", None, "/old")), None);
        assert_eq!(of(seen("sdb", Some("web/vdb"), "x")), None);
        assert!(of(seen("vdc", None, "/new.img")).unwrap().contains("vdc (/new.img)"));
        let many: Vec<String> = (0..MAX_NAMED + 3).map(|n| n.to_string()).collect();
        assert!(named(&many).ends_with("and 3 more"));
    }

    #[test]
    fn who_was_let_go_is_forgotten() {
        let (astray, name) = (Astray::default(), |text: &str| Name::new(text).unwrap());
        for of in [&astray.known, &astray.unprotected] {
            lock(of).insert((name("d"), name("web")), "why".into());
            lock(of).insert((name("e"), name("db")), "why".into());
        }
        assert_eq!(astray.vms(&name("d")), [name("web")]);
        assert_eq!(astray.problems(&name("d")), ["VM web: why", "VM web: why"]);
        assert_eq!(astray.of(&name("e"), &name("db")).as_deref(), Some("why"));
        astray.forget(&name("d"), &name("web"));
        assert_eq!((astray.problems(&name("d")).len(), astray.problems(&name("e")).len()), (0, 2));
    }
}
