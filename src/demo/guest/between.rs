//! The storage site between both sites: an S3 server of this process on loopback, or what the operator names.
//!
//! The server is no part of an appliance: it stays when a site is killed, as a storage site does. Its secret is new each
//! time, and stands in a file that only this user may read. It ends with the value.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::s3_server::{Options, S3Server};

/// How both sites reach it.
pub(super) struct Between {
    /// Its URL.
    pub(super) url: String,
    /// File with its options.
    pub(super) options: Option<PathBuf>,
    server: Option<S3Server>,
}

impl Between {
    /// The one that was named, or a server over `dir`.
    ///
    /// # Errors
    /// What starting it, or a file of options that is not there, says.
    pub(super) fn prepare(url: Option<String>, options: Option<&Path>, dir: &Path) -> Result<Between> {
        if let Some(url) = url {
            let absolute = |path: &Path| {
                // As a process that works elsewhere finds it.
                std::fs::canonicalize(path).io_context(|| format!("options of the storage site {}", path.display()))
            };
            return Ok(Between { url, options: options.map(absolute).transpose()?, server: None });
        }
        let access = Options { secret_key: uuid::Uuid::new_v4().simple().to_string(), ..Options::default() };
        let server = S3Server::start(&dir.join("store"), access);
        let server = server.map_err(|e| Error::with_source(ErrorKind::Io, "start the S3 server of the demo", e))?;
        let path = dir.join("store-options");
        let what = || format!("write {}", path.display());
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.io_context(what)?;
        for (name, value) in server.env() {
            writeln!(file, "{name}={value}").io_context(what)?;
        }
        Ok(Between { url: server.url("demo"), options: Some(path), server: Some(server) })
    }

    /// What it is, for people.
    pub(super) fn describe(&self) -> String {
        match &self.server {
            Some(server) => format!("an S3 server at {}", server.endpoint()),
            None => self.url.clone(),
        }
    }

    /// Requests that it has answered; `None` where it is not ours.
    pub(super) fn requests(&self) -> Option<u64> {
        self.server.as_ref().map(|server| server.counters().total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_a_server_with_a_secret_of_its_own_unless_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Between::prepare(None, None, dir.path()).unwrap();
        let path = ours.options.clone().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let told = std::fs::read_to_string(&path).unwrap();
        assert!(told.contains("AWS_SECRET_ACCESS_KEY=") && !told.contains("freshet-secret"), "{told}");
        assert_eq!(ours.requests(), Some(0));
        assert!(ours.describe().contains("http://127.0.0.1:"));

        let named = |options| Between::prepare(Some("s3://b/p".into()), options, dir.path());
        let theirs = named(Some(&path)).unwrap();
        assert_eq!((theirs.describe().as_str(), theirs.requests()), ("s3://b/p", None));
        assert!(named(Some(Path::new("/nothing/here"))).is_err());
    }
}
