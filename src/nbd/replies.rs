//! The messages that answer requests, made of what an export said. No I/O.
//!
//! Owns how bytes that read as zeros are told: in a structured reply as holes, unless the client wants its data whole.

use std::ops::Range;
use std::sync::Arc;

use super::buffers::Payload;
use super::export::{BlockStatus, ExportError};
use super::outgoing::{Body, Message};
use super::proto::{ALLOCATION_ID, STATE_HOLE, STATE_ZERO, chunk, chunk_header, simple_reply};

/// Zeros are looked for in units of this many bytes of the disk.
const BLOCK: usize = 4096;

/// A run of zeros shorter than this is sent with its neighbours, unless it is all there is: a chunk costs the client
/// more than the bytes.
const MIN_HOLE: usize = 32 << 10;

/// Longest text of an error that a client is sent, in bytes.
const MAX_TEXT: usize = 512;

/// Success without data.
pub(super) fn done(cookie: u64) -> Message {
    Message::new(&[&simple_reply(0, cookie)], Body::None, true)
}

/// Success of a read of no bytes.
pub(super) fn nothing_read(cookie: u64, structured: bool) -> Message {
    match structured {
        true => Message::new(&[&chunk_header(chunk::DONE, chunk::NONE, cookie, 0)], Body::None, true),
        false => done(cookie),
    }
}

/// A failure, with its text where the client can take it.
pub(super) fn failed(cookie: u64, structured: bool, error: &ExportError) -> Message {
    let errno = error.errno as u32;
    if !structured {
        return Message::new(&[&simple_reply(errno, cookie)], Body::None, true);
    }
    let text = &error.text[..error.text.floor_char_boundary(MAX_TEXT)];
    // Bounded above, so that both lengths fit.
    let header = chunk_header(chunk::DONE, chunk::ERROR, cookie, 6 + text.len() as u32);
    let head: [&[u8]; 3] = [&header, &errno.to_be_bytes(), &(text.len() as u16).to_be_bytes()];
    Message::new(&head, Body::Bytes(text.as_bytes().to_vec()), true)
}

/// Begins the simple reply to a read with its first data.
pub(super) fn simple_data(cookie: u64, data: Payload, ends: bool) -> Message {
    Message::new(&[&simple_reply(0, cookie)], Body::Whole(data), ends)
}

/// More data of a simple reply.
pub(super) fn more_data(data: Payload, ends: bool) -> Message {
    Message::new(&[], Body::Whole(data), ends)
}

/// The chunks of data read at `offset`, given to `push` in order; the last is the last of the reply if `last`. Not cut
/// up if `whole`.
pub(super) fn chunks(cookie: u64, offset: u64, data: Payload, whole: bool, last: bool, mut push: impl FnMut(Message)) {
    let parts = if whole { Vec::new() } else { holes(offset, &data) };
    match parts.as_slice() {
        [] => {
            let flags = if last { chunk::DONE } else { 0 };
            // A payload is at most one buffer long.
            let header = chunk_header(flags, chunk::OFFSET_DATA, cookie, 8 + data.len() as u32);
            push(Message::new(&[&header, &offset.to_be_bytes()], Body::Whole(data), last));
        }
        parts => {
            let data = Arc::new(data);
            for (n, (range, zero)) in parts.iter().enumerate() {
                let ends = last && n + 1 == parts.len();
                push(part(cookie, offset, &data, range.clone(), *zero, ends));
            }
        }
    }
}

fn part(cookie: u64, offset: u64, data: &Arc<Payload>, range: Range<usize>, zero: bool, ends: bool) -> Message {
    let flags = if ends { chunk::DONE } else { 0 };
    let at = (offset + range.start as u64).to_be_bytes();
    let len = range.len() as u32;
    if zero {
        let header = chunk_header(flags, chunk::OFFSET_HOLE, cookie, 12);
        return Message::new(&[&header, &at, &len.to_be_bytes()], Body::None, ends);
    }
    let header = chunk_header(flags, chunk::OFFSET_DATA, cookie, 8 + len);
    Message::new(&[&header, &at], Body::Part(Arc::clone(data), range), ends)
}

/// The status of parts that follow each other.
pub(super) fn status(cookie: u64, parts: &[BlockStatus]) -> Message {
    let mut body = Vec::with_capacity(parts.len() * 8);
    for part in parts {
        // Parts lie within the request, whose length is of 32 bits.
        body.extend_from_slice(&u32::try_from(part.len).unwrap_or(u32::MAX).to_be_bytes());
        let flags = if part.hole { STATE_HOLE } else { 0 } | if part.zero { STATE_ZERO } else { 0 };
        body.extend_from_slice(&flags.to_be_bytes());
    }
    let header = chunk_header(chunk::DONE, chunk::BLOCK_STATUS, cookie, 4 + body.len() as u32);
    Message::new(&[&header, &ALLOCATION_ID.to_be_bytes()], Body::Bytes(body), true)
}

/// Runs of data and of zeros that cover `data`, read at `offset`; none where there are no zeros worth telling.
fn holes(offset: u64, data: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let into = ((offset + at as u64) % BLOCK as u64) as usize;
        let end = data.len().min(at + BLOCK - into);
        let zero = is_zero(&data[at..end]);
        match runs.last_mut() {
            Some((run, was_zero)) if *was_zero == zero => run.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    if !runs.iter().any(|(run, zero)| *zero && (run.len() >= MIN_HOLE || run.len() == data.len())) {
        return Vec::new();
    }
    let mut out: Vec<(Range<usize>, bool)> = Vec::with_capacity(runs.len());
    for (run, zero) in runs {
        let zero = zero && (run.len() >= MIN_HOLE || run.len() == data.len());
        match out.last_mut() {
            Some((last, false)) if !zero => last.end = run.end,
            _ => out.push((run, zero)),
        }
    }
    out
}

/// Whether all bytes are zero; looks no further than the first that is not, give or take a line of the cache.
fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| line.iter().fold(0, |any, byte| any | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::Buffers;
    use crate::nbd::export::Errno;
    use proptest::prelude::*;

    #[test]
    fn zeros_are_told_where_they_are_worth_a_chunk() {
        let mut data = vec![0; 1 << 20];
        assert_eq!(holes(0, &data), [(0..1 << 20, true)]);
        data[500_000] = 1;
        let block = 500_000 / BLOCK * BLOCK;
        assert_eq!(holes(0, &data), [(0..block, true), (block..block + BLOCK, false), (block + BLOCK..1 << 20, true)]);
        assert_eq!(holes(0, &[1; 8192]), []);
        let mut small = vec![1; 100_000];
        small[4096..36_864 - 1].fill(0);
        assert_eq!(holes(0, &small), [], "too short");
        small[36_864 - 1] = 0;
        assert_eq!(holes(0, &small), [(0..4096, false), (4096..36_864, true), (36_864..100_000, false)]);
        assert_eq!(holes(5, &[0; 3]), [(0..3, true)], "all there is");
    }

    proptest! {
        #[test]
        fn runs_cover_the_data_and_holes_are_zero(
            offset in 0u64..10_000,
            len in 1usize..200_000,
            marks in prop::collection::vec(0usize..200_000, 0..4),
        ) {
            let mut data = vec![0; len];
            marks.iter().filter(|&&at| at < len).for_each(|&at| data[at] = 1);
            let runs = holes(offset, &data);
            let mut at = 0;
            for (run, zero) in &runs {
                prop_assert!(run.start == at && !run.is_empty());
                prop_assert!(!zero || data[run.clone()].iter().all(|&b| b == 0));
                at = run.end;
            }
            prop_assert!(runs.is_empty() || at == len);
        }
    }

    #[test]
    fn an_error_carries_its_text_cut_at_a_character() {
        let error = ExportError::new(Errno::Io, "ä".repeat(400));
        let text = format!("{:?}", failed(1, true, &error));
        assert!(text.contains("head_len: 26"), "{text}");
        assert!(!format!("{:?}", failed(1, false, &error)).contains("head_len: 26"));
    }

    #[test]
    fn only_the_last_chunk_ends_the_reply() {
        let share = Buffers::new(16 << 20, 1).unwrap().share().unwrap();
        for (whole, last, count) in [(true, true, 1), (false, true, 2), (false, false, 2)] {
            let mut data = share.try_take(0, 200_000).unwrap();
            data.fill(0);
            data[0] = 1;
            let mut ends = Vec::new();
            chunks(1, 0, data, whole, last, |message| ends.push(format!("{message:?}").contains("ends: true")));
            assert_eq!(ends.len(), count);
            assert!(ends[..count - 1].iter().all(|end| !end) && ends[count - 1] == last);
        }
    }
}
