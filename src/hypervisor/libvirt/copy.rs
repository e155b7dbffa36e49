//! Disks of a running guest, moved while it runs: QEMU copies, what is written meanwhile goes to both, and then the guest uses
//! the copy.
//!
//! ```text
//! start every copy -> look until all are ready -> of each: pivot, next start's definition -> clients that connect again
//!        what fails before the first pivot: all copies are ended, and the guest is where it was
//!        the daemon is away: waited for; whether a disk has pivoted meanwhile is looked at
//! ```
//!
//! Owns the order. The copies are QEMU's: where this process dies they go on or fail by themselves, no guest notices, and
//! whoever comes next ends them or finds them done. Invariants: no disk pivots before all are ready; a copy that does not
//! get on is given up.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::LibvirtDriver;
use super::definition::{Definition, DiskPart, LIBVIRT_XML, Source};
use super::export::Export;
use super::fit::onto_export;
use super::fresh::refresh;
use super::take_in::onto_image;
use super::virsh::{Listed, mark};
use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{CopyStage, DiskCopy, DiskSpec, FoundVm, GuestDisks, MoveWatcher, Refresh, Whereabouts};
use crate::ids::Name;

/// Time without any progress after which a copy is given up.
const STUCK: Duration = Duration::from_secs(600);
/// How long libvirt may be away while disks are copied, as where its daemon is restarted: the copies are QEMU's.
const AWAY: Duration = Duration::from_secs(120);
/// Between two looks at copies.
const LOOK: Duration = Duration::from_millis(200);

/// A disk to be moved: its name, that in the guest, and what it is to be.
struct Move {
    disk: Name,
    target: String,
    to: Element,
}

/// Since when libvirt does not answer.
struct Away(Instant);

impl Default for Away {
    fn default() -> Away {
        Away(Instant::now())
    }
}

impl Away {
    /// What was answered; `None`, after a pause, where libvirt is away and is to be asked again.
    async fn bear<T>(&self, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Err(error) if error.kind() == ErrorKind::Unreachable && self.0.elapsed() < AWAY => {
                tracing::debug!("libvirt is asked again: {error}");
                tokio::time::sleep(LOOK).await;
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }
}

impl LibvirtDriver {
    async fn must_run(&self, vm: &Name) -> Result<Listed> {
        let there = self.virsh.must_find(vm).await?;
        match there.active {
            true => Ok(there),
            false => {
                Err(Error::new(ErrorKind::Refused, format!("VM {vm} does not run: nothing can be copied under it")))
            }
        }
    }

    /// Copies and pivots. Answers when all disks are moved. `next` makes of a disk what the next start takes: written as
    /// soon as it has pivoted, since what the guest writes from then on is nowhere else.
    async fn move_disks(&self, vm: &Listed, moves: &[Move], next: Change<'_>, watcher: &dyn MoveWatcher) -> Result<()> {
        let own = |target: &str, _: &Source| moves.iter().any(|one| one.target == target);
        let ready = match self.copy_all(vm, moves, watcher).await {
            Ok(ready) if !moves.is_empty() => watcher.pivoting().await.map(|()| ready),
            other => other,
        };
        let mut stand = match ready {
            Ok(stand) => stand,
            Err(error) => {
                if let Err(also) = self.end_copies(vm, &own).await {
                    tracing::warn!(vm = %vm.name, "its copies could not be ended: {also}");
                }
                return Err(error);
            }
        };
        for (n, one) in moves.iter().enumerate() {
            let pivoted = match self.pivot(vm, one).await {
                Ok(()) => {
                    // At once: until then the client gives up with its first connection, and the guest is told of it.
                    if let Err(error) = self.reconnect_again(vm).await {
                        tracing::warn!(vm = %vm.name, "its disks do not connect again by themselves: {error}");
                    }
                    self.change_next_start(vm, &|target, disk| match target == one.target {
                        true => next(target, disk),
                        false => Ok(()),
                    })
                    .await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = pivoted {
                if let Err(also) = self.end_copies(vm, &own).await {
                    tracing::warn!(vm = %vm.name, "its copies could not be ended: {also}");
                }
                let moved: Vec<&str> = moves[..n].iter().map(|one| one.target.as_str()).collect();
                let told = if moved.is_empty() { "none".to_owned() } else { moved.join(", ") };
                let what = format!("move disk {} of VM {} ({told} moved before)", one.target, vm.name);
                return Err(error.while_doing(what));
            }
            stand[n].stage = CopyStage::Moved;
            watcher.copies(&stand);
        }
        Ok(())
    }

    /// Has the guest use a copy that is ready.
    async fn pivot(&self, vm: &Listed, one: &Move) -> Result<()> {
        let pivot = ["blockjob", &vm.uuid, &one.target, "--pivot"];
        let error = match self.virsh.tell(&pivot, String::new(), STUCK).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // An answer that was lost says nothing: where the guest is, counts.
        let away = Away::default();
        let running = loop {
            if let Some(running) = away.bear(self.running_definition(vm).await).await? {
                break running;
            }
        };
        match running.disks().iter().any(|part| part.target == one.target && part.is_on(&DiskPart::of(&one.to).source))
        {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Copies until all are ready; how far they were then, in the order of the moves.
    async fn copy_all(&self, vm: &Listed, moves: &[Move], watcher: &dyn MoveWatcher) -> Result<Vec<DiskCopy>> {
        for one in moves {
            let arguments =
                ["blockcopy", &vm.uuid, &one.target, "--xml", "/dev/stdin", "--reuse-external", "--transient-job"];
            let begun = self.virsh.tell(&arguments, one.to.write()?, Duration::ZERO).await;
            begun.map_err(|e| e.while_doing(format!("copy disk {} of VM {}", one.target, vm.name)))?;
        }
        let (mut least, mut since, mut away) = (u64::MAX, Instant::now(), Away::default());
        loop {
            let Some(stand) = away.bear(self.stand(vm, moves).await).await? else { continue };
            away = Away::default();
            watcher.copies(&stand);
            if stand.iter().all(|copy| copy.stage == CopyStage::Ready) {
                return Ok(stand);
            }
            // A guest that writes as fast as it is copied gets nowhere, however much is copied.
            let left = stand.iter().map(|copy| copy.total.saturating_sub(copy.done)).sum();
            if left < least {
                (least, since) = (left, Instant::now());
            }
            if since.elapsed() > STUCK {
                let why = format!("the copy of VM {} has not got on for {} s", vm.name, STUCK.as_secs());
                return Err(Error::new(ErrorKind::Unreachable, why));
            }
            tokio::time::sleep(LOOK.min(self.virsh.settings.poll)).await;
        }
    }

    /// How far copies are, in one call.
    ///
    /// # Errors
    /// `Io` where one is there no more; what libvirt says.
    async fn stand(&self, vm: &Listed, moves: &[Move]) -> Result<Vec<DiskCopy>> {
        let mark = mark();
        let jobs = moves.iter().map(|one| format!("; echo {mark}; blockjob {} {} --raw", vm.uuid, one.target));
        let command = format!("dumpxml {}{}", vm.uuid, jobs.collect::<String>());
        let text = self.virsh.ask(&[&command]).await?;
        let mut parts = text.split(&mark);
        let running = Definition::parse(parts.next().unwrap_or_default())?;
        let (mirrors, mut jobs) = (mirrors(&running), parts);
        let copy = |one: &Move| {
            let job = jobs.next().unwrap_or_default();
            let Some(mirror) = mirrors.iter().find(|mirror| mirror.target == one.target) else {
                let why = format!("the copy of disk {} of VM {} failed: QEMU gave it up", one.target, vm.name);
                let advice = "its log, and the space and state of both places, tell why";
                return Err(Error::new(ErrorKind::Io, format!("{why}; {advice}; the guest goes on with its old disk")));
            };
            let stage = if mirror.ready { CopyStage::Ready } else { CopyStage::Copying };
            Ok(DiskCopy { disk: one.disk.clone(), stage, done: number(job, "cur="), total: number(job, "end=") })
        };
        moves.iter().map(copy).collect()
    }

    /// Ends copies of a VM that did not pivot: those that are ours, by the disk and where it is copied to. Those of others
    /// are left, and told.
    async fn end_copies(&self, vm: &Listed, is_ours: Ours<'_>) -> Result<Vec<String>> {
        let mut others = Vec::new();
        for Mirror { target, to, .. } in mirrors(&self.running_definition(vm).await?) {
            match is_ours(&target, &to) {
                true => drop(self.virsh.ask(&["blockjob", &vm.uuid, &target, "--abort"]).await?),
                false => others.push(format!("disk {target} (to {to:?})")),
            }
        }
        Ok(others)
    }

    /// The same where nobody else may copy.
    ///
    /// # Errors
    /// `Refused` where somebody does.
    async fn end_all_copies(&self, vm: &Listed, is_ours: Ours<'_>) -> Result<()> {
        let others = self.end_copies(vm, is_ours).await?;
        match others.is_empty() {
            true => Ok(()),
            false => {
                let why = format!("VM {} is being copied by somebody else: {}", vm.name, others.join(", "));
                Err(Error::new(ErrorKind::Refused, format!("{why}; wait for its end, or end it")))
            }
        }
    }

    /// The definition that the next start takes, with `change` to its disks.
    async fn change_next_start(&self, vm: &Listed, change: Change<'_>) -> Result<()> {
        let mut next = self.definition(vm).await?;
        for disk in next.root.child_or_new("devices").elements_mut().filter(|e| e.name == "disk") {
            let target = disk.child("target").map_or(String::new(), |t| t.attr("dev").to_owned());
            change(&target, disk)?;
        }
        self.give(&next.root).await
    }

    /// The disk that a VM had in an earlier definition, where it can be gone back to: its file or device is there, and is
    /// not the one that is served.
    fn earlier(earlier: &Definition, target: &str, served: &Path) -> Option<(Element, PathBuf)> {
        let mut devices = earlier.root.child("devices").into_iter().flat_map(|devices| devices.all("disk"));
        let disk = devices.find(|disk| DiskPart::of(disk).target == target)?;
        let path = match DiskPart::of(disk).source {
            Source::File { path, .. } | Source::Block { path, .. } => path,
            _ => return None,
        };
        let there = std::fs::metadata(&path).ok()?;
        // A device may have several names that are no links.
        let device = |meta: &std::fs::Metadata| meta.file_type().is_block_device().then(|| meta.rdev());
        let is_same = |own: std::fs::Metadata| {
            (own.dev(), own.ino()) == (there.dev(), there.ino())
                || device(&own).is_some_and(|own| device(&there) == Some(own))
        };
        let is_served = std::fs::metadata(served).is_ok_and(is_same);
        (!is_served).then(|| (disk.clone(), path))
    }

    /// What a disk that has no place to go back to becomes: itself, in the image made for it.
    fn in_image(disk: &Element, image: &Path) -> Result<Element> {
        let mut disk = disk.clone();
        onto_image(&mut disk, image)?;
        Ok(disk)
    }
}

/// An earlier definition; without any, one that has nothing.
fn earlier_definition(text: &str) -> Result<Definition> {
    match text {
        "" => Definition::parse("<domain><name>none</name></domain>"),
        text => Definition::parse(text),
    }
}

/// What `virsh blockjob --raw` says by this name; 0 where it says nothing.
fn number(job: &str, name: &str) -> u64 {
    job.lines().find_map(|line| line.trim().strip_prefix(name)?.parse().ok()).unwrap_or(0)
}

/// What is made of the definition of a disk of this name in the guest.
type Change<'a> = &'a (dyn Fn(&str, &mut Element) -> Result<()> + Send + Sync);

/// Whether a copy of a disk to somewhere is Freshet's.
type Ours<'a> = &'a (dyn Fn(&str, &Source) -> bool + Send + Sync);

/// A copy of a disk that is under way.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    target: String,
    to: Source,
    ready: bool,
}

/// Disks of which a copy is under way.
fn mirrors(running: &Definition) -> Vec<Mirror> {
    let devices = running.root.child("devices").into_iter().flat_map(|devices| devices.all("disk"));
    let mirror = |disk: &Element| {
        let mirror = disk.child("mirror").filter(|mirror| mirror.attr("job") == "copy")?;
        let to = DiskPart::of(mirror).source;
        Some(Mirror { target: DiskPart::of(disk).target, to, ready: mirror.attr("ready") == "yes" })
    };
    devices.filter_map(mirror).collect()
}

/// It is an export of a disk of this VM.
fn is_export_of(vm: &Name, source: &Source) -> bool {
    matches!(source, Source::Nbd { export, .. } if export.strip_prefix(vm.as_str()).is_some_and(|rest| rest.starts_with('/')))
}

impl DiskPart {
    /// It has its bytes there, in whatever format.
    fn is_on(&self, place: &Source) -> bool {
        match (&self.source, place) {
            (Source::Nbd { .. }, Source::Nbd { .. }) => self.source == *place,
            (own, place) => same_file(own, place),
        }
    }
}

/// They are one file or device, in whatever format.
fn same_file(a: &Source, b: &Source) -> bool {
    match (a, b) {
        (Source::File { path: a, .. }, Source::File { path: b, .. })
        | (Source::Block { path: a, .. }, Source::Block { path: b, .. }) => a == b,
        _ => false,
    }
}

/// The part of a disk's definition that a copy is told.
fn copy_of(disk: &Element) -> Element {
    let mut out = Element::new("disk").with("type", disk.attr("type")).with("device", "disk");
    if let Some(driver) = disk.child("driver") {
        out.push(Element::new("driver").with("name", "qemu").with("type", driver.attr("type")));
    }
    disk.child("source").into_iter().for_each(|source| out.push(source.clone()));
    disk.child("target").into_iter().for_each(|target| out.push(target.clone()));
    out
}

#[async_trait]
impl GuestDisks for LibvirtDriver {
    async fn look(&self, vm: &Name) -> Result<Option<FoundVm>> {
        match self.virsh.find(vm).await? {
            Some(there) => self.found(&there).await.map(Some),
            None => Ok(None),
        }
    }

    fn refresh(&self, (kind, kept): (&str, &str), before: Option<&str>, found: &FoundVm) -> Result<Refresh> {
        match kind {
            LIBVIRT_XML => refresh(kept, before, &found.definition),
            // It is another hypervisor's.
            _ => Ok(Refresh::default()),
        }
    }

    async fn whereabouts(&self, vms: &[Name]) -> Result<BTreeMap<Name, Whereabouts>> {
        self.whereabouts_of(vms).await
    }

    async fn attach(&self, vm: &Name, disks: &[DiskSpec]) -> Result<()> {
        self.attach_disks(vm, disks).await
    }

    async fn move_onto(&self, vm: &Name, disks: &[DiskSpec], watcher: &dyn MoveWatcher) -> Result<()> {
        let there = self.must_run(vm).await?;
        self.end_all_copies(&there, &|_, to| is_export_of(vm, to)).await?;
        let running = self.running_definition(&there).await?;
        let mut moves = Vec::new();
        for spec in disks {
            let export = Export::parse(&spec.uri)?;
            let part = running.disks().into_iter().find(|part| part.target == spec.name.as_str());
            let missing = || Error::new(ErrorKind::NotFound, format!("VM {vm} has no disk {}", spec.name));
            let part = part.ok_or_else(missing)?;
            if !export.is(&part.source) {
                let mut disk = Element::new("disk").with("device", "disk");
                onto_export(&mut disk, spec)?;
                disk.push(Element::new("target").with("dev", &part.target));
                moves.push(Move { disk: spec.name.clone(), target: part.target, to: copy_of(&disk) });
            }
        }
        let change = |target: &str, disk: &mut Element| match disks.iter().find(|s| s.name.as_str() == target) {
            Some(spec) => onto_export(disk, spec),
            None => Ok(()),
        };
        self.move_disks(&there, &moves, &change, watcher).await?;
        // Also of those that had pivoted before.
        self.change_next_start(&there, &change).await?;
        if let Err(error) = self.reconnect_again(&there).await {
            tracing::warn!(%vm, "its disks do not connect again by themselves: {error}");
        }
        Ok(())
    }

    async fn abandon_moves(&self, vm: &Name) -> Result<()> {
        match self.virsh.find(vm).await? {
            Some(there) if there.active => {
                // Somebody else's are none of ours.
                self.end_copies(&there, &|_, to| is_export_of(vm, to)).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn detach(&self, vm: &Name, images: &[(DiskSpec, PathBuf)]) -> Result<()> {
        self.detach_disks(vm, images).await
    }

    fn placeless(&self, definition: &str, images: &[(DiskSpec, PathBuf)]) -> Result<Vec<Name>> {
        let earlier = earlier_definition(definition)?;
        let has_none = |(spec, served): &&(DiskSpec, PathBuf)| {
            LibvirtDriver::earlier(&earlier, spec.name.as_str(), served).is_none()
        };
        Ok(images.iter().filter(has_none).map(|(spec, _)| spec.name.clone()).collect())
    }

    async fn move_back(
        &self,
        vm: &Name,
        definition: &str,
        images: &[(DiskSpec, PathBuf)],
        made: &BTreeMap<Name, PathBuf>,
        watcher: &dyn MoveWatcher,
    ) -> Result<Vec<(Name, PathBuf)>> {
        let there = self.must_run(vm).await?;
        let earlier = earlier_definition(definition)?;
        let is_in =
            |path: &Path, to: &Source| same_file(&Source::File { path: path.into(), format: String::new() }, to);
        let is_earlier = |target: &str, to: &Source| {
            earlier.disks().iter().any(|disk| disk.target == target && same_file(&disk.source, to))
        };
        let ours = |target: &str, to: &Source| made.values().any(|path| is_in(path, to)) || is_earlier(target, to);
        self.end_all_copies(&there, &ours).await?;
        let running = self.running_definition(&there).await?;
        let (mut moves, mut places, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for (spec, served) in images {
            let (export, image) = (Export::parse(&spec.uri)?, made.get(&spec.name));
            let is_back = |part: &DiskPart| match image {
                Some(image) => is_in(image, &part.source),
                None => part.target == spec.name.as_str() && is_earlier(&part.target, &part.source),
            };
            let Some(disk) = running.disk(|part| export.is(&part.source) || is_back(part)) else { continue };
            let part = DiskPart::of(disk);
            let to = match image {
                Some(path) => Some((LibvirtDriver::in_image(disk, path)?, path.clone())),
                None => LibvirtDriver::earlier(&earlier, &part.target, served),
            };
            let Some((to, path)) = to else {
                let why = format!("VM {vm}, disk {}: there is no image that it could go back to", part.target);
                return Err(Error::new(ErrorKind::Refused, why));
            };
            // One that a call before this one moved is only written down.
            if export.is(&part.source) {
                moves.push(Move { disk: spec.name.clone(), target: part.target.clone(), to: copy_of(&to) });
            }
            places.push((spec.name.clone(), path));
            before.push((part.target, to, image));
        }
        if before.is_empty() {
            return Ok(places);
        }
        let change = |target: &str, disk: &mut Element| match before.iter().find(|(of, ..)| of == target) {
            // As its next start has it, but for the place.
            Some((.., Some(image))) => onto_image(disk, image),
            Some((_, old, None)) => {
                disk.clone_from(old);
                Ok(())
            }
            None => Ok(()),
        };
        self.move_disks(&there, &moves, &change, watcher).await?;
        self.change_next_start(&there, &change).await?;
        self.drop_own_nodes(&there).await;
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_under_way_are_seen_and_told_what_they_need() {
        let text = "<domain><name>a</name><devices><disk><source file='/a'/><target dev='vda'/><mirror type='network' \
                    job='copy' ready='yes'><source protocol='nbd' name='a/vda'><host transport='unix' socket='/s'/></source>\
                    </mirror></disk><disk><source file='/b'/><target dev='vdb'/><mirror type='file' \
                    job='copy'><source file='/c'/></mirror></disk>\
                    <disk><source file='/c'/><target dev='vdc'/></disk></devices></domain>";
        let running = Definition::parse(text).unwrap();
        let found = mirrors(&running);
        let shown: Vec<(&str, bool)> = found.iter().map(|mirror| (mirror.target.as_str(), mirror.ready)).collect();
        assert_eq!(shown, [("vda", true), ("vdb", false)]);
        let own = |name: &str, to: &Source| is_export_of(&Name::new(name).unwrap(), to);
        assert!(own("a", &found[0].to) && !own("b", &found[0].to) && !own("a", &found[1].to));
        let qcow2 = Source::File { path: "/c".into(), format: "qcow2".into() };
        assert!(same_file(&qcow2, &found[1].to) && !same_file(&qcow2, &found[0].to));
        let disk = "<disk type='file'><driver name='qemu' type='qcow2' iothread='1'/><source file='/a' index='2'/>\
                    <backingStore/><target dev='vda' bus='virtio'/></disk>";
        let told = copy_of(&Element::parse(disk).unwrap()).write().unwrap();
        assert_eq!(
            told,
            "<disk type=\"file\" device=\"disk\"><driver name=\"qemu\" type=\"qcow2\"/><source file=\"/a\" index=\"2\"/>\
             <target dev=\"vda\" bus=\"virtio\"/></disk>"
        );
    }

    #[test]
    fn nobody_goes_back_onto_the_image_that_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let (old, served) = (dir.path().join("old"), dir.path().join("served"));
        std::fs::write(&old, "x").unwrap();
        std::fs::write(&served, "x").unwrap();
        std::os::unix::fs::symlink(&served, dir.path().join("link")).unwrap();
        let on = |path: &Path| {
            let disk = format!("<disk><source file='{}'/><target dev='vda'/></disk>", path.display());
            Definition::parse(&format!("<domain><name>a</name><devices>{disk}</devices></domain>")).unwrap()
        };
        assert_eq!(LibvirtDriver::earlier(&on(&old), "vda", &served).unwrap().1, old);
        let nowhere = [(on(&served), "vda"), (on(&old), "vdb"), (on(&dir.path().join("gone")), "vda")];
        for (earlier, target) in nowhere.into_iter().chain([(on(&dir.path().join("link")), "vda")]) {
            assert_eq!(LibvirtDriver::earlier(&earlier, target, &served), None, "{target}");
        }
        assert_eq!(LibvirtDriver::earlier(&earlier_definition("").unwrap(), "vda", &served), None);
    }
}
