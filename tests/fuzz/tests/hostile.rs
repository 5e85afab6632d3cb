//! Every target over its seeds, its stored inputs and its changes of both, the same ones each time.

use fuzz::TARGETS;
use fuzz::campaign::{Length, clean, corpus, run};

/// One test for all: what a target allocates is counted for the whole process.
#[test]
fn hostile_bytes_are_refused_in_little_time_and_memory() {
    let kept = std::env::temp_dir().join("pairquet-hostile");
    std::fs::create_dir_all(&kept).unwrap();
    let mut failures = Vec::new();
    for target in TARGETS {
        let report = run(target, &corpus(), &kept, Length::Rounds).unwrap();
        assert!(report.inputs >= target.rounds.min(20), "{}", target.name);
        failures.extend(
            report
                .failures
                .into_iter()
                .map(|failure| format!("{}: {failure}", target.name)),
        );
    }
    clean();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A folder of the corpus that no target reads would be of no use.
#[test]
fn every_stored_input_belongs_to_a_target() {
    let mut n_bytes = 0;
    for folder in std::fs::read_dir(corpus()).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        fuzz::target(&name).unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            n_bytes += file.unwrap().metadata().unwrap().len();
        }
    }
    assert!(n_bytes <= 256 << 10, "{n_bytes} bytes of corpus");
}
