//! The catalog: what is written is there after a restart, what is newer, foreign, damaged or in use is refused untouched.

use std::collections::BTreeMap;

use super::*;
use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::format::{Nic, VmShape};
use crate::ids::DomainId;

fn n(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn open(dir: &Path) -> Result<Catalog> {
    Catalog::open(dir, &n("here"), Time::from_millis(5), 1000)
}

fn store(name: &str) -> StoreRecord {
    StoreRecord {
        name: n(name),
        url: format!("file:///{name}"),
        options_file: Some("/etc/o".into()),
        added: Time::from_millis(1),
        probed: Time::from_millis(2),
        verdict: "usable".into(),
    }
}

fn domain(name: &str) -> DomainRecord {
    let id = Some(DomainId::from_bytes([7; 16]));
    DomainRecord { name: n(name), store: n("s"), id, origin: Origin::Imported, created: Time::from_millis(3) }
}

fn vm() -> VmSource {
    let shape = VmShape {
        cpus: 2,
        memory_bytes: 1 << 30,
        firmware: "uefi".into(),
        nics: vec![Nic { mac: "m".into(), network: "lan".into(), model: String::new() }],
    };
    let definition = VmDefinition { kind: "libvirt-xml".into(), text: "<x/>".into(), shape };
    let disks = vec![
        DiskSource { name: n("z"), path: "/z".into(), size: Some(1 << 40) },
        DiskSource { name: n("a"), path: "/a".into(), size: None },
    ];
    VmSource { name: n("web"), disks, definition: Some(definition) }
}

fn shown(vms: &[VmSource]) -> String {
    format!("{vms:?}")
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let catalog = open(dir.path()).unwrap();
        assert!(catalog.is_new());
        catalog
            .call_blocking(|db| {
                store("s").put(db)?;
                domain("d").insert(db)?;
                disks::protect(db, &n("d"), &vm())?;
                let text = ("x = 1".to_owned(), Time::from_millis(9), "me".to_owned());
                RunbookRecord::set(db, &n("d"), RunbookKind::Failback, Some(0), text)
            })
            .unwrap();
        catalog.id().to_owned()
    };
    let catalog = open(dir.path()).unwrap();
    assert!(!catalog.is_new() && catalog.id() == id);
    catalog
        .call_blocking(|db| {
            assert_eq!(StoreRecord::list(db)?, [store("s")]);
            assert_eq!(StoreRecord::at(db, "file:///s")?, Some(store("s")));
            assert_eq!(DomainRecord::list(db, "", 10)?, [domain("d")]);
            assert_eq!(disks::protected_domains(db)?, [n("d")]);
            assert_eq!(shown(&disks::protected(db, &n("d"))?), shown(&[vm()]));
            let runbook = RunbookRecord::find(db, &n("d"), RunbookKind::Failback)?.unwrap();
            assert_eq!((runbook.text.as_str(), runbook.revision), ("x = 1", 1));
            assert_eq!(RunbookRecord::find(db, &n("d"), RunbookKind::Failover)?, None);
            Ok(())
        })
        .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(catalog.path()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_does_not_go_together_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    catalog.call_blocking(|db| store("s").put(db).and_then(|()| domain("d").insert(db))).unwrap();
    let kind = |work: &dyn Fn(&Connection) -> Result<()>| catalog.call_blocking(work).unwrap_err();
    let twice = kind(&|db| {
        store("other").put(db)?;
        domain("d").insert(db)
    });
    assert_eq!(twice.kind(), ErrorKind::Refused);
    assert!(twice.to_string().contains("imported, in storage site s"), "{twice}");
    assert_eq!(kind(&|db| StoreRecord::get(db, &n("other")).map(drop)).kind(), ErrorKind::NotFound, "rolled back");
    assert!(kind(&|db| StoreRecord::remove(db, &n("s"))).to_string().contains("1 domains"));
    let set = |expected, text: &str| {
        let new = (text.to_owned(), Time::from_millis(1), "me".to_owned());
        catalog.call_blocking(move |db| RunbookRecord::set(db, &n("d"), RunbookKind::Failover, expected, new))
    };
    assert_eq!(set(Some(0), "a").unwrap().revision, 1);
    assert_eq!(set(Some(1), "b").unwrap().revision, 2);
    assert_eq!(set(Some(1), "c").unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(set(None, "c").unwrap().revision, 3);
    catalog
        .call_blocking(|db| {
            disks::protect(db, &n("d"), &vm())?;
            disks::unprotect_disk(db, &n("d"), &n("web"), &n("z"))?;
            assert_eq!(disks::protected(db, &n("d"))?[0].disks.len(), 1);
            disks::unprotect_disk(db, &n("d"), &n("web"), &n("a"))?;
            assert!(disks::protected(db, &n("d"))?.is_empty());
            disks::protect(db, &n("d"), &vm())?;
            DomainRecord::remove(db, &n("d"))?;
            assert!(disks::protected_domains(db)?.is_empty(), "VMs go with their domain");
            StoreRecord::remove(db, &n("s"))
        })
        .unwrap();
}

#[test]
fn a_second_process_another_site_and_a_newer_foreign_or_damaged_file_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let path = catalog.path().to_owned();
    assert_eq!(open(dir.path()).unwrap_err().kind(), ErrorKind::Refused);
    drop(catalog);
    let other = Catalog::open(dir.path(), &n("there"), Time::default(), 1000).unwrap_err();
    assert!(other.kind() == ErrorKind::Refused && other.to_string().contains("it is of site here"), "{other}");

    let with = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    with("PRAGMA user_version = 999");
    let newer = open(dir.path()).unwrap_err();
    assert!(newer.kind() == ErrorKind::Unsupported && newer.to_string().contains("version 999"), "{newer}");
    with("PRAGMA user_version = 1; PRAGMA application_id = 7");
    let before = std::fs::read(&path).unwrap();
    assert_eq!(open(dir.path()).unwrap_err().kind(), ErrorKind::Refused);
    assert!(std::fs::read(&path).unwrap() == before);

    for bytes in [b"no database at all, and long enough to be looked at as one".repeat(99), before[..5000].to_vec()] {
        for tail in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(dir.path().join(format!("{FILE}{tail}")));
        }
        std::fs::write(&path, &bytes).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains("import the domains"), "{error}");
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(open(dir.path()).unwrap().is_new(), "a lost one begins anew");
}

#[tokio::test]
async fn events_are_bounded_and_come_newest_first_by_pages() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path(), &n("here"), Time::default(), 100).unwrap();
    for i in 0..256 {
        let subject = if i % 2 == 0 { "even" } else { "odd" }.to_owned();
        let detail = "ä".repeat(5000);
        catalog.note(EventRecord { subject, detail, ..EventRecord::default() }).await.unwrap();
    }
    let page = |subject: Option<&str>, before, most| {
        let page = EventPage { subject: subject.map(str::to_owned), before, most };
        catalog.call_blocking(|db| EventRecord::list(db, &page)).unwrap()
    };
    let all = page(None, None, 10_000);
    assert_eq!((all.len(), all[0].number, all[99].number), (100, 256, 157));
    assert!(all[0].detail.len() < 2010 && all[0].detail.ends_with('…'));
    let odd: Vec<u64> = page(Some("odd"), Some(200), 3).iter().map(|e| e.number).collect();
    assert_eq!(odd, [198, 196, 194]);
}

#[tokio::test]
async fn the_journal_keeps_entries_once_without_gaps_after_a_restart_and_lets_the_oldest_tasks_go() {
    use crate::failover::{Entry, Event, Journal, TaskId};
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let ids: Vec<TaskId> = (1..=3).map(|ms| TaskId::new(Time::from_millis(ms))).collect();
    let began = |n, step| Entry::new(n, Time::from_millis(5), Event::Began { step });
    for id in &ids {
        assert_eq!(catalog.append(*id, &began(1, 0)).unwrap(), 1);
    }
    assert_eq!(catalog.append(ids[0], &began(1, 0)).unwrap(), 1);
    for wrong in [began(1, 7), began(3, 0), began(0, 0)] {
        assert_eq!(catalog.append(ids[0], &wrong).unwrap_err().kind(), ErrorKind::Internal);
    }
    catalog.append(ids[0], &began(2, 1)).unwrap();
    drop(catalog);

    let catalog = open(dir.path()).unwrap();
    let all = [(ids[0], began(1, 0)), (ids[0], began(2, 1)), (ids[1], began(1, 0)), (ids[2], began(1, 0))];
    let loaded = |catalog: &Catalog| -> Vec<(TaskId, Entry)> {
        catalog.load().unwrap().entries.into_iter().map(|(id, entry)| (id, entry.unwrap())).collect()
    };
    assert_eq!(loaded(&catalog), all);
    assert_eq!(catalog.forget_tasks(ids.clone(), 2).await.unwrap(), 1);
    assert_eq!(loaded(&catalog), all[2..]);
}

#[tokio::test]
async fn a_request_and_the_task_that_it_began_are_kept_together_or_not_at_all() {
    use crate::failover::{Entry, Event, Journal, Once, TaskId};
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let ids: Vec<TaskId> = (1..=3).map(|ms| TaskId::new(Time::from_millis(ms))).collect();
    let first = Entry::new(1, Time::from_millis(5), Event::Began { step: 0 });
    let once = |id: &str, digest: &str| Once { id: id.to_owned(), digest: digest.to_owned() };
    let request = once("r", "x");
    assert_eq!(catalog.task_of_request(&request).await.unwrap(), None);
    assert_eq!(catalog.begin(ids[0], &first, &request).unwrap(), 1);
    // As after a kill right then, and where the answer was lost.
    drop(catalog);
    let catalog = open(dir.path()).unwrap();
    assert_eq!(catalog.task_of_request(&request).await.unwrap(), Some(ids[0]));
    assert_eq!(catalog.begin(ids[0], &first, &request).unwrap(), 1);
    assert_eq!(catalog.task_of_request(&once("r", "other")).await.unwrap_err().kind(), ErrorKind::Refused);

    // Of a request that cannot be noted, no task is kept that a repetition would begin a second time.
    let taken = catalog.begin(ids[1], &first, &once("r", "other")).unwrap_err();
    assert!(taken.kind() == ErrorKind::Refused && taken.to_string().contains("another task"), "{taken}");
    let fails = "CREATE TRIGGER full BEFORE INSERT ON request BEGIN SELECT RAISE(ABORT, 'no room'); END";
    catalog.call(|db| db.execute_batch(fails).map_err(|e| super::failed("test", e))).await.unwrap();
    assert!(catalog.begin(ids[2], &first, &once("s", "x")).unwrap_err().to_string().contains("no room"));
    let kept =
        |catalog: &Catalog| -> Vec<TaskId> { catalog.load().unwrap().entries.into_iter().map(|(id, _)| id).collect() };
    assert_eq!(kept(&catalog), [ids[0]]);
    assert_eq!(catalog.task_of_request(&once("s", "x")).await.unwrap(), None);
    // They go together too.
    assert_eq!(catalog.forget_tasks(vec![ids[0]], 0).await.unwrap(), 1);
    assert_eq!((kept(&catalog), catalog.task_of_request(&request).await.unwrap()), (Vec::new(), None));
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_told_in_its_place_and_hides_no_other_task() {
    use crate::failover::{Abandoned, Entry, Event, Journal, TaskId};
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let ids: Vec<TaskId> = (1..=5).map(|ms| TaskId::new(Time::from_millis(ms))).collect();
    for id in &ids {
        for n in 1..=3 {
            catalog.append(*id, &Entry::new(n, Time::from_millis(5), Event::Began { step: 0 })).unwrap();
        }
    }
    let spoil = |sql: &str, id: TaskId| {
        let (sql, id) = (sql.to_owned(), id.to_string());
        let changed = catalog.call_blocking(move |db| Ok(db.execute(&sql, [id]).unwrap())).unwrap();
        assert_eq!(changed, 1);
    };
    spoil("UPDATE journal SET entry = '{' WHERE n = 2 AND task = ?1", ids[0]);
    spoil("UPDATE journal SET entry = CAST(x'ff00' AS TEXT) WHERE n = 3 AND task = ?1", ids[1]);
    spoil("DELETE FROM journal WHERE n = 2 AND task = ?1", ids[2]);
    spoil("UPDATE journal SET entry = replace(entry, '\"n\":1', '\"n\":7') WHERE n = 1 AND task = ?1", ids[3]);
    let kept = catalog.load().unwrap();
    let of = |id: TaskId| -> Vec<Option<String>> {
        let of = kept.entries.iter().filter(|(task, _)| *task == id);
        of.map(|(_, entry)| entry.as_ref().err().map(ToString::to_string)).collect()
    };
    assert!(of(ids[0])[1].as_ref().unwrap().contains("number 2"), "{:?}", of(ids[0]));
    assert!(of(ids[1])[2].as_ref().unwrap().contains("is no text"), "{:?}", of(ids[1]));
    assert!(of(ids[2])[1].as_ref().unwrap().contains("entry 2 is missing"), "{:?}", of(ids[2]));
    assert!(of(ids[3])[0].as_ref().unwrap().contains("says that it is number 7"), "{:?}", of(ids[3]));
    assert!(of(ids[4]).iter().all(Option::is_none) && of(ids[4]).len() == 3);

    let given = Abandoned { at: Time::from_millis(9), actor: "root".into(), why: "x".into() };
    catalog.abandon(ids[0], &given).unwrap();
    catalog.abandon(ids[0], &Abandoned { actor: "other".into(), ..given.clone() }).unwrap();
    drop(catalog);
    let catalog = open(dir.path()).unwrap();
    assert_eq!(catalog.load().unwrap().abandoned.into_iter().collect::<Vec<_>>(), [(ids[0], given)]);
    catalog.forget_tasks(ids.clone(), 0).await.unwrap();
    let kept = catalog.load().unwrap();
    assert!(kept.entries.is_empty() && kept.abandoned.is_empty());
}

#[test]
fn a_vm_that_is_moved_is_known_until_that_is_done_or_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let (d, web) = (n("d"), n("web"));
    catalog
        .call_blocking(|db| {
            store("s").put(db).and_then(|()| domain("d").insert(db))?;
            assert!(Moving::begin(db, &d, &web, true).is_err(), "the VM must be there");
            disks::protect(db, &d, &vm())?;
            assert_eq!(disks::domains_of(db, &web)?, [n("d")]);
            let is = |fills, leaves, pivots| {
                let run = if pivots { "one" } else { "" };
                let (run, made) = (run.to_owned(), BTreeMap::new());
                let expected = Moving { vm: n("web"), fills, leaves, pivots, run, told: false, made };
                assert_eq!(Moving::of(db, &d).unwrap(), std::slice::from_ref(&expected));
                assert_eq!(Moving::get(db, &d, &web).unwrap(), Some(expected.clone()));
                expected.is_no_moment()
            };
            Moving::begin(db, &d, &web, true)?;
            assert!(is(true, false, false));
            Moving::pivot(db, &d, &web, "one")?;
            assert!(is(true, false, true));
            Moving::begin(db, &d, &web, false)?;
            assert!(!is(false, false, false) && Moving::domains(db)? == [n("d")]);
            Moving::end(db, &d, &web)?;
            Moving::end(db, &d, &web)?;
            assert_eq!(Moving::of(db, &d)?, []);
            // One that leaves is covered until its disks change over, and as before where it stays.
            Moving::begin_to_leave(db, &d, &web)?;
            assert!(!is(false, true, false));
            Moving::pivot(db, &d, &web, "one")?;
            assert!(is(false, true, true));
            Moving::told(db, &d, &web)?;
            assert!(Moving::get(db, &d, &web)?.is_some_and(|moving| moving.told && moving.run == "one"));
            // Of what comes after, nobody was told.
            Moving::pivot(db, &d, &web, "one")?;
            assert!(is(false, true, true));
            let made = BTreeMap::from([(n("vda"), "/images/a \"b\".img".into())]);
            Moving::make(db, &d, &web, &made)?;
            Moving::begin_to_leave(db, &d, &web)?;
            assert_eq!(Moving::get(db, &d, &web)?.unwrap().made, made, "until it is done");
            Moving::stay(db, &d, &web)?;
            assert_eq!(Moving::get(db, &d, &web)?, None);
            // What was not whole before is not whole because it was to leave.
            Moving::begin(db, &d, &web, true)?;
            Moving::begin_to_leave(db, &d, &web)?;
            assert!(is(true, true, false));
            Moving::stay(db, &d, &web)?;
            assert!(is(true, false, false));
            disks::unprotect(db, &d, &web)?;
            assert_eq!((Moving::of(db, &d)?, disks::domains_of(db, &web)?), (vec![], vec![]));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_guest_that_strays_is_known_since_when_until_it_is_back_or_gone() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let (d, web, at) = (n("d"), n("web"), Time::from_millis(7));
    catalog
        .call_blocking(|db| {
            store("s").put(db).and_then(|()| domain("d").insert(db))?;
            assert!(stray(db, &d, &web, at).is_err(), "the VM must be there");
            disks::protect(db, &d, &vm())?;
            stray(db, &d, &web, at)?;
            stray(db, &d, &web, Time::from_millis(9))?;
            assert_eq!(astray(db, &d)?, [(web.clone(), at)]);
            unstray(db, &d, &web)?;
            unstray(db, &d, &web)?;
            assert_eq!(astray(db, &d)?, []);
            stray(db, &d, &web, at)?;
            disks::unprotect(db, &d, &web)?;
            assert_eq!(astray(db, &d)?, []);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_catalog_of_the_version_before_is_brought_to_this_one_with_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let path = catalog.path().to_owned();
    catalog
        .call_blocking(|db| {
            store("s").put(db).and_then(|()| domain("d").insert(db))?;
            disks::protect(db, &n("d"), &vm())?;
            Moving::begin(db, &n("d"), &n("web"), true)
        })
        .unwrap();
    drop(catalog);
    let back = "ALTER TABLE moving DROP COLUMN leaves; ALTER TABLE moving DROP COLUMN pivots; ALTER TABLE moving DROP COLUMN run;
        ALTER TABLE moving DROP COLUMN told; DROP TABLE astray; ALTER TABLE vm DROP COLUMN seen;
        ALTER TABLE vm DROP COLUMN before; ALTER TABLE moving DROP COLUMN made; PRAGMA user_version = 4;";
    Connection::open(&path).unwrap().execute_batch(back).unwrap();
    assert_eq!(inspect_catalog(&path, false).unwrap().unwrap().value("version"), Some(&4.into()));
    let catalog = open(dir.path()).unwrap();
    let moving = catalog.call_blocking(|db| Moving::of(db, &n("d"))).unwrap();
    assert_eq!(
        moving,
        [Moving {
            vm: n("web"),
            fills: true,
            leaves: false,
            pivots: false,
            run: String::new(),
            told: false,
            made: BTreeMap::new()
        }]
    );
    drop(catalog);
    assert_eq!(inspect_catalog(&path, false).unwrap().unwrap().value("version"), Some(&9.into()));
}

#[test]
fn a_catalog_is_looked_at_without_an_appliance_and_is_left_as_it_is() {
    use crate::failover::{Entry, Event, Journal, TaskId};
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).unwrap();
    let id = TaskId::new(Time::from_millis(1));
    catalog.append(id, &Entry::new(1, Time::from_millis(5), Event::Began { step: 0 })).unwrap();
    let path = catalog.path().to_owned();
    // Beside one that has it open.
    let seen = inspect_catalog(&path, true).unwrap().unwrap();
    assert_eq!(seen.value("site"), Some(&"here".into()));
    assert_eq!((seen.value("journal"), seen.value("task")), (Some(&1.into()), Some(&1.into())));
    // Its only entry is readable, and begins no task.
    assert_eq!(seen.problems().len(), 1, "{:?}", seen.problems());
    assert!(seen.to_json()["entries"].to_string().contains("\"began\""));
    drop(catalog);

    // A copy where nothing may be written.
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let before = std::fs::read(&copy).unwrap();
    assert_eq!(inspect_catalog(&copy, false).unwrap().unwrap().value("journal"), Some(&1.into()));
    assert_eq!(std::fs::read(&copy).unwrap(), before);
    let with = |sql: &str| Connection::open(&copy).unwrap().execute_batch(sql).unwrap();
    with("PRAGMA user_version = 99");
    assert_eq!(inspect_catalog(&copy, false).unwrap_err().kind(), ErrorKind::Unsupported);
    with("PRAGMA application_id = 7");
    assert_eq!(inspect_catalog(&copy, false).unwrap_err().kind(), ErrorKind::Invalid);
    std::fs::write(&copy, b"FRSHsegm, and no database").unwrap();
    assert!(inspect_catalog(&copy, false).unwrap().is_none());
    std::fs::write(&copy, [b"SQLite format 3\0".as_slice(), &[0xff; 5000]].concat()).unwrap();
    assert_eq!(inspect_catalog(&copy, false).unwrap_err().kind(), ErrorKind::Damaged);
}
