//! The arguments of commands that serve disks to clients over TLS.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::nbd::{Tls, TlsIdentity};

/// See the module.
#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// PEM file with the server's certificate; clients must use TLS then
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// PEM file with the roots of which clients must show a certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Serve clients without TLS as well
    #[arg(long, requires = "tls_cert", conflicts_with = "tls_ca")]
    tls_optional: bool,
}

impl TlsArgs {
    /// Whether there is any TLS.
    pub(super) fn is_on(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// The setting, with what the files hold.
    ///
    /// # Errors
    /// What reading the files says.
    pub(super) fn load(&self) -> Result<Tls> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(Tls::Off) };
        let identity = TlsIdentity::load(certificate, key, self.tls_ca.as_deref())?;
        Ok(if self.tls_optional { Tls::Allowed(identity) } else { Tls::Required(identity) })
    }
}
