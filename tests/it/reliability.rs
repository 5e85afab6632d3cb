//! Kills, faults and flipped bytes, a few of each; `make reliability` does many more of the same.

use reliability::corruption;
use reliability::faults::Faults;
use reliability::kills::Kills;
use reliability::program::{Program, Toys};

use crate::support::demo_set;

const SEED: u64 = 1;

fn program() -> Program {
    Program::new(env!("CARGO_BIN_EXE_pairquet"))
}

#[test]
fn twenty_kills_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let kills = Kills {
        program: &program(),
        toys: &Toys::at(demo_set()),
        work: dir.path(),
        seed: SEED,
    };
    let tally = kills.run(20, &mut |_| {}).unwrap();
    assert!(tally.n_hits() >= 20, "{:?}", tally.lines());
}

#[test]
fn failing_calls_are_named_and_leave_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let (program, toys) = (program(), Toys::at(demo_set()));
    let mut faults = Faults::new(&program, &toys, dir.path(), 1, SEED).unwrap();
    let tally = faults
        .run(
            &["convert pictures", "train", "eval knn", "verify"],
            &mut |_| {},
        )
        .unwrap();
    assert!(tally.n() > 20, "{tally:?}");
}

#[test]
fn every_flipped_byte_is_found_and_training_goes_on_by_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let (program, toys) = (program(), Toys::at(demo_set()));
    let set = toys.few_pictures(&program, dir.path()).unwrap();
    let tally = corruption::flip(&set, dir.path(), 12, SEED).unwrap();
    let (n, found) = tally.n();
    assert!(n > 80 && found == n, "{tally:?}");
    corruption::train_on_damaged(&program, &toys, dir.path(), SEED).unwrap();
}
