//! There and back again, by plan, each time with the old site following by itself: disks are the same in the end, roles
//! those of the start, and nothing is left behind. `FRESHET_TRIPS` says how often.

use std::collections::BTreeSet;

use super::estate::{Estate, FIRST, SECOND};
use super::modes::files;
use super::number;

/// What there is at both sites, but for what a database keeps for itself and the VMs of hypervisors.
fn left_behind(estate: &Estate) -> BTreeSet<String> {
    let root = estate.place.path("");
    let mut found = BTreeSet::new();
    for dir in ["first-disks", "second-disks", "first-state", "second-state", "first-nbd", "second-nbd"] {
        let names = files(&root.join(dir)).into_iter();
        let names = names.map(|path| path.strip_prefix(&root).unwrap().display().to_string());
        found.extend(names.filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")));
    }
    // Objects of the storage site by their kinds, and VMs of hypervisors.
    let kind = |path: std::path::PathBuf| {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        // Behind the `@` the server has what it draws anew at each write.
        let key = name.split('@').next().unwrap_or_default();
        key.split('+').take(3).collect::<Vec<_>>().join("/")
    };
    found.extend(files(&root.join("store")).into_iter().map(kind));
    for site in ["first-hypervisor", "second-hypervisor"] {
        let vms = files(&root.join(site)).into_iter().map(kind).filter(|name| name.contains("/vm-"));
        found.extend(vms);
    }
    found
}

#[test]
fn round_trips_leave_the_disks_the_same_and_nothing_behind() {
    let Some(mut estate) = Estate::with_domain("round_trips_leave_the_disks_the_same_and_nothing_behind") else {
        return;
    };
    estate.follow(SECOND, false);
    let mut after_first = BTreeSet::new();
    for trip in 0..number("FRESHET_TRIPS", 2) {
        for to in [SECOND, FIRST] {
            estate.complete_planned(to, true);
            estate.runs(to);
            estate.follows(1 - to);
            estate.sites.iter().for_each(|site| site.until_idle());
        }
        let there = left_behind(&estate);
        if trip == 0 {
            after_first = there;
        } else {
            let more: Vec<&String> = there.symmetric_difference(&after_first).collect();
            assert!(more.is_empty(), "after trip {trip}: {more:?}");
        }
    }
    estate.same_disks(SECOND);
}
