//! Images that are not what they must be: cut while they are served, or of another size at the start.

use super::program::{answer, protect};
use super::stores::random;
use super::*;
use freshet::nbd::CacheMode;

fn errno(error: &std::io::Error) -> Option<i32> {
    error.raw_os_error()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_image_fails_its_own_guest_alone_and_what_the_domain_has_of_it_stays() {
    for cache in [CacheMode::Direct, CacheMode::WriteBack] {
        let world = World::new(&[("web", "root"), ("db", "data")]).await;
        for (vm, disk) in [("web", "root"), ("db", "data")] {
            world.make(vm, disk, 8 * MIB, &[(0, 8 * MIB)]);
        }
        let protection = start(&world, ProtectRequest { cache, ..request(&world) }).await;
        let before = until_recoverable(&protection).await;
        let whole = world.images();
        let mut sockets = (client(&world, "web", "root"), client(&world, "db", "data"));
        let file = std::fs::File::options().write(true).open(world.image("web", "root")).unwrap();
        file.set_len(3 * MIB).unwrap();
        drop(file);
        blocking(move || {
            let (root, data) = &mut sockets;
            const EIO: Option<i32> = Some(5);
            // The first who finds out, then everybody: a write must not put the length back with zeros in it.
            assert_eq!(errno(&root.read(4 * MIB, 4096).unwrap_err()), EIO);
            assert_eq!(errno(&root.write(4 * MIB, &[7; 4096]).unwrap_err()), EIO);
            assert_eq!(errno(&root.write(0, &[7; 4096]).unwrap_err()), EIO);
            assert_eq!(errno(&root.trim(5 * MIB, 4096).unwrap_err()), EIO);
            assert_eq!(errno(&root.flush().unwrap_err()), EIO);
            data.write_fua(MIB, &random(1, 8192)).unwrap();
            assert_eq!(data.read(MIB, 8192).unwrap(), random(1, 8192));
        })
        .await;
        assert_eq!(std::fs::metadata(world.image("web", "root")).unwrap().len(), 3 * MIB, "it was put back");
        let status = until(&protection, "a later point", |status| {
            status.shipped > before.shipped && status.vms.iter().any(|vm| vm.status == "Error")
        })
        .await;
        assert_eq!((status.status.as_str(), status.mode.as_str()), ("Partially Recoverable", "normal"), "{status:#?}");
        let of = |name: &str| status.vms.iter().find(|vm| vm.name == name).unwrap();
        assert_eq!((of("web").status.as_str(), of("db").status.as_str()), ("Error", "Recoverable"), "{status:#?}");
        let named = |why: &String| why.contains("was cut to") && why.contains("web-root");
        assert!(status.problems.iter().any(named), "{status:#?}");
        assert!(of("web").point <= of("db").point, "{status:#?}");
        let report = protection.stop().await.unwrap();
        assert!(report.dirty > 0, "what failed stays marked: {report:#?}");

        // What was recoverable before still is, and the short image is not taken for the disk.
        world.rehydrate_to(freshet::ids::SegmentNo::new(before.shipped)).await;
        world.assert_disks(&whole);
        let mut again = Protection::open(world.site.clone(), request(&world)).await.unwrap();
        assert!(!again.is_serving(), "a guest that runs would find the end of its disk gone");
        let refused = again.claim(&Cancel::new(), |_| ()).await.unwrap_err();
        assert!(refused.to_string().contains("web") && refused.to_string().contains("3145728"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_has_not_the_size_it_must_have_is_neither_served_nor_changed() {
    let world = World::new(&[("web", "root")]).await;
    for (vm, disk) in &world.disks {
        world.make(vm, disk, 8 * MIB, &[(0, MIB)]);
    }
    let image = world.image("web", "root");
    for (more, told) in [
        (",size=16MiB", "less than the 16777216"),
        (",size=4MiB", "more than the 4194304"),
        (",size=16MiB,grow", "grow"),
    ] {
        let mut command = protect(&world, 0);
        let refused = answer(command.args(["--vm", "web", "--disk", &format!("root={}{more}", image.display())]));
        assert!(refused.code == 2 && refused.json.to_string().contains(told), "{more}: {refused:?}");
    }
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 8 * MIB);
    assert!(freshet::store::Domain::open(&world.site, &world.domain).await.is_err(), "nothing was claimed");
}
