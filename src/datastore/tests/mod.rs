//! The contract of the disk engine, run on every kind of engine and every fall-back.
//!
//! [`Rig`] is one engine over one small slab and a directory of its own. [`on_every_engine`] turns functions over a
//! rig into tests for each variant.

mod contract;
mod devices;
mod driven;
mod failures;
mod lifecycle;
mod model;
mod split;
mod starting;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Access, DiskEngine, EngineKind, EngineOptions, FileId, Slab, start};

/// Slot size of the tests' slab in bytes: small, so that a few slots hold a whole test file.
const SLOT: usize = 256 << 10;

/// Which engine a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Ring,
    TwoRings,
    RingUnregistered,
    RingBuffered,
    RingLargeBlocks,
    Threads,
    ThreadsBuffered,
}

impl Variant {
    fn kind(self) -> EngineKind {
        match self {
            Variant::Threads | Variant::ThreadsBuffered => EngineKind::Threads,
            _ => EngineKind::IoUring,
        }
    }

    fn options(self) -> EngineOptions {
        let options = EngineOptions { queue_depth: 8, worker_threads: 4, helper_threads: 2, ..Default::default() };
        match self {
            Variant::Ring | Variant::Threads => options,
            Variant::TwoRings => EngineOptions { ring_threads: 2, ..options },
            Variant::RingUnregistered => EngineOptions { register_buffers: false, ..options },
            Variant::RingBuffered | Variant::ThreadsBuffered => EngineOptions { direct: false, ..options },
            Variant::RingLargeBlocks => EngineOptions { min_alignment: 16 << 10, ..options },
        }
    }
}

/// See the module's head.
struct Rig {
    engine: Arc<dyn DiskEngine>,
    slab: Arc<Slab>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new(variant: Variant) -> Rig {
        Rig::with(variant, |_| ())
    }

    fn with(variant: Variant, change: impl FnOnce(&mut EngineOptions)) -> Rig {
        let mut options = variant.options();
        change(&mut options);
        let slab = Slab::new(16, SLOT).unwrap();
        let engine = start(variant.kind(), Arc::clone(&slab), options).unwrap();
        Rig { engine, slab, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with these contents, open for writing.
    fn file(&self, name: &str, contents: &[u8]) -> FileId {
        fs::write(self.path(name), contents).unwrap();
        self.engine.open(&self.path(name), Access::Write).unwrap()
    }

    /// What any other program reads from the file.
    fn contents(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

/// Bytes that differ between positions and between seeds.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// One test for each variant of each function, which takes the variant.
macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        on_every_engine!(@ ring Ring: $($test)*);
        on_every_engine!(@ two_rings TwoRings: $($test)*);
        on_every_engine!(@ ring_unregistered RingUnregistered: $($test)*);
        on_every_engine!(@ ring_buffered RingBuffered: $($test)*);
        on_every_engine!(@ ring_large_blocks RingLargeBlocks: $($test)*);
        on_every_engine!(@ threads Threads: $($test)*);
        on_every_engine!(@ threads_buffered ThreadsBuffered: $($test)*);
    };
    (@ $module:ident $variant:ident: $($test:ident)*) => {
        mod $module {
            $(#[test] fn $test() { super::$test(crate::datastore::tests::Variant::$variant) })*
        }
    };
}
use on_every_engine;
