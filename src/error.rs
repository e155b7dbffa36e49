//! The one error of the crate: a kind that says what the caller must do, the context in words, and the source.
//!
//! It never holds a secret: contexts name objects, files and settings, not credentials. The kind decides the exit
//! code of the binary, so that a script can tell a refusal from a damaged store.

use std::error::Error as StdError;
use std::fmt;

/// What the caller of a failed operation must do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request or a setting is wrong: correct it. Nothing was done.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Doing it would break a rule or destroy something: a flag or another site must allow it first. Nothing was done.
    Refused,
    /// Another writer owns the domain now: stop writing, keep local data.
    Fenced,
    /// Bytes read do not match what they must be: they were not used.
    Damaged,
    /// The work is done except for what the report names as missing.
    Incomplete,
    /// No space, or a limit is reached: make room, then run it again.
    Full,
    /// The storage site does not answer or answers with errors: it may work later.
    Unreachable,
    /// Credentials are missing, wrong or not sufficient.
    Denied,
    /// This machine or store lacks something that is needed.
    Unsupported,
    /// A local read, write or sync failed: what the operation touched is not to be trusted until reopened.
    Io,
    /// The operator or a signal asked to stop; everything durable stays so.
    Cancelled,
    /// A broken invariant of Freshet itself: report it.
    Internal,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [ErrorKind; 13] = [
        ErrorKind::Invalid,
        ErrorKind::NotFound,
        ErrorKind::Refused,
        ErrorKind::Fenced,
        ErrorKind::Damaged,
        ErrorKind::Incomplete,
        ErrorKind::Full,
        ErrorKind::Unreachable,
        ErrorKind::Denied,
        ErrorKind::Unsupported,
        ErrorKind::Io,
        ErrorKind::Cancelled,
        ErrorKind::Internal,
    ];

    /// Exit code of the binary for this kind. 2 is left to usage errors, which the argument parser reports.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Invalid => 2,
            ErrorKind::Incomplete => 3,
            ErrorKind::Refused => 4,
            ErrorKind::Fenced => 5,
            ErrorKind::Damaged => 6,
            ErrorKind::Unreachable => 7,
            ErrorKind::Denied => 8,
            ErrorKind::NotFound => 9,
            ErrorKind::Full => 10,
            ErrorKind::Cancelled => 130,
            ErrorKind::Unsupported | ErrorKind::Io | ErrorKind::Internal => 1,
        }
    }

    /// The kind that [`ErrorKind::word`] gives this word for.
    pub fn from_word(word: &str) -> Option<ErrorKind> {
        ErrorKind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// One word for `--json` output and logs.
    pub fn word(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "invalid",
            ErrorKind::NotFound => "not-found",
            ErrorKind::Refused => "refused",
            ErrorKind::Fenced => "fenced",
            ErrorKind::Damaged => "damaged",
            ErrorKind::Incomplete => "incomplete",
            ErrorKind::Full => "full",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Denied => "denied",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Io => "io",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Internal => "internal",
        }
    }
}

type Source = Box<dyn StdError + Send + Sync>;

/// An error with its kind, what was being done in words, and what caused it.
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Source>,
}

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `context` names what, where and what to do about it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// The same with the error that caused it.
    pub fn with_source(kind: ErrorKind, context: impl Into<String>, source: impl Into<Source>) -> Error {
        Error { kind, context: context.into(), source: Some(source.into()) }
    }

    /// A failed local operation. Out of space is [`ErrorKind::Full`], told by the code and never by the text.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Error {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, context, source)
    }

    /// What the caller must do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The context in words, without the sources.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Puts what was being done in front of the context; kind and source stay.
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Error {
        self.context = format!("{doing}: {}", self.context);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.kind.word())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

/// Adds what was being done to the error of a result.
pub trait ResultExt<T> {
    /// Puts `doing` in front of the error's context.
    fn while_doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn while_doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.while_doing(doing()))
    }
}

/// Turns the result of a system call into ours, with the context.
pub trait IoResultExt<T> {
    /// See [`Error::io`].
    fn io_context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> IoResultExt<T> for std::io::Result<T> {
    fn io_context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| Error::io(context(), e))
    }
}

impl<T> IoResultExt<T> for std::result::Result<T, rustix::io::Errno> {
    fn io_context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| Error::io(context(), e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_tells_the_whole_chain_and_keeps_the_kind() {
        let io = std::io::Error::from_raw_os_error(28);
        let e = Error::io("write /disk", io).while_doing("rehydrate vm");
        assert_eq!(e.kind(), ErrorKind::Full);
        let text = e.to_string();
        assert!(text.starts_with("rehydrate vm: write /disk: No space left"), "{text}");
    }
}
