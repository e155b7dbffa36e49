//! The arguments by which the old site is told to follow the domain after it handed it over.

use std::path::PathBuf;

use clap::Args;

use super::appliance_args::parse_pair;
use super::plan_args::read_message;
use super::units::parse_size;
use crate::control::proto::{DrStage, FailoverStage, RemoteSettings, VmsStage};
use crate::error::{Error, ErrorKind, Result};

/// How the old site follows the domain afterwards.
#[derive(Debug, Args)]
pub(super) struct RemoteArgs {
    /// Planned only: the old site follows the domain from then on, on the disks that it has. DIR is its directory for what
    /// it keeps of that
    #[arg(long, value_name = "DIR")]
    resume_remote: Option<String>,
    /// Directory of the old site's replication log; that of --resume-remote unless told
    #[arg(long, value_name = "DIR")]
    remote_log_store: Option<String>,
    /// Size of the old site's replication log
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    remote_log_size: Option<u64>,
    /// Network of this site to network of the old one, for the way back. Can be repeated
    #[arg(long, value_name = "FROM=TO", value_parser = parse_pair)]
    remote_network: Vec<(String, String)>,
    /// Network of the old site for what is mapped nowhere
    #[arg(long, value_name = "NETWORK")]
    remote_default_network: Option<String>,
    /// File with all that the old site follows by: the message RemoteSettings as JSON. Flags outrank it
    #[arg(long, value_name = "FILE")]
    remote_settings: Option<PathBuf>,
}

impl RemoteArgs {
    /// The settings for the old site over those of `before`; `None` where it is not to follow.
    ///
    /// # Errors
    /// `Invalid` for the file, and for flags without the one that they belong to.
    pub(super) fn settings(&self, before: Option<RemoteSettings>) -> Result<Option<RemoteSettings>> {
        let read = self.remote_settings.as_ref().map(|path| read_message(path, "recovery settings", "RemoteSettings"));
        let Some(mut settings) =
            read.transpose()?.or(before).or(self.resume_remote.as_ref().map(|_| Default::default()))
        else {
            let flags = [
                ("--remote-log-store", self.remote_log_store.is_some()),
                ("--remote-log-size", self.remote_log_size.is_some()),
                ("--remote-network", !self.remote_network.is_empty()),
                ("--remote-default-network", self.remote_default_network.is_some()),
            ];
            return match flags.iter().find(|(_, given)| *given) {
                None => Ok(None),
                Some((flag, _)) => {
                    let why = format!("{flag} is for an old site that follows: name its directory by --resume-remote");
                    Err(Error::new(ErrorKind::Invalid, why))
                }
            };
        };
        if let Some(datastore) = &self.resume_remote {
            settings.failover.get_or_insert_with(FailoverStage::default).datastore.clone_from(datastore);
        }
        let vms = settings.vms.get_or_insert_with(VmsStage::default);
        vms.networks.extend(self.remote_network.iter().cloned());
        if let Some(network) = &self.remote_default_network {
            vms.default_network.clone_from(network);
        }
        let dr = settings.dr.get_or_insert_with(DrStage::default);
        if let Some(log_store) = &self.remote_log_store {
            dr.log_store.clone_from(log_store);
        }
        dr.log_size_bytes = self.remote_log_size.unwrap_or(dr.log_size_bytes);
        Ok(Some(settings))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        remote: RemoteArgs,
    }

    fn settings(args: &[&str]) -> Result<Option<RemoteSettings>> {
        Line::parse_from(std::iter::once(&"x").chain(args)).remote.settings(None)
    }

    #[test]
    fn flags_say_what_a_file_says_and_outrank_it() {
        assert_eq!(settings(&[]).unwrap(), None);
        let lost = settings(&["--remote-log-size", "1GiB"]).unwrap_err();
        assert!(lost.kind() == ErrorKind::Invalid && lost.to_string().contains("--resume-remote"), "{lost}");
        let flags = ["--resume-remote", "/disks", "--remote-log-size", "1GiB", "--remote-default-network", "lan"];
        let made = settings(&flags).unwrap().unwrap();
        assert_eq!(made.failover.as_ref().unwrap().datastore, "/disks");
        assert_eq!((made.dr.unwrap().log_size_bytes, made.vms.unwrap().default_network), (1 << 30, "lan".to_owned()));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("remote.json");
        let text = r#"{"failover":{"datastore":"/other"},"dr":{"log_store":"/log","log_size_bytes":5}}"#;
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let read = settings(&["--remote-settings", path, "--remote-log-size", "2GiB"]).unwrap().unwrap();
        assert_eq!(read.failover.unwrap().datastore, "/other");
        let dr = read.dr.unwrap();
        assert_eq!((dr.log_store.as_str(), dr.log_size_bytes), ("/log", 2 << 30));
        std::fs::write(&file, r#"{"datastores":{}}"#).unwrap();
        assert_eq!(settings(&["--remote-settings", path]).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
