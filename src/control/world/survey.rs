//! What there is for a plan: the domain, the point, the hypervisor, and room on the disks that it names.

use std::path::Path;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use super::SiteWorld;
use super::look::number;
use crate::failover::{DomainFacts, FailoverPlan, Loss, PointFacts, Rate, Space, Survey, as_planned};
use crate::format::MAX_SEGMENT_LEN;
use crate::hypervisor::VmSpec;
use crate::ids::{Name, SegmentNo};
use crate::rehydrate::MIN_MEMORY;
use crate::store::{BaseChoice, LIVE_FOR_MS, keys};

/// Bytes of maps and bitmaps for each byte of disk, as one in so many: a bit for each granule, twice, and the rest.
const METADATA_SHARE: u64 = 16_384;
/// Reads by which the rate is measured, side by side, and most bytes of each.
const PROBES: usize = 8;
const PROBE_LEN: u64 = 4 << 20;
/// Longest time for them, and least bytes that say anything.
const PROBE_TIME: Duration = Duration::from_secs(1);
const PROBE_LEAST: u64 = 1 << 20;
/// Beside that, whatever the size.
const LEAST_METADATA: u64 = 1 << 20;

impl SiteWorld {
    /// See [`World::survey`](crate::failover::World::survey).
    pub(super) async fn survey_for(&self, plan: &FailoverPlan) -> Survey {
        let domain = &plan.general.domain;
        let mut survey = Survey {
            largest_segment: MAX_SEGMENT_LEN,
            least_memory: MIN_MEMORY,
            appliances: vec![self.settings.site.to_string()],
            datastore: self.space(&plan.failover.datastore, &plan.failover.datastore.join(domain.key())).await,
            log_store: self.space(&plan.dr.log_store, &crate::log::log_path(&plan.dr.log_store, domain)).await,
            protect_log: {
                let state = &self.settings.protect.log_store;
                // It is made by the first protection.
                let there = state.ancestors().find(|dir| dir.is_dir()).unwrap_or(state);
                self.space(there, &crate::log::log_path(&state.join(domain.key()), domain)).await
            },
            protect_log_bytes: self.settings.protect_log_size(plan),
            runs_remote_scripts: self.settings.failover.runs_remote_scripts,
            ..Survey::default()
        };
        let own = plan.vms.vms.values().map(|vm| vm.storage_policy.as_str());
        let policies: Vec<&str> = own.chain([plan.vms.storage_policy.as_str()]).filter(|p| !p.is_empty()).collect();
        survey.unheeded = self.hypervisor.unheeded(&plan.failover.placement, &policies);
        survey.addressing = Some(self.hypervisor.addressing().map(str::to_owned));
        match self.hypervisor.networks().await {
            Ok(networks) => survey.networks = networks,
            Err(error) => survey.hypervisor_problem = Some(error.to_string()),
        }
        let facts = match self.look(domain).await {
            Ok(facts) => facts,
            Err(error) => {
                survey.store_problem = Some(error.to_string());
                return survey;
            }
        };
        let logical: u64 = facts.vms.iter().map(|vm| vm.logical_bytes).sum();
        survey.metadata_bytes = LEAST_METADATA + logical / METADATA_SHARE;
        if survey.hypervisor_problem.is_none() {
            match self.hypervisor.inventory().await {
                Ok(known) => {
                    let named = |name: &Name| facts.vms.iter().any(|vm| vm.name == *name);
                    // What this site protects of the domain, or did, it has defined.
                    let own = self.known.protected(domain).await.unwrap_or_default();
                    let foreign = |name: &Name| named(name) && !own.iter().any(|vm| vm.name == *name);
                    survey.foreign_vms = known.into_iter().map(|vm| vm.name).filter(foreign).collect();
                }
                Err(error) => survey.hypervisor_problem = Some(error.to_string()),
            }
        }
        // Where the definitions cannot be read, that is found by what needs them.
        let guests = self.specs(domain).await.unwrap_or_default();
        for guest in &guests {
            let problem = self.hypervisor.agent_problem(guest);
            survey.agent_problems.extend(problem.map(|why| (guest.name.clone(), why)));
        }
        if survey.hypervisor_problem.is_none() {
            self.foresee(plan, guests, &mut survey).await;
        }
        self.choose(plan, &facts, &mut survey).await;
        let mut facts = facts;
        if let Err(error) = self.left_to_fetch(&mut facts, survey.loss.bytes).await {
            survey.store_problem = Some(error.to_string());
            return survey;
        }
        if facts.vms.iter().any(|vm| vm.fetch_bytes > 0) {
            survey.rate = self.rate(domain).await;
        }
        survey.damage = known_damage(&facts, &survey);
        survey.facts = Some(facts);
        survey
    }

    /// VMs that could not be defined here or would not start, or would be other ones, known before anything is done.
    async fn foresee(&self, plan: &FailoverPlan, guests: Vec<VmSpec>, survey: &mut Survey) {
        // Of VMs that are not this domain's it is told already.
        let own = guests.into_iter().filter(|spec| !survey.foreign_vms.contains(&spec.name));
        let specs: Vec<_> = own.map(|spec| as_planned(spec, plan)).collect();
        match self.hypervisor.foresee(&specs).await {
            Ok(foreseen) => {
                for one in foreseen {
                    survey.refused_vms.extend(one.refused.map(|why| (one.vm.clone(), why)));
                    survey.changed_vms.extend(one.changes.into_iter().map(|change| (one.vm.clone(), change)));
                }
            }
            Err(error) => survey.hypervisor_problem = Some(error.to_string()),
        }
    }

    /// Of disks that follow only segments after the newest one that landed are left, up to the point, after which there are
    /// `cut` bytes. Nobody knows whose they are before they are here: they are shared out by the sizes of the VMs.
    async fn left_to_fetch(&self, facts: &mut DomainFacts, cut: u64) -> crate::error::Result<()> {
        let Some(follow) = facts.follow.as_ref().filter(|follow| follow.caught_up) else { return Ok(()) };
        let Some(landed) = follow.landed.or(follow.applied) else { return Ok(()) };
        let (_, view) = self.view(&facts.domain).await?;
        let (_, bytes) = view.after(landed.at).await?;
        let (bytes, logical) = (bytes.saturating_sub(cut), facts.vms.iter().map(|vm| vm.logical_bytes).sum::<u64>());
        for vm in &mut facts.vms {
            let share = u128::from(bytes) * u128::from(vm.logical_bytes) / u128::from(logical.max(1));
            // It is a part of a u64.
            vm.fetch_bytes = share as u64;
        }
        Ok(())
    }

    /// The point, and what a take-over at it would cut off.
    async fn choose(&self, plan: &FailoverPlan, facts: &DomainFacts, survey: &mut Survey) {
        let chosen: crate::error::Result<_> = async {
            let (_, view) = self.view(&facts.domain).await?;
            let point = self.resolve(&view, plan.options.point.into()).await?;
            let at = point.at.segment;
            let choice = if at == number(facts.newest_point) { BaseChoice::NewestPoint } else { BaseChoice::Point(at) };
            let preview = view.preview_take_over(choice).await?;
            Ok((PointFacts { at: point.at, time: point.time }, preview))
        }
        .await;
        match chosen {
            Ok((point, preview)) => {
                survey.point = Some(point);
                survey.loss = Loss {
                    segments: preview.cut_segments,
                    bytes: preview.cut_bytes,
                    points: preview.cut_points,
                    age_millis: facts.now.millis_since(point.time),
                    owner_alive: preview.last_sign.age_ms < LIVE_FOR_MS && facts.owner.released.is_none(),
                };
            }
            Err(error) => survey.point_problem = Some(error.to_string()),
        }
    }

    /// How fast the storage site gives out segments of the domain, tried for a moment. `None` where that is too little to say
    /// anything.
    async fn rate(&self, domain: &Name) -> Option<Rate> {
        let (_, mut view) = self.view(domain).await.ok()?;
        let tip = view.tip().await.ok()?.segment.get();
        let newest =
            (tip.saturating_sub(PROBES as u64 - 1).max(1)..=tip).filter_map(|n| view.locate(SegmentNo::new(n)));
        let keys: Vec<String> = newest.map(|segment| keys::segment(domain, segment)).collect();
        let site = view.site();
        let began = Instant::now();
        let reads: Vec<_> = keys.iter().map(|key| site.get_range(key, 0..PROBE_LEN)).collect();
        let mut reads = stream::iter(reads).buffer_unordered(PROBES);
        let mut total = 0;
        while let Ok(Some(read)) = tokio::time::timeout_at(began + PROBE_TIME, reads.next()).await {
            total += read.ok().flatten().map_or(0, |read| read.len);
        }
        let seconds = began.elapsed().as_secs_f64();
        (total >= PROBE_LEAST).then(|| Rate {
            bytes_per_second: total as f64 / seconds,
            basis: format!(
                "{} MiB of its segments were read in {seconds:.2} s just now; what compresses comes faster",
                total >> 20
            ),
        })
    }

    async fn space(&self, dir: &Path, held: &Path) -> Space {
        let (dir, held) = (dir.to_owned(), held.to_owned());
        let looked = tokio::task::spawn_blocking(move || look_at(&dir, &held)).await;
        looked.unwrap_or_else(|e| Space { problem: Some(e.to_string()), ..Space::default() })
    }
}

/// Damage of the disks that follow, where they would be used as they are. An older point than they equal is read anew.
fn known_damage(facts: &DomainFacts, survey: &Survey) -> Vec<String> {
    let Some(follow) = &facts.follow else { return Vec::new() };
    let equals = |point: &PointFacts| Some(point.at.segment) >= follow.applied.map(|applied| applied.at.segment);
    match survey.point.as_ref().is_none_or(equals) {
        true => follow.damage.iter().map(ToString::to_string).collect(),
        false => Vec::new(),
    }
}

fn look_at(dir: &Path, held: &Path) -> Space {
    use std::os::unix::fs::MetadataExt;
    let problem = |why: String| Space { problem: Some(why), ..Space::default() };
    let there = match std::fs::metadata(dir) {
        Ok(there) if there.is_dir() => there,
        Ok(_) => return problem("it is no directory".to_owned()),
        Err(error) => return problem(error.to_string()),
    };
    match rustix::fs::statvfs(dir) {
        Ok(fs) => Space {
            problem: rustix::fs::access(dir, rustix::fs::Access::WRITE_OK)
                .err()
                .map(|error| format!("it cannot be written to: {error}")),
            free_bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
            held_bytes: held_bytes(held, 0),
            device: there.dev(),
        },
        Err(error) => problem(error.to_string()),
    }
}

/// Bytes of disk that a file, or what is below a directory, takes. Of what cannot be read: none.
fn held_bytes(path: &Path, depth: usize) -> u64 {
    use std::os::unix::fs::MetadataExt;
    /// Deeper than a domain's directory ever is.
    const DEEPEST: usize = 8;
    let Ok(there) = std::fs::symlink_metadata(path) else { return 0 };
    if !there.is_dir() {
        return there.blocks() * 512;
    }
    if depth > DEEPEST {
        return 0;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| held_bytes(&entry.path(), depth + 1)).sum()
}
