//! Plans that cannot work, and what is said about them.

use crate::failover::facts::{DomainFacts, FollowFacts, LocalDisks, Owner, PointFacts, VmFacts};
use crate::failover::plan::{Direction, FailoverMode, FailoverPlan};
use crate::failover::samples::{self, name};
use crate::failover::survey::{Loss, Rate, Space, Survey};
use crate::failover::task::{Completion, TaskKind};
use crate::failover::validate::{Act, has_errors};
use crate::failover::words::{DomainMode, VmStatus};
use crate::ids::{Generation, Name, SegmentNo, SegmentRef, Time};
use crate::progress::DiskDamage;

fn vm(text: &str, status: VmStatus) -> VmFacts {
    let at = SegmentRef::new(Generation::new(1), SegmentNo::new(9));
    VmFacts {
        name: name(text),
        status,
        point: Some(PointFacts { at, time: Time::from_millis(40_000) }),
        logical_bytes: 10 << 30,
        live_bytes: 2 << 30,
        fetch_bytes: 1 << 30,
        networks: vec!["lan".into()],
    }
}

fn facts() -> DomainFacts {
    DomainFacts {
        domain: name("shop"),
        site: name("b"),
        home: name("a"),
        owner: Owner {
            site: name("a"),
            generation: Generation::new(1),
            claimed: Time::from_millis(1),
            forced: false,
            base: Some(SegmentRef::default()),
            released: None,
        },
        request: None,
        floor: SegmentNo::new(1),
        newest_point: vm("x", VmStatus::Recoverable).point,
        vms: vec![vm("db", VmStatus::Recoverable), vm("web", VmStatus::Recoverable)],
        protecting: false,
        unshipped: 0,
        disks: LocalDisks::None,
        follow: None,
        now: Time::from_millis(50_000),
    }
}

fn survey() -> Survey {
    let space = |device| Space { problem: None, free_bytes: 100 << 30, held_bytes: 0, device };
    Survey {
        facts: Some(facts()),
        point: facts().newest_point,
        loss: Loss { segments: 2, bytes: 77, points: 1, age_millis: 10_000, owner_alive: false },
        networks: Some(vec!["vm-net".into()]),
        datastore: space(1),
        log_store: space(2),
        protect_log: space(3),
        protect_log_bytes: 1 << 30,
        largest_segment: 64 << 20,
        metadata_bytes: 1 << 20,
        least_memory: 64 << 20,
        appliances: vec!["a1".into()],
        rate: Some(Rate { bytes_per_second: 1e9, basis: "a probe".into() }),
        ..Survey::default()
    }
}

fn found(plan: &FailoverPlan, survey: &Survey, act: Act) -> Vec<String> {
    plan.validate(survey, act).iter().map(ToString::to_string).collect()
}

#[test]
fn a_sound_plan_has_no_findings_and_a_summary() {
    let plan = samples::plan("shop");
    assert_eq!(found(&plan, &survey(), Act::Start), Vec::<String>::new());
    let summary = plan.summary(&survey(), Act::Start);
    assert_eq!((summary.fetch_bytes, summary.age_millis), (2 << 30, Some(10_000)));
    assert!((summary.seconds.unwrap() - 2.147).abs() < 0.01 && summary.basis == "a probe");
    assert_eq!(summary.loss.unwrap().to_string().matches("1 points and 2 segments (77 bytes)").count(), 1);
    let mut planned = plan;
    planned.failover.planned = true;
    assert!(planned.summary(&survey(), Act::Start).loss.is_none());
}

/// A change of plan or survey, and a part of the finding that it must lead to.
type Case = (fn(&mut FailoverPlan, &mut Survey), &'static str);

const CASES: &[Case] = &[
    (|_, s| s.store_problem = Some("no route".into()), "general.domain: domain shop cannot be read: no route"),
    (|_, s| s.facts = None, "import it first"),
    (
        |p, s| {
            let book =
                r#"{"groups":[{"name":"g","vms":[{"vm":"db","nics":[{"nic":0,"ip":{"address":"10.9.0.5/24"}}]}]}]}"#;
            p.options.runbook = Some(serde_json::from_str(book).unwrap());
            s.addressing = Some(Err("it is on another host".into()));
        },
        "runbook.groups[0].db.nics[0].ip: address 10.9.0.5/24 cannot be handed to the guest: it is on another host",
    ),
    (
        |p, _| {
            let book = r#"{"groups":[{"name":"g","vms":[{"vm":"db","nics":[{"nic":7,"network":"vm-net"}]}]}]}"#;
            p.options.runbook = Some(serde_json::from_str(book).unwrap());
        },
        "runbook.groups[0].db.nics[7]: VM db has 1 network cards, counted from 0",
    ),
    (
        |p, s| {
            let book = r#"{"groups":[{"name":"g","vms":[{"vm":"db"},{"vm":"web","wait_for":[{"probe":{"guest-agent":{}}}]}]}]}"#;
            p.options.runbook = Some(serde_json::from_str(book).unwrap());
            s.agent_problems = vec![(name("db"), "of no matter".into()), (name("web"), "it has no channel".into())];
        },
        "runbook.groups[0].web.wait_for: the agent in VM web is waited for, and cannot be asked: it has no channel",
    ),
    (
        |_, s| {
            let facts = s.facts.as_mut().unwrap();
            (facts.owner.site, facts.protecting) = (name("b"), true);
        },
        "this site owns it already",
    ),
    (
        |p: &mut FailoverPlan, _| p.options.from = Some(name("z")),
        "it belongs to site a since 1970-01-01T00:00:00.001Z, and no longer to z",
    ),
    (|_, s| s.facts.as_mut().unwrap().protecting = true, "still serves its disks"),
    (|p, _| p.general.direction = Direction::Failback, "at home at site a"),
    (|_, s| s.facts.as_mut().unwrap().home = name("b"), "choose a failback"),
    (|_, s| s.facts.as_mut().unwrap().vms.clear(), "it has no VMs"),
    (
        |_, s| s.facts.as_mut().unwrap().vms.iter_mut().for_each(|v| v.status = VmStatus::InitialSync),
        "none of its 2 VMs is Recoverable",
    ),
    (|_, s| s.point_problem = Some("no point 7".into()), "options.point: no point 7"),
    (|_, s| s.point = None, "wait for its first one"),
    (|_, s| s.facts.as_mut().unwrap().floor = SegmentNo::new(99), "is below 99"),
    (|p, _| p.options.accept_loss = false, "loses what was written in the last 10 s"),
    (|_, s| s.datastore.problem = Some("not a directory".into()), "failover.datastore: /datastore: not a directory"),
    (|_, s| s.datastore.free_bytes = 1 << 30, "failover.datastore: 1073741824 bytes are free, 2147483648 are needed"),
    (
        |_, s| {
            (s.datastore.free_bytes, s.log_store.device) = (3 << 30, 1);
        },
        "3221225472 bytes are free, 6442450944 are needed",
    ),
    (|p, _| p.failover.datastore = "relative".into(), "no absolute path"),
    (|p, _| p.dr.log_store = "/a/../b".into(), "no absolute path"),
    (|_, s| s.hypervisor_problem = Some("refused".into()), "the hypervisor cannot be asked: refused"),
    (|p, _| p.vms.default_network.clear(), "vms.vms.db.networks[0]: card 0 of VM db, on network \"lan\""),
    (|p, _| p.vms.default_network = "nowhere".into(), "this site has no network \"nowhere\""),
    (|p, _| p.appliance_networks.internal = "nowhere".into(), "appliance-networks.internal"),
    (
        |p, _| {
            p.vms.vms.insert(name("ghost"), Default::default());
        },
        "no VM ghost",
    ),
    (
        |p, _| {
            let setting = serde_json::from_str(r#"{"cpus":0,"memory_bytes":7}"#).unwrap();
            p.vms.vms.insert(name("db"), setting);
        },
        "vms.vms.db.memory_bytes: is 7",
    ),
    (
        |_, s| s.unheeded = vec!["placement.datacenter means nothing to it".into()],
        "failover.placement: placement.datacenter means nothing to it",
    ),
    (|_, s| s.foreign_vms = vec![name("web")], "a VM web that is not of this domain"),
    (|_, s| s.refused_vms = vec![(name("web"), "it boots by UEFI".into())], "vms.vms.web: it boots by UEFI"),
    (|p, _| p.dr.appliance = "other".into(), "no appliance \"other\""),
    (|p, _| p.dr.log_size = 1, "dr.log_size: 1 bytes are too few"),
    (|_, s| s.log_store.free_bytes = 1, "dr.log_size: 1 bytes are free there"),
    (|_, s| s.log_store.problem = Some("read-only".into()), "dr.log_store: /log: read-only"),
    (
        |_, s| s.protect_log.free_bytes = 7,
        "the log of the protection that follows takes 1073741824 bytes, and 7 are free for it",
    ),
    (
        |p, s| {
            (s.protect_log.device, s.protect_log.free_bytes) = (s.log_store.device, 1 << 30);
            p.dr.log_size = 1 << 30;
        },
        "and 0 are free for it",
    ),
    (|_, s| s.protect_log.problem = Some("read-only".into()), "the protection that follows has no place: read-only"),
    (
        |_, s| (s.protect_log.device, s.datastore.free_bytes) = (1, 3 << 29),
        "1610612736 bytes are free, 3221225472 are needed",
    ),
    (|p, _| p.dr.metadata_size = 1, "dr.metadata_size"),
    (|p, _| p.dr.memory = 1, "dr.memory"),
    (|p, _| p.options.release_limit_seconds = 0, "release_limit_seconds"),
    (|_, s| s.damage = vec!["db/system".into()], "the disks would not be as they were: db/system"),
    (
        |_, s| {
            let common = SegmentRef::new(Generation::new(1), SegmentNo::new(4));
            s.facts.as_mut().unwrap().disks = LocalDisks::Diverged { common, bytes: None };
        },
        "an unknown number of bytes after segment 4",
    ),
    (|p, _| p.options.in_place = true, "this site has no disks of it"),
    (|_, s| s.facts.as_mut().unwrap().follow = Some(following()), "complete the continuous failover instead"),
    (
        |p, _| p.options.runbook = Some(serde_json::from_str(r#"{"groups":[{"name":""}]}"#).unwrap()),
        "runbook.groups[0].name",
    ),
    (|p, _| p.options.resume_remote = Some(remote()), "only a planned failover"),
    (
        |p, _| {
            p.vms.storage_policy = "x".repeat(5000);
        },
        "a text of 5000 bytes",
    ),
];

#[test]
fn what_is_wrong_is_found_and_keeps_the_plan_from_being_started() {
    for (change, part) in CASES {
        let (mut plan, mut survey) = (samples::plan("shop"), survey());
        change(&mut plan, &mut survey);
        let findings = plan.validate(&survey, Act::Start);
        let texts = found(&plan, &survey, Act::Start).join("\n");
        assert!(texts.contains(part), "{part:?} is missing in\n{texts}");
        assert!(has_errors(&findings), "{part}");
    }
}

#[test]
fn many_things_are_found_at_once() {
    let (mut plan, mut survey) = (samples::plan("shop"), survey());
    plan.dr.memory = 1;
    plan.options.accept_loss = false;
    plan.vms.default_network.clear();
    survey.datastore.free_bytes = 0;
    let errors = plan.validate(&survey, Act::Start).len();
    assert_eq!(errors, 5, "two cards, memory, loss, room");
}

#[test]
fn what_is_only_to_be_known_is_a_warning() {
    let (mut plan, mut survey) = (samples::plan("shop"), survey());
    survey.loss.owner_alive = true;
    survey.datastore.free_bytes = 5 << 30;
    survey.facts.as_mut().unwrap().vms[1].status = VmStatus::Resync;
    survey.changed_vms = vec![(name("db"), "it gets q35".into()), (name("gone"), "it takes no part".into())];
    let findings = plan.validate(&survey, Act::Start);
    assert!(!has_errors(&findings) && findings.len() == 4, "{findings:?}");
    assert!(found(&plan, &survey, Act::Start).join("\n").contains("vms.vms.db: it gets q35"), "{findings:?}");
    plan.failover.planned = true;
    survey.loss.owner_alive = false;
    let texts = found(&plan, &survey, Act::Start).join("\n");
    assert!(texts.contains("gives no sign of life"), "{texts}");
}

fn following() -> FollowFacts {
    FollowFacts {
        plan: samples::plan("shop"),
        running: true,
        landed: None,
        applied: None,
        caught_up: true,
        done: (0, 0),
        unapplied: 0,
        disks: Vec::new(),
        damage: Vec::new(),
        problem: None,
    }
}

fn remote() -> crate::failover::RemoteSettings {
    let plan = samples::plan("shop");
    crate::failover::RemoteSettings {
        failover: plan.failover,
        vms: plan.vms,
        appliance_networks: plan.appliance_networks,
        dr: plan.dr,
        runbook: None,
    }
}

#[test]
fn completing_needs_disks_that_follow_and_takes_all_vms() {
    let (mut plan, mut survey) = (samples::plan("shop"), survey());
    plan.general.mode = FailoverMode::Continuous;
    assert!(found(&plan, &survey, Act::Complete).join("\n").contains("no disks at this site follow it"));
    let facts = survey.facts.as_mut().unwrap();
    facts.follow = Some(following());
    facts.vms[0].status = VmStatus::InitialSync;
    let told = plan.validate(&survey, Act::Complete);
    assert!(!has_errors(&told), "{told:?}");
    assert!(told.len() == 1 && told[0].to_string().contains("VM db is Initial Sync"), "{told:?}");
    assert!(found(&plan, &survey, Act::Start).join("\n").contains("follow it already"));
}

#[test]
fn damage_of_disks_that_follow_is_named_in_the_summary_and_keeps_completion_until_it_is_accepted() {
    let (mut plan, mut survey) = (samples::plan("shop"), survey());
    plan.general.mode = FailoverMode::Continuous;
    let facts = survey.facts.as_mut().unwrap();
    let vm = facts.vms[0].name.clone();
    let damage = DiskDamage { vm: vm.to_string(), disk: "root".into(), ranges: 2, bytes: 8192 };
    facts.follow = Some(FollowFacts { damage: vec![damage.clone()], ..following() });
    survey.damage = vec![damage.to_string()];
    let found = found(&plan, &survey, Act::Complete).join("\n");
    assert!(found.contains("disk root: 8192 bytes in 2 ranges"), "{found}");
    let summary = plan.summary(&survey, Act::Complete);
    assert_eq!(summary.damage, survey.damage);
    let status = |name: &Name| summary.vms.iter().find(|of| of.name == *name).map(|of| of.status);
    assert_eq!(status(&vm), Some(VmStatus::Error));
    let others = survey.facts.iter().flat_map(|facts| &facts.vms).filter(|of| of.name != vm);
    assert!(others.into_iter().all(|of| status(&of.name) == Some(of.status)), "{summary:?}");
    plan.options.accept_damage = true;
    assert!(!has_errors(&plan.validate(&survey, Act::Complete)));
}

#[test]
fn conditions_of_following_at_the_other_site_are_told() {
    let mut plan = samples::plan("shop");
    plan.failover.planned = true;
    plan.options.resume_remote = Some(remote());
    let summary = plan.summary(&survey(), Act::Start);
    assert_eq!(summary.remote_conditions.len(), 4);
    assert!(summary.remote_conditions[0].contains("site a keeps its disks"), "{summary:?}");
}

#[test]
fn modes_follow_from_facts() {
    let planned = TaskKind::Complete { how: Completion::Planned };
    let mode = |change: fn(&mut DomainFacts), running| {
        let mut facts = facts();
        change(&mut facts);
        DomainMode::of(&facts, running).word()
    };
    assert_eq!(mode(|_| {}, None), "Imported");
    assert_eq!(mode(|_| {}, Some(TaskKind::Failover)), "Failover in Progress");
    assert_eq!(mode(|f| f.home = name("b"), Some(TaskKind::Failback)), "Failback in Progress");
    assert_eq!(mode(|f| f.home = name("b"), Some(planned)), "Failback in Progress");
    assert_eq!(mode(|_| {}, Some(planned)), "Failover in Progress");
    assert_eq!(mode(|f| f.follow = Some(following()), None), "Continuous Rehydration in Progress");
    assert_eq!(mode(|f| f.follow = Some(following()), Some(planned)), "Failover in Progress");
    assert_eq!(mode(|f| f.owner.site = name("b"), None), "Running in Failover");
    assert_eq!(mode(|f| (f.owner.site, f.home) = (name("b"), name("b")), None), "Protected");
    let diverged = |f: &mut DomainFacts| {
        f.disks = LocalDisks::Diverged { common: SegmentRef::default(), bytes: None };
    };
    assert_eq!(mode(diverged, None), "Fenced");
    for mode in DomainMode::ALL {
        let json = serde_json::to_string(&mode).unwrap();
        assert_eq!(serde_json::from_str::<DomainMode>(&json).unwrap(), mode);
    }
}

#[test]
fn a_domain_has_the_status_that_its_vms_give_it() {
    use VmStatus::*;
    let of = |vms: &[VmStatus]| VmStatus::of_domain(vms).word();
    assert_eq!(of(&[Recoverable, Recoverable]), "Recoverable");
    assert_eq!(of(&[Recoverable, Error]), "Partially Recoverable");
    assert_eq!(of(&[Resync, InitialSync]), "Resync");
    assert_eq!(of(&[InitialSync, Error]), "Error");
    assert_eq!((of(&[Recoverable, Unprotected]), of(&[Unprotected])), ("Recoverable", "Unprotected"));
    assert_eq!(of(&[]), "Unprotected");
}

#[test]
fn a_summary_tells_which_guests_get_which_addresses_and_how() {
    let mut plan = samples::plan("shop");
    assert!(plan.summary(&survey(), Act::Start).addressing.is_empty());
    let book = r#"{"groups":[{"name":"g","vms":[{"vm":"web"},{"vm":"db","nics":[
        {"nic":0,"ip":{"address":"10.9.0.5/24","gateway":"10.9.0.1","dns":["10.9.0.1","fd00::53"]}}]}]}]}"#;
    plan.options.runbook = Some(serde_json::from_str(book).unwrap());
    let survey = Survey { addressing: Some(Ok("a guest without cloud-init does not heed them".into())), ..survey() };
    assert_eq!(found(&plan, &survey, Act::Start), Vec::<String>::new());
    let told = plan.summary(&survey, Act::Start).addressing;
    let card = "card 0 of VM db gets 10.9.0.5/24, gateway 10.9.0.1, name servers 10.9.0.1, fd00::53";
    assert_eq!(told, [card, "a guest without cloud-init does not heed them"]);
}

#[test]
fn what_is_lost_by_force_is_told_of_each_vm_that_no_point_covers() {
    let mut plan = samples::plan("shop");
    plan.general.mode = FailoverMode::Continuous;
    let mut survey = survey();
    let facts = survey.facts.as_mut().unwrap();
    facts.follow = Some(following());
    assert!(!plan.summary(&survey, Act::Complete).loss_words().contains("more of VMs"));
    survey.facts.as_mut().unwrap().vms[1].status = VmStatus::Resync;
    let told = found(&plan, &survey, Act::Complete).join("\n");
    assert!(told.contains("VM web is Resync: no point of now covers it"), "{told}");
    let loss = plan.summary(&survey, Act::Complete).loss_words();
    assert!(loss.ends_with("more of VMs that no point of now covers, or all of them: web"), "{loss}");
    // Nothing of it where the owner gives it up by itself.
    plan.failover.planned = true;
    assert_eq!(plan.summary(&survey, Act::Complete).loss_words(), "");
    assert!(!found(&plan, &survey, Act::Complete).join("\n").contains("no point of now covers it"));
}

#[test]
fn what_an_earlier_try_left_counts_as_room_and_its_estimate_is_an_upper_bound() {
    let plan = samples::plan("shop");
    let mut survey = survey();
    (survey.datastore.free_bytes, survey.datastore.held_bytes) = (1 << 30, 2 << 30);
    assert!(!has_errors(&plan.validate(&survey, Act::Start)), "{:?}", found(&plan, &survey, Act::Start));
    assert_eq!(plan.summary(&survey, Act::Start).basis, "a probe");
    survey.facts.as_mut().unwrap().disks = LocalDisks::Rehydrated { at: facts().newest_point.unwrap().at };
    assert!(plan.summary(&survey, Act::Start).basis.starts_with("at most: "), "only what differs is fetched");
}

#[test]
fn scripts_that_the_other_site_left_are_run_only_where_that_is_allowed() {
    let mut plan = samples::plan("shop");
    let mut survey = survey();
    let with = |book: &str| Some(serde_json::from_str(book).unwrap());
    let scripts = [
        r#"{"scripts_before":[{"command":["/bin/true"]}]}"#,
        r#"{"groups":[{"name":"g","scripts_after":[{"command":["/bin/true"]}]}]}"#,
        r#"{"groups":[{"name":"g","vms":[{"vm":"db","scripts_before":[{"command":["/bin/true"]}]}]}]}"#,
        r#"{"groups":[{"name":"g","vms":[{"vm":"db","wait_for":[{"probe":{"script":{"command":["/bin/true"]}}}]}]}]}"#,
    ];
    let refused = |plan: &FailoverPlan, survey: &Survey, act| {
        found(plan, survey, act).iter().any(|found| found.contains("failover.remote_scripts"))
    };
    for book in scripts {
        plan.options.runbook = with(book);
        assert!(refused(&plan, &survey, Act::FollowAfterHandOver), "{book}");
        assert!(!refused(&plan, &survey, Act::Start), "its own runbooks are its admins'");
    }
    survey.runs_remote_scripts = true;
    assert!(!refused(&plan, &survey, Act::FollowAfterHandOver));
    survey.runs_remote_scripts = false;
    plan.options.runbook = with(r#"{"groups":[{"name":"g","vms":[{"vm":"db","delay_seconds":1}]}]}"#);
    assert!(!refused(&plan, &survey, Act::FollowAfterHandOver));
}
