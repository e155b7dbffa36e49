//! Following in place: the disks are the very files that this site protected, and stay where they are.
//!
//! ```text
//! protection ended --look: what is valid, what diverged--> nothing, or given up by its name
//!      --> hydration map, durably --> protection record, bitmaps and log given up, durably --> disks change
//! ```
//!
//! Owns that order. While the record is there it speaks for the files, and the map is made from it anew; once it is given up
//! the map does. So a kill at any step leaves one of them that is true. Invariants: nothing that diverged is overwritten
//! before it was named and given up by that name; the images are locked against other writers while they are followed onto,
//! and the protection's state against a protection.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::format::HydrationDisk;
use crate::ids::Name;
use crate::log::log_path;
use crate::protect::SiteMemory;
use crate::store::{Domain, StorageSite};

use super::divergence::Divergence;
use super::places::Places;
use super::protected::{Start, look_at};
use super::request::RehydrateRequest;
use super::session::Session;

/// What the disks of the protection that `request` names hold and its domain does not; `None` where it remembers no disks,
/// as after they were followed onto. Changes nothing.
///
/// # Errors
/// `Refused` where the protection runs, or this site still owns the domain; what the storage site says.
pub async fn divergence(site: &StorageSite, request: &RehydrateRequest) -> Result<Option<Divergence>> {
    request.validate()?;
    let Some(state) = &request.protected else {
        let why = "what diverged is told by the state directory of the protection: name that";
        return Err(Error::new(ErrorKind::Invalid, why));
    };
    let mut domain = Domain::open(site, &request.domain).await?;
    domain.tip().await?;
    let memory = open(state, &request.domain)?;
    let start = look_at(&domain, &memory, &Places::of_request(request)).await?;
    Ok(start.map(|start| start.divergence))
}

/// Opens what a protection left. Nothing is made where none was.
fn open(state: &Path, domain: &Name) -> Result<SiteMemory> {
    let dir = state.join(domain.key());
    if !dir.is_dir() {
        let why = format!("{}: no protection of domain {domain} was here", dir.display());
        return Err(Error::new(ErrorKind::NotFound, format!("{why}; name the state directory of `freshet protect`")));
    }
    SiteMemory::open(state, domain).map_err(|e| match e.kind() {
        ErrorKind::Refused => e.while_doing("follow in place: end the protection first"),
        _ => e,
    })
}

impl Session {
    /// Takes the disks from the protection that the request names, if it names one.
    ///
    /// # Errors
    /// `Refused` where something diverged that was not given up by its name. Nothing has changed then.
    pub(super) async fn take_from_protection(&mut self) -> Result<()> {
        let Some(state) = self.request.protected.clone() else { return Ok(()) };
        let mut memory = open(&state, self.domain().name())?;
        let disks = std::sync::Arc::clone(&self.reconciler.disks);
        let start = look_at(self.domain(), &memory, disks.places()).await?;
        if let Some(start) = start {
            self.refuse_divergence(&start.divergence)?;
            self.start_from(start)?;
        }
        let log = log_path(memory.dir(), self.domain().name());
        memory.retire(self.domain().id(), &log)?;
        self.protection = Some(memory);
        Ok(())
    }

    fn refuse_divergence(&mut self, divergence: &Divergence) -> Result<()> {
        if divergence.is_empty() {
            return Ok(());
        }
        let name = divergence.name();
        if self.request.discard.as_deref() == Some(name.as_str()) {
            self.note(format!("given up, as was asked: {divergence}"));
            return Ok(());
        }
        let other = match &self.request.discard {
            Some(other) => format!("{other} was given up, which is not what there is now. "),
            None => String::new(),
        };
        let why = format!("{divergence}. {other}To lose that for good, give it up by its name: --discard {name}");
        Err(Error::new(ErrorKind::Refused, why))
    }

    /// Names what is valid on the disks, durably.
    fn start_from(&mut self, start: Start) -> Result<()> {
        self.begin_changes()?;
        let mut disks = Vec::new();
        for disk in start.disks {
            if disk.in_doubt {
                self.doubts.whole.insert(disk.disk);
            } else {
                self.doubts.parts.insert(disk.disk);
            }
            disks.push(HydrationDisk {
                disk: disk.disk,
                size: disk.size,
                pristine: false,
                valid: disk.valid,
                touched: Default::default(),
            });
        }
        let mut state = self.tracker().state();
        state.start_from(start.at, disks);
        state.commit()
    }
}
