//! Why one try at an object store failed, in a form that decides what follows.
//!
//! The connector turns every answer that is not a success, and every break of a connection, into a [`Failure`] that
//! travels through `object_store` as the source of its error; [`Failure::of`] finds it again. So the decision to
//! retry rests on a status and a code, never on the text of an error.
//!
//! A failure's text holds no URL and no header, so no signature and no token.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::Provider;
use crate::error::ErrorKind;

/// Longest piece of a store's own message that is repeated, in characters.
const MAX_MESSAGE: usize = 300;

/// One failed try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The store answered with something other than success.
    Status(Box<Status>),
    /// No connection was made.
    Connect(String),
    /// The connection broke, or the answer was cut short or made no sense.
    Broken(String),
    /// Nothing came for this long.
    Stalled(Duration),
    /// The place that hands out credentials to this machine does not answer.
    NoCredentials(String),
    /// The client refused by itself, or does not support it.
    Client(String),
}

/// What an unsuccessful answer said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The HTTP status.
    pub(super) status: u16,
    /// The store's own code, for example `SlowDown`; empty if it gave none.
    pub(super) code: String,
    /// The store's own message, shortened.
    pub(super) message: String,
    /// How long the store asks to wait.
    pub(super) retry_after: Option<Duration>,
    /// Where a status of 416 tells the length of the object.
    pub(super) object_len: Option<u64>,
    /// Where a redirect tells the region of the bucket.
    pub(super) region: Option<String>,
}

/// What a failure means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Try again.
    Transient,
    /// Try again if the store was there before; else only a few times.
    Connect,
    /// Wrong or missing credentials, or not allowed.
    Denied,
    /// The machine's clock is too far from the store's for a signature to count.
    ClockOff,
    /// No such bucket or container.
    NoBucket,
    /// No such object.
    NoObject,
    /// There is an object of this key.
    Exists,
    /// The range begins at or after the end of the object.
    PastEnd,
    /// No room.
    Full,
    /// The store cannot do this.
    Unsupported,
    /// The request or a setting is wrong.
    Invalid,
}

impl Class {
    /// Kind of the error that the caller gets.
    pub(super) fn kind(self) -> ErrorKind {
        match self {
            Class::Transient | Class::Connect => ErrorKind::Unreachable,
            Class::Denied | Class::ClockOff => ErrorKind::Denied,
            Class::NoBucket | Class::NoObject => ErrorKind::NotFound,
            Class::Exists => ErrorKind::Refused,
            Class::Full => ErrorKind::Full,
            Class::Unsupported => ErrorKind::Unsupported,
            Class::PastEnd | Class::Invalid => ErrorKind::Invalid,
        }
    }

    /// What the operator can do.
    pub(super) fn advice(self, provider: Provider) -> &'static str {
        match (self, provider) {
            (Class::Transient, _) => "the store or the network is in trouble; try again later",
            (Class::Connect, Provider::S3) => "check AWS_ENDPOINT_URL, AWS_REGION and the network",
            (Class::Connect, Provider::Azure) => {
                "check AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT and the network"
            }
            (Class::Connect, Provider::Gcs) => "check the network, and GOOGLE_BASE_URL where it is set",
            (Class::Denied, Provider::S3) => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and what this user may do"
            }
            (Class::Denied, Provider::Azure) => {
                "check AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or the other credentials and what they allow"
            }
            (Class::Denied, Provider::Gcs) => "check GOOGLE_APPLICATION_CREDENTIALS and what this account may do",
            (Class::ClockOff, _) => {
                "set this machine's clock: it is so far from the store's that signatures do not count"
            }
            (Class::NoBucket, _) => "create it, or correct the URL",
            (Class::Full, _) => "make room there, then run it again",
            (Class::Invalid, _) => "check the URL, the region and the endpoint",
            (Class::Unsupported, _) => "use another store",
            (Class::NoObject | Class::Exists | Class::PastEnd, _) => "",
        }
    }
}

impl Failure {
    /// Finds the failure that the connector put below `error`; what never reached it becomes [`Failure::Client`] or
    /// [`Failure::Broken`].
    pub(super) fn of(error: &object_store::Error) -> Failure {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(e) = cause {
            if let Some(failure) = e.downcast_ref::<Failure>() {
                return failure.clone();
            }
            cause = e.source();
        }
        match error {
            object_store::Error::NotImplemented { .. }
            | object_store::Error::NotSupported { .. }
            | object_store::Error::InvalidPath { .. }
            | object_store::Error::UnknownConfigurationKey { .. } => Failure::Client(shorten(&error.to_string())),
            object_store::Error::Unauthenticated { .. } | object_store::Error::PermissionDenied { .. } => {
                Failure::NoCredentials(shorten(&error.to_string()))
            }
            _ => Failure::Broken(shorten(&error.to_string())),
        }
    }

    /// A connection that failed; `during_body` tells that the answer had begun.
    pub(super) fn transport(error: &HttpError, during_body: bool) -> Failure {
        let text = shorten(&causes(error));
        match error.kind() {
            // The client's only time limit of its own is that on connecting.
            HttpErrorKind::Connect | HttpErrorKind::Timeout if !during_body => Failure::Connect(text),
            _ => Failure::Broken(text),
        }
    }

    /// Wraps it for the way through `object_store`, which never retries by itself here.
    pub(super) fn into_http(self) -> HttpError {
        HttpError::new(HttpErrorKind::Unknown, self)
    }

    /// What it means.
    pub(super) fn class(&self) -> Class {
        match self {
            Failure::Status(status) => status.class(),
            Failure::Connect(_) => Class::Connect,
            Failure::Broken(_) | Failure::Stalled(_) => Class::Transient,
            Failure::NoCredentials(_) => Class::Denied,
            Failure::Client(_) => Class::Unsupported,
        }
    }

    /// How long the store asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Status(status) => status.retry_after,
            _ => None,
        }
    }
}

impl Status {
    fn class(&self) -> Class {
        match self.code.as_str() {
            "RequestTimeTooSkewed" => return Class::ClockOff,
            // Azure has no code of its own for it.
            _ if self.message.contains("Request date header too old") => return Class::ClockOff,
            "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" => return Class::NoBucket,
            "RequestTimeout" | "SlowDown" | "OperationAborted" | "ConditionalRequestConflict" => {
                return Class::Transient;
            }
            "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "AuthenticationFailed"
            | "AuthorizationHeaderMalformed" => return Class::Denied,
            "QuotaExceeded" | "XMinioStorageFull" | "QuotaLimitExceeded" => return Class::Full,
            code if code.ends_with("AlreadyExists") => return Class::Exists,
            _ => {}
        }
        match self.status {
            401 | 403 | 407 => Class::Denied,
            404 => Class::NoObject,
            412 => Class::Exists,
            416 => Class::PastEnd,
            // 409 of a conditional put: two were at it at once, and which of them won shows when it is asked again.
            408 | 409 | 425 | 429 => Class::Transient,
            501 | 405 => Class::Unsupported,
            507 => Class::Full,
            500.. => Class::Transient,
            _ => Class::Invalid,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Status(s) => {
                write!(f, "the store answered {}", s.status)?;
                for text in [&s.code, &s.message].into_iter().filter(|t| !t.is_empty()) {
                    write!(f, " {text}")?;
                }
                match &s.region {
                    Some(region) if s.status <= 400 => {
                        write!(f, " (the bucket is in region {region})")
                    }
                    _ => Ok(()),
                }
            }
            Failure::Connect(text) => write!(f, "cannot connect: {text}"),
            Failure::Broken(text) => write!(f, "the answer broke off or made no sense: {text}"),
            Failure::Stalled(time) => write!(f, "nothing came for {} s", time.as_secs_f32()),
            Failure::NoCredentials(text) => write!(f, "no credentials: {text}"),
            Failure::Client(text) => f.write_str(text),
        }
    }
}

impl StdError for Failure {}

/// All causes of an error in one line, each once.
fn causes(error: &HttpError) -> String {
    let mut text = String::new();
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&next);
        }
        cause = e.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// One line of bounded length without control characters.
pub(super) fn shorten(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out: String = line.chars().take(MAX_MESSAGE).collect();
    if out.len() < line.len() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, code: &str) -> Class {
        Failure::Status(Box::new(Status { status, code: code.into(), ..Status::default() })).class()
    }

    #[test]
    fn statuses_and_codes_decide() {
        for (status, code, expected) in [
            (500, "InternalError", Class::Transient),
            (503, "SlowDown", Class::Transient),
            (504, "", Class::Transient),
            (429, "", Class::Transient),
            (400, "RequestTimeout", Class::Transient),
            (409, "ConditionalRequestConflict", Class::Transient),
            (409, "", Class::Transient),
            (409, "BlobAlreadyExists", Class::Exists),
            (412, "PreconditionFailed", Class::Exists),
            (401, "", Class::Denied),
            (403, "SignatureDoesNotMatch", Class::Denied),
            (400, "ExpiredToken", Class::Denied),
            (403, "RequestTimeTooSkewed", Class::ClockOff),
            (404, "NoSuchKey", Class::NoObject),
            (404, "", Class::NoObject),
            (404, "NoSuchBucket", Class::NoBucket),
            (404, "ContainerNotFound", Class::NoBucket),
            (416, "InvalidRange", Class::PastEnd),
            (501, "NotImplemented", Class::Unsupported),
            (507, "", Class::Full),
            (301, "PermanentRedirect", Class::Invalid),
            (400, "InvalidArgument", Class::Invalid),
        ] {
            assert_eq!(class(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn a_failure_is_found_below_the_errors_of_the_client() {
        let failure = Failure::Stalled(Duration::from_secs(3));
        let error = object_store::Error::Generic { store: "S3", source: Box::new(failure.clone().into_http()) };
        assert_eq!(Failure::of(&error), failure);
    }

    #[test]
    fn messages_of_a_store_are_one_bounded_line() {
        assert_eq!(shorten("a\n\tb\u{7}"), "a b");
        assert_eq!(shorten(&"x".repeat(5000)).len(), MAX_MESSAGE + 3);
    }
}
