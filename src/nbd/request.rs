//! A request's header: read out of 28 bytes, and judged before anything is done. No I/O.
//!
//! [`judge`] is the one place that decides what a client may ask of an export. Invariant: what it lets through is
//! within the export, aligned, and carries only flags that the command has.

use super::export::{Errno, ExportInfo, ZeroMode};
use super::proto::{MAX_PAYLOAD, REQUEST_LEN, REQUEST_MAGIC, command, flag, transmission};

/// A header as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// A request that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read { whole: bool },
    Write { fua: bool },
    Flush,
    Trim { fua: bool },
    Cache,
    WriteZeroes { mode: ZeroMode, fua: bool },
    BlockStatus { one: bool },
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is carried out.
    Run(Command),
    /// There is nothing to do, and that is a success.
    Nothing,
    /// It is refused in these words; the data of a write still has to be taken off the socket.
    Refuse(Errno, &'static str),
    /// The client takes its leave.
    Disconnect,
}

/// What was agreed on with a client, as far as requests depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

impl Header {
    /// Reads a header; `None` where it does not begin as one.
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Header> {
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        (u32_at(0) == REQUEST_MAGIC).then(|| Header {
            flags: u16_at(4),
            command: u16_at(6),
            cookie: u64_at(8),
            offset: u64_at(16),
            len: u32_at(24),
        })
    }

    /// Bytes of data behind the header.
    pub(super) fn payload(&self) -> u32 {
        if self.command == command::WRITE { self.len } else { 0 }
    }
}

/// The transmission flags of an export for a client with or without structured replies.
pub(super) fn transmission_flags(info: &ExportInfo, structured: bool) -> u16 {
    use transmission::*;
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    flags |= match info.read_only {
        true => READ_ONLY,
        false => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
    };
    if info.rotational {
        flags |= ROTATIONAL;
    }
    if structured {
        flags |= SEND_DF;
    }
    flags
}

/// Decides about a request.
pub(super) fn judge(header: &Header, info: &ExportInfo, agreed: Agreed) -> Verdict {
    let flags = header.flags;
    let fua = flags & flag::FUA != 0;
    let (command, allowed) = match header.command {
        command::READ => (Command::Read { whole: flags & flag::DF != 0 }, if agreed.structured { flag::DF } else { 0 }),
        command::WRITE => (Command::Write { fua }, 0),
        command::DISC => return Verdict::Disconnect,
        command::FLUSH => (Command::Flush, 0),
        command::TRIM => (Command::Trim { fua }, 0),
        command::CACHE => (Command::Cache, 0),
        command::WRITE_ZEROES => {
            let mode = ZeroMode { no_hole: flags & flag::NO_HOLE != 0, fast: flags & flag::FAST_ZERO != 0 };
            (Command::WriteZeroes { mode, fua }, flag::NO_HOLE | flag::FAST_ZERO)
        }
        command::BLOCK_STATUS => (Command::BlockStatus { one: flags & flag::REQ_ONE != 0 }, flag::REQ_ONE),
        _ => return Verdict::Refuse(Errno::Inval, "this command is not known here"),
    };
    // FUA is taken with every command, as the protocol wants it.
    if flags & !(allowed | flag::FUA) != 0 {
        return Verdict::Refuse(Errno::Inval, "the command has no such flag");
    }
    let changes = matches!(command, Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. });
    if changes && info.read_only {
        return Verdict::Refuse(Errno::Perm, "the export is read only");
    }
    if command == Command::Flush {
        return match (header.offset, header.len) {
            (0, 0) => Verdict::Run(command),
            _ => Verdict::Refuse(Errno::Inval, "a flush has no range"),
        };
    }
    judge_range(header, info, agreed, command)
}

fn judge_range(header: &Header, info: &ExportInfo, agreed: Agreed, command: Command) -> Verdict {
    let len = u64::from(header.len);
    if header.offset.checked_add(len).is_none_or(|end| end > info.size) {
        let errno = match command {
            Command::Write { .. } | Command::WriteZeroes { .. } => Errno::NoSpc,
            _ => Errno::Inval,
        };
        return Verdict::Refuse(errno, "the range goes past the end of the export");
    }
    let block = u64::from(info.min_block);
    if !header.offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Verdict::Refuse(Errno::Inval, "the range is not aligned to the smallest block of the export");
    }
    match command {
        Command::BlockStatus { .. } if !agreed.allocation => {
            Verdict::Refuse(Errno::Inval, "no metadata context was agreed on")
        }
        Command::BlockStatus { .. } if len == 0 => Verdict::Refuse(Errno::Inval, "a status of no bytes"),
        Command::Read { .. } if header.len > MAX_PAYLOAD => {
            let errno = if agreed.structured { Errno::Overflow } else { Errno::Inval };
            Verdict::Refuse(errno, "more than 32 MiB in one request")
        }
        Command::Write { .. } if header.len > MAX_PAYLOAD => {
            Verdict::Refuse(Errno::Inval, "more than 32 MiB in one request")
        }
        _ if len == 0 => Verdict::Nothing,
        _ => Verdict::Run(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AGREED: Agreed = Agreed { structured: true, allocation: true };
    const PLAIN: Agreed = Agreed { structured: false, allocation: false };
    const SIZE: u64 = 1 << 30;

    fn ask(command: u16, flags: u16, offset: u64, len: u32) -> Header {
        Header { flags, command, cookie: 7, offset, len }
    }

    fn errno(header: Header, info: &ExportInfo, agreed: Agreed) -> Option<Errno> {
        match judge(&header, info, agreed) {
            Verdict::Refuse(errno, _) => Some(errno),
            _ => None,
        }
    }

    #[test]
    fn a_header_is_read_as_the_protocol_has_it() {
        let mut bytes = [0; REQUEST_LEN];
        bytes.copy_from_slice(
            &[
                &[0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6][..],
                &[1, 2, 3, 4, 5, 6, 7, 8],
                &[0, 0, 0, 0, 0, 0, 0x10, 0],
                &[0, 0, 2, 0],
            ]
            .concat(),
        );
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header, Header { flags: 1, command: 6, cookie: 0x0102_0304_0506_0708, offset: 4096, len: 512 });
        bytes[0] ^= 1;
        assert_eq!(Header::parse(&bytes), None);
    }

    #[test]
    fn refusals_have_the_errors_that_the_protocol_names() {
        let info = ExportInfo::new(SIZE);
        let read_only = ExportInfo { read_only: true, ..info.clone() };
        let blocks = ExportInfo { min_block: 512, ..info.clone() };
        for command in [command::WRITE, command::WRITE_ZEROES] {
            assert_eq!(errno(ask(command, 0, SIZE - 1, 2), &info, AGREED), Some(Errno::NoSpc));
            assert_eq!(errno(ask(command, 0, u64::MAX, 2), &info, AGREED), Some(Errno::NoSpc));
        }
        for command in [command::READ, command::TRIM, command::CACHE, command::BLOCK_STATUS] {
            assert_eq!(errno(ask(command, 0, SIZE - 1, 2), &info, AGREED), Some(Errno::Inval));
        }
        for command in [command::WRITE, command::WRITE_ZEROES, command::TRIM] {
            assert_eq!(errno(ask(command, 0, 0, 1), &read_only, AGREED), Some(Errno::Perm));
        }
        for command in 0..20 {
            let wrong = match command {
                command::READ => flag::NO_HOLE,
                command::WRITE_ZEROES | command::BLOCK_STATUS => flag::DF,
                command::DISC => continue,
                _ => flag::REQ_ONE,
            };
            assert_eq!(errno(ask(command, wrong, 0, 0), &info, AGREED), Some(Errno::Inval), "{command}");
            let known = command <= command::BLOCK_STATUS;
            let len = if command == command::FLUSH { 0 } else { 512 };
            assert_eq!(errno(ask(command, flag::FUA, 0, len), &info, AGREED).is_none(), known, "{command}");
        }
        assert_eq!(errno(ask(command::FLUSH, 0, 0, 1), &info, AGREED), Some(Errno::Inval));
        assert_eq!(errno(ask(command::READ, flag::DF, 0, 1), &info, PLAIN), Some(Errno::Inval));
        assert_eq!(errno(ask(command::READ, 0, 0, MAX_PAYLOAD + 1), &info, AGREED), Some(Errno::Overflow));
        assert_eq!(errno(ask(command::READ, 0, 0, MAX_PAYLOAD + 1), &info, PLAIN), Some(Errno::Inval));
        assert_eq!(errno(ask(command::WRITE, 0, 0, MAX_PAYLOAD + 1), &info, AGREED), Some(Errno::Inval));
        assert_eq!(errno(ask(command::BLOCK_STATUS, 0, 0, 1), &info, PLAIN), Some(Errno::Inval));
        assert_eq!(errno(ask(command::BLOCK_STATUS, 0, 0, 0), &info, AGREED), Some(Errno::Inval));
        assert_eq!(errno(ask(command::READ, 0, 1, 512), &blocks, AGREED), Some(Errno::Inval));
        assert_eq!(errno(ask(command::READ, 0, 512, 1), &blocks, AGREED), Some(Errno::Inval));
        assert_eq!(errno(ask(command::TRIM, 0, 0, 1 << 30), &info, AGREED), None, "no data, so no limit");
        assert_eq!(judge(&ask(command::READ, 0, SIZE, 0), &info, AGREED), Verdict::Nothing);
    }

    #[test]
    fn flags_tell_what_there_is() {
        let info = ExportInfo::new(1);
        assert_eq!(transmission_flags(&info, true), 0b1101_1110_1101);
        assert_eq!(transmission_flags(&info, false), 0b1101_0110_1101);
        let read_only = ExportInfo { read_only: true, rotational: true, ..info };
        assert_eq!(transmission_flags(&read_only, false), 0b0101_0001_1111);
    }

    proptest! {
        #[test]
        fn what_is_let_through_is_inside_and_aligned(
            bytes in prop::array::uniform28(any::<u8>()),
            size in prop_oneof![any::<u64>(), 0u64..1 << 33],
            shift in 0u32..17,
            structured: bool,
            read_only: bool,
        ) {
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            // Mostly commands that there are.
            bytes[6] = 0;
            bytes[7] &= 15;
            bytes[4] &= 1;
            let header = Header::parse(&bytes).unwrap();
            let info = ExportInfo { min_block: 1 << shift, read_only, ..ExportInfo::new(size) };
            let agreed = Agreed { structured, allocation: structured };
            if let Verdict::Run(command) = judge(&header, &info, agreed) {
                let changes = !matches!(command, Command::Read { .. } | Command::Flush | Command::Cache | Command::BlockStatus { .. });
                prop_assert!(!(changes && read_only));
                prop_assert!(header.offset.checked_add(u64::from(header.len)).is_some_and(|end| end <= size));
                prop_assert_eq!(header.offset % u64::from(info.min_block), 0);
                prop_assert!(header.payload() <= MAX_PAYLOAD);
                prop_assert!(header.len > 0 || command == Command::Flush);
            }
        }
    }
}
