//! Several protections of one domain that start at the same moment: one is believed, and what it shipped is what is there.

use super::stores::random;
use super::*;

const RIVALS: usize = 5;

/// A rival with a state and an image of its own; of another site, where `apart`, which takes the domain.
fn rival(world: &World, n: usize, image: PathBuf, apart: bool) -> ProtectRequest {
    let state = world.dir.path().join(format!("state {n}"));
    std::fs::create_dir_all(&state).unwrap();
    let listen = vec![Listen::Unix(world.dir.path().join(format!("{n}.sock")))];
    let site = if apart { format!("site {n}") } else { "first site".to_owned() };
    let mut request =
        ProtectRequest { site: Name::new(&site).unwrap(), state, listen, take_ownership: apart, ..request(world) };
    request.vms[0].disks[0].path = image;
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn of_protections_that_start_at_once_one_is_believed() {
    for apart in [false, true] {
        let world = World::new(&[("web", "root")]).await;
        world.make("web", "root", 8 * MIB, &[(0, MIB)]);
        if apart {
            // There is something to take.
            let first = start(&world, request(&world)).await;
            until_recoverable(&first).await;
            stop_and_compare(&world, first).await;
        }
        let images: Vec<PathBuf> = (0..RIVALS).map(|_| world.images()[0].clone()).collect();
        let starts = images.iter().enumerate().map(|(n, image)| {
            let (site, request) = (world.site.clone(), rival(&world, n, image.clone(), apart));
            tokio::spawn(async move {
                let mut protection = Protection::open(site, request).await.unwrap();
                let claimed = protection.claim(&Cancel::new(), |_| ()).await;
                claimed.map(|()| (n, protection)).map_err(|error| error.to_string())
            })
        });
        let starts: Vec<_> = starts.collect();
        let (mut alive, mut refused) = (Vec::new(), Vec::new());
        for start in starts {
            match start.await.unwrap() {
                Ok(claimed) => alive.push(claimed),
                Err(error) => refused.push(error),
            }
        }
        let why = |error: &String| ["another writer", "was claimed", "is owned by"].iter().any(|w| error.contains(w));
        assert!(refused.iter().all(why), "{refused:#?}");
        // Each that was served has its own bytes written; whoever was superseded finds out with its next segment.
        for (n, _) in &alive {
            let path = world.dir.path().join(format!("{n}.sock"));
            let (path, bytes) = (path.clone(), random(*n as u64 + 1, 8192));
            blocking(move || NbdClient::connect(&path, "web/root").unwrap().write(4 * MIB, &bytes).unwrap()).await;
        }
        let began = Instant::now();
        let believed = loop {
            let mut modes = Vec::new();
            for (n, protection) in &alive {
                let status = protection.status().await;
                modes.push((*n, status.mode, status.status));
            }
            let believed: Vec<_> = modes.iter().filter(|(_, mode, _)| mode != "fenced").collect();
            match &believed[..] {
                [(n, mode, status)] if mode == "normal" && status == "Recoverable" => break *n,
                _ => assert!(began.elapsed() < PATIENCE && !believed.is_empty(), "{modes:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for (n, protection) in alive {
            if n != believed {
                assert_eq!(protection.status().await.status, "Fenced");
            }
            let report = protection.stop().await.unwrap();
            assert_eq!(report.all_shipped, n == believed, "{report:#?}");
        }
        world.rehydrate().await;
        world.assert_disks(&images[believed..=believed]);
    }
}
