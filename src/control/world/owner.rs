//! Who owns a domain, and changing that: claims, releases, and taking a release back.

use std::collections::BTreeMap;

use super::SiteWorld;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{Claim, PointChoice, Resumed};
use crate::ids::{Name, SegmentRef, Time, VmId};
use crate::rehydrate::Target;
use crate::store::{BaseChoice, Domain, DomainWriter, PointInfo, Points, StartOptions};

impl SiteWorld {
    /// Claims the domain, settles from where it goes on, and lets the claim go: what protects the disks claims it again.
    pub(super) async fn claim_domain(&self, claim: &Claim) -> Result<()> {
        let (record, view) = self.view(&claim.domain).await?;
        let newest = view.ownership().newest().cloned();
        let newest = newest.ok_or_else(|| Error::new(ErrorKind::Internal, "a domain has a first claim"))?;
        let own = newest.author.site == self.settings.site;
        let fits = match own {
            // Only its base is missing: whoever made the claim is gone, and the next claim settles it.
            true => newest.generation == claim.generation && newest.base.is_none(),
            false => newest.generation.next() == claim.generation,
        };
        if !fits {
            let (site, generation) = (&newest.author.site, newest.generation);
            let why = format!("domain {}: generation {generation} belongs to site {site}", claim.domain);
            return Err(Error::new(ErrorKind::Fenced, why));
        }
        let base = match (claim.forced && newest.released.is_none(), claim.point) {
            (true, PointChoice::Number(_) | PointChoice::At(_)) => {
                BaseChoice::Point(self.resolve(&view, claim.point.into()).await?.at.segment)
            }
            // The newest when the claim stands; after a release, the final point, which is the last segment there is.
            _ => BaseChoice::NewestPoint,
        };
        let options = StartOptions {
            take_ownership: Some(base),
            only_released: !claim.forced && !own,
            ..StartOptions::default()
        };
        let site = self.stores.open(&record.store).await?;
        let writer = DomainWriter::start(&site, &claim.domain, &self.settings.site, options).await?;
        writer.finish().await
    }

    /// All points that the domain can be taken over from, and the names of its VMs, as the storage site has them now.
    pub(crate) async fn points(&self, domain: &Name) -> Result<(Points, BTreeMap<VmId, Name>, Time)> {
        let (_, mut view) = self.view(domain).await?;
        let names = self.catalogue(&mut view).await?.vms.into_iter().map(|vm| (vm.id, vm.name)).collect();
        Ok((view.inheritable_points().await?, names, view.site().now()))
    }

    /// A point that the domain can be taken over from.
    pub(super) async fn resolve(&self, view: &Domain, target: Target) -> Result<PointInfo> {
        let points = view.inheritable_points().await?;
        let none = || Error::new(ErrorKind::NotFound, format!("domain {} has no point yet", view.name()));
        Ok(match target {
            Target::Newest => points.newest().ok_or_else(none)?,
            Target::Point(n) => points.point(n)?,
            Target::At(time) => points.at_or_before(time)?,
        }
        .clone())
    }

    /// Releases the domain at its last segment, which is `at`.
    pub(super) async fn release_domain(&self, domain: &Name, at: SegmentRef) -> Result<()> {
        let (record, _) = self.view(domain).await?;
        let site = self.stores.open(&record.store).await?;
        let writer = DomainWriter::start(&site, domain, &self.settings.site, StartOptions::default()).await?;
        if writer.base() != at {
            let (base, why) = (writer.base(), "something was written after it was drained");
            writer.finish().await?;
            return Err(Error::new(ErrorKind::Internal, format!("domain {domain} ends at {base} and not {at}: {why}")));
        }
        let released = writer.release().await;
        let finished = writer.finish().await;
        released?;
        finished
    }

    /// Withdraws the release.
    pub(super) async fn take_back(&self, domain: &Name) -> Result<Resumed> {
        let (_, mut view) = self.view(domain).await?;
        match view.resume(&self.settings.site).await {
            Ok(_) => Ok(Resumed::Ours),
            Err(error) if error.kind() == ErrorKind::Fenced => match view.ownership().newest() {
                Some(newest) if newest.author.site != self.settings.site => {
                    Ok(Resumed::Taken { by: newest.author.site.clone(), generation: newest.generation })
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}
