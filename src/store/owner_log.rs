//! The ownership log as objects: reading it, and appending to it by creating the next number.
//!
//! Thin I/O around the fold: it never decides who owns a domain. Records are contiguous, because nobody writes a number
//! before having read all below it; a gap means that something deleted a record, and is an error. A lost answer to a
//! create is settled by reading the record and finding one's nonce in it.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{Created, Effect, Horizon, Ownership, StorageSite, keys, reread};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::{Author, OwnerKind, OwnerRecord};
use crate::ids::{DomainId, Name, Time, WriterId};

/// Longest object that is read as a record: more than any version has, so that a newer version is told from damage.
const MAX_LEN: u64 = 64 << 10;
/// Most records of one log. A record is written when a writer starts or a domain changes hands.
const MAX_RECORDS: u64 = 1_000_000;
/// Records read at a time.
const PARALLEL: usize = 16;

/// What is to be appended.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// Domain.
    pub(super) domain: DomainId,
    /// Now, by the store's clock.
    pub(super) at: Time,
    /// Who appends.
    pub(super) author: Author,
    /// What it does.
    pub(super) kind: OwnerKind,
}

/// What became of an append.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// The record is in the log; what it did there.
    Written(Effect),
    /// Another record won the number. It is folded; the caller decides anew.
    Lost,
}

/// Reads and folds all records: a listing, the records in parallel, then on until the next does not exist. No record at
/// all is an empty log.
pub(super) async fn read_all(site: &StorageSite, name: &Name) -> Result<Ownership> {
    let mut numbers = Vec::new();
    let mut listing = site.list(&keys::owner_prefix(name), None);
    while let Some(object) = listing.try_next().await? {
        if let Some((_, keys::ObjectKey::Owner(n))) = keys::ObjectKey::parse(&object.key) {
            numbers.push(n);
            check_len(site, name, numbers.len() as u64)?;
        }
    }
    if let Some((expected, found)) = (1..).zip(&numbers).find(|(expected, n)| expected != *n) {
        let why = format!("{} is missing, {} exists", keys::owner(name, expected), keys::owner(name, *found));
        return Err(damaged(site, format!("{why}: without it nobody can tell who owns the domain")));
    }
    let reads: Vec<_> = numbers.iter().map(|n| read(site, name, None, *n)).collect();
    let records: Vec<Option<OwnerRecord>> = futures::stream::iter(reads).buffered(PARALLEL).try_collect().await?;
    let mut ownership = Ownership::default();
    for (n, record) in (1..).zip(records) {
        let Some(record) = record else {
            return Err(damaged(site, format!("{} was listed and is gone", keys::owner(name, n))));
        };
        check_domain(site, &ownership, &record)?;
        ownership.apply(&record);
    }
    let mut horizon = Horizon::new(ownership);
    refresh(site, name, &mut horizon).await?;
    Ok(horizon.ownership().clone())
}

/// Reads and folds what was appended since; how many records that were.
pub(super) async fn refresh(site: &StorageSite, name: &Name, horizon: &mut Horizon) -> Result<u64> {
    let before = horizon.ownership().records();
    while advance(site, name, horizon).await? {}
    Ok(horizon.ownership().records() - before)
}

/// Reads the next record and folds it; false where it does not exist. The read begins after the call.
pub(super) async fn advance(site: &StorageSite, name: &Name, horizon: &mut Horizon) -> Result<bool> {
    let n = horizon.ownership().records() + 1;
    let Some(record) = read(site, name, horizon.ownership().domain(), n).await? else { return Ok(false) };
    check_len(site, name, n)?;
    horizon.record(&record);
    Ok(true)
}

/// Creates the next record. The one that stands there afterwards, ours or another's, is folded.
pub(super) async fn append(site: &StorageSite, name: &Name, horizon: &mut Horizon, draft: &Draft) -> Result<Appended> {
    let n = horizon.ownership().records() + 1;
    check_len(site, name, n)?;
    // Drawn anew for each number, so that finding it proves that this very record landed.
    let nonce = WriterId::random().bytes();
    let Draft { domain, at, author, kind } = draft.clone();
    let record = OwnerRecord { n, domain, at, author, nonce, kind };
    let key = keys::owner(name, n);
    let outcome = site.create(&key, vec![Bytes::copy_from_slice(&record.encode())]).await;
    if matches!(outcome, Ok(Created::New)) {
        return Ok(Appended::Written(horizon.record(&record)));
    }
    let stands = match (read(site, name, horizon.ownership().domain(), n).await, outcome) {
        (Ok(Some(stands)), _) => stands,
        (_, Err(error)) => return Err(error.while_doing(format!("write a {} into the ownership log", kind.word()))),
        (Err(error), Ok(_)) => return Err(error),
        (Ok(None), Ok(_)) => return Err(damaged(site, format!("{key} exists for writers and not for readers"))),
    };
    let effect = horizon.record(&stands);
    match stands.nonce == nonce {
        true => Ok(Appended::Written(effect)),
        false => Ok(Appended::Lost),
    }
}

async fn read(site: &StorageSite, name: &Name, domain: Option<DomainId>, n: u64) -> Result<Option<OwnerRecord>> {
    let key = keys::owner(name, n);
    let read = || async {
        let bytes = site.get(&key, MAX_LEN).await.while_doing(|| "read the ownership log")?;
        let place = || format!("storage site {}: object {key}", site.url());
        bytes.map(|bytes| OwnerRecord::decode(&bytes, domain, n).map_err(|e| e.at(place()))).transpose()
    };
    reread(read).await
}

fn check_domain(site: &StorageSite, ownership: &Ownership, record: &OwnerRecord) -> Result<()> {
    match ownership.domain() {
        Some(domain) if domain != record.domain => {
            let why = format!("ownership record {} belongs to domain {}, expected {domain}", record.n, record.domain);
            Err(damaged(site, why))
        }
        _ => Ok(()),
    }
}

fn check_len(site: &StorageSite, name: &Name, records: u64) -> Result<()> {
    match records <= MAX_RECORDS {
        true => Ok(()),
        false => {
            let why = format!("the ownership log of domain {name} has more than {MAX_RECORDS} records");
            Err(Error::new(ErrorKind::Full, format!("storage site {}: {why}", site.url())))
        }
    }
}

fn damaged(site: &StorageSite, why: String) -> Error {
    Error::new(ErrorKind::Damaged, format!("storage site {}: {why}", site.url()))
}
