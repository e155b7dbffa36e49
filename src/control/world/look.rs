//! A domain as this site sees it: from its ownership log, the last look at it, and what of it is here.

use super::SiteWorld;
use crate::control::catalog::DomainRecord;
use crate::error::Result;
use crate::failover::{DomainFacts, FollowFacts, HandOverRequest, LocalDisks, Owner, PointFacts, VmFacts, VmStatus};
use crate::format::Catalogue;
use crate::ids::{Name, SegmentNo, SegmentRef};
use crate::progress::Stand;
use crate::protect::ProtectStatus;
use crate::rehydrate::{RehydrateRequest, divergence};
use crate::scan::DomainSummary;
use crate::store::{Domain, HandOver, Ownership};

impl SiteWorld {
    /// See [`World::facts`](crate::failover::World::facts).
    pub(super) async fn look(&self, domain: &Name) -> Result<DomainFacts> {
        let (record, view) = self.view(domain).await?;
        let now = crate::clock::Clock::now(&crate::clock::SystemClock);
        let summary = self.looks.look(&self.stores, &record, now).await?.found;
        let ownership = view.ownership();
        let owner = owner(ownership).ok_or_else(|| {
            crate::error::Error::new(crate::error::ErrorKind::Damaged, format!("domain {domain}: nobody claimed it"))
        })?;
        let home = ownership.generations().first().map_or(owner.site.clone(), |first| first.author.site.clone());
        let newest_point = summary.point.map(|p| PointFacts { at: p.at, time: p.time });
        let hosted = match self.hosting.get(domain) {
            Some(hosted) if hosted.is_running().await => Some(hosted.status().await),
            _ => None,
        };
        let protecting = hosted.as_ref().is_some_and(|status| !matches!(status.mode.as_str(), "fenced" | "failed"));
        let follow = self.follow_facts(domain, &view).await?;
        let is_ours = owner.site == self.settings.site;
        let has_base = ownership.newest().is_some_and(|newest| newest.base.is_some());
        let disks = self.local_disks(&record, protecting, is_ours, has_base, follow.as_ref()).await?;
        // What has come since the base is not counted with it: a plan asks the storage site how much that is.
        let done = follow.as_ref().map_or(0, |follow| if follow.caught_up { u64::MAX } else { follow.done.0 });
        let vms = vms(&summary, hosted.as_ref().filter(|_| protecting), done);
        let request = match request(ownership, &self.settings.site) {
            Some(request) => Some(self.with_words(request, &view, &owner.site).await),
            None => None,
        };
        Ok(DomainFacts {
            domain: domain.clone(),
            site: self.settings.site.clone(),
            home,
            owner,
            request,
            floor: ownership.floor(),
            newest_point,
            vms,
            protecting,
            unshipped: hosted.as_ref().filter(|_| protecting).map_or(0, |status| status.waiting_bytes),
            disks,
            follow,
            now: view.site().now(),
        })
    }

    /// VMs and disks of the domain, as of its newest segment.
    pub(super) async fn catalogue(&self, view: &mut Domain) -> Result<Catalogue> {
        let record = self.known.record(view.name()).await?;
        let now = crate::clock::Clock::now(&crate::clock::SystemClock);
        let summary = self.looks.look(&self.stores, &record, now).await?.found;
        Ok(summary.catalogue.clone())
    }

    async fn follow_facts(&self, domain: &Name, view: &Domain) -> Result<Option<FollowFacts>> {
        let Some(recovery) = self.known.recovery(domain).await?.filter(|recovery| recovery.follows) else {
            return Ok(None);
        };
        let Some((_, seen)) = self.followers.seen(domain) else {
            let problem = Some("it is not started yet".to_owned());
            let (landed, applied) = (None, None);
            let plan = recovery.plan;
            return Ok(Some(FollowFacts {
                plan,
                running: false,
                landed,
                applied,
                caught_up: false,
                done: (0, 0),
                unapplied: 0,
                disks: Vec::new(),
                damage: Vec::new(),
                problem,
            }));
        };
        let point = |stand: Option<Stand>| {
            let stand = stand?;
            Some(PointFacts { at: located(view.ownership(), stand.point), time: stand.time })
        };
        Ok(Some(FollowFacts {
            plan: recovery.plan,
            running: seen.running,
            landed: point(seen.state.landed),
            applied: point(seen.state.applied),
            // The disks equal a point: all of the base is here.
            caught_up: seen.running && seen.state.applied.is_some(),
            done: (seen.counts.done, seen.counts.total),
            unapplied: seen.state.unapplied,
            disks: seen.counts.disks,
            damage: seen.state.damage,
            problem: seen.problem,
        }))
    }

    async fn local_disks(
        &self,
        record: &DomainRecord,
        protecting: bool,
        is_ours: bool,
        has_base: bool,
        follow: Option<&FollowFacts>,
    ) -> Result<LocalDisks> {
        if protecting {
            return Ok(LocalDisks::Protected);
        }
        if let Some(follow) = follow {
            let at = follow.applied.map(|point| point.at).unwrap_or_default();
            return Ok(LocalDisks::Rehydrated { at });
        }
        let vms = self.known.protected(&record.name).await?;
        let was_protected = self.settings.protect.log_store.join(record.name.key()).is_dir();
        if !vms.is_empty() && was_protected {
            if is_ours || self.hosting.get(&record.name).is_some() {
                return Ok(match is_ours {
                    true => LocalDisks::Protected,
                    // Fenced, and still served: what it holds of its own is known when it has ended.
                    false => LocalDisks::Diverged { common: SegmentRef::default(), bytes: None },
                });
            }
            return match has_base {
                true => self.left_over(record).await,
                // Until its new owner says what it goes on from, nobody can tell where both part. Whoever follows onto
                // these disks is told then.
                false => Ok(LocalDisks::Rehydrated { at: SegmentRef::default() }),
            };
        }
        Ok(match self.known.recovery(&record.name).await? {
            Some(_) => LocalDisks::Rehydrated { at: SegmentRef::default() },
            None => LocalDisks::None,
        })
    }

    /// What a protection left whose domain belongs to another site now.
    async fn left_over(&self, record: &DomainRecord) -> Result<LocalDisks> {
        let state = self.settings.protect.log_store.clone();
        let datastore = self.known.recovery(&record.name).await?.map(|recovery| recovery.plan.failover.datastore);
        let datastore = datastore.unwrap_or_else(|| state.clone());
        let mut request = RehydrateRequest::new(record.name.clone(), datastore, state.clone());
        self.known.place(&mut request).await?;
        request.protected = Some(state);
        let site = self.stores.open(&record.store).await?;
        Ok(match divergence(&site, &request).await? {
            None => LocalDisks::Rehydrated { at: SegmentRef::default() },
            Some(found) if found.is_empty() => LocalDisks::Rehydrated { at: found.parted },
            Some(found) => LocalDisks::Diverged { common: found.parted, bytes: Some(found.bytes()) },
        })
    }
}

fn owner(ownership: &Ownership) -> Option<Owner> {
    let newest = ownership.newest()?;
    Some(Owner {
        site: newest.author.site.clone(),
        generation: newest.generation,
        claimed: newest.claimed,
        forced: newest.take_over,
        base: newest.base.as_ref().map(|base| base.last),
        released: newest.released,
    })
}

/// The segment of this number, which the follower has accepted: beyond all settled bases it is of the generation that went
/// on from the last one. The view at hand need not have seen it.
fn located(ownership: &Ownership, n: SegmentNo) -> SegmentRef {
    let newest = || ownership.newest_with_base().map_or(ownership.newest_generation(), |newest| newest.generation);
    ownership.locate(n).unwrap_or_else(|| SegmentRef::new(newest(), n))
}

/// Who asks for the domain, as the site `here` sees it.
fn request(ownership: &Ownership, here: &Name) -> Option<HandOverRequest> {
    let standing = |asked: crate::store::Asked, refused: Option<String>| HandOverRequest {
        site: asked.site,
        at: asked.at,
        refused,
        withdrawn: false,
        underway: None,
    };
    let unwanted = ownership.unwanted().map(|(site, at)| HandOverRequest {
        withdrawn: true,
        ..standing(crate::store::Asked { site: site.clone(), at }, None)
    });
    match ownership.hand_over() {
        HandOver::Asked(asked) | HandOver::Released(_, Some(asked)) => Some(standing(asked, None)),
        HandOver::Released(_, None) => unwanted,
        HandOver::None | HandOver::TurnedDown(..) if unwanted.is_some() => unwanted,
        HandOver::None | HandOver::TurnedDown(..) => {
            if let Some((asked, at)) = ownership.refusal() {
                return Some(standing(asked, Some(format!("it was turned down at {at}"))));
            }
            // The claim by which the owner released it ended the request: whoever waits is turned down all the same.
            let at = ownership.taken_back().filter(|_| ownership.newest().is_some_and(|n| n.author.site != *here))?;
            let asked = crate::store::Asked { site: here.clone(), at };
            Some(standing(asked, Some(format!("its release was taken back at {at}"))))
        }
    }
}

/// `done` is how many live bytes of all are here.
fn vms(summary: &DomainSummary, hosted: Option<&ProtectStatus>, done: u64) -> Vec<VmFacts> {
    let all = &summary.catalogue;
    let logical: u64 = summary.logical.max(1);
    let vm = |vm: &crate::format::VmInfo| {
        let covered = summary.covered_by.get(&vm.id);
        let here = hosted.and_then(|status| status.vms.iter().find(|here| here.name == vm.name.as_str()));
        let status = match here {
            Some(here) => VmStatus::from_word(&here.status).unwrap_or(VmStatus::Error),
            None if summary.covers(vm.id) => VmStatus::Recoverable,
            None if covered.is_some() => VmStatus::Resync,
            None => VmStatus::InitialSync,
        };
        let logical_bytes: u64 = all.disks_of(vm.id).map(|disk| disk.size).sum();
        // Maps tell live bytes of the domain, not of a disk: shared out by size, which is said where it is shown.
        let live = |of: u64| (u128::from(of) * u128::from(logical_bytes) / u128::from(logical)) as u64;
        let live_bytes = live(summary.live.unwrap_or(summary.logical));
        VmFacts {
            name: vm.name.clone(),
            status,
            point: covered.map(|point| PointFacts { at: point.at, time: point.time }),
            logical_bytes,
            live_bytes,
            fetch_bytes: live_bytes.saturating_sub(live(done)),
            networks: vm.shape.nics.iter().map(|nic| nic.network.clone()).collect(),
        }
    };
    let mut vms: Vec<VmFacts> = all.vms.iter().map(vm).collect();
    // Those of which nothing is shipped yet: a hand-over must wait for them, too.
    for here in hosted.iter().flat_map(|status| &status.vms) {
        let Ok(name) = Name::new(&here.name) else { continue };
        if !vms.iter().any(|vm| vm.name == name) {
            vms.push(VmFacts {
                name,
                status: VmStatus::from_word(&here.status).unwrap_or(VmStatus::Error),
                point: None,
                logical_bytes: here.disks.iter().map(|disk| disk.size).sum(),
                live_bytes: 0,
                fetch_bytes: 0,
                networks: Vec::new(),
            });
        }
    }
    vms
}

/// The number of a point, where there is one.
pub(super) fn number(point: Option<PointFacts>) -> SegmentNo {
    point.map(|point| point.at.segment).unwrap_or_default()
}
