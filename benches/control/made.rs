//! Domains of one VM and [`DISKS`] disks, each with one point of a few stored bytes.

use freshet::format::{Catalogue, DiskInfo, IndexDisk, Point, PointFlags, Seal, SegmentBuilder, VmInfo, VmShape};
use freshet::ids::{DiskId, Name, Time, VmId};
use freshet::store::{DomainWriter, StartOptions, StorageSite, keys};
use futures::StreamExt;

/// Disks of each domain.
pub(crate) const DISKS: usize = 10;
/// Domains that are made at a time.
const AT_ONCE: usize = 16;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Makes domains, and answers with their names.
pub(crate) async fn domains(site: &StorageSite, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|i| format!("domain {i:04}")).collect();
    let all = names.iter().map(|domain| make(site, name(domain)));
    futures::stream::iter(all).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    names
}

async fn make(site: &StorageSite, domain: Name) {
    let writer = DomainWriter::start(site, &domain, &name("first"), StartOptions::default()).await.unwrap();
    let vm = VmId::random();
    let info = VmInfo {
        id: vm,
        name: name("vm"),
        definition_kind: String::new(),
        definition: String::new(),
        shape: VmShape::default(),
    };
    let disk = |i: usize| DiskInfo { id: DiskId::random(), vm, name: name(&format!("disk {i}")), size: 1 << 30 };
    let disks: Vec<DiskInfo> = (0..DISKS).map(disk).collect();
    let mut builder = SegmentBuilder::new(Vec::new());
    for disk in &disks {
        builder.push_zeros(&IndexDisk { id: disk.id, vm, size: disk.size }, 0, 4096);
    }
    let sealed = builder.seal(Seal {
        domain: writer.domain().id(),
        id: writer.first(),
        parent: writer.base(),
        parent_digest: writer.base_digest(),
        writer: writer.writer(),
        created: site.now(),
        point: Some(Point { time: Time::from_millis(1_000_000), flags: PointFlags::default(), vms: [vm].into() }),
        catalogue: Some(Catalogue { vms: vec![info], disks }),
    });
    site.create(&keys::segment(&domain, writer.first()), vec![sealed.unwrap().bytes.into()]).await.unwrap();
    writer.accept_up_to(writer.first()).await.unwrap();
    writer.finish().await.unwrap();
}
