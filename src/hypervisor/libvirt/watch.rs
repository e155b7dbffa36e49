//! What happens to VMs by whatever hand: `virsh event`, followed and started again where it ends.
//!
//! ```text
//! started, by whatever hand, or found running -> its clients are told to connect again
//! halted by an error of a disk -> gone on with once the exports of its disks answer
//! started anew by itself -> counted: too often is trouble
//! ```
//!
//! Owns the following. A guest that an error halted has lost nothing: its requests are made again. Invariants: nothing is
//! believed for an event alone, what is so is looked at; the pauses between two tries are bounded.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::LibvirtDriver;
use super::definition::{Definition, Source};
use super::reconnect::wanting;
use super::virsh::Listed;
use crate::error::Result;
use crate::hypervisor::follow::Followed;
use crate::hypervisor::{GuestChange, GuestEvent};
use crate::ids::Name;

/// Pause before events are followed again, doubled up to the other.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Between two looks whether halted guests can go on.
const TRY: Duration = Duration::from_secs(2);
/// Between two looks at all VMs, for what no event told.
const LOOK: Duration = Duration::from_secs(60);
/// How `virsh domstate --reason` tells of a guest that an error halted.
const HALTED: &str = "paused (I/O error)";

/// One line of `virsh event --timestamp`, where it says that a VM is on or off, or is another than it was.
fn understand(line: &str) -> Option<GuestChange> {
    let (_, rest) = line.split_once(": event '")?;
    let (kind, rest) = rest.split_once("' for domain '")?;
    let (name, detail) = rest.rsplit_once("': ")?;
    let vm = Name::new(name).ok()?;
    let detail = detail.to_owned();
    match kind {
        "lifecycle" => {}
        "device-added" | "device-removed" => return Some(GuestChange { vm, event: GuestEvent::Changed, detail }),
        _ => return None,
    }
    let (word, reason) = detail.split_once(' ').unwrap_or((&detail, ""));
    let event = match (word, reason) {
        ("Started", _) => GuestEvent::Started,
        ("Stopped", _) => GuestEvent::Stopped,
        ("Crashed", _) => GuestEvent::Crashed,
        ("Suspended", "I/O Error") => GuestEvent::Halted,
        ("Resumed", _) => GuestEvent::Resumed,
        ("Defined", _) => GuestEvent::Changed,
        _ => return None,
    };
    Some(GuestChange { vm, event, detail })
}

/// The guest that starts anew by itself, where a line says that one does.
fn restarted(line: &str) -> Option<Name> {
    let (_, name) = line.split_once(": event 'reboot' for domain '")?;
    Name::new(name.strip_suffix('\'')?).ok()
}

impl LibvirtDriver {
    /// Follows events for as long as this is waited for.
    pub(super) async fn watch_events(&self, tell: &(dyn Fn(GuestChange) + Send + Sync)) {
        let mut pause = MIN_PAUSE;
        loop {
            let (command, environment) = self.virsh.command(&["event", "--all", "--loop", "--timestamp"]);
            match Followed::start(&command, &environment) {
                Ok(followed) => {
                    if self.follow(followed, tell).await {
                        pause = MIN_PAUSE;
                    }
                }
                Err(error) => tracing::warn!("events of VMs are not followed: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Follows until the events end. Whether there was one.
    async fn follow(&self, mut followed: Followed, tell: &(dyn Fn(GuestChange) + Send + Sync)) -> bool {
        let (mut any, mut halted) = (false, BTreeSet::new());
        let mut tries = tokio::time::interval(TRY);
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                line = followed.next() => {
                    let Some(line) = line else { return any };
                    any = true;
                    if let Some(vm) = restarted(&line) {
                        self.restarts().note(&vm, Instant::now());
                    }
                    let Some(change) = understand(&line) else { continue };
                    if matches!(change.event, GuestEvent::Started | GuestEvent::Stopped) {
                        self.restarts().forget(&change.vm);
                    }
                    match change.event {
                        GuestEvent::Halted => drop(halted.insert(change.vm.clone())),
                        GuestEvent::Started => self.connect_again(&change.vm).await,
                        _ => drop(halted.remove(&change.vm)),
                    }
                    tell(change);
                }
                _ = tries.tick(), if !halted.is_empty() => {
                    for vm in halted.clone() {
                        if self.go_on(&vm).await.unwrap_or(false) {
                            halted.remove(&vm);
                        }
                    }
                }
                _ = looks.tick() => {
                    // The first at once: what was started while nobody heard is seen here.
                    if let Err(error) = self.connect_all_again().await {
                        tracing::debug!("VMs whose disks do not connect again are not looked for: {error}");
                    }
                    match self.halted().await {
                        Ok(found) => halted.extend(found),
                        Err(error) => tracing::debug!("halted VMs are not looked for: {error}"),
                    }
                }
            }
        }
    }

    async fn connect_again(&self, vm: &Name) {
        let done = async {
            match self.virsh.find(vm).await? {
                Some(there) if there.active => self.reconnect_again(&there).await.map(drop),
                _ => Ok(()),
            }
        };
        if let Err(error) = done.await {
            tracing::warn!(%vm, "its disks do not connect again by themselves: {error}");
        }
    }

    /// The same of all that run: of those that were started while no event was heard, as before this process was there.
    async fn connect_all_again(&self) -> Result<()> {
        let mut running = self.virsh.list().await?;
        running.retain(|vm| vm.active);
        let definitions = self.definitions(&running, |_| true).await?;
        let wants = |definition: &&Definition| !wanting(definition, &self.virsh.settings.exports).is_empty();
        for definition in definitions.iter().filter(wants) {
            self.connect_again(&definition.name).await;
        }
        Ok(())
    }

    /// VMs that an error of a disk halted.
    async fn halted(&self) -> Result<Vec<Name>> {
        let paused = self.virsh.ask(&["list", "--state-paused", "--uuid"]).await?;
        let paused: Vec<&str> = paused.split_whitespace().collect();
        let mut out = Vec::new();
        if paused.is_empty() {
            return Ok(out);
        }
        for vm in self.virsh.list().await?.into_iter().filter(|vm| paused.contains(&vm.uuid.as_str())) {
            if self.is_halted(&vm).await? {
                out.push(vm.name);
            }
        }
        Ok(out)
    }

    async fn is_halted(&self, vm: &Listed) -> Result<bool> {
        Ok(self.virsh.ask(&["domstate", "--reason", &vm.uuid]).await?.trim() == HALTED)
    }

    /// Has a guest go on that an error halted, once its exports answer. Whether nothing is left to be done for it.
    async fn go_on(&self, vm: &Name) -> Result<bool> {
        let Some(there) = self.virsh.find(vm).await?.filter(|there| there.active) else { return Ok(true) };
        if !self.is_halted(&there).await? {
            return Ok(true);
        }
        let sockets = sockets(&self.running_definition(&there).await?, &self.virsh.settings.exports);
        if sockets.is_empty() {
            // No disk of it is an export: it is somebody else's to mend.
            return Ok(true);
        }
        for socket in sockets {
            if tokio::net::UnixStream::connect(&socket).await.is_err() {
                return Ok(false);
            }
        }
        tracing::info!(%vm, "an error of a disk halted it, and it goes on: its exports answer");
        self.virsh.ask(&["resume", &there.uuid]).await?;
        Ok(true)
    }
}

/// Sockets in `exports` that a VM uses.
fn sockets(definition: &Definition, exports: &Path) -> BTreeSet<std::path::PathBuf> {
    let socket = |source: Source| match source {
        Source::Nbd { socket, .. } => socket.filter(|socket| socket.starts_with(exports)),
        _ => None,
    };
    definition.disks().into_iter().filter_map(|disk| socket(disk.source)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_virsh_become_events() {
        let at = "2026-11-25 22:16:31.984+0000: event";
        let line = |rest: &str| understand(&format!("{at} {rest}")).map(|c| (c.vm.to_string(), c.event, c.detail));
        let web = |event, detail: &str| Some(("web 'x'".to_owned(), event, detail.to_owned()));
        assert_eq!(
            line("'lifecycle' for domain 'web 'x'': Started Booted"),
            web(GuestEvent::Started, "Started Booted")
        );
        assert_eq!(
            line("'lifecycle' for domain 'web 'x'': Stopped Destroyed"),
            web(GuestEvent::Stopped, "Stopped Destroyed")
        );
        assert_eq!(
            line("'lifecycle' for domain 'web 'x'': Suspended I/O Error"),
            web(GuestEvent::Halted, "Suspended I/O Error")
        );
        let changed = |detail: &str| web(GuestEvent::Changed, detail);
        assert_eq!(line("'lifecycle' for domain 'web 'x'': Defined Updated"), changed("Defined Updated"));
        assert_eq!(line("'device-added' for domain 'web 'x'': net1"), changed("net1"));
        assert_eq!(line("'lifecycle' for domain 'web': Suspended Paused"), None);
        assert_eq!(line("'block-job-2' for domain 'web': Block Copy for vda ready"), None);
        assert_eq!(line("'lifecycle' for domain"), None);
        assert_eq!(understand(""), None);

        let line = |rest: &str| restarted(&format!("{at} {rest}")).map(|vm| vm.to_string());
        assert_eq!(line("'reboot' for domain 'web 'x''").as_deref(), Some("web 'x'"));
        for other in ["'reboot' for domain", "'reboot' for domain ''", "'rtc-change' for domain 'web'", ""] {
            assert_eq!(line(other), None, "{other}");
        }
    }
}
