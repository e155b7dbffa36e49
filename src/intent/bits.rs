//! A set of small numbers as words of bits: what one bitmap page holds. Pure.
//!
//! Invariant: no bit past the length is set, so that a copy of it can be written as a page.

use crate::format::INTENT_BITS_LEN;

/// The numbers from 0 to a length, each in it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits {
    words: Box<[u64]>,
    len: u32,
    /// How many are in it.
    count: u32,
}

impl Bits {
    /// None of `len` numbers.
    pub(super) fn none(len: u32) -> Bits {
        Bits { words: vec![0; len.div_ceil(64) as usize].into(), len, count: 0 }
    }

    /// All of `len` numbers.
    pub(super) fn all(len: u32) -> Bits {
        let mut bits = Bits { words: vec![u64::MAX; len.div_ceil(64) as usize].into(), len, count: len };
        if let (Some(last), used @ 1..) = (bits.words.last_mut(), len % 64) {
            *last = (1 << used) - 1;
        }
        bits
    }

    /// Whether `n` is in it; never past its length.
    pub(super) fn has(&self, n: u32) -> bool {
        self.words.get(n as usize / 64).is_some_and(|word| word >> (n % 64) & 1 != 0)
    }

    /// Puts `n` in; whether that changed anything.
    pub(super) fn insert(&mut self, n: u32) -> bool {
        debug_assert!(n < self.len, "bit {n} of {}", self.len);
        let Some(word) = self.words.get_mut(n as usize / 64) else { return false };
        let before = *word;
        *word |= 1 << (n % 64);
        let changed = *word != before;
        self.count += u32::from(changed);
        changed
    }

    /// Takes `n` out; whether that changed anything.
    pub(super) fn remove(&mut self, n: u32) -> bool {
        let Some(word) = self.words.get_mut(n as usize / 64) else { return false };
        let before = *word;
        *word &= !(1 << (n % 64));
        let changed = *word != before;
        self.count -= u32::from(changed);
        changed
    }

    /// Leaves only what is in `other` as well.
    pub(super) fn keep(&mut self, other: &Bits) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
        self.recount();
    }

    /// How many are in it.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    fn recount(&mut self) {
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// The first that is in it and not below `from`.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        let mut mask = u64::MAX << (from % 64);
        for (at, word) in self.words.iter().enumerate().skip(first) {
            let word = word & mask;
            if word != 0 {
                return u32::try_from(at * 64).ok().map(|base| base + word.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }

    /// As a page holds them.
    pub(super) fn to_bytes(&self) -> [u8; INTENT_BITS_LEN] {
        let mut out = [0; INTENT_BITS_LEN];
        out.chunks_mut(8).zip(&self.words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        out
    }

    /// From what a page holds; it was checked that no bit past `len` is set.
    pub(super) fn from_bytes(bytes: &[u8; INTENT_BITS_LEN], len: u32) -> Bits {
        let mut bits = Bits::none(len);
        let (words, _) = bytes.as_chunks::<8>();
        bits.words.iter_mut().zip(words).for_each(|(to, from)| *to = u64::from_le_bytes(*from));
        bits.recount();
        bits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_a_set(len in 1..300_u32, ops in prop::collection::vec((any::<bool>(), any::<u32>()), 0..200)) {
            let (mut bits, mut model) = (Bits::none(len), BTreeSet::new());
            for (insert, n) in ops {
                let n = n % len;
                match insert {
                    true => prop_assert_eq!(bits.insert(n), model.insert(n)),
                    false => prop_assert_eq!(bits.remove(n), model.remove(&n)),
                }
            }
            prop_assert_eq!(bits.count() as usize, model.len());
            for n in 0..len + 70 {
                prop_assert_eq!(bits.has(n), model.contains(&n));
                prop_assert_eq!(bits.next(n), model.range(n..).next().copied());
            }
            let mut all = Bits::all(len);
            prop_assert_eq!(all.count(), len);
            prop_assert_eq!(all.next(len), None);
            all.keep(&bits);
            prop_assert_eq!(&all, &bits);
            prop_assert_eq!(Bits::from_bytes(&bits.to_bytes(), len), bits);
        }
    }
}
