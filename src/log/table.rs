//! What recovery finds and what it does about it: the decision table, kept as data.
//!
//! Recovery reads the two superblock slots, then the *durable region* (from the superblock's tail to its head: all of
//! it was synced before the superblock said so), then the *end region* (after the head: written, perhaps synced,
//! perhaps torn by a crash). What it finds in each is one [`Finding`]; [`decide`] looks the answer up here and logs the
//! label, and there is no other place where recovery decides.
//!
//! | label | where | what is found | what is done |
//! |---|---|---|---|
//! | S1 | slots | both valid | the newer one counts |
//! | S2 | slots | one valid, the other does not decode | the valid one counts: the other was torn while it was written |
//! | S3 | slots | one valid, the other blank | the valid one counts: the log is new |
//! | S4 | slots | none valid | refuse: a log is made whole before it gets its name |
//! | S5 | slots | a newer version | refuse: a newer program wrote it |
//! | S6 | slots | two logs mixed, or two of one number | refuse: no crash makes that |
//! | S7 | slots | the file has another length than the superblock says | refuse: cut or replaced from outside |
//! | S8 | slots | another domain | refuse |
//! | S9 | slots | another datastore | refuse |
//! | D1 | durable | the record, whole | keep |
//! | D2 | durable | the record, its payload damaged or unreadable | keep its place, quarantine its segment |
//! | D3 | durable | blank | quarantine up to the next record |
//! | D4 | durable | a header that does not decode or cannot be read | quarantine up to the next record |
//! | D5 | durable | a record of an earlier position: an earlier lap | quarantine up to the next record: a write was lost |
//! | D6 | durable | a record of a later position: a later lap | quarantine up to the next record: an old superblock counts |
//! | D7 | durable | the record of a later epoch | the superblock is older than the records: go on as in the end region |
//! | D8 | durable | a record of another log | quarantine up to the next record |
//! | D9 | durable | the right position, but not the next segment of the domain | quarantine up to the next record |
//! | E1 | end | the record, whole | keep: it is written again and synced before it counts as landed |
//! | E2 | end | the record, its payload damaged | end: torn by the crash |
//! | E3 | end | blank | end: nothing was written here |
//! | E4 | end | a header that does not decode or cannot be read | end: torn by the crash |
//! | E5 | end | a record of an earlier position | end: left from an earlier lap |
//! | E6 | end | a record of a later position | end: the superblock that freed this place is lost |
//! | E7 | end | the record, of an earlier epoch | end: an earlier recovery or a rewind dropped it |
//! | E8 | end | a record of another log | end |
//! | E9 | end | the right position, but not the next segment of the domain | end |
//!
//! An earlier epoch is as it should be in the durable region, a later one in the end region is kept there (the
//! superblock that began it is lost).

use crate::error::ErrorKind;

/// Where recovery looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    /// The two superblock slots.
    Slots,
    /// Between tail and head of the superblock.
    Durable,
    /// After the head of the superblock.
    End,
}

/// What recovery finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finding {
    /// Both slots are valid.
    BothValid,
    /// One slot is valid, the other does not decode.
    OneBad,
    /// One slot is valid, the other blank.
    OneBlank,
    /// No slot is valid.
    NoneValid,
    /// A slot has a version that is not known.
    NewerVersion,
    /// The slots contradict each other.
    Mixed,
    /// The file is longer or shorter than the superblock says.
    WrongLength,
    /// The log is of another domain.
    OtherDomain,
    /// The log is of another datastore.
    OtherDatastore,
    /// The record that should be there, with its payload.
    Whole,
    /// Its header, but not its payload.
    PayloadBad,
    /// Zeros.
    Blank,
    /// A header that does not decode, or a block that cannot be read.
    HeaderBad,
    /// A record of an earlier position.
    Earlier,
    /// A record of a later position.
    Later,
    /// The right position, an epoch that should not be there: later in the durable region, earlier in the end region.
    OtherEpoch,
    /// A record of another log.
    OtherLog,
    /// The right position, but another domain, number or length than there can be.
    Misfit,
}

/// What recovery does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The newest valid superblock counts.
    UseNewest,
    /// The log is not opened, with an error of this kind.
    Refuse(ErrorKind),
    /// The record is held.
    Keep,
    /// The record keeps its place; its segment is reported as quarantined.
    QuarantineOne,
    /// All segments up to the next valid record are reported as quarantined.
    QuarantineToNext,
    /// The rest is judged as in the end region.
    ToEnd,
    /// The log ends before this.
    Stop,
}

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Label in the table above and in the log.
    pub label: &'static str,
    /// Where.
    pub region: Region,
    /// What is found.
    pub finding: Finding,
    /// What is done.
    pub action: Action,
    /// Whether an operator should know: it is logged as a warning.
    pub notable: bool,
}

const fn rule(label: &'static str, region: Region, finding: Finding, action: Action, notable: bool) -> Rule {
    Rule { label, region, finding, action, notable }
}

/// The table.
pub const RULES: &[Rule] = {
    use Action::*;
    use Finding::*;
    use Region::*;
    &[
        rule("S1", Slots, BothValid, UseNewest, false),
        rule("S2", Slots, OneBad, UseNewest, true),
        rule("S3", Slots, OneBlank, UseNewest, false),
        rule("S4", Slots, NoneValid, Refuse(ErrorKind::Damaged), true),
        rule("S5", Slots, NewerVersion, Refuse(ErrorKind::Unsupported), true),
        rule("S6", Slots, Mixed, Refuse(ErrorKind::Damaged), true),
        rule("S7", Slots, WrongLength, Refuse(ErrorKind::Damaged), true),
        rule("S8", Slots, OtherDomain, Refuse(ErrorKind::Refused), true),
        rule("S9", Slots, OtherDatastore, Refuse(ErrorKind::Refused), true),
        rule("D1", Durable, Whole, Keep, false),
        rule("D2", Durable, PayloadBad, QuarantineOne, true),
        rule("D3", Durable, Blank, QuarantineToNext, true),
        rule("D4", Durable, HeaderBad, QuarantineToNext, true),
        rule("D5", Durable, Earlier, QuarantineToNext, true),
        rule("D6", Durable, Later, QuarantineToNext, true),
        rule("D7", Durable, OtherEpoch, ToEnd, true),
        rule("D8", Durable, OtherLog, QuarantineToNext, true),
        rule("D9", Durable, Misfit, QuarantineToNext, true),
        rule("E1", End, Whole, Keep, false),
        rule("E2", End, PayloadBad, Stop, false),
        rule("E3", End, Blank, Stop, false),
        rule("E4", End, HeaderBad, Stop, false),
        rule("E5", End, Earlier, Stop, false),
        rule("E6", End, Later, Stop, true),
        rule("E7", End, OtherEpoch, Stop, false),
        rule("E8", End, OtherLog, Stop, true),
        rule("E9", End, Misfit, Stop, true),
    ]
};

/// The row for `finding` in `region`; logs its label with `place`.
pub(super) fn decide(region: Region, finding: Finding, place: impl std::fmt::Display) -> &'static Rule {
    let rule = RULES.iter().find(|r| r.region == region && r.finding == finding);
    let rule = rule.expect("the table has a row for every finding of a region, which a test proves");
    match rule.notable {
        true => tracing::warn!(label = rule.label, %place, ?finding, action = ?rule.action, "log recovery"),
        false => tracing::debug!(label = rule.label, %place, ?finding, action = ?rule.action, "log recovery"),
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: [Finding; 9] = [
        Finding::BothValid,
        Finding::OneBad,
        Finding::OneBlank,
        Finding::NoneValid,
        Finding::NewerVersion,
        Finding::Mixed,
        Finding::WrongLength,
        Finding::OtherDomain,
        Finding::OtherDatastore,
    ];
    const RECORDS: [Finding; 9] = [
        Finding::Whole,
        Finding::PayloadBad,
        Finding::Blank,
        Finding::HeaderBad,
        Finding::Earlier,
        Finding::Later,
        Finding::OtherEpoch,
        Finding::OtherLog,
        Finding::Misfit,
    ];

    #[test]
    fn every_finding_has_one_row_and_the_comment_has_the_same_rows() {
        let all = SLOTS.iter().map(|f| (Region::Slots, f));
        let all =
            all.chain([Region::Durable, Region::End].into_iter().flat_map(|r| RECORDS.iter().map(move |f| (r, f))));
        let mut rows = 0;
        for (region, finding) in all {
            let hits = RULES.iter().filter(|r| r.region == region && r.finding == *finding).count();
            assert_eq!(hits, 1, "{region:?} {finding:?}");
            rows += 1;
        }
        assert_eq!(RULES.len(), rows, "a row that is never used");
        let text = include_str!("table.rs");
        let told: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix("//! | ")).filter_map(|l| l.get(..2)).collect();
        let labels: Vec<&str> = RULES.iter().map(|r| r.label).collect();
        assert_eq!(told[1..], labels[..], "comment and data have drifted apart");
    }

    #[test]
    fn only_the_end_region_drops_records_in_silence() {
        for rule in RULES.iter().filter(|r| r.region == Region::Durable) {
            assert_ne!(rule.action, Action::Stop, "{}", rule.label);
        }
    }
}
