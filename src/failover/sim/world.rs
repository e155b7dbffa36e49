//! One run of a site's process, as the world that an engine acts through.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;

use super::faults::Faults;
use super::state::Sim;
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::facts::{DomainFacts, FollowFacts, HandOverRequest, LocalDisks, Owner, Underway, VmFacts};
use crate::failover::plan::{FailoverPlan, PointChoice, RemoteSettings};
use crate::failover::survey::{Loss, Space, Survey};
use crate::failover::words::VmStatus;
use crate::failover::world::{Claim, Reached, RehydrateTo, Resumed, ScriptEnd, ScriptRun, World};
use crate::hypervisor::{Hypervisor, VmSpec};
use crate::ids::{Name, SegmentRef, Time};
use crate::progress::Progress;

/// Disks that are half-way between two points.
const HALF_WAY: u64 = u64::MAX;

#[derive(Clone)]
pub(crate) struct Process {
    sim: Arc<Mutex<Sim>>,
    site: Name,
    faults: Arc<Faults>,
}

/// The sim's clock.
#[derive(Debug)]
pub(crate) struct SimClock(pub(crate) Arc<Mutex<Sim>>);

impl Clock for SimClock {
    fn now(&self) -> Time {
        Time::from_millis(self.0.lock().unwrap().now)
    }
}

fn error(kind: ErrorKind, text: impl Into<String>) -> Error {
    Error::new(kind, text)
}

impl Process {
    /// A process starts at `site`. A protection that ran there comes back, as a new generation.
    pub(crate) fn start(sim: &Arc<Mutex<Sim>>, site: &Name, faults: Arc<Faults>) -> Process {
        let mut s = sim.lock().unwrap();
        let serves = s.site(site).protecting.is_some_and(|g| g == s.owner.generation);
        if serves && s.owner.site == *site && s.owner.released.is_none() {
            new_generation(&mut s, site);
        }
        drop(s);
        Process { sim: sim.clone(), site: site.clone(), faults }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.site
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        self.sim.lock().unwrap()
    }

    /// One call: a moment, its effect, a moment.
    pub(crate) async fn call<T>(&self, what: &str, effect: impl FnOnce(&mut Sim, &Name) -> Result<T>) -> Result<T> {
        self.faults.moment(&format!("before {what}")).await?;
        let done = effect(&mut self.lock(), &self.site);
        self.faults.moment(&format!("after {what}")).await?;
        done
    }

    /// A call to the storage site.
    async fn at_store<T>(&self, what: &str, effect: impl FnOnce(&mut Sim, &Name) -> Result<T>) -> Result<T> {
        self.call(what, |sim, site| match sim.cut_off.contains(site) {
            true => Err(error(ErrorKind::Unreachable, format!("site {site} does not reach the storage site"))),
            false => effect(sim, site),
        })
        .await
    }
}

/// The owner goes on as a new generation of its own.
fn new_generation(sim: &mut Sim, site: &Name) {
    let base = sim.tip().at;
    let generation = sim.owner.generation.next();
    sim.owner = Owner { generation, base: Some(base), forced: false, ..sim.owner.clone() };
    sim.request = sim.request.take().filter(|r| r.withdrawn || r.refused.is_some());
    sim.site_mut(site).protecting = Some(generation);
}

fn local_disks(sim: &Sim, site: &Name) -> LocalDisks {
    let here = sim.site(site);
    match (here.diverged, here.content, here.protecting, here.at) {
        (Some(common), ..) => LocalDisks::Diverged { common, bytes: Some(4096) },
        (None, None, ..) => LocalDisks::None,
        (None, Some(_), None, Some(at)) => LocalDisks::Rehydrated { at },
        _ => LocalDisks::Protected,
    }
}

fn facts(sim: &mut Sim, site: &Name) -> Result<DomainFacts> {
    if sim.site(site).forgotten {
        return Err(error(ErrorKind::NotFound, format!("site {site} knows no domain shop")));
    }
    follow_on(sim, site);
    let (point, now) = (sim.point(), Time::from_millis(sim.now));
    let vm = |name: &Name| VmFacts {
        name: name.clone(),
        status: if sim.unrecoverable.contains(name) { VmStatus::InitialSync } else { VmStatus::Recoverable },
        point,
        logical_bytes: 1 << 30,
        live_bytes: 1 << 20,
        fetch_bytes: 1 << 20,
        networks: Vec::new(),
    };
    let here = sim.site(site);
    let follow = here.following.as_ref().map(|plan| FollowFacts {
        plan: plan.clone(),
        running: true,
        landed: point,
        applied: point,
        caught_up: here.behind == 0,
        done: (3 - here.behind.min(3), 3),
        unapplied: 0,
        disks: Vec::new(),
        damage: Vec::new(),
        problem: None,
    });
    Ok(DomainFacts {
        domain: sim.domain.clone(),
        site: site.clone(),
        home: sim.home.clone(),
        owner: sim.owner.clone(),
        request: sim.request.clone(),
        floor: Default::default(),
        newest_point: point,
        vms: sim.vms.iter().map(vm).collect(),
        protecting: here.protecting == Some(sim.owner.generation) && sim.owner.site == *site,
        unshipped: here.unshipped,
        disks: local_disks(sim, site),
        follow,
        now,
    })
}

/// A follower gets on by itself, and what waits to be shipped is.
fn follow_on(sim: &mut Sim, site: &Name) {
    let tip = sim.tip();
    let here = sim.site_mut(site);
    here.unshipped = here.unshipped.saturating_sub(here.ships);
    if here.following.is_some() {
        here.behind = here.behind.saturating_sub(1);
        if here.behind == 0 {
            (here.content, here.at) = (Some(tip.content), Some(tip.at));
        }
    }
}

fn resolve(sim: &Sim, point: PointChoice) -> Result<SegmentRef> {
    let found = match point {
        PointChoice::Newest => sim.chain.last(),
        PointChoice::Number(n) => sim.chain.iter().find(|l| l.at.segment == n),
        PointChoice::At(t) => sim.chain.iter().rfind(|l| l.at.segment.get() * 1000 <= t.millis()),
    };
    found.map(|l| l.at).ok_or_else(|| error(ErrorKind::NotFound, "there is no such point"))
}

/// The first half of a claim: the generation is opened, and the one before sealed.
fn open_generation(sim: &mut Sim, site: &Name, claim: &Claim) -> Result<()> {
    let owner = sim.owner.clone();
    if owner.site == *site && owner.generation == claim.generation {
        if owner.base.is_some() {
            sim.violate(format!("{site} claims {} twice", claim.generation));
        }
        return Ok(());
    }
    if owner.generation.next() != claim.generation {
        let why = format!("generation {} belongs to site {}", claim.generation.get(), owner.site);
        return Err(error(ErrorKind::Fenced, why));
    }
    if owner.released.is_none() && !claim.forced {
        return Err(error(ErrorKind::Refused, format!("site {} has not released it", owner.site)));
    }
    sim.owner = Owner {
        site: site.clone(),
        generation: claim.generation,
        claimed: Time::from_millis(sim.now),
        forced: owner.released.is_none(),
        base: None,
        released: None,
    };
    sim.request = None;
    Ok(())
}

/// The second half: what it inherits is settled, and the rest of the chain cut off.
fn settle_base(sim: &mut Sim, site: &Name, claim: &Claim) -> Result<()> {
    if sim.owner.site != *site || sim.owner.generation != claim.generation {
        return Err(error(ErrorKind::Fenced, format!("site {} was first", sim.owner.site)));
    }
    if sim.owner.base.is_some() {
        return Ok(());
    }
    if std::mem::take(&mut sim.base_fails) {
        return Err(error(ErrorKind::NotFound, "the point is gone"));
    }
    let base = match sim.owner.forced {
        true => resolve(sim, claim.point)?,
        false => sim.tip().at,
    };
    let content = sim.content_at(base);
    sim.chain.retain(|l| l.at.segment <= base.segment);
    sim.owner.base = Some(base);
    let planned = !sim.owner.forced;
    let others: Vec<Name> = sim.sites.keys().filter(|s| *s != site).cloned().collect();
    for other in others {
        if sim.site(&other).following.is_some() || sim.site(&other).content.is_none() {
            continue;
        }
        let known = sim.site(&other).at.is_some_and(|at| sim.content_at(at) == sim.site(&other).content);
        if sim.site(&other).content != content && !known {
            if planned {
                sim.violate(format!("a planned failover loses what {other} wrote"));
            }
            sim.site_mut(&other).diverged = Some(base);
        }
    }
    Ok(())
}

#[async_trait]
impl World for Process {
    fn site(&self) -> Name {
        self.site.clone()
    }

    fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::new(self.clone())
    }

    async fn sleep(&self, time: Duration) {
        // Others have their turn meanwhile.
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        self.lock().now += u64::try_from(time.as_millis()).unwrap();
    }

    async fn facts(&self, _: &Name) -> Result<DomainFacts> {
        self.at_store("facts", facts).await
    }

    async fn survey(&self, plan: &FailoverPlan) -> Result<Survey> {
        let plan = plan.clone();
        self.at_store("survey", move |sim, site| {
            let facts = facts(sim, site)?;
            let point = resolve(sim, plan.options.point);
            let alive = !sim.cut_off.contains(&sim.owner.site);
            let space = Space { problem: None, free_bytes: 1 << 40, held_bytes: 0, device: 1 };
            Ok(Survey {
                point: point.as_ref().ok().and(sim.point()),
                point_problem: point.err().map(|e| e.to_string()),
                facts: Some(facts),
                loss: Loss { age_millis: 1000, owner_alive: alive, ..Loss::default() },
                networks: Some(vec!["vm-net".into()]),
                datastore: space.clone(),
                log_store: space,
                largest_segment: 1 << 20,
                metadata_bytes: 1 << 20,
                least_memory: 64 << 20,
                appliances: vec!["a1".into()],
                ..Survey::default()
            })
        })
        .await
    }

    async fn publish_remote_settings(&self, _: &Name, settings: Option<&RemoteSettings>) -> Result<()> {
        let settings = settings.cloned();
        self.at_store("publish-settings", move |sim, site| {
            sim.settings = settings.map(|s| (site.clone(), s));
            Ok(())
        })
        .await
    }

    async fn remote_settings(&self, _: &Name, from: &Name) -> Result<Option<RemoteSettings>> {
        let from = from.clone();
        self.at_store("remote-settings", move |sim, _| {
            Ok(sim.settings.as_ref().filter(|(site, _)| *site == from).map(|(_, s)| s.clone()))
        })
        .await
    }

    async fn tell_underway(&self, _: &Name, underway: &Underway) {
        let underway = underway.clone();
        let told = self.at_store("tell-underway", move |sim, site| {
            let unshipped = sim.site(site).unshipped;
            sim.told.push((underway.doing, unshipped));
            if let Some(request) = &mut sim.request {
                request.underway = Some(underway);
            }
            Ok(())
        });
        // It is a help only.
        drop(told.await);
    }

    async fn request(&self, _: &Name) -> Result<()> {
        self.at_store("request", |sim, site| {
            if sim.request.as_ref().is_some_and(|r| r.site == *site && !r.withdrawn && r.refused.is_none()) {
                sim.violate(format!("{site} asks twice"));
            }
            let at = Time::from_millis(sim.now);
            let site = site.clone();
            sim.request = Some(HandOverRequest { site, at, refused: None, withdrawn: false, underway: None });
            Ok(())
        })
        .await
    }

    async fn withdraw_request(&self, _: &Name) -> Result<()> {
        self.at_store("withdraw-request", |sim, site| {
            if let Some(request) = sim.request.as_mut().filter(|r| r.site == *site) {
                request.withdrawn = true;
            }
            Ok(())
        })
        .await
    }

    async fn refuse_request(&self, _: &Name, request: &HandOverRequest, why: &str) -> Result<()> {
        let (asked, why) = ((request.site.clone(), request.at), why.to_owned());
        self.at_store("refuse-request", move |sim, _| {
            if let Some(request) = sim.request.as_mut().filter(|r| (r.site.clone(), r.at) == asked) {
                request.refused = Some(why);
            }
            Ok(())
        })
        .await
    }

    async fn claim(&self, claim: &Claim) -> Result<()> {
        let (open, settle) = (claim.clone(), claim.clone());
        self.at_store("claim", move |sim, site| open_generation(sim, site, &open)).await?;
        self.at_store("base", move |sim, site| settle_base(sim, site, &settle)).await
    }

    async fn rehydrate(&self, to: &RehydrateTo, progress: Arc<Progress>, cancel: Cancel) -> Result<Reached> {
        let to = to.clone();
        let point = to.point;
        let (at, content) = self
            .at_store("plan-rehydration", move |sim, site| {
                if sim.site(site).diverged.is_some() && !to.plan.options.accept_divergence {
                    sim.violate(format!("rehydrate over what {site} wrote"));
                }
                if sim.site(site).protecting == Some(sim.owner.generation) && sim.owner.site == *site {
                    sim.violate(format!("rehydrate under the protection at {site}"));
                }
                let at = resolve(sim, point)?;
                let content = sim.content_at(at).expect("it was resolved");
                let here = sim.site_mut(site);
                if here.at != Some(at) {
                    (here.content, here.at) = (Some(HALF_WAY), None);
                }
                here.leftovers = true;
                here.diverged = None;
                here.protecting = None;
                Ok((at, content))
            })
            .await?;
        progress.add_total(10);
        progress.add_done(10);
        cancel.check()?;
        self.at_store("rehydrate", move |sim, site| {
            let here = sim.site_mut(site);
            (here.content, here.at) = (Some(content), Some(at));
            Ok(Reached { at, damage: here.damage.clone() })
        })
        .await
    }

    async fn follow(&self, plan: &FailoverPlan) -> Result<()> {
        let plan = plan.clone();
        self.call("follow", move |sim, site| {
            let owner = sim.owner.site == *site;
            let here = sim.site(site);
            if here.following.is_some() || owner || (here.diverged.is_some() && !plan.options.accept_divergence) {
                sim.violate(format!("{site} begins to follow though it follows, owns or would lose something"));
            }
            let here = sim.site_mut(site);
            here.following = Some(plan);
            here.behind = 3;
            here.leftovers = true;
            here.diverged = None;
            here.protecting = None;
            Ok(())
        })
        .await
    }

    async fn finish_following(&self, _: &Name, at: SegmentRef, _: Arc<Progress>, cancel: Cancel) -> Result<Reached> {
        cancel.check()?;
        self.at_store("finish-following", move |sim, site| {
            let content = sim.content_at(at);
            let here = sim.site_mut(site);
            if here.following.take().is_some() {
                (here.content, here.at) = (content, Some(at));
            } else if here.at != Some(at) {
                return Err(error(ErrorKind::NotFound, "nothing follows"));
            }
            Ok(Reached { at, damage: here.damage.clone() })
        })
        .await
    }

    async fn unfollow(&self, _: &Name) -> Result<()> {
        self.call("unfollow", |sim, site| {
            sim.site_mut(site).following = None;
            Ok(())
        })
        .await
    }

    async fn protect(&self, _: &Name, _: Option<&FailoverPlan>, _: &[Name]) -> Result<()> {
        self.at_store("protect", |sim, site| {
            if sim.owner.site != *site || sim.owner.released.is_some() {
                return Err(error(ErrorKind::Fenced, format!("the domain belongs to site {}", sim.owner.site)));
            }
            let tip = sim.tip();
            let here = sim.site(site);
            if here.protecting == Some(sim.owner.generation) {
                sim.violate(format!("{site} protects twice"));
            } else if sim.owner.base.is_none() || here.content != Some(tip.content) || here.at != Some(tip.at) {
                sim.violate(format!("{site} protects disks that do not equal the tip"));
            }
            new_generation(sim, site);
            Ok(())
        })
        .await
    }

    async fn drain(&self, _: &Name, _: Arc<Progress>) -> Result<SegmentRef> {
        self.at_store("ship-the-rest", |sim, site| {
            if sim.runs_at(site) {
                sim.violate(format!("{site} drains while guests run"));
            }
            if sim.site(site).content != Some(sim.tip().content) {
                sim.ship(site);
            }
            Ok(())
        })
        .await?;
        self.at_store("end-protection", |sim, site| {
            let tip = sim.tip();
            if sim.site(site).content != Some(tip.content) {
                return Err(error(ErrorKind::Fenced, format!("the domain belongs to site {}", sim.owner.site)));
            }
            let here = sim.site_mut(site);
            here.protecting = None;
            here.at = Some(tip.at);
            Ok(tip.at)
        })
        .await
    }

    async fn release(&self, _: &Name, at: SegmentRef) -> Result<()> {
        self.at_store("release", move |sim, site| {
            if sim.owner.site != *site {
                return Err(error(ErrorKind::Fenced, format!("the domain belongs to site {}", sim.owner.site)));
            }
            if sim.owner.released.is_some() || sim.site(site).protecting.is_some() || at != sim.tip().at {
                sim.violate(format!("{site} releases twice, or before the end"));
            }
            sim.owner.released = Some(Time::from_millis(sim.now));
            Ok(())
        })
        .await
    }

    async fn resume(&self, _: &Name) -> Result<Resumed> {
        self.at_store("resume", |sim, site| {
            if sim.owner.site != *site {
                return Ok(Resumed::Taken { by: sim.owner.site.clone(), generation: sim.owner.generation });
            }
            if sim.owner.released.take().is_some()
                && let Some(request) = &mut sim.request
            {
                request.refused.get_or_insert("it took its release back".into());
            }
            Ok(Resumed::Ours)
        })
        .await
    }

    async fn guests(&self, _: &Name) -> Result<Vec<VmSpec>> {
        self.call("guests", |sim, _| {
            Ok(sim.vms.iter().map(|v| crate::failover::samples::spec("shop", v.as_str())).collect())
        })
        .await
    }

    async fn run_script(&self, run: &ScriptRun) -> Result<ScriptEnd> {
        let run = run.clone();
        self.call("script", move |sim, site| {
            let program = run.command[0].clone();
            if let Some(left) = sim.site_mut(site).failing.get_mut(&program).filter(|left| **left > 0) {
                *left -= 1;
                return Ok(ScriptEnd { code: Some(1), timed_out: false, output: "not yet".to_owned() });
            }
            let code = sim.site(site).exits.get(&program).copied().unwrap_or(0);
            sim.site_mut(site).scripts.insert(format!("{program} {}", run.environment["FRESHET_VM"]));
            Ok(ScriptEnd { code: Some(code), timed_out: false, output: format!("{program} says hello") })
        })
        .await
    }

    async fn port_is_open(&self, host: &str, _: u16) -> bool {
        !self.lock().site(&self.site).exits.contains_key(host)
    }

    async fn clean_up(&self, _: &Name) -> Result<()> {
        self.at_store("clean-up", |sim, site| {
            sim.site_mut(site).leftovers = false;
            sim.settings = sim.settings.take().filter(|(from, _)| from != site);
            Ok(())
        })
        .await
    }

    async fn forget(&self, _: &Name, delete_disks: bool) -> Result<()> {
        self.call("forget", move |sim, site| {
            let here = sim.site_mut(site);
            here.forgotten = true;
            here.leftovers = false;
            if delete_disks {
                (here.content, here.at, here.diverged) = (None, None, None);
            }
            Ok(())
        })
        .await
    }
}
