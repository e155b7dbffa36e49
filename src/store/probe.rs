//! What a storage site can be trusted with, found out by trying.
//!
//! The probe writes small objects under `.freshet-probe/<random>/`, reads, lists and races on them, and deletes them.
//! The race decides about ownership: eight or more writers at once ask for one key, several times over, and exactly
//! one may get it each time. Some servers let everybody win; with such a store two sites could both own a domain.
//!
//! The verdict is what was seen, in words; it never promises what was not tried. On a network file system the race was
//! run from one host only, and the verdict says so.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use serde::Serialize;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Created, StorageSite, network};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};

/// Writers that ask for one key at once.
const WRITERS: usize = 12;
/// Keys that are raced for.
const ROUNDS: usize = 8;
/// Length of the object that is read in ranges; long enough to be read past the page cache.
const OBJECT_LEN: usize = 256 << 10;

/// Result of one part of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It works.
    Yes,
    /// It does not.
    No,
    /// Neither good nor bad, worth knowing.
    Note,
}

/// One capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// What was tried.
    pub name: &'static str,
    /// Whether it works.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
}

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The site's URL.
    pub url: String,
    /// In the order in which they were tried.
    pub capabilities: Vec<Capability>,
    /// Whether domains may be owned through this store.
    pub usable_for_ownership: bool,
    /// Why, or why not.
    pub because: String,
}

impl fmt::Display for Verdict {
    /// One line for each capability, then the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "storage site {}", self.url)?;
        for capability in &self.capabilities {
            let word = match capability.outcome {
                Outcome::Yes => "yes",
                Outcome::No => "NO",
                Outcome::Note => "note",
            };
            writeln!(f, "  {:<18} {word:<5} {}", capability.name, capability.detail)?;
        }
        let word = if self.usable_for_ownership { "yes" } else { "NO" };
        write!(f, "usable for ownership: {word}, because {}", self.because)
    }
}

impl Verdict {
    /// Refuses a store that cannot hold ownership.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] with the reason.
    pub fn require_ownership(&self) -> Result<()> {
        match self.usable_for_ownership {
            true => Ok(()),
            false => {
                let why = format!("storage site {} cannot hold ownership, because {}", self.url, self.because);
                Err(Error::new(ErrorKind::Unsupported, format!("{why}; use another store")))
            }
        }
    }
}

/// Tries what the site can do. Leaves nothing behind unless the site refuses to delete, which the verdict tells.
///
/// # Errors
/// Where nothing can be said about the store: it does not answer, refuses the credentials, has no such bucket.
pub async fn probe(site: &StorageSite) -> Result<Verdict> {
    let mut probe = Probe {
        site,
        folder: format!(".freshet-probe/{}", Uuid::new_v4()),
        written: Vec::new(),
        capabilities: Vec::new(),
    };
    let ran = probe.run().await;
    let cleaned = probe.clean().await;
    ran?;
    if let Err(e) = cleaned {
        let detail = format!("objects are left under {}: {e}", probe.folder);
        probe.add("clean-up", Outcome::Note, detail);
    }
    Ok(probe.verdict())
}

struct Probe<'a> {
    site: &'a StorageSite,
    folder: String,
    written: Vec<String>,
    capabilities: Vec<Capability>,
}

impl Probe<'_> {
    async fn run(&mut self) -> Result<()> {
        if !self.write_and_read().await? {
            return Ok(());
        }
        self.ranges().await?;
        self.listing().await?;
        if self.create_if_absent().await? {
            self.race().await?;
        }
        self.notes();
        Ok(())
    }

    fn add(&mut self, name: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.capabilities.push(Capability { name, outcome, detail: detail.into() });
    }

    fn judge(&mut self, name: &'static str, good: bool, yes: &str, no: &str) -> bool {
        let (outcome, detail) = if good { (Outcome::Yes, yes) } else { (Outcome::No, no) };
        self.add(name, outcome, detail);
        good
    }

    async fn create(&mut self, name: &str, bytes: Bytes) -> Result<Created> {
        let key = format!("{}/{name}", self.folder);
        self.written.push(key.clone());
        self.site.create(&key, vec![bytes]).await
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.site.get(&format!("{}/{name}", self.folder), 2 * OBJECT_LEN as u64).await
    }

    /// Whether there is any sense in going on.
    async fn write_and_read(&mut self) -> Result<bool> {
        match self.create("object", pattern()).await {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Denied => {
                // Told apart from wrong credentials by what may be read.
                if self.site.list_dirs("").await.is_err() {
                    return Err(e);
                }
                self.add("write", Outcome::No, format!("this site can be read and not written: {e}"));
                return Ok(false);
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                self.add("create-if-absent", Outcome::No, format!("the store does not know it: {e}"));
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
        self.add("write", Outcome::Yes, format!("an object of {} KiB was created", OBJECT_LEN >> 10));
        let same = self.get("object").await? == Some(pattern());
        let no = "an object read at once after its creation is missing or different";
        Ok(self.judge("read your write", same, "an object is there at once after its creation", no))
    }

    async fn ranges(&mut self) -> Result<()> {
        let key = format!("{}/object", self.folder);
        let whole = pattern();
        let len = OBJECT_LEN as u64;
        let mut good = true;
        for range in [0..1, 1000..5000, 4096..len, len - 1..len, len - 10..len + 10, len..len + 1] {
            let got = self.site.get_range(&key, range.clone()).await?;
            let expected = whole.slice(range.start as usize..range.end.min(len) as usize);
            good &= got.is_some_and(|f| f.object_len == len && f.into_bytes() == expected);
        }
        self.judge("range", good, "ranges come exactly, also at the end of an object", "a range came wrong");
        Ok(())
    }

    async fn listing(&mut self) -> Result<()> {
        // Ascending by bytes, with a folder among them and what sorts just before and after its slash.
        let names = ["list/a-1", "list/a.1", "list/a/1", "list/a0", "list/b"];
        for name in names.iter().rev() {
            self.create(name, Bytes::from_static(b"listed")).await?;
        }
        let all = self.list(None).await?;
        let good = all.iter().map(String::as_str).eq(names);
        self.judge("listing", good, "complete and in order", "objects are missing, foreign or out of order");
        let after = self.list(Some("list/a.1")).await?;
        let good = after.iter().map(String::as_str).eq(names[2..].iter().copied());
        self.judge("start of a listing", good, "a listing can begin after a key", "a listing begins at a wrong key");
        Ok(())
    }

    async fn list(&self, after: Option<&str>) -> Result<Vec<String>> {
        let after = after.map(|name| format!("{}/{name}", self.folder));
        let found = self.site.list(&format!("{}/list", self.folder), after.as_deref());
        let skip = self.folder.len() + 1;
        found.map_ok(|info| info.key[skip..].to_owned()).try_collect().await
    }

    async fn create_if_absent(&mut self) -> Result<bool> {
        let first = self.create("once", Bytes::from_static(b"first")).await?;
        let second = self.create("once", Bytes::from_static(b"other")).await?;
        let kept = self.get("once").await? == Some(Bytes::from_static(b"first"));
        let good = kept && second == Created::Exists;
        let no = match (kept, second) {
            (false, _) => "a second create of the same key replaced the object",
            (true, _) => "a second create of the same key is reported as done",
        };
        tracing::debug!(?first, ?second, kept, "create-if-absent");
        Ok(self.judge("create-if-absent", good, "a second create of the same key is refused", no))
    }

    async fn race(&mut self) -> Result<()> {
        let mut spoiled = Vec::new();
        for round in 0..ROUNDS {
            let name = format!("race/{round}");
            let key = format!("{}/{name}", self.folder);
            self.written.push(key.clone());
            let winners = race_once(self.site, &key).await?;
            let kept = self.get(&name).await?;
            if let Some(why) = spoils(&winners, kept.as_deref()) {
                spoiled.push(why);
            }
        }
        let no = format!("in {} of {ROUNDS} rounds {}", spoiled.len(), spoiled.first().map_or("", String::as_str));
        let yes = format!("{WRITERS} writers at once, {ROUNDS} rounds: one winner each time");
        self.judge("race", spoiled.is_empty(), &yes, &no);
        Ok(())
    }

    /// What is worth knowing beside the capabilities.
    fn notes(&mut self) {
        match self.site.file_store() {
            Some((root, direct)) => {
                if let Some(name) = network::file_system(root) {
                    let detail = format!(
                        "{name}: the race was run from this host only; whether two hosts exclude each other rests on \
                         the server and its mount options"
                    );
                    self.add("network", Outcome::Note, detail);
                }
                if !direct {
                    self.add("direct reads", Outcome::Note, "not on this file system: reads go through the page cache");
                }
            }
            None => {
                let (store, here) = (self.site.now(), SystemClock.now());
                let apart = store.millis().abs_diff(here.millis()) / 1000;
                if apart >= 2 {
                    let word = if store > here { "ahead of" } else { "behind" };
                    let detail = format!("the store's is {apart} s {word} this machine's; ages use the store's");
                    self.add("clock", Outcome::Note, detail);
                }
            }
        }
    }

    /// Deletes all that was written; the first failure, after trying all.
    async fn clean(&self) -> Result<()> {
        let mut first = Ok(());
        for key in &self.written {
            let deleted = self.site.delete(key).await;
            first = first.and(deleted);
        }
        first
    }

    fn verdict(self) -> Verdict {
        let bad = self.capabilities.iter().find(|c| c.outcome == Outcome::No);
        let because = match bad {
            Some(c) => format!("of {}: {}", c.name, c.detail),
            None => "create-if-absent has one winner and what is written is read back at once".to_owned(),
        };
        Verdict {
            url: self.site.url().to_owned(),
            usable_for_ownership: bad.is_none(),
            because,
            capabilities: self.capabilities,
        }
    }
}

/// Text of the record that one writer of the race wants to create.
fn record(writer: usize) -> Bytes {
    format!("writer {writer}").into()
}

/// Lets all writers loose on one key; the records of those who were told that they won.
async fn race_once(site: &StorageSite, key: &str) -> Result<Vec<Bytes>> {
    let start = Arc::new(Barrier::new(WRITERS));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (site, key, start) = (site.clone(), key.to_owned(), Arc::clone(&start));
        writers.spawn(async move {
            start.wait().await;
            site.create(&key, vec![record(writer)]).await.map(|created| (created, record(writer)))
        });
    }
    let mut winners = Vec::new();
    let mut failed = None;
    while let Some(joined) = writers.join_next().await {
        let result = joined.map_err(|e| Error::with_source(ErrorKind::Internal, "a writer of the probe ended", e))?;
        match result {
            Ok((Created::New, record)) => winners.push(record),
            Ok((Created::Exists, _)) => {}
            Err(e) => failed = Some(e),
        }
    }
    failed.map_or(Ok(winners), Err)
}

/// Why a round of the race was not right, or `None`. No winner is right where the winner's answer was lost on the way:
/// then the object is still one of ours.
fn spoils(winners: &[Bytes], kept: Option<&[u8]>) -> Option<String> {
    let Some(kept) = kept else { return Some("the object is missing afterwards".into()) };
    match winners {
        [] if (0..WRITERS).any(|w| record(w) == kept) => None,
        [] => Some("nobody won, and the object is nobody's".into()),
        [one] if one == kept => None,
        [_] => Some("the object is not the winner's".into()),
        many => Some(format!("{} writers were told that they won", many.len())),
    }
}

/// An object whose every range is recognisable.
fn pattern() -> Bytes {
    let byte = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0];
    (0..OBJECT_LEN as u64).map(byte).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_is_right_only_with_one_winner_whose_object_stays() {
        let r = record;
        assert_eq!(spoils(&[r(3)], Some(b"writer 3")), None);
        assert_eq!(spoils(&[], Some(b"writer 3")), None, "its answer was lost");
        for (winners, kept) in [
            (vec![r(1), r(2)], Some(&b"writer 2"[..])),
            (vec![r(1)], Some(b"writer 2")),
            (vec![r(1)], None),
            (vec![], None),
            (vec![], Some(b"foreign")),
        ] {
            assert!(spoils(&winners, kept).is_some(), "{winners:?} {kept:?}");
        }
    }
}
