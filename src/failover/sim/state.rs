//! What there is: the storage site, and each site with its disks and guests.

use std::collections::{BTreeMap, BTreeSet};

use crate::failover::facts::{Doing, HandOverRequest, Owner, PointFacts};
use crate::failover::plan::{FailoverPlan, RemoteSettings};
use crate::hypervisor::{PowerState, VmSpec};
use crate::ids::{Generation, Name, SegmentNo, SegmentRef, Time};

/// A segment that ends at a point, and the content of the domain's disks there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) at: SegmentRef,
    pub(crate) content: u64,
}

/// One site: what a kill of its process leaves.
#[derive(Debug, Default, Clone)]
pub(crate) struct SimSite {
    /// Content of the disks; `None` where there are none.
    pub(crate) content: Option<u64>,
    /// The point that the disks equal, as the site knows; `None` where guests write them.
    pub(crate) at: Option<SegmentRef>,
    /// What disks hold is not part of the chain and was never shipped.
    pub(crate) diverged: Option<SegmentRef>,
    pub(crate) following: Option<FailoverPlan>,
    /// Landed bytes that make the follower catch up, one at each look.
    pub(crate) behind: u64,
    /// Bytes that its protection has not shipped, and how many of them it ships from one look to the next.
    pub(crate) unshipped: u64,
    pub(crate) ships: u64,
    /// The generation under which its protection writes.
    pub(crate) protecting: Option<Generation>,
    pub(crate) vms: BTreeMap<Name, (VmSpec, PowerState)>,
    /// Guests that do not shut down when asked.
    pub(crate) hanging: BTreeSet<Name>,
    /// Agents of guests that answer, and the addresses that they tell.
    pub(crate) agents: BTreeMap<Name, Vec<std::net::IpAddr>>,
    /// Scripts that were run, each once however often.
    pub(crate) scripts: BTreeSet<String>,
    /// Exit codes of scripts, by program.
    pub(crate) exits: BTreeMap<String, i32>,
    /// How often scripts fail before they end as they should, by program.
    pub(crate) failing: BTreeMap<String, u32>,
    /// Things that a recovery leaves and that must be cleaned up.
    pub(crate) leftovers: bool,
    /// It forgot the domain.
    pub(crate) forgotten: bool,
    /// Damage that its rehydration finds.
    pub(crate) damage: Vec<String>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) domain: Name,
    pub(crate) home: Name,
    pub(crate) owner: Owner,
    pub(crate) request: Option<HandOverRequest>,
    pub(crate) settings: Option<(Name, RemoteSettings)>,
    pub(crate) chain: Vec<Link>,
    pub(crate) vms: Vec<Name>,
    pub(crate) unrecoverable: BTreeSet<Name>,
    pub(crate) sites: BTreeMap<Name, SimSite>,
    pub(crate) now: u64,
    /// The last content that a guest made; contents are never used twice.
    pub(crate) contents: u64,
    /// What who waits for the domain was told, and what was not shipped at that moment.
    pub(crate) told: Vec<(Doing, u64)>,
    /// What must never happen and did.
    pub(crate) violations: Vec<String>,
    /// Settling a base fails once, after the claim.
    pub(crate) base_fails: bool,
    /// Sites that do not reach the storage site.
    pub(crate) cut_off: BTreeSet<Name>,
}

impl Sim {
    /// Domain `shop` with VMs `db` and `web`, at home at and owned by the first of `sites`, running there.
    pub(crate) fn new(sites: &[&str]) -> Sim {
        let name = |n: &str| Name::new(n).unwrap();
        let home = name(sites[0]);
        let vms = vec![name("db"), name("web")];
        let owner = Owner {
            site: home.clone(),
            generation: Generation::new(1),
            claimed: Time::from_millis(1),
            forced: false,
            base: Some(SegmentRef::default()),
            released: None,
        };
        let mut sim = Sim {
            domain: name("shop"),
            home: home.clone(),
            owner,
            request: None,
            settings: None,
            told: Vec::new(),
            chain: Vec::new(),
            vms,
            unrecoverable: BTreeSet::new(),
            sites: sites.iter().map(|s| (name(s), SimSite::default())).collect(),
            now: 1_000_000,
            contents: 0,
            violations: Vec::new(),
            base_fails: false,
            cut_off: BTreeSet::new(),
        };
        let specs: Vec<VmSpec> = sim.vms.iter().map(|v| crate::failover::samples::spec("shop", v.as_str())).collect();
        let site = sim.site_mut(&home);
        site.protecting = Some(Generation::new(1));
        site.content = Some(0);
        site.vms = specs.into_iter().map(|s| (s.name.clone(), (s, PowerState::Running))).collect();
        for _ in 0..3 {
            sim.write_and_ship(&home);
        }
        sim
    }

    pub(crate) fn site(&self, site: &Name) -> &SimSite {
        &self.sites[site]
    }

    pub(crate) fn site_mut(&mut self, site: &Name) -> &mut SimSite {
        self.sites.get_mut(site).expect("a site of the sim")
    }

    pub(crate) fn tip(&self) -> Link {
        self.chain.last().copied().unwrap_or(Link { at: SegmentRef::default(), content: 0 })
    }

    pub(crate) fn point(&self) -> Option<PointFacts> {
        self.chain.last().map(|l| PointFacts { at: l.at, time: Time::from_millis(l.at.segment.get() * 1000) })
    }

    pub(crate) fn content_at(&self, at: SegmentRef) -> Option<u64> {
        match at == SegmentRef::default() {
            true => Some(0),
            false => self.chain.iter().find(|l| l.at == at).map(|l| l.content),
        }
    }

    /// A guest at `site` writes: its disks have a content that no chain has yet.
    pub(crate) fn write(&mut self, site: &Name) {
        self.contents += 1;
        let content = self.contents;
        let site = self.site_mut(site);
        site.content = Some(content);
        site.at = None;
    }

    /// What `site` wrote becomes a point, if it may write the domain.
    pub(crate) fn ship(&mut self, site: &Name) {
        let here = self.site(site);
        let (Some(generation), Some(content)) = (here.protecting, here.content) else { return };
        if self.owner.site == *site && self.owner.generation == generation && self.owner.released.is_none() {
            let n = self.tip().at.segment.get() + 1;
            self.chain.push(Link { at: SegmentRef::new(generation, SegmentNo::new(n)), content });
        }
    }

    pub(crate) fn write_and_ship(&mut self, site: &Name) {
        self.write(site);
        self.ship(site);
    }

    /// Something that must never happen.
    pub(crate) fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Whether guests of the domain run at a site.
    pub(crate) fn runs_at(&self, site: &Name) -> bool {
        self.site(site).vms.values().any(|(_, state)| *state == PowerState::Running)
    }

    /// Everything that must be the same however a task came to its end; numbers of generations are not in it.
    pub(crate) fn end_state(&self) -> String {
        let mut out = format!(
            "owner {} released {} request {:?} settings {}\n",
            self.owner.site,
            self.owner.released.is_some(),
            self.request.as_ref().filter(|r| !r.withdrawn && r.refused.is_none()).map(|r| &r.site),
            self.settings.is_some(),
        );
        for (name, site) in &self.sites {
            let disks = match (site.content, site.diverged) {
                (None, _) => "none",
                (_, Some(_)) => "diverged",
                (Some(c), None) if c == self.tip().content => "tip",
                (Some(c), None) if self.chain.iter().any(|l| l.content == c) => "older point",
                (Some(_), None) => "no point",
            };
            let vms: Vec<String> = site.vms.iter().map(|(n, (_, s))| format!("{n} {s:?}")).collect();
            out += &format!(
                "{name}: disks {disks}; following {}; protecting {}; vms {}; scripts {:?}; leftovers {}; forgotten {}\n",
                site.following.is_some(),
                site.protecting.is_some_and(|g| g == self.owner.generation && self.owner.site == *name),
                vms.join(", "),
                site.scripts,
                site.leftovers,
                site.forgotten,
            );
        }
        for violation in &self.violations {
            out += &format!("VIOLATION {violation}\n");
        }
        out
    }
}
