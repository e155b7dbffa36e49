//! Comparing files byte by byte.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, IoResultExt, Result};

const CHUNK: usize = 1 << 20;

/// Compares every pair; answers with the bytes compared.
pub(super) fn all(pairs: &[(PathBuf, PathBuf)]) -> Result<u64> {
    pairs.iter().map(|(a, b)| same(a, b)).sum()
}

fn same(a: &Path, b: &Path) -> Result<u64> {
    let open = |path: &Path| File::open(path).io_context(|| format!("compare {}", path.display()));
    let len = |file: &File, path: &Path| file.metadata().io_context(|| format!("compare {}", path.display()));
    let (mut left, mut right) = (open(a)?, open(b)?);
    let (size, other) = (len(&left, a)?.len(), len(&right, b)?.len());
    if size != other {
        let why = format!("{} has {size} bytes, {} has {other}", a.display(), b.display());
        return Err(Error::new(ErrorKind::Damaged, why));
    }
    let (mut x, mut y) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    while offset < size {
        let n = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
        left.read_exact(&mut x[..n]).io_context(|| format!("read {}", a.display()))?;
        right.read_exact(&mut y[..n]).io_context(|| format!("read {}", b.display()))?;
        if x[..n] != y[..n] {
            let i = x.iter().zip(&y).take_while(|(x, y)| x == y).count();
            let why = format!("{} and {} differ at byte {}", a.display(), b.display(), offset + i as u64);
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        offset += n as u64;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_or_a_missing_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![7; CHUNK + 4097];
        std::fs::write(&a, &bytes).unwrap();
        std::fs::write(&b, &bytes).unwrap();
        assert_eq!(all(&[(a.clone(), b.clone())]).unwrap(), bytes.len() as u64);
        bytes[CHUNK + 4096] = 8;
        std::fs::write(&b, &bytes).unwrap();
        let error = same(&a, &b).unwrap_err();
        assert!(error.to_string().contains(&format!("byte {}", CHUNK + 4096)), "{error}");
        std::fs::write(&b, &bytes[..CHUNK]).unwrap();
        assert_eq!(same(&a, &b).unwrap_err().kind(), ErrorKind::Damaged);
    }
}
