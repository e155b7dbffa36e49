//! What somebody was told before confirming an act, so that the act is not done where more would be lost than that.
//!
//! Pure. Invariants: what was told covers what is now only where it is about the same thing, and where no VM, no point and
//! no byte more would be lost. An owner that lives goes on writing, which the plan says: what it adds is told by that, and
//! only its VMs and the point to be used are held against what was told. Ages grow by themselves and are not looked at.

use std::collections::BTreeMap;

use crate::failover::{Loss, PointFacts, Summary};
use crate::ids::{Name, SegmentNo};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// What it is about: it must be the same.
    about: String,
    /// What would be lost, where that may become less.
    loss: Option<ToldLoss>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ToldLoss {
    loss: Loss,
    /// The point that would be used.
    point: Option<SegmentNo>,
    /// VMs, each with the newest point that covers it; `None` where it takes no part, or no point of now covers it.
    vms: BTreeMap<Name, Option<SegmentNo>>,
}

fn number(point: Option<PointFacts>) -> Option<SegmentNo> {
    point.map(|point| point.at.segment)
}

impl Told {
    /// Of something that must be exactly as it was told.
    pub(crate) fn exactly(about: impl Into<String>) -> Told {
        Told { about: about.into(), loss: None }
    }

    /// Of what a plan comes to.
    pub(crate) fn of_plan(about: impl Into<String>, summary: &Summary) -> Told {
        let loss = summary.loss.map(|loss| {
            let vms = summary.vms.iter().map(|vm| {
                let whole = vm.excluded.is_none() && !summary.uncovered.contains(&vm.name);
                let point = vm.point.filter(|_| whole);
                (vm.name.clone(), number(point))
            });
            ToldLoss { loss, point: number(summary.point), vms: vms.collect() }
        });
        Told { about: about.into(), loss }
    }

    /// Why `now` is not covered by what was told; `None` where it is.
    pub(crate) fn exceeded_by(&self, now: &Told) -> Option<String> {
        if self.about != now.about {
            return Some("something changed: more would be destroyed than was told, or less".to_owned());
        }
        match (&self.loss, &now.loss) {
            (_, None) => None,
            (None, Some(_)) => Some("nothing was told to be lost, and something would be now".to_owned()),
            (Some(told), Some(now)) => told.exceeded_by(now),
        }
    }
}

impl ToldLoss {
    fn exceeded_by(&self, now: &ToldLoss) -> Option<String> {
        if now.point < self.point {
            let point = |point: Option<SegmentNo>| point.map_or("none".to_owned(), |n| n.get().to_string());
            let (was, is) = (point(self.point), point(now.point));
            return Some(format!("an older point would be used: {was} was told, it is {is} now"));
        }
        let less = |(vm, covered): &(&Name, &Option<SegmentNo>)| match self.vms.get(*vm) {
            Some(before) => *covered < before,
            // It joined since: where a point covers it, nothing of it is lost.
            None => covered.is_none(),
        };
        if let Some((vm, _)) = now.vms.iter().find(less) {
            return Some(format!("more of VM {vm} would be lost than was told"));
        }
        let (told, is) = (&self.loss, &now.loss);
        if told.owner_alive {
            return None;
        }
        if is.owner_alive {
            return Some("its owner gives signs of life, which was not told: what it writes would be lost".to_owned());
        }
        let more = |what: &str, told: u64, is: u64| {
            (is > told).then(|| format!("{is} {what} would be lost, and {told} were told"))
        };
        more("points", told.points, is.points)
            .or_else(|| more("segments", told.segments, is.segments))
            .or_else(|| more("bytes", told.bytes, is.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::{TaskKind, VmStatus, VmSummary};
    use crate::ids::{Generation, SegmentRef, Time};

    fn point(n: u64) -> Option<PointFacts> {
        let at = SegmentRef::new(Generation::new(1), SegmentNo::new(n));
        Some(PointFacts { at, time: Time::from_millis(n) })
    }

    fn vm(name: &str, status: VmStatus, covered: Option<u64>) -> VmSummary {
        VmSummary {
            name: Name::new(name).unwrap(),
            status,
            excluded: (status != VmStatus::Recoverable).then(|| "no".to_owned()),
            point: covered.and_then(point),
            age_millis: None,
            fetch_bytes: 0,
            seconds: None,
        }
    }

    /// Of a domain without VMs, and nothing is lost.
    fn plain() -> Summary {
        Summary {
            domain: Name::new("d").unwrap(),
            kind: TaskKind::Failover,
            owner: None,
            vms: Vec::new(),
            point: None,
            age_millis: None,
            fetch_bytes: 0,
            seconds: None,
            basis: String::new(),
            loss: None,
            uncovered: Vec::new(),
            overwritten: None,
            damage: Vec::new(),
            remote_conditions: Vec::new(),
            addressing: Vec::new(),
            starting: Vec::new(),
        }
    }

    /// Point 5 of a domain with one VM, with this loss after it.
    fn summary(change: impl FnOnce(&mut Summary, &mut Loss)) -> Told {
        let mut loss = Loss { segments: 3, bytes: 300, points: 2, age_millis: 9000, owner_alive: false };
        let vms = vec![vm("web", VmStatus::Recoverable, Some(5))];
        let mut summary = Summary { vms, point: point(5), ..plain() };
        change(&mut summary, &mut loss);
        summary.loss = Some(loss);
        Told::of_plan("it", &summary)
    }

    #[test]
    fn no_more_is_lost_than_was_told() {
        let told = summary(|_, _| {});
        let why = |change: fn(&mut Summary, &mut Loss)| told.exceeded_by(&summary(change));
        assert_eq!(why(|_, _| {}), None);
        assert_eq!(why(|_, loss| loss.age_millis += 60_000), None, "time goes by");
        assert_eq!(why(|_, loss| (loss.points, loss.segments, loss.bytes) = (1, 1, 1)), None, "less is fine");
        assert_eq!(why(|now, _| now.point = point(6)), None, "a newer point");
        assert!(why(|now, _| now.point = point(4)).unwrap().contains("5 was told, it is 4 now"));
        assert!(why(|now, _| now.point = None).unwrap().contains("it is none now"));
        assert!(why(|_, loss| loss.points += 1).unwrap().contains("3 points would be lost, and 2 were told"));
        assert!(why(|_, loss| loss.segments += 1).unwrap().contains("4 segments"));
        assert!(why(|_, loss| loss.bytes += 1).unwrap().contains("301 bytes"));
        assert!(why(|_, loss| loss.owner_alive = true).unwrap().contains("signs of life"));
        assert!(told.exceeded_by(&Told::of_plan("another", &plain())).unwrap().contains("something changed"));
    }

    #[test]
    fn no_vm_more_is_lost_and_what_a_living_owner_adds_was_told() {
        let told = summary(|_, loss| loss.owner_alive = true);
        let why = |change: fn(&mut Summary, &mut Loss)| {
            told.exceeded_by(&summary(|now, loss| {
                loss.owner_alive = true;
                change(now, loss);
            }))
        };
        assert_eq!(why(|_, loss| (loss.points, loss.segments, loss.bytes) = (20, 30, 3000)), None);
        assert_eq!(why(|now, _| now.vms.push(vm("db", VmStatus::Recoverable, Some(5)))), None, "it joined, covered");
        assert!(why(|now, _| now.vms.push(vm("db", VmStatus::InitialSync, None))).unwrap().contains("VM db"));
        assert!(why(|now, _| now.vms[0] = vm("web", VmStatus::Resync, Some(5))).unwrap().contains("VM web"));
        assert!(why(|now, _| now.vms[0] = vm("web", VmStatus::Recoverable, Some(4))).unwrap().contains("VM web"));
        assert!(
            why(|now, _| now.uncovered = vec![now.vms[0].name.clone()]).unwrap().contains("VM web"),
            "it is behind"
        );
        assert_eq!(why(|now, _| now.vms.clear()), None, "it left, and is nobody's loss");
    }

    #[test]
    fn where_nothing_was_told_to_be_lost_nothing_is() {
        let nothing = Told::exactly("it");
        assert_eq!(nothing.exceeded_by(&nothing), None);
        assert!(nothing.exceeded_by(&Told::exactly("other")).is_some());
        assert!(nothing.exceeded_by(&summary(|_, _| {})).unwrap().contains("nothing was told"));
        assert_eq!(summary(|_, _| {}).exceeded_by(&nothing), None, "nothing is lost any more");
    }
}
