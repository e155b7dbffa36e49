//! Values of arguments that the library has a type for.

use clap::ValueEnum;

use crate::datastore::EngineKind;
use crate::ids::{Name, SegmentNo};

/// Reads a name of a domain, VM, disk or site.
pub(super) fn parse_name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|e| e.to_string())
}

/// Reads a point: the number of its segment, with or without the `s` that it is shown with.
pub(super) fn parse_point(text: &str) -> Result<SegmentNo, String> {
    let expected = "expected the number of a point, such as 17 or s17; `freshet points` lists them";
    let digits = text.strip_prefix('s').unwrap_or(text);
    match digits.parse::<u64>() {
        Ok(n) if n > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(SegmentNo::new(n)),
        _ => Err(expected.to_owned()),
    }
}

/// Which disk engine to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    /// io_uring, or plain threads where the kernel does not let us
    Auto,
    /// io_uring or an error
    IoUring,
    /// Plain threads
    Threads,
}

impl From<Engine> for EngineKind {
    fn from(engine: Engine) -> EngineKind {
        match engine {
            Engine::Auto => EngineKind::Auto,
            Engine::IoUring => EngineKind::IoUring,
            Engine::Threads => EngineKind::Threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_as_they_are_shown() {
        assert_eq!(parse_point("17"), Ok(SegmentNo::new(17)));
        assert_eq!(parse_point(&SegmentNo::new(17).to_string()), Ok(SegmentNo::new(17)));
        for bad in ["", "s", "0", "-1", "+1", "g1/s2", "seventeen"] {
            assert!(parse_point(bad).is_err(), "{bad}");
        }
    }
}
