//! Other people's clients on a protected disk, while it is captured: what they wrote is what is recovered.
//!
//! The same programs as in the tests of the server itself, by the same functions; here their requests run through the
//! range lock, the bitmap and the open segment, in both cache modes.

use std::path::Path;

use freshet::nbd::{Address, CacheMode};

use super::*;
use crate::support::peers::{self, has};

/// Protects a disk that holds a sample, has it driven by `drive(URI, image, directory)`, ends cleanly, and recovers it.
async fn driven(drive: fn(&str, &Path, &Path)) {
    for cache in [CacheMode::Direct, CacheMode::WriteBack] {
        let world = World::new(&[("web", "root")]).await;
        let image = world.image("web", "root");
        peers::sample(&image);
        let protection = start(&world, ProtectRequest { cache, ..request(&world) }).await;
        until_recoverable(&protection).await;
        let uri = Address::Unix(socket(&world)).uri("web/root", false);
        let dir = world.dir.path().join("files");
        std::fs::create_dir(&dir).unwrap();
        blocking(move || drive(&uri, &image, &dir)).await;
        // Nothing of it was more than could be captured.
        until_recoverable(&protection).await;
        stop_and_compare(&world, protection).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_understands_a_protected_disk() {
    if has("nbdinfo", "nbdinfo_understands_a_protected_disk") {
        driven(|uri, _, _| peers::nbdinfo(uri)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_to_and_from_a_protected_disk() {
    if has("nbdcopy", "nbdcopy_copies_to_and_from_a_protected_disk") {
        driven(peers::nbdcopy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_and_compares_a_protected_disk() {
    if has("qemu-img", "qemu_img_converts_and_compares_a_protected_disk") {
        driven(peers::qemu_img).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_finds_what_it_wrote_on_a_protected_disk() {
    if has("qemu-io", "qemu_io_finds_what_it_wrote_on_a_protected_disk") {
        driven(|uri, image, _| peers::qemu_io(uri, image)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote_on_a_protected_disk() {
    if peers::has_fio("fio_verifies_what_it_wrote_on_a_protected_disk") {
        driven(|uri, _, dir| peers::fio(uri, dir)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_finds_every_call_answered_on_a_protected_disk() {
    if peers::has_libnbd("libnbd_finds_every_call_answered_on_a_protected_disk") {
        driven(|uri, _, _| peers::libnbd(uri)).await;
    }
}
