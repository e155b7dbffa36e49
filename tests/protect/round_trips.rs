//! There and back again, ten times: a domain is handed over between two sites, each of which follows the other in place,
//! and at every turn both have the same disks, nothing is synced anew, and nothing is left behind.

use std::collections::BTreeSet;
use std::path::Path;

use freshet::ids::SegmentNo;
use freshet::protect::{HandOverOptions, Origin};
use freshet::rehydrate::{Completion, Following, Placement, RehydrateRequest};
use freshet::store::Domain;

use super::stores::random;
use super::*;
use crate::world::assert_same_files;

const ROUND_TRIPS: u64 = 10;
const WITHIN: HandOverOptions = HandOverOptions { within: Duration::from_secs(60), leave_uncovered: false };

/// One of the two sites.
struct Place {
    site: &'static str,
    images: Vec<PathBuf>,
    state: PathBuf,
    datastore: PathBuf,
    /// The images stand where they were before freshet came, and not in the datastore.
    is_placed: bool,
}

impl Place {
    fn both(world: &World) -> [Place; 2] {
        let dir = |sub: &str| {
            let dir = world.dir.path().join(sub);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let images = |of: &dyn Fn(&str, &str) -> PathBuf| world.disks.iter().map(|(vm, disk)| of(vm, disk)).collect();
        [
            Place {
                site: "first site",
                images: images(&|vm, disk| world.image(vm, disk)),
                state: dir("state"),
                datastore: dir("here"),
                is_placed: true,
            },
            Place {
                site: "second site",
                images: images(&|vm, disk| world.target(vm, disk)),
                state: dir("second state"),
                datastore: dir("datastore"),
                is_placed: false,
            },
        ]
    }

    fn follow(&self, world: &World) -> RehydrateRequest {
        let place = |((vm, disk), path): (&(&str, &str), &PathBuf)| Placement {
            vm: Name::new(vm).unwrap(),
            disk: Name::new(disk).unwrap(),
            path: path.clone(),
        };
        let placements = world.disks.iter().zip(&self.images).filter(|_| self.is_placed).map(place).collect();
        // What was never protected here is followed onto as anywhere.
        let protected = self.state.join(world.domain.key()).is_dir().then(|| self.state.clone());
        let datastore = self.datastore.clone();
        RehydrateRequest { log_store: datastore.clone(), datastore, placements, protected, ..world.request() }
    }

    fn protect(&self, world: &World, origin: Origin) -> ProtectRequest {
        let mut request = ProtectRequest {
            site: Name::new(self.site).unwrap(),
            state: self.state.clone(),
            take_ownership: origin != Origin::Site,
            origin,
            ..request(world)
        };
        let mut images = self.images.iter();
        for disk in request.vms.iter_mut().flat_map(|vm| &mut vm.disks) {
            disk.path = images.next().unwrap().clone();
        }
        request
    }

    /// Names of all that is in its directories.
    fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        walk(&self.state, &mut found);
        walk(&self.datastore, &mut found);
        found
    }
}

fn walk(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            walk(&path, found);
        }
    }
}

async fn guest_writes(world: &World, seed: u64) {
    for (n, (vm, disk)) in world.disks.clone().into_iter().enumerate() {
        let mut client = client(world, vm, disk);
        blocking(move || {
            let mut place = fastrand::Rng::with_seed(seed * 10 + n as u64);
            for _ in 0..8 {
                let at = place.u64(..client.size / 4096 - 16) * 4096;
                client.write(at, &random(place.u64(..), 16 * 4096)).unwrap();
            }
            client.trim(place.u64(..client.size / 4096 - 16) * 4096, 16 * 4096).unwrap();
            client.flush().unwrap();
        })
        .await;
    }
}

async fn until_applied(following: &Following, point: u64) {
    let mut state = following.watch();
    let applied = state.wait_for(|s| s.applied.is_some_and(|a| a.point.get() >= point));
    let reached = tokio::time::timeout(PATIENCE, applied).await.map(|reached| reached.map(|s| s.clone()));
    assert!(matches!(reached, Ok(Ok(_))), "{reached:?}: {:?}", following.state());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_round_trips_leave_both_sites_with_the_same_disks_and_nothing_behind() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    for (vm, disk) in world.disks.clone() {
        world.make(vm, disk, 24 * MIB + 4096, &[(0, 6 * MIB)]);
    }
    let places = Place::both(&world);
    let mut owner = start(&world, places[0].protect(&world, Origin::Site)).await;
    until_recoverable(&owner).await;
    let mut files = Vec::new();
    for turn in 0..2 * ROUND_TRIPS {
        let (from, to) = (&places[(turn % 2) as usize], &places[((turn + 1) % 2) as usize]);
        let following = Following::start(&world.site, to.follow(&world)).await.unwrap();
        guest_writes(&world, turn).await;
        until_applied(&following, owner.cut_point(PATIENCE).await.unwrap()).await;
        guest_writes(&world, turn + 1000).await;

        let done = owner.hand_over(WITHIN).await.unwrap();
        let report = owner.stop().await.unwrap();
        assert!(report.all_shipped && report.dirty == 0, "turn {turn}: {report:#?}");
        let ended = following.complete_at(Completion::Point(SegmentNo::new(done.point))).await.unwrap();
        assert_eq!((ended.point.segment.get(), ended.between_points), (done.point, false), "turn {turn}");
        assert!(ended.damage.is_empty() && ended.uncovered.is_empty() && ended.detached.is_empty(), "{ended:?}");
        if turn > 0 {
            assert!(ended.written < 16 * MIB, "turn {turn}: not incremental: {ended:?}");
        }
        from.images.iter().zip(&to.images).for_each(|(ours, theirs)| assert_same_files(theirs, ours));

        let origin = Origin::Rehydrated { datastore: to.datastore.clone() };
        owner = start(&world, to.protect(&world, origin)).await;
        let status = owner.status().await;
        assert_eq!((status.status.as_str(), status.sync_read), ("Recoverable", 0), "turn {turn}: {status:#?}");
        let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
        domain.tip().await.unwrap();
        assert_eq!(domain.ownership().newest().unwrap().author.site.as_str(), to.site);
        // Of a whole trip, at its end.
        if turn % 2 == 1 {
            files.push([places[0].files(), places[1].files()]);
        }
    }
    let [first, .., last] = &files[..] else { panic!("too few trips") };
    assert_eq!(first, last, "something is left behind");
    owner.stop().await.unwrap();
}
