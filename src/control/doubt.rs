//! Where a guest's newest bytes are, whose disks were about to change over when something ended in the middle.
//!
//! ```text
//! all copied, both places the same --written down: about to, in this run of the guest--> changed over --> next start written
//!                                    ended here: old place or new one?
//! ```
//!
//! While that very run goes on, the hypervisor's word is certain. Once it has ended nobody knows: the guest may have written
//! to the new place, and been started anew in the old one. Then neither is copied over the other unasked. Owns that
//! decision. Invariant: what an operator decides is decided after being told, by a start or by unprotecting, and by nothing
//! that happens by itself.

use super::catalog::Moving;
use crate::hypervisor::FoundVm;

/// What is known of a move that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nothing can be where it is not looked for.
    None,
    /// The guest runs, and not in the run in which its disks were about to change over.
    StartedAnew,
    /// It is off, and nobody was told what there is to decide.
    Off,
    /// It is off, and an operator was told.
    Told,
}

impl Doubt {
    /// `on` of `all` disks are on their exports: now where the guest runs, at its next start where it is off.
    pub(super) fn of(moving: &Moving, found: Option<&FoundVm>, on: usize, all: usize) -> Doubt {
        let settled = if moving.leaves { on == 0 } else { on == all };
        let Some(found) = found.filter(|_| moving.pivots && !settled) else { return Doubt::None };
        match (found.running, moving.told) {
            (true, true) => Doubt::None,
            (true, false) if !found.run.is_empty() && found.run == moving.run => Doubt::None,
            (true, false) => Doubt::StartedAnew,
            (false, false) => Doubt::Off,
            (false, true) => Doubt::Told,
        }
    }

    /// What an operator is told of it, for a VM whose images are `images`.
    pub(super) fn words(self, images: &str) -> String {
        let where_to = format!("what it wrote last is in {images} or on the disks that it had");
        match self {
            Doubt::None => String::new(),
            Doubt::StartedAnew => format!(
                "was started anew just after its disks were about to change over, and {where_to}: shut it down and \
                 compare them; nothing is copied until then"
            ),
            Doubt::Off | Doubt::Told => format!(
                "was switched off just as its disks changed over: {where_to}; compare them before it is started. Starting \
                 it goes on with the disks that its definition names, which are then copied over the others; unprotecting \
                 it copies nothing, and leaves its definition with the same; to go on with the others, unprotect it and \
                 have its definition name them"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;

    fn moving(pivots: bool, leaves: bool, run: &str, told: bool) -> Moving {
        let fills = !leaves;
        Moving {
            vm: Name::new("web").unwrap(),
            fills,
            leaves,
            pivots,
            run: run.to_owned(),
            told,
            made: Default::default(),
        }
    }

    fn found(running: bool, run: &str) -> FoundVm {
        FoundVm {
            running,
            run: run.to_owned(),
            definition_kind: String::new(),
            definition: String::new(),
            shape: Default::default(),
            disks: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn only_the_same_run_or_an_operator_who_was_told_is_believed() {
        let of = |moving: Moving, found: FoundVm, on| Doubt::of(&moving, Some(&found), on, 2);
        // Before they are about to change over, and once they have.
        assert_eq!(of(moving(false, false, "", false), found(true, "b"), 0), Doubt::None);
        assert_eq!(of(moving(true, false, "a", false), found(true, "b"), 2), Doubt::None);
        assert_eq!(of(moving(true, true, "a", false), found(false, ""), 0), Doubt::None);
        // In between.
        assert_eq!(of(moving(true, false, "a", false), found(true, "a"), 1), Doubt::None);
        for leaves in [false, true] {
            for on in 0..=2 {
                if on == if leaves { 0 } else { 2 } {
                    continue;
                }
                let of = |run: &str, told, found| of(moving(true, leaves, run, told), found, on);
                assert_eq!(of("a", false, found(true, "b")), Doubt::StartedAnew);
                assert_eq!(
                    of("", false, found(true, "")),
                    Doubt::StartedAnew,
                    "a run that nobody can tell is no proof"
                );
                assert_eq!(of("a", false, found(false, "")), Doubt::Off);
                assert_eq!(of("a", true, found(false, "")), Doubt::Told);
                assert_eq!(of("a", true, found(true, "b")), Doubt::None, "the operator's word");
            }
        }
        assert_eq!(Doubt::of(&moving(true, false, "a", false), None, 0, 2), Doubt::None);
        assert!(Doubt::StartedAnew.words("/i").contains("compare them") && Doubt::Off.words("/i").contains("/i"));
    }
}
