//! Making bits durable: one thread for each disk that writes the changed pages and syncs once for all who wait.
//!
//! Those who come during a sync are served by the next one, together; so a burst of first touches costs two syncs and
//! not one for each. A failed write or sync is never tried again: it poisons the bitmap, and the pages that it was about
//! are overwritten with bytes that no reader believes, so that opening takes all of their regions as set.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::format::INTENT_PAGE;

use super::bits::Bits;
use super::shared::{Next, Shared};

/// The open file of a bitmap, page by page; page 0 is the header.
pub(super) trait PageFile: Send {
    /// Writes page `n` as a whole. Not durable before the next sync.
    fn write_page(&mut self, n: u32, bytes: &[u8; INTENT_PAGE]) -> io::Result<()>;
    /// Makes all writes before it durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// One commit: what it writes. The steps are apart so that tests can put others, or a crash, between them.
#[derive(Debug)]
pub(super) struct Round {
    pages: Vec<(u32, Bits)>,
}

impl Round {
    /// A copy of every page that changed; `None` where none did.
    pub(super) fn begin(shared: &Shared) -> Option<Round> {
        let changed = shared.pages().filter_map(|(n, mut page)| page.take_changes().map(|bits| (n, bits)));
        let pages: Vec<_> = changed.collect();
        (!pages.is_empty()).then_some(Round { pages })
    }

    /// Writes the copies.
    pub(super) fn write(&self, shared: &Shared, file: &mut dyn PageFile) -> io::Result<()> {
        self.pages.iter().try_for_each(|(n, bits)| {
            let bytes = shared.header().encode_page(*n, bits.to_bytes());
            file.write_page(n + 1, &bytes)
        })
    }

    /// Makes them durable.
    pub(super) fn sync(&self, shared: &Shared, file: &mut dyn PageFile) -> io::Result<()> {
        shared.count_sync();
        file.sync()
    }

    /// Both succeeded: what the copies hold is marked.
    pub(super) fn finish(self, shared: &Shared) {
        for (n, bits) in self.pages {
            if let Some(mut page) = shared.page(n) {
                page.committed(bits);
            }
        }
        shared.round_done();
    }

    /// One of them failed with `error`: the bitmap is poisoned and its pages here are made unbelievable.
    pub(super) fn fail(self, shared: &Shared, file: &mut dyn PageFile, error: &io::Error) {
        for (n, _) in &self.pages {
            // For whoever reads it through the page cache. Where this fails, too, the promise still holds: the file has
            // a page of before or of now, and opening makes durable what it found before it trusts it.
            let _ = file.write_page(n + 1, &[0xff; INTENT_PAGE]);
        }
        shared.poison(format!("writing or syncing it failed: {error}"));
    }
}

/// One commit from begin to end; false once the bitmap is poisoned.
pub(super) fn commit(shared: &Shared, file: &mut dyn PageFile) -> bool {
    let Some(round) = Round::begin(shared) else {
        // Whoever asked was served by the round before.
        shared.round_done();
        return true;
    };
    match round.write(shared, file).and_then(|()| round.sync(shared, file)) {
        Ok(()) => {
            round.finish(shared);
            true
        }
        Err(e) => {
            round.fail(shared, file, &e);
            false
        }
    }
}

/// The thread: until the bitmap is closed or poisoned.
pub(super) fn run(shared: &Arc<Shared>, file: &mut dyn PageFile, patience: Duration) {
    let _ended = Ended(shared);
    loop {
        let next = shared.next(patience);
        if !commit(shared, file) || next == Next::CommitAndEnd {
            return;
        }
    }
}

/// Where the thread panics, nobody waits for it any longer. It ends otherwise only when nobody can.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison("its commit thread panicked".to_owned());
        }
    }
}
