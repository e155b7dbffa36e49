//! Who calls, and what they may do: decided once for every call, before it reaches a service.
//!
//! ```text
//! Unix socket: the kernel tells the peer's user; root and the appliance's own are admins, nobody else is heard
//! TCP:         TLS verified the certificate; its subject has a role by the settings, or none
//! ```
//!
//! Owns the table of roles by method: what is not in it is for admins. Invariant: no handler runs for a caller who may not
//! call it.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::{Either, Ready, ready};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::transport::server::TlsConnectInfo;
use tower::{Layer, Service};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::catalog::{Catalog, EventRecord};
use super::fault::Fault;
use super::listen::{TcpPeer, UnixPeer};
use super::settings::{Access, Role};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};

/// Time between two strangers that are written down.
const STRANGERS_EVERY: Duration = Duration::from_secs(10);
/// Refusals that are written down at once; more of them at the same time are only logged.
const NOTED_AT_ONCE: usize = 4;

/// The least role for each method.
pub const ROLES: &[(&str, Role)] = &[
    ("/freshet.v1.SiteService/GetSite", Role::Viewer),
    ("/freshet.v1.StoreService/AddStore", Role::Admin),
    ("/freshet.v1.StoreService/ListStores", Role::Viewer),
    ("/freshet.v1.StoreService/RemoveStore", Role::Admin),
    ("/freshet.v1.StoreService/ScanStore", Role::Viewer),
    ("/freshet.v1.DomainService/CreateDomain", Role::Operator),
    ("/freshet.v1.DomainService/GetDomain", Role::Viewer),
    ("/freshet.v1.DomainService/ListDomains", Role::Viewer),
    ("/freshet.v1.DomainService/WatchDomain", Role::Viewer),
    ("/freshet.v1.DomainService/ImportDomain", Role::Operator),
    ("/freshet.v1.DomainService/ImportAllDomains", Role::Operator),
    ("/freshet.v1.DomainService/ForgetDomain", Role::Admin),
    ("/freshet.v1.DomainService/PrepareDeleteDomain", Role::Admin),
    ("/freshet.v1.DomainService/DeleteDomain", Role::Admin),
    ("/freshet.v1.DomainService/CutPoint", Role::Operator),
    ("/freshet.v1.DomainService/ListPoints", Role::Viewer),
    ("/freshet.v1.DomainService/ListKeptCopies", Role::Viewer),
    ("/freshet.v1.DomainService/DeleteKeptCopy", Role::Admin),
    ("/freshet.v1.VmService/ListGuests", Role::Viewer),
    ("/freshet.v1.VmService/ProtectVm", Role::Operator),
    ("/freshet.v1.VmService/UnprotectVm", Role::Operator),
    ("/freshet.v1.VmService/AddDisk", Role::Operator),
    ("/freshet.v1.VmService/RemoveDisk", Role::Operator),
    ("/freshet.v1.VmService/OpenExports", Role::Operator),
    ("/freshet.v1.RunbookService/GetRunbook", Role::Viewer),
    ("/freshet.v1.RunbookService/SetRunbook", Role::Admin),
    ("/freshet.v1.TaskService/GetTask", Role::Viewer),
    ("/freshet.v1.TaskService/ListTasks", Role::Viewer),
    ("/freshet.v1.TaskService/WatchTask", Role::Viewer),
    ("/freshet.v1.TaskService/AnswerTask", Role::Operator),
    ("/freshet.v1.TaskService/AbandonTask", Role::Admin),
    ("/freshet.v1.EventService/ListEvents", Role::Viewer),
    ("/freshet.v1.FailoverService/PlanFailover", Role::Operator),
    ("/freshet.v1.FailoverService/StartFailover", Role::Operator),
    ("/freshet.v1.FailoverService/StartContinuousFailover", Role::Operator),
    ("/freshet.v1.FailoverService/PlanCompletion", Role::Operator),
    ("/freshet.v1.FailoverService/CompleteFailover", Role::Operator),
    ("/freshet.v1.FailoverService/CancelFailover", Role::Operator),
    ("/freshet.v1.FailoverService/PauseFailover", Role::Operator),
    ("/freshet.v1.FailoverService/ResumeFailover", Role::Operator),
    ("/freshet.v1.FailbackService/StartFailback", Role::Operator),
    ("/freshet.v1.FailbackService/StartContinuousFailback", Role::Operator),
    ("/freshet.v1.FailbackService/WithdrawRelease", Role::Operator),
    ("/grpc.health.v1.Health/Check", Role::Viewer),
    ("/grpc.health.v1.Health/Watch", Role::Viewer),
    ("/grpc.health.v1.Health/List", Role::Viewer),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::Viewer),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::Viewer),
];

/// Somebody who may be heard.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// As events name it: a subject, or `unix:<uid>`.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: Role,
}

/// The subject of a certificate: its attributes in their own order, as `CN=alice,O=Example`. Characters with a meaning are
/// escaped as RFC 4514 has it; what is no text is shown in hexadecimal digits.
///
/// # Errors
/// `Denied` where the certificate cannot be read.
pub fn subject_of(der: &[u8]) -> Result<String> {
    let denied = |why: String| Error::new(ErrorKind::Denied, format!("the client's certificate: {why}"));
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| denied(e.to_string()))?;
    Ok(write_name(certificate.subject()))
}

fn write_name(name: &X509Name<'_>) -> String {
    let registry = x509_parser::objects::oid_registry();
    let parts = name.iter_rdn().map(|rdn| {
        let attributes = rdn.iter().map(|attribute| {
            let kind = registry.get(attribute.attr_type()).map(|entry| short(entry.sn()));
            let kind = kind.map_or_else(|| attribute.attr_type().to_id_string(), str::to_owned);
            let value = match attribute.as_str() {
                Ok(text) => escape(text),
                Err(_) => attribute.as_slice().iter().fold("#".to_owned(), |hex, b| hex + &format!("{b:02x}")),
            };
            format!("{kind}={value}")
        });
        attributes.collect::<Vec<_>>().join("+")
    });
    parts.collect::<Vec<_>>().join(",")
}

/// RFC 4514's names where the registry has longer ones.
fn short(name: &str) -> &str {
    match name {
        "commonName" => "CN",
        "organizationName" => "O",
        "organizationalUnitName" | "organizationalUnit" => "OU",
        "countryName" => "C",
        "localityName" => "L",
        "stateOrProvinceName" => "ST",
        other => other,
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.char_indices() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=');
        if special || (i == 0 && matches!(c, ' ' | '#')) || (i + 1 == text.len() && c == ' ') {
            out.push('\\');
        }
        match c.is_control() {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    out
}

/// Decides, for all connections.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    access: Arc<[Access]>,
    /// The user that the appliance runs as.
    own_user: u32,
    catalog: Catalog,
    notes: Arc<Semaphore>,
    /// When a stranger was written down last.
    stranger: Arc<Mutex<Option<Instant>>>,
}

impl Gatekeeper {
    pub(crate) fn new(access: &[Access], catalog: Catalog) -> Gatekeeper {
        let own_user = rustix::process::geteuid().as_raw();
        Gatekeeper {
            access: access.into(),
            own_user,
            catalog,
            notes: Arc::new(Semaphore::new(NOTED_AT_ONCE)),
            stranger: Arc::default(),
        }
    }

    /// Who is at the other end.
    fn caller(&self, extensions: &http::Extensions) -> Result<Caller> {
        let denied = |why: String| Err(Error::new(ErrorKind::Denied, why));
        if let Some(peer) = extensions.get::<UnixPeer>() {
            let user = peer.user;
            return match user == 0 || user == self.own_user {
                true => Ok(Caller { name: format!("unix:{user}"), role: Role::Admin }),
                false => denied(format!("user {user} may not speak to this appliance")),
            };
        }
        let Some(tls) = extensions.get::<TlsConnectInfo<TcpPeer>>() else {
            return denied("the connection shows neither a user nor a certificate".into());
        };
        let certificates = tls.peer_certs();
        let Some(certificate) = certificates.as_ref().and_then(|list| list.first()) else {
            return denied("the client showed no certificate".into());
        };
        let subject = subject_of(certificate)?;
        match self.access.iter().find(|access| access.subject == subject) {
            Some(access) => Ok(Caller { name: subject, role: access.role }),
            None => denied(format!("{subject:?} has no role: an [[access]] entry of the settings gives one")),
        }
    }

    /// The caller, if it may call `method`.
    fn admit(&self, method: &str, extensions: &http::Extensions) -> Result<Caller, Fault> {
        let caller = self.caller(extensions).inspect_err(|fault| {
            self.note_stranger(method, &fault.to_string());
        })?;
        let known = ROLES.iter().find(|(known, _)| *known == method);
        let needed = known.map_or(Role::Admin, |(_, role)| *role);
        if caller.role >= needed {
            return Ok(caller);
        }
        let (name, has, needs) = (&caller.name, caller.role.word(), needed.word());
        let why = format!("{name} is {has}, {} needs {needs}", method.trim_start_matches('/'));
        self.note(&caller, method, &why);
        Err(Error::new(ErrorKind::Denied, why).into())
    }

    /// Logs who was not let in at all, and writes it down now and then: strangers must not drive other events out.
    fn note_stranger(&self, method: &str, why: &str) {
        let nobody = Caller { name: "nobody".into(), role: Role::Viewer };
        let mut last = self.stranger.lock().unwrap_or_else(PoisonError::into_inner);
        match last.is_none_or(|last| last.elapsed() >= STRANGERS_EVERY) {
            true => {
                *last = Some(Instant::now());
                self.note(&nobody, method, why);
            }
            false => tracing::warn!(caller = %nobody.name, method, "refused: {why}"),
        }
    }

    /// Writes down that somebody tried what they may not.
    fn note(&self, caller: &Caller, method: &str, why: &str) {
        tracing::warn!(caller = %caller.name, method, "refused: {why}");
        let Ok(permit) = Arc::clone(&self.notes).try_acquire_owned() else { return };
        let event = EventRecord {
            at: SystemClock.now(),
            actor: caller.name.clone(),
            action: action(method),
            outcome: ErrorKind::Denied.word().to_owned(),
            detail: why.to_owned(),
            ..EventRecord::default()
        };
        let catalog = self.catalog.clone();
        tokio::spawn(async move {
            if let Err(error) = catalog.note(event).await {
                tracing::error!("an event is lost: {error}");
            }
            drop(permit);
        });
    }
}

/// A method as events name it.
fn action(method: &str) -> String {
    method.trim_start_matches('/').trim_start_matches("freshet.v1.").to_owned()
}

impl<S> Layer<S> for Gatekeeper {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, keeper: self.clone() }
    }
}

/// In front of all services.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    inner: S,
    keeper: Gatekeeper,
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.keeper.admit(request.uri().path(), request.extensions()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(fault) => Either::Right(ready(Ok(fault.into_status().into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::DESCRIPTORS;
    use prost::Message;

    #[test]
    fn every_method_of_the_interface_has_a_role() {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let mut methods = Vec::new();
        for file in &set.file {
            for service in &file.service {
                let name = |m: &prost_types::MethodDescriptorProto| {
                    format!("/{}.{}/{}", file.package(), service.name(), m.name())
                };
                methods.extend(service.method.iter().map(name));
            }
        }
        assert!(methods.len() > 30, "{methods:?}");
        for method in &methods {
            assert!(ROLES.iter().any(|(known, _)| known == method), "{method} has no role");
        }
        for (known, _) in ROLES.iter().filter(|(known, _)| known.starts_with("/freshet.")) {
            assert!(methods.iter().any(|method| method == known), "{known} is no method");
        }
    }

    #[test]
    fn a_subject_is_written_so_that_no_other_reads_like_it() {
        use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
        let subject = |entries: &[(DnType, &str)]| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = DistinguishedName::new();
            for (kind, value) in entries {
                params.distinguished_name.push(kind.clone(), *value);
            }
            let key = KeyPair::generate().unwrap();
            subject_of(params.self_signed(&key).unwrap().der()).unwrap()
        };
        let alice = subject(&[(DnType::CommonName, "alice"), (DnType::OrganizationName, "Example")]);
        assert_eq!(alice, "CN=alice,O=Example");
        assert_eq!(subject(&[(DnType::CommonName, "alice,O=Example")]), "CN=alice\\,O\\=Example");
        assert_eq!(subject(&[(DnType::CommonName, " a\n ")]), "CN=\\ a\\u{a}\\ ");
        assert_eq!(subject(&[]), "");
        assert_eq!(subject_of(b"no certificate").unwrap_err().kind(), ErrorKind::Denied);
    }
}
