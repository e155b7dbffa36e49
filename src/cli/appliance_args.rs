//! The arguments that name an appliance, and what commands share that speak to one.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use prost::{Message, Name};
use serde_json::Value;
use tonic::Status;

use super::output::{can_ask, confirm};
use super::report::Report;
use crate::control::{Client, ClientTls, Target, from_status, json_of};
use crate::error::{Error, ErrorKind, Result};

/// Which appliance is asked.
#[derive(Debug, Args)]
pub(super) struct ApplianceArgs {
    /// Unix socket of the appliance
    #[arg(long, value_name = "PATH", default_value = "/run/freshet/freshet.sock", conflicts_with = "server")]
    socket: PathBuf,
    /// Appliance at HOST:PORT, over TLS, in place of the socket
    #[arg(long, value_name = "HOST:PORT", requires_all = ["ca", "cert", "key"])]
    server: Option<String>,
    /// PEM file with the roots of the appliance's certificate
    #[arg(long, value_name = "FILE", requires = "server")]
    ca: Option<PathBuf>,
    /// PEM file with one's own certificate
    #[arg(long, value_name = "FILE", requires = "server")]
    cert: Option<PathBuf>,
    /// PEM file with its key
    #[arg(long, value_name = "FILE", requires = "server")]
    key: Option<PathBuf>,
    /// Name that the appliance's certificate has, where it is not that of the host
    #[arg(long, value_name = "NAME", requires = "server")]
    server_name: Option<String>,
}

impl ApplianceArgs {
    /// Connects.
    pub(super) async fn connect(&self) -> Result<Client> {
        let target = match (&self.server, &self.ca, &self.cert, &self.key) {
            (Some(server), Some(ca), Some(certificate), Some(key)) => {
                let (ca, certificate, key) = (ca.clone(), certificate.clone(), key.clone());
                Target::Server(server.clone(), ClientTls { ca, certificate, key, name: self.server_name.clone() })
            }
            _ => Target::Socket(self.socket.clone()),
        };
        Client::connect(&target).await
    }
}

/// What an appliance answered, or its error in our terms.
pub(super) fn answered<T>(answer: std::result::Result<tonic::Response<T>, Status>) -> Result<T> {
    answer.map(tonic::Response::into_inner).map_err(|status| from_status(&status))
}

/// A report of an answer.
pub(super) fn report<M: Message + Name>(answer: &M, text: impl Into<String>) -> Result<Report> {
    Report::new(&json_of(answer)?, text)
}

/// Messages as a list of JSON documents.
pub(super) fn list_of<M: Message + Name>(messages: &[M]) -> Result<Value> {
    messages.iter().map(json_of).collect::<Result<Vec<_>>>().map(Value::Array)
}

/// Asks whether to do what `told` says, unless the operator has named it: `--yes NAME`.
///
/// # Errors
/// `Refused` where nobody says yes; `Invalid` where another thing was named.
pub(super) fn confirmed(yes: Option<&str>, name: &str, told: &str) -> Result<()> {
    match yes {
        Some(named) if named == name => Ok(()),
        Some(named) => {
            let why = format!("--yes names {named:?}, and this is about {name:?}");
            Err(Error::new(ErrorKind::Invalid, format!("{why}; nothing was done")))
        }
        None if confirm(&format!("{told}. Go on?")) => Ok(()),
        None => {
            let how = if can_ask() { "not confirmed" } else { "without a terminal it needs --yes and its name" };
            Err(Error::new(ErrorKind::Refused, format!("{told}: {how}; nothing was done")))
        }
    }
}

/// A time for people; `-` where there is none.
pub(super) fn when(time: Option<&prost_types::Timestamp>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let time = jiff::Timestamp::new(time.seconds, time.nanos);
    time.map_or_else(|_| "-".to_owned(), |t| format!("{t:.0}"))
}

/// An age for people from milliseconds; `-` where there is none.
pub(super) fn age_of(millis: Option<u64>) -> String {
    millis.map_or_else(|| "-".to_owned(), super::units::age)
}

/// Seconds for people.
pub(super) fn seconds(seconds: u64) -> String {
    super::units::age(u64::try_from(Duration::from_secs(seconds).as_millis()).unwrap_or(u64::MAX))
}

/// A table without lines.
pub(super) fn table<const N: usize>(head: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(head);
    table
}

/// Reads `FROM=TO`.
pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("expected two words with = between them")?;
    Ok((from.to_owned(), to.to_owned()))
}
