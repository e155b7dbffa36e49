//! Values of arguments that the library has a type for.

use clap::ValueEnum;

use crate::datastore::EngineKind;
use crate::ids::{DiskId, Name, SegmentNo};
use crate::rehydrate::Placement;

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

/// Reads the identity of a disk.
pub(super) fn parse_disk_id(text: &str) -> Result<DiskId, String> {
    DiskId::parse(text).ok_or_else(|| "expected the identity of a disk, as reports show it".to_owned())
}

/// Reads `VM/DISK=PATH`. A name with a slash in it is given in its escaped form, as it stands in paths and keys.
pub(super) fn parse_placement(text: &str) -> Result<Placement, String> {
    let (names, path) = text.split_once('=').ok_or("expected VM/DISK=PATH")?;
    let (vm, disk) = names
        .split_once('/')
        .filter(|(_, disk)| !disk.contains('/'))
        .ok_or_else(|| format!("{names}: expected VM/DISK, with one slash; write one within a name as %2F"))?;
    if path.is_empty() {
        return Err("the path is missing".to_owned());
    }
    let name = |text: &str| Name::from_key(text).map_or_else(|| parse_name(text), Ok);
    Ok(Placement { vm: name(vm)?, disk: name(disk)?, path: path.into() })
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
    fn placements_are_read_with_any_names() {
        let parse = |text: &str| parse_placement(text).map(|p| (p.vm.to_string(), p.disk.to_string(), p.path));
        let told = |vm: &str, disk: &str, path: &str| Ok((vm.to_owned(), disk.to_owned(), path.into()));
        assert_eq!(parse("web/root=/x=y,z"), told("web", "root", "/x=y,z"));
        assert_eq!(parse("a%2Fb/50%=x"), told("a/b", "50%", "x"));
        for bad in ["web=/x", "a/b/c=/x", "web/root", "web/root=", "/root=/x", "web/=/x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn points_are_read_as_they_are_shown() {
        assert_eq!(parse_point("17"), Ok(SegmentNo::new(17)));
        assert_eq!(parse_point(&SegmentNo::new(17).to_string()), Ok(SegmentNo::new(17)));
        for bad in ["", "s", "0", "-1", "+1", "g1/s2", "seventeen"] {
            assert!(parse_point(bad).is_err(), "{bad}");
        }
    }
}
