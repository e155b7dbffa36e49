//! What a protection is built on: which disks are opened with which bitmaps, and what of them the chain is known to have.
//!
//! ```text
//! map, roster --> what the record, or the datastore that they were rehydrated in, says of each disk
//!                   believed: its bits          proved: all clear          neither: compared in whole
//!             --> bitmaps --> record, durably --> bits of proved disks go --> datastore lets go --> open for writing
//! ```
//!
//! Owns that order. Invariants: what the bitmaps say is believed only for the chain that they speak of; a disk is open for
//! writing only when nothing but this site's own record speaks for its file. A kill at any step leaves something that is
//! true: until the datastore lets go nothing has written, and from then on the record tells what the files look like.

use std::collections::HashSet;

use super::inherit;
use super::memory::SiteMemory;
use super::opening::Doubts;
use super::protection::{Protection, disks_of};
use super::request::divide;
use crate::capture::{Roster, roster};
use crate::datastore::{EngineOptions, Slab, start as start_engine};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, DatastoreId};
use crate::ids::{DiskId, DomainId, SegmentRef, VmId};
use crate::log::{LogOptions, ReplicationLog};
use crate::map::PointMap;
use crate::store::{Domain, DomainWriter};

/// Buffers of the log's engine.
const LOG_SLOTS: usize = 8;

impl Protection {
    /// Serves at once what ran here before on this boot of the host: its guests may still run. Or what the operator says.
    pub(super) async fn serve_early(&mut self) -> Result<()> {
        let mut memory = self.memory.lock().await;
        let Some(record) = memory.record().cloned() else { return Ok(()) };
        let known = self.are_known(&record.catalogue)?;
        // Disks that a datastore speaks for have not been written to since they were rehydrated: no guest has them.
        let fresh = self.rehydrated.as_ref().is_some_and(|datastore| !datastore.has_let_go());
        let ours = memory.is_same_boot() && known && !fresh;
        if !ours && !self.request.open_unclaimed {
            return Ok(());
        }
        if !known {
            let why = "the exports cannot be opened before the domain is claimed: a disk was never protected here, or \
                       is smaller than it was";
            return Err(Error::new(ErrorKind::Refused, format!("domain {}: {why}", self.request.domain)));
        }
        let (vms, doubts) = (&self.request.vms, Doubts::default());
        let opened = self.opener.open_disks(&mut memory, record.domain, &record.catalogue, vms, &doubts).await?;
        self.members.replace(disks_of(&opened), record.catalogue);
        if let Some(datastore) = &mut self.rehydrated {
            datastore.let_go(record.domain)?;
        }
        self.note_open(&mut memory)?;
        memory.begin_changes()?;
        drop(memory);
        self.export(&opened)?;
        self.listen()
    }

    /// Whether `catalogue` has all disks, and no image is shorter than its disk was: a guest that runs must not find the
    /// end of its disk gone.
    fn are_known(&self, catalogue: &Catalogue) -> Result<bool> {
        let mut sizes = self.opener.sizes(&self.request.vms)?.into_iter();
        Ok(self.request.vms.iter().all(|vm| {
            let id = catalogue.vm_named(vm.name.as_str()).map(|v| v.id);
            vm.disks.iter().all(|disk| {
                let size = sizes.next().unwrap_or_default();
                let mut known = catalogue.disks.iter().filter(|d| Some(d.vm) == id && d.name == disk.name);
                known.any(|known| size >= known.size || self.request.allow_shrink)
            })
        }))
    }

    /// The members are open for writing from now on, and nothing speaks of other disks any more.
    pub(super) fn note_open(&self, memory: &mut SiteMemory) -> Result<()> {
        let disks = self.members.disks();
        memory.set_open(self.opener.stamps(&disks)?);
        let ids: Vec<DiskId> = disks.iter().map(|disk| disk.index_disk().id).collect();
        memory.forget_others(&ids)
    }

    /// Opens what the pipeline works on. The domain is claimed.
    pub(super) async fn foundation(
        &mut self,
        writer: &DomainWriter,
    ) -> Result<(PointMap, Option<Catalogue>, ReplicationLog)> {
        let (domain, base) = (writer.domain().clone(), writer.base());
        self.notes.extend_from_slice(writer.warnings());
        let mut map = PointMap::load(&domain, base).await?;
        let shared = std::sync::Arc::clone(&self.memory);
        let mut memory = shared.lock().await;
        let log = self.open_log(&memory, &domain)?;
        let taken = inherit::take_over(&log, writer, &mut map, self.request.clock.as_ref()).await?;
        if taken > 0 {
            self.notes.push(format!("{taken} segments that an earlier run had not shipped are part of the domain now"));
        }
        let sizes = self.opener.sizes(&self.request.vms)?;
        let roster = roster(map.catalogue(), &self.request.vms, &sizes, self.request.allow_shrink)?;
        self.notes.extend(roster.notes.iter().cloned());
        let speaks = memory.speaks_of(&domain, base);
        let doubts = self.doubts(domain.id(), map.at(), &roster, speaks)?;
        let early = self.members.disks();
        for disk in &early {
            // Served early under another identity: what it marked would be lost.
            let index = disk.index_disk();
            if !roster.members.iter().any(|m| m.disk.id == index.id && m.disk.size == index.size) {
                let why = format!("disk {} is another one in the domain's catalogue now", disk.label());
                return Err(Error::new(ErrorKind::Refused, format!("{why}; stop its guest and start again")));
            }
        }
        if early.is_empty() {
            let (vms, catalogue) = (&self.request.vms, &roster.catalogue);
            let opened = self.opener.open_disks(&mut memory, domain.id(), catalogue, vms, &doubts).await?;
            self.members.replace(disks_of(&opened), roster.catalogue.clone());
            self.export(&opened)?;
        } else {
            self.members.replace(early, roster.catalogue.clone());
        }
        if !speaks {
            self.doubt_unproved(&memory, &doubts).await?;
        }
        self.note_recoverable(&map);
        self.note_open(&mut memory)?;
        self.take_from_datastore(&mut memory, writer, &roster.catalogue, &doubts)?;
        memory.store(domain.id(), base, writer.generation(), None, roster.catalogue.clone())?;
        self.notes.append(&mut memory.notes);
        Ok((map, roster.changed.then_some(roster.catalogue), log))
    }

    /// What the datastore that the disks were rehydrated in says of each, where there is one: proved, or why in doubt.
    fn doubts(&self, domain: DomainId, at: SegmentRef, roster: &Roster, speaks: bool) -> Result<Doubts> {
        let mut doubts = Doubts::default();
        let Some(datastore) = &self.rehydrated else { return Ok(doubts) };
        if datastore.has_let_go() && speaks {
            // They were taken from it before: the record tells.
            return Ok(doubts);
        }
        let ids: Vec<DiskId> = roster.members.iter().map(|member| member.disk.id).collect();
        for (member, look) in roster.members.iter().zip(self.opener.looks(&self.request.vms, &ids)?) {
            let proved = match look.unwatched {
                true => Err("it was written to while its bitmap could not be".to_owned()),
                false => datastore.prove(domain, at, member.disk.size, &look.stamp),
            };
            match proved {
                Ok(()) => drop(doubts.proved.insert(member.disk.id)),
                Err(why) => drop(doubts.doubted.insert(member.disk.id, why)),
            }
        }
        Ok(doubts)
    }

    /// The record does not speak of the domain's chain: what nothing else proves is compared with it.
    async fn doubt_unproved(&mut self, memory: &SiteMemory, doubts: &Doubts) -> Result<()> {
        let disks = self.members.disks();
        let others: Vec<_> = disks.iter().filter(|disk| !doubts.speak_of(disk.index_disk().id)).collect();
        if memory.record().is_some() && !others.is_empty() {
            let why = "the domain's chain is not the one that was written from here: all disks are compared with it";
            self.notes.push(why.to_owned());
        }
        for disk in others {
            disk.doubt_all().await?;
        }
        Ok(())
    }

    /// VMs that some point covers are resynced at most, never synced for the first time.
    fn note_recoverable(&self, map: &PointMap) {
        let recoverable = map.points_since_manifest().iter().map(|(_, point)| point);
        let recoverable = recoverable.chain(map.manifest().into_iter().flat_map(|m| m.points.iter().map(|(_, p)| p)));
        let recoverable: HashSet<VmId> = recoverable.flat_map(|point| point.vms.iter().copied()).collect();
        let disks = self.members.disks();
        disks.iter().filter(|d| recoverable.contains(&d.index_disk().vm)).for_each(|d| d.note_synced());
    }

    /// Takes the disks from the datastore that they were rehydrated in. The record is durable before a bit goes because of
    /// it, and tells what the files look like, as after a clean end: whoever changes them before the datastore has let go
    /// is noticed.
    fn take_from_datastore(
        &mut self,
        memory: &mut SiteMemory,
        writer: &DomainWriter,
        catalogue: &Catalogue,
        doubts: &Doubts,
    ) -> Result<()> {
        let Some(datastore) = self.rehydrated.as_mut().filter(|datastore| !datastore.has_let_go()) else {
            return Ok(());
        };
        let (disks, domain) = (self.members.disks(), writer.domain().id());
        let stamps = self.opener.stamps(&disks)?;
        memory.store(domain, writer.base(), writer.generation(), Some(stamps), catalogue.clone())?;
        for disk in disks.iter().filter(|disk| doubts.proved.contains(&disk.index_disk().id)) {
            disk.intent().proven()?;
        }
        datastore.let_go(domain)
    }

    /// The log holds what a dead generation spilled at most, which the bitmaps have marked.
    fn open_log(&self, memory: &SiteMemory, domain: &Domain) -> Result<ReplicationLog> {
        let options = EngineOptions::default();
        let engine = start_engine(self.request.engine, Slab::new(LOG_SLOTS, 1 << 20)?, options)?;
        let canonical = std::fs::canonicalize(memory.dir());
        let canonical = canonical.map_err(|e| Error::io(format!("look at {}", memory.dir().display()), e))?;
        let mut log = LogOptions::new(domain.id(), DatastoreId::of_path(&canonical), self.request.log_size);
        log.verify_payloads = false;
        log.largest_segment = divide(self.request.memory).largest_segment();
        ReplicationLog::open(&engine, memory.dir(), &self.request.domain, &log)
    }
}
