//! Recovery settings on their way from the site that asks for a domain to the one that owns it.
//!
//! Owns numbering and which of them count; what they say is not its business. Numbers have no gaps, so that the last one is
//! found by reading on until there is none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Domain, Settled, keys};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::{MAX_RECOVERY_SETTINGS_LEN, RecoverySettings};
use crate::ids::Name;

/// Most recovery settings of a domain: each takes a request to read, once.
const MOST: u64 = 4096;

/// What was read of a domain's recovery settings: they are written once and never changed.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownSettings(Arc<Mutex<Read>>);

#[derive(Debug, Clone, Default)]
struct Read {
    /// How many there are at least.
    count: u64,
    /// The last text of each site.
    last: BTreeMap<Name, String>,
}

impl KnownSettings {
    fn lock(&self) -> MutexGuard<'_, Read> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Domain {
    /// Leaves `text` in the name of site `by`, in the place of what it left before; an empty one takes that back.
    ///
    /// # Errors
    /// `Invalid` where the text is too long; `Full`; what the storage site says.
    pub async fn leave_recovery_settings(&self, by: &Name, text: &str) -> Result<()> {
        let mut n = self.read_recovery_settings().await?.count + 1;
        let (domain, site, at) = (self.id(), by.clone(), self.site().now());
        let nonce = crate::ids::WriterId::random().bytes();
        while n <= MOST {
            let settings = RecoverySettings { domain, n, site: site.clone(), at, nonce, text: text.to_owned() };
            let bytes =
                settings.encode().map_err(|e| Error::with_source(ErrorKind::Invalid, "recovery settings", e))?;
            let key = keys::recovery_settings(self.name(), n);
            match self.site().create_settled(&key, vec![bytes.into()]).await? {
                Settled::New | Settled::Ours => return Ok(()),
                // Another site was first.
                Settled::Theirs => n += 1,
            }
        }
        let why = format!("domain {}: there are {MOST} recovery settings, and no more can be written", self.name());
        Err(Error::new(ErrorKind::Full, format!("{}: {why}", self.site().url())))
    }

    /// The same for what is only nice to know: nothing is left where it stands there already, or where there are so many that
    /// the rest is for what matters. Whether it stands there.
    ///
    /// # Errors
    /// As [`leave_recovery_settings`](Self::leave_recovery_settings).
    pub(crate) async fn leave_a_word(&self, by: &Name, text: &str) -> Result<bool> {
        let read = self.read_recovery_settings().await?;
        if read.last.get(by).is_some_and(|last| last == text) {
            return Ok(true);
        }
        if read.count >= MOST / 2 {
            return Ok(false);
        }
        self.leave_recovery_settings(by, text).await.map(|()| true)
    }

    /// What site `by` left last; `None` where it left nothing, or took it back.
    ///
    /// # Errors
    /// `Damaged`; what the storage site says.
    pub async fn recovery_settings_of(&self, by: &Name) -> Result<Option<String>> {
        let read = self.read_recovery_settings().await?;
        Ok(read.last.get(by).cloned().filter(|text| !text.is_empty()))
    }

    /// All of them, of which those are read that were not before.
    async fn read_recovery_settings(&self) -> Result<Read> {
        let mut read = self.settings.lock().clone();
        while read.count < MOST {
            let n = read.count + 1;
            let key = keys::recovery_settings(self.name(), n);
            let Some(bytes) = self.site().get(&key, MAX_RECOVERY_SETTINGS_LEN).await? else { break };
            let found = RecoverySettings::decode(&bytes, self.id(), n);
            let found = found.map_err(|e| Error::with_source(ErrorKind::Damaged, key.clone(), e));
            let found = found.while_doing(|| self.site().url().to_owned())?;
            read.count = n;
            read.last.insert(found.site, found.text);
        }
        let mut known = self.settings.lock();
        if known.count < read.count {
            known.clone_from(&read);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DomainWriter, StartOptions, StorageSite, StoreOptions};

    #[tokio::test]
    async fn the_last_word_of_each_site_counts() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let site = StorageSite::open(&url, &StoreOptions::default()).await.unwrap();
        let name = |n: &str| Name::new(n).unwrap();
        let writer = DomainWriter::start(&site, &name("d"), &name("first"), StartOptions::default()).await.unwrap();
        let domain = writer.domain().clone();
        let of = async |by: &str| domain.recovery_settings_of(&name(by)).await.unwrap();
        assert_eq!(of("harbour").await, None);
        domain.leave_recovery_settings(&name("harbour"), "one").await.unwrap();
        domain.leave_recovery_settings(&name("island"), "two").await.unwrap();
        assert_eq!((of("harbour").await.as_deref(), of("island").await.as_deref()), (Some("one"), Some("two")));
        domain.leave_recovery_settings(&name("harbour"), "three").await.unwrap();
        assert_eq!(of("harbour").await.as_deref(), Some("three"));
        domain.leave_recovery_settings(&name("harbour"), "").await.unwrap();
        assert_eq!((of("harbour").await, of("island").await.as_deref()), (None, Some("two")));
        // A word that stands there is not left again.
        for _ in 0..3 {
            assert!(domain.leave_a_word(&name("harbour"), "ships").await.unwrap());
        }
        assert_eq!(of("harbour").await.as_deref(), Some("ships"));
        let fifth = dir.path().join(keys::recovery_settings(&name("d"), 5));
        assert!(fifth.exists() && !fifth.with_file_name("000000000006").exists());
        writer.finish().await.unwrap();
        // Damage is told, and not taken for nothing.
        let path = dir.path().join(keys::recovery_settings(&name("d"), 2));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(of("island").await.as_deref(), Some("two"), "what was read is not read again");
        let domain = Domain::open(&site, &name("d")).await.unwrap();
        let error = domain.recovery_settings_of(&name("island")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
}
