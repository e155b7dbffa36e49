//! Random requests on two connections at once, each on its own half of one disk, against vectors of bytes.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::client::*;
use super::rig::{MIB, Rig};
use freshet::nbd::{CacheMode, ServerOptions};

const HALF: u64 = 3 * MIB + 777;

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, len: usize, seed: u8, fua: bool },
    Read { at: u64, len: usize, whole: bool },
    Zeroes { at: u64, len: usize, no_hole: bool, fast: bool },
    Trim { at: u64, len: usize },
    Cache { at: u64, len: usize },
    Status { at: u64, len: usize, one: bool },
    Flush,
}

/// Mostly near the edges of blocks and buffers.
fn range() -> impl Strategy<Value = (u64, usize)> {
    let at = prop_oneof![
        0..HALF,
        (0..HALF / 4096).prop_map(|n| n * 4096),
        (0..3u64, -2i64..3).prop_map(|(n, by)| (n * MIB).saturating_add_signed(by * 512)),
    ];
    let len = prop_oneof![1usize..5000, Just(4096), Just(65_536), 1usize..200_000, Just(1 << 20), Just((1 << 20) + 5)];
    (at, len)
        .prop_map(|(at, len)| (at, len.min((HALF - at) as usize).max(1)))
        .prop_filter("inside", |(at, _)| *at < HALF)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (range(), any::<u8>(), prop::bool::weighted(0.1)).prop_map(|((at, len), seed, fua)| Step::Write { at, len, seed, fua }),
        5 => (range(), any::<bool>()).prop_map(|((at, len), whole)| Step::Read { at, len, whole }),
        2 => (range(), any::<bool>(), any::<bool>()).prop_map(|((at, len), no_hole, fast)| Step::Zeroes { at, len, no_hole, fast }),
        1 => range().prop_map(|(at, len)| Step::Trim { at, len }),
        1 => range().prop_map(|(at, len)| Step::Cache { at, len }),
        2 => (range(), any::<bool>()).prop_map(|((at, len), one)| Step::Status { at, len, one }),
        1 => Just(Step::Flush),
    ]
}

/// Does the steps on the half of the disk that begins at `base`.
fn drive(client: &mut Client, base: u64, model: &mut [u8], steps: Vec<Step>) {
    for step in steps {
        let shown = format!("{step:?}");
        match step {
            Step::Write { at, len, seed, fua } => {
                let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(seed) | 1).collect();
                let flags = if fua { FUA } else { 0 };
                assert_eq!(client.ask(WRITE, flags, base + at, len as u32, &data), 0, "{shown}");
                model[at as usize..][..len].copy_from_slice(&data);
            }
            Step::Read { at, len, whole } => {
                let whole = whole && len <= 1 << 19;
                client.send(READ, if whole { DF } else { 0 }, base + at, len as u32, &[]);
                let chunks = client.reply(0).unwrap();
                assert!(!whole || chunks.len() == 1, "{shown}");
                assert!(assemble(base + at, len, &chunks) == model[at as usize..][..len], "{shown}");
            }
            Step::Zeroes { at, len, no_hole, fast } => {
                let flags = if no_hole { NO_HOLE } else { 0 } | if fast { FAST_ZERO } else { 0 };
                match client.ask(ZEROES, flags, base + at, len as u32, &[]) {
                    0 => model[at as usize..][..len].fill(0),
                    errno => assert!(fast && errno == ENOTSUP, "{shown}: {errno}"),
                }
            }
            Step::Trim { at, len } => {
                // This disk makes holes exactly; what another might leave is not for clients to know.
                assert_eq!(client.ask(TRIM, 0, base + at, len as u32, &[]), 0, "{shown}");
                model[at as usize..][..len].fill(0);
            }
            Step::Cache { at, len } => assert_eq!(client.ask(CACHE, 0, base + at, len as u32, &[]), 0, "{shown}"),
            Step::Status { at, len, one } => {
                let parts = client.status(if one { REQ_ONE } else { 0 }, base + at, len as u32);
                assert!(!one || parts.len() == 1, "{shown}");
                let mut from = at as usize;
                for (part, flags) in parts {
                    assert!(part > 0 && from + part as usize <= at as usize + len, "{shown}");
                    let zero = model[from..][..part as usize].iter().all(|&b| b == 0);
                    assert!(flags == 0 || (flags == 3 && zero), "{shown}: {flags} over data");
                    from += part as usize;
                }
            }
            Step::Flush => assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0),
        }
    }
}

fn a_disk_is_a_vector_of_bytes(cache: CacheMode, cases: u32) {
    let rig = Rig::new(cache, ServerOptions::default());
    let mut clients = [Client::open(&rig.unix, "disk"), Client::open(&rig.tcp, "disk")];
    let steps = || prop::collection::vec(step(), 1..25);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let models = std::cell::RefCell::new([vec![0; HALF as usize], vec![0; HALF as usize]]);
    let clients = std::cell::RefCell::new(&mut clients);
    let run = |steps: (Vec<Step>, Vec<Step>)| {
        let (mut models, mut clients) = (models.borrow_mut(), clients.borrow_mut());
        let ([a, b], [one, two]) = (&mut *models, &mut **clients);
        std::thread::scope(|scope| {
            scope.spawn(|| drive(one, 0, a, steps.0));
            drive(two, HALF, b, steps.1);
        });
        Ok(())
    };
    TestRunner::new(config).run(&(steps(), steps()), run).unwrap();
    let models = models.into_inner();
    assert!(std::fs::read(rig.image()).unwrap()[..2 * HALF as usize] == models.concat());
    rig.stop();
}

#[test]
fn a_disk_is_a_vector_of_bytes_directly() {
    a_disk_is_a_vector_of_bytes(CacheMode::Direct, 40);
}

#[test]
fn a_disk_is_a_vector_of_bytes_through_the_page_cache() {
    a_disk_is_a_vector_of_bytes(CacheMode::WriteBack, 40);
}
