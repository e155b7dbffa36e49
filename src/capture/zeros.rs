//! Zero bytes: the test that every byte of a disk goes through, and the cut of a range into what is not zero.
//!
//! Pure. Written so that the compiler makes vector code of it without any processor-specific flag: the portable build
//! tests several times faster than any disk reads.

use std::ops::Range;

/// Zero bytes are looked for in pieces of this many bytes; nothing that begins or ends within one is cut.
pub(crate) const PIECE: usize = 4 << 10;

/// Bytes that are folded before the result is looked at: long enough for vector code, short enough to stop early.
const FOLD: usize = 256;

/// Whether all bytes are zero; so for none.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (folds, tail) = bytes.as_chunks::<FOLD>();
    folds.iter().all(|fold| fold.iter().fold(0, |all, b| all | b) == 0) && tail.iter().all(|&b| b == 0)
}

/// The parts of `bytes` that are not zero, as ranges of it, ascending. They begin at multiples of [`PIECE`] and end at
/// one or at the end; two of them are at least `min_gap` zero bytes apart, a shorter gap stays within one.
pub(crate) fn nonzero_runs(bytes: &[u8], min_gap: usize, out: &mut Vec<Range<usize>>) {
    let first = out.len();
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        if is_zero(piece) {
            continue;
        }
        let start = i * PIECE;
        let end = start + piece.len();
        match out.get_mut(first..).and_then(|runs| runs.last_mut()) {
            Some(last) if start - last.end < min_gap => last.end = end,
            _ => out.push(start..end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_bit_anywhere_is_seen() {
        for len in [0, 1, 255, 256, 257, 4096, 5000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    fn runs(bytes: &[u8]) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        nonzero_runs(bytes, 4 * PIECE, &mut out);
        out
    }

    #[test]
    fn a_gap_of_four_pieces_cuts_and_one_of_three_does_not() {
        let mut bytes = vec![0; 16 * PIECE + 100];
        bytes[10] = 1;
        bytes[4 * PIECE] = 1;
        assert_eq!(runs(&bytes), vec![(0..5 * PIECE)]);
        bytes[9 * PIECE + 7] = 1;
        assert_eq!(runs(&bytes), [0..5 * PIECE, 9 * PIECE..10 * PIECE]);
        bytes[16 * PIECE + 99] = 1;
        assert_eq!(runs(&bytes)[2], 16 * PIECE..16 * PIECE + 100);
    }

    proptest! {
        #[test]
        fn what_no_run_covers_is_zero_and_gaps_are_long(
            pieces in prop::collection::vec(prop::option::of(0..PIECE), 0..40), tail in 0..PIECE
        ) {
            let mut bytes = vec![0; pieces.len() * PIECE + tail];
            for (i, at) in pieces.iter().enumerate() {
                if let Some(at) = at {
                    bytes[i * PIECE + at] = 9;
                }
            }
            let found = runs(&bytes);
            let mut at = 0;
            for (n, run) in found.iter().enumerate() {
                prop_assert!(run.start < run.end && run.start % PIECE == 0);
                prop_assert!(n == 0 || run.start - at >= 4 * PIECE, "{found:?}");
                prop_assert!(bytes[at..run.start].iter().all(|&b| b == 0));
                prop_assert!(!is_zero(&bytes[run.start..run.end.min(run.start + PIECE)]));
                at = run.end;
            }
            prop_assert!(bytes[at..].iter().all(|&b| b == 0));
        }
    }
}
