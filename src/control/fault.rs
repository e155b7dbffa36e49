//! Errors between the library and the API: one table from kinds to gRPC codes, and rich details both ways.
//!
//! Owns what a caller is told: the code, the message, a `google.rpc.ErrorInfo` with the kind, the domain and what to do,
//! and for a bad field a `google.rpc.BadRequest` that names it. The client reads the same back into an [`Error`], so that a
//! command ends with the same exit code here and through the API. It never adds anything that the error does not say.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::catalog::cut;
use crate::error::{Error, ErrorKind};

/// `domain` of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "freshet";
/// Longest message in bytes: details travel in trailers, which clients bound, some at 8 KiB in all.
const MOST_MESSAGE: usize = 1500;
/// Fields that are named, and most bytes of the name of one and of what is said of it, alone and among others.
const MOST_FIELDS: usize = 8;
const MOST_OF_ONE: (usize, usize) = (255, 500);
const MOST_OF_SEVERAL: (usize, usize) = (100, 200);

/// One row: the kind, its code, and what a caller does about it.
pub const CODES: [(ErrorKind, Code, &str); 13] = [
    (ErrorKind::Invalid, Code::InvalidArgument, "correct the request; nothing was done"),
    (ErrorKind::NotFound, Code::NotFound, "check the name"),
    (ErrorKind::Refused, Code::FailedPrecondition, "change what the message names, or confirm it; nothing was done"),
    (ErrorKind::Fenced, Code::Aborted, "another writer owns the domain: keep local data, stop writing"),
    (ErrorKind::Damaged, Code::DataLoss, "bytes were not used; freshet verify shows the extent"),
    (ErrorKind::Incomplete, Code::OutOfRange, "done except for what is named"),
    (ErrorKind::Full, Code::ResourceExhausted, "make room, then ask again"),
    (ErrorKind::Unreachable, Code::Unavailable, "ask again later"),
    (ErrorKind::Denied, Code::PermissionDenied, "correct credentials, certificate or role"),
    (ErrorKind::Unsupported, Code::Unimplemented, "use another store, kernel or program version"),
    (ErrorKind::Io, Code::Internal, "look at the appliance's local disks"),
    (ErrorKind::Cancelled, Code::Cancelled, "ask again to go on"),
    (ErrorKind::Internal, Code::Unknown, "report it"),
];

fn row(kind: ErrorKind) -> (Code, &'static str) {
    let row = CODES.iter().find(|row| row.0 == kind);
    row.map_or((Code::Unknown, "report it"), |row| (row.1, row.2))
}

/// Why a request was not done.
#[derive(Debug)]
pub(crate) struct Fault {
    error: Error,
    /// Fields that are wrong, and why.
    fields: Vec<(String, String)>,
    domain: Option<String>,
}

/// Result of what a service does.
pub(crate) type Done<T> = std::result::Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault { error, fields: Vec::new(), domain: None }
    }
}

impl Fault {
    /// A field that is wrong.
    pub(crate) fn field(field: impl Into<String>, why: impl std::fmt::Display) -> Fault {
        let field = field.into();
        let why = format!("field {field}: {why}");
        let error = Error::new(ErrorKind::Invalid, why.clone());
        Fault { error, fields: vec![(field, why)], domain: None }
    }

    /// Nothing may be done, because of these fields.
    pub(crate) fn refused_by(why: impl Into<String>, fields: Vec<(String, String)>) -> Fault {
        Fault { fields, ..Fault::refused(why) }
    }

    /// Nothing may be done.
    pub(crate) fn refused(why: impl Into<String>) -> Fault {
        Error::new(ErrorKind::Refused, why).into()
    }

    /// The domain that it is about.
    pub(crate) fn about(mut self, domain: &str) -> Fault {
        self.domain.get_or_insert_with(|| domain.to_owned());
        self
    }

    /// The kind in one word, and the message.
    pub(crate) fn shown(&self) -> (&'static str, String) {
        (self.error.kind().word(), self.error.to_string())
    }

    /// As it is sent.
    pub(crate) fn into_status(self) -> Status {
        let kind = self.error.kind();
        let (code, advice) = row(kind);
        let mut message = self.error.to_string();
        cut(&mut message, MOST_MESSAGE);
        let mut metadata =
            HashMap::from([("kind".to_owned(), kind.word().to_owned()), ("what_to_do".to_owned(), advice.to_owned())]);
        if let Some(mut domain) = self.domain {
            cut(&mut domain, 255);
            metadata.insert("domain".to_owned(), domain);
        }
        let reason = kind.word().to_uppercase().replace('-', "_");
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, ERROR_DOMAIN, metadata);
        let (longest, most) = if self.fields.len() > 1 { MOST_OF_SEVERAL } else { MOST_OF_ONE };
        for (mut field, mut why) in self.fields.into_iter().take(MOST_FIELDS) {
            cut(&mut field, longest);
            cut(&mut why, most);
            details.add_bad_request_violation(field, why);
        }
        Status::with_error_details(code, message, details)
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Status {
        fault.into_status()
    }
}

/// What a status says, for a client: the kind from its details, or from its code where another program answered.
pub fn from_status(status: &Status) -> Error {
    let told = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let kind = told.and_then(|info| info.metadata.get("kind").and_then(|word| ErrorKind::from_word(word)));
    let kind = kind.unwrap_or_else(|| match status.code() {
        // A peer that is not ours, or a connection that broke.
        Code::Unauthenticated => ErrorKind::Denied,
        Code::DeadlineExceeded => ErrorKind::Unreachable,
        Code::AlreadyExists => ErrorKind::Refused,
        code => CODES.iter().find(|row| row.1 == code).map_or(ErrorKind::Internal, |row| row.0),
    });
    let message = match status.message() {
        "" => format!("the appliance answers {:?}", status.code()),
        message => message.to_owned(),
    };
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_of_its_own_and_comes_back_as_it_was() {
        let mut codes = Vec::new();
        for (kind, code, advice) in CODES {
            assert_eq!(ErrorKind::from_word(kind.word()), Some(kind));
            assert!(!advice.is_empty() && !codes.contains(&code), "{kind:?}");
            codes.push(code);
            let status = Fault::from(Error::new(kind, "why")).about("prod").into_status();
            assert_eq!((status.code(), status.message()), (code, "why"));
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.metadata["kind"].as_str(), info.metadata["domain"].as_str()), (kind.word(), "prod"));
            assert_eq!(info.metadata["what_to_do"], advice);
            let back = from_status(&status);
            assert_eq!((back.kind(), back.to_string().as_str()), (kind, "why"));
            // Without details, as from something between.
            assert_eq!(from_status(&Status::new(code, "why")).kind(), kind);
        }
        let words: Vec<_> = CODES.iter().map(|row| row.0.word()).collect();
        // Whoever adds a kind must add a row: the list of kinds is that of the exit codes.
        assert_eq!(words.len(), 13);
    }

    #[test]
    fn fields_are_named_and_long_texts_fit_the_trailers() {
        let status = Fault::field("vm.disks[3].path", "x".repeat(100_000)).into_status();
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "vm.disks[3].path");
        assert!(status.details().len() + status.message().len() < 4096);
        let long = |i: usize| (format!("dr.{i}.{}", "f".repeat(500)), "w".repeat(1000));
        let status = Fault::refused_by("w".repeat(100_000), (0..50).map(long).collect()).into_status();
        let details = status.get_error_details();
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|of| &of.field[..4]).collect();
        assert_eq!(fields, ["dr.0", "dr.1", "dr.2", "dr.3", "dr.4", "dr.5", "dr.6", "dr.7"]);
        // Trailers carry them in base64.
        assert!(status.details().len() * 4 / 3 + status.message().len() < 8192);
    }
}
