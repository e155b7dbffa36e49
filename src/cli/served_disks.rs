//! `--disk NAME=PATH[,size=SIZE][,grow]`: a disk to be served. Pure text.

use std::path::PathBuf;

use super::units::parse_size;
use super::values::parse_name;
use crate::ids::Name;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServedDisk {
    pub(super) name: Name,
    pub(super) path: PathBuf,
    /// Size in bytes that it must have.
    pub(super) size: Option<u64>,
    /// Whether a file that is smaller is extended.
    pub(super) grow: bool,
}

/// Reads a disk. What follows the path is read from the end, so that a path may hold commas.
pub(super) fn parse_served_disk(text: &str) -> Result<ServedDisk, String> {
    let (name, mut path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    let (mut size, mut grow) = (None, false);
    while let Some((rest, word)) = path.rsplit_once(',') {
        match word.split_once('=') {
            Some(("size", value)) if size.is_none() => size = Some(parse_size(value)?),
            None if word == "grow" && !grow => grow = true,
            _ => break,
        }
        path = rest;
    }
    if path.is_empty() {
        return Err("the path is missing".to_owned());
    }
    if grow && size.is_none() {
        return Err("grow needs a size".to_owned());
    }
    Ok(ServedDisk { name: parse_name(name)?, path: path.into(), size, grow })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_told_apart_and_a_path_may_hold_commas() {
        let parse = |text| parse_served_disk(text).map(|d| (d.path.display().to_string(), d.size, d.grow));
        assert_eq!(parse("a=/x"), Ok(("/x".to_owned(), None, false)));
        assert_eq!(parse("a=/x,size=1GiB"), Ok(("/x".to_owned(), Some(1 << 30), false)));
        assert_eq!(parse("a=/x,grow,size=4096"), Ok(("/x".to_owned(), Some(4096), true)));
        assert_eq!(parse("a=/x,y,z=1,size=1"), Ok(("/x,y,z=1".to_owned(), Some(1), false)));
        for (bad, why) in [
            ("a", "NAME=PATH"),
            ("a=", "path is missing"),
            ("a=,size=1", "path is missing"),
            ("=/x", "1 to 255"),
            ("a=/x,grow", "needs a size"),
            ("a=/x,size=much", "KiB"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
