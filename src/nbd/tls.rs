//! TLS for connections: whether it is offered or demanded, and with which certificates.
//!
//! Owns the loaded key and certificates. It never falls back: what cannot be loaded is an error at the start.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, ErrorKind, Result};

/// Whether clients use TLS.
#[derive(Clone, Default)]
pub enum Tls {
    /// They cannot.
    #[default]
    Off,
    /// They may.
    Allowed(TlsIdentity),
    /// They must: without it no option but `STARTTLS` and `ABORT` is answered.
    Required(TlsIdentity),
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tls::Off => "Off",
            Tls::Allowed(_) => "Allowed",
            Tls::Required(_) => "Required",
        })
    }
}

impl Tls {
    pub(super) fn identity(&self) -> Option<&TlsIdentity> {
        match self {
            Tls::Off => None,
            Tls::Allowed(identity) | Tls::Required(identity) => Some(identity),
        }
    }

    pub(super) fn is_required(&self) -> bool {
        matches!(self, Tls::Required(_))
    }
}

/// The server's certificate and key, and whose certificates clients must show.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<ServerConfig>,
}

impl TlsIdentity {
    /// Loads PEM files: the server's certificate with those that lead to its root, its key, and where `clients` is
    /// given the roots of which a client must show a certificate.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, or `Invalid` naming the file that is wrong.
    pub fn load(certificate: &Path, key: &Path, clients: Option<&Path>) -> Result<TlsIdentity> {
        let chain = certificates(certificate)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| invalid("TLS key", key, e))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = versions.map_err(|e| Error::with_source(ErrorKind::Internal, "TLS versions", e))?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root).map_err(|e| invalid("TLS roots of clients", path, e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| invalid("TLS roots of clients", path, e))?)
            }
        };
        let config = builder.with_single_cert(chain, secret).map_err(|e| invalid("TLS certificate", certificate, e))?;
        Ok(TlsIdentity { config: Arc::new(config) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let found = found.map_err(|e| invalid("TLS certificate", path, e))?;
    match found.is_empty() {
        true => Err(Error::new(ErrorKind::Invalid, format!("TLS certificate {}: there is none in it", path.display()))),
        false => Ok(found),
    }
}

fn invalid(what: &str, path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    use tokio_rustls::rustls::pki_types::pem::Error as Pem;
    let context = format!("{what} {}", path.display());
    // The key's path is shown, its content never: the errors hold none of it.
    let error: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
    match error.downcast::<Pem>() {
        Ok(pem) => match *pem {
            Pem::Io(io) => Error::io(context, io),
            other => Error::with_source(ErrorKind::Invalid, context, other),
        },
        Err(error) => Error::with_source(ErrorKind::Invalid, context, error),
    }
}
