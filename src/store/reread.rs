//! Reading again what does not verify: the network may have changed it on the way. What is damaged in the store stays so.

use crate::error::{ErrorKind, Result};

/// Tries in all.
const TRIES: usize = 3;

/// Reads and verifies, again where the bytes turn out damaged, at most three times.
pub(crate) async fn reread<T, F: Future<Output = Result<T>>>(read: impl Fn() -> F) -> Result<T> {
    let mut tries = 1;
    loop {
        match read().await {
            Err(error) if error.kind() == ErrorKind::Damaged && tries < TRIES => {
                tracing::warn!(%error, "reading it again");
                tries += 1;
            }
            settled => return settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::Error;

    #[tokio::test]
    async fn damage_on_the_way_is_got_over_and_damage_that_stays_is_told() {
        for (bad, expected) in [(0, true), (2, true), (3, false)] {
            let reads = Cell::new(0);
            let read = reread(|| async {
                reads.set(reads.get() + 1);
                if reads.get() <= bad { Err(Error::new(ErrorKind::Damaged, "flipped")) } else { Ok(()) }
            });
            assert_eq!(read.await.is_ok(), expected, "{bad} bad reads");
        }
        let reads = Cell::new(0);
        let denied = reread(|| async {
            reads.set(reads.get() + 1);
            Err::<(), _>(Error::new(ErrorKind::Denied, "no"))
        });
        assert_eq!(denied.await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(reads.get(), 1);
    }
}
