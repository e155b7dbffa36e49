//! Random runs of the model: with the whole rule none breaks the promise, and without any one clause some does.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::super::rule::{Clause, Rule};
use super::model::*;

/// Clauses, each with the first run that is tried without it: runs that notice it at once are here, so that all of it is
/// quick; others are found as well, later.
const CLAUSES: [(Clause, u32); 11] = [
    (Clause::MarkedFirst, 0),
    (Clause::ClearedIsUnmarked, 96),
    (Clause::MarkWhatIsSet, 186),
    (Clause::Accepted, 2),
    (Clause::NothingInFlight, 57),
    (Clause::NotUnsynced, 96),
    (Clause::SyncedAfter, 0),
    (Clause::LookedAtAgain, 344),
    (Clause::FailedStaysSet, 11),
    (Clause::UncapturedStaysSet, 53),
    (Clause::SyncFailedEndsClearing, 1506),
];

/// Random runs that are tried before a clause counts as needless; a few dozen are enough for each of them.
const RUNS: u32 = 20_000;

fn simple() -> impl Strategy<Value = Op> + Clone {
    let n = 0..12_usize;
    prop_oneof![
        6 => n.clone().prop_map(Op::Begin),
        4 => n.clone().prop_map(Op::Look),
        1 => n.clone().prop_map(Op::GiveUp),
        6 => n.clone().prop_map(Op::Captured),
        1 => n.clone().prop_map(Op::Uncaptured),
        1 => n.clone().prop_map(Op::Failed),
        2 => n.prop_map(Op::Resync),
        3 => Just(Op::Cut),
        3 => Just(Op::Accept),
        1 => prop::bool::weighted(0.8).prop_map(Op::Flush),
        10 => Just(Op::Commit),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => simple(),
        6 => (prop::collection::vec(simple(), 0..5), prop::bool::weighted(0.95)).prop_map(|(ops, good)| Op::Clear(ops, good)),
        1 => Just(Op::Lose),
        1 => any::<bool>().prop_map(Op::FailCommit),
        1 => any::<u64>().prop_map(Op::PowerCut),
        1 => Just(Op::Kill),
    ]
}

fn runs() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(any_op(), 1..120)
}

fn run(ops: &[Op], rule: Rule) -> Result<(), String> {
    let mut world = World::new(rule);
    ops.iter().try_for_each(|op| world.step(op))?;
    world.settle()
}

proptest! {
    #[test]
    fn no_bit_is_clear_while_a_write_is_not_proved_and_all_are_in_the_end(ops in runs()) {
        prop_assert_eq!(run(&ops, Rule::default()), Ok(()));
    }
}

#[test]
fn every_clause_of_the_rule_is_needed() {
    for (clause, first) in CLAUSES {
        let tried = (first..first + RUNS).find(|n| {
            let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &n.to_le_bytes().repeat(8));
            let ops = runs().new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).unwrap().current();
            run(&ops, Rule::without(clause))
                .is_err_and(|e| e.contains("clear, and") || e.contains("clear in memory, and"))
        });
        assert!(tried.is_some(), "{clause:?} was taken out and {RUNS} runs noticed nothing");
    }
}
