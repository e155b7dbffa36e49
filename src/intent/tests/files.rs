//! Opening: what each kind of file means, that nothing of another's is touched, and that there is one holder.

use std::path::Path;

use crate::error::{ErrorKind, Result};
use crate::format::*;
use crate::ids::*;

use super::super::*;
use super::memory_file::{DISK, DOMAIN};

const MIB: u64 = 1 << 20;

fn identity(size: u64) -> IntentIdentity {
    IntentIdentity { domain: DOMAIN, disk: DISK, size }
}

fn open(path: &Path, size: u64) -> Result<(Intent, Found)> {
    Intent::open(path, &identity(size), &IntentOptions { quiet_calls: 0, ..IntentOptions::default() })
}

/// A bitmap of a disk of `size` bytes in which only `set` are set.
async fn made(path: &Path, size: u64, set: &[u32]) {
    let (intent, found) = open(path, size).unwrap();
    assert_eq!((found, intent.unsynced_bytes()), (Found::New, size));
    let regions = intent.shape().regions();
    (0..regions).filter(|n| !set.contains(n)).for_each(|n| intent.synced(n, SegmentNo::new(1)));
    intent.clear_accepted(SegmentNo::new(1), || std::future::ready(Ok(()))).await.unwrap();
    intent.close().unwrap();
}

fn set(intent: &Intent) -> Vec<u32> {
    (0..intent.shape().regions()).filter(|n| intent.is_set(*n)).collect()
}

#[tokio::test]
async fn a_bitmap_is_kept_and_follows_a_disk_that_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    made(&path, 9 * MIB + 512, &[2, 5]).await;
    let (intent, found) = open(&path, 9 * MIB + 512).unwrap();
    assert_eq!(found, Found::Kept { set: 2, damaged: vec![], grown_from: None });
    assert_eq!((set(&intent), intent.unsynced_bytes()), (vec![2, 5], 2 * MIB));
    drop(intent);
    // Within the last region, then by whole ones: what reaches past the old end is set.
    let (intent, found) = open(&path, 9 * MIB + 1024).unwrap();
    assert_eq!(found, Found::Kept { set: 3, damaged: vec![], grown_from: Some(9 * MIB + 512) });
    assert_eq!(set(&intent), [2, 5, 9]);
    drop(intent);
    let (intent, _) = open(&path, 12 * MIB).unwrap();
    assert_eq!(set(&intent), [2, 5, 9, 10, 11]);
    drop(intent);
    let (intent, found) = open(&path, 11 * MIB).unwrap();
    assert!(matches!(&found, Found::Lost(why) if why.contains("had 12582912 bytes and has 11534336")), "{found:?}");
    assert_eq!(set(&intent).len(), 11);
}

#[tokio::test]
async fn what_is_set_is_told_as_ranges_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    made(&path, 9 * MIB + 512, &[0, 1, 4, 8, 9]).await;
    let (intent, _) = open(&path, 9 * MIB + 512).unwrap();
    let all = vec![0..2 * MIB, 4 * MIB..5 * MIB, 8 * MIB..9 * MIB + 512];
    assert_eq!(intent.set_ranges(10), (all.clone(), 0));
    assert_eq!(intent.set_ranges(3), (all.clone(), 0));
    assert_eq!(intent.set_ranges(2), (all[..2].to_vec(), 1), "the last two regions are one range");
    assert_eq!(intent.set_ranges(0), (vec![], 3));
}

#[tokio::test]
async fn what_is_proved_is_clear_but_for_what_is_written_and_stays_so_over_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let (intent, _) = open(&path, 9 * MIB + 512).unwrap();
    let lost = intent.begin_write(2 * MIB..2 * MIB + 512).await.unwrap();
    let held = intent.begin_write(5 * MIB..5 * MIB + 512).await.unwrap();
    lost.captured(SegmentNo::new(1));
    assert_eq!(intent.proven().unwrap(), 8);
    assert_eq!(set(&intent), [2, 5]);
    assert!(intent.is_unsynced(2) && intent.is_unsynced(5) && !intent.is_unsynced(3));
    // A cleared region is not let through again before it is marked.
    let again = intent.begin_write(3 * MIB..3 * MIB + 512).await.unwrap();
    held.captured(SegmentNo::new(1));
    again.captured(SegmentNo::new(1));
    assert_eq!(set(&intent), [2, 3, 5]);
    intent.close().unwrap();
    let (intent, found) = open(&path, 9 * MIB + 512).unwrap();
    assert_eq!(found, Found::Kept { set: 3, damaged: vec![], grown_from: None });
    assert_eq!(set(&intent), [2, 3, 5]);
}

#[tokio::test]
async fn a_disk_that_outgrows_its_regions_keeps_what_its_bits_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let most = u64::from(MAX_INTENT_PAGES * INTENT_PAGE_REGIONS);
    made(&path, 40_000 * MIB, &[3, 39_999]).await;
    let (intent, found) = open(&path, (most + 1) * MIB).unwrap();
    assert_eq!(intent.shape().region_bytes(), 2 * MIB);
    let Found::Kept { set, grown_from: Some(_), .. } = found else { panic!("{found:?}") };
    assert_eq!(u64::from(set), 2 + (most + 1).div_ceil(2) - 20_000);
    let is = |n| (intent.is_set(n), intent.is_unsynced(n));
    assert_eq!(
        [0, 1, 2, 19_998, 19_999, 20_000].map(is),
        [(false, false), (true, true), (false, false), (false, false), (true, true), (true, true)]
    );
}

#[tokio::test]
async fn a_damaged_page_sets_its_regions_and_a_damaged_header_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    let size = (u64::from(INTENT_PAGE_REGIONS) + 4) * MIB;
    made(&path, size, &[7]).await;
    let good = std::fs::read(&path).unwrap();
    assert_eq!(good.len(), 3 * INTENT_PAGE);
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        change(&mut bad);
        std::fs::write(&path, bad).unwrap();
        open(&path, size).unwrap()
    };
    // Torn, swapped with another page, cut off.
    for (change, lost) in [
        (&(|b: &mut Vec<u8>| b[2 * INTENT_PAGE + 100] ^= 1) as &dyn Fn(&mut Vec<u8>), 4),
        (&|b: &mut Vec<u8>| b.copy_within(INTENT_PAGE..2 * INTENT_PAGE, 2 * INTENT_PAGE), 4),
        (&|b: &mut Vec<u8>| b.truncate(3 * INTENT_PAGE - 1), 4),
    ] {
        let (intent, found) = damage(change);
        let Found::Kept { set, damaged, grown_from: None } = found else { panic!("{found:?}") };
        assert_eq!((set, damaged.len()), (1 + lost, 1), "{damaged:?}");
        assert!(damaged[0].starts_with("page 1: "), "{damaged:?}");
        drop(intent);
        // And it is whole again.
        assert_eq!(open(&path, size).unwrap().1, Found::Kept { set: 1 + lost, damaged: vec![], grown_from: None });
    }
    for change in [&(|b: &mut Vec<u8>| b[70] ^= 1) as &dyn Fn(&mut Vec<u8>), &|b| b.truncate(100), &|b| b.clear()] {
        let (intent, found) = damage(change);
        assert!(matches!(&found, Found::Lost(why) if why.contains("intent.lost")), "{found:?}");
        assert_eq!((intent.dirty_bytes(), intent.unsynced_bytes()), (size, size));
        drop(intent);
        std::fs::remove_file(dir.path().join("intent.lost")).unwrap();
    }
}

#[tokio::test]
async fn what_is_another_s_or_newer_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    made(&path, 9 * MIB, &[1]).await;
    let good = std::fs::read(&path).unwrap();
    let (other_domain, other_disk) = (DomainId::from_bytes([8; 16]), DiskId::from_bytes([9; 16]));
    for (identity, named) in [
        (IntentIdentity { domain: other_domain, ..identity(9 * MIB) }, [DOMAIN.to_string(), other_domain.to_string()]),
        (IntentIdentity { disk: other_disk, ..identity(9 * MIB) }, [DISK.to_string(), other_disk.to_string()]),
    ] {
        let refused = Intent::open(&path, &identity, &IntentOptions::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(named.iter().all(|name| refused.to_string().contains(name)), "{refused}");
    }
    for at in [8, INTENT_PAGE + 8] {
        let mut newer = good.clone();
        newer[at] = 2;
        std::fs::write(&path, &newer).unwrap();
        let refused = open(&path, 9 * MIB).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert!(std::fs::read(&path).unwrap() == newer, "it was written over");
    }
    assert_eq!(open(&path, 0).unwrap_err().kind(), ErrorKind::Invalid);
    let options = IntentOptions { quiet_calls: u32::MAX, ..IntentOptions::default() };
    assert_eq!(Intent::open(&path, &identity(9 * MIB), &options).unwrap_err().kind(), ErrorKind::Invalid);
    let nowhere = open(&dir.path().join("no/such/dir"), MIB).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn there_is_one_holder_also_while_the_file_is_replaced_and_after_a_crash_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent");
    // Left by a process that died while it made the file.
    std::fs::write(dir.path().join("intent.new"), vec![7; 100_000]).unwrap();
    let (intent, found) = open(&path, 9 * MIB).unwrap();
    assert_eq!((found, std::fs::metadata(&path).unwrap().len()), (Found::New, 2 * INTENT_PAGE as u64));
    assert!(!dir.path().join("intent.new").exists());
    assert_eq!(open(&path, 9 * MIB).unwrap_err().kind(), ErrorKind::Refused);
    drop(intent);
    // The name changes its file: whoever holds the new one keeps everybody out.
    let (intent, _) = open(&path, 10 * MIB).unwrap();
    assert_eq!(open(&path, 10 * MIB).unwrap_err().kind(), ErrorKind::Refused);
    intent.close().unwrap();
    let tries = (0..8).map(|_| {
        let path = path.clone();
        std::thread::spawn(move || open(&path, 20 * MIB))
    });
    let results: Vec<_> = tries.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    let refused = |r: &Result<(Intent, Found)>| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::Refused);
    assert_eq!(results.iter().filter(|r| refused(r)).count(), 7);
}
