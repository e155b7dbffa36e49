//! Holes and data of a file, as its file system tells of them.
//!
//! Owns nothing; two system calls a part at most. Invariants: parts follow each other without gaps from the start of
//! the range, none is empty, none leaves the range.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::export::BlockStatus;

/// Most parts in one answer: it bounds the time that one question takes. Clients ask for the rest.
const MAX_PARTS: usize = 1024;

/// The parts of `range` (not empty, within the file), or only the first.
///
/// # Errors
/// What the kernel says, except that it does not tell of holes: then all is data.
pub(super) fn of_file(file: &File, range: Range<u64>, one: bool) -> io::Result<Vec<BlockStatus>> {
    let most = if one { 1 } else { MAX_PARTS };
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end && parts.len() < most {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, range.end),
            Err(Errno::NXIO) => range.end,
            // The file system knows no holes.
            Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => at,
            Err(error) => return Err(error.into()),
        };
        if data > at {
            parts.push(BlockStatus { len: data - at, hole: true, zero: true });
            at = data;
            continue;
        }
        let hole = match seek(file, SeekFrom::Hole(at)) {
            // One that does not move on would never end.
            Ok(hole) if hole > at => hole.min(range.end),
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => range.end,
            Err(error) => return Err(error.into()),
        };
        parts.push(BlockStatus { len: hole - at, hole: false, zero: false });
        at = hole;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parts_follow_each_other_and_stay_inside() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * MIB).unwrap();
        for at in [2 * MIB, 5 * MIB] {
            file.write_all_at(&vec![1; MIB as usize], at).unwrap();
        }
        let told = |range: Range<u64>, one| {
            let parts = of_file(&file, range, one).unwrap();
            assert!(parts.iter().all(|part| part.hole == part.zero));
            parts.into_iter().map(|part| (part.len, part.hole)).collect::<Vec<_>>()
        };
        let all = [(2 * MIB, true), (MIB, false), (2 * MIB, true), (MIB, false), (4 * MIB, true)];
        assert_eq!(told(0..10 * MIB, false), all);
        assert_eq!(told(0..10 * MIB, true), all[..1]);
        assert_eq!(told(2 * MIB + 1..2 * MIB + 3, false), [(2, false)]);
        assert_eq!(told(3 * MIB - 4096..3 * MIB + 1, false), [(4096, false), (1, true)]);
        assert_eq!(told(10 * MIB - 1..10 * MIB, true), [(1, true)]);
    }

    #[test]
    fn an_answer_has_a_limit() {
        let file = tempfile::tempfile().unwrap();
        let holes = MAX_PARTS as u64 + 10;
        for n in 0..holes {
            file.write_all_at(&[1], n * 131_072).unwrap();
        }
        let parts = of_file(&file, 0..holes * 131_072 - 131_071, false).unwrap();
        assert_eq!(parts.len(), MAX_PARTS);
    }
}
